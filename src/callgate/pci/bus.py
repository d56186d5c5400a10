# SPDX-License-Identifier: MIT
"""Bus: PCI bus 0 with its host bridge; routes every access that is not the guest's own RAM.

    memory   RAM and ROM  >  ECAM           >  BARs of the lower function, the lower BAR first
    I/O      ports CF8 to CFF               >  the same

What stands further left wins where ranges overlap; the loser keeps the rest of its range. Where
nothing answers, reads give all ones and writes are dropped (PCI Local Bus 3.0, 3.2.2.3.4: what a
host bridge makes of a master abort).

    CF8 (32 bits)   | 31 enable | 23:16 bus | 15:11 device | 10:8 function | 7:2 dword | 00 |
    CFC ... CFF     the bytes of that dword
    ECAM            | 27:20 bus | 19:15 device | 14:12 function | 11:0 byte |
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Mapping as ReadOnly
from dataclasses import dataclass
from threading import RLock
from typing import NamedTuple, Protocol

from callgate.errors import BackendError, DmaError
from callgate.faults import Faults
from callgate.gate.abi import PAGE
from callgate.memory import GuestMemory
from callgate.pci import config as space
from callgate.pci.bar import SIZES, BarState, Kind, Window, ones
from callgate.pci.config import ConfigSpace, define_header

CONFIG_PORTS = 0xCF8
_CONFIG_ENABLE = 1 << 31
_CONFIG_BITS = 0x80FF_FFFC
_SLOTS = 32
_NUMBERS = 8


class Place(NamedTuple):
    """Where a function is on bus 0; shown as people write it."""

    slot: int
    """Device number, 0 to 31."""
    number: int
    """Function number, 0 to 7."""

    def __str__(self) -> str:
        return f"00:{self.slot:02x}.{self.number}"


class BusFunction(Protocol):
    """What the bus needs of a function."""

    name: str
    config: ConfigSpace
    on_mapping: Callable[[], None] | None

    @property
    def bars(self) -> tuple[BarState, ...]:
        """Its BARs."""

    def config_read(self, offset: int, size: int) -> int:
        """A guest's read of configuration space."""

    def config_write(self, offset: int, size: int, value: int) -> None:
        """A guest's write to configuration space."""


class HostBridge:
    """The function 00:00.0, by which software knows that this is a PCI bus."""

    bars: tuple[BarState, ...] = ()

    def __init__(self, faults: Faults) -> None:
        self.name = "host bridge"
        self.on_mapping: Callable[[], None] | None = None
        self.config = ConfigSpace(faults)
        define_header(self.config, id=(0x1AF4, 0x10FF), class_code=0x060000)
        self.config_read = self.config.read
        self.config_write = self.config.write


@dataclass(frozen=True, slots=True)
class Mapping:
    """`length` bytes of a window, from its `offset` on, answer at `address` (a GPA or a port)."""

    kind: Kind
    address: int
    length: int
    window: Window
    offset: int

    @property
    def end(self) -> int:
        """First address behind it."""
        return self.address + self.length

    @property
    def base(self) -> int:
        """Where the window's first byte is, or would be."""
        return self.address - self.offset


class Bus:
    """Bus 0: devices in slots 1 to 31, up to 8 functions each; the host bridge is in slot 0.

    `memory` is the guest's RAM and ROM, which `mem_read` and `mem_write` reach too. `ecam` is where
    configuration space is in memory, 1 MiB for each bus from 0 on; `config_ports` says whether CF8
    to CFF exist. Accesses never raise for what a guest does, and may come from any thread.
    """

    def __init__(
        self, memory: GuestMemory, *, ecam: range | None = None, config_ports: bool = True
    ) -> None:
        self.faults = Faults("pci bus")
        self.on_change: list[Callable[[], None]] = []
        """Called after `mappings` changed."""
        self._memory = memory
        self._functions: dict[tuple[int, int], BusFunction] = {}
        self._config_address = 0
        self._fixed: list[Mapping] = []
        if ecam is not None:
            window = Window("ecam", 0, len(ecam), read=self._ecam_read, write=self._ecam_write)
            self._fixed.append(Mapping("memory", ecam.start, len(ecam), window, 0))
        if config_ports:
            window = Window("config ports", 0, 8, read=self._port_read, write=self._port_write)
            self._fixed.append(Mapping("io", CONFIG_PORTS, 8, window, 0))
        self._conflicts: set[tuple[Place, int]] = set()
        self._changing = RLock()
        self._ram_decode = _Decode(())
        self._port_decode = _Decode(())
        self.plug(HostBridge(self.faults), slot=0)
        memory.on_change.append(self.refresh)

    # --- who is where ----------------------------------------------------------------------------

    @property
    def functions(self) -> ReadOnly[Place, BusFunction]:
        """The functions by place, ascending."""
        return {Place(*place): each for place, each in sorted(self._functions.items())}

    def plug(self, function: BusFunction, slot: int | None = None, number: int = 0) -> Place:
        """Put a function into a slot: the first free one if none is named. Returns its place.

        Raises BackendError if the place is taken or does not exist, or if function 0 of the slot
        is to come later: without it, software does not look for the others.
        """
        with self._changing:
            if slot is None:
                used = {slot for slot, _ in self._functions}
                slot = next((each for each in range(1, _SLOTS) if each not in used), _SLOTS)
            place = Place(slot, number)
            if not (0 <= slot < _SLOTS and 0 <= number < _NUMBERS):
                raise BackendError(
                    f"{function.name} must be plugged into slot 1 to 31 as function 0 to 7, "
                    f"and {place} does not exist or all slots are taken"
                )
            if place in self._functions:
                raise BackendError(
                    f"{function.name} must have a place of its own: "
                    f"{self._functions[place].name} is at {place}"
                )
            if number and Place(slot, 0) not in self._functions:
                raise BackendError(
                    f"{function.name} must be plugged in after function 0 of its slot: "
                    f"there is none at {Place(slot, 0)}"
                )
            self._functions = {**self._functions, place: function}
            function.on_mapping = self.refresh
            self._mark_multifunction(slot)
        self.refresh()
        return place

    def unplug(self, place: Place) -> None:
        """Take a function away; its addresses stop answering. Raises BackendError."""
        with self._changing:
            others = [each for each in self._functions if each[0] == place[0] and each != place]
            if place not in self._functions or (not place[1] and others):
                raise BackendError(
                    f"A function must be plugged in, and function 0 the last of its slot, to be "
                    f"unplugged: {Place(*place)} is not"
                )
            functions = dict(self._functions)
            functions.pop(Place(*place)).on_mapping = None
            self._functions = functions
            self._mark_multifunction(place[0])
        self.refresh()

    def _mark_multifunction(self, slot: int) -> None:
        first = self._functions.get(Place(slot, 0))
        if first is not None:
            several = sum(other == slot for other, _ in self._functions) > 1
            first.config.preset(space.HEADER_TYPE, 1, space.MULTIFUNCTION if several else 0)

    # --- what firmware does ----------------------------------------------------------------------

    def assign(
        self,
        *,
        memory: range,
        ports: range,
        memory64: range | None = None,
        lines: Sequence[int] = (),
    ) -> None:
        """Give every BAR an address, largest first, and every function with a pin its line.

        BARs are naturally aligned, in memory to 4096 bytes at least, so that no two share a page.
        64-bit BARs go to `memory64` if there is one, else to `memory`. Decoding is on afterwards,
        bus mastering stays as it was. INTA of slot n gets `lines[n % len(lines)]`. Raises
        BackendError when a range is full.
        """
        todo = [
            (bar, place, function)
            for place, function in self.functions.items()
            for bar in function.bars
        ]
        decoding = space.COMMAND_IO | space.COMMAND_MEMORY
        for function in self._functions.values():
            command = function.config.get(space.COMMAND, 2)
            function.config_write(space.COMMAND, 2, command & ~decoding)
        free = {id(each): each.start for each in (memory, ports, memory64) if each is not None}
        for bar, place, function in sorted(todo, key=lambda each: (-each[0].size, each[1])):
            area = ports if bar.kind == "io" else memory
            if bar.width == 64 and memory64 is not None:
                area = memory64
            step = bar.size if bar.kind == "io" else max(bar.size, PAGE)
            address = -(-free[id(area)] // step) * step
            if address + step > area.stop:
                raise BackendError(
                    f"BAR {bar.index} of {function.name} ({place}) needs {step:#x} bytes of "
                    f"{bar.kind} space, and {area.start:#x} to {area.stop:#x} has too few left: "
                    "plug in less, or make the BAR smaller"
                )
            free[id(area)] = address + step
            bar.place(address)
        for place, function in self.functions.items():
            pin = function.config.get(space.INTERRUPT_PIN, 1)
            if pin and lines:
                line = lines[(place.slot + pin - 1) % len(lines)]
                function.config_write(space.INTERRUPT_LINE, 1, line)
            kinds = {bar.kind for bar in function.bars}
            bits = space.COMMAND_IO * ("io" in kinds) | space.COMMAND_MEMORY * ("memory" in kinds)
            command = function.config.get(space.COMMAND, 2)
            function.config_write(space.COMMAND, 2, command | bits)

    # --- decode ----------------------------------------------------------------------------------

    def mappings(self) -> list[Mapping]:
        """What answers where at this moment: memory ascending, then I/O. RAM is not among it."""
        return [*self._ram_decode.mappings, *self._port_decode.mappings]

    def refresh(self) -> None:
        """Work out `mappings` anew; a BAR that moved and RAM that came or went do this."""
        with self._changing:
            conflicts: set[tuple[Place, int]] = set()
            ram = _Decode(self._claims("memory", conflicts))
            ports = _Decode(self._claims("io", conflicts))
            for place, index in sorted(conflicts - self._conflicts):
                function = self._functions[place]
                bar = next(bar for bar in function.bars if bar.index == index)
                self.faults.note(
                    "BAR conflict",
                    f"{bar!r} of {function.name} ({place}) must not overlap RAM, ECAM or a BAR "
                    "that comes first, and is hidden there",
                )
            self._conflicts = conflicts
            changed = (ram.mappings, ports.mappings) != (
                self._ram_decode.mappings,
                self._port_decode.mappings,
            )
            self._ram_decode, self._port_decode = ram, ports
            watchers = tuple(self.on_change) if changed else ()
        for watcher in watchers:
            watcher()

    def _claims(self, kind: Kind, conflicts: set[tuple[Place, int]]) -> Iterator[Mapping]:
        """What each claimant gets, the first in the order of precedence first."""
        taken: list[tuple[int, int]] = []
        if kind == "memory":
            taken = [(slot.gpa, slot.end) for slot in self._memory.slots]
        for fixed in self._fixed:
            if fixed.kind == kind:
                for start, end in _left(fixed.address, fixed.end, taken):
                    yield Mapping(kind, start, end - start, fixed.window, start - fixed.address)
                taken.append((fixed.address, fixed.end))
        for place, function in self.functions.items():
            for bar in function.bars:
                if bar.kind != kind or not bar.enabled:
                    continue
                address = bar.address
                whole = (address, address + bar.size)
                parts = _left(*whole, taken)
                if parts != [whole]:
                    conflicts.add((place, bar.index))
                for window in bar.windows:
                    base = address + window.offset
                    for start, end in parts:
                        low, high = max(start, base), min(end, base + window.size)
                        if low < high:
                            yield Mapping(kind, low, high - low, window, low - base)
                taken.append(whole)

    # --- accesses --------------------------------------------------------------------------------

    def mem_read(self, address: int, size: int) -> int:
        """A guest's read of 1, 2, 4 or 8 bytes at a guest physical address."""
        found = self._ram_decode.find(address, size)
        if found is not None:
            _, base, window = found
            return window.read(address - base, size)
        if size in SIZES:
            try:
                return int.from_bytes(self._memory.read(address, size), "little")
            except DmaError:
                pass
        return self._nothing("memory read", address, size)

    def mem_write(self, address: int, size: int, value: int) -> None:
        """A guest's write of 1, 2, 4 or 8 bytes at a guest physical address."""
        value &= ones(size)
        found = self._ram_decode.find(address, size)
        if found is not None:
            _, base, window = found
            window.write(address - base, size, value)
            return
        if size in SIZES:
            try:
                self._memory.write(address, value.to_bytes(size, "little"))
                return
            except DmaError:
                pass
        self._nothing("memory write", address, size)

    def io_read(self, port: int, size: int) -> int:
        """A guest's read of 1, 2 or 4 bytes at an I/O port."""
        found = self._port_decode.find(port, size)
        if found is not None:
            _, base, window = found
            return window.read(port - base, size)
        return self._nothing("port read", port, size)

    def io_write(self, port: int, size: int, value: int) -> None:
        """A guest's write of 1, 2 or 4 bytes at an I/O port."""
        found = self._port_decode.find(port, size)
        if found is not None:
            _, base, window = found
            window.write(port - base, size, value & ones(size))
            return
        self._nothing("port write", port, size)

    def _nothing(self, access: str, address: int, size: int) -> int:
        self.faults.note(access, f"nothing answers a {access} of {size} bytes at {address:#x}")
        return ones(size)

    # --- configuration ---------------------------------------------------------------------------

    def config_read(self, place: tuple[int, int], offset: int, size: int) -> int:
        """A guest's read of a function's configuration space; all ones where there is no function.

        That is no fault: it is how software finds out who is there.
        """
        function = self._functions.get(place)
        return ones(size) if function is None else function.config_read(offset, size)

    def config_write(self, place: tuple[int, int], offset: int, size: int, value: int) -> None:
        """A guest's write to a function's configuration space."""
        function = self._functions.get(place)
        if function is not None:
            function.config_write(offset, size, value)

    def _ecam_read(self, offset: int, size: int) -> int:
        if offset >> 20:  # another bus
            return ones(size)
        return self.config_read((offset >> 15, offset >> 12 & 7), offset & 0xFFF, size)

    def _ecam_write(self, offset: int, size: int, value: int) -> None:
        if not offset >> 20:
            self.config_write((offset >> 15, offset >> 12 & 7), offset & 0xFFF, size, value)

    def _port_read(self, offset: int, size: int) -> int:
        if offset >= 4:
            target = self._target(offset)
            return ones(size) if target is None else self.config_read(*target, size)
        # A byte or word of CF8 is no configuration access; software probes with one (CFB).
        return self._config_address if (offset, size) == (0, 4) else ones(size)

    def _port_write(self, offset: int, size: int, value: int) -> None:
        if offset >= 4:
            target = self._target(offset)
            if target is not None:
                self.config_write(*target, size, value)
        elif (offset, size) == (0, 4):
            self._config_address = value & _CONFIG_BITS

    def _target(self, offset: int) -> tuple[tuple[int, int], int] | None:
        """Who the data port means: (place, byte); None when it is off or means another bus."""
        address = self._config_address
        if not address & _CONFIG_ENABLE or address >> 16 & 0xFF:
            return None
        return (address >> 11 & 31, address >> 8 & 7), address & 0xFC | offset & 3


class _Decode:
    """Mappings, to be found by address. Never changed: a bus replaces it as a whole."""

    __slots__ = ("_found", "_starts", "mappings")

    def __init__(self, mappings: Iterable[Mapping]) -> None:
        self.mappings = tuple(sorted(mappings, key=lambda mapping: mapping.address))
        self._starts = [mapping.address for mapping in self.mappings]
        self._found = [(mapping.end, mapping.base, mapping.window) for mapping in self.mappings]

    def find(self, address: int, size: int) -> tuple[int, int, Window] | None:
        """Who answers the whole access, if its size is one that exists: (end, base, window)."""
        index = bisect_right(self._starts, address) - 1
        if index >= 0 and size in SIZES:
            found = self._found[index]
            if address + size <= found[0]:
                return found
        return None


def _left(start: int, end: int, taken: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """What of [start, end) none of `taken` holds, ascending."""
    parts = []
    for low, high in sorted(taken):
        if low >= end:
            break
        if low > start:
            parts.append((start, low))
        start = max(start, high)
    if start < end:
        parts.append((start, end))
    return parts
