# SPDX-License-Identifier: MIT
"""Devices that QEMU has too, and guest programs that print the same with either.

NAME.c is the program, NAME.py our device, and NAME.txt what the program prints in QEMU 11.1 with
QEMU's own device.
"""

from pathlib import Path
from typing import Any

from callgate.device import Device
from callgate.load import load_device_class

NAMES = "edu", "pci_testdev"

_HERE = Path(__file__).parent
_BUILT = _HERE.parents[1] / "build" / "guest"


def guest(name: str, arch: str) -> Path:
    """The guest program."""
    path = _BUILT / arch / f"{name}.elf"
    assert path.exists(), "run: python guest/build.py"
    return path


def ours(name: str, arch: str) -> Device:
    """Our device."""
    device: Any = load_device_class(_HERE / f"{name}.py")()
    if name == "edu":
        device.dma_mask = _dma_mask(arch)
    assert isinstance(device, Device)
    return device


def qemus(name: str, arch: str) -> str:
    """QEMU's device: the argument of -device."""
    return {
        "edu": f"edu,addr=1,dma_mask={_dma_mask(arch):#x}",
        "pci_testdev": "pci-testdev,addr=1,membar=1M",
    }[name]


def recorded(name: str, arch: str) -> str:
    """What the guest program prints."""
    lines = (_HERE / f"{name}.txt").read_text().splitlines(keepends=True)
    # i386 makes no access of 8 bytes.
    return "".join(line for line in lines if arch != "i386" or not line.startswith("8 bytes"))


def _dma_mask(arch: str) -> int:
    """That of edu: left as it is where the RAM is below it."""
    return 0x0FFF_FFFF if arch in ("x86_64", "i386") else 0xFFFF_FFFF
