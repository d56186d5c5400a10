# SPDX-License-Identifier: MIT
"""The devices of user.c: a call of each kind; a gate with an unknown id; a device without calls."""

import enum
import threading
import time

from callgate import (
    BufferIn,
    BufferInOut,
    BufferOut,
    Device,
    DeviceError,
    Register,
    call,
    u8,
    u32,
    u64,
)
from callgate.call import CallRefused
from callgate.gate.abi import ENTRY, HEADER, Status
from callgate.gate.gate import Gate
from callgate.pci.capability import PciExpress

MASK = (1 << 64) - 1


class Action(enum.IntEnum):
    """What the host is to do with the call `add`."""

    REBIND = 1
    REVOKE = 2
    BIND = 3
    DENY = 4
    ALLOW = 5
    LIMIT = 6
    UNLIMIT = 7
    ESTRANGE = 8
    RECONCILE = 9


class Workbench(Device):
    """A call of each kind."""

    id = 0x1AF4, 0x10F8
    abi = "5a0b2f0e-6f6e-5c0c-9d0a-ca11ca7e00ff"
    version = 3
    frames = 8
    capabilities = (PciExpress(),)
    parallel = True
    holding = Register(0x00, reset=1, doc="while 1, `hold` holds")

    def attach(self) -> None:
        self.count = 0
        self.released = threading.Event()

    def reset(self) -> None:
        self.released.clear()

    @holding.on_write
    def let_go(self, value: int) -> None:
        if value:
            self.released.clear()
        else:
            self.released.set()

    @call
    def control(self, what: Action) -> None:
        """Change what `add` is."""
        gate = self.gate
        match what:
            case Action.REBIND:
                gate.bind("add")
            case Action.REVOKE:
                gate.revoke("add")
            case Action.BIND:
                gate.bind("add")
            case Action.DENY:
                gate.deny("add")
            case Action.ALLOW:
                gate.allow("add")
            case Action.LIMIT:
                gate.limit("add", per_second=0.01)
            case Action.UNLIMIT:
                gate.limit("add")
            case Action.ESTRANGE:
                gate.bind("add")
                self.sign(1)
            case Action.RECONCILE:
                self.sign(0)

    def sign(self, change: int) -> None:
        """Say in the directory that `add` has a signature that differs by `change`."""
        gate = self.gate
        assert isinstance(gate, Gate)
        number = [each.name for each in self.spec.calls].index("add")
        at = HEADER.size + number * ENTRY.size + ENTRY.offset("signature")
        signature = self.spec.calls[number].hash + change
        gate.ram[at : at + 8] = signature.to_bytes(8, "little")

    @call
    def add(self, a: u64, b: u64) -> u64:
        return (a + b) & MASK

    @call
    def narrow(self, value: u8) -> u8:
        return value

    @call
    def fail(self, code: u64) -> None:
        raise DeviceError(code, "as asked for")

    @call
    def status(self, status: u32) -> None:
        """Answer with a status of the guest's choice."""
        match Status(status):
            case Status.OK:
                pass
            case Status.DEVICE_ERROR:
                raise DeviceError(77, "as asked for")
            case refusal:
                raise CallRefused(refusal, "as asked for")

    @call
    def crash(self) -> None:
        raise RuntimeError("as asked for")

    @call
    def echo(self, data: bytes) -> bytes:
        return data

    @call
    def turn(
        self,
        v0: u64,
        v1: u64,
        v2: u64,
        v3: u64,
        v4: u64,
        v5: u64,
        v6: u64,
        v7: u64,
        v8: u64,
        v9: u64,
        v10: u64,
        v11: u64,
    ) -> tuple[u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64]:
        return v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v0

    @call
    def sum(self, data: BufferIn) -> u64:
        return sum(data.view)

    @call
    def fill(self, data: BufferOut, value: u8) -> None:
        data.view[:] = bytes([value]) * len(data)

    @call
    def flip(self, data: BufferInOut, mask: u8) -> None:
        table = bytes(value ^ mask for value in range(256))
        data.view[:] = bytes(data.view).translate(table)

    @call
    def slow(self, milliseconds: u32) -> u32:
        time.sleep(milliseconds / 1000)
        return milliseconds

    @call
    def hold(self, milliseconds: u32) -> u32:
        """Answer when `holding` is 0, or after that time."""
        self.released.wait(milliseconds / 1000)
        return milliseconds

    @call(one_way=True)
    def ping(self) -> None:
        self.count += 1

    @call(one_way=True)
    def step(self, count: u32) -> None:
        self.count += count

    @call
    def pings(self) -> u64:
        return self.count

    @call
    def a_name_of_thirty_nine_bytes_at_the_most(self) -> None:
        pass


class Other(Device):
    """A gate whose id no driver knows."""

    id = 0x1AF4, 0x10E0

    @call
    def nothing(self) -> None:
        pass


class Plain(Device):
    """No gate, with an id for experiments."""

    id = 0x1AF4, 0x10F1
    value = Register(0x00)
