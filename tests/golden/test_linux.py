# SPDX-License-Identifier: MIT
"""The Linux side's page follows its comments, and numbers that stand twice are the same."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from callgate.load import load_device_class

ROOT = Path(__file__).resolve().parents[2]
LINUX = ROOT / "guest" / "linux"


def test_the_page_is_in_step_with_the_comments() -> None:
    command = [sys.executable, str(ROOT / "tools" / "linux-reference")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_modules_have_the_package_s_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f'PACKAGE_VERSION="{version}"' in (LINUX / "dkms.conf").read_text()
    for source in LINUX.glob("*.c"):
        for found in re.findall(r'MODULE_VERSION\("(.*)"\)', source.read_text()):
            assert found == version, source.name


@pytest.mark.parametrize("example", ["01_adder", "03_checksum", "05_console"])
def test_a_driver_has_its_device_s_signatures(example: str) -> None:
    """Each hash, and the text that the comment above it says it is of."""
    folder = ROOT / "examples" / example
    driver = (folder / "driver.c").read_text()
    spec = load_device_class(str(folder / "device.py")).spec
    for call in spec.calls:
        found = re.search(rf"_{call.name.upper()}_SIGNATURE\s+(0x\w+)ULL", driver)
        assert found is not None
        assert int(found[1], 16) == call.hash
        assert f'"{call.text}"' in driver
    vendor, device = spec.cls.id
    assert f"PCI_DEVICE({vendor:#06x}, {device:#06x})" in driver
    for register in spec.registers:
        name = f"{spec.name}_{register.name}".upper()
        assert re.search(rf"#define {name}\s+{register.offset:#04x}\n", driver), name
