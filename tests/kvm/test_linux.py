# SPDX-License-Identifier: MIT
"""A stock Linux on our own hypervisor finds the devices, and calls them."""

import os
import sys
from pathlib import Path

import pytest

from callgate import BackendError, BudgetError, Device, LoadError, Register
from callgate.backends.kvm import probe
from callgate.backends.qemu.kernel import find_busybox, find_kernel
from callgate.cli.app import run_app
from callgate.linux_guest import LinuxGuest
from callgate.load import load_device_class

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "build" / "guest" / "x86_64" / "linux"
Adder = load_device_class(str(ROOT / "examples" / "01_adder" / "device.py"))
BOOT = 300.0
"""Seconds: the processor may be an emulated one."""


def lacking() -> str | None:
    if (reason := probe.lacks()) is not None:
        return reason
    if not probe.host().virtualizes:
        return "KVM is emulated in software here, and no stock Linux boots on that"
    try:
        find_kernel("x86_64")
        find_busybox("x86_64")
    except BackendError as error:
        return str(error)
    return None


pytestmark = pytest.mark.skipif((why := lacking()) is not None, reason=f"kvm: {why}")


class Plain(Device):
    """Registers, and nothing that interrupts."""

    id = 0x1AF4, 0x10F1
    value = Register(0x00, reset=0x1234_5678)


def program(name: str) -> Path:
    path = BUILT / name
    assert path.exists(), "run: python guest/build.py --linux x86_64"
    return path


def test_linux_boots_finds_the_devices_and_calls_them() -> None:
    """Two processors, two devices in one slot and one in the next; a call by every transport."""
    look = (
        "grep -c ^processor /proc/cpuinfo; cd /sys/bus/pci/devices; cat */device;"
        "echo 1 > 0000:00:02.0/enable; cd /root; ./01_adder; grep -c ttyS0 /proc/interrupts; exit 7"
    )
    with LinuxGuest(
        (Plain(), Plain()),
        Adder(),
        program=look,
        files={"01_adder": program("01_adder")},
        cpus=2,
        timeout=BOOT,
    ) as guest:
        result = guest.run()
    assert result.exit_code == 7, result.output
    assert result.output.splitlines() == [
        "2",
        *("0x10ff", "0x10f1", "0x10f1", "0x10f0"),
        "registers: interrupt: ABSENT",  # That takes a kernel driver.
        *(f"call {way}: 2 + 40 = 42 ok" for way in ("cheapest", "polled", "pio", "mmio")),
        "1",
    ]


def test_the_command_line_joins_the_console_to_ours(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standard input and output; and the exit code is the program's."""
    file = str(ROOT / "examples" / "01_adder" / "device.py")
    line = "read word; echo got $word; exit 3"
    read, write = os.pipe()
    os.write(write, b"something\n")
    with os.fdopen(read) as typed, os.fdopen(write, "w"):
        monkeypatch.setattr(sys, "stdin", typed)
        code = run_app(["run", file, "--on", "kvm", "--exec", line, "--timeout", str(BOOT)])
    out = capfd.readouterr().out
    assert (code, "got something" in out) == (3, True), out


def test_time_is_up_while_linux_runs() -> None:
    with (
        LinuxGuest(program="sleep 1000", timeout=2) as guest,
        pytest.raises(BudgetError, match="used up its time"),
    ):
        guest.run()


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"kernel": Path("/nowhere")}, BackendError, "must be a file that you can read"),
        ({"kernel": Path(__file__)}, LoadError, "The kernel must be a bzImage"),
        ({"memory": 16}, LoadError, "the guest has 16 MiB of memory"),
        ({"modules": ["no_such_module"]}, BackendError, "The module no_such_module must be in"),
    ],
)
def test_what_cannot_be_booted(
    options: dict[str, object], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        LinuxGuest(**options)  # type: ignore[arg-type]
