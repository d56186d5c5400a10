# SPDX-License-Identifier: MIT
"""What places in configuration space are called, for people who read a trace."""

from __future__ import annotations

from collections.abc import Mapping

from callgate.pci.capability import MSI, MSIX, PCI_EXPRESS, POWER_MANAGEMENT, VENDOR_SPECIFIC
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
    0x02: "AGP",
    0x03: "vital product data",
    0x04: "slot identification",
    MSI: "MSI capability",
    0x06: "CompactPCI hot swap",
    0x07: "PCI-X",
    0x08: "HyperTransport",
    VENDOR_SPECIFIC: "vendor capability",
    0x0A: "debug port",
    0x0B: "CompactPCI resource control",
    0x0C: "hot plug",
    0x0D: "bridge subsystem",
    0x0E: "AGP 8x",
    0x0F: "secure device",
    PCI_EXPRESS: "PCI Express",
    MSIX: "MSI-X capability",
    0x12: "SATA",
    0x13: "advanced features",
    0x14: "enhanced allocation",
}
_EXTENDED = {
    0x01: "advanced error reporting",
    0x02: "virtual channel",
    0x03: "device serial number",
    0x04: "power budgeting",
    0x08: "multi-function virtual channel",
    0x0B: "vendor-specific extended capability",
    0x0D: "access control services",
    0x0E: "alternative routing-ID",
    0x0F: "address translation services",
    0x10: "SR-IOV",
    0x12: "multicast",
    0x13: "page request interface",
    0x15: "resizable BAR",
    0x16: "dynamic power allocation",
    0x17: "TLP processing hints",
    0x18: "latency tolerance reporting",
    0x19: "secondary PCI Express",
    0x1B: "process address space ID",
    0x1E: "L1 PM substates",
    0x1F: "precision time measurement",
    0x23: "designated vendor-specific",
    0x25: "data link feature",
    0x26: "physical layer 16.0 GT/s",
    0x27: "lane margining",
    0x2E: "data object exchange",
}


def capability_name(id: int, *, extended: bool = False) -> str:
    """The name of a capability by its id: 8 bits, or 16 of an extended one."""
    names = _EXTENDED if extended else _CAPABILITIES
    return names.get(id, f"capability {id:#04x}")


def config_name(offset: int, capabilities: Mapping[int, int]) -> str:
    """The name of an offset; `capabilities` are ids by where they begin."""
    if offset in _HEADER:
        return _HEADER[offset]
    before = [at for at in capabilities if at <= offset < CAPABILITY_END]
    if not before:
        return f"config + {offset:#x}"
    at = max(before)
    name = capability_name(capabilities[at])
    return name if offset == at else f"{name} + {offset - at:#x}"
