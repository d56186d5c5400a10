# SPDX-License-Identifier: MIT
"""A device that adds: registers, a call and an interrupt."""

from callgate import Device, Interrupt, Register, call, main, u64


class Adder(Device):
    """Adds two numbers, by registers and by a call."""

    id = 0x1AF4, 0x10F0
    a = Register(0x00, doc="first summand")
    b = Register(0x04, doc="second summand")
    start = Register(0x08, access="w", doc="write anything to add a and b")
    total = Register(0x0C, access="r", doc="a + b, modulo 2**32")
    done = Interrupt("total is valid")

    @call
    def add(self, a: u64, b: u64) -> u64:
        """Return the sum, modulo 2**64."""
        return (a + b) & 0xFFFF_FFFF_FFFF_FFFF

    @start.on_write
    def begin(self, value: int) -> None:
        self.total = (self.a + self.b) & 0xFFFF_FFFF
        self.done.trigger()


if __name__ == "__main__":
    main(Adder)
