# SPDX-License-Identifier: MIT
"""ioctl(2), with request numbers that one calls.

    KVM_CREATE_VCPU = _IO(KVMIO, 0x41)
    KVM_GET_REGS = _IOR(KVMIO, 0x81, kvm_regs)

    vcpu = KVM_CREATE_VCPU(vm, 0)
    KVM_GET_REGS(vcpu, regs)

Numbers are those of <asm-generic/ioctl.h> (x86, arm64, RISC-V), and so are the names.

    31 30 29        16 15     8 7      0
    | dir |   size    |  type  |   nr   |
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _ctypes import _CData

    from _typeshed import WriteableBuffer

_IOC_NONE = 0
_IOC_WRITE = 1
_IOC_READ = 2

# Not fcntl.ioctl: it takes no integer above INT_MAX, and hands the kernel a copy of a short buffer.
_ioctl = ctypes.CDLL(None, use_errno=True).ioctl
_ioctl.argtypes = ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong


class Ioctl:
    """A request: its `number`, and the `size` in bytes of the argument that the number tells."""

    __slots__ = "_argument", "name", "number", "restart", "size"

    def __init__(self, dir: int, type: int, nr: int, size: int, *, restart: bool = True) -> None:
        self.number = dir << 30 | size << 16 | type << 8 | nr
        self.size = size
        self.name = f"ioctl {self.number:#010x}"
        self.restart = restart
        self._argument = ctypes.c_char * size

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def __call__(self, fd: int, arg: int | WriteableBuffer = 0) -> int:
        """Make the request, return the kernel's answer. An integer goes as it is, of a buffer the
        address: a flexible array in it must have as many elements as its count says.

        Raises OSError, with the request's name; TypeError for a buffer that is not writable, and
        ValueError for one shorter than `size`. What a signal interrupts is asked again (PEP 475);
        without `restart` it raises InterruptedError.
        """
        if not isinstance(arg, int):
            argument = self._argument.from_buffer(arg)  # holds the buffer where it is
            arg = ctypes.addressof(argument)
        while True:
            result: int = _ioctl(fd, self.number, arg)
            if result >= 0:
                return result
            number = ctypes.get_errno()
            if number != errno.EINTR or not self.restart:
                raise OSError(number, f"{self.name}: {os.strerror(number)}")


def _IO(type: int, nr: int, *, restart: bool = True) -> Ioctl:
    """A request whose argument, if any, the number does not tell."""
    return Ioctl(_IOC_NONE, type, nr, 0, restart=restart)


def _IOR(type: int, nr: int, argument: type[_CData]) -> Ioctl:
    """A request whose argument the kernel writes."""
    return Ioctl(_IOC_READ, type, nr, ctypes.sizeof(argument))


def _IOW(type: int, nr: int, argument: type[_CData]) -> Ioctl:
    """A request whose argument the kernel reads."""
    return Ioctl(_IOC_WRITE, type, nr, ctypes.sizeof(argument))


def _IOWR(type: int, nr: int, argument: type[_CData]) -> Ioctl:
    """A request whose argument the kernel reads, then writes."""
    return Ioctl(_IOC_READ | _IOC_WRITE, type, nr, ctypes.sizeof(argument))


def name_ioctls(namespace: Mapping[str, object]) -> None:
    """Tell each request of a module what it is called there, for its messages."""
    for name, value in namespace.items():
        if isinstance(value, Ioctl):
            value.name = name
