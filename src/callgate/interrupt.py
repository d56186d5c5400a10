# SPDX-License-Identifier: MIT
"""Interrupts of a device: messages, with INTx as the fallback (PCI Local Bus 3.0, 6.8, 2.2.6)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, overload

from callgate.declaration import Declaration
from callgate.errors import DeclarationError

if TYPE_CHECKING:
    from callgate.device import Device


class Interrupt(Declaration):
    """An interrupt towards the guest. Its index is its place among the declared ones: its entry of
    the MSI-X table, or its vector of MSI (see `Device.msix` and `Device.msi`).

    `self.done.trigger()` sends one. While the driver has enabled neither, it raises INTA instead,
    which stays asserted until `self.done.deassert()`: the driver tells the device by a register
    of the device's own, so a model that cares for INTx deasserts in that register's hook.
    """

    noun = "an Interrupt"

    def __init__(self, doc: str = "") -> None:
        super().__init__()
        self.doc = doc
        self.index = -1
        """In the `spec` of a class."""

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

    def entries(self) -> list[Interrupt]:
        """Its own copies for a class's `spec`: one."""
        return [copy.copy(self)]


class Interrupts(Declaration):
    """`count` interrupts that the model tells apart by number: `self.queues[3].trigger()`.

    Each has an index of its own, one after another, and is called `queues_3` where a name
    is needed. For the rest, each is an `Interrupt`.
    """

    noun = "Interrupts"

    def __init__(self, count: int, doc: str = "") -> None:
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise DeclarationError(f"Interrupts must be 1 or more, not {count!r}")
        super().__init__()
        self.count = count
        self.doc = doc

    @overload
    def __get__(self, instance: None, owner: type) -> Interrupts: ...
    @overload
    def __get__(self, instance: Device, owner: type) -> tuple[BoundInterrupt, ...]: ...
    def __get__(
        self, instance: Device | None, owner: type
    ) -> Interrupts | tuple[BoundInterrupt, ...]:
        if instance is None:
            return self
        names = {self._name(number) for number in range(self.count)}
        bound = tuple(
            BoundInterrupt(instance, each.index)
            for each in instance.spec.interrupts
            if each.name in names
        )
        instance.__dict__[self.name] = bound
        return bound

    def entries(self) -> list[Interrupt]:
        """Its own copies for a class's `spec`: one for each number."""
        found = []
        for number in range(self.count):
            each = Interrupt(self.doc)
            each.owner, each.name = self.owner, self._name(number)
            found.append(each)
        return found

    def _name(self, number: int) -> str:
        return f"{self.name}_{number}"


class BoundInterrupt:
    """An interrupt of one device."""

    __slots__ = ("_device", "index")

    def __init__(self, device: Device, index: int) -> None:
        self._device = device
        self.index = index

    def trigger(self) -> None:
        """Send the message; masked, it becomes pending. Without MSI-X and MSI: assert INTx."""
        self._device.plugged.trigger(self.index)

    def assert_(self) -> None:
        """Raise the level (INTx); by messages, the same as `trigger`."""
        self._device.plugged.set_level(self.index, True)

    def deassert(self) -> None:
        """Take the level back (INTx), and a message that is pending still (6.8.3.5)."""
        self._device.plugged.set_level(self.index, False)
