# SPDX-License-Identifier: MIT
"""DMA maps: the guest's memory, as far as the client shares it (vfio-user, DMA_MAP and DMA_UNMAP).

    DMA_MAP with a file whose size is sealed    mapped: views without copies
    DMA_MAP with any other file                 read and written through the file: copies
    DMA_MAP without a file                      DMA_READ and DMA_WRITE messages: copies, slow

Memory is mapped only when its file can never shrink, since a load behind the end of a file ends
this process. QEMU's memory-backend-memfd seals its files; memory of other clients gets the seal
here where its maker left that open.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fcntl import F_ADD_SEALS, F_GET_SEALS, F_GETFL, F_SEAL_SHRINK, fcntl
from mmap import ALLOCATIONGRANULARITY, MAP_SHARED, PROT_READ, PROT_WRITE, mmap
from threading import Lock
from typing import TypeAlias

from callgate.backends.vfio_user.channel import Disconnected, Message, RequestError
from callgate.backends.vfio_user.protocol import (
    DMA_ACCESS,
    DMA_WRITTEN,
    MAX_MAPS,
    Command,
    DmaFlag,
)
from callgate.backends.vfio_user.refused import Refused
from callgate.errors import DmaError, VmmGone
from callgate.gate.abi import PAGE
from callgate.memory import LIMIT, GuestMemory, Slot

GRACE = 1.0
"""Seconds that an unmap waits for whoever still uses the memory."""
_STEP = 0.001
_ACCESS = (DmaFlag.READ, DmaFlag.READ | DmaFlag.WRITE)
READ = 1 << 16
"""Bytes that a client is asked for at once: QEMU (11.1) loses what of a reply its socket does not
take at once, which by Linux' defaults is what passes 208 KiB."""
Request: TypeAlias = Callable[[int, bytes], Message]
MAPPED = 1 << 44
"""Bytes that one client's files may take of our address space, which other clients need too."""


class MappedSlot(Slot):
    """Memory that is mapped here."""

    __slots__ = ("_from", "_pages")

    def __init__(self, gpa: int, length: int, fd: int, offset: int, *, readonly: bool) -> None:
        protection = PROT_READ if readonly else PROT_READ | PROT_WRITE
        # Whole pages: the processor's, which on some hosts are larger than those of the protocol,
        # or the huge ones that the file is made of.
        page = max(ALLOCATIONGRANULARITY, os.fstatvfs(fd).f_bsize)
        start = offset // page * page
        end = min(-(-(offset + length) // page) * page, os.fstat(fd).st_size)
        self._from = offset - start
        self._pages = mmap(fd, end - start, flags=MAP_SHARED, prot=protection, offset=start)
        super().__init__(gpa, length, None, readonly=readonly)
        self.reopen()

    def close(self) -> bool:
        """Unmap; False while somebody holds a view."""
        assert self.view is not None
        try:
            self.view.release()
            self._pages.close()
        except BufferError:
            return False
        return True

    def reopen(self) -> bool:
        """Be usable again after `close` returned False; True, since nobody else can end it."""
        with memoryview(self._pages) as whole:
            self.view = whole[self._from : self._from + self.length]
        return True


class _CopiedSlot(Slot):
    """Memory that is reached by copies: `close` waits for those that are being made."""

    __slots__ = ("_closed", "_ended", "_lock", "_users")

    def __init__(self, gpa: int, length: int, *, readonly: bool) -> None:
        super().__init__(gpa, length, None, readonly=readonly)
        self._lock = Lock()
        self._users = 0
        self._closed = False
        self._ended = False

    def close(self) -> bool:
        """Let nobody use it from now on; False while somebody still does."""
        with self._lock:
            self._closed = True
            return self._settle()

    def reopen(self) -> bool:
        """Be usable again after `close` returned False; False if the last user ended it."""
        with self._lock:
            self._closed = self._ended
            return not self._ended

    @contextmanager
    def _use(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise self.gone()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                self._settle()

    def _settle(self) -> bool:
        if self._closed and not self._users and not self._ended:
            self._ended = True
            self._end()
        return self._ended

    def _end(self) -> None:
        """Give back what it is made of."""


class FileSlot(_CopiedSlot):
    """Memory in a file that could shrink: read and written by system calls, which then fail."""

    __slots__ = ("_fd", "_offset")

    def __init__(self, gpa: int, length: int, fd: int, offset: int, *, readonly: bool) -> None:
        super().__init__(gpa, length, readonly=readonly)
        self._fd = os.dup(fd)
        self._offset = offset

    def read(self, offset: int, length: int) -> bytes:
        """See `Slot`. Raises DmaError when the file does not hold the bytes."""
        with self._use():
            try:
                data = os.pread(self._fd, length, self._offset + offset)
            except OSError as error:
                raise DmaError(f"{self!r} could not be read: {error.strerror}") from error
        if len(data) != length:
            raise DmaError(f"{self!r} could not be read: its file is too short")
        return data

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See `Slot`. Raises DmaError when the file does not take the bytes."""
        with self._use():
            try:
                done = os.pwrite(self._fd, data, self._offset + offset)
            except OSError as error:
                raise DmaError(f"{self!r} could not be written: {error.strerror}") from error
        if done != len(data):
            raise DmaError(f"{self!r} could not be written whole")

    def _end(self) -> None:
        os.close(self._fd)


class MessageSlot(_CopiedSlot):
    """Memory that the client keeps to itself and reads and writes for us."""

    __slots__ = ("_limit", "_request")

    def __init__(
        self, gpa: int, length: int, request: Request, limit: int, *, readonly: bool
    ) -> None:
        super().__init__(gpa, length, readonly=readonly)
        self._request = request
        self._limit = limit

    def close(self) -> bool:
        """Let nobody use it from now on. What was asked for already is the client's to give or to
        refuse, and QEMU does neither before it has the reply to its unmap."""
        super().close()
        return True

    def read(self, offset: int, length: int) -> bytes:
        """See `Slot`. Raises DmaError when the client does not give the bytes."""
        parts = []
        limit = min(self._limit, READ)
        for at in range(0, length, limit):
            request = self.gpa + offset + at, min(limit, length - at)
            reply = self._ask(Command.DMA_READ, DMA_ACCESS.pack(*request))
            size = DMA_ACCESS.size
            if len(reply) != size + request[1] or DMA_ACCESS.unpack_from(reply) != request:
                raise DmaError(f"The client's reply to DMA_READ does not fit {request}")
            parts.append(reply[size:])
        return b"".join(parts)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See `Slot`. Raises DmaError when the client does not take the bytes."""
        for at in range(0, len(data), self._limit):
            part = bytes(data[at : at + self._limit])
            request = self.gpa + offset + at, len(part)
            reply = self._ask(Command.DMA_WRITE, DMA_ACCESS.pack(*request) + part)
            if len(reply) < DMA_WRITTEN.size or DMA_WRITTEN.unpack_from(reply) != request:
                raise DmaError(f"The client's reply to DMA_WRITE does not fit {request}")

    def _ask(self, command: Command, payload: bytes) -> bytes:
        with self._use():
            try:
                reply = self._request(command, payload)
            except Disconnected as error:
                raise VmmGone(f"{self!r}: {error}") from error
            except (RequestError, TimeoutError) as error:
                raise DmaError(f"{self!r}: {error}") from error
            reply.close()
            return reply.payload


class DmaMaps:
    """The maps of one client, which are the slots of `memory`.

    `request` asks the client for memory of which it shares no file, and returns its reply.
    `warn(kind, sentence)` learns why memory could not be mapped.
    """

    def __init__(
        self,
        memory: GuestMemory,
        request: Request,
        limit: int,
        warn: Callable[[str, str], None],
    ) -> None:
        self._memory = memory
        self._request = request
        self._limit = limit
        self._warn = warn
        self._maps: dict[int, MappedSlot | FileSlot | MessageSlot] = {}
        self.by_messages = False
        """Whether the client keeps writable memory to itself: RAM, and not only ROM."""

    def map(self, address: int, size: int, flags: int, offset: int, fd: int | None) -> None:
        """Add a map. `fd` stays the caller's. Raises Refused."""
        if flags not in _ACCESS:
            raise Refused(errno.EINVAL, f"a DMA map must be readable, not have flags {flags:#x}")
        if size == 0 or (address | size | offset) % PAGE or address + size > LIMIT:
            raise Refused(
                errno.EINVAL,
                f"a DMA map must be whole pages of {PAGE} bytes that end at or below 2^64, not "
                f"{size:#x} bytes at {address:#x}, offset {offset:#x}",
            )
        if len(self._maps) >= MAX_MAPS:
            raise Refused(errno.ENOSPC, f"there must be no more than {MAX_MAPS} DMA maps")
        if fd is not None and size + self._mapped() > MAPPED:
            raise Refused(
                errno.ENOSPC, f"files must be mapped up to {MAPPED:#x} bytes, not {size:#x} more"
            )
        if self._memory.overlaps(address, size):
            raise Refused(
                errno.EEXIST, f"the DMA map of {size:#x} bytes at {address:#x} overlaps another"
            )
        readonly = not flags & DmaFlag.WRITE
        slot: MappedSlot | FileSlot | MessageSlot
        if fd is None:
            slot = MessageSlot(address, size, self._request, self._limit, readonly=readonly)
            self.by_messages |= not readonly
        else:
            slot = self._of_file(address, size, fd, offset, readonly)
        self._maps[address] = slot
        self._memory.insert(slot)

    def unmap(self, address: int, size: int) -> None:
        """Take a map away once nobody uses it. Raises Refused, with the map still there."""
        slot = self._maps.get(address)
        if slot is None or slot.length != size:
            raise Refused(
                errno.ENOENT,
                f"an unmap must name a map as it was made, not {size:#x} bytes at {address:#x}",
            )
        self._memory.remove(address)
        deadline = time.monotonic() + GRACE
        while not slot.close():
            if time.monotonic() >= deadline and slot.reopen():
                self._memory.insert(slot)
                raise Refused(
                    errno.EBUSY,
                    f"the device still holds a view of {slot!r}: it must drop what `memory.map` "
                    "gave it when it is done",
                )
            time.sleep(_STEP)
        del self._maps[address]

    def unmap_all(self) -> None:
        """Take every map away that nobody uses. Raises Refused when some are left."""
        for address, slot in list(self._maps.items()):
            self.unmap(address, slot.length)

    def close(self) -> None:
        """Take all maps away. A view that a device still holds keeps its bytes, and only those."""
        for address, slot in self._maps.items():
            self._memory.remove(address)
            slot.close()
        self._maps.clear()

    def _mapped(self) -> int:
        return sum(slot.length for slot in self._maps.values() if isinstance(slot, MappedSlot))

    def _of_file(
        self, address: int, size: int, fd: int, offset: int, readonly: bool
    ) -> MappedSlot | FileSlot:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Refused(errno.EINVAL, "the file of a DMA map must be memory or a regular file")
        if offset + size > found.st_size:
            raise Refused(
                errno.EINVAL,
                f"the file of a DMA map must hold its {size:#x} bytes at {offset:#x}, and has "
                f"{found.st_size:#x}",
            )
        try:
            if not readonly and fcntl(fd, F_GETFL) & os.O_ACCMODE != os.O_RDWR:
                raise Refused(errno.EACCES, "the file of a writable DMA map must be open for both")
            if _sealed(fd):
                return MappedSlot(address, size, fd, offset, readonly=readonly)
            self._warn(
                "unsealed memory",
                "the client's memory is in a file that could shrink, so it is copied, not mapped: "
                "memory-backend-memfd gives QEMU memory of a sealed size",
            )
            return FileSlot(address, size, fd, offset, readonly=readonly)
        except (OSError, ValueError) as error:
            number = errno.EINVAL
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENOMEM):
                number = error.errno
            raise Refused(number, f"the file of a DMA map cannot be used: {error}") from error


def _sealed(fd: int) -> bool:
    """Whether the file can never shrink, from now on at the latest."""
    try:
        if fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK:
            return True
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK)
    except OSError:
        return False
    return True
