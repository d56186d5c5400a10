# SPDX-License-Identifier: MIT
"""How many instructions the emulator has executed.

The library stops after a number of instructions, but does not say how many there were when
something else stopped it first. So a hook counts them: where we have it, one of host code, which
adds 1 to where its last argument points. One of Python makes the guest much slower.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
from ctypes import c_uint64

from unicorn import unicorn_const as uc

from callgate.backends.unicorn.engine import ON_CODE, Callback, Engine

# endbr64; inc qword [rcx]; ret: the fourth argument by the System V ABI.
_HOST_CODE = {"x86_64": b"\xf3\x0f\x1e\xfa\x48\xff\x01\xc3"}


class InstructionCounter:
    """Counts while it is `on`. Made for one engine."""

    def __init__(self, engine: Engine, machine: str = platform.machine()) -> None:
        self._engine = engine
        self._count = c_uint64()
        self._hook: int | None = None
        self._code: mmap.mmap | None = None
        self._callback = self._host_code(machine) or ON_CODE(self._step)

    @property
    def value(self) -> int:
        """Instructions begun since the last `reset`."""
        return self._count.value

    def reset(self) -> None:
        """Count from 0 again."""
        self._count.value = 0

    def switch(self, on: bool) -> None:
        """Count, or do not, which is quicker. Between runs only."""
        if on and self._hook is None:
            self._hook = self._engine.hook(
                uc.UC_HOOK_CODE, self._callback, pointer=ctypes.addressof(self._count)
            )
        elif not on and self._hook is not None:
            self._engine.unhook(self._hook)
            self._hook = None

    def _host_code(self, machine: str) -> Callback | None:
        code = _HOST_CODE.get(machine)
        if code is None:
            return None
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(code)
        self._code = page
        return ON_CODE(ctypes.addressof(ctypes.c_char.from_buffer(page)))

    def _step(self, _: int, __: int, ___: int, ____: int) -> None:
        self._count.value += 1
