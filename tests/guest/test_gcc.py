# SPDX-License-Identifier: MIT
"""The guest library under GCC, without optimization: what a compiler puts between two lines of C
must not reach the registers of a hypercall."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from callgate.load import load_device_class
from callgate.machine import Machine

ROOT = Path(__file__).resolve().parents[2]
ADDER = ROOT / "examples" / "01_adder"
GCC = {
    "x86_64": ("x86_64-linux-gnu-gcc", ["-m64", "-mno-red-zone"], "gcc"),
    "i386": ("x86_64-linux-gnu-gcc", ["-m32", "-march=i686"], "gcc"),
    "aarch64": ("aarch64-linux-gnu-gcc", ["-mstrict-align"], "gcc-aarch64-linux-gnu"),
    "riscv64": (
        "riscv64-linux-gnu-gcc",
        ["-march=rv64imac_zicsr", "-mabi=lp64", "-mcmodel=medany"],
        "gcc-riscv64-linux-gnu",
    ),
}


@pytest.fixture(scope="module")
def build() -> ModuleType:
    specification = importlib.util.spec_from_file_location("guest_build", ROOT / "guest/build.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["guest_build"] = module
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("level", ["-O0", "-O2"])
@pytest.mark.parametrize("arch", GCC)
def test_every_transport_works(arch: str, level: str, build: ModuleType, tmp_path: Path) -> None:
    gcc, flags, package = GCC[arch]
    if shutil.which(gcc) is None:
        pytest.skip(f"{gcc}: not installed (apt-get install {package})")
    own = build.BARE / arch
    machine = next(each for each in build.ARCHITECTURES if each.name == arch)
    program = tmp_path / "adder.elf"
    header = build.write_header(ADDER / "device.py")
    if arch != "riscv64":
        flags = [*flags, "-mgeneral-regs-only"]
    done = subprocess.run(
        [
            *(gcc, *flags, level, "-std=c11", "-ffreestanding", "-nostdlib", "-static", "-fno-pic"),
            *("-Wall", "-Wextra", "-Werror", "-fno-stack-protector", "-no-pie"),
            *("-fno-asynchronous-unwind-tables", "-Wl,--build-id=none", "-Wl,-z,noexecstack"),
            *(f"-I{build.GUEST / 'include'}", f"-I{header.parent}", f"-I{build.BARE / 'include'}"),
            *("-iquote", str(own), "-iquote", str(build.BARE), f"-Wl,-T,{own / 'link.ld'}"),
            *map(str, machine.sources),
            str(ADDER / "guest.c"),
            *("-o", str(program)),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    adder = load_device_class(ADDER / "device.py")()
    with Machine(adder, arch=arch, guest=program, timeout=30) as running:
        result = running.run()
    lines = result.output.splitlines()
    assert len(lines) == 7
    assert all(line.endswith("2 + 40 = 42 ok") for line in lines), result.output
    assert result.exit_code == 0
