# SPDX-License-Identifier: MIT
"""A vfio-user server that answers what it is told to, right or wrong."""

import array
import json
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.protocol import Command, RegionFlag

MAPPED = RegionFlag.READ | RegionFlag.WRITE | RegionFlag.MMAP | RegionFlag.CAPS

Answer = Callable[["Fake", int, bytes], None]


class Fake:
    """A server in a thread: `answers` say by command what it does with (server, id, payload).

    Its one client comes by `near`, or by `path`. A command without an answer ends the connection.
    """

    def __init__(self, path: Path | None = None, **answers: Answer) -> None:
        self.near, self.far = socket.socketpair()
        self._listener: socket.socket | None = None
        if path is not None:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(path))
            self._listener.listen()
        self.answers = {Command[name].value: answer for name, answer in answers.items()}
        self.answers.setdefault(Command.VERSION, version())
        self.came: list[tuple[int, bytes]] = []
        self.arrived = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Fake":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            self.far.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self.far.close()
        self.near.close()
        if self._listener is not None:
            self._listener.close()

    def _run(self) -> None:
        with suppress(OSError):
            if self._listener is not None:
                self.far.close()
                self.far, _ = self._listener.accept()
            while head := self.take(p.HEADER.size):
                id, command, size, flags, _ = p.HEADER.unpack(head)
                payload = self.take(size - len(head))
                self.came.append((command, payload))
                self.arrived.set()
                if flags & p.NO_REPLY:
                    continue
                answer = self.answers.get(command)
                if answer is None:
                    self.far.shutdown(socket.SHUT_RDWR)
                    return
                answer(self, id, payload)

    def take(self, size: int) -> bytes:
        return self.far.recv(size, socket.MSG_WAITALL) if size else b""

    def send(
        self,
        id: int,
        command: int,
        payload: bytes = b"",
        fds: tuple[int, ...] = (),
        *,
        flags: int = p.REPLY,
        error: int = 0,
    ) -> None:
        head = p.HEADER.pack(id, command, p.HEADER.size + len(payload), flags, error)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.far.sendmsg([head + payload], rights)


def reply(
    command: Command, payload: bytes = b"", *, fds: tuple[int, ...] = (), error: int | None = None
) -> Answer:
    """Always the same."""

    def answer(server: Fake, id: int, _: bytes) -> None:
        flags = p.REPLY if error is None else p.REPLY | p.ERROR
        server.send(id, command, payload, fds, flags=flags, error=error or 0)

    return answer


def version(
    capabilities: object = None,
    *,
    text: bytes | None = None,
    number: tuple[int, int] = (0, 0),
    fds: tuple[int, ...] = (),
) -> Answer:
    if text is None:
        text = json.dumps({"capabilities": capabilities or {}}).encode() + b"\0"
    return reply(Command.VERSION, p.VERSION_HEAD.pack(*number) + text, fds=fds)


def region(
    *,
    flags: int = MAPPED,
    at: int = p.REGION_INFO.size,
    size: int = 0x4000,
    tail: bytes = b"",
    argsz: int | None = None,
    fds: tuple[int, ...] = (),
) -> Answer:
    head = p.REGION_INFO.pack(
        p.REGION_INFO.size + len(tail) if argsz is None else argsz, flags, 0, at, size, 0x1000
    )
    return reply(Command.DEVICE_GET_REGION_INFO, head + tail, fds=fds)


def sparse(*areas: tuple[int, int], count: int | None = None, following: int = 0) -> bytes:
    return (
        p.CAP_HEADER.pack(p.CAP_SPARSE_MMAP, 1, following)
        + p.SPARSE_HEAD.pack(len(areas) if count is None else count, 0)
        + b"".join(p.SPARSE_AREA.pack(*area) for area in areas)
    )


def entry(fd_index: int = 0, *, offset: int = 0, step: int = p.IO_FD.size, match: int = 0) -> bytes:
    if step == 48:  # libvfio-user's: the shadow's offset lies before datamatch.
        head = struct.pack("=QQIIII", offset, 4, fd_index, 2, 0, 1)
        return head + struct.pack("=QQ", 0xAA, match)
    return p.IO_FD.pack(offset, 4, fd_index, 0, 0, 0, match).ljust(step, b"\xee")


def io_fds(*entries: bytes, count: int | None = None, argsz: int | None = None,
           fds: tuple[int, ...] = ()) -> Answer:  # fmt: skip
    body = b"".join(entries)
    head = p.IO_FDS.pack(
        p.IO_FDS.size + len(body) if argsz is None else argsz,
        0, 0, len(entries) if count is None else count,
    )  # fmt: skip
    return reply(Command.DEVICE_GET_REGION_IO_FDS, head + body, fds=fds)
