# SPDX-License-Identifier: MIT
"""fallocate(2) and flock(2), as the kernel has them."""

import ctypes
import errno
import os
from pathlib import Path

import pytest

from callgate.linux import file as linux
from callgate.linux.file import fallocate, lock

SIZE = 1 << 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "file"
    found.write_bytes(b"x" * SIZE)
    return found


def test_a_hole_reads_zeros_and_takes_no_room(path: Path) -> None:
    before = path.stat().st_blocks
    with path.open("r+b") as file:
        mode = linux.FALLOC_FL_PUNCH_HOLE | linux.FALLOC_FL_KEEP_SIZE
        fallocate(file.fileno(), mode, 4096, SIZE - 4096)
    assert path.read_bytes() == b"x" * 4096 + bytes(SIZE - 4096)
    assert path.stat().st_blocks < before


def test_what_cannot_be_is_an_error(path: Path) -> None:
    with path.open("rb") as file, pytest.raises(OSError, match="Bad file descriptor") as caught:
        fallocate(file.fileno(), 0, 0, SIZE)
    assert caught.value.errno == errno.EBADF
    read, write = os.pipe()
    with pytest.raises(OSError, match="Illegal seek"):
        fallocate(write, 0, 0, SIZE)
    os.close(read)
    os.close(write)


def test_a_c_library_may_have_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "_fallocate", None)
    with path.open("r+b") as file, pytest.raises(OSError, match="not supported") as caught:
        fallocate(file.fileno(), 0, 0, SIZE)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_a_signal_only_makes_it_begin_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [errno.EINTR, errno.EINTR, 0]

    def interrupted(*arguments: object) -> int:
        number = answers.pop(0)
        ctypes.set_errno(number)
        return -1 if number else 0

    monkeypatch.setattr(linux, "_fallocate", interrupted)
    fallocate(0, 0, 0, 1)
    assert answers == []


def test_a_lock_is_an_open_files(path: Path) -> None:
    with path.open("rb") as first, path.open("rb") as second:
        lock(first.fileno(), exclusive=False)
        lock(second.fileno(), exclusive=False)
        with pytest.raises(BlockingIOError):
            lock(first.fileno(), exclusive=True)
        second.close()
        lock(first.fileno(), exclusive=True)
        with path.open("rb") as third, pytest.raises(BlockingIOError):
            lock(third.fileno(), exclusive=False)
