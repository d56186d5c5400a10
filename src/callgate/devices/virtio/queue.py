# SPDX-License-Identifier: MIT
"""The split virtqueue, from the device's side (2.7).

    descriptors   size x | address: 64 | length: 32 | flags: 16 | next: 16 |
    available     | flags | idx | ring: size x head | used_event  |             16 bits each
    used          | flags | idx | ring: size x (head: 32, written: 32) | avail_event |

    driver: fills descriptors, puts heads into available, adds to its idx, and notifies
    device: `take` heads, `requests` follows their chains, `give` them back as used, then `rest`

The rings are read and written by copies of what is needed, which is few bytes, so that nothing of
the guest's memory is held between two batches, and it works where the VMM shares none. Every number
is copied once and judged then. What breaks a rule raises `Broken`; an address that is not memory
raises `DmaError`.

Memory order. The driver stores entries before idx, so we load idx before entries; we store used
entries before used.idx. Each side stores what tells the other to notify it, then loads whether
there is news: that needs a full barrier on all processors (2.7.7.1, 2.7.10).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from struct import Struct
from typing import TypeAlias

from callgate.device import Memory
from callgate.errors import DmaError
from callgate.gate.fence import WEAK, fence

MAX_SIZE = 1 << 15
"""Entries of a queue, at most (2.7)."""
MAX_INDIRECT = 1024
"""Descriptors of an indirect table, at most, if the queue itself has less. The specification says
that it is the queue's size, and Linux' drivers do not keep to that."""
DESCRIPTOR = Struct("<QIHH")
Descriptor: TypeAlias = tuple[int, int, int, int]
NEXT, WRITE, INDIRECT = 1, 2, 4
NO_INTERRUPT = 1
"""available.flags: the driver wants no interrupts (2.7.7)."""
NO_NOTIFY = 1
"""used.flags: the device wants no notifications (2.7.10)."""
NO_VECTOR = 0xFFFF
DESCRIPTOR_ALIGN, AVAILABLE_ALIGN, USED_ALIGN = 16, 2, 4

_RING = 4
"""Where entries begin, behind flags and idx."""
_IDX = 2
_16 = Struct("<H")
_USED = Struct("<II")


class Broken(Exception):
    """The driver broke a rule of the queue: the device needs a reset (2.1.2)."""


Piece: TypeAlias = tuple[int, int]
"""A stretch of guest memory that a descriptor names: its GPA, and how many bytes."""


class Request:
    """A chain of descriptors that the driver made available.

    `readable` is what the driver wrote for the device, `writable` what the device may write, each
    in order. Nothing says yet that they lie in memory.
    """

    __slots__ = ("head", "readable", "size", "writable")

    def __init__(self, head: int) -> None:
        self.head = head
        self.readable: list[Piece] = []
        self.writable: list[Piece] = []
        self.size = 0
        """Bytes of all pieces."""


class Queue:
    """Virtqueue `index` of a device, of up to `limit` entries.

    Its first half is what the driver configures (4.1.4.3); `enable` begins a life with that, which
    `live` ends. `take`, `requests`, `give` and `rest` are called by one thread at a time.
    """

    def __init__(self, index: int, limit: int) -> None:
        self.index = index
        self.limit = limit
        self.size = limit
        self.vector = NO_VECTOR
        self.enabled = False
        self.descriptors = 0
        self.available = 0
        self.used = 0
        self.live = False
        """Whether requests may be carried out: not before `enable`, not once a reset was asked."""

    def enable(self, memory: Memory, *, indirect: bool, event_idx: bool) -> None:
        """Begin with the rings as they are configured. Raises Broken where they cannot be."""
        if not 0 < self.size <= MAX_SIZE or self.size & (self.size - 1):
            raise Broken(f"a queue's size must be a power of two, not {self.size}")
        for name, address, align in (
            ("descriptor area", self.descriptors, DESCRIPTOR_ALIGN),
            ("driver area", self.available, AVAILABLE_ALIGN),
            ("device area", self.used, USED_ALIGN),
        ):
            if address % align:
                raise Broken(f"the {name} must be at a multiple of {align}, not {address:#x}")
        self._memory = memory
        self._indirect = indirect
        self._event_idx = event_idx
        self._taken = 0
        """available.idx up to which heads were taken."""
        self._given = 0
        """used.idx."""
        self._silent = False
        """Whether the driver was told not to notify, without event index."""
        self._used_event = self.available + _RING + 2 * self.size
        self._avail_event = self.used + _RING + _USED.size * self.size
        self._table = b""
        self._heads: deque[int] = deque()
        self.enabled = self.live = True

    def take(self) -> bool:
        """Take what the driver made available; False when nothing waits."""
        if self._heads:
            return True
        idx = self._load(self.available + _IDX)
        count = idx - self._taken & 0xFFFF
        if not count:
            return False
        if count > self.size:
            raise Broken(
                f"available.idx must be up to {self.size} ahead, not {count}: {idx} after "
                f"{self._taken}"
            )
        if WEAK:
            fence()
        read = self._memory.read
        first = self._taken % self.size
        begin = min(count, self.size - first)
        ring = read(self.available + _RING + 2 * first, 2 * begin)
        if begin < count:
            ring += read(self.available + _RING, 2 * (count - begin))
        self._table = read(self.descriptors, DESCRIPTOR.size * self.size)
        self._taken = idx
        if not self._event_idx and not self._silent:
            # A hint: with event index, the driver is silent until the event is set anew.
            self._silent = True
            self._store(self.used, NO_NOTIFY)
        self._heads.extend(head for (head,) in _16.iter_unpack(ring))
        return True

    def requests(self, most: int) -> Iterator[Request]:
        """What was taken, until it is `most` bytes together; the rest waits."""
        size = 0
        while self._heads and size < most and self.live:
            request = self._follow(self._heads.popleft())
            size += request.size
            yield request

    def _follow(self, head: int) -> Request:
        """The chain that begins at `head`, as the descriptors were at the last `take`."""
        request = Request(head)
        readable, writable = request.readable, request.writable
        descriptor: Callable[[int], Descriptor] = self._descriptor
        count = self.size
        index, left, size = head, count, 0
        nested = False
        while True:
            if index >= count:
                raise Broken(f"a descriptor's index must be below {count}, not {index}")
            gpa, length, flags, following = descriptor(index)
            if flags & INDIRECT:
                if nested or flags & NEXT or not self._indirect:
                    raise Broken(
                        "an indirect descriptor must be the last of its chain, not in an indirect "
                        "table itself, and negotiated"
                    )
                count, rest = divmod(length, DESCRIPTOR.size)
                most = max(self.size, MAX_INDIRECT)
                if rest or not 0 < count <= most:
                    raise Broken(
                        f"an indirect table must be 1 to {most} descriptors of {DESCRIPTOR.size} "
                        f"bytes, not {length} bytes"
                    )
                table = self._memory.read(gpa, length)
                entries: list[Descriptor] = list(DESCRIPTOR.iter_unpack(table))
                descriptor = entries.__getitem__
                index, left, nested = 0, count, True
                continue
            # Nothing forbids a piece without bytes, and nobody wants to meet one.
            if flags & WRITE:
                if length:
                    writable.append((gpa, length))
            elif writable:
                raise Broken("what the device reads must come before what it writes")
            elif length:
                readable.append((gpa, length))
            size += length
            left -= 1
            if not flags & NEXT:
                request.size = size
                return request
            if not left:
                raise Broken("a chain must end, and be no longer than its queue")
            index = following

    def _descriptor(self, index: int) -> Descriptor:
        found: Descriptor = DESCRIPTOR.unpack_from(self._table, DESCRIPTOR.size * index)
        return found

    def give(self, done: Sequence[tuple[int, int]]) -> bool:
        """Give requests back as used: (head, bytes written from the first on). Returns whether the
        driver wants an interrupt."""
        old = self._given
        entries = b"".join([_USED.pack(head, written) for head, written in done])
        write = self._memory.write
        first = old % self.size
        begin = (self.size - first) * _USED.size
        write(self.used + _RING + _USED.size * first, entries[:begin])
        if len(entries) > begin:
            write(self.used + _RING, entries[begin:])
        if WEAK:
            fence()
        new = self._given = old + len(done) & 0xFFFF
        self._store(self.used + _IDX, new)
        fence()
        if not self._event_idx:
            return not self._load(self.available) & NO_INTERRUPT
        event = self._load(self._used_event)
        return (new - event - 1 & 0xFFFF) < (new - old & 0xFFFF)

    def rest(self) -> bool:
        """Ask the driver to notify; False when it has made something available meanwhile."""
        if self._event_idx:
            self._store(self._avail_event, self._taken)
        else:
            self._silent = False
            self._store(self.used, 0)
        fence()
        return self._load(self.available + _IDX) == self._taken

    # The other side must never see half of a number. The C library copies two bytes at once on x86
    # alone; an element of a view is loaded and stored at once everywhere.

    def _load(self, gpa: int) -> int:
        if WEAK:
            with suppress(DmaError), self._memory.map(gpa, 2) as view, view.cast("H") as word:
                return word[0]
        number: int = _16.unpack(self._memory.read(gpa, 2))[0]
        return number

    def _store(self, gpa: int, number: int) -> None:
        if WEAK:
            with (
                suppress(DmaError),
                self._memory.map(gpa, 2, write=True) as view,
                view.cast("H") as word,
            ):
                word[0] = number
                return
        self._memory.write(gpa, _16.pack(number))
