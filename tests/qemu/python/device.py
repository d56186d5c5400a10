# SPDX-License-Identifier: MIT
"""What a program in Python calls: a call of each kind, and an interrupt."""

from callgate import BufferIn, BufferInOut, BufferOut, Device, Interrupt, Register, call
from callgate.call import i8, u8, u64
from callgate.errors import DeviceError


class Counterpart(Device):
    id = 0x1AF4, 0x10F2
    ring = Register(0x00, access="w", doc="write anything to have the interrupt")
    calm = Register(0x04, access="w", doc="write anything to have the line let go")
    rang = Interrupt("ring was written")

    def __init__(self) -> None:
        self.poked = 0

    @ring.on_write
    def _ring(self, value: int) -> None:
        self.rang.trigger()

    @calm.on_write
    def _calm(self, value: int) -> None:
        self.rang.deassert()

    @call
    def add(self, a: u64, b: u64) -> u64:
        return (a + b) & (1 << 64) - 1

    @call
    def narrow(self, a: u8) -> u8:
        return a

    @call
    def negate(self, a: i8) -> i8:
        return -a if a > -128 else a

    @call
    def turn(self, data: bytes) -> tuple[bytes, u64]:
        return data[::-1], len(data)

    @call
    def total(self, data: BufferIn) -> u64:
        return sum(data.view)

    @call
    def count(self, data: BufferOut) -> None:
        data.view[:] = bytes(number & 0xFF for number in range(len(data)))

    @call
    def invert(self, data: BufferInOut) -> None:
        data.view[:] = bytes(byte ^ 0xFF for byte in data.view)

    @call
    def refuse(self, code: u64) -> None:
        raise DeviceError(code)

    @call(one_way=True)
    def poke(self) -> None:
        self.poked += 1

    @call
    def pokes(self) -> u64:
        return self.poked

    @call
    def bind_add_anew(self) -> None:
        self.gate.revoke("add")
        self.gate.bind("add")
