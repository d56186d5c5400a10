# SPDX-License-Identifier: MIT
"""What places in configuration space are called, for people who read a trace."""

from __future__ import annotations

from collections.abc import Mapping

from callgate.pci.capability import MSIX, PCI_EXPRESS, POWER_MANAGEMENT, VENDOR_SPECIFIC
from callgate.pci.config import CAPABILITY_END

_HEADER = {
    0x00: "vendor id",
    0x02: "device id",
    0x04: "command",
    0x06: "status",
    0x08: "revision",
    0x09: "class code",
    0x0C: "cache line",
    0x0D: "latency",
    0x0E: "header type",
    0x0F: "BIST",
    **{0x10 + 4 * index: f"BAR {index}" for index in range(6)},
    0x2C: "subsystem vendor",
    0x2E: "subsystem id",
    0x30: "expansion ROM",
    0x34: "capabilities",
    0x3C: "interrupt line",
    0x3D: "interrupt pin",
}
_CAPABILITIES = {
    POWER_MANAGEMENT: "power management",
    0x05: "MSI",
    VENDOR_SPECIFIC: "vendor capability",
    PCI_EXPRESS: "PCI Express",
    MSIX: "MSI-X capability",
}


def config_name(offset: int, capabilities: Mapping[int, int]) -> str:
    """The name of an offset; `capabilities` are ids by where they begin."""
    if offset in _HEADER:
        return _HEADER[offset]
    before = [at for at in capabilities if at <= offset < CAPABILITY_END]
    if not before:
        return f"config + {offset:#x}"
    at = max(before)
    name = _CAPABILITIES.get(capabilities[at], f"capability {capabilities[at]:#04x}")
    return name if offset == at else f"{name} + {offset - at:#x}"
