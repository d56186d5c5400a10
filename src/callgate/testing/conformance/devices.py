# SPDX-License-Identifier: MIT
"""The devices that the suite plugs in, small ones: over some doors every byte costs an access."""

# ruff: noqa: D102  (what a call does is its name, and its one line)

from __future__ import annotations

import enum
import threading
import time
from typing import Any

from callgate.call import (
    BufferIn,
    BufferInOut,
    BufferOut,
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
from callgate.device import Device
from callgate.errors import DeviceError
from callgate.interrupt import Interrupt
from callgate.register import Bar, Field, Register

VENDOR = 0x1AF4


class Sums(Device):
    """Plain calls of few slots, which fit every platform's registers."""

    id = VENDOR, 0x10F0
    version = 7
    frames = 4
    frame_size = 256

    ran = 0
    """Times that a handler was entered, whatever it was told."""

    @call
    def add(self, a: u64, b: u64) -> u64:
        self.ran += 1
        return (a + b) & 0xFFFF_FFFF_FFFF_FFFF

    @call
    def step(self, by: u8) -> u32:
        self.ran += by
        return self.ran

    @call
    def refuse(self, code: u64) -> u64:
        raise DeviceError(code)

    @call(one_way=True)
    def poke(self) -> None:
        self.ran += 1


class Colour(enum.IntEnum):
    """An enumeration with holes."""

    RED = 1
    GREEN = 2
    BLUE = 40


class Values(Device):
    """A call for each type, which hands back what it got; `seen` keeps it."""

    id = VENDOR, 0x10F1
    frames = 2

    seen: Any = None

    @call
    def unsigned(self, a: u8, b: u16, c: u32, d: u64) -> tuple[u64, u32, u16, u8]:
        self.seen = a, b, c, d
        return d, c, b, a

    @call
    def signed(self, a: i8, b: i16, c: i32, d: i64) -> tuple[i64, i32, i16, i8]:
        self.seen = a, b, c, d
        return d, c, b, a

    @call
    def flag(self, value: bool) -> bool:
        self.seen = value
        return value

    @call
    def colour(self, value: Colour) -> Colour:
        self.seen = value
        return value

    @call
    def narrow(self, value: i8) -> i8:
        self.seen = value
        return value

    @call
    def nothing(self) -> None:
        self.seen = ()

    @call
    def most(
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


class Bulk(Device):
    """Bytes in the payload, and buffers in guest memory."""

    id = VENDOR, 0x10F2
    frames = 2
    frame_size = 512

    @call
    def reverse(self, data: bytes) -> bytes:
        return data[::-1]

    @call
    def cut(self, first: bytes, second: bytes, at: u32) -> tuple[bytes, u32, bytes]:
        both = first + second
        return both[:at], len(both), both[at:]

    @call
    def total(self, data: BufferIn) -> u64:
        return sum(data.view)

    @call
    def fill(self, data: BufferOut, value: u8) -> None:
        data.view[:] = bytes([value]) * len(data)

    @call
    def invert(self, data: BufferInOut) -> u32:
        view = data.view
        view[:] = bytes(byte ^ 0xFF for byte in view)
        return len(view)


class Store(Device):
    """Registers of all widths and access kinds, and BARs of all kinds."""

    id = VENDOR, 0x10F3
    main = Bar(0, 0x1000)
    shared = Bar(1, 0x2000, ram=True)
    hooked = Bar(2, 0x100, width=64, prefetchable=True)
    ports = Bar(4, 0x20, kind="io")

    byte = Register(0x00, width=8, reset=0x11)
    half = Register(0x02, width=16, reset=0x2222)
    word = Register(0x04, width=32, reset=0x3333_3333)
    wide = Register(0x08, width=64, reset=0x4444_4444_4444_4444)
    fixed = Register(0x10, access="r", reset=0x1234_5678)
    blind = Register(0x14, access="w", reset=0x55)
    clear = Register(0x18, access="w1c", reset=0xFFFF_FFFF)
    set = Register(0x1C, access="w1s", reset=0)
    mixed = Register(0x20, reset=0x0F0F_0F0F)
    ready = Field(mixed, 0, 7, access="r")
    event = Field(mixed, 8, 15, access="w1c")
    mode = Field(mixed, 16, 23)
    key = Field(mixed, 24, 31, access="w")
    low = Register(0x28, width=32, reset=0xAAAA_AAAA)
    high = Register(0x2C, width=32, reset=0xBBBB_BBBB)
    count = Register(0x30, access="r")
    latch = Register(0x34)
    port = Register(0x00, width=32, bar=ports, reset=0x5050_5050)
    port_byte = Register(0x04, width=8, bar=ports, reset=0x60)

    def attach(self) -> None:
        self.reads = 0
        self.written: list[int] = []
        self.accesses: list[tuple[int, ...]] = []

    @count.on_read
    def counted(self) -> int:
        self.reads += 1
        return self.reads

    @latch.on_write
    def latched(self, value: int) -> None:
        self.written.append(value)

    @hooked.on_read
    def hook_read(self, offset: int, size: int) -> int:
        self.accesses.append((offset, size))
        return 0x8877_6655_4433_2211 >> 8 * (offset % 8)

    @hooked.on_write
    def hook_write(self, offset: int, size: int, value: int) -> None:
        self.accesses.append((offset, size, value))


class Bell(Device):
    """Three interrupts, rung by a register, a call or a timer."""

    id = VENDOR, 0x10F4
    frames = 2
    frame_size = 256

    ring = Register(0x00, access="w")
    quiet = Register(0x04, access="w")
    later = Register(0x08, access="w")
    rings = Register(0x0C, access="r")
    first = Interrupt()
    second = Interrupt()
    third = Interrupt()

    @ring.on_write
    def rung(self, value: int) -> None:
        self.rings += 1
        (self.first, self.second, self.third)[value].trigger()

    @quiet.on_write
    def quieted(self, value: int) -> None:
        (self.first, self.second, self.third)[value].deassert()

    @later.on_write
    def put_off(self, value: int) -> None:
        self.after(value / 1e6, self.first.trigger)

    @call
    def chime(self, index: u8) -> u32:
        self.rung(index)
        return self.rings


class MsiBell(Bell):
    """By MSI, and not by MSI-X."""

    id = VENDOR, 0x10F7
    msi = True
    msix = False


class BothBell(Bell):
    """By MSI-X and by MSI."""

    id = VENDOR, 0x10F8
    msi = True


class Held(Device):
    """Calls on which the host lays hands while they run.

    `hold` stays in its handler until the host takes the call away, so a test needs no clock.
    """

    id = VENDOR, 0x10F5
    frames = 4
    frame_size = 256
    parallel = True

    def attach(self) -> None:
        self.entered = threading.Event()
        self.ended = False
        self.ran = 0
        self.revoke_inside = False

    @call
    def hold(self) -> u32:
        binding = self.plugged.gate.binding("hold")  # type: ignore[union-attr]
        self.entered.set()
        end = time.monotonic() + 10
        while binding.refusal is None and time.monotonic() < end:
            time.sleep(0)
        self.ended = True
        return 1

    @call
    def step(self, by: u8) -> u32:
        self.ran += by
        if self.revoke_inside:
            self.gate.revoke("step")
        return self.ran

    @call
    def other(self) -> u32:
        return 5

    @call
    def total(self, data: BufferIn) -> u64:
        return sum(data.view)


class Broken(Device):
    """Handlers as nobody should write them."""

    id = VENDOR, 0x10F6
    frames = 2
    frame_size = 256

    wrong = Register(0x00)

    def attach(self) -> None:
        self.give_up = threading.Event()

    @wrong.on_read
    def read_wrong(self) -> int:
        raise RuntimeError("a bug in a hook")

    @wrong.on_write
    def write_wrong(self, value: int) -> None:
        raise RuntimeError("a bug in a hook")

    @call
    def fail(self) -> u32:
        raise ZeroDivisionError("a bug in a handler")

    @call
    def misfit(self) -> u8:
        return 300

    @call
    def text(self) -> u8:
        return "text"  # type: ignore[return-value]

    @call
    def flood(self) -> bytes:
        return bytes(4096)

    @call
    def spin(self) -> u8:
        while not self.give_up.is_set():
            pass
        return 1

    @call
    def fine(self, value: u8) -> u8:
        return value
