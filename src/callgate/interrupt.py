# SPDX-License-Identifier: MIT
"""Interrupts of a device: MSI-X, with INTx as the fallback (PCI Local Bus 3.0, 6.8, 2.2.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from callgate.device import Device


class Interrupt:
    """An interrupt towards the guest. Its MSI-X table index is its place among the declared ones.

    `self.done.trigger()` sends one. While the driver has not enabled MSI-X, it raises INTA instead,
    which stays asserted until `self.done.deassert()`: the driver tells the device by a register
    of the device's own, so a model that cares for INTx deasserts in that register's hook.
    """

    def __init__(self, doc: str = "") -> None:
        self.name = ""
        self.owner: type | None = None
        """The class whose body declares it."""
        self.doc = doc
        self.index = -1
        """In the `spec` of a class: the MSI-X table index."""

    def __set_name__(self, owner: type, name: str) -> None:
        if self.owner is None:
            self.owner = owner
            self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Interrupt: ...
    @overload
    def __get__(self, instance: Device, owner: type) -> BoundInterrupt: ...
    def __get__(self, instance: Device | None, owner: type) -> Interrupt | BoundInterrupt:
        if instance is None:
            return self
        declared = instance.spec.interrupts
        index = next(each.index for each in declared if each.name == self.name)
        bound = BoundInterrupt(instance, index)
        instance.__dict__[self.name] = bound  # the next look-up finds it without this method
        return bound


class BoundInterrupt:
    """An interrupt of one device."""

    __slots__ = ("_device", "index")

    def __init__(self, device: Device, index: int) -> None:
        self._device = device
        self.index = index

    def trigger(self) -> None:
        """Send the MSI-X message; masked, it becomes pending. Without MSI-X: assert INTx."""
        self._device.plugged.trigger(self.index)

    def assert_(self) -> None:
        """Raise the level (INTx); with MSI-X enabled, the same as `trigger`."""
        self._device.plugged.set_level(self.index, True)

    def deassert(self) -> None:
        """Take the level back (INTx); with MSI-X enabled, nothing."""
        self._device.plugged.set_level(self.index, False)
