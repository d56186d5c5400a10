# SPDX-License-Identifier: MIT
"""A function's configuration space (PCI Local Bus 3.0, chapter 6).

           byte 3          byte 2          byte 1          byte 0
    00  |         device id            |         vendor id            |
    04  |         status               |         command              |
    08  |                 class code                   |   revision   |
    0C  |     BIST      |  header type |   latency    |  cache line  |
    10  |                      BAR 0 ... BAR 5                        |
    2C  |         subsystem id         |      subsystem vendor        |
    34  |                      0                       | capabilities |
    3C  |    max_lat    |   min_gnt    |     pin      |     line     |
    40  |                     capabilities ...                        |
   100  |     extended configuration space: zeros, up to 1000h        |

Every bit is read-only, writable, or cleared by writing 1 to it. A watcher learns of writes to its
range, after they are done; a reader, of reads before they are.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from callgate.faults import Faults

SIZE = 4096
CAPABILITY_END = 256
"""Capabilities lie in the first 256 bytes: a guest without ECAM reaches no more."""

VENDOR_ID = 0x00
DEVICE_ID = 0x02
COMMAND = 0x04
STATUS = 0x06
REVISION = 0x08
CACHE_LINE = 0x0C
HEADER_TYPE = 0x0E
BAR0 = 0x10
SUBSYSTEM = 0x2C
CAPABILITIES = 0x34
INTERRUPT_LINE = 0x3C
INTERRUPT_PIN = 0x3D

COMMAND_IO = 1 << 0
COMMAND_MEMORY = 1 << 1
COMMAND_MASTER = 1 << 2
COMMAND_PARITY = 1 << 6
COMMAND_SERR = 1 << 8
COMMAND_INTX_DISABLE = 1 << 10
# I/O and memory stay writable where the function has no such BAR: drivers set both unasked.
_COMMAND_WRITABLE = (
    COMMAND_IO
    | COMMAND_MEMORY
    | COMMAND_MASTER
    | COMMAND_PARITY
    | COMMAND_SERR
    | COMMAND_INTX_DISABLE
)

STATUS_INTERRUPT = 1 << 3
STATUS_CAPABILITIES = 1 << 4
STATUS_MASTER_ABORT = 1 << 13
_STATUS_W1C = 0xF900  # the error bits: 8, 11 to 15

MULTIFUNCTION = 1 << 7
PIN_A = 1

_SIZES = (1, 2, 4)


class ConfigSpace:
    """4096 bytes with access rules.

    `read` and `write` are the guest's side: 1, 2 or 4 bytes, aligned; any other access reads all
    ones or is dropped, and is noted. `get`, `set` and `change` are the device's side, where the
    rules do not hold.
    """

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._bytes = bytearray(SIZE)
        self._initial = bytearray(SIZE)
        self._writable = bytearray(SIZE)
        self._w1c = bytearray(SIZE)
        self._watchers: dict[int, list[tuple[int, int, Callable[[], None]]]] = {}
        self._readers: dict[int, list[tuple[int, int, Callable[[], None]]]] = {}
        self._lock = Lock()

    def define(self, offset: int, value: bytes, *, writable: bytes = b"", w1c: bytes = b"") -> None:
        """Lay `value` at `offset`: what is there now and after a reset.

        The masks say which bits the guest writes, and which it clears by writing 1; where they are
        shorter than `value`, the rest is read-only.
        """
        end = offset + len(value)
        self._bytes[offset:end] = self._initial[offset:end] = value
        for mask, given in ((self._writable, writable), (self._w1c, w1c)):
            mask[offset:end] = given.ljust(len(value), b"\0")[: len(value)]

    def preset(self, offset: int, size: int, value: int) -> None:
        """Let the `size` bytes at `offset` be `value`, now and after a reset; masks stay."""
        data = value.to_bytes(size, "little")
        with self._lock:
            self._bytes[offset : offset + size] = self._initial[offset : offset + size] = data

    def watch(self, offset: int, length: int, watcher: Callable[[], None]) -> None:
        """Call `watcher` after each guest's write that touches the range."""
        for dword in range(offset & ~3, offset + length, 4):
            self._watchers.setdefault(dword, []).append((offset, offset + length, watcher))

    def watch_reads(self, offset: int, length: int, watcher: Callable[[], None]) -> None:
        """Call `watcher` before each guest's read that touches the range."""
        for dword in range(offset & ~3, offset + length, 4):
            self._readers.setdefault(dword, []).append((offset, offset + length, watcher))

    def get(self, offset: int, size: int) -> int:
        """The `size` bytes at `offset`, as a number."""
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    def set(self, offset: int, size: int, value: int) -> None:
        """Store a number, whatever the guest may write there."""
        with self._lock:
            self._bytes[offset : offset + size] = value.to_bytes(size, "little")

    def change(self, offset: int, size: int, *, set: int = 0, clear: int = 0) -> None:
        """Clear, then set bits; as one step, which no guest's write comes between."""
        with self._lock:
            bits = self.get(offset, size) & ~clear | set
            self._bytes[offset : offset + size] = bits.to_bytes(size, "little")

    def read(self, offset: int, size: int) -> int:
        """A guest's read."""
        if size not in _SIZES or offset % size or not 0 <= offset < SIZE:
            self._bad("read", offset, size)
            return (1 << 8 * max(size, 0)) - 1
        if self._readers:
            for start, stop, watcher in self._readers.get(offset & ~3, ()):
                if start < offset + size and offset < stop:
                    watcher()
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """A guest's write."""
        if size not in _SIZES or offset % size or not 0 <= offset < SIZE:
            self._bad("write", offset, size)
            return
        end = offset + size
        writable = int.from_bytes(self._writable[offset:end], "little")
        w1c = int.from_bytes(self._w1c[offset:end], "little")
        with self._lock:
            old = self.get(offset, size)
            new = (old & ~writable | value & writable) & ~(value & w1c)
            self._bytes[offset:end] = new.to_bytes(size, "little")
        for start, stop, watcher in self._watchers.get(offset & ~3, ()):
            if start < end and offset < stop:
                watcher()

    def reset(self) -> None:
        """Every byte back to what was defined. Tells no watcher."""
        with self._lock:
            self._bytes[:] = self._initial

    def dump(self, length: int = CAPABILITY_END) -> bytes:
        """A copy of the first `length` bytes."""
        return bytes(self._bytes[:length])

    def _bad(self, access: str, offset: int, size: int) -> None:
        self._faults.note(
            f"config {access}",
            f"a configuration {access} must be 1, 2 or 4 aligned bytes below {SIZE:#x}, "
            f"not {size} at {offset:#x}",
        )


def define_header(
    config: ConfigSpace,
    *,
    id: tuple[int, int],
    class_code: int,
    revision: int = 0,
    subsystem: tuple[int, int] = (0, 0),
    pin: int = 0,
) -> None:
    """Lay out a type 0 header without BARs and capabilities; `pin` 1 to 4 is INTA to INTD."""

    def words(*numbers: int) -> bytes:
        return b"".join(number.to_bytes(2, "little") for number in numbers)

    config.define(VENDOR_ID, words(*id))
    config.define(
        COMMAND, words(0, 0), writable=words(_COMMAND_WRITABLE, 0), w1c=words(0, _STATUS_W1C)
    )
    config.define(REVISION, bytes([revision]) + class_code.to_bytes(3, "little"))
    config.define(CACHE_LINE, b"\0", writable=b"\xff")
    config.define(SUBSYSTEM, words(*subsystem))
    config.define(INTERRUPT_LINE, bytes([0, pin]), writable=b"\xff")
