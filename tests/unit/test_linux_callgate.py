# SPDX-License-Identifier: MIT
"""The module's ABI for programs: what each name means to a C compiler that reads its header."""

import subprocess
import sys
from ctypes import Structure, sizeof
from pathlib import Path

import pytest

from callgate.linux import callgate
from callgate.linux.ioctl import Ioctl

HEADERS = Path(__file__).resolve().parents[2] / "guest" / "linux" / "include" / "uapi"
STRUCTURES = {
    name: kind
    for name, kind in vars(callgate).items()
    if isinstance(kind, type) and issubclass(kind, Structure) and kind is not Structure
}
C_NAMES = {"in_": "in"}
"""What Python has for itself."""


def assertions() -> list[str]:
    found = []
    for name, value in vars(callgate).items():
        if isinstance(value, Ioctl):
            found.append(f"{name} == {value.number:#x}")
        elif name.startswith("CALLGATE_"):
            found.append(f"{name} == {value}")
    for tag, struct in STRUCTURES.items():
        found.append(f"sizeof(struct {tag}) == {sizeof(struct)}")
        for field, kind, *_ in struct._fields_:
            name = C_NAMES.get(field, field)
            at = getattr(struct, field).offset
            found.append(f"__builtin_offsetof(struct {tag}, {name}) == {at}")
            found.append(f"sizeof(((struct {tag} *)0)->{name}) == {sizeof(kind)}")
    return found


@pytest.mark.parametrize("target", ["x86_64", "x86", "aarch64", "riscv64", "arm"])
def test_it_is_the_headers(target: str, tmp_path: Path) -> None:
    """For 32-bit programs too: their layouts are the same."""
    source = tmp_path / "abi.c"
    lines = [f'_Static_assert({each}, "{each}");' for each in assertions()]
    source.write_text("\n".join(["#include <linux/callgate.h>", *lines, ""]))
    system = "linux-musleabihf" if target == "arm" else "linux-musl"
    command = [sys.executable, "-m", "ziglang", "cc", "-target", f"{target}-{system}"]
    done = subprocess.run(
        [*command, "-c", "-o", str(tmp_path / "abi.o"), "-I", str(HEADERS), str(source)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_nothing_is_left_out() -> None:
    text = (HEADERS / "linux" / "callgate.h").read_text()
    assert {line.split()[1] for line in text.splitlines() if line.startswith("struct ")} == set(
        STRUCTURES
    )
    wanted = {line.split()[1] for line in text.splitlines() if line.startswith("#define CALLGATE_")}
    assert wanted <= set(vars(callgate)) | {"CALLGATE_H"}
