# SPDX-License-Identifier: MIT
"""Clients that come and go, and the socket file."""

import gc
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from tests.vfio_user.rig import Board, Peer, Rig, access, event, memory, open_fds, until

from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user import server as servers
from callgate.backends.vfio_user.protocol import Command, Irq, Region
from callgate.backends.vfio_user.server import Server
from callgate.errors import BackendError, DmaError
from callgate.pci import config as space

# --- one client after another -------------------------------------------------------------------


def test_a_client_that_has_gone_leaves_a_device_that_was_reset(rig: Rig) -> None:
    before = open_fds()
    fd, bell = memory(0x1000), event()
    for _ in range(3):
        peer = rig.connect()
        assert peer.read(0, 0) == 5
        peer.write(0, 0, 77)
        peer.master()
        peer.map(0, 0x1000, fd)
        peer.set_irqs(p.DATA_EVENTFD | p.ACTION_TRIGGER, Irq.MSIX, 0, 1, fds=[bell])
        rig.leave(peer)
        assert rig.device.value == 5
        assert rig.server.memory.slots == ()
    os.close(fd)
    os.close(bell)
    assert open_fds() == before
    assert rig.counts == {}


def test_its_state_is_kept_where_that_was_asked_for(tmp_path: Path) -> None:
    with Rig(tmp_path, keep_state=True) as rig:
        peer = rig.connect()
        peer.write(0, 0, 77)
        peer.master()
        peer.map(0, 0x1000)
        rig.device.done.trigger()
        rig.leave(peer)
        assert rig.server.memory.slots == ()
        with rig.connect() as other:
            assert other.read(0, 0) == 77
            assert other.read(Region.CONFIG, space.COMMAND, 2) == 6


def test_a_client_that_is_killed(rig: Rig) -> None:
    before = open_fds()
    program = f"""
import socket, struct, sys, time
connection = socket.socket(socket.AF_UNIX)
connection.connect({str(rig.path)!r})
def ask(command, payload):
    connection.sendall(struct.pack("=HHIII", 0, command, 16 + len(payload), 0, 0) + payload)
    return connection.recv(65536)
ask(1, bytes(4))
ask(2, struct.pack("=IIQQQ", 32, 3, 0, 0, 0x1000))
connection.sendall(struct.pack("=HHIII", 0, 10, 100, 0, 0) + bytes(7))
print("ready", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        client.send_signal(signal.SIGKILL)
    assert rig.went.acquire(timeout=20)
    assert rig.counts == {"connection": 1}
    assert open_fds() == before
    rig.is_fine()


@pytest.mark.parametrize("cut", [1, 15, 16, 17, 31])
def test_an_end_in_the_middle_of_a_message(
    rig: Rig, caplog: pytest.LogCaptureFixture, cut: int
) -> None:
    peer = rig.connect()
    peer.raw(peer.message(Command.REGION_WRITE, access(0, 0, 1))[:cut])
    rig.leave(peer)
    assert rig.counts == {"connection": 1}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    rig.is_fine()


def test_an_end_before_the_first_message(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.leave(rig.connect(agree=False))
    assert caplog.records == []
    rig.is_fine()


@pytest.mark.parametrize(
    "data",
    [bytes(16), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\xff" * 64, p.HEADER.pack(0, 1, 15, 0, 0)],
)
@pytest.mark.parametrize("agree", [False, True])
def test_what_is_no_message_ends_the_connection(
    rig: Rig, caplog: pytest.LogCaptureFixture, data: bytes, agree: bool
) -> None:
    with rig.connect(agree=agree) as peer:
        peer.raw(data)
        assert peer.gone()
    until(lambda: caplog.records)
    assert len(caplog.records) == 1
    assert rig.counts == {"connection": 1}
    rig.is_fine()


def test_posted_writes_before_the_end_are_carried_out(rig: Rig) -> None:
    peer = rig.connect()
    for value in range(500):
        peer.write_posted(0, 0x10, value)
    rig.leave(peer)
    assert rig.device.seen == list(range(500))


# --- two at a time ------------------------------------------------------------------------------


def test_a_second_client_is_turned_away(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "LEAVING", 0.1)
    with rig.connect() as first:
        with rig.connect(agree=False) as second:
            assert second.gone()
        assert first.read(0, 0) == 5
        assert rig.counts == {"second client": 1}
        first.write(0, 0, 6)
        with rig.connect(agree=False) as second:
            second.raw(bytes(100))
            assert second.gone()
        assert first.read(0, 0) == 6
    rig.is_fine()


def test_a_second_client_that_waits_gets_its_turn(rig: Rig) -> None:
    first = rig.connect()
    second = rig.connect(agree=False)
    first.close()
    second.agree()
    assert second.read(0, 0) == 5
    second.close()


def test_a_client_waits_for_the_handlers_of_one_that_has_gone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "LEAVING", 0.05)
    entered, leave = threading.Event(), threading.Event()

    def act(value: int) -> None:
        entered.set()
        assert leave.wait(20)

    rig.device.on_start = act
    first = rig.connect()
    first.write_posted(0, 0x10, 1)
    assert entered.wait(20)
    first.close()
    second = rig.connect(agree=False)
    waited = threading.Event()
    waited.wait(0.3)  # Longer than it would have waited for one that is there.
    leave.set()
    second.agree()
    assert second.read(0, 0) == 5
    second.close()
    assert "second client" not in rig.counts


def test_no_files_left_for_a_client(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_AGAIN", 0.01)
    accept = socket.socket.accept
    failures = iter([OSError(24, "Too many open files")] * 3)

    def failing(listener: socket.socket) -> object:
        for failure in failures:
            raise failure
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", failing)
    rig.is_fine()  # The acceptor was in the real one.
    rig.is_fine()
    assert rig.counts == {"accept": 3}


def test_a_thread_that_cannot_be_started(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: object) -> object:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(servers, "Session", failing)
        with rig.connect(agree=False) as peer:
            assert peer.gone()
    rig.is_fine()


def test_who_is_told_of_clients_may_fail(tmp_path: Path) -> None:
    def told(came: bool) -> None:
        raise ValueError(came)

    with Server(Board(), tmp_path / "s", on_client=told):
        for _ in range(2):
            with Peer(tmp_path / "s") as peer:
                assert peer.read(0, 0) == 5


def reads(rig: Rig) -> None:
    with suppress(DmaError):
        rig.server.memory.read(0, 1)


# --- close at any moment ------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["listening", "connected", "agreed", "half", "flood", "reading"])
def test_close(tmp_path: Path, moment: str) -> None:
    gc.collect()
    before = open_fds()
    with Rig(tmp_path) as rig:
        if moment != "listening":
            peer = rig.connect(agree=moment != "connected")
            if moment == "half":
                peer.raw(peer.message(Command.REGION_WRITE, access(0, 0, 1))[:20])
            elif moment == "flood":
                for _ in range(500):
                    peer.write_posted(0, 0x10, 1)
            elif moment == "reading":
                peer.map(0, 0x1000)
                reader = threading.Thread(target=reads, args=(rig,))
                reader.start()
                peer.receive()
    rig.server.close()
    assert not rig.path.exists()
    if moment != "listening":
        assert peer.gone()
        peer.close()
    if moment == "reading":
        reader.join(20)
    del rig
    gc.collect()
    assert open_fds() == before


def test_close_while_a_timer_fires_all_the_time(tmp_path: Path) -> None:
    for _ in range(10):
        ticked = threading.Event()
        with Rig(tmp_path) as rig:
            rig.device.every(1e-4, ticked.set)
            assert ticked.wait(20)


def test_close_while_a_handler_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(servers, "LEFT", 0.1)
    entered, leave = threading.Event(), threading.Event()

    def act(value: int) -> None:
        entered.set()
        assert leave.wait(20)

    rig = Rig(tmp_path)
    rig.device.on_start = act
    with rig:
        peer = rig.connect()
        peer.write_posted(0, 0x10, 1)
        assert entered.wait(20)
    (left,) = (record.getMessage() for record in caplog.records if record.levelname == "ERROR")
    assert left.startswith("board.start, written by the guest (rig.py, line ")
    assert left.endswith(" does not end, and is left behind in thread callgate client of board")
    leave.set()
    peer.close()
    assert rig.went.acquire(timeout=20)


def test_close_ends_a_hook_and_a_timer_that_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(servers, "LEFT", 3)
    entered = threading.Semaphore(0)

    def act(value: int = 0) -> None:
        entered.release()
        while True:
            pass

    for begin in ("write", "timer"):
        with Rig(tmp_path) as rig, rig.connect() as peer:
            if begin == "write":
                rig.device.on_start = act
                peer.write_posted(0, 0x10, 1)
            else:
                rig.device.after(0, act)
            assert entered.acquire(timeout=20)
    assert "is left behind" not in caplog.text
    assert not [each for each in threading.enumerate() if each.name.startswith("callgate ")]


def test_a_timer_that_is_started_after_the_end_wakes_nobody(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        timers = rig.server.timers
    timers.after(0, lambda: None)


def test_a_timer_that_raises_is_reported_and_others_go_on(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[int] = []

    def fail(error: BaseException) -> None:
        raise error

    rig.device.after(0, lambda: fail(ValueError("a bug of the model")))
    rig.device.after(0, lambda: fail(SystemExit("leaving")))
    rig.device.after(0.001, lambda: ran.append(1))
    until(lambda: ran)
    assert "a bug of the model" in caplog.text
    assert "leaving" in caplog.text
    assert 'loop.py", line' not in caplog.text


# --- the socket file ----------------------------------------------------------------------------


def test_the_socket_is_its_owners_alone(rig: Rig) -> None:
    found = rig.path.stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600


def test_no_moment_is_open_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    listen = socket.socket.listen

    def looked(listener: socket.socket, backlog: int) -> None:
        modes.append(stat.S_IMODE(Path(listener.getsockname()).stat().st_mode))
        listen(listener, backlog)

    monkeypatch.setattr(socket.socket, "listen", looked)
    old = os.umask(0)
    try:
        with Rig(tmp_path):
            pass
    finally:
        os.umask(old)
    assert modes == [0o600]


def test_a_socket_that_nobody_serves_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    with Rig(tmp_path) as rig:
        rig.is_fine()


def test_a_socket_that_is_served_is_left_alone(rig: Rig, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(BackendError, match="Somebody serves"), Rig(tmp_path):
            pass
        rig.is_fine()


def test_a_server_that_is_too_busy_to_accept_is_alive(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        server = Server(Board(), path)
        with pytest.raises(BackendError, match="Somebody serves"):
            server.start()
        server.close()
        assert path.exists()


@pytest.mark.parametrize("what", ["file", "folder", "link", "fifo"])
def test_what_is_no_socket_is_left_alone(tmp_path: Path, what: str) -> None:
    path = tmp_path / "s"
    if what == "file":
        path.write_text("precious")
    elif what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "nowhere")
    server = Server(Board(), path)
    with pytest.raises(BackendError, match="must be free, or a socket"):
        server.start()
    server.close()
    assert os.path.lexists(path)


def test_a_socket_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        server = Server(Board(), path)
        with pytest.raises(BackendError, match="must be made"):
            server.start()
        server.close()
        assert path.exists()


@pytest.mark.parametrize(
    ("name", "match"),
    [("x" * 200, "bytes, not"), ("nowhere/s", "No such file"), ("file/s", "Not a directory")],
)
def test_a_path_that_cannot_be(tmp_path: Path, name: str, match: str) -> None:
    (tmp_path / "file").write_text("")
    gc.collect()
    before = open_fds()
    server = Server(Board(), tmp_path / name)
    with pytest.raises(BackendError, match=match):
        server.start()
    server.close()
    del server
    gc.collect()
    assert open_fds() == before


def test_the_longest_path(tmp_path: Path) -> None:
    path = tmp_path / ("x" * (107 - len(str(tmp_path)) - 1))
    with Server(Board(), path), Peer(path) as peer:
        assert peer.read(0, 0) == 5
    server = Server(Board(), f"{path}x")
    with pytest.raises(BackendError, match="107 bytes, not 108"):
        server.start()
    server.close()


def test_a_file_that_took_the_sockets_place_stays(rig: Rig) -> None:
    rig.path.unlink()
    rig.path.write_text("somebody's")
    rig.server.close()
    assert rig.path.read_text() == "somebody's"
