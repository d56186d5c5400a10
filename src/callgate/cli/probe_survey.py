# SPDX-License-Identifier: MIT
"""What a vfio-user server says of its device, collected for `callgate probe`.

The server may be anybody's, and may lie: what it refuses is noted and left out, what contradicts
itself becomes a remark, and nothing that it counts decides how long we ask.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NoReturn

from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.client import Client, RegionInfo, RequestError
from callgate.backends.vfio_user.protocol import Region, RegionFlag
from callgate.driver.directory import Directory, GatePlace, find_gate, read_directory
from callgate.driver.door import DmaMemory
from callgate.driver.pci import BarPlace, PciFunction
from callgate.errors import BackendError, NotAGate
from callgate.gate.abi import PAGE, Instruction, Transport
from callgate.pci import config as space

MOST_REGIONS = 100
MOST_IRQS = 50
"""What QEMU takes of a server."""
_MOST_BYTES = 1 << 24
"""Of a gate's directory."""
PATIENCE = 30.0
"""Seconds for everything: a server may answer each question just in time."""
_MOST_PORTS = 256
_BAR_STEP = 1 << 64
"""BARs have no addresses before a VMM assigned them; here BAR n is at n times this."""


@dataclass(frozen=True)
class IoFdFound:
    """An entry of a region's IO_FDS, without its file."""

    offset: int
    size: int
    type: int
    flags: int
    datamatch: int


@dataclass(frozen=True)
class RegionFound:
    """A region; `refused` says why the server does not describe it, `shared` whether a file came.

    `io_fds` is None where the server refused to list them.
    """

    index: int
    size: int = 0
    flags: RegionFlag | int = 0
    offset: int = 0
    areas: tuple[tuple[int, int], ...] = ()
    shared: bool = False
    io_fds: tuple[IoFdFound, ...] | None = ()
    refused: str = ""


@dataclass(frozen=True)
class IrqFound:
    """An interrupt type; `refused` says why the server does not describe it."""

    index: int
    count: int = 0
    flags: p.IrqInfo | int = 0
    refused: str = ""


@dataclass(frozen=True)
class Bar:
    """A base address register, as its region and its bits in configuration space say."""

    index: int
    kind: str
    size: int
    width: int
    prefetchable: bool
    address: int


@dataclass
class Survey:
    """All that was found."""

    version: tuple[int, int]
    protocol: dict[str, Any]
    flags: p.DeviceFlag
    regions: list[RegionFound] = field(default_factory=list)
    irqs: list[IrqFound] = field(default_factory=list)
    config: bytes = b""
    gate: GatePlace | None = None
    directory: Directory | None = None
    remarks: list[str] = field(default_factory=list)

    def word(self, offset: int, size: int) -> int:
        """A field of configuration space; what was not read is 0."""
        return int.from_bytes(self.config[offset : offset + size], "little")

    @property
    def bars(self) -> list[Bar]:
        """The BARs that there are: those whose region has bytes."""
        found = []
        for region in self.regions:
            if region.index < p.BARS and region.size:
                low = self.word(space.BAR0 + 4 * region.index, 4)
                kind = "io" if low & 1 else "memory"
                wide = kind == "memory" and low & 6 == 4 and region.index < p.BARS - 1
                high = self.word(space.BAR0 + 4 * region.index + 4, 4) if wide else 0
                address = high << 32 | low & (~3 if kind == "io" else ~0xF)
                prefetchable = kind == "memory" and bool(low & 8)
                width = 64 if wide else 32
                found.append(Bar(region.index, kind, region.size, width, prefetchable, address))
        return found

    def capabilities(self) -> Iterator[tuple[int, int]]:
        """(id, offset) of each capability in the first 256 bytes."""
        yield from PciFunction(_Door(self.config), 0).capabilities()

    def extended(self) -> Iterator[tuple[int, int, int]]:
        """(id, version, offset) of each extended capability (PCI Express Base 3.0, 7.9.3)."""
        at, seen = space.CAPABILITY_END, set[int]()
        while space.CAPABILITY_END <= at <= len(self.config) - 4 and at not in seen:
            seen.add(at)
            head = self.word(at, 4)
            if head in (0, 0xFFFF_FFFF):
                return
            yield head & 0xFFFF, head >> 16 & 0xF, at
            at = head >> 20 & 0xFFC


def survey(client: Client) -> Survey:
    """Ask for everything. Raises what the client raises when the server is gone or silent."""
    patience = _Patience()
    flags, regions, irqs = client.info()
    found = Survey(client.version, client.capabilities, p.DeviceFlag(flags))
    with ExitStack() as closing:
        opened: dict[int, RegionInfo] = {}
        for index in range(_bounded(found, "regions", regions, MOST_REGIONS)):
            patience.check()
            one = _region(client, index, opened, closing)
            found.regions.append(one)
            found.remarks += _region_remarks(one)
        for index in range(_bounded(found, "interrupt types", irqs, MOST_IRQS)):
            patience.check()
            found.irqs.append(_irq(client, index))
        found.config = _config(client, found, patience)
        found.remarks += _bar_remarks(found)
        _gate(client, found, opened, patience)
    return found


class _Patience:
    """It ends after a while, by BackendError."""

    def __init__(self) -> None:
        self._end = time.monotonic() + PATIENCE

    def check(self) -> None:
        """Raise, if it has ended."""
        if time.monotonic() > self._end:
            raise BackendError(f"The server must tell all within {PATIENCE:g} s, and did not")


def _bounded(found: Survey, what: str, count: int, most: int) -> int:
    if count > most:
        found.remarks.append(f"the server says {count} {what}; QEMU takes {most}, as does this")
    return min(count, most)


def _region(
    client: Client, index: int, opened: dict[int, RegionInfo], closing: ExitStack
) -> RegionFound:
    try:
        told = client.region(index)
    except RequestError as error:
        return RegionFound(index, refused=str(error))
    if told.fd >= 0:
        closing.callback(os.close, told.fd)
    opened[index] = told
    io_fds: tuple[IoFdFound, ...] | None = ()
    if told.size:
        try:
            listed = client.io_fds(index)
        except RequestError:
            io_fds = None
        else:
            for one in listed:
                if one.fd >= 0:
                    os.close(one.fd)
            io_fds = tuple(
                IoFdFound(one.offset, one.size, one.type, one.flags, one.datamatch)
                for one in listed
            )
    return RegionFound(index, told.size, told.flags, told.offset, told.areas, told.fd >= 0, io_fds)


def _region_remarks(region: RegionFound) -> Iterator[str]:
    """What a VMM would stumble over."""
    name, size = region_name(region.index), region.size
    if region.index < p.BARS and size & (size - 1):
        yield f"{name} has {size:#x} bytes, which is no power of two: QEMU aborts on that"
    for offset, length in region.areas:
        if offset % PAGE or length % PAGE or not 0 < length <= size - offset:
            yield (
                f"{name} has an area of {length:#x} bytes at {offset:#x} to be mapped, which are "
                "no whole pages inside it"
            )
    if region.flags & RegionFlag.MMAP and not region.shared:
        yield f"{name} can be mapped, as its flags say, but no file came with the answer"
    for one in region.io_fds or ():
        if one.offset + one.size > size:
            yield f"{name} has an I/O file descriptor at {one.offset:#x}, which is outside of it"


def _bar_remarks(found: Survey) -> Iterator[str]:
    for bar in found.bars:
        if bar.kind == "io" and bar.size > _MOST_PORTS:
            yield (
                f"bar{bar.index} has {bar.size:#x} I/O ports, as its register says; PCI has "
                f"{_MOST_PORTS} at most (3.0, 6.2.5.1)"
            )


def _irq(client: Client, index: int) -> IrqFound:
    try:
        flags, count = client.irq(index)
    except RequestError as error:
        return IrqFound(index, refused=str(error))
    return IrqFound(index, count, flags)


def _config(client: Client, found: Survey, patience: _Patience) -> bytes:
    """Configuration space: at once, or by dwords where the server does not do that."""
    told = next((one for one in found.regions if one.index == Region.CONFIG), None)
    size = min(told.size, space.SIZE) if told is not None else 0
    if not size:
        found.remarks.append("the server describes no configuration space")
        return b""
    try:
        return client.read(Region.CONFIG, 0, size)
    except RequestError:
        pass
    data = b""
    try:
        for at in range(0, min(size, space.CAPABILITY_END) & ~3, 4):
            patience.check()
            data += client.read(Region.CONFIG, at, 4)
    except RequestError as error:
        found.remarks.append(f"configuration space ends at {len(data):#x}: {error}")
    return data


def _gate(
    client: Client, found: Survey, opened: dict[int, RegionInfo], patience: _Patience
) -> None:
    function = _Unplaced(_Door(found.config, client, opened, patience), 0)
    try:
        found.gate = place = find_gate(function)
        if place is not None:
            region = opened.get(place.bar)
            if region is None or place.offset + place.length > region.size:
                raise NotAGate(f"the gate must lie inside its BAR, {place.bar}")
            found.directory = read_directory(function, place)
    except (NotAGate, RequestError) as error:
        found.remarks.append(f"the gate cannot be used: {error}")


class _Unplaced(PciFunction):
    """A function whose BARs have no addresses yet."""

    def __str__(self) -> str:
        return "the device"

    def bar(self, index: int) -> BarPlace:
        """A place that `_Door` takes apart again."""
        return BarPlace(index, "memory", index * _BAR_STEP)


class _Door:
    """Just what `driver.directory` reads by: configuration space that was read before, and BARs."""

    def __init__(
        self,
        config: bytes,
        client: Client | None = None,
        regions: Mapping[int, RegionInfo] = MappingProxyType({}),
        patience: _Patience | None = None,
    ) -> None:
        self._config = config.ljust(space.CAPABILITY_END, b"\0")
        self._client = client
        self._regions = regions
        self._patience = patience or _Patience()

    apart = False
    register_slots = 0
    transports = Transport(0)

    def functions(self) -> Iterator[int]:
        """The one that there is."""
        yield 0

    def config_read(self, function: int, offset: int, size: int) -> int:
        """From the copy."""
        return int.from_bytes(self._config[offset : offset + size], "little")

    def read(self, address: int, size: int) -> int:
        """By message."""
        bar, offset = divmod(address, _BAR_STEP)
        return int.from_bytes(self._ask(bar, offset, size), "little")

    def map(self, address: int, length: int) -> memoryview | None:
        """A copy: of the file behind the BAR, or by messages where the server takes long ones."""
        bar, offset = divmod(address, _BAR_STEP)
        if length > _MOST_BYTES:
            raise NotAGate(f"the gate's directory must have {_MOST_BYTES} bytes at most")
        data = self._regions[bar].load(offset, length)
        if data is None:
            try:
                data = b"".join(
                    self._ask(bar, offset + at, min(PAGE, length - at))
                    for at in range(0, length, PAGE)
                )
            except RequestError:
                return None
        return memoryview(data)

    def _ask(self, bar: int, offset: int, size: int) -> bytes:
        assert self._client is not None
        self._patience.check()
        return self._client.read(bar, offset, size)

    def interrupt(self, function: int, index: int) -> None:
        """None that anybody waits for."""

    def pause(self, seconds: float) -> None:
        """The device goes on by itself."""
        self._patience.check()

    def _never(self, *arguments: object) -> NoReturn:
        raise BackendError("A device must not be changed by being looked at")

    def config_write(self, function: int, offset: int, size: int, value: int) -> None:
        """Not here."""
        self._never()

    def write(self, address: int, size: int, value: int) -> None:
        """Not here."""
        self._never()

    def io_read(self, port: int, size: int) -> int:
        """Not here."""
        self._never()

    def io_write(self, port: int, size: int, value: int) -> None:
        """Not here."""
        self._never()

    def hypercall(
        self, instruction: Instruction, selector: int, vector: int, slots: tuple[int, ...]
    ) -> tuple[int, tuple[int, ...]]:
        """Not here."""
        self._never()

    def allocate(self, length: int) -> DmaMemory:
        """Not here."""
        self._never()

    def load(self, gpa: int, length: int) -> bytes:
        """Not here."""
        self._never()

    def store(self, gpa: int, data: bytes) -> None:
        """Not here."""
        self._never()


_REGION_NAMES = {Region.ROM: "rom", Region.CONFIG: "config", Region.VGA: "vga"}


def region_name(index: int) -> str:
    """`bar0` to `bar5`, `rom`, `config`, `vga`, or a number."""
    if index < p.BARS:
        return f"bar{index}"
    return {int(region): name for region, name in _REGION_NAMES.items()}.get(index, str(index))
