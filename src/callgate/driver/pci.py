# SPDX-License-Identifier: MIT
"""A PCI function from its driver's side: config space, capabilities, BARs, MSI-X, MSI."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from callgate.driver.door import DmaMemory, Door
from callgate.errors import NotFound

COMMAND = 0x04
STATUS = 0x06
HEADER_TYPE = 0x0E
COMMAND_IO, COMMAND_MEMORY, COMMAND_MASTER, COMMAND_NO_INTX = 1, 2, 4, 0x400
STATUS_INTERRUPT, STATUS_CAPABILITIES = 0x8, 0x10
MULTIFUNCTION = 0x80
CAP_MSI, CAP_VENDOR, CAP_MSIX = 0x05, 0x09, 0x11
MSI_ENABLE, MSI_GRANTED, MSI_WIDE, MSI_MASKING = 0x1, 0x70, 0x80, 0x100
_WAIT_STEP = 0.001


@dataclass(frozen=True)
class BarPlace:
    """Where a BAR is: its physical address or port, as config space says now."""

    index: int
    kind: str
    address: int


class Interrupt(ABC):
    """Interrupt `index` of a function, as its driver has it."""

    index: int

    @abstractmethod
    def mask(self, masked: bool) -> None:
        """Set or clear its mask bit; what comes while it is masked becomes pending."""

    @abstractmethod
    def take(self) -> bool:
        """Whether it has come since the last time."""

    @abstractmethod
    def wait(self, timeout: float) -> bool:
        """Wait for it for up to `timeout` seconds; False when it did not come."""


class MessageInterrupt(Interrupt):
    """One whose message is a word in DMA memory: the driver sees it by looking."""

    def __init__(self, function: PciFunction, index: int) -> None:
        self._door = function.door
        self.index = index
        self._word = function.door.allocate(64)

    def take(self) -> bool:
        """See `Interrupt`."""
        seen = self._door.load(self._word.gpa, 4) != bytes(4)
        if seen:
            self._door.store(self._word.gpa, bytes(4))
        return seen

    def wait(self, timeout: float) -> bool:
        """See `Interrupt`."""
        end = time.monotonic() + timeout
        while not self.take():
            if time.monotonic() >= end:
                return False
            self._door.pause(_WAIT_STEP)
        return True


class MsixInterrupt(MessageInterrupt):
    """An entry of the MSI-X table."""

    def __init__(self, function: PciFunction, index: int) -> None:
        super().__init__(function, index)
        self._entry = function.msix_entry(index)
        door, entry, word = self._door, self._entry, self._word
        self.mask(True)  # An entry must not be changed while it may be sent.
        door.write(entry, 4, word.gpa & 0xFFFFFFFF)
        door.write(entry + 4, 4, word.gpa >> 32)
        door.write(entry + 8, 4, 1)
        self.mask(False)
        control = function.msix + 2
        function.set_config(control, 2, function.config(control, 2) & ~0x4000 | 0x8000)

    def mask(self, masked: bool) -> None:
        """See `Interrupt`."""
        self._door.write(self._entry + 12, 4, int(masked))


class MsiInterrupt(MessageInterrupt):
    """The message of MSI, granted one vector, since a word in memory cannot tell several apart: all
    interrupts of the function are this one.

    Raises NotFound when there is one already, or when its address has too few bits.
    """

    def __init__(self, function: PciFunction, index: int, capability: int) -> None:
        control = function.config(capability + 2, 2)
        if control & MSI_ENABLE:
            raise NotFound(
                f"{function} must have MSI-X for a second interrupt: all share one message of MSI"
            )
        super().__init__(function, index)
        self._function = function
        wide = bool(control & MSI_WIDE)
        if self._word.gpa >> 32 and not wide:
            raise NotFound(f"{function} must have 64-bit MSI to reach {self._word.gpa:#x}")
        self._mask_at = capability + (0x10 if wide else 0x0C) if control & MSI_MASKING else None
        function.set_config(capability + 4, 4, self._word.gpa & 0xFFFFFFFF)
        if wide:
            function.set_config(capability + 8, 4, self._word.gpa >> 32)
        function.set_config(capability + (0x0C if wide else 0x08), 2, 1)
        if self._mask_at is not None:
            self.mask(False)
        function.set_config(capability + 2, 2, control & ~MSI_GRANTED | MSI_ENABLE)

    def mask(self, masked: bool) -> None:
        """See `Interrupt`. Raises NotFound where MSI has no masks."""
        if self._mask_at is None:
            raise NotFound(f"{self._function} must have per-vector masking to mask a message")
        self._function.set_config(self._mask_at, 4, int(masked))


class PciFunction:
    """One PCI function through a door. `address` is domain << 16 | bus << 8 | device << 3 |
    function."""

    def __init__(self, door: Door, address: int) -> None:
        self.door = door
        self.address = address

    def __str__(self) -> str:
        domain, bus = self.address >> 16, self.address >> 8 & 0xFF
        place = f"{bus:02x}:{self.address >> 3 & 0x1F:02x}.{self.address & 7}"
        return f"{domain:04x}:{place}" if domain else place

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
        """Where BAR `index` is. Raises NotFound when it has no address."""
        low = self.config(0x10 + 4 * index, 4)
        if low & 1:
            place = BarPlace(index, "io", low & ~3)
        else:
            address = low & ~0xF
            if low & 6 == 4:
                address |= self.config(0x14 + 4 * index, 4) << 32
            place = BarPlace(index, "memory", address)
        if not place.address:
            raise NotFound(f"BAR {index} of {self} must have an address: nobody assigned one")
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

    def capability(self, id: int) -> int | None:
        """Where the first capability with this id is."""
        return next((offset for kind, offset in self.capabilities() if kind == id), None)

    @property
    def msix(self) -> int:
        """Where the MSI-X capability is. Raises NotFound when there is none."""
        capability = self.capability(CAP_MSIX)
        if capability is None:
            raise NotFound(f"{self} must have an MSI-X or MSI capability to have interrupts")
        return capability

    def msix_entry(self, index: int) -> int:
        """The physical address of an MSI-X table entry."""
        capability = self.msix
        entries = (self.config(capability + 2, 2) & 0x7FF) + 1
        if not 0 <= index < entries:
            raise NotFound(f"An interrupt of {self} must be below {entries}, not {index}")
        table = self.config(capability + 4, 4)
        return self.bar(table & 7).address + (table & ~7) + index * 16

    def interrupt(self, index: int) -> Interrupt:
        """Interrupt `index` as the door has it, by MSI-X, which gives each a message, or by MSI.

        Raises NotFound when there is none; see `MsiInterrupt`.
        """
        own = self.door.interrupt(self.address, index)
        if own is not None:
            return own
        msi = self.capability(CAP_MSI)
        if msi is not None and self.capability(CAP_MSIX) is None:
            return MsiInterrupt(self, index, msi)
        return MsixInterrupt(self, index)

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
