# SPDX-License-Identifier: MIT
"""`callgate.driver.open`: what is there is taken, and what is not is told."""

from pathlib import Path

import pytest

import callgate.driver
from callgate.call import call, u64
from callgate.device import Device
from callgate.driver import chardev, sysfs
from callgate.errors import NotFound
from callgate.machine import Machine


class Sums(Device):
    id = 0x1AF4, 0x10F0

    @call
    def add(self, a: u64, b: u64) -> u64:
        return a + b


@pytest.fixture(autouse=True)
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(chardev, "CLASS", tmp_path / "class")
    monkeypatch.setattr(chardev, "DEVICES", tmp_path / "dev")
    monkeypatch.setattr(sysfs, "DEVICES", tmp_path / "pci")
    return tmp_path


def test_a_device_in_this_process() -> None:
    with Machine(Sums(), on="loopback"), Machine(Sums(), on="loopback") as second:
        with callgate.driver.open("sums") as device:
            assert device.add(2, 40) == 42
        with callgate.driver.open("sums", second.door) as device:
            assert device.add(2, 40) == 42
        with pytest.raises(NotFound, match="those with a gate are: sums, sums"):
            callgate.driver.open("other")
    with pytest.raises(NotFound, match="those with a gate are: what sysfs has"):
        callgate.driver.open("sums")


def test_files_that_cannot_be_opened_are_named(nothing_here: Path) -> None:
    for name, device in (("callgate0", "sums"), ("callgate1", "other")):
        (nothing_here / "class" / name).mkdir(parents=True)
        (nothing_here / "class" / name / "name").write_text(f"{device}\n")
        (nothing_here / "dev" / name).mkdir(parents=True)
    with pytest.raises(NotFound, match=r"sums \(.*/callgate0: Is a directory\), other"):
        callgate.driver.open("sums")
