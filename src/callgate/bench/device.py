# SPDX-License-Identifier: MIT
"""The device that `callgate bench` calls."""

from __future__ import annotations

import time

from callgate.call import call, u64
from callgate.device import Device
from callgate.interrupt import Interrupt
from callgate.register import Register


class Bench(Device):
    """Adds, which costs nothing, and takes the time when the guest says so."""

    id = 0x1AF4, 0x10FE
    mark = Register(0x00, access="w", doc="write anything to have the time taken")
    scratch = Register(0x04, doc="what was written")
    constant = Register(0x08, access="r", reset=0x600D_CAFE, doc="always the same")
    ring = Register(0x0C, access="w", doc="write anything to have the interrupt sent")
    rang = Interrupt("ring was written")

    def __init__(self) -> None:
        self.times: list[int] = []
        """The host's clock at each mark, in nanoseconds."""
        self.posted = 0
        """How often `nothing` was called."""

    @call
    def add(self, a: u64, b: u64) -> u64:
        """Return the sum, modulo 2**64."""
        return (a + b) & 0xFFFF_FFFF_FFFF_FFFF

    @call(one_way=True)
    def nothing(self) -> None:
        """Count it."""
        self.posted += 1

    @ring.on_write
    def send(self, value: int) -> None:
        """Send the interrupt."""
        self.rang.trigger()

    @mark.on_write
    def take_time(self, value: int) -> None:
        """Write down when it was."""
        self.times.append(time.perf_counter_ns())
