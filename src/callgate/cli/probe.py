# SPDX-License-Identifier: MIT
"""`callgate probe`: any vfio-user server's device, as lspci would show it, and by single accesses.

What the server sends is shown with everything unprintable escaped: a terminal obeys control codes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import IntFlag
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.client import Client, Disconnected, RequestError
from callgate.backends.vfio_user.protocol import Command, DeviceFlag, Irq, RegionFlag
from callgate.cli.probe_access import Access, Done, carry_out
from callgate.cli.probe_bench import Measured, Place, bench
from callgate.cli.probe_survey import RegionFound, Survey, region_name, survey
from callgate.driver.directory import Directory, GatePlace
from callgate.errors import BackendError
from callgate.gate.abi import CallFlag, Feature, Instruction, Transport
from callgate.pci import config as space
from callgate.pci.capability import MSI, MSIX, PCI_EXPRESS, POWER_MANAGEMENT, VENDOR_SPECIFIC
from callgate.pci.ids import names
from callgate.pci.lspci import block
from callgate.pci.names import capability_name

WIDTH = 130
"""Columns of the tables where there is no terminal to ask."""
_COMMAND = (
    "I/O", "Mem", "BusMaster", "SpecCycle", "MemWINV", "VGASnoop", "ParErr", "Stepping", "SERR",
    "FastB2B", "DisINTx",
)  # fmt: skip
_STATUS = {
    4: "Cap", 5: "66MHz", 7: "FastB2B", 8: "ParErr", 11: ">TAbort", 12: "<TAbort", 13: "<MAbort",
    14: ">SERR", 15: "<PERR", 3: "INTx",
}  # fmt: skip
"""Bits as lspci words them (PCI Local Bus 3.0, 6.2.2 and 6.2.3)."""
_IRQ_NAMES = {Irq.INTX: "INTx", Irq.MSI: "MSI", Irq.MSIX: "MSI-X", Irq.ERR: "ERR", Irq.REQ: "REQ"}
_IO_FD_TYPES = {0: "ioeventfd", 1: "ioregionfd", 2: "shadow ioeventfd"}


def run_probe(
    socket: Path,
    *,
    accesses: Sequence[Access],
    benchmark: bool,
    count: int,
    place: Place | None,
    lspci: bool,
    as_json: bool,
) -> None:
    """Carry out what was asked for, or else show the device. Raises BackendError."""
    result: dict[str, Any] = {}
    with _one_sentence(socket), Client(socket) as client:
        for access in accesses:
            for piece in range(access.count):
                done = carry_out(client, access, piece)
                if as_json:
                    result.setdefault("accesses", []).append(_access_json(done))
                else:
                    print(done)
        if benchmark:
            rows = list(bench(client, count, place))
            result["bench"] = [asdict(row) for row in rows]
            if not as_json:
                _show_bench(rows)
        if not accesses and not benchmark:
            found = survey(client)
            result = _json(found)
            if lspci:
                sys.stdout.write(_dump(found))
            elif not as_json:
                _show(socket, found)
    if as_json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")


@contextmanager
def _one_sentence(socket: Path) -> Iterator[None]:
    """What a server can do wrong, for somebody who reads one line."""
    try:
        yield
    except RequestError as error:
        raise BackendError(f"{socket}: {error}") from error
    except TimeoutError as error:
        # Servers take one client at a time, and let the next one connect and wait.
        hint = "; it may have another client" if Command.VERSION.name in str(error) else ""
        raise BackendError(f"{socket}: {error}{hint}") from error
    except Disconnected as error:
        raise BackendError(f"{socket}: {printable(str(error))}") from error


def printable(text: str) -> str:
    """The text without what a terminal would obey."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


# --- lspci ----------------------------------------------------------------------------------------


def _dump(found: Survey) -> str:
    if not found.config:
        raise BackendError("The device must have a configuration space to be dumped")
    length = len(found.config) // 16 * 16
    return block("00:00.0 vfio-user", found.config[:length])


# --- for people -----------------------------------------------------------------------------------


def _show(socket: Path, found: Survey) -> None:
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH

    def say(line: str) -> None:
        console.print(printable(line), soft_wrap=True)

    for line in _lspci_lines(found):
        say(line)
    console.print()
    regions = _table("Regions", "", "name", "size", "access", "can be mapped", "I/O files")
    for region in found.regions:
        if region.size or region.refused:
            regions.add_row(*map(printable, _region_cells(region)))
    console.print(regions)
    console.print()
    irqs = _table("Interrupts", "", "name", "count", "flags")
    for irq in found.irqs:
        if irq.count or irq.refused:
            name = _IRQ_NAMES.get(Irq(irq.index), "") if irq.index < p.IRQS else ""
            words = irq.refused or _flags(p.IrqInfo, irq.flags)
            irqs.add_row(str(irq.index), name, str(irq.count), printable(words))
    console.print(irqs)
    console.print()
    say(f"Protocol: vfio-user {found.version[0]}.{found.version[1]} at {socket}, device flags "
        f"{_flags(DeviceFlag, found.flags)}")  # fmt: skip
    for name, value in found.protocol.items():
        say(f"    {name}: {json.dumps(value)}")
    if found.gate is not None:
        console.print()
        for line in _gate_lines(found.gate, found.directory):
            say(line)
        if found.directory is not None:
            console.print(_calls(found.directory))
    if found.remarks:
        console.print()
        for remark in found.remarks:
            say(f"Remark: {remark}")


def _lspci_lines(found: Survey) -> Iterator[str]:
    if not found.config:
        yield "No configuration space"
        return
    word = found.word
    id, kind = (word(0, 2), word(2, 2)), word(space.REVISION + 1, 3)
    known = names(id, kind)
    vendor, device, cls = known.vendor or "vendor", known.device or "device", known.kind or "class"
    yield (
        f"{cls} [{kind:06x}]: {vendor} {device} [{id[0]:04x}:{id[1]:04x}] "
        f"(rev {word(space.REVISION, 1):02x})"
    )
    if word(space.SUBSYSTEM, 4):
        yield f"    Subsystem: {word(space.SUBSYSTEM, 2):04x}:{word(space.SUBSYSTEM + 2, 2):04x}"
    command, status = word(space.COMMAND, 2), word(space.STATUS, 2)
    yield "    Command: " + " ".join(
        f"{name}{_sign(command, bit)}" for bit, name in enumerate(_COMMAND)
    )
    yield "    Status: " + " ".join(f"{name}{_sign(status, bit)}" for bit, name in _STATUS.items())
    pin = word(space.INTERRUPT_PIN, 1)
    if pin:
        letter = "ABCD"[pin - 1] if pin <= 4 else f"{pin} (must be 1 to 4)"
        yield f"    Interrupt: pin {letter} routed to line {word(space.INTERRUPT_LINE, 1)}"
    for bar in found.bars:
        place = f"at {bar.address:#x}" if bar.address else "unassigned"
        what = (
            "I/O ports"
            if bar.kind == "io"
            else f"Memory, {bar.width}-bit" + (", prefetchable" if bar.prefetchable else "")
        )
        yield f"    BAR {bar.index}: {what} [size={size_text(bar.size)}] {place}"
    for cap, at in found.capabilities():
        yield f"    Capabilities: [{at:02x}] {_capability(found, cap, at)}"
    for cap, version, at in found.extended():
        yield f"    Capabilities: [{at:03x} v{version}] {capability_name(cap, extended=True)}"


def _capability(found: Survey, id: int, at: int) -> str:
    """A capability with the fields that one looks for first."""
    word, name = found.word, capability_name(id)
    if id == MSIX:
        control, table, pending = word(at + 2, 2), word(at + 4, 4), word(at + 8, 4)
        return (
            f"MSI-X: Enable{_sign(control, 15)} Count={(control & 0x7FF) + 1} "
            f"Masked{_sign(control, 14)}, table BAR {table & 7} + {table & ~7:#x}, "
            f"pending bits BAR {pending & 7} + {pending & ~7:#x}"
        )
    if id == MSI:
        control = word(at + 2, 2)
        return (
            f"MSI: Enable{_sign(control, 0)} Count={1 << (control >> 4 & 7)}"
            f"/{1 << (control >> 1 & 7)} Maskable{_sign(control, 8)} 64bit{_sign(control, 7)}"
        )
    if id == POWER_MANAGEMENT:
        return f"{name}: version {word(at + 2, 2) & 7}, D{word(at + 4, 2) & 3}"
    if id == PCI_EXPRESS:
        flags = word(at + 2, 2)
        return f"{name}: version {flags & 0xF}, device type {flags >> 4 & 0xF}"
    if id == VENDOR_SPECIFIC:
        gate = ", a callgate" if word(at + 4, 4) == int.from_bytes(b"CGAT", "little") else ""
        return f"{name}: {word(at + 2, 1)} bytes{gate}"
    return name


def _region_cells(region: RegionFound) -> tuple[str, ...]:
    name = region_name(region.index)
    if region.refused:
        return str(region.index), name, "", region.refused, "", ""
    areas = ", ".join(
        f"{offset:#x}..{offset + size - 1:#x}" if size else f"{offset:#x}, empty"
        for offset, size in region.areas
    )
    if areas and not region.shared:
        areas += " (no file)"
    if region.io_fds is None:
        files = "refused"
    else:
        files = ", ".join(
            f"{_IO_FD_TYPES.get(one.type, f'type {one.type}')} at {one.offset:#x}"
            + (f" of {one.size} bytes" if one.size else "")
            for one in region.io_fds
        )
    access = ("r" if region.flags & RegionFlag.READ else "") + (
        "w" if region.flags & RegionFlag.WRITE else ""
    )
    return str(region.index), name, f"{region.size:#x}", access, areas, files


def _gate_lines(place: GatePlace, directory: Directory | None) -> Iterator[str]:
    offered = _flags(Transport, place.transports & ~Transport.HYPERCALL)
    if place.transports & Transport.HYPERCALL:
        offered += f" hypercall ({Instruction(place.instruction).name.lower()})"
    yield f"Gate: BAR {place.bar} + {place.offset:#x}, {size_text(place.length)}, doorbell at " + (
        f"{place.doorbell:#x}; transports: {offered.strip()}"
    )
    if directory is not None:
        first, count, size = directory.frames
        yield (
            f"    device {directory.name!r}, ABI {directory.uuid} version {directory.version}, "
            f"generation {directory.generation}, features {_flags(Feature, directory.features)}"
        )
        yield f"    {count} frames of {size} bytes at {first:#x}"


def _calls(directory: Directory) -> Table:
    table = _table("Calls", "vector", "signature", "hash", "flags")
    for entry in directory.entries.values():
        table.add_row(
            f"{entry.vector:#010x}" if entry.vector else "not bound",
            printable(entry.text or entry.name),
            f"{entry.signature:016x}",
            _flags(CallFlag, entry.flags),
        )
    return table


def _show_bench(rows: Iterable[Measured]) -> None:
    table = _table("", "what", "where", "median us", "p99 us", "samples")
    for row in rows:
        median, p99 = f"{row.median * 1e6:.2f}", f"{row.p99 * 1e6:.2f}"
        table.add_row(row.what, row.where, median, p99, str(row.samples))
    console = Console(markup=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _sign(word: int, bit: int) -> str:
    return "+" if word >> bit & 1 else "-"


def _flags(kind: type[IntFlag], value: int) -> str:
    """The names of the bits that are set, and the number of those that have none."""
    words = [bit.name.lower() for bit in kind if value & bit and bit.name]
    unknown = value & ~sum(kind)
    return " ".join([*words, *([f"{unknown:#x}"] if unknown else [])]) or "none"


def size_text(size: int) -> str:
    """As lspci says it: 256, 4K, 16M."""
    for unit in ("", "K", "M", "G", "T"):
        if size < 1024 or size % 1024:
            return f"{size}{unit}"
        size //= 1024
    return f"{size}P"


# --- for programs ---------------------------------------------------------------------------------


def _access_json(done: Done) -> dict[str, Any]:
    return {
        "access": done.kind,
        "region": region_name(done.region),
        "offset": done.offset,
        "size": len(done.data),
        "value": int.from_bytes(done.data, "little"),
    }


def _json(found: Survey) -> dict[str, Any]:
    word = found.word
    return {
        "version": list(found.version),
        "protocol": found.protocol,
        "flags": int(found.flags),
        "device": {
            "vendor": word(0, 2),
            "device": word(2, 2),
            "class": word(space.REVISION + 1, 3),
            "revision": word(space.REVISION, 1),
            "subsystem": [word(space.SUBSYSTEM, 2), word(space.SUBSYSTEM + 2, 2)],
            "command": word(space.COMMAND, 2),
            "status": word(space.STATUS, 2),
            "pin": word(space.INTERRUPT_PIN, 1),
            "bars": [asdict(bar) for bar in found.bars],
            "capabilities": [
                {"id": id, "offset": at, "name": capability_name(id)}
                for id, at in found.capabilities()
            ],
            "extended": [
                {
                    "id": id,
                    "offset": at,
                    "version": version,
                    "name": capability_name(id, extended=True),
                }
                for id, version, at in found.extended()
            ],
            "config": found.config.hex(),
        },
        "regions": [
            {**asdict(region), "name": region_name(region.index), "flags": int(region.flags)}
            for region in found.regions
        ],
        "interrupts": [
            {
                "index": irq.index,
                "count": irq.count,
                "flags": int(irq.flags),
                "refused": irq.refused,
            }
            for irq in found.irqs
        ],
        "gate": _gate_json(found.gate, found.directory),
        "remarks": found.remarks,
    }


def _gate_json(place: GatePlace | None, directory: Directory | None) -> dict[str, Any] | None:
    if place is None:
        return None
    result = {**asdict(place), "directory": None}
    if directory is not None:
        result["directory"] = {
            **asdict(directory),
            "uuid": str(directory.uuid),
            "entries": [asdict(entry) for entry in directory.entries.values()],
        }
    return result
