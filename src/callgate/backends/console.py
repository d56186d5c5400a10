# SPDX-License-Identifier: MIT
"""The guest's console: a line of bytes each way, behind one of two well-known serial ports.

    16550 (PC16550D data sheet, 8.0)               PL011 (ARM DDI 0183, 3.2)
    +0 data (with DLAB: divisor low)               000 DR  data
    +1 IER  (with DLAB: divisor high)              018 FR  bit 4: nothing to read, bit 7: all sent
    +2 IIR, FCR   +3 LCR   +4 MCR
    +5 LSR  bit 0: a byte is there, 5 and 6: all sent
    +6 MSR   +7 scratch

Both are never busy and have no interrupt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

_DLAB = 0x80
_LSR_SENT = 0x60
_LSR_READY = 0x01
_IIR_NONE = 0x01
_MSR_CONNECTED = 0xB0
_PL011_DATA = 0x000
_PL011_FLAGS = 0x018
_PL011_SENT = 0x80
_PL011_NOTHING = 0x10


class Console:
    """What the guest wrote, and what it is still to read."""

    def __init__(self) -> None:
        self.output = bytearray()
        """All that the guest wrote."""
        self.on_byte: Callable[[int], None] | None = None
        """Called with each byte that the guest writes, on the thread of its processor."""
        self.on_feed: Callable[[bytes], None] | None = None
        """Takes what is fed, where the port does not ask for it byte by byte."""
        self._input: deque[int] = deque()

    @property
    def text(self) -> str:
        """What the guest wrote, as UTF-8; what is none shows as U+FFFD."""
        return self.output.decode(errors="replace")

    def feed(self, data: bytes) -> None:
        """Let the guest read `data`, after what it has not read yet."""
        if self.on_feed is not None:
            self.on_feed(data)
        else:
            self._input.extend(data)

    def clear(self) -> None:
        """Forget output and input."""
        self.output.clear()
        self._input.clear()

    @property
    def waiting(self) -> bool:
        """Whether there is a byte for the guest to read."""
        return bool(self._input)

    def put(self, byte: int) -> None:
        """Take a byte from the guest."""
        self.output.append(byte)
        if self.on_byte is not None:
            self.on_byte(byte)

    def get(self) -> int:
        """The next byte for the guest; 0 when there is none."""
        return self._input.popleft() if self._input else 0


class Uart16550:
    """A 16550 in 8 bytes, each register one byte wide."""

    size = 8

    def __init__(self, console: Console) -> None:
        self.console = console
        self._registers = bytearray(self.size)
        self._divisor = bytearray(2)

    def read(self, offset: int, size: int) -> int:
        """A guest's read; wider ones take several registers, lowest first."""
        value = 0
        for index in range(size):
            value |= self._read_byte((offset + index) % self.size) << 8 * index
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """A guest's write; wider ones go to several registers, lowest first."""
        for index in range(size):
            self._write_byte((offset + index) % self.size, value >> 8 * index & 0xFF)

    def _read_byte(self, offset: int) -> int:
        if offset < 2 and self._registers[3] & _DLAB:
            return self._divisor[offset]
        if offset == 0:
            return self.console.get()
        if offset == 2:
            return _IIR_NONE
        if offset == 5:
            return _LSR_SENT | (_LSR_READY if self.console.waiting else 0)
        if offset == 6:
            return _MSR_CONNECTED
        return self._registers[offset]

    def _write_byte(self, offset: int, value: int) -> None:
        if offset < 2 and self._registers[3] & _DLAB:
            self._divisor[offset] = value
        elif offset == 0:
            self.console.put(value)
        else:
            self._registers[offset] = value


class Pl011:
    """A PL011 in one page. Only data and flags do something; what else is written reads back."""

    size = 0x1000

    def __init__(self, console: Console) -> None:
        self.console = console
        self._registers: dict[int, int] = {}

    def read(self, offset: int, size: int) -> int:
        """A guest's read."""
        if offset == _PL011_DATA:
            return self.console.get()
        if offset == _PL011_FLAGS:
            return _PL011_SENT | (0 if self.console.waiting else _PL011_NOTHING)
        return self._registers.get(offset, 0) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """A guest's write."""
        if offset == _PL011_DATA:
            self.console.put(value & 0xFF)
        else:
            self._registers[offset] = value
