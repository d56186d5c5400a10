# SPDX-License-Identifier: MIT
"""A device's life: plugged in, reset, unplugged; its timers, its lock, its errors."""

import gc
import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from callgate.call import call, u32
from callgate.device import Device
from callgate.errors import DmaError, PlugError, VectorError
from callgate.interrupt import Interrupt
from callgate.memory import GuestMemory
from callgate.register import Bar, Register
from callgate.timers import ManualClock, Timers

ID = 0x1AF4, 0x10F0


class Place:
    """Where a device is plugged in: implements `Plug`."""

    gate = None

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.timers = Timers(self.clock)
        self.memory = GuestMemory()
        self.memory.add(0, bytearray(64))
        self.sent: list[Any] = []
        self.pixels = memoryview(bytearray(4096))

    def bar_memory(self, index: int) -> memoryview:
        assert index == 1
        return self.pixels

    @property
    def msix_enabled(self) -> bool:
        return True

    def trigger(self, index: int) -> None:
        self.sent.append(index)

    def set_level(self, index: int, level: bool) -> None:
        self.sent.append((index, level))

    def advance(self, seconds: float) -> int:
        self.clock.advance(seconds)
        return self.timers.run_due()


class Model(Device):
    id = ID
    control = Register(0, reset=3)
    pixels = Bar(1, 4096, ram=True)
    window = Bar(0, 4096)
    done = Interrupt()
    failed = Interrupt()

    def __init__(self) -> None:
        self.log: list[str] = []
        self.act: Callable[[], object] = lambda: None

    def attach(self) -> None:
        self.log.append("attach")
        self.act()

    def reset(self) -> None:
        self.log.append(f"reset {self.control}")
        self.act()

    def detach(self) -> None:
        self.log.append("detach")
        self.act()

    @control.on_write
    def written(self, value: int) -> None:
        self.act()

    @control.on_read
    def reading(self) -> None:
        self.act()

    def tick(self) -> None:
        self.log.append("tick")
        self.act()


@pytest.fixture
def place() -> Place:
    return Place()


@pytest.fixture
def model(place: Place) -> Model:
    device = Model()
    device.plug_in(place)
    device.log.clear()
    return device


def fail() -> None:
    raise ZeroDivisionError("deliberately")


# --- plugged in and out -----------------------------------------------------------------------


def test_a_life(place: Place) -> None:
    device = Model()
    device.plug_in(place)
    device.control = 9
    device.do_reset()
    device.unplug()
    assert device.log == ["attach", "reset 3", "detach"]


def test_what_needs_a_plug_says_so() -> None:
    device = Model()
    for use in (
        lambda: device.memory,
        lambda: device.gate,
        lambda: device.pixels,
        lambda: device.done.trigger(),
        lambda: device.after(1, device.tick),
    ):
        with pytest.raises(PlugError, match="model must be plugged into a machine first"):
            use()


def test_a_device_without_calls_has_no_gate(model: Model) -> None:
    with pytest.raises(VectorError, match="model must declare a @call to have a gate"):
        _ = model.gate


def test_a_device_is_in_one_place_at_a_time(model: Model, place: Place) -> None:
    with pytest.raises(PlugError, match="model must be unplugged before it is plugged in again"):
        model.plug_in(Place())
    assert model.plugged is place
    model.unplug()
    other = Place()
    model.plug_in(other)
    assert model.plugged is other


def test_an_attach_that_fails_leaves_the_device_unplugged(place: Place) -> None:
    device = Model()

    def start_and_fail() -> None:
        device.after(1, device.tick)
        fail()

    device.act = start_and_fail
    with pytest.raises(ZeroDivisionError):
        device.plug_in(place)
    assert place.timers.next_due() is None
    device.act = lambda: None
    device.plug_in(place)


def test_a_detach_that_fails_unplugs_all_the_same(model: Model, place: Place) -> None:
    model.after(1, model.tick)
    model.act = fail
    with pytest.raises(ZeroDivisionError):
        model.unplug()
    assert place.timers.next_due() is None
    with pytest.raises(PlugError):
        _ = model.plugged


def test_a_reset_that_fails_is_reported(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    model.act = fail
    model.do_reset()
    assert "model.reset: the device model raised" in caplog.text


def test_interrupts_go_to_the_plug_by_index(model: Model, place: Place) -> None:
    model.failed.trigger()
    model.done.assert_()  # noqa: PT009
    model.done.deassert()
    assert place.sent == [1, (0, True), (0, False)]
    assert model.failed is model.failed  # looked up once


def test_memory_of_a_bar(model: Model, place: Place) -> None:
    model.pixels[5] = 7
    assert place.pixels[5] == 7


def test_a_model_need_not_call_our_constructor() -> None:
    class Own(Device):
        id = ID
        control = Register(0, reset=1)

        def __init__(self, number: int) -> None:
            self.control = number

    assert Own(5).control == 5


# --- timers -----------------------------------------------------------------------------------


def test_after_runs_once_and_every_runs_on(model: Model, place: Place) -> None:
    model.after(1, lambda: model.log.append("once"))
    model.every(2, model.tick)
    for _ in range(5):
        place.advance(1)
    assert model.log == ["once", "tick", "tick"]


def test_a_cancelled_timer_does_not_run(model: Model, place: Place) -> None:
    timers = [model.after(1, model.tick), model.every(1, model.tick)]
    for timer in timers:
        timer.cancel()
        timer.cancel()
    place.advance(5)
    assert model.log == []


@pytest.mark.parametrize("end", [Model.do_reset, Model.unplug])
def test_reset_and_unplug_stop_timers(
    model: Model, place: Place, end: Callable[[Model], None]
) -> None:
    model.after(1, model.tick)
    model.every(1, model.tick)
    end(model)
    model.log.clear()
    assert place.timers.next_due() is None
    place.advance(5)
    assert model.log == []


def test_a_reset_may_start_timers_anew(model: Model, place: Place) -> None:
    model.act = lambda: model.after(1, model.tick)
    model.do_reset()
    model.act = lambda: None
    place.advance(1)
    assert model.log == ["reset 3", "tick"]


@pytest.mark.parametrize("end", [Model.do_reset, Model.unplug])
def test_a_timer_that_is_due_while_the_device_is_reset_does_not_run_after(
    model: Model, place: Place, end: Callable[[Model], None]
) -> None:
    """The callback waits for the device's lock; when it gets it, the timer was stopped."""
    model.after(1, model.tick)
    with model.lock:
        runner = threading.Thread(target=place.advance, args=(1,))
        runner.start()
        while place.timers.next_due() is not None:
            pass
        end(model)
    runner.join(5)
    assert "tick" not in model.log


def test_a_timer_that_fails_is_reported_and_the_others_run(
    model: Model, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    model.after(1, fail)
    model.every(1, fail)
    model.after(1, model.tick)
    assert place.advance(1) == 3
    assert place.advance(1) == 1
    assert model.log == ["tick"]
    loud = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(loud) == 1
    assert "model.timer: the device model raised" in caplog.text


def test_bad_delays_raise(model: Model) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        model.after(-1, model.tick)
    with pytest.raises(ValueError, match="more than 0"):
        model.every(0, model.tick)
    assert not model._started_timers


def test_timers_that_ended_are_forgotten(model: Model, place: Place) -> None:
    """A guest that makes a model start timers must not fill the host's memory."""

    class Payload:
        def run(self) -> None: ...

    gone = []
    for _ in range(100):
        payload = Payload()
        model.after(0, payload.run)
        place.timers.run_due()
        timer = model.every(1, payload.run)
        timer.cancel()
        gone.append(weakref.ref(payload))
    del payload, timer
    place.advance(10)
    for _ in range(70):  # The queue drops cancelled ones when they are many.
        place.timers.after(0, lambda: None).cancel()
    gc.collect()
    assert [reference for reference in gone if reference() is not None] == []


# --- errors -----------------------------------------------------------------------------------


def test_an_address_that_is_not_the_guests_is_its_fault_in_a_hook_too(
    model: Model, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """A register that holds a DMA address leads there whenever the guest wrote nonsense."""
    model.act = lambda: model.memory.read(1 << 40, 4)
    assert model.register_read(0, 0, 4) == 0xFFFF_FFFF
    model.register_write(0, 0, 4, 1)
    model.after(1, lambda: model.memory.write(1 << 40, b"x"))
    place.advance(1)
    assert model.faults.counts == {"dma": 3}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "model: control, read by the guest: The range of 4 bytes" in caplog.text
    with pytest.raises(DmaError):
        _ = model.memory.read(1 << 40, 4)


def test_two_devices_of_a_class_report_their_bugs_each(
    model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    other = Model()
    other.plug_in(Place())
    for device in (model, other):
        device.act = fail
        device.register_read(0, 0, 4)
        device.register_read(0, 0, 4)
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 2


def test_what_ends_a_program_is_not_swallowed(model: Model) -> None:
    def leave() -> None:
        raise SystemExit(3)

    model.act = leave
    with pytest.raises(SystemExit):
        model.register_write(0, 0, 4, 1)


# --- one at a time ----------------------------------------------------------------------------


def test_hooks_and_timers_run_one_at_a_time(model: Model, place: Place) -> None:
    inside = 0
    most = 0
    turn = threading.Barrier(3, timeout=5)

    def act() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        threading.Event().wait(0.002)
        inside -= 1

    def guest(access: Callable[[], object]) -> None:
        turn.wait()
        for _ in range(5):
            access()

    model.act = act
    model.every(0.001, act)
    threads = [
        threading.Thread(target=guest, args=(access,))
        for access in (
            lambda: model.register_read(0, 0, 4),
            lambda: model.register_write(0, 0, 4, 1),
            lambda: place.advance(0.001),
        )
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert most == 1


def test_a_hook_may_call_back_into_its_own_device(model: Model) -> None:
    def nested() -> None:
        model.act = lambda: model.log.append("read")
        model.register_read(0, 0, 4)

    model.act = nested
    model.register_write(0, 0, 4, 1)
    assert model.log == ["read"]


def test_in_python_a_call_is_the_method() -> None:
    class Adder(Device):
        id = ID

        @call
        def add(self, a: u32, b: u32) -> u32:
            """Add."""
            return a + b

    assert Adder().add(2, 40) == 42
    assert Adder.spec.calls[0].doc == "Add."
