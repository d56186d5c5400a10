# SPDX-License-Identifier: MIT
"""What crosses the boundary, as events: one for each access, call and interrupt."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from callgate.call import call, i8, u8, u64
from callgate.deadline import Deadline
from callgate.device import Device
from callgate.errors import DeviceError
from callgate.gate.abi import FRAME, FrameState, Transport
from callgate.gate.gate import Gate, Offer, Router
from callgate.gate.vectors import VectorTable
from callgate.register import Register
from callgate.testing import FakeGuest
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

    @call(one_way=True)
    def ping(self) -> None: ...


class Rig:
    def __init__(self) -> None:
        self.device = Sample()
        self.events: list[Event] = []
        self.gate = Gate(self.device, VectorTable(), Offer(), trace=self.events.append)

    def call(
        self, name: str, *slots: int, ring: Callable[[Gate], object] = lambda gate: gate.ring(0)
    ) -> Event:
        binding = self.gate.binding(name)
        return self.call_vector(binding.vector if binding else 0, *slots, ring=ring)

    def call_vector(
        self, vector: int, *slots: int, ring: Callable[[Gate], object] = lambda gate: gate.ring(0)
    ) -> Event:
        base = self.gate.frames_offset
        self.gate.ram[base : base + FRAME.size] = FRAME.pack(
            state=FrameState.READY,
            vector=vector,
            arguments=len(slots),
            values=(*slots, *(0,) * (12 - len(slots))),
        )
        before = len(self.events)
        ring(self.gate)
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
    assert rig.call("add", 1, 1).result == "DEVICE_FAULT"
    assert rig.call("add", 1, 2, 3).result == "BAD_COUNT"
    assert rig.events[-1].arguments == (1, 2, 3)
    rig.gate.deny("add")
    assert rig.call("add", 1, 1).result == "DENIED"


def test_a_number_is_written_in_one_way() -> None:
    rig = Rig()
    event = rig.call("split", 0x12345)
    assert event.result == "0x12345, -1"
    assert "split(0x12345) -> 0x12345, -1" in str(event)


@pytest.mark.parametrize(
    ("ring", "way"),
    [
        (lambda gate: gate.ring(0), "frame 0 by doorbell"),
        (lambda gate: gate.watch(1), "frame 0 by polling"),
    ],
)
def test_which_way_it_came(rig: Rig, ring: Callable[[Gate], object], way: str) -> None:
    assert rig.call("add", 1, 2, ring=ring).via == way


def test_which_way_it_came_through_the_windows() -> None:
    events: list[Event] = []
    with FakeGuest(Sample(), trace=events.append) as guest:
        sample = guest.open("sample")
        for transport in (Transport.HYPERCALL, Transport.PIO, Transport.MMIO):
            sample.transport = transport
            assert sample.add(1, 2) == 3
        sample.transport = Transport.HYPERCALL
        frame = sample.frames[3]
        sample.invoke(sample.calls["add"].vector, (1, 2), frame=frame)
        sample.notify("ping")
    calls = [event for event in events if event.kind == "call"]
    assert [event.via for event in calls] == [
        "hypercall",
        "frame 0 by pio",
        "frame 0 by mmio",
        "frame 3 by hypercall",
        "NOTIFY by mmio",
    ]
    assert str(calls[0]).count("add(1, 2) -> 3  (hypercall)  [") == 1


def test_a_call_that_takes_too_long_is_traced_at_once() -> None:
    device = Sample()
    events: list[Event] = []
    device.time_limit = Deadline(device.lock, 0.02)
    gate = Gate(device, VectorTable(), Offer(), trace=events.append)
    rig = Rig.__new__(Rig)
    rig.device, rig.events, rig.gate = device, events, gate
    device.act = lambda: time.sleep(0.5)
    event = rig.call("add", 1, 2)
    assert (event.result, event.via) == ("TIMED_OUT", "frame 0 by doorbell")
    assert event.seconds < 0.4


def test_a_revoked_vector_is_known_by_its_call(rig: Rig) -> None:
    binding = rig.gate.binding("add")
    assert binding is not None
    rig.gate.bind("add")
    event = rig.call_vector(binding.vector, 1, 2)
    assert (event.device, event.name, event.result) == ("sample", "add", "REVOKED")
    assert event.via == "frame 0 by doorbell"
    router = Router(rig.gate.table)
    router.trace = rig.events.append
    router.call(rig.gate.table.slot(), binding.vector, lambda count: (0,) * count)
    event = rig.events[-1]
    assert (event.device, event.name, event.result) == ("sample", "add", "REVOKED")
    assert event.via == "hypercall"
    router.call(rig.gate.table.slot(), 0x7FFF_FFFF, lambda count: (0,) * count)
    event = rig.events[-1]
    assert (event.device, event.name) == ("no device", "vector 0x7fffffff")


def test_revoked_vectors_are_not_remembered_for_ever(rig: Rig) -> None:
    for _ in range(5000):
        rig.gate.bind("ping")
    assert len(rig.gate.table.former) == 4096


def test_dma_is_traced() -> None:
    class Mover(Device):
        id = 0x1AF4, 0x10F0
        go = Register(0)

        @go.on_write
        def move(self, gpa: int) -> None:
            self.memory.write(gpa, b"abcd")
            self.memory.read(gpa, 4)
            self.memory.scatter([(gpa, 2), (gpa + 8, 16)], write=True)
            self.memory.map(gpa, 8)
            self.memory.check(gpa, 8, write=True)
            self.memory.read(1 << 60, 1)

    events: list[Event] = []
    with FakeGuest(Mover(), trace=events.append) as guest:
        function = guest.function(0x1AF4, 0x10F0)
        gpa = guest.door.allocate(64).gpa
        function.write(0, 0, 4, gpa)
    lines = [(event.kind, event.name, event.result) for event in events if "dma" in event.kind]
    assert lines == [
        ("dma write", f"4 bytes at {gpa:#x}", ""),
        ("dma read", f"4 bytes at {gpa:#x}", ""),
        ("dma map", f"2 bytes at {gpa:#x}", "writable"),
        ("dma map", f"16 bytes at {gpa + 8:#x}", "writable"),
        ("dma map", f"8 bytes at {gpa:#x}", "read-only"),
        ("dma read", "1 bytes at 0x1000000000000000", "refused"),
    ]


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
