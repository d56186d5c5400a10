# SPDX-License-Identifier: MIT
"""A timer that interrupts: a control register with fields, a counter, MSI-X."""

from callgate import Device, Field, Interrupt, Register, Timer, main


class Ticker(Device):
    """Counts ticks of a period that the driver sets, and interrupts at each."""

    id = 0x1AF4, 0x10F1
    control = Register(0x00)
    enable = Field(control, 0, doc="1: the timer runs")
    once = Field(control, 1, doc="1: it stops after one tick")
    period = Register(0x04, reset=1000, doc="microseconds between ticks, at least 1")
    ticks = Register(0x08, width=64, access="r", doc="ticks since the reset")
    status = Register(0x10)
    expired = Field(status, 0, access="w1c", doc="1: a tick came; write 1 to clear")
    tick = Interrupt("a period has passed")

    timer: Timer | None = None

    def reset(self) -> None:
        self.timer = None

    @control.on_write
    def switch(self, value: int) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.enable:
            begin = self.after if self.once else self.every
            self.timer = begin(max(self.period, 1) / 1e6, self.expire)

    @status.on_write
    def acknowledge(self, value: int) -> None:
        if not self.expired:
            self.tick.deassert()

    def expire(self) -> None:
        self.ticks += 1
        self.expired = 1
        if self.once:
            self.enable = 0
        self.tick.trigger()


if __name__ == "__main__":
    main(Ticker)
