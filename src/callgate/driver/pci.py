# SPDX-License-Identifier: MIT
"""A PCI function from its driver's side: config space, capabilities, BARs, MSI-X."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from callgate.driver.door import DmaMemory, Door

COMMAND = 0x04
STATUS = 0x06
HEADER_TYPE = 0x0E
COMMAND_IO, COMMAND_MEMORY, COMMAND_MASTER, COMMAND_NO_INTX = 1, 2, 4, 0x400
STATUS_INTERRUPT, STATUS_CAPABILITIES = 0x8, 0x10
MULTIFUNCTION = 0x80
CAP_VENDOR, CAP_MSIX = 0x09, 0x11
_WAIT_STEP = 0.001


@dataclass(frozen=True)
class BarPlace:
    """Where a BAR is: its physical address or port, as config space says now."""

    index: int
    kind: str
    address: int


class Interrupt:
    """An MSI-X entry whose message is a word in DMA memory: the driver sees it by looking."""

    def __init__(self, function: PciFunction, index: int) -> None:
        self._door = function.door
        self.index = index
        self._entry, self._word = function.msix_entry(index), function.door.allocate(64)
        door, entry, word = self._door, self._entry, self._word
        self.mask(True)  # An entry must not be changed while it may be sent.
        door.write(entry, 4, word.gpa & 0xFFFFFFFF)
        door.write(entry + 4, 4, word.gpa >> 32)
        door.write(entry + 8, 4, 1)
        self.mask(False)

    def mask(self, masked: bool) -> None:
        """Set or clear the entry's mask bit; masked messages become pending."""
        self._door.write(self._entry + 12, 4, int(masked))

    def take(self) -> bool:
        """Whether a message has arrived since the last time."""
        seen = self._door.load(self._word.gpa, 4) != bytes(4)
        if seen:
            self._door.store(self._word.gpa, bytes(4))
        return seen

    def wait(self, timeout: float) -> bool:
        """Wait for a message for up to `timeout` seconds; False when none came."""
        end = time.monotonic() + timeout
        while not self.take():
            if time.monotonic() >= end:
                return False
            self._door.pause(_WAIT_STEP)
        return True


class PciFunction:
    """One PCI function through a door. `address` is bus << 8 | device << 3 | function."""

    def __init__(self, door: Door, address: int) -> None:
        self.door = door
        self.address = address

    def __str__(self) -> str:
        return f"{self.address >> 8:02x}:{self.address >> 3 & 0x1F:02x}.{self.address & 7}"

    def config(self, offset: int, size: int) -> int:
        """Read config space."""
        return self.door.config_read(self.address, offset, size)

    def set_config(self, offset: int, size: int, value: int) -> None:
        """Write config space."""
        self.door.config_write(self.address, offset, size, value)

    @property
    def id(self) -> tuple[int, int]:
        """Vendor and device id."""
        both = self.config(0, 4)
        return both & 0xFFFF, both >> 16

    def enable(self, *, master: bool = True) -> None:
        """Turn on I/O and memory decoding, and bus mastering unless `master` is false."""
        command = self.config(COMMAND, 2) | COMMAND_IO | COMMAND_MEMORY
        self.set_config(COMMAND, 2, command | COMMAND_MASTER * master)

    def capabilities(self) -> Iterator[tuple[int, int]]:
        """(id, offset) of each capability; stops at a chain that is no chain."""
        if not self.config(STATUS, 2) & STATUS_CAPABILITIES:
            return
        offset = self.config(0x34, 1) & 0xFC
        for _ in range(48):
            if offset < 0x40:
                return
            both = self.config(offset, 2)
            if both == 0xFFFF:
                return
            yield both & 0xFF, offset
            offset = both >> 8 & 0xFC

    def bar(self, index: int) -> BarPlace:
        """Where BAR `index` is. Raises LookupError when it has no address."""
        low = self.config(0x10 + 4 * index, 4)
        if low & 1:
            place = BarPlace(index, "io", low & ~3)
        else:
            address = low & ~0xF
            if low & 6 == 4:
                address |= self.config(0x14 + 4 * index, 4) << 32
            place = BarPlace(index, "memory", address)
        if not place.address:
            raise LookupError(f"BAR {index} of {self} must have an address: nobody assigned one")
        return place

    def read(self, bar: int, offset: int, size: int) -> int:
        """Read 1, 2, 4 or 8 bytes of a BAR (I/O: not 8)."""
        place = self.bar(bar)
        if place.kind == "io":
            return self.door.io_read(place.address + offset, size)
        return self.door.read(place.address + offset, size)

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Write 1, 2, 4 or 8 bytes of a BAR (I/O: not 8)."""
        place = self.bar(bar)
        if place.kind == "io":
            self.door.io_write(place.address + offset, size, value)
        else:
            self.door.write(place.address + offset, size, value)

    def _msix(self) -> int:
        for kind, offset in self.capabilities():
            if kind == CAP_MSIX:
                return offset
        raise LookupError(f"{self} must have an MSI-X capability to have interrupts")

    def msix_entry(self, index: int) -> int:
        """The physical address of an MSI-X table entry."""
        capability = self._msix()
        entries = (self.config(capability + 2, 2) & 0x7FF) + 1
        if not 0 <= index < entries:
            raise LookupError(f"An interrupt of {self} must be below {entries}, not {index}")
        table = self.config(capability + 4, 4)
        return self.bar(table & 7).address + (table & ~7) + index * 16

    def interrupt(self, index: int) -> Interrupt:
        """Enable MSI-X and give entry `index` a message of its own."""
        capability = self._msix()
        interrupt = Interrupt(self, index)
        control = self.config(capability + 2, 2)
        self.set_config(capability + 2, 2, control & ~0x4000 | 0x8000)
        return interrupt

    def allocate(self, length: int) -> DmaMemory:
        """Memory that the device can reach."""
        return self.door.allocate(length)


def answering(config_read: Callable[[int, int, int], int]) -> Iterator[int]:
    """Addresses of the functions of bus 0 that answer; `config_read` is that of a `Door`."""
    for slot in range(32):
        header = config_read(slot << 3, HEADER_TYPE, 1)
        if header == 0xFF:
            continue
        for number in range(8 if header & MULTIFUNCTION else 1):
            function = slot << 3 | number
            if config_read(function, 0, 2) != 0xFFFF:
                yield function
