# SPDX-License-Identifier: MIT
import pytest

from callgate.backends.console import Console, Pl011, Uart16550


@pytest.fixture
def console() -> Console:
    return Console()


def test_text_shows_what_is_no_utf8(console: Console) -> None:
    for byte in "é".encode() + b"\xff!":
        console.put(byte)
    assert console.text == "é�!"
    console.clear()
    assert console.text == ""


def test_tells_each_byte(console: Console) -> None:
    seen: list[int] = []
    console.on_byte = seen.append
    console.put(0x41)
    assert seen == [0x41]


class TestUart16550:
    def test_sends_and_receives(self, console: Console) -> None:
        uart = Uart16550(console)
        assert uart.read(5, 1) == 0x60
        uart.write(0, 1, 0x41)
        assert console.text == "A"
        console.feed(b"xy")
        assert uart.read(5, 1) == 0x61
        assert [uart.read(0, 1) for _ in range(3)] == [ord("x"), ord("y"), 0]
        assert uart.read(5, 1) == 0x60

    def test_has_a_divisor_behind_dlab(self, console: Console) -> None:
        uart = Uart16550(console)
        uart.write(3, 1, 0x83)
        uart.write(0, 1, 0x0C)
        uart.write(1, 1, 0x01)
        assert (uart.read(0, 1), uart.read(1, 1)) == (0x0C, 0x01)
        uart.write(3, 1, 0x03)
        assert console.text == ""
        uart.write(1, 1, 0x05)
        assert uart.read(1, 1) == 0x05

    def test_has_no_interrupt_and_a_scratch_register(self, console: Console) -> None:
        uart = Uart16550(console)
        assert uart.read(2, 1) & 1
        assert uart.read(6, 1) == 0xB0
        uart.write(7, 1, 0x5A)
        assert uart.read(7, 1) == 0x5A

    def test_takes_wide_accesses_byte_by_byte(self, console: Console) -> None:
        uart = Uart16550(console)
        uart.write(6, 2, 0x5A00)
        assert uart.read(6, 2) == 0x5AB0
        assert uart.read(7, 4) & 0xFF == 0x5A


class TestPl011:
    def test_sends_and_receives(self, console: Console) -> None:
        uart = Pl011(console)
        assert uart.read(0x18, 4) == 0x90
        uart.write(0, 4, 0x141)
        assert console.text == "A"
        console.feed(b"x")
        assert uart.read(0x18, 4) == 0x80
        assert uart.read(0, 4) == ord("x")
        assert uart.read(0x18, 4) == 0x90

    def test_keeps_what_is_written_elsewhere(self, console: Console) -> None:
        uart = Pl011(console)
        uart.write(0x30, 4, 0x301)
        assert uart.read(0x30, 4) == 0x301
        assert uart.read(0x30, 1) == 0x01
        assert uart.read(0x24, 4) == 0
