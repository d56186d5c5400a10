# SPDX-License-Identifier: MIT
"""What crosses the boundary, as events: one for each access, call and interrupt."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from callgate.call import call, i8, u8, u64
from callgate.device import Device
from callgate.errors import DeviceError
from callgate.gate.abi import FRAME, FrameState
from callgate.gate.gate import Gate, Offer
from callgate.gate.vectors import VectorTable
from callgate.trace import Event


class Sample(Device):
    id = 0x1AF4, 0x10F0

    def __init__(self) -> None:
        self.act: Callable[[], Any] = lambda: None

    @call
    def add(self, a: u8, b: u8) -> u64:
        self.act()
        return a + b

    @call
    def split(self, a: u64) -> tuple[u64, i8]:
        return a, -1

    @call
    def poke(self) -> None:
        time.sleep(0.01)


class Rig:
    def __init__(self) -> None:
        self.device = Sample()
        self.events: list[Event] = []
        self.gate = Gate(self.device, VectorTable(), Offer(), trace=self.events.append)

    def call(self, name: str, *slots: int) -> Event:
        binding = self.gate.binding(name)
        base = self.gate.frames_offset
        self.gate.ram[base : base + FRAME.size] = FRAME.pack(
            state=FrameState.READY,
            vector=binding.vector if binding else 0,
            arguments=len(slots),
            values=(*slots, *(0,) * (12 - len(slots))),
        )
        before = len(self.events)
        self.gate.ring(0)
        (event,) = self.events[before:]
        return event


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_call(rig: Rig) -> None:
    event = rig.call("add", 2, 40)
    assert (event.device, event.kind, event.name) == ("sample", "call", "add")
    assert event.arguments == (2, 40)
    assert event.result == "42"
    assert rig.call("split", 5).result == "5, -1"


def test_how_long_it_took(rig: Rig) -> None:
    event = rig.call("poke")
    assert event.result == "ok"
    assert 0.01 <= event.seconds < 1


def test_a_call_that_fails(rig: Rig) -> None:
    assert rig.call("add", 256, 0).result == "BAD_VALUE"

    def refuse() -> None:
        raise DeviceError(7)

    rig.device.act = refuse
    assert rig.call("add", 1, 1).result == "DEVICE_ERROR 7"
    rig.device.act = lambda: 1 / 0
    assert rig.call("add", 1, 1).result == "raised"


def test_a_call_that_is_bound_anew_is_traced_too(rig: Rig) -> None:
    rig.gate.bind("add")
    assert rig.call("add", 1, 1).result == "2"
    rig.gate.reset()
    assert rig.call("add", 1, 1).result == "2"


@pytest.mark.parametrize(
    ("event", "shown"),
    [
        (Event("adder", "call", "add", (2, 0x10000), "42", 1e-6), "add(2, 0x10000) -> 42"),
        (Event("adder", "call", "poke", (), "ok", 1e-6), "poke() -> ok"),
        (Event("adder", "read", "total", (), "0x2a", 1e-6), "total -> 0x2a"),
        (Event("adder", "write", "start", (10,), "", 1e-6), "start = 0xa"),
        (Event("adder", "config write", "command", (7,), "", 1e-6), "command = 0x7"),
        (Event("adder", "interrupt", "done", (), "", 1e-6), "done"),
        (Event("adder", "call", "say", (b"x" * 99,), "ok", 1e-6), "xx...) -> ok"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_event_in_a_line(event: Event, shown: str) -> None:
    line = str(event)
    assert line.startswith(f"adder        {event.kind}")
    assert f"{shown}  [1.0 us]" in line
    assert len(line) < 120
    assert "\n" not in line
