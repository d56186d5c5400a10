# SPDX-License-Identifier: MIT
"""QEMU's command line for a guest with devices that are served by vfio-user."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_CONSOLES = {"x86_64": "ttyS0", "i386": "ttyS0", "aarch64": "ttyAMA0", "riscv64": "ttyS0"}
_KERNEL = "quiet panic=-1 reboot=t"
FIRST_SLOT = 1
FIRST_HOTPLUG_SLOT = 16
HOTPLUG_PORTS = 4


@dataclass(frozen=True)
class Command:
    """What QEMU is to run. `line` gives it as a list of words.

    With an `initrd`, `kernel` is Linux; without, a program that needs no operating system. `memory`
    is in MiB. `sockets` are vfio-user servers, plugged in from slot 1 of the root bus on; with
    `hotplug` none is plugged in at the start, and there are root ports to plug them into.
    """

    qemu: Path
    arch: str
    kernel: Path
    initrd: Path | None = None
    append: str = ""
    memory: int = 256
    cpus: int = 1
    sockets: Sequence[Path] = ()
    hotplug: bool = False
    shared: bool = True
    """Whether devices get the guest's memory as a file; else they ask for it by messages."""
    accelerator: str | None = None
    """kvm or tcg; left out: kvm where it can run this guest."""
    qmp: Path | None = None
    interactive: bool = False
    extra: Sequence[str] = ()
    """Further options, passed on as they are."""

    def line(self) -> list[str]:
        """The command line."""
        words = [str(self.qemu), "-nodefaults", "-no-user-config", "-no-reboot"]
        words += ["-display", "none", "-machine", self._machine(), "-cpu", self._cpu()]
        words += ["-accel", self._accelerator(), "-smp", str(self.cpus), "-m", f"{self.memory}M"]
        if self.shared:
            words += ["-object", f"memory-backend-memfd,id=ram,size={self.memory}M,share=on"]
        # With Ctrl-C for the guest, Ctrl-A x is what ends QEMU.
        console = "stdio,id=console" + (",signal=off,mux=on" if self.interactive else "")
        words += ["-chardev", console, "-serial", "chardev:console", *self._exit()]
        if self.interactive:
            words += ["-mon", "chardev=console"]
        words += ["-run-with", "exit-with-parent=on"]
        if self.qmp is not None:
            words += ["-qmp", f"unix:{self.qmp},server=on,wait=off"]
        words += ["-kernel", str(self.kernel)]
        if self.initrd is not None:
            append = f"console={_CONSOLES[self.arch]} {_KERNEL} {self.append}".rstrip()
            words += ["-initrd", str(self.initrd), "-append", append]
        elif self.arch == "riscv64":
            words += ["-bios", "none"]
        if self.hotplug:
            for port in range(HOTPLUG_PORTS):
                slot = FIRST_HOTPLUG_SLOT + port
                words += [
                    "-device",
                    f"pcie-root-port,id=port{port},chassis={port + 1},addr={slot:#x}",
                ]
        else:
            for index, socket in enumerate(self.sockets):
                words += ["-device", json.dumps(device(socket, FIRST_SLOT + index))]
        return [*words, *self.extra]

    def text(self) -> str:
        """The command line as one types it, a line for each option."""
        words = self.line()
        lines = [shlex.quote(words[0])]
        for word in words[1:]:
            if word.startswith("-"):
                lines.append(shlex.quote(word))
            else:
                lines[-1] += " " + shlex.quote(word)
        return " \\\n    ".join(lines)

    def _machine(self) -> str:
        machine = "q35" if self.arch in ("x86_64", "i386") else "virt"
        if self.arch == "aarch64" and self.initrd is None:
            machine += ",highmem=off"  # Where the board has its windows in the first 4 GiB.
        if self.arch == "riscv64" and self.initrd is not None:
            machine += ",aia=aplic-imsic"  # Without, the board has no MSI. Linux 6.10 knows it.
        return f"{machine},memory-backend=ram" if self.shared else machine

    def _cpu(self) -> str:
        return "host" if self._accelerator() == "kvm" else "max"

    def _accelerator(self) -> str:
        if self.accelerator is not None:
            return self.accelerator
        return "kvm" if platform.machine() == self.arch and kvm_works() else "tcg"

    def _exit(self) -> list[str]:
        """How a program without an operating system ends QEMU with its exit code."""
        if self.initrd is not None:
            return []
        if self.arch in ("x86_64", "i386"):
            return ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
        return ["-semihosting"] if self.arch == "aarch64" else []


def device(socket: Path, slot: int | None = None) -> dict[str, object]:
    """The argument of -device, or of QMP's device_add, for a vfio-user server."""
    found: dict[str, object] = {
        "driver": "vfio-user-pci",
        "socket": {"type": "unix", "path": str(socket)},
    }
    if slot is not None:
        found["addr"] = f"{slot:02x}.0"
    return found


def kvm_works() -> bool:
    """Whether this host's KVM runs a stock Linux: it does not where KVM itself is emulated."""
    try:
        with Path("/dev/kvm").open("r+b"):
            pass
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return platform.machine() == "aarch64" or any(
        f" {flag} " in flags.replace("\n", " ") for flag in ("vmx", "svm")
    )
