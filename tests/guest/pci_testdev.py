# SPDX-License-Identifier: MIT
"""The PCI test device, with a BAR that has nothing behind it: QEMU's pci-testdev,membar=1M."""

from callgate import Bar
from callgate.devices import pci_testdev


class PciTestdev(pci_testdev.PciTestdev):
    """QEMU's PCI test device."""

    membar = Bar(2, 1 << 20, width=64, prefetchable=True)
