# SPDX-License-Identifier: MIT
"""A device that has MSI and no MSI-X, for msi.c."""

from callgate import Device, Interrupt, Register


class Msi(Device):
    """Two interrupts, for which a driver may be granted one message."""

    id = 0x1AF4, 0x10FC
    msi, msix = True, False

    raised = Register(0x00, access="w", doc="raise an interrupt, by its number")
    settled = Register(0x04, access="w", doc="what raised it is settled")
    first = Interrupt()
    second = Interrupt()

    @raised.on_write
    def _raise(self, value: int) -> None:
        (self.second if value else self.first).trigger()

    @settled.on_write
    def _settle(self, value: int) -> None:
        (self.second if value else self.first).deassert()
