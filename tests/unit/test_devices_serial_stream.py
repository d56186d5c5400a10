# SPDX-License-Identifier: MIT
"""SerialStream: descriptors as a port's far end. Nothing is lost either way, nothing is left."""

import logging
import os
import random
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from callgate.devices.serial import FIFO_DEPTH, Serial
from callgate.devices.serial_stream import AHEAD, SerialStream
from callgate.testing import FakeGuest

DATA, FCR, LCR, LSR = 0, 2, 3, 5
DR, THRE = 0x01, 0x20
DEADLINE = 20.0
"""Seconds, after which a test has failed."""


class Guest:
    """The guest's side of a port, and a way to wait for what the stream's thread does."""

    def __init__(self, uart: Serial) -> None:
        self.uart = uart
        self.write(LCR, 0x03)
        self.write(FCR, 0x01)

    def read(self, register: int) -> int:
        return self.uart.register_read(0, register, 1)

    def write(self, register: int, value: int) -> None:
        self.uart.register_write(0, register, 1, value)

    def receive(self, count: int) -> bytes:
        """Wait for `count` bytes."""
        data = bytearray()
        while len(data) < count:
            self.wait(DR)
            data.append(self.read(DATA))
        return bytes(data)

    def send(self, data: bytes) -> None:
        """Send as a driver does, waiting for THRE."""
        for start in range(0, len(data), FIFO_DEPTH):
            self.wait(THRE)
            for byte in data[start : start + FIFO_DEPTH]:
                self.write(DATA, byte)

    def wait(self, bit: int) -> None:
        """Let the stream's thread run until LSR shows the bit."""
        turns = threading.Event()
        for _ in range(int(DEADLINE / 0.001)):
            if self.read(LSR) & bit:
                return
            turns.wait(0.001)
        raise AssertionError(f"LSR must show {bit:#x}, and is {self.read(LSR):#x}")


@pytest.fixture
def uart() -> Iterator[Serial]:
    with FakeGuest(uart := Serial()):
        yield uart


@pytest.fixture
def guest(uart: Serial) -> Guest:
    return Guest(uart)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        far.settimeout(DEADLINE)
        yield near, far


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    before = descriptors()
    yield
    assert not [each for each in threading.enumerate() if each.name.endswith(" stream")]
    assert descriptors() <= before


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def read_exactly(far: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        chunk = far.recv(count - len(data))
        assert chunk
        data += chunk
    return bytes(data)


def test_a_socket_is_joined(
    uart: Serial, guest: Guest, pair: tuple[socket.socket, socket.socket]
) -> None:
    near, far = pair
    with SerialStream(uart, near):
        far.sendall(b"to the guest")
        assert guest.receive(12) == b"to the guest"
        guest.send(b"from the guest")
        assert read_exactly(far, 14) == b"from the guest"


def test_two_pipes_are_joined(uart: Serial, guest: Guest) -> None:
    (source, feeder), (reader, sink) = os.pipe(), os.pipe()
    try:
        with SerialStream(uart, source, sink):
            os.write(feeder, b"in")
            assert guest.receive(2) == b"in"
            guest.send(b"out")
            assert os.read(reader, 9) == b"out"
        assert os.get_blocking(source)
        assert os.get_blocking(sink)
    finally:
        for file in (source, feeder, reader, sink):
            os.close(file)


def test_a_terminal_is_made(uart: Serial, guest: Guest) -> None:
    raw = b"\x03\x04\n\r\x00\xff"
    with SerialStream.terminal(uart) as stream:
        assert stream.path is not None
        for text in (raw, b"again"):  # a program leaves, another one comes
            terminal = os.open(stream.path, os.O_RDWR | os.O_NOCTTY)
            os.write(terminal, text)
            assert guest.receive(len(text)) == text
            guest.send(text)
            seen = b""
            while len(seen) < len(text):
                seen += os.read(terminal, len(text))
            os.close(terminal)
            assert seen == text
    assert not Path(stream.path).exists()


@pytest.mark.uncovered
def test_bytes_go_both_ways_at_once(
    uart: Serial, guest: Guest, pair: tuple[socket.socket, socket.socket]
) -> None:
    near, far = pair
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    data = random.Random(5).randbytes(50_000)
    got = bytearray()

    def exchange() -> None:
        sender = threading.Thread(target=far.sendall, args=(data,))
        sender.start()
        got.extend(read_exactly(far, len(data)))
        sender.join()

    other = threading.Thread(target=exchange)
    other.start()
    with SerialStream(uart, near):
        left = len(data)
        while left:
            chunk = guest.receive(min(left, 100))
            guest.send(chunk)
            left -= len(chunk)
        other.join(DEADLINE)
    assert got == data
    assert uart.faults.counts == {}


@pytest.mark.uncovered
def test_a_source_that_is_too_fast_waits(
    uart: Serial, guest: Guest, pair: tuple[socket.socket, socket.socket]
) -> None:
    near, far = pair
    far.setblocking(False)
    with SerialStream(uart, near):
        sent = 0
        while True:
            try:
                sent += far.send(bytes(4096))
            except BlockingIOError:
                if uart.waiting >= AHEAD:  # It reads no more, and the socket is full.
                    break
        assert uart.waiting < 2 * AHEAD
        assert guest.receive(sent) == bytes(sent)
        assert select.select([], [far], [], DEADLINE)[1]


def test_a_sink_that_is_too_slow_holds_the_guest_back(
    uart: Serial, guest: Guest, pair: tuple[socket.socket, socket.socket]
) -> None:
    near, far = pair
    with SerialStream(uart, near):
        sent = 0
        while guest.read(LSR) & THRE:
            guest.write(DATA, sent & 0xFF)
            sent += 1
        got = bytearray()
        while len(got) < sent:
            got += far.recv(4096)
        guest.wait(THRE)
        assert bytes(got) == bytes(index & 0xFF for index in range(sent))


def test_at_the_end_of_the_source_the_guest_can_still_send(
    uart: Serial, guest: Guest, pair: tuple[socket.socket, socket.socket]
) -> None:
    near, far = pair
    with SerialStream(uart, near) as stream:
        far.sendall(b"bye")
        far.shutdown(socket.SHUT_WR)
        assert guest.receive(3) == b"bye"
        guest.send(b"hello")
        assert read_exactly(far, 5) == b"hello"
        assert stream._thread.is_alive()


def test_a_far_end_that_is_gone_is_an_open_line(
    uart: Serial,
    guest: Guest,
    pair: tuple[socket.socket, socket.socket],
    caplog: pytest.LogCaptureFixture,
) -> None:
    near, far = pair
    with caplog.at_level(logging.WARNING, "callgate.device"), SerialStream(uart, near):
        far.close()
        guest.send(bytes(100_000))
    assert caplog.text.count("the far end of the line is gone (Broken pipe)") == 1


def test_a_far_end_that_goes_while_the_guest_waits_lets_it_go_on(
    uart: Serial, guest: Guest, pair: tuple[socket.socket, socket.socket]
) -> None:
    near, far = pair
    with SerialStream(uart, near):
        while guest.read(LSR) & THRE:
            guest.write(DATA, 0)
        far.close()
        guest.wait(THRE)


def test_closing_lets_a_guest_that_waits_go_on(
    uart: Serial, guest: Guest, pair: tuple[socket.socket, socket.socket]
) -> None:
    near, _ = pair
    with SerialStream(uart, near) as stream:
        while guest.read(LSR) & THRE:
            guest.write(DATA, 0)
        stream.close()
        assert guest.read(LSR) & THRE
    assert uart.on_output is None
    assert near.getblocking()
    with SerialStream(uart, near):
        pass


def test_it_may_be_closed_with_the_lock_held(
    uart: Serial, pair: tuple[socket.socket, socket.socket]
) -> None:
    near, far = pair
    stream = SerialStream(uart, near)
    with uart.lock:
        far.sendall(b"something to feed")
        stream.close()


def test_a_device_may_connect_itself(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair

    class Console(Serial):
        def attach(self) -> None:
            super().attach()
            self.stream = SerialStream(self, near)

        def detach(self) -> None:
            self.stream.close()
            super().detach()

    with FakeGuest(uart := Console()):
        Guest(uart).send(b"ready")
        assert read_exactly(far, 5) == b"ready"
        far.sendall(b"bytes that nobody reads")


def test_what_the_guest_sent_before_is_sent(
    uart: Serial, guest: Guest, pair: tuple[socket.socket, socket.socket]
) -> None:
    near, far = pair
    uart.on_output = lambda data: 0
    guest.send(b"early")
    uart.on_output = None
    with SerialStream(uart, near):
        assert read_exactly(far, 5) == b"early"


@pytest.mark.parametrize("attribute", ["on_output", "on_room"])
def test_a_line_has_one_far_end(
    uart: Serial, pair: tuple[socket.socket, socket.socket], attribute: str
) -> None:
    setattr(uart, attribute, lambda *arguments: None)
    with pytest.raises(ValueError, match="The line of serial must have one far end"):
        SerialStream(uart, pair[0])
    with pytest.raises(ValueError, match="The line of serial must have one far end"):
        SerialStream.terminal(uart)
