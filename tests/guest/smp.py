# SPDX-License-Identifier: MIT
"""A device that several processors call at once, for smp.c."""

import threading
import time

from callgate import Device, Register, call, u32, u64


class Smp(Device):
    """Counts its calls, by processor; `parallel`, so that they meet."""

    id = 0x1AF4, 0x10FD
    frames = 8
    parallel = True
    processors = Register(0x00, access="r", doc="how many the guest is to use")
    rounds = Register(0x04, access="r", doc="calls that each is to make")

    def __init__(self, processors: int = 1, rounds: int = 100, pause: float = 0.0) -> None:
        self._asked = processors, rounds
        self.pause = pause
        self.runs = [0] * 8
        self.inside = 0
        self.most = 0
        """Handlers at once, at most."""
        self._turn = threading.Lock()

    def attach(self) -> None:
        self.processors, self.rounds = self._asked

    @call
    def work(self, processor: u32, number: u64) -> u64:
        """Return the number, plus the processor's."""
        with self._turn:
            self.inside += 1
            self.most = max(self.most, self.inside)
        if self.pause:
            time.sleep(self.pause)
        with self._turn:
            self.inside -= 1
            self.runs[processor] += 1
        return number + processor
