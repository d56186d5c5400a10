# SPDX-License-Identifier: MIT
"""A block device in a file (virtio 1.2, 5.2).

    class Disk(VirtioBlk):              VirtioBlk("disk.img", readonly=True)
        path = "disk.img"               VirtioBlk(size=1 << 30)     what is written is lost
        queues = 2

    request, readable   | type: 32 | 0: 32 | sector: 64 |  what is to be written, or ranges
             writable   what was read                   |  status: 8

Data goes between the file and the guest's memory by preadv and pwritev, with no copy in between;
where the VMM shares no memory, by copies. Requests run on a thread of their own. What is written is
in the host's page cache when the request is done, so it outlives this process. After a flush, or
always in write-through mode, it is on the disk (fdatasync).

Reads ask first for what the page cache has. The others of the batch are announced to the kernel
before any is waited for, so that the disk has them all at once.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from struct import Struct

from callgate import DmaError, Interrupts, LoadError, Register
from callgate.devices.virtio import CONFIG, Broken, Piece, Queue, Request, Virtio
from callgate.linux.file import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    fallocate,
    lock,
)

SECTOR = 512
"""Bytes of what requests and configuration count in, whatever the block size."""
MAX_QUEUES = 16

F_SIZE_MAX, F_SEG_MAX = 1 << 1, 1 << 2
F_RO, F_BLK_SIZE = 1 << 5, 1 << 6
F_FLUSH, F_TOPOLOGY, F_CONFIG_WCE, F_MQ = 1 << 9, 1 << 10, 1 << 11, 1 << 12
F_DISCARD, F_WRITE_ZEROES = 1 << 13, 1 << 14

T_IN, T_OUT, T_FLUSH, T_GET_ID, T_DISCARD, T_WRITE_ZEROES = 0, 1, 4, 8, 11, 13
S_OK, S_IOERR, S_UNSUPP = 0, 1, 2
UNMAP = 1
"""Flag of a range to be zeroed: it need not stay allocated."""
ID_BYTES = 20

_STATUS = b"\0", b"\1", b"\2"
_LENGTH = itemgetter(1)
_HEADER = Struct("<IIQ")
_RANGE = Struct("<QII")
_QUEUE_SIZE = 256
_SEGMENT = 1 << 20
"""Bytes of a piece of data, at most; it bounds what a copy of one takes."""
_SEGMENTS = _QUEUE_SIZE - 2
_DISCARD_SECTORS = (1 << 30) // SECTOR
_ZERO_SECTORS = (1 << 25) // SECTOR
"""Where the file system cannot do it, zeros are written, which takes its time."""
_RANGES = 16
_ZEROS = bytes(1 << 20)
_NO_WAIT = getattr(os, "RWF_NOWAIT", 0)
_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV)

Views = list[memoryview]


class _Failed(Exception):
    """The request is answered with `status`."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class VirtioBlk(Virtio):
    """A disk.

    `path` is a file of whole blocks, or a block device; without one the disk is a temporary file of
    `size` bytes, zeros at first. `queues` is 1 to 16. Attributes of a subclass and arguments mean
    the same. The file is open, and locked against a second writer, while the device is plugged in;
    plugging in raises LoadError where that cannot be.
    """

    id = 0x1AF4, 0x1042
    class_code = 0x010000
    threaded = True

    path: str | os.PathLike[str] | None = None
    size: int = 64 << 20
    readonly: bool = False
    queues: int = 1
    block_size: int = 512
    """Bytes of what the guest takes for a sector: 512 to 4096, a power of two."""
    serial: str = "callgate"
    """What T_GET_ID answers: up to 20 bytes of ASCII."""

    capacity = Register(CONFIG + 0x00, width=64, access="r", doc="in sectors of 512 bytes")
    size_max = Register(CONFIG + 0x08, access="r", doc="bytes of a piece of data, at most")
    seg_max = Register(CONFIG + 0x0C, access="r", doc="pieces of data in a request, at most")
    geometry = Register(CONFIG + 0x10, access="r", doc="none")
    blk_size = Register(CONFIG + 0x14, access="r", doc="bytes of a block")
    physical_block_exp = Register(CONFIG + 0x18, width=8, access="r")
    alignment_offset = Register(CONFIG + 0x19, width=8, access="r")
    min_io_size = Register(CONFIG + 0x1A, width=16, access="r", doc="in blocks")
    opt_io_size = Register(CONFIG + 0x1C, access="r", doc="in blocks")
    writeback = Register(CONFIG + 0x20, width=8, reset=1, doc="1: a flush is needed, 0: none is")
    unused0 = Register(CONFIG + 0x21, width=8, access="r")
    num_request_queues = Register(CONFIG + 0x22, width=16, access="r", doc="num_queues (5.2.4)")
    max_discard_sectors = Register(CONFIG + 0x24, access="r")
    max_discard_seg = Register(CONFIG + 0x28, access="r", doc="ranges in a request, at most")
    discard_sector_alignment = Register(CONFIG + 0x2C, access="r")
    max_write_zeroes_sectors = Register(CONFIG + 0x30, access="r")
    max_write_zeroes_seg = Register(CONFIG + 0x34, access="r")
    write_zeroes_may_unmap = Register(CONFIG + 0x38, access="r", doc="1: it may, given UNMAP")

    vectors = Interrupts(
        MAX_QUEUES + 1, "whatever the driver connects it with: a queue, or configuration"
    )

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        readonly: bool | None = None,
        queues: int | None = None,
        size: int | None = None,
    ) -> None:
        if path is not None:
            self.path = path
        if readonly is not None:
            self.readonly = readonly
        if queues is not None:
            self.queues = queues
        if size is not None:
            self.size = size
        if not 1 <= self.queues <= MAX_QUEUES:
            raise LoadError(f"A disk must have 1 to {MAX_QUEUES} queues, not {self.queues}")
        if self.block_size not in (512, 1024, 2048, 4096):
            raise LoadError(
                f"The block size must be 512, 1024, 2048 or 4096, not {self.block_size}"
            )
        if not self.serial.isascii() or len(self.serial) > ID_BYTES:
            raise LoadError(f"The serial must be up to {ID_BYTES} ASCII bytes, not {self.serial!r}")
        self.queue_sizes = (_QUEUE_SIZE,) * self.queues
        self.features = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY
        if self.queues > 1:
            self.features |= F_MQ
        if self.readonly:
            self.features |= F_RO
        else:
            self.features |= F_CONFIG_WCE | F_DISCARD | F_WRITE_ZEROES

    # --- life ------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Open the file."""
        self._fd = self._open()
        self._no_wait = _NO_WAIT
        try:
            self._sectors = self._measure()
            super().attach()
        except BaseException:
            os.close(self._fd)
            raise

    def detach(self) -> None:
        """Close it. What the guest did not flush is written when the kernel likes."""
        super().detach()
        os.close(self._fd)

    def fill_config(self) -> None:
        """See 5.2.4."""
        self.capacity = self._sectors
        self.size_max = _SEGMENT
        self.seg_max = _SEGMENTS
        self.blk_size = self.block_size
        self.physical_block_exp = (4096 // self.block_size).bit_length() - 1
        self.min_io_size = 4096 // self.block_size
        self.num_request_queues = self.queues
        if not self.readonly:
            self.max_discard_sectors = _DISCARD_SECTORS
            self.max_discard_seg = self.max_write_zeroes_seg = _RANGES
            self.discard_sector_alignment = 4096 // SECTOR
            self.max_write_zeroes_sectors = _ZERO_SECTORS
            self.write_zeroes_may_unmap = 1
        self._writeback = self.writeback

    def accepts(self, features: int) -> bool:
        """All may be left out; without a flush a write is on the disk when it is done (5.2.5.2)."""
        self.writeback = self._writeback = int(bool(features & F_FLUSH))
        return True

    def resize(self) -> None:
        """Take the file's present size for the disk's, and tell the driver. From any thread."""
        with self.lock:
            self.capacity = self._sectors = self._measure()
            self.config_changed()

    def _open(self) -> int:
        if self.path is None:
            if self.size <= 0 or self.size % self.block_size:
                raise LoadError(
                    f"A disk must have whole blocks of {self.block_size} bytes, not {self.size}"
                )
            with tempfile.TemporaryFile() as file:
                file.truncate(self.size)
                return os.dup(file.fileno())
        mode = os.O_RDONLY if self.readonly else os.O_RDWR
        try:
            # To open a pipe would wait for its other side.
            fd = os.open(self.path, mode | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise LoadError(f"The disk {self.path} cannot be opened: {error.strerror}") from error
        try:
            kind = os.fstat(fd).st_mode
            if not stat.S_ISREG(kind) and not stat.S_ISBLK(kind):
                raise LoadError(f"The disk {self.path} must be a file or a block device")
            lock(fd, exclusive=not self.readonly)
        except BlockingIOError:
            os.close(fd)
            raise LoadError(
                f"The disk {self.path} must be this device's alone: another one has it open"
            ) from None
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _measure(self) -> int:
        size = os.lseek(self._fd, 0, os.SEEK_END)
        if size <= 0 or size % self.block_size:
            raise LoadError(
                f"The disk {self.path} must have whole blocks of {self.block_size} bytes, and has "
                f"{size} bytes"
            )
        return size // SECTOR

    # --- requests --------------------------------------------------------------------------------

    def handle_batch(
        self, queue: Queue, requests: Iterable[Request]
    ) -> Iterator[tuple[Request, int]]:
        """Carry out a batch; reads that have to wait for the disk come last (5.2.6)."""
        cold: list[Request] = []
        for request in requests:
            written = self._carry_out(request, wait=False)
            if written is None:
                cold.append(request)
            else:
                yield request, written
        for request in cold:
            if not queue.live:
                return
            written = self._carry_out(request, wait=True)
            assert written is not None
            yield request, written

    def _carry_out(self, request: Request, *, wait: bool) -> int | None:
        """Answer a request; how many bytes were written from the first on. None when it would have
        to wait for the disk, and nothing is done."""
        # Its parts may be cut into pieces in any way (2.7.4).
        data = request.writable[:]
        if not data:
            raise Broken("a request must have a byte for its status")
        gpa, length = data.pop()
        if length > 1:
            data.append((gpa, length - 1))
        status_at = gpa + length - 1
        head, rest = _cut(request.readable, _HEADER.size)
        kind, _, sector = _HEADER.unpack(self._gather(head))
        size = _bytes(data)
        status = S_OK
        written: int | None = 0
        try:
            if kind == T_IN:
                written = self._transfer_in(sector, data, size, wait)
                if written is None:
                    return None
            elif kind == T_OUT:
                self._transfer_out(sector, rest)
            elif kind == T_FLUSH:
                os.fdatasync(self._fd)
            elif kind == T_GET_ID:
                written = self._identify(data)
            elif kind == T_DISCARD:
                self._discard(rest)
            elif kind == T_WRITE_ZEROES:
                self._write_zeroes(rest)
            else:
                raise _Failed(S_UNSUPP, f"there is no request of type {kind}")
        except _Failed as error:
            status = error.status
            self.faults.note("request", str(error))
        except DmaError as error:
            status = S_IOERR
            self.faults.note_dma("a request", error)
        except OSError as error:
            status = S_IOERR
            self.faults.note("disk", f"the host's disk failed: {error.strerror or error}")
        if status != S_OK:
            written = 0
        self.memory.write(status_at, _STATUS[status])
        # The status counts only where there is no gap before it.
        return written + 1 if written == size else written

    def _transfer_in(self, sector: int, data: list[Piece], length: int, wait: bool) -> int | None:
        self._check(sector, data, length)
        offset = sector * SECTOR
        try:
            views = self.memory.scatter(data, write=True)
        except DmaError:  # Not shared, or over the seam of two slots; or not there.
            self._read_copies(offset, data)
            return length
        return length if self._preadv(views, offset, length, wait) else None

    def _preadv(self, views: Views, offset: int, length: int, wait: bool) -> bool:
        """Read into the guest's memory. False when that would have to wait for the disk, which then
        knows what comes."""
        done = 0
        while done < length:
            flags = 0 if wait else self._no_wait
            try:
                count = os.preadv(self._fd, views, offset + done, flags)
            except OSError as error:
                if not flags:
                    raise
                if error.errno == errno.EAGAIN:
                    os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)
                    return False
                self._no_wait = 0  # The file system cannot tell.
                continue
            if not count:
                raise OSError(errno.EIO, "the file is shorter than the disk")
            done += count
            if done < length:
                views = _behind(views, count)
        return True

    def _read_copies(self, offset: int, data: Sequence[Piece]) -> None:
        for gpa, length in data:
            self.memory.check(gpa, length, write=True)
        for gpa, length in data:
            part = os.pread(self._fd, length, offset)
            if len(part) != length:
                raise OSError(errno.EIO, "the file is shorter than the disk")
            self.memory.write(gpa, part)
            offset += length

    def _transfer_out(self, sector: int, data: list[Piece]) -> None:
        self._check_writable()
        length = _bytes(data)
        self._check(sector, data, length)
        offset = sector * SECTOR
        try:
            views = self.memory.scatter(data)
        except DmaError:
            self._write_copies(offset, data)
        else:
            done = 0
            while done < length:
                count = os.pwritev(self._fd, views, offset + done)
                done += count
                if done < length:
                    views = _behind(views, count)
        self._wrote()

    def _write_copies(self, offset: int, data: Sequence[Piece]) -> None:
        for gpa, length in data:
            self.memory.check(gpa, length, write=False)
        for gpa, length in data:
            self._write_all(self.memory.read(gpa, length), offset)
            offset += length

    def _write_all(self, data: bytes, offset: int) -> None:
        rest = memoryview(data)
        while rest:
            count = os.pwrite(self._fd, rest, offset)
            rest, offset = rest[count:], offset + count

    def _identify(self, data: list[Piece]) -> int:
        if _bytes(data) < ID_BYTES:
            raise _Failed(S_IOERR, f"there must be {ID_BYTES} bytes for the serial")
        serial = self.serial.encode().ljust(ID_BYTES, b"\0")
        for gpa, length in _cut(data, ID_BYTES)[0]:
            self.memory.write(gpa, serial[:length])
            serial = serial[length:]
        return ID_BYTES

    def _discard(self, data: list[Piece]) -> None:
        for sector, count, _ in self._ranges(data, F_DISCARD, _DISCARD_SECTORS, flags=0):
            # It is advice: where the file system cannot take it, nothing is lost.
            self._fallocate(FALLOC_FL_PUNCH_HOLE, sector, count)
        self._wrote()

    def _write_zeroes(self, data: list[Piece]) -> None:
        for sector, count, flags in self._ranges(data, F_WRITE_ZEROES, _ZERO_SECTORS, flags=UNMAP):
            mode = FALLOC_FL_PUNCH_HOLE if flags & UNMAP else FALLOC_FL_ZERO_RANGE
            if not self._fallocate(mode, sector, count):
                at, end = sector * SECTOR, (sector + count) * SECTOR
                for begin in range(at, end, len(_ZEROS)):
                    self._write_all(_ZEROS[: end - begin], begin)
        self._wrote()

    def _fallocate(self, mode: int, sector: int, count: int) -> bool:
        """Whether the file system could do it."""
        try:
            fallocate(self._fd, mode | FALLOC_FL_KEEP_SIZE, sector * SECTOR, count * SECTOR)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
            return False
        return True

    def _ranges(
        self, data: list[Piece], feature: int, most: int, *, flags: int
    ) -> list[tuple[int, int, int]]:
        """The ranges of a request, all of them judged: (sector, sectors, flags). None is empty."""
        if not self.negotiated & feature:
            raise _Failed(S_UNSUPP, "discard and write zeroes must be negotiated")
        self._check_writable()
        size = _bytes(data)
        if not 0 < size <= _RANGES * _RANGE.size or size % _RANGE.size:
            raise _Failed(S_IOERR, f"there must be 1 to {_RANGES} ranges, not {size} bytes")
        ranges = list(_RANGE.iter_unpack(self._gather(data)))
        for sector, count, given in ranges:
            if given & ~flags:
                raise _Failed(S_UNSUPP, f"a range's flags must be among {flags:#x}, not {given:#x}")
            if count > most or sector + count > self._sectors:
                raise _Failed(
                    S_IOERR,
                    f"a range must be up to {most} sectors of the disk's {self._sectors}, not "
                    f"{count} at {sector}",
                )
        return [each for each in ranges if each[1]]

    def _check(self, sector: int, data: list[Piece], length: int) -> None:
        """Refuse a transfer of `length` bytes that is not inside the disk, or not cut as it may."""
        if length % SECTOR or sector + length // SECTOR > self._sectors:
            raise _Failed(
                S_IOERR,
                f"a request must be whole sectors of the disk's {self._sectors}, not {length} "
                f"bytes at {sector}",
            )
        if len(data) > _SEGMENTS or (length > _SEGMENT and max(data, key=_LENGTH)[1] > _SEGMENT):
            raise _Failed(
                S_IOERR,
                f"a request's data must be up to {_SEGMENTS} pieces of up to {_SEGMENT} bytes",
            )

    def _check_writable(self) -> None:
        if self.readonly:
            raise _Failed(S_IOERR, "a read-only disk must not be written")

    def _wrote(self) -> None:
        """Something was written: in write-through mode it is on the disk before that is told."""
        features = self.negotiated
        # 5.2.6.2: a driver that knows of no flush counts on having none to do.
        cached = self._writeback if features & F_CONFIG_WCE else features & F_FLUSH
        if not cached:
            os.fdatasync(self._fd)

    @writeback.on_write
    def _write_writeback(self, value: int) -> None:
        if self.negotiated & F_CONFIG_WCE and value <= 1:
            self._writeback = value
        else:
            self.faults.note("virtio", "writeback must be negotiated, and be written with 0 or 1")
            self.writeback = self._writeback

    def _gather(self, pieces: list[Piece]) -> bytes:
        if len(pieces) == 1:
            return self.memory.read(*pieces[0])
        return b"".join([self.memory.read(gpa, length) for gpa, length in pieces])


def _bytes(pieces: Iterable[Piece]) -> int:
    return sum([length for _, length in pieces])


def _cut(pieces: list[Piece], count: int) -> tuple[list[Piece], list[Piece]]:
    """The first `count` bytes, and what is behind them. Raises Broken if there are not as many."""
    if pieces and pieces[0][1] == count:  # As drivers do it.
        return pieces[:1], pieces[1:]
    first: list[Piece] = []
    for number, (gpa, length) in enumerate(pieces):
        if length > count:
            rest = [(gpa + count, length - count), *pieces[number + 1 :]]
            return [*first, (gpa, count)] if count else first, rest
        first.append((gpa, length))
        count -= length
    if count:
        raise Broken("a request must begin with its header")
    return first, []


def _behind(views: Views, count: int) -> Views:
    """What of the views is behind their first `count` bytes."""
    for number, view in enumerate(views):
        if count < len(view):
            return [view[count:], *views[number + 1 :]]
        count -= len(view)
    return []
