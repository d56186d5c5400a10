# SPDX-License-Identifier: MIT
"""Client: what a VMM does, in Python, for tests and for `callgate probe`. Works with any server.

with Client("/tmp/adder.sock") as client:
    client.read(Region.CONFIG, 0, 4)
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from mmap import PROT_READ, PROT_WRITE, mmap
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from callgate.backends.vfio_user import channel as channels
from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.channel import Channel, Disconnected, Message, RequestError
from callgate.backends.vfio_user.protocol import Command, DmaFlag, RegionFlag
from callgate.errors import BackendError, DmaError
from callgate.gate.abi import PAGE
from callgate.memory import GuestMemory

_REPLY = 1 << 16
"""Bytes of the longest reply with a list in it that we ask for at first (`argsz`)."""
_MOST_IO_FDS = 1000
"""Entries of one region's list that we take: KVM has room for no more on one bus."""
_NO_FD = 0xFFFF_FFFF


@dataclass(frozen=True)
class RegionInfo:
    """DEVICE_GET_REGION_INFO: `areas` are the (offset, size) that `fd` maps, at `offset` + theirs.

    `fd` is -1 when the server shares nothing; else the caller's to close. What the server says of
    areas may be wrong: `load` and `map` look before they touch the file.
    """

    index: int
    size: int
    flags: RegionFlag
    offset: int = 0
    areas: tuple[tuple[int, int], ...] = ()
    fd: int = -1

    def load(self, offset: int, count: int) -> bytes | None:
        """`count` bytes of the region from its file; None where the file does not hold them.

        By pread: a file that shrinks meanwhile must not kill this process, as a mapping would.
        """
        if not any(at <= offset and offset + count <= at + size for at, size in self.areas):
            return None
        if not self._holds(offset, count):
            return None
        try:
            data = os.pread(self.fd, count, self.offset + offset)
        except OSError:
            return None
        return data if len(data) == count else None

    def map(self, offset: int, size: int, *, write: bool = False) -> mmap:
        """The file's pages behind an area. Raises BackendError where there are none.

        Whoever touches them trusts the server not to shrink its file.
        """
        if offset % PAGE or self.offset % PAGE or size <= 0 or offset + size > self.size:
            raise BackendError(
                f"An area to map must be whole pages of its region, not {size:#x} bytes at "
                f"{offset:#x} of {self.size:#x}"
            )
        if not self._holds(offset, size):
            raise BackendError("An area to map must have a file with as many bytes behind it")
        try:
            prot = PROT_READ | PROT_WRITE if write else PROT_READ
            return mmap(self.fd, size, prot=prot, offset=self.offset + offset)
        except (OSError, ValueError) as error:
            raise BackendError(f"The server's file must be one to map: {error}") from error

    def _holds(self, offset: int, count: int) -> bool:
        """Whether the file is one of memory, and long enough."""
        if self.fd < 0:
            return False
        file = os.fstat(self.fd)
        return stat.S_ISREG(file.st_mode) and self.offset + offset + count <= file.st_size


@dataclass(frozen=True)
class IoFd:
    """An entry of DEVICE_GET_REGION_IO_FDS; `fd` is the caller's to close, -1 if there is none."""

    offset: int
    size: int
    type: int
    flags: int
    datamatch: int
    fd: int


class Client:
    """A connection to a vfio-user server, with the version agreed on; a `with` block ends it.

    `path` is a UNIX socket, or a socket that is connected. `capabilities` are what is proposed, the
    usual ones if left out. The server's requests for memory are answered from `memory`; without it
    they are refused. Every method raises RequestError when the server refuses (its `errno` says
    why), TimeoutError when it does not answer, and Disconnected when it is gone, or when what it
    answers is malformed, which ends the connection. Raises BackendError when nobody serves `path`,
    or when no version and capabilities can be agreed on.

    `version` and `capabilities` are then what the server answered.
    """

    def __init__(
        self,
        path: Path | str | socket.socket,
        *,
        memory: GuestMemory | None = None,
        version: tuple[int, int] = (p.MAJOR, p.MINOR),
        capabilities: dict[str, Any] | None = None,
    ) -> None:
        self.memory = memory
        self.channel = Channel(path if isinstance(path, socket.socket) else _connect(path))
        self._twin: Channel | None = None
        self._answering: threading.Thread | None = None
        self.version = version
        try:
            self.capabilities = self._agree(version, capabilities)
        except BaseException:
            self.close()
            raise
        # A thread that reads our own socket makes each reply a hand-over from it. So without a twin
        # it waits until the server may ask, which is once it knows of memory.
        if memory is not None or self._twin is not None:
            self._answer_in_thread()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect. Harmless when repeated."""
        self.channel.close()
        if self._twin is not None:
            self._twin.close()
        if self._answering is not None:
            self._answering.join()
            self._answering = None

    # --- the device ------------------------------------------------------------------------------

    def info(self) -> tuple[int, int, int]:
        """DEVICE_GET_INFO: flags, number of regions, number of interrupt types."""
        request = p.DEVICE_INFO.pack(p.DEVICE_INFO.size, 0, 0, 0)
        _, flags, regions, irqs = self._ask(Command.DEVICE_GET_INFO, request, p.DEVICE_INFO)
        return flags, regions, irqs

    def region(self, index: int) -> RegionInfo:
        """DEVICE_GET_REGION_INFO, with what can be mapped."""

        def request(argsz: int) -> bytes:
            return p.REGION_INFO.pack(argsz, 0, index, 0, 0, 0)

        reply = self._ask_list(Command.DEVICE_GET_REGION_INFO, request, p.REGION_INFO)
        with _Closing(reply):
            _, flags, _, at, size, offset = self._unpack(p.REGION_INFO, reply)
            areas = self._areas(reply.payload, at) if flags & RegionFlag.CAPS else None
            fd = -1
            if flags & RegionFlag.MMAP and reply.fds:
                fd = reply.fds.pop(0)
                if areas is None:
                    areas = ((0, size),)
            return RegionInfo(index, size, RegionFlag(flags), offset, areas or (), fd)

    def io_fds(self, index: int) -> list[IoFd]:
        """DEVICE_GET_REGION_IO_FDS."""

        def request(argsz: int) -> bytes:
            return p.IO_FDS.pack(argsz, 0, index, 0)

        reply = self._ask_list(Command.DEVICE_GET_REGION_IO_FDS, request, p.IO_FDS)
        with _Closing(reply), ExitStack() as undo:
            argsz, _, _, count = self._unpack(p.IO_FDS, reply)
            if not count:
                return []
            # The specification lets entries grow, and says by `argsz` how far they are apart.
            step = (argsz - p.IO_FDS.size) // count
            end = p.IO_FDS.size + count * step
            if step < p.IO_FD.size or end > len(reply.payload) or count > _MOST_IO_FDS:
                self._broken(f"the server's list of {count} file descriptors does not fit its size")
            found = []
            for at in range(p.IO_FDS.size, end, step):
                entry = reply.payload[at : at + step]
                offset, size, fd_index, kind, flags, _, datamatch = p.IO_FD.unpack_from(entry)
                if step >= p.IO_FD.size + 8:
                    # libvfio-user's, since it has shadow ioeventfds: their offset comes before.
                    datamatch = int.from_bytes(entry[40:48], sys.byteorder)
                fd = -1
                if fd_index != _NO_FD:
                    if fd_index >= len(reply.fds):
                        self._broken(f"the server names file descriptor {fd_index}: none came")
                    fd = os.dup(reply.fds[fd_index])
                    undo.callback(os.close, fd)
                found.append(IoFd(offset, size, kind, flags, datamatch, fd))
            undo.pop_all()
            return found

    def irq(self, index: int) -> tuple[p.IrqInfo, int]:
        """DEVICE_GET_IRQ_INFO: flags and number of the interrupts of a type."""
        request = p.IRQ_INFO.pack(p.IRQ_INFO.size, 0, index, 0)
        _, flags, _, count = self._ask(Command.DEVICE_GET_IRQ_INFO, request, p.IRQ_INFO)
        return p.IrqInfo(flags), count

    def set_irqs(
        self,
        flags: int,
        index: int,
        start: int,
        count: int,
        data: bytes = b"",
        fds: Sequence[int] = (),
    ) -> None:
        """DEVICE_SET_IRQS: `flags` are a DATA and an ACTION (protocol.py). The fds stay ours."""
        size = p.IRQ_SET.size + len(data)
        request = p.IRQ_SET.pack(size, flags, index, start, count) + data
        self.channel.request(Command.DEVICE_SET_IRQS, request, fds).close()

    def reset(self) -> None:
        """DEVICE_RESET."""
        self.channel.request(Command.DEVICE_RESET).close()

    # --- regions ---------------------------------------------------------------------------------

    def read(self, region: int, offset: int, count: int) -> bytes:
        """REGION_READ: `count` bytes at `offset`."""
        head = p.REGION_ACCESS.pack(offset, region, count)
        reply = self.channel.request(Command.REGION_READ, head)
        reply.close()
        data = reply.payload[len(head) :]
        if reply.payload[: len(head)] != head or len(data) != count:
            self._broken(f"the server's reply to a read of {count} bytes does not fit it")
        return data

    def write(self, region: int, offset: int, data: bytes, *, posted: bool = False) -> None:
        """REGION_WRITE; `posted` waits for no reply."""
        request = p.REGION_ACCESS.pack(offset, region, len(data)) + data
        if posted:
            self.channel.send_command(Command.REGION_WRITE, request)
        else:
            self.channel.request(Command.REGION_WRITE, request).close()

    def write_multi(self, writes: Iterable[tuple[int, int, bytes]]) -> int:
        """REGION_WRITE_MULTI of (region, offset, 1 to 8 bytes); how many were done."""
        entries = [
            p.WRITE_ONE.pack(offset, region, len(data), data) for region, offset, data in writes
        ]
        request = p.WRITE_COUNT.pack(len(entries)) + b"".join(entries)
        (done,) = self._ask(Command.REGION_WRITE_MULTI, request, p.WRITE_COUNT)
        return int(done)

    # --- memory ----------------------------------------------------------------------------------

    def map(
        self,
        address: int,
        size: int,
        *,
        fd: int | None = None,
        offset: int = 0,
        flags: int = DmaFlag.READ | DmaFlag.WRITE,
    ) -> None:
        """DMA_MAP: by file, or by messages that `memory` answers."""
        if self._answering is None:
            self._answer_in_thread()
        request = p.DMA_MAP.pack(p.DMA_MAP.size, flags, offset, address, size)
        self.channel.request(Command.DMA_MAP, request, () if fd is None else (fd,)).close()

    def unmap(self, address: int, size: int) -> None:
        """DMA_UNMAP; the server uses the memory no more when this returns."""
        request = p.DMA_UNMAP.pack(p.DMA_UNMAP.size, 0, address, size)
        self.channel.request(Command.DMA_UNMAP, request).close()

    # --- inside ----------------------------------------------------------------------------------

    def _ask(self, command: int, request: bytes, layout: struct.Struct) -> tuple[Any, ...]:
        reply = self.channel.request(command, request)
        with _Closing(reply):
            return self._unpack(layout, reply)

    def _ask_list(
        self, command: int, request: Callable[[int], bytes], layout: struct.Struct
    ) -> Message:
        """The reply to `request(argsz)`, which is asked for again when it is longer than that."""
        reply = self.channel.request(command, request(_REPLY))
        with ExitStack() as undo:
            undo.callback(reply.close)
            (needed, *_) = self._unpack(layout, reply)
            if needed <= _REPLY:
                undo.pop_all()
                return reply
            if needed > p.MAX_TRANSFER:
                self._broken(
                    f"the server's reply to {p.command_name(command)} would be {needed} bytes"
                )
        return self.channel.request(command, request(needed))

    def _unpack(self, layout: struct.Struct, reply: Message) -> tuple[Any, ...]:
        if len(reply.payload) < layout.size:
            self._broken(f"the server's reply to {p.command_name(reply.command)} is too short")
        fields: tuple[Any, ...] = layout.unpack_from(reply.payload)
        return fields

    def _broken(self, sentence: str) -> NoReturn:
        """End the connection: whoever answers so cannot be trusted with the next question."""
        self.channel.close()
        raise Disconnected(sentence)

    def _areas(self, payload: bytes, at: int) -> tuple[tuple[int, int], ...] | None:
        """The areas of the sparse mmap capability, or None where the list at `at` has none."""
        seen: set[int] = set()
        while at:
            head = at + p.CAP_HEADER.size
            if at < p.REGION_INFO.size or head > len(payload) or at in seen:
                self._broken("the capabilities of the server's region are no list")
            seen.add(at)
            id, _, following = p.CAP_HEADER.unpack_from(payload, at)
            if id == p.CAP_SPARSE_MMAP:
                first = head + p.SPARSE_HEAD.size
                count = 0
                if first <= len(payload):
                    count, _ = p.SPARSE_HEAD.unpack_from(payload, head)
                end = first + count * p.SPARSE_AREA.size
                if end > len(payload):
                    self._broken("the server's list of areas to map is cut short")
                return tuple(p.SPARSE_AREA.iter_unpack(payload[first:end]))
            at = following
        return None

    def _agree(self, version: tuple[int, int], proposed: dict[str, Any] | None) -> dict[str, Any]:
        if proposed is None:
            proposed = {
                "max_msg_fds": p.MAX_FDS,
                "max_data_xfer_size": p.MAX_TRANSFER,
                "max_dma_maps": p.MAX_MAPS,
                "pgsizes": PAGE,
                "write_multiple": True,
                "twin_socket": {"supported": True},
            }
        data = json.dumps({"capabilities": proposed}).encode() + b"\0"
        reply = self.channel.request(Command.VERSION, p.VERSION_HEAD.pack(*version) + data)
        with _Closing(reply):
            major, minor = self._unpack(p.VERSION_HEAD, reply)
            if major != version[0] or minor > version[1]:
                raise BackendError(
                    f"The server must speak version {version[0]}.{version[1]} or less, "
                    f"not {major}.{minor}"
                )
            text = reply.payload[p.VERSION_HEAD.size :].partition(b"\0")[0]
            agreed = _capabilities(text)
            max_fds = agreed.get("max_msg_fds", 1)
            if type(max_fds) is not int or max_fds < 0:
                raise BackendError(f"The server's max_msg_fds must be a number, not {max_fds!r}")
            self.channel.max_fds = max_fds
            self.version = (major, minor)
            twin = agreed.get("twin_socket")
            if isinstance(twin, dict) and twin.get("supported") is True:
                index = twin.get("fd_index")
                if type(index) is not int or not 0 <= index < len(reply.fds):
                    raise BackendError("The server must pass its twin socket, and did not")
                self._twin = _twin(reply.fds.pop(index))
            return agreed

    def _answer_in_thread(self) -> None:
        thread = threading.Thread(
            target=self._answer, args=(self._twin or self.channel,), daemon=True
        )
        thread.start()
        self._answering = thread

    def _answer(self, channel: Channel) -> None:
        """Answer the server's requests for memory until the connection ends."""
        try:
            while True:
                command = channel.next_command()
                if command is not None:
                    with _Closing(command):
                        self._answer_one(channel, command)
        except Disconnected:
            pass

    def _answer_one(self, channel: Channel, command: Message) -> None:
        memory, payload, size = self.memory, command.payload, p.DMA_ACCESS.size
        reply, number = b"", 0
        try:
            if command.command not in (Command.DMA_READ, Command.DMA_WRITE) or len(payload) < size:
                number = errno.EINVAL
            else:
                address, count = p.DMA_ACCESS.unpack_from(payload)
                if memory is None:
                    raise DmaError("no memory to read or write")
                if command.command == Command.DMA_READ:
                    if count > p.MAX_TRANSFER:
                        raise DmaError("too much at once")
                    reply = payload[:size] + memory.read(address, count)
                else:
                    if len(payload) != size + count:
                        raise DmaError("a count that does not fit")
                    memory.write(address, payload[size:])
                    reply = p.DMA_WRITTEN.pack(address, count)
        except DmaError:
            number = errno.EFAULT
        if command.flags & p.NO_REPLY:
            return
        if number:
            channel.send_error(command, number)
        else:
            channel.send_reply(command, reply)


class _Closing:
    """A `with` block that closes a message's file descriptors, those that nobody took."""

    def __init__(self, message: Message) -> None:
        self._message = message

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        self._message.close()


def _connect(path: Path | str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        # A server that accepts nobody would let us wait for ever once its queue is full.
        connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", round(channels.TIMEOUT), 0)
        )
        connection.connect(os.fspath(path))
    except BlockingIOError:
        connection.close()
        raise BackendError(f"The server at {path} must accept clients, and does not") from None
    except (OSError, ValueError) as error:
        connection.close()
        words = error.strerror if isinstance(error, OSError) else None
        raise BackendError(f"A vfio-user server must listen at {path}: {words or error}") from error
    return connection


def _capabilities(text: bytes) -> dict[str, Any]:
    """The capabilities in a VERSION reply's text; there may be none."""
    try:
        data = json.loads(text or b"{}")
    except (ValueError, RecursionError) as error:
        raise BackendError(f"The server's version data must be JSON: {error}") from error
    capabilities = data.get("capabilities", {}) if isinstance(data, dict) else None
    if not isinstance(capabilities, dict):
        raise BackendError("The server's version data must be an object with capabilities")
    return capabilities


def _twin(fd: int) -> Channel:
    """The server's own channel for commands, made of a file descriptor that it passed."""
    try:
        twin = socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        raise BackendError("The server must pass a socket as its twin socket") from None
    try:
        if (twin.family, twin.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
            raise BackendError("The server must pass a UNIX stream socket as its twin socket")
        return Channel(twin)
    except BaseException:
        twin.close()
        raise


__all__ = ["Client", "Disconnected", "IoFd", "RegionInfo", "RequestError"]
