# SPDX-License-Identifier: MIT
"""Messages over one socket: framing, file descriptors, several threads, ends of all kinds."""

import array
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from tests.vfio_user.rig import Peer, event, open_fds, until

from callgate.backends.vfio_user import channel as channels
from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.channel import Channel, Closed, Disconnected, RequestError


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Peer]]:
    near, far = socket.socketpair()
    channel, peer = Channel(near), Peer(far, agree=False)
    yield channel, peer
    channel.close()
    peer.close()


@pytest.fixture
def channel(ends: tuple[Channel, Peer]) -> Channel:
    return ends[0]


@pytest.fixture
def peer(ends: tuple[Channel, Peer]) -> Peer:
    return ends[1]


def next_payload(channel: Channel) -> bytes:
    message = channel.next_command()
    assert message is not None
    message.close()
    return message.payload


# --- framing ------------------------------------------------------------------------------------


def test_byte_by_byte(channel: Channel, peer: Peer) -> None:
    data = peer.message(7, b"payload")

    def send() -> None:
        for at in range(len(data)):
            peer.raw(data[at : at + 1])

    sender = threading.Thread(target=send)
    sender.start()
    message = channel.next_command()
    sender.join()
    assert message is not None
    assert (message.id, message.command, message.payload) == (1, 7, b"payload")


def test_many_in_one_piece(channel: Channel, peer: Peer) -> None:
    peer.raw(b"".join(peer.message(1, bytes([number])) for number in range(100)))
    assert [next_payload(channel) for _ in range(100)] == [bytes([n]) for n in range(100)]


def test_the_longest(channel: Channel, peer: Peer) -> None:
    payload = os.urandom(p.MAX_MESSAGE - p.HEADER.size)
    sender = threading.Thread(target=lambda: peer.raw(peer.message(1, payload)))
    sender.start()
    assert next_payload(channel) == payload
    sender.join()


@pytest.mark.parametrize("size", [0, 1, 15, p.MAX_MESSAGE + 1, 1 << 31, 0xFFFF_FFFF])
def test_a_size_that_cannot_be(channel: Channel, peer: Peer, size: int) -> None:
    peer.raw(p.HEADER.pack(1, 1, size, 0, 0))
    with pytest.raises(Disconnected, match="size must be") as caught:
        channel.next_command()
    assert not isinstance(caught.value, Closed)
    assert peer.gone()
    with pytest.raises(Closed):
        channel.next_command()


@pytest.mark.parametrize("flags", [2, 15, 0xFFFF_FFFF])
def test_a_type_that_cannot_be(channel: Channel, peer: Peer, flags: int) -> None:
    peer.raw(peer.message(1, b"", flags))
    with pytest.raises(Disconnected, match="type must be"):
        channel.next_command()


@pytest.mark.parametrize("cut", [1, 15, 16, 19])
def test_an_end_in_the_middle(channel: Channel, peer: Peer, cut: int) -> None:
    peer.raw(peer.message(1, b"abcd")[:cut])
    peer.close()
    with pytest.raises(Disconnected, match="in the middle"):
        channel.next_command()


def test_an_end_between_messages(channel: Channel, peer: Peer) -> None:
    peer.raw(peer.message(1, b"last"))
    peer.close()
    assert next_payload(channel) == b"last"
    with pytest.raises(Closed):
        channel.next_command()


def test_a_time_out_leaves_the_stream_as_it_is(
    channel: Channel, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = peer.message(1, b"whole")
    peer.raw(data[:18])
    assert channel.next_command(0.01) is None
    peer.raw(data[18:])
    assert next_payload(channel) == b"whole"


# --- file descriptors ---------------------------------------------------------------------------


def files(channel: Channel) -> list[int]:
    """The inodes of the files that came with the next command; they are closed."""
    message = channel.next_command()
    assert message is not None
    inodes = [os.fstat(fd).st_ino for fd in message.fds]
    message.close()
    return inodes


@pytest.fixture
def distinct() -> Iterator[list[int]]:
    fds = [os.memfd_create(str(number)) for number in range(6)]
    before = open_fds()
    yield fds
    assert open_fds() == before
    for fd in fds:
        os.close(fd)


def inodes(fds: list[int]) -> list[int]:
    return [os.fstat(fd).st_ino for fd in fds]


def test_files_come_with_their_message(channel: Channel, peer: Peer, distinct: list[int]) -> None:
    peer.raw(peer.message(1))
    peer.raw(peer.message(1), distinct[:2])
    peer.raw(peer.message(1))
    peer.raw(peer.message(1), distinct[2:3])
    assert [len(files(channel)) for _ in range(4)] == [0, 2, 0, 1]


def test_each_message_gets_its_own_however_they_are_cut(
    channel: Channel, peer: Peer, distinct: list[int]
) -> None:
    """A message whose head came with files, and the next one with its own, in one read."""
    first, second = peer.message(1, b"first"), peer.message(1, b"second")
    peer.raw(first[:16], distinct[:2])
    peer.raw(first[16:])
    peer.raw(second, distinct[2:4])
    peer.raw(peer.message(1))
    peer.raw(peer.message(1)[:3], distinct[4:5])
    peer.raw(peer.message(1)[3:], distinct[5:6])
    assert files(channel) == inodes(distinct[:2])
    assert files(channel) == inodes(distinct[2:4])
    assert files(channel) == []
    assert files(channel) == inodes(distinct[4:6])


def test_a_long_message_keeps_the_files_of_its_head(
    channel: Channel, peer: Peer, distinct: list[int]
) -> None:
    def send() -> None:
        peer.raw(peer.message(1, bytes(300_000)), distinct[:1])
        peer.raw(peer.message(1), distinct[1:2])

    sender = threading.Thread(target=send)
    sender.start()
    assert files(channel) == inodes(distinct[:1])
    assert files(channel) == inodes(distinct[1:2])
    sender.join()


def test_files_are_closed_on_exec(channel: Channel, peer: Peer, distinct: list[int]) -> None:
    peer.raw(peer.message(1), distinct[:1])
    message = channel.next_command()
    assert message is not None
    assert not os.get_inheritable(message.fds[0])
    message.close()
    message.close()


@pytest.mark.parametrize("whole", [False, True])
def test_files_that_nobody_took_are_closed(
    peer: Peer, channel: Channel, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    fds = [event() for _ in range(3)]
    before = open_fds()
    data = peer.message(1, b"abcd")
    peer.raw(data if whole else data[:17], fds)
    peer.raw(peer.message(1)[: 16 if whole else 0] or b"")
    if whole:  # Read by another than who takes it, so that it is in the queue when all ends.
        monkeypatch.setattr(channels, "TIMEOUT", 0.01)
        with pytest.raises(TimeoutError):
            channel.request(1)
    else:
        assert channel.next_command(0.01) is None
    assert open_fds() == before + 3
    channel.close()
    assert open_fds() == before - 1
    for fd in fds:
        os.close(fd)


def test_more_files_than_any_message_may_have(channel: Channel, peer: Peer) -> None:
    bell = event()
    before = open_fds()
    data = peer.message(1, bytes(100))
    peer.raw(data[:20], [bell] * 253)
    peer.raw(data[20:40], [bell] * 253)
    with pytest.raises(Disconnected, match="file descriptors"):
        channel.next_command()
    assert open_fds() == before - 1
    os.close(bell)


def test_no_more_files_are_sent_than_the_peer_takes(channel: Channel) -> None:
    with pytest.raises(ValueError, match="takes 1"):
        channel.send_command(1, fds=[0, 0])


# --- ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["next", "request", "both"])
def test_close_wakes_everybody(channel: Channel, peer: Peer, what: str) -> None:
    ended: list[BaseException] = []

    def run(wait: object) -> None:
        try:
            wait()  # type: ignore[operator]
        except BaseException as error:
            ended.append(error)

    waits: list[Callable[[], object]]
    waits = [channel.next_command] if what == "next" else [lambda: channel.request(1)]
    if what == "both":
        waits = [channel.next_command, lambda: channel.request(1), lambda: channel.request(2)]
    threads = [threading.Thread(target=run, args=(wait,)) for wait in waits]
    for thread in threads:
        thread.start()
    until(lambda: channel._reading)
    channel.close()
    for thread in threads:
        thread.join(20)
    assert len(ended) == len(threads)
    assert all(isinstance(error, Closed | Disconnected) for error in ended)
    with pytest.raises(Closed):
        channel.next_command()
    with pytest.raises(Disconnected):
        channel.send_command(1)
    channel.close()


def test_close_at_any_moment_while_commands_come() -> None:
    for turn in range(60):
        near, far = socket.socketpair()
        channel = Channel(near)
        data = p.HEADER.pack(1, 1, 20, 0, 0) + b"abcd"
        far.sendall(data * 50)
        seen: list[BaseException] = []

        def read(channel: Channel = channel, seen: list[BaseException] = seen) -> None:
            try:
                while True:
                    assert channel.next_command() is not None
            except BaseException as ended:
                seen.append(ended)

        reader = threading.Thread(target=read)
        reader.start()
        time.sleep(turn % 7 * 1e-4)
        channel.close()
        reader.join(20)
        far.close()
        assert [type(error) for error in seen] == [Closed]


def test_a_peer_that_takes_nothing(
    channel: Channel, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "TIMEOUT", 0.2)
    channel._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, channels.timeval(0.1))
    with pytest.raises(Disconnected, match="took nothing"):
        channel.send_command(1, bytes(p.MAX_TRANSFER))
    with pytest.raises(Closed):
        channel.next_command()


def test_a_peer_that_takes_by_drops(
    channel: Channel, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "TIMEOUT", 0.2)
    ended: list[BaseException] = []

    def send() -> None:
        try:
            channel.send_command(1, bytes(p.MAX_TRANSFER))
        except BaseException as error:
            ended.append(error)

    sender = threading.Thread(target=send)
    sender.start()
    while sender.is_alive():
        peer.socket.recv(4096)
        sender.join(0.02)
    assert isinstance(ended[0], Disconnected)


def test_close_frees_a_sender(channel: Channel, peer: Peer) -> None:
    ended: list[BaseException] = []

    def send() -> None:
        try:
            channel.send_command(1, bytes(p.MAX_TRANSFER))
        except BaseException as error:
            ended.append(error)

    sender = threading.Thread(target=send)
    sender.start()
    until(channel._sending.locked)
    channel.close()
    sender.join(20)
    assert isinstance(ended[0], Disconnected)


def test_a_reader_that_fails_frees_a_sender(
    channel: Channel, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "TIMEOUT", 3600)  # It must not come to that.
    channel._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, channels.timeval(3600))

    def send() -> None:
        with suppress(Disconnected):
            channel.send_command(1, bytes(p.MAX_TRANSFER))

    sender = threading.Thread(target=send)
    sender.start()
    until(channel._sending.locked)
    peer.raw(bytes(16))
    with pytest.raises(Disconnected, match="size must be"):
        channel.next_command()
    sender.join(20)
    assert not sender.is_alive()


def test_left(channel: Channel, peer: Peer) -> None:
    assert not channel.left
    peer.raw(peer.message(1))
    assert not channel.left
    peer.close()
    assert channel.left
    channel.close()
    assert channel.left


# --- several threads ----------------------------------------------------------------------------


def test_threads_that_ask_while_commands_come(channel: Channel, peer: Peer) -> None:
    """Whoever reads, every reply finds its asker and every command its place."""
    asks, askers = 200, 4
    results: list[object] = []

    def ask(seed: int) -> None:
        try:
            for number in range(asks):
                payload = b"%d %d" % (seed, number)
                reply = channel.request(3, payload)
                assert reply.payload == payload[::-1]
            results.append(seed)
        except BaseException as error:
            results.append(error)

    def echo() -> None:
        for number in range(asks * askers):
            request = peer.receive()
            if number % 3 == 0:
                peer.raw(peer.message(9, b"%d" % number))
            size = p.HEADER.size + len(request.payload)
            head = p.HEADER.pack(request.id, request.command, size, p.REPLY, 0)
            peer.raw(head + request.payload[::-1])
        peer.raw(peer.message(9, b"end"))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(askers)]
    threads.append(threading.Thread(target=echo))
    for thread in threads:
        thread.start()
    came = []
    while (payload := next_payload(channel)) != b"end":
        came.append(int(payload))
    for thread in threads:
        thread.join(20)
    assert sorted(results, key=str) == list(range(askers))
    assert came == list(range(0, asks * askers, 3))


def test_who_reads_hands_over_when_he_has_what_he_wanted(channel: Channel, peer: Peer) -> None:
    """A follower must not sleep on once nobody reads: within 20 s it would not be here."""
    for _ in range(50):
        got: list[bytes] = []
        follower = threading.Thread(target=lambda got=got: got.append(next_payload(channel)))
        asker = threading.Thread(target=lambda: channel.request(3).close())
        asker.start()
        request = peer.receive()
        until(lambda: channel._reading)
        follower.start()
        began = time.monotonic()
        peer.raw(p.HEADER.pack(request.id, 3, 16, p.REPLY, 0))
        asker.join(20)
        peer.raw(peer.message(9, b"for the follower"))
        follower.join(20)
        assert got == [b"for the follower"]
        assert time.monotonic() - began < 0.9 * channels._LOOK


def test_a_reader_that_leaves_by_an_error_lets_others_see_it(channel: Channel, peer: Peer) -> None:
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            channel.next_command()
        except BaseException as error:
            ended.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: channel._reading)
    peer.raw(bytes(16))
    for thread in threads:
        thread.join(20)
    assert len(ended) == 3
    assert sum("size must be" in str(error) for error in ended) == 1
    assert sum(isinstance(error, Closed) for error in ended) == 2


def test_an_error_reply(channel: Channel, peer: Peer) -> None:
    bell = event()
    before = open_fds()

    def answer() -> None:
        request = peer.receive()
        head = p.HEADER.pack(request.id, request.command, 16, p.REPLY | p.ERROR, 13)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [bell]))]
        peer.socket.sendmsg([head], rights)

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(RequestError, match="EACCES") as caught:
        channel.request(3)
    assert caught.value.errno == 13
    thread.join()
    assert open_fds() == before
    os.close(bell)


@pytest.mark.parametrize("limit", ["QUEUED", "QUEUED_FDS"])
def test_a_flood_of_commands_that_nobody_takes(
    channel: Channel, peer: Peer, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(channels, limit, 4)
    bell = event()
    before = open_fds()
    peer.raw(peer.message(1), [bell] * 5)
    with pytest.raises(Disconnected, match="more commands"):
        channel.request(3)
    assert open_fds() == before - 1
    os.close(bell)


def test_commands_that_are_taken_count_no_more(
    channel: Channel, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "QUEUED", 1000)
    monkeypatch.setattr(channels, "QUEUED_FDS", 2)
    bell = event()
    for _ in range(20):
        peer.raw(peer.message(1, bytes(100)), [bell])
        next_payload(channel)
    os.close(bell)


def test_ids_are_not_given_twice(channel: Channel, peer: Peer) -> None:
    channel._next_id = 0xFFFF
    ids: list[int] = []

    def answer() -> None:
        requests = [peer.receive() for _ in range(3)]
        ids.extend(request.id for request in requests)
        for request in requests:
            peer.raw(p.HEADER.pack(request.id, request.command, 16, p.REPLY, 0))

    threads = [threading.Thread(target=lambda: channel.request(3).close()) for _ in range(3)]
    threads.append(threading.Thread(target=answer))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(ids) == [0, 1, 0xFFFF]
