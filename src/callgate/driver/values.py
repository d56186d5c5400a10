# SPDX-License-Identifier: MIT
"""Python's values in a call's slots and payload, and back (docs/abi.md, 4.2 and 5.2)."""

from __future__ import annotations

import operator
from collections.abc import Callable
from itertools import count
from typing import Any

from callgate import errors
from callgate.driver.directory import Entry
from callgate.errors import CallError, DeviceError
from callgate.gate.abi import PAYLOAD_ALIGN, Status

MAX_U64 = (1 << 64) - 1
_MIN = -1 << 63
BUFFERS = ("in", "out", "inout")
_PLAIN = {"u64", "u32", "u16", "u8"}
_LOW = 0xFFFF_FFFF
_ERRORS: dict[int, type[CallError]] = {
    kind.status: kind
    for kind in (
        errors.NoSuchVector,
        errors.Revoked,
        errors.BadCount,
        errors.BadValue,
        errors.BadBuffer,
        errors.BadFrame,
        errors.Denied,
        errors.Busy,
        errors.DeviceFault,
        errors.TimedOut,
    )
}


def is_plain(entry: Entry) -> bool:
    """Whether its values are what its slots hold, one result at most."""
    types = _PLAIN.issuperset(entry.parameter_types) and _PLAIN.issuperset(entry.result_types)
    return types and len(entry.result_types) <= 1


def marshal(
    entry: Entry, arguments: tuple[Any, ...], place: Callable[[str, int, Any], tuple[int, int]]
) -> tuple[tuple[int, ...], bytes]:
    """Argument slots and payload. `place` puts a buffer, given its direction, the number of its
    first slot and what the caller gave, where the device reaches it: (address, length).

    Raises TypeError for another number of arguments than the call has and for one that is of
    another kind, ValueError for a number that does not fit 64 bits, with a sign or without.
    """
    if len(arguments) != len(entry.parameter_types):
        raise TypeError(
            f"{entry.text} takes {len(entry.parameter_types)} arguments, not {len(arguments)}"
        )
    slots: list[int] = []
    payload = bytearray()
    numbered = zip(count(1), entry.parameter_types, arguments, strict=False)
    for number, kind, argument in numbered:
        if kind == "bytes":
            data = _bytes(entry, number, argument)
            payload += bytes(-len(payload) % PAYLOAD_ALIGN)
            slots.append(len(data) << 32 | len(payload))
            payload += data
        elif kind in BUFFERS:
            slots += place(kind, len(slots), argument)
        else:
            slots.append(_slot(entry, number, kind, argument))
    return tuple(slots), bytes(payload)


def _slot(entry: Entry, number: int, kind: str, argument: Any) -> int:
    try:
        value = operator.index(argument)
    except TypeError:
        raise TypeError(
            f"{entry.text}: argument {number}, {kind}, must be a number, not {argument!r}"
        ) from None
    if not _MIN <= value <= MAX_U64:
        raise ValueError(
            f"{entry.text}: argument {number}, {kind}, must be -2**63 to 2**64 - 1, not {value:#x}"
        )
    return value & MAX_U64


def _bytes(entry: Entry, number: int, argument: Any) -> memoryview:
    try:
        return memoryview(argument).cast("B")
    except TypeError:
        raise TypeError(
            f"{entry.text}: argument {number} must be bytes, not {argument!r}"
        ) from None


def unmarshal(entry: Entry, results: tuple[int, ...], payload: Callable[[int, int], bytes]) -> Any:
    """What the call returns: None, a value, or a tuple; `payload` reads it, at (offset, length).

    Raises CallgateError for too few slots, and what `payload` raises.
    """
    if len(results) < len(entry.result_types):
        raise errors.CallgateError(
            f"{entry.text} must answer {len(entry.result_types)} result slots, not {len(results)}"
        )
    values = tuple(
        _value(kind, slot, payload) for kind, slot in zip(entry.result_types, results, strict=False)
    )
    if len(values) == 1:
        return values[0]
    return values or None


def _value(kind: str, slot: int, payload: Callable[[int, int], bytes]) -> int | bool | bytes:
    if kind == "bytes":
        return payload(slot & _LOW, slot >> 32)
    if kind == "bool":
        return slot == 1
    return slot - (1 << 64) if kind.startswith("i") and slot >> 63 else slot


def error_of(entry: Entry, status: int, code: int) -> errors.CallgateError:
    """The error that says `status`, which is not OK."""
    if status == Status.DEVICE_ERROR:
        return DeviceError(code)
    kind = _ERRORS.get(status)
    if kind is None:
        return errors.CallgateError(f"{entry.text} answered the unknown status {status}")
    return kind(f"{entry.text}: {Status(status).text}")
