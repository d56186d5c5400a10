# SPDX-License-Identifier: MIT
"""The emulator with nothing around it: one trap into an empty Python function.

What a call costs is measured against this. It is what the first page of its manual leads to:
its Python binding, one hook, `pass`. A hook gets more to do only where the guest would not go on
otherwise: VMCALL and VMMCALL are invalid to the library, so their hook has to step over them.

    guest's loop        hook
    store               mmio_map with an empty `write`
    out                 UC_HOOK_INSN
    int, hvc, ecall     UC_HOOK_INTR
    vmcall, vmmcall     UC_HOOK_INSN_INVALID, and the program counter is moved on
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import unicorn
from unicorn import arm64_const as arm
from unicorn import unicorn_const as uc
from unicorn import x86_const as x86

from callgate.backends.board import BOARDS
from callgate.errors import GuestError
from callgate.gate.abi import PAGE

_BINDING: Any = unicorn  # It has no types.
MARK = 0xE000_0000
"""Where a store has the time taken; a page on no board."""
PLACE = 0xE100_0000
"""Where the bare store goes; another one."""
_RAM = 32 << 20
_LIBRARY = {
    "x86_64": (uc.UC_ARCH_X86, uc.UC_MODE_64),
    "i386": (uc.UC_ARCH_X86, uc.UC_MODE_32),
    "aarch64": (uc.UC_ARCH_ARM64, uc.UC_MODE_ARM),
    "riscv64": (uc.UC_ARCH_RISCV, uc.UC_MODE_RISCV64),
}
_COUNTER = {"x86_64": x86.UC_X86_REG_RIP, "i386": x86.UC_X86_REG_EIP}
_VMCALL = 3
"""Bytes of VMCALL, and of VMMCALL."""
# SCR_EL3 with HCE, RW and NS; without HCE the library takes HVC for undefined.
_HVC_ENABLE = (1, 1, 3, 6, 0, 1 << 8 | 1 << 10 | 1)


def run_bare(
    arch: str, entry: int, memory: Iterable[tuple[int, bytes]], marks: int, mark: Callable[[], None]
) -> None:
    """Run a guest from `entry` on until it has stored to MARK `marks` times; call `mark` each time.

    `memory` is what RAM holds, by guest physical address. Raises GuestError when the guest stops
    before.
    """
    emulator = _BINDING.Uc(*_LIBRARY[arch])
    emulator.mem_map(BOARDS[arch].ram, _RAM)
    for address, data in memory:
        emulator.mem_write(address, data)
    left = marks

    def on_mark(_: Any, __: int, ___: int, ____: int, _____: Any) -> None:
        nonlocal left
        left -= 1
        mark()
        if not left:
            emulator.emu_stop()

    emulator.mmio_map(MARK, PAGE, None, None, on_mark, None)
    _hook(emulator, arch)
    try:
        emulator.emu_start(entry, 0)
    except _BINDING.UcError as error:
        raise GuestError(
            f"The bare guest must end by its last mark, and stopped: {error}"
        ) from None
    if left:
        raise GuestError(f"The bare guest must come to {marks} marks, and came to {marks - left}")


def _hook(emulator: Any, arch: str) -> None:
    def on_store(_: Any, __: int, ___: int, ____: int, _____: Any) -> None:
        pass

    def on_out(_: Any, __: int, ___: int, ____: int, _____: Any) -> None:
        pass

    def on_interrupt(_: Any, __: int, ___: Any) -> None:
        pass

    emulator.mmio_map(PLACE, PAGE, None, None, on_store, None)
    emulator.hook_add(uc.UC_HOOK_INTR, on_interrupt)
    counter = _COUNTER.get(arch)
    if counter is not None:

        def on_invalid(emulator: Any, _: Any) -> bool:
            emulator.reg_write(counter, emulator.reg_read(counter) + _VMCALL)
            return True

        emulator.hook_add(uc.UC_HOOK_INSN, on_out, None, 1, 0, x86.UC_X86_INS_OUT)
        emulator.hook_add(uc.UC_HOOK_INSN_INVALID, on_invalid)
    if arch == "aarch64":
        emulator.reg_write(arm.UC_ARM64_REG_CP_REG, _HVC_ENABLE)
