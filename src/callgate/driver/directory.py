# SPDX-License-Identifier: MIT
"""Reading a gate from the driver's side: capability, header, directory (docs/abi.md, 2 to 4).

The other side may lie: everything is copied first, then checked, and the copy is used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from callgate.call import signature_hash
from callgate.driver.pci import CAP_VENDOR, PciFunction
from callgate.errors import NotAGate
from callgate.gate.abi import (
    CAPABILITY,
    CAPABILITY_SIGNATURE,
    ENTRY,
    FRAME,
    HEADER,
    HEADER_SIGNATURE,
    MAX_VALUES,
    MIN_FRAME_SIZE,
    PAGE,
    CallFlag,
    Feature,
    Instruction,
    Transport,
)
from callgate.gate.fence import WEAK

_TRIES = 1000
_TEXT = re.compile(r"(\w+)\(([a-z0-9,]*)\)->(?:\(([a-z0-9,]*)\)|([a-z0-9]+))")


@dataclass(frozen=True)
class GatePlace:
    """The vendor-specific capability, checked."""

    bar: int
    offset: int
    length: int
    doorbell: int
    transports: Transport
    instruction: Instruction
    pio_bar: int | None
    pio_offset: int
    selector: int


@dataclass(frozen=True)
class Entry:
    """One call of the directory."""

    name: str
    vector: int
    """0 while the call is not bound; else 1 through the kernel's module, which tells no vectors."""
    arguments: int
    results: int
    flags: CallFlag
    signature: int
    text: str
    parameter_types: tuple[str, ...]
    result_types: tuple[str, ...]


@dataclass(frozen=True)
class Directory:
    """Header and entries, read at one generation."""

    generation: int
    name: str
    uuid: UUID
    version: int
    features: Feature
    frames: tuple[int, int, int]
    """Offset of the first, count, bytes of one."""
    interrupt: int
    doorbell_vector: int
    entries: dict[str, Entry]


def find_gate(function: PciFunction) -> GatePlace | None:
    """The gate's place by config space alone, or None where there is no gate.

    Raises NotAGate for a capability of ours that is damaged.
    """
    for kind, at in function.capabilities():
        if kind != CAP_VENDOR or function.config(at + 4, 4) != CAPABILITY_SIGNATURE:
            continue
        words = [function.config(at + step, 4) for step in range(0, CAPABILITY.size, 4)]
        data = b"".join(word.to_bytes(4, "little") for word in words)
        found = CAPABILITY.unpack(data)
        if found["length"] < CAPABILITY.size or found["version_major"] != 1:
            raise NotAGate(f"{function}: the gate's capability must be of version 1")
        end = found["gate_offset"] + found["gate_length"]
        doorbell = found["doorbell_offset"]
        sound = found["bar"] <= 5 and end <= 1 << 32 and doorbell + PAGE <= found["gate_length"]
        if not sound or found["gate_offset"] % PAGE or doorbell % PAGE:
            raise NotAGate(f"{function}: the gate's capability contradicts itself")
        pio_bar = found["pio_bar"] if found["pio_bar"] <= 5 else None
        transports = Transport(found["transports"] & 0xF)
        if pio_bar is None:
            transports &= ~Transport.PIO
        return GatePlace(
            bar=found["bar"],
            offset=found["gate_offset"],
            length=found["gate_length"],
            doorbell=doorbell,
            transports=transports,
            instruction=Instruction(found["instruction"] if found["instruction"] <= 5 else 0),
            pio_bar=pio_bar,
            pio_offset=found["pio_offset"],
            selector=found["selector"],
        )
    return None


def read_directory(function: PciFunction, place: GatePlace) -> Directory:
    """The directory as it is now. Raises NotAGate when it is malformed or never at rest."""
    base = function.bar(place.bar).address + place.offset
    at_generation = HEADER.offset("generation")

    def copy(offset: int, length: int) -> bytes:
        if offset + length > place.doorbell:
            raise NotAGate(f"{function}: the gate's directory must lie inside the gate")
        mapped = function.door.map(base + offset, length)
        if mapped is not None and not WEAK:  # Where arm64 maps a device's, words alone are read.
            return bytes(mapped)
        first, end = offset & ~7, offset + length
        words = (function.door.read(base + at, 8) for at in range(first, end, 8))
        return b"".join(word.to_bytes(8, "little") for word in words)[offset - first :][:length]

    for _ in range(_TRIES):
        header = HEADER.unpack(copy(0, HEADER.size))
        generation = header["generation"]
        if generation & 1:
            function.door.pause(0)
            continue
        _check(header, place, function)
        step = header["entry_size"]
        data = copy(header["directory_offset"], header["entry_count"] * step)
        texts = copy(header["text_offset"], header["text_length"])
        if int.from_bytes(copy(at_generation, 4), "little") != generation:
            continue
        entries = {}
        for start in range(0, len(data), step):
            entry = _entry(ENTRY.unpack(data[start : start + ENTRY.size]), header, texts)
            entries[entry.name] = entry
        return Directory(
            generation=generation,
            name=_name(header["name"]),
            uuid=UUID(bytes=header["uuid"]),
            version=header["device_version"],
            features=Feature(header["features"] & 0xF),
            frames=(header["frames_offset"], header["frame_count"], header["frame_size"]),
            interrupt=header["interrupt"],
            doorbell_vector=header["doorbell_vector"],
            entries=entries,
        )
    raise NotAGate(f"{function}: the directory changed during each of {_TRIES} readings")


def _check(header: dict[str, Any], place: GatePlace, function: PciFunction) -> None:
    frames_end = header["frames_offset"] + header["frame_count"] * header["frame_size"]
    sound = (
        header["signature"] == HEADER_SIGNATURE
        and header["version_major"] == 1
        and header["entry_size"] >= ENTRY.size
        and header["entry_size"] % 8 == header["directory_offset"] % 8 == 0
        and header["frame_size"] >= MIN_FRAME_SIZE >= FRAME.size
        and header["frame_size"] % 8 == header["frames_offset"] % 8 == 0
        and header["frame_count"] >= 1
        and frames_end <= place.doorbell
        and header["doorbell_offset"] == place.doorbell
    )
    if not sound:
        raise NotAGate(f"{function}: the gate's header is not one of version 1")


def _entry(raw: dict[str, Any], header: dict[str, Any], texts: bytes) -> Entry:
    start = raw["text_offset"] - header["text_offset"]
    text = texts[start : start + raw["text_length"]].decode(errors="replace") if start >= 0 else ""
    numbers = {key: raw[key] for key in ("vector", "arguments", "results", "flags", "signature")}
    return entry_of(_name(raw["name"]), text, **numbers)


def entry_of(
    name: str,
    text: str,
    *,
    vector: int,
    arguments: int,
    results: int,
    flags: int,
    signature: int,
) -> Entry:
    """An entry with its values' types, which are those of the text if it is the one that was
    signed. Raises NotAGate for more slots than a call can have.
    """
    if max(arguments, results) > MAX_VALUES:
        raise NotAGate(f"a call of the directory must have at most {MAX_VALUES} slots")
    parameter_types: tuple[str, ...] = ("u64",) * arguments
    result_types: tuple[str, ...] = ("u64",) * results
    match = _TEXT.fullmatch(text)
    if match is not None and signature_hash(text) == signature:
        parameter_types = tuple(filter(None, match[2].split(",")))
        result_types = tuple(filter(None, (match[3] or match[4] or "").split(",")))
    return Entry(
        name=name,
        vector=vector,
        arguments=arguments,
        results=results,
        flags=CallFlag(flags & 0x1F),
        signature=signature,
        text=text,
        parameter_types=parameter_types,
        result_types=result_types,
    )


def _name(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode(errors="replace")
