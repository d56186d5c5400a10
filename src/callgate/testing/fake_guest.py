# SPDX-License-Identifier: MIT
"""FakeGuest: a driver in Python against a device in Python, in one process, in microseconds.

    with FakeGuest(Adder()) as guest:
        assert guest.open("adder").add(2, 40) == 42

All of PCI is there (config space, BARs, MSI-X, DMA); only the processor is missing. Timers run when
the test moves the clock.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from callgate.device import Device
from callgate.driver import GateDevice, PciFunction, open_device
from callgate.errors import NotFound
from callgate.machine import Machine
from callgate.timers import ManualClock

_OPTIONS = {"on": "loopback", "watch": False}


class FakeGuest:
    """A loopback machine and the driver's door into it. Options: those of `Machine`, but `clock`.

    `memory` is the guest's RAM, `machine` the machine, `door` what `callgate.driver` works through.
    """

    def __init__(self, *devices: Device | tuple[Device, ...], **options: Any) -> None:
        self.clock = ManualClock()
        self.machine = Machine(*devices, clock=self.clock, **{**_OPTIONS, **options})
        self.memory = self.machine.memory
        self.door = self.machine.door

    def __enter__(self) -> Self:
        self.machine.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.machine.__exit__(kind, error, trace)

    def open(self, name: str, **options: Any) -> GateDevice:
        """The device with a gate that is called `name`; options as for `GateDevice`."""
        return open_device(name, self.door, **options)

    def function(self, vendor: int, device: int) -> PciFunction:
        """The first PCI function with these ids, decoding and bus mastering on.

        Raises NotFound when there is none.
        """
        for address in self.door.functions():
            function = PciFunction(self.door, address)
            if function.id == (vendor, device):
                function.enable()
                return function
        raise NotFound(f"a function {vendor:04x}:{device:04x} must be on the bus")

    def advance(self, seconds: float) -> None:
        """Let that much time pass: every timer that becomes due runs, in order, at its moment."""
        end = self.clock() + seconds
        timers = self.machine.timers
        while (due := timers.next_due()) is not None and due <= end:
            self.clock.advance(max(0.0, due - self.clock()))
            timers.run_due()
        self.clock.advance(max(0.0, end - self.clock()))
