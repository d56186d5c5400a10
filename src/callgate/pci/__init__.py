# SPDX-License-Identifier: MIT
"""PCI: configuration space, BARs, MSI and MSI-X, functions and the bus (PCI Local Bus 3.0).

`config` and `capability` hold what a guest configures, `bar` what it reaches, `message`, `msi` and
`msix` what reaches it, `function` makes a PCI function of a device, `bus` routes accesses to
functions. Section numbers in this
package are the PCI Local Bus Specification's, revision 3.0, where no other is named.
"""

from __future__ import annotations

from callgate.pci.capability import Capability, PciExpress, PowerManagement, VendorCapability

__all__ = ["Capability", "PciExpress", "PowerManagement", "VendorCapability"]
