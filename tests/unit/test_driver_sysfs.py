# SPDX-License-Identifier: MIT
"""The door through sysfs, on files like those of a kernel: what a device would answer is not there.

Calls through it are made in tests/qemu.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from callgate.call import call, u64
from callgate.device import Device
from callgate.driver import lspci, sysfs
from callgate.driver.find import gates
from callgate.driver.pci import PciFunction
from callgate.driver.sysfs import SysfsDoor
from callgate.errors import BackendError, NotFound
from callgate.gate.abi import PAGE, Instruction, Transport
from callgate.testing import FakeGuest

FUNCTION = 0x08
CONFIG_SIZE = 256
MEMORY, PORTS = 0x4_0040200, 0x4_0040101
"""Flags of a resource as the kernel has them."""


class Sums(Device):
    id = 0x1AF4, 0x10F0

    @call
    def add(self, a: u64, b: u64) -> u64:
        return a + b


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder such as /sys/bus/pci/devices with a copy of a device, and one that a driver has."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    devices = tmp_path / "devices"
    folder = devices / "0000:00:01.0"
    folder.mkdir(parents=True)
    with FakeGuest(Sums()) as guest:
        device = guest.open("sums")
        config = [guest.door.config_read(FUNCTION, at, 1) for at in range(CONFIG_SIZE)]
        gate, port = device.base, device.function.bar(3).address
        memory = guest.door.map(gate, device.doorbell - gate)
        assert memory is not None
        (folder / "resource1").write_bytes(bytes(memory) + bytes(PAGE))
    (folder / "config").write_bytes(bytes(config))
    (folder / "resource3").write_bytes(bytes(range(16)))
    lines = ["0x0 0x0 0x0"] * 6
    lines[1] = f"{gate:#x} {gate + len(memory) + PAGE - 1:#x} {MEMORY:#x}"
    lines[3] = f"{port:#x} {port + 15:#x} {PORTS:#x}"
    (folder / "resource").write_text("\n".join(lines))
    other = devices / "0001:02:03.4"
    other.mkdir()
    (other / "config").write_bytes(bytes(CONFIG_SIZE))
    (tmp_path / "e1000").mkdir()
    (other / "driver").symlink_to(tmp_path / "e1000")
    return devices


@pytest.fixture
def door(devices: Path) -> Iterator[SysfsDoor]:
    door = SysfsDoor(devices)
    yield door
    door.close()


def test_a_function_that_a_driver_has_is_left_alone(door: SysfsDoor, devices: Path) -> None:
    assert list(door.functions()) == [FUNCTION]
    link = devices / "0001:02:03.4" / "driver"
    link.unlink()
    link.symlink_to("uio_pci_generic")
    assert list(door.functions()) == [FUNCTION, 0x1021C]
    assert str(PciFunction(door, 0x1021C)) == "0001:02:03.4"


def test_configuration_space(door: SysfsDoor, devices: Path) -> None:
    function = PciFunction(door, FUNCTION)
    assert function.id == (0x1AF4, 0x10F0)
    function.set_config(0x3C, 1, 0x55)
    assert (devices / "0000:00:01.0" / "config").read_bytes()[0x3C] == 0x55
    assert function.config(0x1000, 4) == 0xFFFF_FFFF
    with pytest.raises(NotFound, match="has gone"):
        PciFunction(door, 0xF8).config(0, 2)


def test_bars(door: SysfsDoor, devices: Path) -> None:
    function = PciFunction(door, FUNCTION)
    folder = devices / "0000:00:01.0"
    for size in (1, 2, 4, 8):
        function.write(1, 0x80, size, 0x1122334455667788 & (1 << 8 * size) - 1)
        assert function.read(1, 0x80, size) == 0x1122334455667788 & (1 << 8 * size) - 1
    assert (folder / "resource1").read_bytes()[0x80:0x88] == bytes.fromhex("8877665544332211")
    assert function.read(3, 4, 4) == 0x07060504
    function.write(3, 4, 2, 0xABCD)
    assert (folder / "resource3").read_bytes()[4:6] == b"\xcd\xab"
    view = door.map(function.bar(1).address + 0x80, 8)
    assert view is not None
    assert view[0] == 0x88
    view.release()
    with pytest.raises(NotFound, match="must lie in a BAR"):
        door.read(0x1000, 4)


def test_a_gate_is_found(door: SysfsDoor) -> None:
    ((function, place, name),) = gates(door)
    assert (function.address, place.bar, name) == (FUNCTION, 1, "sums")
    (found,) = lspci.survey(door)
    assert found["name"] == "sums"
    assert found["calls"] == [{"signature": "add(u64,u64)->u64", "bound": True}]
    assert "Call: add(u64,u64)->u64" in lspci.show(found)


def test_a_program_makes_no_hypercalls(door: SysfsDoor) -> None:
    assert not door.transports & Transport.HYPERCALL
    with pytest.raises(BackendError, match="cannot make hypercalls"):
        door.hypercall(Instruction.VMCALL, 0, 1, ())


def test_memory_for_dma(door: SysfsDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = iter([0x4000_0000, 0x8000_0000])
    monkeypatch.setattr(
        sysfs, "_huge_page", lambda wanted: (next(pages), memoryview(bytearray(256)))
    )
    first, second, third = door.allocate(100), door.allocate(64), door.allocate(128)
    assert (first.gpa, second.gpa, third.gpa) == (0x4000_0000, 0x4000_0080, 0x8000_0000)
    door.store(second.gpa, b"here")
    assert door.load(second.gpa, 5) == b"here\0"
    with pytest.raises(NotFound, match="allocated here"):
        door.load(0x1000, 1)


def test_memory_for_dma_that_is_not_there(
    tmp_path: Path, door: SysfsDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = tmp_path / "meminfo"
    monkeypatch.setattr(sysfs, "_MEMORY", sizes)
    sizes.write_text("MemTotal: 1 kB\n")
    with pytest.raises(MemoryError, match="this kernel has not"):
        door.allocate(1)
    sizes.write_text("Hugepagesize:       2048 kB\n")
    with pytest.raises(MemoryError, match="2097152 bytes at most"):
        door.allocate(1 << 22)


def test_who_may_not(devices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match="has no PCI bus"):
        SysfsDoor(tmp_path / "nothing")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(BackendError, match="take root"):
        SysfsDoor(devices)
