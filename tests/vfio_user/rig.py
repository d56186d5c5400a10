# SPDX-License-Identifier: MIT
"""A device, its server, and a client of a few lines that shares no code with either.

The client here says what it is told to say, right or wrong; `callgate.backends.vfio_user.client` is
the one for users.
"""

import array
import gc
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.protocol import Command
from callgate.backends.vfio_user.server import Server
from callgate.call import BufferIn, call, u64
from callgate.device import Device
from callgate.interrupt import Interrupt
from callgate.pci import config as space
from callgate.register import Bar, Register

REGISTERS, RAM, TABLE, GATE, PORTS = 0, 1, 2, 3, 5
"""BARs of `Board`, whose interrupts are `done`, `failed` and the gate's own."""
CAPABILITIES = {
    "max_msg_fds": 16,
    "max_data_xfer_size": 1 << 20,
    "pgsizes": 4096,
    "write_multiple": True,
}


class Board(Device):
    """A register of each kind, memory, interrupts, calls, DMA."""

    id = 0x1AF4, 0x10F1
    frames = 4

    registers = Bar(0, 0x100)
    ram = Bar(1, 0x2000, ram=True)

    value = Register(0x00, reset=5)
    wide = Register(0x08, width=64)
    start = Register(0x10, access="w")
    state = Register(0x14, access="r")
    level = Register(0x18, access="w")
    done = Interrupt()
    failed = Interrupt()

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.on_start: Callable[[int], object] = self.seen.append
        self.on_state: Callable[[], int] = lambda: len(self.seen)
        self.on_reset: Callable[[], object] = lambda: None

    @call
    def add(self, a: u64, b: u64) -> u64:
        return (a + b) % 2**64

    @call
    def total(self, data: BufferIn) -> u64:
        return sum(data.view)

    @start.on_write
    def _start(self, value: int) -> None:
        self.on_start(value)

    @state.on_read
    def _state(self) -> int:
        return self.on_state()

    @level.on_write
    def _level(self, value: int) -> None:
        if value:
            self.done.trigger()
        else:
            self.done.deassert()

    def reset(self) -> None:
        self.on_reset()


@dataclass
class Answer:
    """A message that the server sent."""

    id: int
    command: int
    flags: int
    error: int
    payload: bytes
    fds: list[int]

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []


class Peer:
    """A client's end."""

    def __init__(self, place: Path | socket.socket, *, agree: bool = True) -> None:
        if isinstance(place, socket.socket):
            self.socket = place
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(str(place))
        self.socket.settimeout(20)
        self._id = 0
        self._fds: list[int] = []
        if agree:
            self.agree()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes, whatever they mean."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self.socket.sendmsg([data], rights)
        if sent < len(data):
            self.socket.sendall(data[sent:])

    def message(self, command: int, payload: bytes = b"", flags: int = 0) -> bytes:
        self._id = self._id + 1 & 0xFFFF
        return p.HEADER.pack(self._id, command, p.HEADER.size + len(payload), flags, 0) + payload

    def post(self, command: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a command that is not to be answered."""
        self.raw(self.message(command, payload, p.NO_REPLY), fds)

    def ask(self, command: int, payload: bytes = b"", fds: Sequence[int] = ()) -> Answer:
        """Send a command; the answer is the next message, and fits it."""
        self.raw(self.message(command, payload), fds)
        answer = self.receive()
        assert (answer.id, answer.command) == (self._id, command)
        assert answer.flags & p.TYPE == p.REPLY
        if answer.flags & p.ERROR:
            assert answer.payload == b""
            assert answer.fds == []
        return answer

    def get(self, command: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """`ask`, where success and no file are expected."""
        answer = self.ask(command, payload, fds)
        assert not answer.flags & p.ERROR, os.strerror(answer.error)
        assert answer.fds == []
        return answer.payload

    def refused(self, command: int, payload: bytes = b"", fds: Sequence[int] = ()) -> int:
        """`ask`, where an error is expected: its number."""
        answer = self.ask(command, payload, fds)
        assert answer.flags & p.ERROR
        return answer.error

    def receive(self) -> Answer:
        head, fds = self._exactly(p.HEADER.size)
        id, command, size, flags, error = p.HEADER.unpack(head)
        payload, more = self._exactly(size - p.HEADER.size)
        return Answer(id, command, flags, error, payload, fds + more)

    def _exactly(self, count: int) -> tuple[bytes, list[int]]:
        data, fds = b"", array.array("i")
        while len(data) < count:
            chunk, ancillary, _, _ = self.socket.recvmsg(count - len(data), 4096)
            if not chunk:
                raise EOFError
            for _, _, rights in ancillary:
                fds.frombytes(rights)
            data += chunk
        return data, fds.tolist()

    def gone(self) -> bool:
        """Wait until the server has closed the connection; True, or a time-out."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True

    # --- messages that are right -----------------------------------------------------------------

    def agree(self, **capabilities: Any) -> dict[str, Any]:
        text = json.dumps({"capabilities": CAPABILITIES | capabilities}).encode() + b"\0"
        answer = self.ask(Command.VERSION, p.VERSION_HEAD.pack(0, 0) + text)
        assert not answer.flags & p.ERROR, os.strerror(answer.error)
        self._fds += answer.fds
        assert p.VERSION_HEAD.unpack_from(answer.payload) == (0, 0)
        text = answer.payload[p.VERSION_HEAD.size :]
        assert text[-1:] == b"\0"
        found: dict[str, Any] = json.loads(text[:-1])["capabilities"]
        return found

    def twin(self, agreed: dict[str, Any]) -> "Peer":
        """The other connection, which `agree(twin_socket={"supported": True})` brought."""
        assert agreed["twin_socket"]["supported"] is True
        fd = self._fds.pop(agreed["twin_socket"]["fd_index"])
        return Peer(socket.socket(fileno=fd), agree=False)

    def read(self, region: int, offset: int, count: int = 4) -> int:
        head = p.REGION_ACCESS.pack(offset, region, count)
        payload = self.get(Command.REGION_READ, head)
        assert payload[: len(head)] == head
        assert len(payload) == len(head) + count
        return int.from_bytes(payload[len(head) :], "little")

    def write(self, region: int, offset: int, value: int, count: int = 4) -> None:
        payload = access(region, offset, value, count)
        assert self.get(Command.REGION_WRITE, payload) == payload[: p.REGION_ACCESS.size]

    def write_posted(self, region: int, offset: int, value: int, count: int = 4) -> None:
        self.post(Command.REGION_WRITE, access(region, offset, value, count))

    def map(
        self, address: int, size: int, fd: int | None = None, *, offset: int = 0, flags: int = 3
    ) -> None:
        payload = p.DMA_MAP.pack(p.DMA_MAP.size, flags, offset, address, size)
        assert self.get(Command.DMA_MAP, payload, () if fd is None else (fd,)) == b""

    def unmap(self, address: int, size: int) -> None:
        payload = p.DMA_UNMAP.pack(p.DMA_UNMAP.size, 0, address, size)
        assert self.get(Command.DMA_UNMAP, payload) == payload

    def set_irqs(
        self, flags: int, irq: int, start: int, count: int, data: bytes = b"", fds: Any = ()
    ) -> None:
        assert (
            self.get(Command.DEVICE_SET_IRQS, irq_set(flags, irq, start, count, data), fds) == b""
        )

    def master(self) -> None:
        """Let the device reach memory."""
        self.write(p.Region.CONFIG, space.COMMAND, space.COMMAND_MEMORY | space.COMMAND_MASTER, 2)


def access(region: int, offset: int, value: int, count: int = 4) -> bytes:
    """The payload of a REGION_WRITE."""
    return p.REGION_ACCESS.pack(offset, region, count) + value.to_bytes(count, "little")


def irq_set(flags: int, irq: int, start: int, count: int, data: bytes = b"") -> bytes:
    """The payload of a SET_IRQS."""
    return p.IRQ_SET.pack(p.IRQ_SET.size + len(data), flags, irq, start, count) + data


class Rig:
    """A server in this process, and what belongs to it."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.path = folder / "s"
        self.device: Board = options.pop("device", None) or Board()
        self.came = threading.Semaphore(0)
        self.went = threading.Semaphore(0)
        self.server = Server(
            self.device,
            self.path,
            on_client=lambda here: (self.came if here else self.went).release(),
            **options,
        )

    def __enter__(self) -> Self:
        self.server.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.close()

    def connect(self, *, agree: bool = True) -> Peer:
        return Peer(self.path, agree=agree)

    def leave(self, peer: Peer) -> None:
        """Close a connection, and wait until the server is through with it."""
        while self.went.acquire(blocking=False):
            pass
        peer.close()
        assert self.went.acquire(timeout=20)

    def is_fine(self) -> None:
        """The next client is served."""
        with self.connect() as peer:
            assert peer.read(p.Region.CONFIG, 0) == 0x10F1_1AF4

    @property
    def counts(self) -> dict[str, int]:
        return self.server.faults.counts


def memory(size: int, *, seals: bool = True) -> int:
    """A file of memory, as a client has it; `seals`: it can be sealed, and is not yet."""
    fd = os.memfd_create("guest", os.MFD_CLOEXEC | (os.MFD_ALLOW_SEALING if seals else 0))
    os.ftruncate(fd, size)
    return fd


def event() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def count(fd: int) -> int:
    """How often an eventfd was signalled since the last time."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def open_fds() -> int:
    gc.collect()  # What an earlier test left is not to be counted.
    return len(os.listdir("/proc/self/fd"))


def until(condition: Callable[[], object], timeout: float = 20) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.0005)


U32 = struct.Struct("=I")
