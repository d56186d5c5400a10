# SPDX-License-Identifier: MIT
"""`callgate.driver` in a guest: Python there calls Python here, through each door."""

from pathlib import Path

import pytest
from tests.qemu.module import build
from tests.qemu.python.device import Counterpart
from tests.qemu.tools import python

from callgate.backends.qemu.guest import Guest
from callgate.testing.linux import needs_linux

PROGRAM = Path(__file__).with_name("python") / "program.py"
TIMEOUT = 300.0
UIO = "echo 1af4 10f2 > /sys/bus/pci/drivers/uio_pci_generic/new_id\n"


@pytest.mark.parametrize(
    ("arch", "door"),
    [
        ("x86_64", "sysfs"),
        ("x86_64", "module"),
        ("x86_64", "uio"),
        ("aarch64", "sysfs"),
        ("aarch64", "module"),
        ("riscv64", "sysfs"),
        ("riscv64", "module"),
    ],
)
def test_the_same_calls_through_each_door(arch: str, door: str) -> None:
    needs_linux(arch)
    files = python(arch) | {"program.py": PROGRAM}
    modules: list[str] | None = {"sysfs": [], "uio": ["uio_pci_generic"]}.get(door)
    if modules is None:
        modules = [str(build.modules(arch) / f"{name}.ko") for name in ("callgate", "callgate_pci")]
    first = UIO if door == "uio" else ""
    with Guest(
        Counterpart(),
        arch=arch,
        program=f"{first}PYTHONHOME=/usr python3 program.py {door}",
        files=files,
        modules=modules,
        memory=512,
        timeout=TIMEOUT,
    ) as guest:
        result = guest.run()
    assert result.output.endswith("ok\n"), result.output
    assert result.exit_code == 0
    assert "counterpart (version 1)" in result.output
