# SPDX-License-Identifier: MIT
"""A stock Linux in a stock QEMU, with devices that are Python classes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from callgate import Device, Interrupt, Register, call, u64
from callgate.backends.qemu.guest import Guest
from callgate.backends.result import Result
from callgate.errors import BackendError, BudgetError
from callgate.load import load_device_class
from callgate.testing.linux import needs_linux

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "build" / "guest" / "x86_64" / "linux"

Boot = Callable[..., Result]


class Plain(Device):
    """Registers, and nothing that interrupts."""

    id = 0x1AF4, 0x10F1
    value = Register(0x00, reset=0x1234_5678)


class Messages(Plain):
    """An interrupt by MSI."""

    msi, msix = True, False
    done = Interrupt()


class Summing(Device):
    """A call."""

    id = 0x1AF4, 0x10F2

    @call
    def add(self, a: u64, b: u64) -> u64:
        """Return the sum."""
        return a + b


def user_program(name: str) -> Path:
    """A program for the guest's user space, built if it is not current."""
    pytest.importorskip("ziglang", reason="the package ziglang is needed to build guests")
    command = [sys.executable, str(ROOT / "guest" / "build.py"), "--linux", "x86_64", name]
    subprocess.run(command, check=True)
    return BUILT / name


def test_linux_sees_the_device(linux_guest: Boot) -> None:
    result = linux_guest(Plain(), exec="cat /sys/bus/pci/devices/0000:00:01.0/vendor")
    assert (result.exit_code, result.output) == (0, "0x1af4\n")


def test_its_own_driver_reads_registers(linux_guest: Boot) -> None:
    read = "echo 1 > $D/enable; devmem $(awk 'NR==1 {print $1}' $D/resource) 32"
    result = linux_guest(
        Plain(), exec=f"D=/sys/bus/pci/devices/0000:00:01.0; {read}", append="iomem=relaxed"
    )
    assert result.output.strip() == "0x12345678"


def test_the_exit_code_comes_back(linux_guest: Boot) -> None:
    assert linux_guest(exec="exit 41").exit_code == 41
    assert linux_guest(exec="kill -9 $$").exit_code == 137


def test_modules_come_with_what_they_need(linux_guest: Boot) -> None:
    result = linux_guest(exec="cut -d ' ' -f 1 /proc/modules", module="virtio_blk")
    assert result.output.split() == ["virtio_blk", "virtio_ring", "virtio"]


def test_files_are_there(linux_guest: Boot, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    (tmp_path / "two").write_text("2")
    files = [tmp_path / "one", f"{tmp_path / 'two'}:/etc/number"]
    assert linux_guest(exec="cat one /etc/number", file=files).output == "12"


def test_a_program_calls_the_device(linux_guest: Boot) -> None:
    """The example's guest program, unchanged, in user space, by every transport there is."""
    needs_linux()
    adder = load_device_class(str(ROOT / "examples" / "01_adder" / "device.py"))
    result = linux_guest(adder(), exec=str(user_program("01_adder")))
    lines = result.output.splitlines()
    ways = ("cheapest", "polled", "pio", "mmio")
    # Interrupts take a kernel driver, and its absence is told.
    assert lines[0] == "registers: interrupt: ABSENT"
    assert lines[1:] == [f"call {way}: 2 + 40 = 42 ok" for way in ways]


@pytest.mark.parametrize("shared", [True, False])
def test_a_buffer_with_and_without_shared_memory(shared: bool) -> None:
    """Where the VMM keeps its memory to itself, DMA goes by messages."""
    needs_linux()
    checksum = load_device_class(str(ROOT / "examples" / "03_checksum" / "device.py"))
    elf = ROOT / "build" / "guest" / "x86_64" / "03_checksum.elf"
    with Guest(checksum(), guest=elf, shared=shared, timeout=60) as guest:
        result = guest.run()
    assert result.exit_code == 0, result.output


def test_several_devices(linux_guest: Boot) -> None:
    result = linux_guest(Plain(), Summing(), exec="cat /sys/bus/pci/devices/0000:00:0[12].0/device")
    assert result.output.split() == ["0x10f1", "0x10f2"]


def test_rebinding_a_hundred_times(linux_guest: Boot) -> None:
    """A guest that enables, removes and finds the function again and again."""
    loop = """
        D=/sys/bus/pci/devices/0000:00:01.0
        for i in $(seq 100); do
            echo 1 > $D/enable && echo 1 > $D/remove && echo 1 > /sys/bus/pci/rescan || exit 1
        done
        cat $D/vendor
    """
    device = Plain()
    result = linux_guest(device, exec=loop)
    assert (result.exit_code, result.output) == (0, "0x1af4\n")


@pytest.mark.parametrize("kind", [Plain, Messages])
def test_a_device_is_plugged_and_unplugged(kind: type[Plain]) -> None:
    needs_linux()
    pytest.importorskip("qemu.qmp", reason="hot plug takes the package qemu.qmp")
    look = """
        bus=/sys/bus/pci/devices
        echo start; until ls $bus | grep -q 0000:01; do :; done
        echo plugged; while ls $bus | grep -q 0000:01; do :; done
        echo unplugged
    """
    with Guest(kind(), hotplug=True, program=look, timeout=60) as guest:
        guest.start()
        guest.wait_for("start", 60)
        guest.plug(0)
        guest.wait_for("plugged", 60)
        guest.unplug(0)
        guest.wait_for("unplugged", 60)


def test_a_device_with_msix_stays_plugged_in() -> None:
    needs_linux()
    with (
        Guest(Summing(), hotplug=True, program="true") as guest,
        pytest.raises(BackendError, match="must stay plugged in"),
    ):
        guest.unplug(0)


def test_a_guest_that_never_ends() -> None:
    needs_linux()
    with (
        Guest(program="echo still here; sleep 1000", timeout=15) as guest,
        pytest.raises(BudgetError, match="still here"),
    ):
        guest.run()


def test_nothing_is_left_behind() -> None:
    """QEMU ends with its parent, however that ends."""
    needs_linux()
    script = (
        "import sys, time\n"
        "from callgate.backends.qemu.guest import Guest\n"
        "guest = Guest(program='echo up; sleep 1000')\n"
        "guest.start()\n"
        "guest.wait_for('up', 60)\n"
        "print(guest._process.pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        qemu = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while _runs(qemu) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(qemu)


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie, which only its parent can make go."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_ctrl_c(tmp_path: Path) -> None:
    needs_linux()
    source = tmp_path / "device.py"
    source.write_text(
        "from callgate import Device, Register\n"
        "class Plain(Device):\n    id = 0x1AF4, 0x10F1\n    value = Register(0)\n"
    )
    command = [sys.executable, "-m", "callgate", "run", source, "--on", "qemu"]
    command += ["--exec", "echo up; sleep 1000"]
    with subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\r\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["device.py"]
