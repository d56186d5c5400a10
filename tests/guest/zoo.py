# SPDX-License-Identifier: MIT
"""A device with one of each kind, for zoo.c: what a driver can meet."""

import enum

from callgate import (
    Bar,
    BufferIn,
    BufferInOut,
    BufferOut,
    Device,
    DeviceError,
    Interrupt,
    Register,
    call,
    i8,
    i16,
    i32,
    i64,
    u8,
    u16,
    u32,
    u64,
)


class Mode(enum.IntEnum):
    SLOW = 0
    FAST = 7


class Zoo(Device):
    """One of each kind."""

    id = 0x1AF4, 0x10FD
    frames = 4
    wide = Bar(0, 0x1000, width=64, prefetchable=True)
    ports = Bar(2, 16, "io")
    byte = Register(0x00, width=8)
    half = Register(0x02, width=16)
    word = Register(0x04, width=32)
    quad = Register(0x08, width=64)
    pokes = Register(0x10, access="r")
    logged = Register(0x14, access="r")
    trigger = Register(0x18, access="w")
    port = Register(0x04, bar=ports)
    first = Interrupt()
    second = Interrupt()

    @trigger.on_write
    def triggered(self, value: int) -> None:
        (self.second if value else self.first).trigger()

    @call
    def nothing(self) -> None:
        pass

    @call
    def signed(self, a: i8, b: i16, c: i32, d: i64) -> tuple[i64, i8]:
        return a + b + c + d, a

    @call
    def unsigned(self, a: u8, b: u16, c: u32) -> u64:
        return a + b + c

    @call
    def choose(self, mode: Mode, on: bool) -> tuple[Mode, bool]:
        return (Mode.FAST if mode is Mode.SLOW else Mode.SLOW), not on

    @call
    def twelve(
        self,
        a: u64,
        b: u64,
        c: u64,
        d: u64,
        e: u64,
        f: u64,
        g: u64,
        h: u64,
        i: u64,
        j: u64,
        k: u64,
        l: u64,  # noqa: E741
    ) -> tuple[u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64]:
        return l, k, j, i, h, g, f, e, d, c, b, a

    @call
    def join(self, left: bytes, right: bytes) -> bytes:
        return left + right

    @call
    def split(self, data: bytes, at: u32) -> tuple[bytes, u32, bytes]:
        return data[:at], len(data), data[at:]

    @call
    def copy(self, source: BufferIn, target: BufferOut) -> u64:
        target.view[: len(source)] = source.view
        return len(source)

    @call
    def invert(self, data: BufferInOut) -> None:
        data.view[:] = bytes(byte ^ 0xFF for byte in data.view)

    @call
    def refuse(self, code: u64) -> u64:
        raise DeviceError(code)

    @call
    def fail(self) -> None:
        raise RuntimeError("this model is broken on purpose")

    @call(one_way=True)
    def poke(self) -> None:
        self.pokes += 1

    @call(one_way=True)
    def log(self, text: bytes) -> None:
        self.logged = len(text)

    @call
    def hide(self) -> None:
        """Take the vector of `unsigned` away, without a new one."""
        self.gate.revoke("unsigned")

    @call
    def show(self) -> None:
        self.gate.bind("unsigned")

    @call
    def forbid(self) -> None:
        self.gate.deny("nothing")

    @call
    def permit(self) -> None:
        self.gate.allow("nothing")
