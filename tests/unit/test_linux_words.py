# SPDX-License-Identifier: MIT
"""The instructions that stand in for Python's stores, carried out by an emulated processor."""

from typing import Any, cast

import pytest
import unicorn
from unicorn import (
    UC_ARCH_ARM64,
    UC_ARCH_RISCV,
    UC_HOOK_MEM_READ,
    UC_HOOK_MEM_WRITE,
    UC_MODE_ARM,
    UC_MODE_RISCV64,
    arm64_const,
    riscv_const,
)

from callgate.linux.words import CODES, programs

PROGRAM, DATA, PAGE, BACK = 0x10000, 0x20000, 0x1000, 0x11000
MACHINES = {
    "aarch64": (
        (UC_ARCH_ARM64, UC_MODE_ARM),
        (arm64_const.UC_ARM64_REG_X0, arm64_const.UC_ARM64_REG_X1, arm64_const.UC_ARM64_REG_LR),
    ),
    "riscv64": (
        (UC_ARCH_RISCV, UC_MODE_RISCV64),
        (riscv_const.UC_RISCV_REG_A0, riscv_const.UC_RISCV_REG_A1, riscv_const.UC_RISCV_REG_RA),
    ),
}
VALUE = 0x8182_8384_8586_8788
Access = tuple[int, int, int]


def run(arch: str, program: bytes, value: int) -> tuple[int, list[Access]]:
    """What a function returns, and its accesses: address, size, value."""
    machine, (first, second, back) = MACHINES[arch]
    emulator: Any = cast(Any, unicorn).Uc(*machine)
    for address in (PROGRAM, DATA, BACK):
        emulator.mem_map(address, PAGE)
    emulator.mem_write(PROGRAM, program)
    emulator.mem_write(DATA, VALUE.to_bytes(8, "little") * 2)
    seen: list[Access] = []

    def note(_: object, kind: int, address: int, size: int, stored: int, __: object) -> None:
        seen.append((address, size, stored & (1 << 8 * size) - 1))

    emulator.hook_add(UC_HOOK_MEM_READ | UC_HOOK_MEM_WRITE, note)
    emulator.reg_write(first, DATA + 8)
    emulator.reg_write(second, value)
    emulator.reg_write(back, BACK)
    emulator.emu_start(PROGRAM, BACK)
    return int(emulator.reg_read(first)), seen


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("arch", CODES)
def test_a_load_is_one_access(arch: str, size: int) -> None:
    loads, _ = programs(CODES[arch])
    value, seen = run(arch, loads[size], 0)
    assert value == VALUE & (1 << 8 * size) - 1
    assert [each[:2] for each in seen] == [(DATA + 8, size)]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("arch", CODES)
def test_a_store_is_one_access(arch: str, size: int) -> None:
    _, stores = programs(CODES[arch])
    value = 0x0102_0304_0506_0708
    _, seen = run(arch, stores[size], value)
    assert seen == [(DATA + 8, size, value & (1 << 8 * size) - 1)]
