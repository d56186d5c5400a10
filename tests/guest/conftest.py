# SPDX-License-Identifier: MIT
"""Guest programs of a few lines, built when a test needs them."""

import functools
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

# Calls `main` on a stack below the program, and ends with what it returns.
STARTS = {
    "x86_64": "_start: mov $0x100000, %esp\n call main\n exit",
    "i386": "_start: mov $0x100000, %esp\n call main\n exit",
    "aarch64": "_start: movz x0, #0x4010, lsl #16\n mov sp, x0\n bl main\n exit",
    "riscv64": "_start: li sp, 0x80100000\n call main\n exit",
}
HEADER = """
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned long word;
#define MEM(type, address) (*(volatile type *)(word)(address))
/* Config space of bus 0, device 1: the first one that is plugged in. */
#define CONFIG(offset) MEM(u32, ECAM + 0x8000 + (offset))
#define BAR(index) (CONFIG(0x10 + 4 * (index)) & ~15u)
#define COMMAND CONFIG(4)
static inline void put(u8 byte);
static inline void print(const char *text)
{
    while (*text)
        put((u8)*text++);
}
#if defined(__x86_64__) || defined(__i386__)
static inline void out32(u16 port, u32 value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}
static inline u32 in32(u16 port)
{
    u32 value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}
static inline void put(u8 byte)
{
    __asm__ volatile("outb %0, %1" : : "a"(byte), "Nd"((u16)0x3f8) : "memory");
}
#else
static inline void out32(u16 port, u32 value)
{
    MEM(u32, PORTS + port) = value;
}
static inline u32 in32(u16 port)
{
    return MEM(u32, PORTS + port);
}
static inline void put(u8 byte)
{
    MEM(u8, CONSOLE) = byte;
}
#endif
"""

Build = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("ziglang") is None:
        pytest.skip('the package ziglang is not installed: pip install "callgate[guest]"')
    return tmp_path_factory.mktemp("guests")


@pytest.fixture(scope="session")
def build(folder: Path) -> Build:
    """Make an ELF file of assembly: `build(arch, source)`, with the macros of PRELUDES."""

    @functools.cache
    def build(arch: str, source: str) -> Path:
        text = _file(folder, arch + source, ".S")
        text.write_text(PRELUDES[arch] + source)
        return _link(arch, folder, [text])

    return build


@pytest.fixture(scope="session")
def compile_c(folder: Path) -> Build:
    """Make an ELF file of C: `compile_c(arch, source)`, with what HEADER has."""

    @functools.cache
    def compile_c(arch: str, source: str) -> Path:
        board = BOARDS[arch]
        start, text = _file(folder, arch, ".S"), _file(folder, arch + source, ".c")
        start.write_text(PRELUDES[arch] + STARTS[arch])
        ports = board.port_window.base if board.port_window else 0
        text.write_text(
            f"#define ECAM {board.ecam.base:#x}u\n#define PORTS {ports:#x}u\n"
            f"#define CONSOLE {board.console:#x}u\n#define RAM {board.ram:#x}u\n"
            f"{HEADER}\n#line 1\n{source}"
        )
        return _link(arch, folder, [start, text])

    return compile_c


@pytest.fixture(scope="session")
def guests() -> Path:
    """The folder of the repository's guest programs, built: guests / ARCHITECTURE / NAME.elf."""
    root = Path(__file__).resolve().parents[2]
    if find_spec("ziglang") is not None:  # What is current is left alone.
        subprocess.run([sys.executable, root / "guest" / "build.py"], check=True)
    elif not (root / "build" / "guest").is_dir():
        pytest.skip("no guest programs: python guest/build.py (needs the package ziglang)")
    return root / "build" / "guest"


def _file(folder: Path, content: str, suffix: str) -> Path:
    return folder / f"{hashlib.sha256(content.encode()).hexdigest()[:16]}{suffix}"


def _link(arch: str, folder: Path, sources: list[Path]) -> Path:
    script = folder / f"{arch}.ld"
    script.write_text(SCRIPT.format(address=BOARDS[arch].ram + 0x100000))
    result = sources[-1].with_suffix(".elf")
    command = [sys.executable, "-m", "ziglang", "cc", "-target"]
    command += [f"{TARGETS[arch]}-freestanding-none", *FLAGS[arch]]
    command += ["-std=gnu11", "-O2", "-Wall", "-ffreestanding", "-fno-stack-protector"]
    command += ["-fno-pic", "-fno-sanitize=all", "-fno-asynchronous-unwind-tables"]
    command += ["-Wno-unused-command-line-argument", "-Wno-unused-function"]
    command += ["-nostdlib", "-static", f"-Wl,-T,{script}", *map(str, sources)]
    done = subprocess.run([*command, "-o", str(result)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return result
