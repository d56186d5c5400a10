# SPDX-License-Identifier: MIT
"""The client against servers that lie, break off, or say nothing. No file stays open, ever."""

import errno
import gc
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.vfio_user.fake_server import (
    MAPPED,
    Answer,
    Fake,
    entry,
    io_fds,
    region,
    reply,
    sparse,
    version,
)

from callgate.backends.vfio_user import channel as channels
from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.client import (
    Client,
    Disconnected,
    RegionInfo,
    RequestError,
)
from callgate.backends.vfio_user.protocol import Command, Region, RegionFlag
from callgate.errors import BackendError
from callgate.memory import GuestMemory


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    """No test leaves a file open."""
    gc.collect()  # What other tests left must not go meanwhile.
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that wait for a time-out to end."""
    monkeypatch.setattr(channels, "TIMEOUT", 0.2)
    monkeypatch.setattr(channels, "_LOOK", 0.05)


@pytest.fixture
def file() -> Iterator[int]:
    """A file of memory, of 5 pages."""
    fd = os.memfd_create("test")
    os.truncate(fd, 5 * 4096)
    yield fd
    os.close(fd)


# --- agreeing -------------------------------------------------------------------------------------


def test_what_was_agreed_on_can_be_read() -> None:
    with (
        Fake(VERSION=version({"max_msg_fds": 3, "of their own": [1]})) as server,
        Client(server.near) as client,
    ):
        assert client.version == (0, 0)
        assert client.capabilities == {"max_msg_fds": 3, "of their own": [1]}
        assert client.channel.max_fds == 3
    ((_, sent),) = server.came
    proposed = json.loads(sent[p.VERSION_HEAD.size :].rstrip(b"\0"))["capabilities"]
    assert proposed["twin_socket"] == {"supported": True}


@pytest.mark.parametrize("text", [b"", b"\0", b"{}\0", b'{"capabilities": {}}\0junk'])
def test_version_data_may_be_missing(text: bytes) -> None:
    with Fake(VERSION=version(text=text)) as server, Client(server.near) as client:
        assert client.capabilities == {}
        assert client.channel.max_fds == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (version(number=(1, 0)), "must speak version 0.0 or less, not 1.0"),
        (version(number=(0, 1)), "must speak version 0.0 or less, not 0.1"),
        (version(text=b"{\0"), "must be JSON"),
        (version(text=b"\xff\xfe\xfd\0"), "must be JSON"),
        (version(text=b"[" * 100_000 + b"\0"), "must be JSON"),
        (version(text=b"[]\0"), "must be an object"),
        (version(text=b"7\0"), "must be an object"),
        (version(text=b'{"capabilities": [1]}\0'), "must be an object"),
        (version({"max_msg_fds": "many"}), "max_msg_fds must be a number, not 'many'"),
        (version({"max_msg_fds": -1}), "max_msg_fds"),
        (version({"max_msg_fds": True}), "max_msg_fds"),
        (version({"max_msg_fds": 1.5}), "max_msg_fds"),
        (version({"max_msg_fds": None}), "max_msg_fds"),
    ],
)
def test_a_version_that_cannot_be_agreed_on(answer: Answer, words: str) -> None:
    with Fake(VERSION=answer) as server, pytest.raises(BackendError, match=words):
        Client(server.near)


def test_a_version_reply_cut_short() -> None:
    with (
        Fake(VERSION=reply(Command.VERSION, b"\0\0\0")) as server,
        pytest.raises(Disconnected, match="reply to VERSION is too short"),
    ):
        Client(server.near)


# --- the twin socket ------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1, -1, 1 << 40, "0", None, 0.0, False, [0]])
def test_a_twin_socket_that_did_not_come(index: object) -> None:
    twin = {"supported": True, "fd_index": index}
    with (
        Fake(VERSION=version({"twin_socket": twin})) as server,
        pytest.raises(BackendError, match="must pass its twin socket, and did not"),
    ):
        Client(server.near)


def test_a_twin_socket_without_an_index_is_none(file: int) -> None:
    answer = version({"twin_socket": {"supported": True}}, fds=(file,))
    with Fake(VERSION=answer) as server, pytest.raises(BackendError, match="must pass its twin"):
        Client(server.near)


@pytest.mark.parametrize("twin", [{}, {"supported": False, "fd_index": 0}, [], "yes", None, 1])
def test_no_twin_socket(twin: object, file: int) -> None:
    with (
        Fake(VERSION=version({"twin_socket": twin}, fds=(file, file))) as server,
        Client(server.near),
    ):
        pass


def _pipe() -> Iterator[int]:
    near, far = os.pipe()
    yield near
    os.close(near)
    os.close(far)


def _socket(*kind: int) -> Iterator[int]:
    with socket.socket(*kind) as made:
        yield made.fileno()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_pipe, "must pass a socket"),
        (lambda: _socket(socket.AF_INET, socket.SOCK_STREAM), "must pass a UNIX stream socket"),
        (lambda: _socket(socket.AF_UNIX, socket.SOCK_DGRAM), "must pass a UNIX stream socket"),
        (lambda: _socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), "must pass a UNIX stream socket"),
    ],
)
def test_a_twin_socket_that_is_something_else(
    make: Callable[[], Iterator[int]], words: str
) -> None:
    for fd in make():
        twin = {"twin_socket": {"supported": True, "fd_index": 0}}
        with (
            Fake(VERSION=version(twin, fds=(fd,))) as server,
            pytest.raises(BackendError, match=words),
        ):
            Client(server.near)


def test_a_twin_socket_that_nobody_holds_at_the_other_end() -> None:
    for fd in _socket(socket.AF_UNIX, socket.SOCK_STREAM):
        twin = {"twin_socket": {"supported": True, "fd_index": 0}}
        answer = reply(Command.DEVICE_GET_INFO, p.DEVICE_INFO.pack(16, 3, 9, 5))
        with (
            Fake(VERSION=version(twin, fds=(fd,)), DEVICE_GET_INFO=answer) as server,
            Client(server.near) as client,
        ):
            assert client.info() == (3, 9, 5)


# --- what the server asks for ---------------------------------------------------------------------


class Twin:
    """The server's end of a twin socket."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        # Whoever gets no answer fails, and does not hang.
        self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 10, 0))
        capability = {"supported": True, "fd_index": 1}
        spare = self.ours.fileno()
        self.answer = version({"twin_socket": capability}, fds=(spare, self.theirs.fileno(), spare))

    def __enter__(self) -> "Twin":
        return self

    def __exit__(self, *exc: object) -> None:
        self.ours.close()
        self.theirs.close()

    def ask(self, command: int, payload: bytes, *, flags: int = 0) -> None:
        size = p.HEADER.size + len(payload)
        self.ours.sendall(p.HEADER.pack(7, command, size, flags, 0) + payload)

    def answered(self) -> tuple[int, bytes]:
        """The errno and payload of the next reply."""
        head = self.ours.recv(p.HEADER.size, socket.MSG_WAITALL)
        id, _, size, flags, error = p.HEADER.unpack(head)
        assert id == 7
        assert flags == (p.REPLY | p.ERROR if error else p.REPLY)
        rest = size - len(head)
        return error, self.ours.recv(rest, socket.MSG_WAITALL) if rest else b""


def access(address: int, count: int) -> bytes:
    return p.DMA_ACCESS.pack(address, count)


def test_requests_for_memory_are_answered_on_the_twin_socket() -> None:
    memory = GuestMemory()
    memory.add(0x1000, bytearray(range(256)))
    with Twin() as twin, Fake(VERSION=twin.answer) as server, Client(server.near, memory=memory):
        twin.ask(Command.DMA_READ, access(0x1010, 4))
        assert twin.answered() == (0, access(0x1010, 4) + bytes([16, 17, 18, 19]))
        twin.ask(Command.DMA_WRITE, access(0x1000, 2) + b"ab")
        assert twin.answered() == (0, p.DMA_WRITTEN.pack(0x1000, 2))
        assert memory.read(0x1000, 3) == b"ab\x02"
        # A command without a reply, then one with: the first answer is the second's.
        twin.ask(Command.DMA_READ, access(0x1000, 1), flags=p.NO_REPLY)
        twin.ask(Command.DMA_READ, access(0x1001, 1))
        assert twin.answered() == (0, access(0x1001, 1) + b"b")


@pytest.mark.parametrize(
    ("command", "payload", "number"),
    [
        (Command.DMA_READ, access(0x10F0, 32), errno.EFAULT),
        (Command.DMA_READ, access(0x1000, (1 << 64) - 1), errno.EFAULT),
        (Command.DMA_READ, access((1 << 64) - 1, 2), errno.EFAULT),
        (Command.DMA_READ, b"short", errno.EINVAL),
        (Command.DMA_WRITE, access(0x1000, 4) + b"abc", errno.EFAULT),
        (Command.DMA_WRITE, access(0x1000, 4) + b"abcde", errno.EFAULT),
        (Command.DMA_WRITE, access(0x9000, 1) + b"a", errno.EFAULT),
        (Command.VERSION, access(0x1000, 4), errno.EINVAL),
        (999, access(0x1000, 4), errno.EINVAL),
    ],
)
def test_a_request_that_is_wrong_is_refused(command: int, payload: bytes, number: int) -> None:
    memory = GuestMemory()
    memory.add(0x1000, bytearray(256))
    with Twin() as twin, Fake(VERSION=twin.answer) as server, Client(server.near, memory=memory):
        twin.ask(command, payload)
        assert twin.answered() == (number, b"")


def test_without_memory_requests_are_refused() -> None:
    with Twin() as twin, Fake(VERSION=twin.answer) as server, Client(server.near):
        twin.ask(Command.DMA_READ, access(0, 4))
        assert twin.answered() == (errno.EFAULT, b"")


def test_without_a_twin_socket_a_request_is_answered_while_the_client_waits_for_its_own() -> None:
    asked: list[bytes] = []

    def reset(server: Fake, id: int, payload: bytes) -> None:
        server.send(5, Command.DMA_READ, access(0, 2), flags=p.COMMAND)
        asked.append(server.take(p.HEADER.size))
        server.send(id, Command.DEVICE_RESET)

    with (
        Fake(DMA_MAP=reply(Command.DMA_MAP), DEVICE_RESET=reset) as server,
        Client(server.near) as client,
    ):
        client.map(0, 4096)
        client.reset()
    refused = p.HEADER.pack(5, Command.DMA_READ, 16, p.REPLY | p.ERROR, errno.EFAULT)
    assert asked == [refused]


# --- replies --------------------------------------------------------------------------------------


def info(server: Fake) -> tuple[int, int, int]:
    with Client(server.near) as client:
        return client.info()


def test_an_error_reply_names_command_and_errno() -> None:
    with (
        Fake(DEVICE_GET_INFO=reply(Command.DEVICE_GET_INFO, error=errno.EPERM)) as server,
        pytest.raises(RequestError, match="refused DEVICE_GET_INFO with EPERM") as caught,
    ):
        info(server)
    assert caught.value.errno == errno.EPERM


@pytest.mark.parametrize(("number", "words"), [(0, "no errno"), (0xFFFFFFFF, "errno 4294967295")])
def test_an_error_reply_with_a_strange_errno(number: int, words: str) -> None:
    with (
        Fake(DEVICE_GET_INFO=reply(Command.DEVICE_GET_INFO, error=number)) as server,
        pytest.raises(RequestError, match=f"refused DEVICE_GET_INFO with {words}") as caught,
    ):
        info(server)
    assert caught.value.errno == number


def test_an_error_reply_may_carry_files_and_they_are_closed(file: int) -> None:
    with (
        Fake(
            DEVICE_GET_REGION_INFO=reply(
                Command.DEVICE_GET_REGION_INFO, b"more", fds=(file, file), error=errno.EIO
            )
        ) as server,
        Client(server.near) as client,
        pytest.raises(RequestError),
    ):
        client.region(0)


def test_a_reply_to_another_command_ends_the_connection() -> None:
    with (
        Fake(DEVICE_GET_INFO=reply(Command.DEVICE_RESET, bytes(16))) as server,
        Client(server.near) as client,
    ):
        with pytest.raises(Disconnected, match="to DEVICE_GET_INFO says it is one to DEVICE_R"):
            client.info()
        with pytest.raises(Disconnected):
            client.reset()


def test_replies_to_nothing_are_dropped_with_their_files(file: int) -> None:
    def answer(server: Fake, id: int, payload: bytes) -> None:
        for wrong in (id + 1, id - 1 & 0xFFFF, 0x1234):
            server.send(wrong, Command.DEVICE_GET_INFO, bytes(16), (file,))
        server.send(id, Command.DEVICE_GET_INFO, p.DEVICE_INFO.pack(16, 1, 2, 3))
        server.send(id, Command.DEVICE_GET_INFO, p.DEVICE_INFO.pack(16, 4, 5, 6), (file,))

    with Fake(DEVICE_GET_INFO=answer) as server, Client(server.near) as client:
        assert client.info() == (1, 2, 3)
        assert client.info() == (1, 2, 3)


def _silent(server: Fake, id: int, payload: bytes) -> None:
    pass


def _dribble(server: Fake, id: int, payload: bytes) -> None:
    """A byte now and then, for as long as somebody listens."""
    server.far.settimeout(0.01)
    for byte in p.HEADER.pack(id, Command.DEVICE_GET_INFO, 1 << 16, p.REPLY, 0) + bytes(1 << 16):
        server.far.send(bytes([byte]))
        with suppress(TimeoutError):
            assert not server.far.recv(1), "the client must wait, not send"
            return


def _flood(server: Fake, id: int, payload: bytes) -> None:
    """Replies to nobody, without an end."""
    while True:
        server.send(id + 1, Command.DEVICE_GET_INFO, bytes(16))


@pytest.mark.parametrize("answer", [_silent, _dribble, _flood])
def test_a_server_that_does_not_answer(answer: Answer, hurry: None) -> None:
    with (
        Fake(DEVICE_GET_INFO=answer) as server,
        pytest.raises(TimeoutError, match=r"did not answer DEVICE_GET_INFO in 0\.2 s"),
    ):
        info(server)


def test_a_server_that_commands_without_an_end() -> None:
    def answer(server: Fake, id: int, payload: bytes) -> None:
        while True:
            server.send(id, Command.DMA_READ, access(0, 1), flags=p.COMMAND)

    with (
        Fake(DEVICE_GET_INFO=answer) as server,
        pytest.raises(Disconnected, match="more commands without waiting"),
    ):
        info(server)


def _raw(data: bytes) -> Answer:
    def answer(server: Fake, id: int, payload: bytes) -> None:
        server.far.sendall(data)
        server.far.shutdown(socket.SHUT_WR)

    return answer


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "closed the connection"),
        (b"\0" * 7, "in the middle of a message"),
        (p.HEADER.pack(0, 4, 32, p.REPLY, 0), "in the middle of a message"),
        (p.HEADER.pack(0, 4, 15, p.REPLY, 0), "size must be 16 to"),
        (p.HEADER.pack(0, 4, 0, p.REPLY, 0), "size must be 16 to"),
        (p.HEADER.pack(0, 4, 0xFFFFFFFF, p.REPLY, 0), "size must be 16 to"),
        (p.HEADER.pack(0, 4, 16, 7, 0), "type must be 0 or 1"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "size must be 16 to"),
    ],
)
def test_a_stream_that_is_no_messages(data: bytes, words: str) -> None:
    with Fake(VERSION=_raw(data)) as server, pytest.raises(Disconnected, match=words):
        Client(server.near)


def test_short_replies() -> None:
    with (
        Fake(
            DEVICE_GET_INFO=reply(Command.DEVICE_GET_INFO, bytes(15)),
        ) as server,
        pytest.raises(Disconnected, match="reply to DEVICE_GET_INFO is too short"),
    ):
        info(server)
    with (
        Fake(DEVICE_GET_IRQ_INFO=reply(Command.DEVICE_GET_IRQ_INFO)) as server,
        Client(server.near) as client,
        pytest.raises(Disconnected, match="is too short"),
    ):
        client.irq(0)
    with (
        Fake(REGION_WRITE_MULTI=reply(Command.REGION_WRITE_MULTI)) as server,
        Client(server.near) as client,
        pytest.raises(Disconnected, match="is too short"),
    ):
        client.write_multi([(0, 0, b"a")])


def test_flags_that_nobody_knows_are_kept() -> None:
    answer = reply(Command.DEVICE_GET_IRQ_INFO, p.IRQ_INFO.pack(16, 0xF0000001, 0, 9))
    with Fake(DEVICE_GET_IRQ_INFO=answer) as server, Client(server.near) as client:
        flags, count = client.irq(0)
    assert (int(flags), count) == (0xF0000001, 9)


# --- regions --------------------------------------------------------------------------------------


def ask_region(answer: Answer) -> RegionInfo:
    with Fake(DEVICE_GET_REGION_INFO=answer) as server, Client(server.near) as client:
        return client.region(3)


def test_a_region_with_areas(file: int) -> None:
    other = p.CAP_HEADER.pack(0x4321, 1, p.REGION_INFO.size + p.CAP_HEADER.size)
    tail = other + sparse((0, 0x1000), (0x2000, 0x1000))
    told = ask_region(region(tail=tail, fds=(file, file)))
    os.close(told.fd)
    assert told.areas == ((0, 0x1000), (0x2000, 0x1000))
    assert (told.index, told.size, told.flags, told.offset) == (3, 0x4000, MAPPED, 0x1000)


def test_a_region_without_a_list_is_mapped_whole(file: int) -> None:
    told = ask_region(region(flags=MAPPED & ~RegionFlag.CAPS, fds=(file,)))
    os.close(told.fd)
    assert told.areas == ((0, 0x4000),)


def test_a_list_of_no_areas_means_none(file: int) -> None:
    told = ask_region(region(tail=sparse(), fds=(file,)))
    os.close(told.fd)
    assert told.areas == ()


def test_a_file_that_the_flags_deny_is_closed(file: int) -> None:
    told = ask_region(region(flags=RegionFlag.READ, fds=(file, file, file)))
    assert (told.fd, told.areas) == (-1, ())


def test_a_region_whose_file_did_not_come() -> None:
    assert ask_region(region(flags=RegionFlag.MMAP)).fd == -1
    told = ask_region(region(tail=sparse((0, 0x1000))))
    assert (told.fd, told.areas) == (-1, ((0, 0x1000),))


def test_flags_of_a_region_that_nobody_knows() -> None:
    assert int(ask_region(region(flags=0xF000_0001)).flags) == 0xF000_0001


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (reply(Command.DEVICE_GET_REGION_INFO, bytes(31)), "is too short"),
        (region(at=4, tail=sparse((0, 1))), "are no list"),
        (region(at=0xFFFF_FFFF), "are no list"),
        (region(), "are no list"),
        (region(tail=p.CAP_HEADER.pack(9, 1, p.REGION_INFO.size)), "are no list"),
        (region(tail=p.CAP_HEADER.pack(9, 1, 1 << 31)), "are no list"),
        (region(tail=p.CAP_HEADER.pack(p.CAP_SPARSE_MMAP, 1, 0)), "cut short"),
        (region(tail=sparse((0, 1), count=2)), "cut short"),
        (region(tail=sparse((0, 1), count=0xFFFF_FFFF)), "cut short"),
        (region(argsz=0xFFFF_FFFF, flags=0), "would be 4294967295 bytes"),
    ],
)
def test_a_region_that_is_malformed(answer: Answer, words: str) -> None:
    with Fake(DEVICE_GET_REGION_INFO=answer) as server, Client(server.near) as client:
        with pytest.raises(Disconnected, match=words):
            client.region(0)
        with pytest.raises(Disconnected):
            client.info()


def test_a_region_that_is_malformed_leaves_no_file(file: int) -> None:
    with pytest.raises(Disconnected):
        ask_region(region(tail=sparse((0, 1), count=9), fds=(file, file)))


def test_a_list_that_is_longer_than_asked_for_is_asked_for_again(file: int) -> None:
    tail = sparse(*((at * 0x1000, 0x1000) for at in range(5000)))
    full = p.REGION_INFO.size + len(tail)
    asked = []

    def answer(server: Fake, id: int, payload: bytes) -> None:
        (argsz,) = struct.unpack_from("=I", payload)
        asked.append(argsz)
        if argsz < full:
            region(argsz=full)(server, id, payload)
        else:
            region(tail=tail, fds=(file,))(server, id, payload)

    told = ask_region(answer)
    os.close(told.fd)
    assert len(told.areas) == 5000
    assert asked == [1 << 16, full]


def test_a_server_that_always_wants_more_is_not_asked_a_third_time(file: int) -> None:
    asked = []

    def answer(server: Fake, id: int, payload: bytes) -> None:
        asked.append(payload)
        region(argsz=(1 << 16) + len(asked), flags=MAPPED, fds=(file,))(server, id, payload)

    with pytest.raises(Disconnected, match="are no list"):
        ask_region(answer)
    assert len(asked) == 2


# --- a region's file ------------------------------------------------------------------------------


def test_a_file_is_read_where_its_areas_are(file: int) -> None:
    os.pwrite(file, b"first", 0x1000)
    os.pwrite(file, b"last!", 0x4FFB)
    told = RegionInfo(0, 0x10000, MAPPED, 0x1000, ((0, 0x1000), (0x3000, 0x9000)), file)
    assert told.load(0, 5) == b"first"
    assert told.load(0x3FFB, 5) == b"last!"
    assert told.load(0xFFF, 2) is None, "runs out of its area"
    assert told.load(0x1800, 2) is None, "is in no area"
    assert told.load(0x4000, 1) is None, "lies behind the file's end"
    with told.map(0x3000, 0x1000) as pages:
        assert pages[0xFFB:] == b"last!"
    with told.map(0, 0x1000, write=True) as pages:
        pages[:5] = b"FIRST"
    assert told.load(0, 5) == b"FIRST"


@pytest.mark.parametrize(
    ("offset", "size", "words"),
    [
        (0x4000, 0x1000, "as many bytes"),
        (0, 0x5000, "as many bytes"),
        (0x10, 0x1000, "whole pages"),
        (0, 0, "whole pages"),
        (0xF000, 0x2000, "whole pages of its region"),
        (1 << 63, 0x1000, "whole pages of its region"),
    ],
)
def test_what_the_file_does_not_hold_is_not_mapped(
    file: int, offset: int, size: int, words: str
) -> None:
    told = RegionInfo(0, 0x10000, MAPPED, 0x1000, ((0, 0x10000),), file)
    with pytest.raises(BackendError, match=words):
        told.map(offset, size)


def test_a_file_that_is_no_memory_is_neither_read_nor_mapped() -> None:
    for fd in _pipe():
        told = RegionInfo(0, 0x1000, MAPPED, 0, ((0, 0x1000),), fd)
        assert told.load(0, 4) is None
        with pytest.raises(BackendError):
            told.map(0, 0x1000)
    assert RegionInfo(0, 0x1000, MAPPED, 0, ((0, 0x1000),)).load(0, 4) is None


def test_a_file_that_may_not_be_mapped(tmp_path: Path) -> None:
    name = tmp_path / "pages"
    name.write_bytes(bytes(4096))
    fd = os.open(name, os.O_WRONLY)
    told = RegionInfo(0, 0x1000, MAPPED, 0, ((0, 0x1000),), fd)
    assert told.load(0, 4) is None
    with pytest.raises(BackendError, match="must be one to map"):
        told.map(0, 0x1000)
    os.close(fd)


# --- I/O file descriptors -------------------------------------------------------------------------


def ask_io_fds(answer: Answer) -> list[Any]:
    with Fake(DEVICE_GET_REGION_IO_FDS=answer) as server, Client(server.near) as client:
        found = client.io_fds(0)
    for one in found:
        if one.fd >= 0:
            assert os.fstat(one.fd)
            os.close(one.fd)
    return found


def test_entries_share_files(file: int) -> None:
    found = ask_io_fds(io_fds(entry(1), entry(1, offset=4, match=9), fds=(file, file)))
    assert [(one.offset, one.size, one.datamatch) for one in found] == [(0, 4, 0), (4, 4, 9)]
    assert found[0].fd != found[1].fd


@pytest.mark.parametrize("step", [40, 48, 64])
def test_entries_are_as_far_apart_as_the_size_says(file: int, step: int) -> None:
    found = ask_io_fds(
        io_fds(
            entry(offset=8, step=step, match=1), entry(offset=16, step=step, match=2), fds=(file,)
        )
    )
    assert [one.offset for one in found] == [8, 16]
    if step < 64:
        assert [one.datamatch for one in found] == [1, 2]


def test_no_entries(file: int) -> None:
    assert ask_io_fds(io_fds()) == []
    assert ask_io_fds(io_fds(argsz=0, fds=(file,))) == []


def test_an_entry_without_a_file() -> None:
    (one,) = ask_io_fds(io_fds(entry(0xFFFF_FFFF)))
    assert one.fd == -1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (reply(Command.DEVICE_GET_REGION_IO_FDS, bytes(15)), "is too short"),
        (io_fds(entry(), count=2), "list of 2 file descriptors does not fit"),
        (io_fds(entry(), count=0xFFFF_FFFF), "does not fit"),
        (io_fds(count=1), "does not fit"),
        (io_fds(count=1, argsz=0), "does not fit"),
        (io_fds(entry()[:-1], count=1), "does not fit"),
        (io_fds(entry(), argsz=60), "does not fit"),
        (io_fds(*[entry(0xFFFF_FFFF)] * 1001), "list of 1001"),
    ],
)
def test_a_list_of_files_that_is_malformed(answer: Answer, words: str) -> None:
    with pytest.raises(Disconnected, match=words):
        ask_io_fds(answer)


def test_a_file_that_did_not_come_leaves_none_of_those_before_it(file: int) -> None:
    for last in (1, 7, 0xFFFF_FFFE):
        with pytest.raises(Disconnected, match=f"names file descriptor {last}: none came"):
            ask_io_fds(io_fds(entry(0), entry(0), entry(last), fds=(file,)))


# --- reads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        p.REGION_ACCESS.pack(0, 7, 4),
        p.REGION_ACCESS.pack(0, 7, 4) + b"abc",
        p.REGION_ACCESS.pack(0, 7, 4) + b"abcde",
        p.REGION_ACCESS.pack(1, 7, 4) + b"abcd",
        p.REGION_ACCESS.pack(0, 6, 4) + b"abcd",
        p.REGION_ACCESS.pack(0, 7, 2) + b"ab",
        p.REGION_ACCESS.pack(0, 7, 0xFFFFFFFF) + b"abcd",
    ],
)
def test_a_read_that_is_answered_with_something_else(payload: bytes, file: int) -> None:
    with (
        Fake(REGION_READ=reply(Command.REGION_READ, payload, fds=(file,))) as server,
        Client(server.near) as client,
        pytest.raises(Disconnected, match="a read of 4 bytes does not fit"),
    ):
        client.read(Region.CONFIG, 0, 4)


# --- connecting -----------------------------------------------------------------------------------


def test_nobody_listens(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with pytest.raises(BackendError, match=f"must listen at {path}: No such file"):
        Client(path)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with pytest.raises(BackendError, match="Connection refused"):
        Client(path)
    path.unlink()
    path.write_text("not a socket")
    with pytest.raises(BackendError, match="Connection refused"):
        Client(path)


@pytest.mark.parametrize("path", ["x" * 108, "a\0b", ""])
def test_no_path_of_a_socket(path: str) -> None:
    with pytest.raises(BackendError, match="must listen at"):
        Client(path)


def test_a_server_that_accepts_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "TIMEOUT", 1)
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as first:
        server.bind(path)
        server.listen(0)
        first.connect(path)
        with pytest.raises(BackendError, match="must accept clients, and does not"):
            Client(path)


def test_closing_twice_and_from_inside() -> None:
    with Twin() as twin, Fake(VERSION=twin.answer) as server:
        client = Client(server.near, memory=GuestMemory())
        with client:
            client.close()
        client.close()
        with pytest.raises(Disconnected):
            client.info()
