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

Build = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Make an ELF file of assembly: `build(arch, source)`; it begins at `_start`."""
    if find_spec("ziglang") is None:
        pytest.skip('the package ziglang is not installed: pip install "callgate[guest]"')
    folder = tmp_path_factory.mktemp("guests")
    built: dict[str, Path] = {}

    def build_one(arch: str, source: str) -> Path:
        key = hashlib.sha256(f"{arch}\n{source}".encode()).hexdigest()[:16]
        if key not in built:
            text, script = folder / f"{key}.S", folder / f"{key}.ld"
            text.write_text(source)
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
