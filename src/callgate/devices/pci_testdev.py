# SPDX-License-Identifier: MIT
"""PciTestdev: QEMU's pci-testdev (its docs/specs/pci-testdev.rst), for tests of low-level I/O.

A guest starts a test by its number, writes what the header says to where it says, and looks at the
count. Both BARs begin with the header of the test that runs; all else reads zero:

    0x00  u8   test      written: start this test, or none if there is no such one; read: its index
    0x01  u8   width     bytes of a write of the test: 1; 0: no test runs
    0x04  u32  offset    where to write, in the BAR in which the test was started
    0x08  u32  data      what to write
    0x0c  u32  count     writes that the device was told of
    0x10       name      ASCII, ends with a zero

    test   BAR 0, memory             BAR 1, I/O                  counted are writes of
    0      mmio-no-eventfd           portio-no-eventfd           data
    1      mmio-wildcard-eventfd     portio-wildcard-eventfd     anything, but not by single bytes
    2      mmio-datamatch-eventfd    portio-datamatch-eventfd    data, but not by single bytes

A single byte that the test's eventfd is there for signals the eventfd, and the device is not told,
as with KVM's ioeventfd. Nobody in QEMU listens to it: that it works, a guest sees by a count that
stays. Here it is a number for the host, `signals`.

Where the specification is silent the model does what QEMU 11.1 was seen to do.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from callgate import Bar, Device

_HEADER = struct.Struct("<BB2xIII")
_DATA, _ANY_DATA = 0xFA, 0xCE


class IoTest(NamedTuple):
    """What the header says of a test, and which writes the device takes for it."""

    name: str
    offset: int
    data: int
    wildcard: bool = False
    """Whether any data will do."""
    eventfd: bool = False

    def wants(self, offset: int, byte: int) -> bool:
        """Whether a byte that is written there is one that the test is about."""
        return offset == self.offset and (self.wildcard or byte == self.data)


def _tests(way: str, first: int) -> tuple[IoTest, ...]:
    """The three tests of a BAR, with their places from `first` on."""
    return (
        IoTest(f"{way}-no-eventfd", first, _DATA),
        IoTest(f"{way}-wildcard-eventfd", first + 1, _ANY_DATA, wildcard=True, eventfd=True),
        IoTest(f"{way}-datamatch-eventfd", first + 2, _DATA, eventfd=True),
    )


MMIO, PORTIO = _tests("mmio", 0x800), _tests("portio", 0x83)
"""The tests of BAR 0 and of BAR 1, by number."""
_TESTS = MMIO + PORTIO


class PciTestdev(Device):
    """QEMU's PCI test device.

    What QEMU's option `membar` adds, a BAR of any size with nothing behind it, a subclass adds:

        class Large(PciTestdev):
            membar = Bar(2, 1 << 26, width=64, prefetchable=True)

    An access is taken byte by byte. One that is not aligned to its size reads all ones or is
    dropped, and counts as a fault.
    """

    id = 0x1B36, 0x0005
    subsystem = 0x1AF4, 0x1100
    class_code = 0x00FF00

    mmio = Bar(0, 4096)
    portio = Bar(1, 256, "io")

    def __init__(self) -> None:
        self._start(None)

    def reset(self) -> None:
        """Let no test run."""
        self._start(None)

    def _start(self, test: IoTest | None) -> None:
        self.test = test
        """The test that runs."""
        self.count = 0
        """How many of its writes the device was told of."""
        self.signals = 0
        """How many of its writes signalled its eventfd."""

    @mmio.on_read
    @portio.on_read
    def _load(self, offset: int, size: int) -> int:
        test = self.test
        if offset % size:
            return self._unaligned("read", offset, size)
        if test is None:
            return 0
        header = _HEADER.pack(_TESTS.index(test), 1, test.offset, test.data, self.count)
        shown = header + test.name.encode()
        return int.from_bytes(shown[offset : offset + size], "little")

    @mmio.on_write
    def _store_mmio(self, offset: int, size: int, value: int) -> None:
        self._store(MMIO, offset, size, value)

    @portio.on_write
    def _store_portio(self, offset: int, size: int, value: int) -> None:
        self._store(PORTIO, offset, size, value)

    def _store(self, own: Sequence[IoTest], offset: int, size: int, value: int) -> None:
        """A write to the BAR that has the tests `own`."""
        if offset % size:
            self._unaligned("write", offset, size)
        elif size == 1 and self._has_eventfd(own, offset, value):
            self.signals += 1
        else:
            for at, byte in enumerate(value.to_bytes(size, "little"), offset):
                self._store_byte(own, at, byte)

    def _has_eventfd(self, own: Sequence[IoTest], offset: int, byte: int) -> bool:
        test = self.test
        return test is not None and test in own and test.eventfd and test.wants(offset, byte)

    def _store_byte(self, own: Sequence[IoTest], offset: int, byte: int) -> None:
        if offset == 0:
            self._start(own[byte] if byte < len(own) else None)
        elif self.test is not None and self.test.wants(offset, byte):
            self.count = self.count + 1 & 0xFFFF_FFFF  # By whichever BAR, as in QEMU.

    def _unaligned(self, access: str, offset: int, size: int) -> int:
        self.faults.note(f"bad {access}", f"a {access} of {size} bytes at {offset:#x} is unaligned")
        return (1 << 8 * size) - 1
