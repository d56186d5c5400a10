# SPDX-License-Identifier: MIT
"""Configuration space as a hex dump that `lspci -F FILE -vvv` reads and judges."""

from __future__ import annotations

from callgate.pci import config as space
from callgate.pci.bus import Bus


def dump(bus: Bus, *, extended: bool = False) -> str:
    """The functions of a bus, 256 bytes of each, or all 4096 if `extended`."""
    length = space.SIZE if extended else space.CAPABILITY_END
    return "\n".join(
        block(f"{place} {function.name}", function.config.dump(length))
        for place, function in bus.functions.items()
    )


def block(title: str, data: bytes) -> str:
    """One function: `title` begins with its address on the bus."""
    rows = (
        f"{offset:02x}: {data[offset : offset + 16].hex(' ')}" for offset in range(0, len(data), 16)
    )
    return "\n".join((title, *rows)) + "\n"
