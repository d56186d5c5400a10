# SPDX-License-Identifier: MIT
"""fallocate(2) and flock(2)."""

from __future__ import annotations

import ctypes
import errno
import os
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10

_libc = ctypes.CDLL(None, use_errno=True)
# With offsets of 64 bits also where the C library's usual ones have 32.
_fallocate = getattr(_libc, "fallocate64", None) or getattr(_libc, "fallocate", None)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Change how a file's range is stored. Raises OSError; EOPNOTSUPP where it cannot be."""
    arguments = ctypes.c_int(fd), ctypes.c_int(mode), ctypes.c_int64(offset), ctypes.c_int64(length)
    number = 0 if _fallocate else errno.EOPNOTSUPP
    while _fallocate and _fallocate(*arguments):
        number = ctypes.get_errno()
        if number != errno.EINTR:
            break
        number = 0
    if number:
        raise OSError(number, os.strerror(number))


def lock(fd: int, *, exclusive: bool) -> None:
    """Take the lock of an open file, without waiting. Raises BlockingIOError where another open
    file has it; closing the file gives it back."""
    flock(fd, (LOCK_EX if exclusive else LOCK_SH) | LOCK_NB)
