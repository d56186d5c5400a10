# SPDX-License-Identifier: MIT
"""Names of vendors, devices and classes, from the pci.ids file that lspci reads, if there is one.

VVVV  vendor                    C cc  class
<tab>DDDD  device               <tab>ss  subclass
<tab><tab>...  subsystem        <tab><tab>pp  programming interface
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PLACES = (Path("/usr/share/misc/pci.ids"), Path("/usr/share/hwdata/pci.ids"))

_CLASSES = (
    "unclassified device", "mass storage controller", "network controller", "display controller",
    "multimedia controller", "memory controller", "bridge", "communication controller",
    "system peripheral", "input device controller", "docking station", "processor",
    "serial bus controller", "wireless controller", "intelligent controller",
    "satellite communications controller", "encryption controller",
    "signal processing controller", "processing accelerator", "non-essential instrumentation",
)  # fmt: skip
"""Base classes (PCI Code and ID Assignment Specification, 1), for where there is no file."""


@dataclass(frozen=True)
class Names:
    """What a function is called; empty where it is not known."""

    vendor: str = ""
    device: str = ""
    kind: str = ""


def names(id: tuple[int, int], class_code: int, places: Iterable[Path] = PLACES) -> Names:
    """The names of a function, by vendor and device id and its 24-bit class code."""
    base = class_code >> 16
    kind = _CLASSES[base] if base < len(_CLASSES) else ""
    for place in places:
        try:
            lines = place.read_text(errors="replace").splitlines()
        except OSError:
            continue
        found = _look_up(lines, id, class_code)
        return Names(found.vendor, found.device, found.kind or kind)
    return Names(kind=kind)


def _look_up(lines: Iterable[str], id: tuple[int, int], class_code: int) -> Names:
    vendor, device = f"{id[0]:04x}", f"{id[1]:04x}"
    base, sub = f"C {class_code >> 16:02x}", f"{class_code >> 8 & 0xFF:02x}"
    section = ""
    found = dict.fromkeys(("vendor", "device", "base", "sub"), "")
    for line in lines:
        if not line or line.startswith(("#", "\t\t")):
            continue
        number, _, name = line.strip().partition("  ")
        if not line.startswith("\t"):
            section = number
            if number == vendor:
                found["vendor"] = name
            elif number == base:
                found["base"] = name
        elif section == vendor and number == device:
            found["device"] = name
        elif section == base and number == sub:
            found["sub"] = name
    return Names(found["vendor"], found["device"], found["sub"] or found["base"])
