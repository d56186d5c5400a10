# SPDX-License-Identifier: MIT
"""What lspci, which knows PCI better than we do, says of our configuration space."""

import shutil
import subprocess
from pathlib import Path
from typing import Any, ClassVar

import pytest

from callgate.call import call, u64
from callgate.cli.app import run_app
from callgate.device import Device
from callgate.gate.vectors import VectorTable
from callgate.interrupt import Interrupt, Interrupts
from callgate.memory import GuestMemory
from callgate.pci.bus import Bus
from callgate.pci.capability import PciExpress, PowerManagement, VendorCapability
from callgate.pci.function import Function
from callgate.pci.lspci import dump
from callgate.register import Bar, Register
from callgate.timers import Timers

_STABLE = "BAR=", "Address:", "Pending:"
ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("lspci.txt")


class Everything(Device):
    id = 0x1AF4, 0x10F1
    subsystem = 0x1AF4, 0x1100
    class_code = 0x120000
    revision = 3
    capabilities: ClassVar[tuple[Any, ...]] = (PowerManagement(), VendorCapability(b"sample"))

    value = Register(0x00)
    done = Interrupt()

    @call
    def add(self, a: u64, b: u64) -> u64:
        return a + b


class Express(Device):
    id = 0x1AF4, 0x10F2
    capabilities: ClassVar[tuple[Any, ...]] = (PciExpress(),)

    screen = Bar(0, 0x10000, width=64, prefetchable=True, ram=True)
    ports = Bar(2, 16, "io")


class Signals(Device):
    id = 0x1AF4, 0x10F3
    msi = True

    done = Interrupt()
    queues = Interrupts(4)


class Bare(Signals):
    msix = msi_masking = False


@pytest.fixture
def bus() -> Bus:
    memory = GuestMemory()
    bus = Bus(memory)
    for number, device in enumerate((Everything(), Express(), Signals(), Bare())):
        function = Function(
            device,
            memory=memory,
            deliver=lambda address, data: None,
            set_intx=lambda level: None,
            timers=Timers(),
            table=VectorTable(),
        )
        bus.plug(function, slot=1, number=number)
    bus.assign(memory=range(0xC000_0000, 0xD000_0000), ports=range(0xC000, 0x10000), lines=(10,))
    return bus


def judge(text: str, folder: Path) -> str:
    """What `lspci -n -vvv` prints for a dump."""
    if shutil.which("lspci") is None:
        pytest.skip("lspci: not installed (apt-get install pciutils)")
    file = folder / "dump"
    file.write_text(text)
    result = subprocess.run(
        ["lspci", "-n", "-vvv", "-F", file], capture_output=True, text=True, check=True
    )
    return result.stdout


def stable(said: str) -> str:
    """Without what releases of lspci word differently: PCI Express, and details of a capability."""
    return "".join(
        line
        for line in (said.strip() + "\n").splitlines(keepends=True)
        if "Express" not in line
        and (not line.startswith("\t\t") or any(word in line for word in _STABLE))
    )


def test_lspci_says_of_us_what_it_did(bus: Bus, tmp_path: Path) -> None:
    said = judge(dump(bus), tmp_path)
    assert stable(said) == GOLDEN.read_text()


def test_show_prints_what_it_did(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`callgate show --lspci`, byte for byte, and what lspci reads in it: two functions of a slot,
    and another slot."""
    adder, ticker = (ROOT / "examples" / name / "device.py" for name in ("01_adder", "02_timer"))
    assert run_app(["show", f"{adder},{ticker}", str(adder), "--lspci"]) == 0
    printed = capfd.readouterr().out
    assert printed == GOLDEN.with_name("show_lspci.txt").read_text()
    assert stable(judge(printed, tmp_path)) == GOLDEN.with_name("show_lspci_read.txt").read_text()


def test_lspci_finds_power_states_and_function_level_reset(bus: Bus, tmp_path: Path) -> None:
    said = judge(dump(bus), tmp_path)
    assert "Status: D0 NoSoftRst+ PME-Enable-" in said
    assert "Express (v2) Root Complex Integrated Endpoint" in said
    assert "ExtTag- RBE+ FLReset+" in said
    assert "MaxPayload 128 bytes, MaxReadReq 512 bytes" in said


def test_lspci_reads_msi_in_use(bus: Bus, tmp_path: Path) -> None:
    function = next(each for each in bus.functions.values() if each.name == "signals")
    assert isinstance(function, Function)
    for at, size, value in ((4, 4, 0xFEE0_1000), (8, 4, 1), (12, 2, 0x4021), (16, 4, 0x82)):
        function.config_write(0x40 + at, size, value)
    function.config_write(0x42, 2, 2 << 4 | 1)
    for index in (1, 2, 3):
        function.trigger(index)
    said = judge(dump(bus), tmp_path)
    assert "MSI: Enable+ Count=4/8 Maskable+ 64bit+\n" in said
    assert "\t\tAddress: 00000001fee01000  Data: 4021\n" in said
    assert "\t\tMasking: 00000082  Pending: 0000000e\n" in said  # No bus master: all wait.


def test_lspci_reads_the_extended_space_too(bus: Bus, tmp_path: Path) -> None:
    text = dump(bus, extended=True)
    assert text.count("\nff0: " + "00 " * 15 + "00\n") == 5
    assert "Extended" not in judge(text, tmp_path)


def test_the_dump_is_rows_of_sixteen_bytes(bus: Bus) -> None:
    rows = dump(bus).splitlines()
    assert rows[0] == "00:00.0 host bridge"
    assert rows[1] == "00: f4 1a ff 10 00 00 00 00 00 00 00 06 00 00 00 00"
    assert rows[16] == "f0:" + " 00" * 16
    assert rows[17:19] == ["", "00:01.0 everything"]
