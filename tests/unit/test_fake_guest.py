# SPDX-License-Identifier: MIT
"""FakeGuest: what a test of a device needs, and a clock that the test moves."""

from collections.abc import Callable

import pytest

from callgate.call import call, u64
from callgate.device import Device
from callgate.errors import BackendError, DmaError, NotFound
from callgate.interrupt import Interrupt
from callgate.register import Register
from callgate.testing import FakeGuest


class Clock(Device):
    id = 0x1AF4, 0x10F0
    start = Register(0x00, access="w")
    ticks = Register(0x04, access="r")
    tick = Interrupt()

    def attach(self) -> None:
        self.order: list[str] = []
        self.detached = False

    def detach(self) -> None:
        self.detached = True

    @start.on_write
    def begin(self, value: int) -> None:
        self.every(value / 1000, self.count)

    def count(self) -> None:
        self.ticks += 1
        self.tick.trigger()

    @call
    def add(self, a: u64, b: u64) -> u64:
        return a + b


def test_a_call_a_register_and_an_interrupt() -> None:
    with FakeGuest(Clock()) as guest:
        assert guest.open("clock").add(2, 40) == 42
        function = guest.function(*Clock.id)
        tick = function.interrupt(0)
        function.write(0, 0, 4, 10)
        assert not tick.take()
        guest.advance(0.010)
        assert tick.take()
        assert function.read(0, 4, 4) == 1


def test_each_timer_runs_at_its_moment_and_in_order() -> None:
    clock = Clock()
    with FakeGuest(clock) as guest:
        moments: list[tuple[str, float]] = []

        def note(name: str) -> Callable[[], None]:
            return lambda: moments.append((name, round(guest.clock(), 6)))

        clock.after(0.3, note("late"))
        clock.after(0.1, note("early"))
        clock.every(0.2, note("often"))

        def chain() -> None:
            clock.after(0.05, note("second"))

        clock.after(0.1, chain)
        guest.advance(0.5)
        assert moments == [
            ("early", 0.1),
            ("second", 0.15),
            ("often", 0.2),
            ("late", 0.3),
            ("often", 0.4),
        ]
        assert guest.clock() == pytest.approx(0.5)


def test_nothing_runs_before_the_clock_is_moved() -> None:
    clock = Clock()
    with FakeGuest(clock) as guest:
        clock.after(0, clock.count)
        assert clock.ticks == 0
        guest.advance(0)
        assert clock.ticks == 1


@pytest.mark.parametrize("seconds", [1e-9, 0.1, 1 / 3, 1e6])
def test_any_step_of_time(seconds: float) -> None:
    clock = Clock()
    with FakeGuest(clock) as guest:
        clock.every(seconds / 7, clock.count)
        for _ in range(10):
            guest.advance(seconds)
        assert 68 <= clock.ticks <= 71


def test_several_devices() -> None:
    class Other(Clock):
        id = 0x1AF4, 0x10F1

    with FakeGuest(Clock(), Other()) as guest:
        assert guest.open("other").function.id == Other.id
        assert guest.function(*Other.id).address == 0x10


def test_who_is_not_there_is_told() -> None:
    with FakeGuest(Clock()) as guest:
        with pytest.raises(NotFound, match=r"a function 1af4:1234 must be on the bus"):
            guest.function(0x1AF4, 0x1234)
        with pytest.raises(NotFound, match=r"a device named 'nobody'.*: clock"):
            guest.open("nobody")


def test_its_memory_is_the_guests() -> None:
    with FakeGuest(Clock(), ram=1 << 20) as guest:
        memory = guest.door.allocate(16)
        guest.memory.write(memory.gpa, b"hello")
        assert guest.door.load(memory.gpa, 5) == b"hello"
        with pytest.raises(DmaError):
            guest.memory.read(1 << 20, 1)


def test_options_are_the_machines() -> None:
    with FakeGuest(Clock(), arch="riscv64", platform="native") as guest:
        assert guest.machine.board.arch == "riscv64"
        assert guest.open("clock").add(2, 40) == 42
    with pytest.raises(BackendError, match="must be one of"):
        FakeGuest(Clock(), arch="z80")
    with pytest.raises(TypeError, match="clock"):
        FakeGuest(Clock(), clock=lambda: 0.0)


def test_the_device_is_unplugged_afterwards() -> None:
    clock = Clock()
    with FakeGuest(clock):
        pass
    assert clock.detached
    with FakeGuest(clock) as guest:
        assert guest.open("clock").add(1, 1) == 2


def test_the_fixture_makes_them(request: pytest.FixtureRequest) -> None:
    if not request.config.pluginmanager.has_plugin("callgate"):
        pytest.skip("the plugin of callgate is turned off: -p no:callgate")
    fake_guest = request.getfixturevalue("fake_guest")
    first, second = Clock(), Clock()
    assert fake_guest(first).open("clock").add(1, 2) == 3
    assert fake_guest(second, arch="i386").machine.board.arch == "i386"
