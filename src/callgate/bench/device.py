# SPDX-License-Identifier: MIT
"""The device that `callgate bench` calls."""

from __future__ import annotations

import time

from callgate.call import call, u64
from callgate.device import Device
from callgate.register import Register


class Bench(Device):
    """Adds, which costs nothing, and takes the time when the guest says so."""

    id = 0x1AF4, 0x10FE
    mark = Register(0x00, access="w", doc="write anything to have the time taken")

    def __init__(self) -> None:
        self.times: list[int] = []
        """The host's clock at each mark, in nanoseconds."""

    @call
    def add(self, a: u64, b: u64) -> u64:
        """Return the sum, modulo 2**64."""
        return (a + b) & 0xFFFF_FFFF_FFFF_FFFF

    @mark.on_write
    def take_time(self, value: int) -> None:
        """Write down when it was."""
        self.times.append(time.perf_counter_ns())
