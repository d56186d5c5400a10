# SPDX-License-Identifier: MIT
"""Hooks that are called so often that they are host code: the brake and the instruction limit.

The library's own stop, `uc_emu_stop`, is not to be used from elsewhere: it takes effect behind the
next load or store, in the middle of an instruction, and that instruction is executed again when the
emulator goes on. "incl (mem)" then counts twice, a device register is written twice. So all stops
go through the brake, a hook at the start of each block of instructions: there it stops well.

On a host for which there is no code here, Python functions do the same, and the guest is slow.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
from ctypes import c_uint32, c_uint64

from unicorn import unicorn_const as uc

from callgate.backends.unicorn.engine import ON_CODE, STOP, Callback, Engine

# System V ABI: rdi is the engine, rcx what the hook was given as its pointer.
_BRAKE = {
    "x86_64": b"\xf3\x0f\x1e\xfa"  #                       endbr64
    b"\x8b\x01"  #                                         mov    eax, [rcx]
    b"\x85\xc0"  #                                         test   eax, eax
    b"\x74\x06"  #                                         jz     1f
    b"\xff\xc8"  #                                         dec    eax
    b"\x74\x03"  #                                         jz     2f
    b"\x89\x01"  #                                         mov    [rcx], eax
    b"\xc3"  #                                          1: ret
    b"\xc7\x41\x04\x01\x00\x00\x00"  #                  2: mov    dword [rcx + 4], 1
    b"\x48\xb8"
    + STOP.to_bytes(8, "little")  #          mov    rax, uc_emu_stop
    + b"\xff\xe0",  #                                        jmp    rax
}
_LIMIT = {
    "x86_64": b"\xf3\x0f\x1e\xfa"  #                       endbr64
    b"\x48\x83\x39\x00"  #                                 cmp    qword [rcx], 0
    b"\x74\x04"  #                                         je     1f
    b"\x48\xff\x09"  #                                     dec    qword [rcx]
    b"\xc3"  #                                             ret
    b"\x48\xb8"
    + STOP.to_bytes(8, "little")  #       1: mov    rax, uc_emu_stop
    + b"\xff\xe0",  #                                        jmp    rax
}
HOST = platform.machine()


class Brake:
    """Stops the emulator at the next block of instructions, for as long as it is pulled.

    `pull` may be called from any thread, and at any time: a stop is never lost.
    """

    def __init__(self, engine: Engine, host: str = HOST) -> None:
        self._engine = engine
        self._words = (c_uint32 * 2)()
        self._code, callback = _callback(_BRAKE.get(host), self._look)
        engine.hook(uc.UC_HOOK_BLOCK, callback, pointer=ctypes.addressof(self._words))

    def pull(self) -> None:
        """Let the run end, and every later one, before its next block."""
        self._words[0] = 1

    def release(self) -> None:
        """Let the next run go on."""
        self._words[0] = self._words[1] = 0

    def release_for_one(self) -> None:
        """Let the next run execute one block."""
        self._words[1] = 0
        self._words[0] = 2

    @property
    def stopped(self) -> bool:
        """Whether it ended a run since the last `release`."""
        return bool(self._words[1])

    def _look(self, _: bool, __: int, ___: int, ____: bool) -> None:
        left = self._words[0]
        if left > 1:
            self._words[0] = left - 1
        elif left:
            self._words[1] = 1
            self._engine.stop()


class InstructionLimit:
    """Stops the emulator after a number of instructions, while it is switched on.

    The library can do so by itself, but does not say how many there were when something else
    stopped it first; and with a second hook to count them, both are slow.
    """

    def __init__(self, engine: Engine, host: str = HOST) -> None:
        self._engine = engine
        self._left = c_uint64()
        self._hook: int | None = None
        self._code, self._callback = _callback(_LIMIT.get(host), self._step)

    @property
    def left(self) -> int:
        """Instructions that may still be executed."""
        return self._left.value

    @left.setter
    def left(self, count: int) -> None:
        self._left.value = count

    def switch(self, on: bool) -> None:
        """Count, or do not, which is quicker. Between runs only."""
        if on and self._hook is None:
            self._hook = self._engine.hook(
                uc.UC_HOOK_CODE, self._callback, pointer=ctypes.addressof(self._left)
            )
        elif not on and self._hook is not None:
            self._engine.unhook(self._hook)
            self._hook = None

    def _step(self, _: bool, __: int, ___: int, ____: bool) -> None:
        if self._left.value:
            self._left.value -= 1
        else:
            self._engine.stop()


def _callback(code: bytes | None, function: Callback) -> tuple[mmap.mmap | None, Callback]:
    """What the library calls, and the memory that must live as long."""
    if code is None:
        return None, ON_CODE(function)
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    return page, ON_CODE(ctypes.addressof(ctypes.c_char.from_buffer(page)))
