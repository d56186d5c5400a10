# SPDX-License-Identifier: MIT
"""Guest programs of a few lines, built when a test needs them."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from callgate.backends.board import BOARDS

ARCHITECTURES = tuple(BOARDS)
TARGETS = {"x86_64": "x86_64", "i386": "x86", "aarch64": "aarch64", "riscv64": "riscv64"}
FLAGS = {
    "x86_64": ["-mcpu=x86_64-x87-mmx-sse-sse2+soft_float", "-mno-red-zone"],
    "i386": ["-mcpu=i686-x87-mmx-sse-sse2+soft_float"],
    "aarch64": ["-mcpu=generic-neon-fp_armv8+strict_align"],
    "riscv64": ["-mcpu=generic_rv64+m+a+c+zicsr", "-mabi=lp64", "-mcmodel=medany"],
}
SCRIPT = """
ENTRY(_start)
SECTIONS {{
    . = {address:#x};
    .text : {{ *(.text.start) *(.text*) *(.rodata*) }}
    .data : {{ *(.data*) *(.bss*) *(COMMON) }}
    /DISCARD/ : {{ *(.comment) *(.eh_frame*) *(.note*) *(.ARM.*) *(.riscv.*) }}
}}
"""

_X86 = """
.macro put byte
    mov $\\byte, %al
    mov $0x3f8, %dx
    out %al, %dx
.endm
.macro exit /* with eax */
    mov $0xf4, %dx
    out %eax, %dx
9:  jmp 9b
.endm
.globl _start
.section .text.start, "ax"
"""
PRELUDES = {
    "x86_64": _X86,
    "i386": _X86,
    "aarch64": """
.macro put byte
    mov w16, #\\byte
    movz x17, #0x0900, lsl #16
    str w16, [x17]
.endm
.macro exit /* with x0 */
    movz x17, #0x4000, lsl #16
    movk x17, #0x1000
    movz x16, #2, lsl #16
    movk x16, #0x26
    str x16, [x17]
    str x0, [x17, #8]
    mov x1, x17
    mov x0, #0x20
    hlt #0xf000
9:  b 9b
.endm
.globl _start
.section .text.start, "ax"
""",
    "riscv64": """
.macro put byte
    li t5, \\byte
    li t6, 0x10000000
    sb t5, 0(t6)
.endm
.macro exit /* with a0 */
    slli a0, a0, 16
    li t5, 0x3333
    or a0, a0, t5
    li t6, 0x100000
    sw a0, 0(t6)
9:  j 9b
.endm
.globl _start
.section .text.start, "ax"
""",
}
"""Begin a program: `put BYTE` writes to the console, `exit` ends with eax, x0 or a0."""

Build = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Make an ELF file of assembly: `build(arch, source)`, with the macros of PRELUDES."""
    if find_spec("ziglang") is None:
        pytest.skip('the package ziglang is not installed: pip install "callgate[guest]"')
    folder = tmp_path_factory.mktemp("guests")
    built: dict[str, Path] = {}

    def build_one(arch: str, source: str) -> Path:
        key = hashlib.sha256(f"{arch}\n{source}".encode()).hexdigest()[:16]
        if key not in built:
            text, script = folder / f"{key}.S", folder / f"{key}.ld"
            text.write_text(PRELUDES[arch] + source)
            script.write_text(SCRIPT.format(address=BOARDS[arch].ram + 0x100000))
            command = [sys.executable, "-m", "ziglang", "cc", "-target"]
            command += [f"{TARGETS[arch]}-freestanding-none", *FLAGS[arch]]
            command += ["-nostdlib", "-static", f"-Wl,-T,{script}", str(text)]
            result = subprocess.run(
                [*command, "-o", str(folder / f"{key}.elf")], capture_output=True, text=True
            )
            assert result.returncode == 0, result.stderr
            built[key] = folder / f"{key}.elf"
        return built[key]

    return build_one
