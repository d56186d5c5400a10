# SPDX-License-Identifier: MIT
"""Guest memory by guest physical address (GPA): what a device reaches by DMA.

    GPA    0              0x8000_0000        0xFFFC_0000
           | Slot (RAM)   |   hole           | Slot (ROM) |
           +--------------+                  +------------+

A slot is one stretch of host memory that the guest sees at one GPA. Reads and writes may run over
the seam between adjacent slots; a view (`map`) lies within one. Slots never overlap. Whatever the
map does not allow raises `DmaError`: a hole, a write to ROM, a range that passes 2^64.
"""

from __future__ import annotations

import itertools
import os
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from mmap import mmap
from threading import Lock

from callgate.errors import DmaError, NoMemory, NoView

LIMIT = 1 << 64
"""GPAs and the ends of ranges stay at or below this."""


class Pages(mmap):
    """Zeroed, page-aligned memory of a size that never changes: a guest's RAM, a gate.

    `fd` is the file behind it, which another process can map to share it; -1 on systems that have
    no memfd. It is closed with the memory's last user.
    """

    fd: int = -1
    _close_fd: Callable[[], object] | None = None

    @classmethod
    def shared(cls, size: int) -> Pages:
        """Make `size` bytes that have a file."""
        from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, fcntl

        fd = os.memfd_create("callgate", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            # Who else maps it must not be able to shrink it: our next access would be fatal.
            fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
            pages = cls(fd, size)
        except BaseException:
            os.close(fd)
            raise
        pages.fd = fd
        pages._close_fd = weakref.finalize(pages, os.close, fd)
        return pages

    def close(self) -> None:
        """Give the memory back. Raises BufferError while somebody has a view of it."""
        self.unshare()
        super().close()

    def unshare(self) -> None:
        """Close the file. The memory stays, for those who have it."""
        if self._close_fd is not None:
            self._close_fd()
            self.fd = -1


def anonymous(size: int) -> Pages:
    """`size` bytes of new memory that a VMM and forked processes can share."""
    return Pages.shared(size) if hasattr(os, "memfd_create") else Pages(-1, size)


class Slot:
    """One stretch of guest memory: `length` bytes at `gpa`.

    Memory that a VMM does not share has no `view`; a backend then gives a subclass whose `read` and
    `write` ask by message. The caller has checked the range.
    """

    __slots__ = ("gpa", "length", "readonly", "view")

    def __init__(
        self, gpa: int, length: int, view: memoryview | None, *, readonly: bool = False
    ) -> None:
        self.gpa = gpa
        self.length = length
        self.view = view
        self.readonly = readonly

    @property
    def end(self) -> int:
        """First GPA behind the slot."""
        return self.gpa + self.length

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes at `offset` from the slot's start. Raises `DmaError` once it is gone."""
        assert self.view is not None
        try:
            return bytes(self.view[offset : offset + length])
        except ValueError:
            raise self.gone() from None

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Store `data` at `offset` from the slot's start. Raises `DmaError` once it is gone."""
        assert self.view is not None
        try:
            self.view[offset : offset + len(data)] = data
        except ValueError:
            raise self.gone() from None

    def gone(self) -> NoMemory:
        """What to raise after the slot's view was released, while somebody was about to use it."""
        return NoMemory(f"{self!r} was taken away meanwhile")

    def __repr__(self) -> str:
        kind = "ROM" if self.readonly else "RAM"
        return f"<{kind} {self.gpa:#x}..{self.end - 1:#x}>"


class GuestMemory:
    """The guest's RAM and ROM. All methods may be called from any thread."""

    def __init__(self) -> None:
        self.on_change: list[Callable[[], None]] = []
        """Called after a slot came or went."""
        self.may_come: Callable[[], bool] = _nothing_comes
        """Asked after an access that found no memory; True, after a moment: it is tried again."""
        # Replaced as a whole, so that a reader never sees addresses and slots of two moments.
        self._map: tuple[tuple[int, ...], tuple[Slot, ...]] = ((), ())
        self._changing = Lock()

    def add(
        self, gpa: int, buffer: memoryview | bytearray | bytes | mmap, *, readonly: bool = False
    ) -> None:
        """Let the guest's memory at `gpa` be `buffer`, which stays the caller's to close.

        `readonly` (and any buffer that cannot be written) makes it ROM. Raises `DmaError` if the
        range is empty, passes 2^64 or overlaps a slot.
        """
        view = memoryview(buffer).cast("B")
        self.insert(Slot(gpa, len(view), view, readonly=readonly or view.readonly))

    def insert(self, slot: Slot) -> None:
        """Like `add`, for a slot that the caller made."""
        if slot.gpa < 0 or slot.length <= 0 or slot.end > LIMIT:
            raise DmaError(
                f"A memory slot must have bytes and end at or below 2^64, not be {slot!r}"
            )
        with self._changing:
            slots = sorted((*self.slots, slot), key=lambda each: each.gpa)
            for below, above in itertools.pairwise(slots):
                if below.end > above.gpa:
                    raise DmaError(f"Memory slots must not overlap: {below!r} and {above!r}")
            self._replace(slots)
        self._changed()

    def remove(self, gpa: int) -> None:
        """Take away the slot that begins at `gpa`; views that were handed out stay usable.

        Raises `DmaError` if no slot begins there.
        """
        with self._changing:
            slots = [slot for slot in self.slots if slot.gpa != gpa]
            if len(slots) == len(self.slots):
                raise DmaError(f"No memory slot begins at {gpa:#x}; there are {list(self.slots)}")
            self._replace(slots)
        self._changed()

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slots, ascending by GPA."""
        return self._map[1]

    def read(self, gpa: int, length: int) -> bytes:
        """`length` bytes at `gpa`. Raises `DmaError`."""
        while True:
            try:
                slot, offset = self._single(gpa, length)
                if slot is not None:
                    return slot.read(offset, length)
                parts = self._parts(gpa, length, write=False)
                return b"".join(part.read(start, count) for part, start, count in parts)
            except NoMemory:
                if not self.may_come():
                    raise

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Store `data` at `gpa`: all of it, or nothing when it raises `DmaError`."""
        view = memoryview(data).cast("B")
        while True:
            try:
                slot, offset = self._single(gpa, len(view))
                if slot is not None and not slot.readonly:
                    slot.write(offset, view)
                    return
                done = 0
                for part, start, count in list(self._parts(gpa, len(view), write=True)):
                    part.write(start, view[done : done + count])
                    done += count
                return
            except NoMemory:
                if not self.may_come():
                    raise

    def map(self, gpa: int, length: int, *, write: bool = False) -> memoryview:
        """A view of the guest's own bytes, without a copy; read-only unless `write`.

        Raises `DmaError`; `NoView` when the range runs over the seam of two slots or when the VMM
        does not share this memory: `read` and `write` serve both. The guest can change the bytes
        at any time. A range of 0 bytes is an empty view, wherever it is.
        """
        while True:
            try:
                return self._view(gpa, length, write)
            except NoMemory:
                if not self.may_come():
                    raise

    def scatter(
        self, pieces: Iterable[tuple[int, int]], *, write: bool = False
    ) -> list[memoryview]:
        """`map` for each (GPA, length). Raises `DmaError` if any piece is not allowed."""
        pieces = list(pieces)
        while True:
            try:
                return [self._view(gpa, length, write) for gpa, length in pieces]
            except NoMemory:
                if not self.may_come():
                    raise

    def check(self, gpa: int, length: int, *, write: bool) -> None:
        """Raise `DmaError` unless `read` (or `write`) of this range would succeed."""
        while True:
            try:
                for _ in self._parts(gpa, length, write=write):
                    pass
                return
            except NoMemory:
                if not self.may_come():
                    raise

    def overlaps(self, gpa: int, length: int) -> bool:
        """Whether any byte of the range is guest memory."""
        return any(slot.gpa < gpa + length and gpa < slot.end for slot in self.slots)

    def _view(self, gpa: int, length: int, write: bool) -> memoryview:
        slot, offset = self._single(gpa, length)
        if slot is None or (write and slot.readonly):
            parts = list(self._parts(gpa, length, write=write))
            if not parts:
                return memoryview(bytearray(0))
            raise NoView(
                f"A view must lie in one memory slot; {_range(gpa, length)} runs over {len(parts)}"
            )
        if slot.view is None:
            raise NoView(f"{slot!r} is not shared with this process: use read and write")
        try:
            view = slot.view[offset : offset + length]
        except ValueError:
            raise slot.gone() from None
        return view if write else view.toreadonly()

    def _single(self, gpa: int, length: int) -> tuple[Slot | None, int]:
        """The slot that holds the whole range, and the offset in it: the common case, quick."""
        starts, slots = self._map
        index = bisect_right(starts, gpa) - 1
        if index >= 0 and length > 0:
            slot = slots[index]
            offset = gpa - slot.gpa
            if offset + length <= slot.length:
                return slot, offset
        return None, 0

    def _parts(self, gpa: int, length: int, *, write: bool) -> Iterator[tuple[Slot, int, int]]:
        """The range cut at the slots' seams: (slot, offset in it, bytes). Raises `DmaError`."""
        if gpa < 0 or length < 0 or gpa + length > LIMIT:
            raise DmaError(f"{_range(gpa, length)} must lie in 0 to 2^64")
        starts, slots = self._map
        index = bisect_right(starts, gpa) - 1
        at, end = gpa, gpa + length
        while at < end:
            if index < 0 or index >= len(slots) or not slots[index].gpa <= at < slots[index].end:
                raise NoMemory(f"{_range(gpa, length)} is not all guest memory: none at {at:#x}")
            slot = slots[index]
            if write and slot.readonly:
                raise DmaError(f"{_range(gpa, length)} cannot be written: {slot!r}")
            count = min(end, slot.end) - at
            yield slot, at - slot.gpa, count
            at += count
            index += 1

    def _replace(self, slots: list[Slot]) -> None:
        self._map = tuple(slot.gpa for slot in slots), tuple(slots)

    def _changed(self) -> None:
        for watcher in self.on_change:
            watcher()


def _nothing_comes() -> bool:
    """Memory is where it is."""
    return False


def _range(gpa: int, length: int) -> str:
    return f"The range of {length} bytes at {gpa:#x}"
