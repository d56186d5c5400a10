# SPDX-License-Identifier: MIT
"""Loads and stores of a device's registers, one instruction each, from a program.

Python copies numbers from and to memory by memcpy(), which may go byte by byte where a processor
wants words aligned: a device would see four writes of one. So there, the instructions themselves
are put into the process, as functions.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from collections.abc import Callable
from typing import NamedTuple


class Code(NamedTuple):
    """Of a processor's instructions: loads and stores by size, a full barrier, the return.

    The address is the first argument, and a store's value the second.
    """

    loads: dict[int, int]
    stores: dict[int, int]
    barrier: int
    back: int


CODES = {
    # ldrb, ldrh, ldr w0, ldr x0; strb, strh, str w1, str x1; dmb osh; ret
    "aarch64": Code(
        {1: 0x39400000, 2: 0x79400000, 4: 0xB9400000, 8: 0xF9400000},
        {1: 0x39000001, 2: 0x79000001, 4: 0xB9000001, 8: 0xF9000001},
        0xD50333BF,
        0xD65F03C0,
    ),
    # lbu, lhu, lwu, ld; sb, sh, sw, sd; fence iorw, iorw; ret
    "riscv64": Code(
        {1: 0x00054503, 2: 0x00055503, 4: 0x00056503, 8: 0x00053503},
        {1: 0x00B50023, 2: 0x00B51023, 4: 0x00B52023, 8: 0x00B53023},
        0x0FF0000F,
        0x00008067,
    ),
}
"""Of the machines where Python is not to be trusted with it, by `platform.machine()`."""


class Words(NamedTuple):
    """Functions by size in bytes: one load, one store, each ordered against all before and after.
    Addresses are aligned, and of this process."""

    loads: dict[int, Callable[[int], int]]
    stores: dict[int, Callable[[int, int], None]]


def programs(code: Code) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """The functions' instructions, of loads and of stores."""

    def program(instruction: int) -> bytes:
        words = code.barrier, instruction, code.barrier, code.back
        return b"".join(word.to_bytes(4, "little") for word in words)

    return (
        {size: program(word) for size, word in code.loads.items()},
        {size: program(word) for size, word in code.stores.items()},
    )


def words() -> Words | None:
    """The functions; None where Python's own way does as well, or is all that there is."""
    code = CODES.get(platform.machine())
    return None if code is None else _install(code)


def _install(code: Code) -> Words:
    loads, stores = programs(code)
    address = _map(b"".join([*loads.values(), *stores.values()]))
    load = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64)
    store = ctypes.CFUNCTYPE(None, ctypes.c_uint64, ctypes.c_uint64)
    made = Words({}, {})
    for size, program in loads.items():
        made.loads[size] = load(address)
        address += len(program)
    for size, program in stores.items():
        made.stores[size] = store(address)
        address += len(program)
    return made


def _map(program: bytes) -> int:
    """Where instructions are that may be carried out; they stay for as long as the process."""
    file = os.memfd_create("callgate words", os.MFD_CLOEXEC)
    try:
        os.write(file, program)
        # Mapped when it is all there: then the kernel sees to the instruction cache.
        call = ctypes.CDLL(None, use_errno=True).mmap
        call.restype, number = ctypes.c_void_p, ctypes.c_size_t
        call.argtypes = (ctypes.c_void_p, number, ctypes.c_int, ctypes.c_int, ctypes.c_int, number)
        access = mmap.PROT_READ | mmap.PROT_EXEC
        address: int = call(None, mmap.PAGESIZE, access, mmap.MAP_PRIVATE, file, 0)
    finally:
        os.close(file)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "this system must let programs map instructions")
    return address
