# SPDX-License-Identifier: MIT
"""Vectors come and go while the guest calls: who looks up by name again goes on."""

from callgate import Device, Register, Timer, call, main, u32, u64


class Rebind(Device):
    """Counts calls, and takes the call's vector away meanwhile and assigns a new one."""

    id = 0x1AF4, 0x10F3
    interval = Register(0x00, doc="calls after which the call itself rebinds; 0: none")
    rebinds = Register(0x04, access="r", doc="rebindings so far")
    period = Register(0x08, doc="microseconds after which a timer rebinds; 0: never")

    timer: Timer | None = None

    def attach(self) -> None:
        self.calls = 0

    def reset(self) -> None:
        self.calls = 0
        self.timer = None

    @call
    def count(self, step: u32) -> u64:
        """Add `step` to the count and return it."""
        self.calls += step
        if self.interval and self.calls % self.interval == 0:
            self.rebind()  # This call still answers, the next one needs a look-up.
        return self.calls

    @period.on_write
    def pace(self, value: int) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.every(self.period / 1e6, self.rebind) if self.period else None

    def rebind(self) -> None:
        """Revoke the vector, which waits for the calls in flight, and assign another one."""
        self.gate.bind("count")
        self.rebinds += 1


if __name__ == "__main__":
    main(Rebind)
