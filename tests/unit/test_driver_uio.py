# SPDX-License-Identifier: MIT
"""An interrupt line through /dev/uioN, played by a pipe: a read gives how many there were."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from callgate.device import Device
from callgate.driver.pci import COMMAND, COMMAND_MASTER, COMMAND_NO_INTX, PciFunction
from callgate.driver.uio import UioInterrupt
from callgate.testing import FakeGuest

COUNT = (1).to_bytes(4, "little")


class Plain(Device):
    id = 0x1AF4, 0x10F1


@pytest.fixture
def function() -> Iterator[PciFunction]:
    with FakeGuest(Plain()) as guest:
        function = guest.function(*Plain.id)
        function.set_config(COMMAND, 2, COMMAND_MASTER | COMMAND_NO_INTX)
        yield function


def masked(function: PciFunction) -> bool:
    command = function.config(COMMAND, 2)
    assert command & COMMAND_MASTER  # All else stays.
    return bool(command & COMMAND_NO_INTX)


def test_a_line(function: PciFunction, tmp_path: Path) -> None:
    path = tmp_path / "uio0"
    os.mkfifo(path)
    line = UioInterrupt(path, function)
    assert not masked(function)
    assert not line.take()
    assert not line.wait(0)
    with path.open("wb", buffering=0) as kernel:
        function.set_config(COMMAND, 2, function.config(COMMAND, 2) | COMMAND_NO_INTX)
        kernel.write(COUNT)
        assert line.wait(10)
        assert not masked(function)  # The kernel did that when it took the interrupt.
        assert not line.take()
        kernel.write(COUNT)
        assert line.take()
    line.mask(True)
    assert masked(function)
    line.mask(False)
    assert not masked(function)
    line.close()


def test_a_line_that_nobody_has(function: PciFunction, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        UioInterrupt(tmp_path / "uio1", function)
