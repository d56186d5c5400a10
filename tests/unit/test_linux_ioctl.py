# SPDX-License-Identifier: MIT
"""ioctl(2), tried on a pseudo-terminal, which is there without any hardware."""

import errno
import os
from collections.abc import Iterator
from ctypes import c_int, c_uint, c_uint32, set_errno
from typing import NamedTuple

import pytest

from callgate.linux import ioctl
from callgate.linux.ioctl import _IO, _IOR, _IOW, _IOWR, Ioctl, name_ioctls

TTY = ord("T")
# <asm-generic/ioctls.h>
TIOCGPTN = _IOR(TTY, 0x30, c_uint)  # which of /dev/pts it is
TIOCSPTLCK = _IOW(TTY, 0x31, c_int)  # lock it
TIOCGPTLCK = _IOR(TTY, 0x39, c_int)
TIOCGPTPEER = _IO(TTY, 0x41)  # open it
name_ioctls(globals())


class Terminal(NamedTuple):
    master: int
    slave: int


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    master, slave = os.openpty()
    yield Terminal(master, slave)
    os.close(master)
    os.close(slave)


def test_numbers_are_the_kernels() -> None:
    assert _IO(0xAE, 0x80).number == 0xAE80
    assert TIOCGPTN.number == 0x80045430
    assert TIOCSPTLCK.number == 0x40045431
    assert _IOWR(0xAE, 0x05, c_uint32 * 2).number == 0xC008AE05
    assert (TIOCGPTN.size, TIOCGPTPEER.size) == (4, 0)


def test_the_kernel_writes_into_the_argument(terminal: Terminal) -> None:
    number = c_uint()
    assert TIOCGPTN(terminal.master, number) == 0
    assert os.ttyname(terminal.slave) == f"/dev/pts/{number.value}"


def test_the_kernel_reads_the_argument(terminal: Terminal) -> None:
    for locked in (1, 0):
        TIOCSPTLCK(terminal.master, c_int(locked))
        answer = bytearray(4)
        TIOCGPTLCK(terminal.master, answer)
        assert answer[0] == locked


def test_an_integer_goes_as_it_is_and_the_result_comes_back(terminal: Terminal) -> None:
    peer = TIOCGPTPEER(terminal.master, os.O_RDWR | os.O_NOCTTY)
    assert os.ttyname(peer) == os.ttyname(terminal.slave)
    os.close(peer)


def test_a_part_of_a_buffer_is_written_in_place(terminal: Terminal) -> None:
    buffer = bytearray(b"\xff" * 5000)
    TIOCGPTLCK(terminal.master, memoryview(buffer)[4096:])
    assert buffer[4096:4101] == b"\0\0\0\0\xff"
    assert buffer[:4096] == b"\xff" * 4096


def test_an_error_names_the_request(terminal: Terminal) -> None:
    with pytest.raises(OSError, match="TIOCGPTN: Inappropriate ioctl for device") as error:
        TIOCGPTN(terminal.slave, c_uint())
    assert error.value.errno == errno.ENOTTY
    with pytest.raises(OSError, match="ioctl 0x0000aefe: Bad file descriptor"):
        _IO(0xAE, 0xFE)(-1)


def test_a_buffer_must_be_as_long_as_the_number_says(terminal: Terminal) -> None:
    with pytest.raises(ValueError, match="Buffer size too small"):
        TIOCGPTN(terminal.master, bytearray(3))


def test_a_buffer_must_be_writable(terminal: Terminal) -> None:
    with pytest.raises(TypeError, match="not writable"):
        TIOCGPTN(terminal.master, bytes(4))


def interrupt(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Let the next calls be interrupted, and return what all were called with."""
    calls: list[int] = []

    def interrupted(fd: int, number: int, arg: int) -> int:
        calls.append(arg)
        set_errno(errno.EINTR)
        return -1 if len(calls) <= times else 7

    monkeypatch.setattr(ioctl, "_ioctl", interrupted)
    return calls


def test_what_a_signal_interrupts_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = interrupt(monkeypatch, 2)
    assert _IO(0xAE, 0x01)(0, 5) == 7
    assert calls == [5, 5, 5]


def test_without_restart_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = interrupt(monkeypatch, 2)
    with pytest.raises(InterruptedError):
        _IO(0xAE, 0x80, restart=False)(0)
    assert len(calls) == 1


def test_a_request_shows_its_name() -> None:
    assert repr(TIOCGPTN) == "<TIOCGPTN>"
    assert repr(Ioctl(0, 0xAE, 0x80, 0)) == "<ioctl 0x0000ae80>"
