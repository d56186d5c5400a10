# SPDX-License-Identifier: MIT
"""QEMU's command line, word by word."""

import io
import json
import platform
from pathlib import Path
from typing import Any

import pytest

from callgate.backends.qemu import command
from callgate.backends.qemu.command import HOTPLUG_PORTS, Command, device, kvm_works


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host for x86_64 without KVM."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(command, "kvm_works", lambda: False)


def line(arch: str = "x86_64", **options: Any) -> list[str]:
    return Command(qemu=Path("/q"), arch=arch, kernel=Path("/k"), **options).line()


def after(words: list[str], option: str) -> list[str]:
    """What follows each time that an option is there."""
    return [words[at + 1] for at, word in enumerate(words) if word == option]


def test_linux() -> None:
    words = line(initrd=Path("/i"), memory=64, cpus=3, append="debug")
    assert words[0] == "/q"
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(words)
    assert after(words, "-kernel") == ["/k"]
    assert after(words, "-initrd") == ["/i"]
    assert after(words, "-append") == ["console=ttyS0 quiet panic=-1 reboot=t debug"]
    assert (after(words, "-m"), after(words, "-smp")) == (["64M"], ["3"])
    assert after(words, "-run-with") == ["exit-with-parent=on"]
    assert after(words, "-device") == []
    assert "-bios" not in words


@pytest.mark.parametrize(
    ("arch", "console", "machine"),
    [
        ("aarch64", "ttyAMA0", "virt"),
        ("riscv64", "ttyS0", "virt,aia=aplic-imsic"),
        ("i386", "ttyS0", "q35"),
    ],
)
def test_linux_elsewhere(arch: str, console: str, machine: str) -> None:
    words = line(arch, initrd=Path("/i"))
    assert after(words, "-append") == [f"console={console} quiet panic=-1 reboot=t"]
    assert after(words, "-machine") == [f"{machine},memory-backend=ram"]
    assert "-bios" not in words


@pytest.mark.parametrize(
    ("arch", "machine", "wanted"),
    [
        ("x86_64", "q35", ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]),
        ("i386", "q35", ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]),
        ("aarch64", "virt,highmem=off", ["-semihosting"]),
        ("riscv64", "virt", ["-bios", "none"]),
    ],
)
def test_a_program_without_an_operating_system(arch: str, machine: str, wanted: list[str]) -> None:
    words = line(arch)
    assert after(words, "-machine") == [f"{machine},memory-backend=ram"]
    at = words.index(wanted[0])
    assert words[at : at + len(wanted)] == wanted
    assert "-append" not in words
    assert "-initrd" not in words


def test_memory_is_a_file_that_devices_get() -> None:
    words = line(memory=32)
    assert after(words, "-object") == ["memory-backend-memfd,id=ram,size=32M,share=on"]
    words = line(shared=False)
    assert after(words, "-object") == []
    assert after(words, "-machine") == ["q35"]


def test_devices_are_plugged_in_from_slot_1_on() -> None:
    words = line("riscv64", sockets=[Path("/run/a b.sock"), Path("/run/c.sock")])
    assert [json.loads(each) for each in after(words, "-device")] == [
        {
            "driver": "vfio-user-pci",
            "socket": {"type": "unix", "path": path},
            "addr": addr,
        }
        for path, addr in (("/run/a b.sock", "01.0"), ("/run/c.sock", "02.0"))
    ]
    assert "addr" not in device(Path("/run/c.sock"))


def test_with_hotplug_there_are_ports_instead() -> None:
    words = line("riscv64", sockets=[Path("/run/a.sock")], hotplug=True, qmp=Path("/run/qmp"))
    ports = after(words, "-device")
    assert len(ports) == HOTPLUG_PORTS
    assert ports[0] == "pcie-root-port,id=port0,chassis=1,addr=0x10"
    assert ports[-1] == "pcie-root-port,id=port3,chassis=4,addr=0x13"
    assert after(words, "-qmp") == ["unix:/run/qmp,server=on,wait=off"]


def test_the_console_is_standard_input_and_output() -> None:
    assert after(line(), "-chardev") == ["stdio,id=console"]
    words = line(interactive=True)
    assert after(words, "-chardev") == ["stdio,id=console,signal=off,mux=on"]
    assert after(words, "-mon") == ["chardev=console"]


def test_further_options_come_last() -> None:
    assert line(extra=["-s", "-S"])[-2:] == ["-s", "-S"]


def test_kvm_where_it_runs_this_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(arch: str, **options: Any) -> tuple[list[str], list[str]]:
        words = line(arch, **options)
        return after(words, "-accel"), after(words, "-cpu")

    assert chosen("x86_64") == (["tcg"], ["max"])
    assert chosen("x86_64", accelerator="kvm") == (["kvm"], ["host"])
    monkeypatch.setattr(command, "kvm_works", lambda: True)
    assert chosen("x86_64") == (["kvm"], ["host"])
    assert chosen("aarch64") == (["tcg"], ["max"])
    assert chosen("x86_64", accelerator="tcg") == (["tcg"], ["max"])


@pytest.mark.parametrize(
    ("machine", "flags", "works"),
    [
        ("x86_64", "flags\t\t: fpu vmx\nbugs : x\n", True),
        ("x86_64", "flags\t\t: fpu svm sse\n", True),
        ("x86_64", "flags\t\t: fpu svm_lock sse\n", False),
        ("aarch64", "Features : fp\n", True),
        ("riscv64", "isa : rv64imafdch\n", False),
        ("x86_64", None, False),
    ],
)
def test_whether_kvm_works(
    monkeypatch: pytest.MonkeyPatch, machine: str, flags: str | None, works: bool
) -> None:
    """None: /dev/kvm cannot be opened."""

    def opened(self: Path, mode: str = "r") -> io.BytesIO:
        assert (str(self), mode) == ("/dev/kvm", "r+b")
        if flags is None:
            raise PermissionError(13, "Permission denied")
        return io.BytesIO()

    def read(self: Path) -> str:
        assert str(self) == "/proc/cpuinfo"
        return flags or ""

    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(Path, "read_text", read)
    assert kvm_works() is works


def test_as_one_types_it() -> None:
    options: dict[str, Any] = {"initrd": Path("/i"), "append": "a=b", "accelerator": "tcg"}
    text = Command(qemu=Path("/my qemu"), arch="x86_64", kernel=Path("/k"), **options).text()
    lines = text.split(" \\\n    ")
    assert lines[0] == "'/my qemu'"
    assert "-kernel /k" in lines
    assert "-append 'console=ttyS0 quiet panic=-1 reboot=t a=b'" in lines
    assert "-nodefaults" in lines
