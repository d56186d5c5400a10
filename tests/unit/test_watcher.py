# SPDX-License-Identifier: MIT
"""Watching frames: no call is lost when the watcher goes to sleep (docs/abi.md, 6.4)."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from callgate.call import call, u64
from callgate.device import Device
from callgate.gate.abi import FRAME, HEADER, Feature, FrameState, Layout, Status, Transport
from callgate.gate.gate import Gate, Offer
from callgate.gate.vectors import VectorTable
from callgate.gate.watcher import Watcher

pytestmark = pytest.mark.usefixtures("each_way")

FEATURES = 0x0C
WATCHING = HEADER.offset("watching")


class Count(Device):
    """Adds one to its argument."""

    id = 0x1AF4, 0x10F0
    frames = 4

    def __init__(self) -> None:
        self.act: Callable[[], object] = lambda: None
        self.threads: set[str] = set()

    @call
    def next(self, value: u64) -> u64:
        self.threads.add(threading.current_thread().name)
        self.act()
        return value + 1


class Driver:
    """A driver by the book: READY, then `watching`, then perhaps the doorbell."""

    def __init__(self, polled: bool = True) -> None:
        self.device = Count()
        self.gate = Gate(self.device, VectorTable(), Offer())
        if polled:
            self.accept(Feature.POLLED)
        self.words = self.gate.ram.cast("I")
        self.quads = self.gate.ram.cast("Q")
        binding = self.gate.binding("next")
        assert binding is not None
        self.vector = binding.vector
        self.rung = 0

    def accept(self, features: Feature) -> None:
        self.gate.mmio_write(FEATURES, 4, int(features))

    @property
    def watching(self) -> int:
        return self.words[WATCHING // 4]

    def post(self, value: int, index: int = 0) -> int:
        """Fill a frame and set it READY; returns where it is."""
        base = self.gate.frames_offset + index * self.gate.frame_size
        self.quads[base // 8 + 4] = value
        self.quads[base // 8 + 1] = 1 << 16
        self.quads[base // 8] = self.vector << 32 | FrameState.READY
        return base

    def wait(self, base: int, timeout: float = 5) -> int:
        end = time.monotonic() + timeout
        while self.words[base // 4] != FrameState.DONE:
            assert time.monotonic() < end, "the call was lost"
        frame = FRAME.unpack(self.gate.ram[base : base + FRAME.size])
        assert frame["status"] == Status.OK
        result: int = frame["values"][0]
        return result

    def ring(self, index: int = 0) -> None:
        self.gate.mmio_write(0, 4, index)

    def call(self, value: int, index: int = 0) -> int:
        base = self.post(value, index)
        if not self.watching:
            self.rung += 1
            self.ring(index)
        return self.wait(base)


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.0005)


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert [
        each for each in threading.enumerate() if each.name.startswith("callgate watcher")
    ] == []


def test_the_first_doorbell_wakes_it_and_then_no_doorbell_is_needed(driver: Driver) -> None:
    with Watcher(driver.gate, linger=2):
        assert driver.watching == 0
        assert driver.call(1) == 2
        until(lambda: driver.watching)
        rung = driver.rung
        assert [driver.call(value, value % 4) for value in range(20)] == list(range(1, 21))
        assert driver.rung == rung
        assert "callgate watcher of count" in driver.device.threads
    assert driver.watching == 0


def test_it_stops_when_no_call_comes(driver: Driver) -> None:
    with Watcher(driver.gate, linger=0.02):
        driver.call(1)
        until(lambda: driver.watching)
        began = time.monotonic()
        until(lambda: not driver.watching)
        assert 0.01 < time.monotonic() - began < 2
        time.sleep(0.05)  # It looks once more a little later.
        driver.post(5)
        time.sleep(0.03)
        assert driver.words[driver.gate.frames_offset // 4] == FrameState.READY  # It sleeps.
        driver.ring()
        assert driver.wait(driver.gate.frames_offset) == 6


def test_calls_keep_it_awake(driver: Driver) -> None:
    with Watcher(driver.gate, linger=0.1):
        driver.call(1)
        until(lambda: driver.watching)
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            driver.call(1)
            assert driver.watching
            time.sleep(0.005)


def test_a_driver_that_did_not_accept_polled_does_not_wake_it() -> None:
    driver = Driver(polled=False)
    with Watcher(driver.gate, linger=0.01):
        for _ in range(3):
            assert driver.call(1) == 2
            time.sleep(0.005)
            assert driver.watching == 0
    assert driver.device.threads == {threading.current_thread().name}


def test_a_driver_that_accepts_while_it_watches_is_watched_too() -> None:
    driver = Driver(polled=False)
    with Watcher(driver.gate, linger=30) as watcher:
        watcher._wake.set()  # As by a driver whose device was reset just then.
        until(lambda: not watcher._wake.is_set())
        assert driver.call(1) == 2
        assert not driver.watching
        driver.accept(Feature.POLLED)
        assert driver.call(1) == 2  # By its doorbell, which the watcher hears.
        until(lambda: driver.watching)


def test_a_slow_call_holds_up_no_other_device() -> None:
    slow, quick = Driver(), Driver()
    entered, leave = threading.Event(), threading.Event()
    with Watcher(slow.gate, linger=5), Watcher(quick.gate, linger=5):
        for each in (slow, quick):
            each.call(1)
            until(lambda each=each: each.watching)  # type: ignore[misc]

        def act() -> None:
            entered.set()
            leave.wait(10)

        slow.device.act = act
        base = slow.post(1)
        assert entered.wait(5)
        rung = quick.rung
        assert [quick.call(value, value % 4) for value in range(20)] == list(range(1, 21))
        assert quick.rung == rung
        leave.set()
        assert slow.wait(base) == 2


def test_close_answers_what_came_while_it_watched(driver: Driver) -> None:
    for _ in range(20):
        watcher = Watcher(driver.gate, linger=1)
        driver.call(1)
        until(lambda: driver.watching)
        base = driver.post(7)
        watcher.close()
        assert driver.words[base // 4] == FrameState.DONE
        assert driver.call(8) == 9  # And from now on by doorbell.
        assert driver.watching == 0


def test_a_reset_does_not_make_it_forget_that_it_watches(driver: Driver) -> None:
    with Watcher(driver.gate, linger=0.05):
        driver.call(1)
        until(lambda: driver.watching)
        driver.gate.reset()
        binding = driver.gate.binding("next")
        assert binding is not None
        driver.vector = binding.vector
        assert driver.call(1) == 2
        until(lambda: not driver.watching)
        assert driver.call(1) == 2
        time.sleep(0.01)
        assert not driver.watching  # The driver after a reset has not accepted `polled`.


def test_a_handler_that_fails_or_leaves_does_not_stop_it(
    driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    def status(act: Callable[[], Any]) -> int:
        driver.device.act = act
        base = driver.post(1)
        until(lambda: driver.words[base // 4] == FrameState.DONE)
        code: int = FRAME.unpack(driver.gate.ram[base : base + FRAME.size])["status"]
        return code

    with Watcher(driver.gate, linger=5):
        driver.call(1)
        until(lambda: driver.watching)
        assert status(lambda: 1 / 0) == Status.DEVICE_FAULT
        assert status(sys.exit) == Status.DEVICE_FAULT
        assert status(lambda: None) == Status.OK
        assert driver.watching
    assert "count.next: the device model raised" in caplog.text
    assert "SystemExit" in caplog.text


def test_a_frame_that_another_thread_answers_does_not_keep_it_awake(driver: Driver) -> None:
    end = threading.Event()
    driver.device.act = lambda: end.wait(5)
    with Watcher(driver.gate, linger=0.01):
        caller = threading.Thread(target=driver.call, args=(1,))
        caller.start()
        until(lambda: driver.device.threads)
        vector, driver.vector = driver.vector, 0
        driver.post(0, index=1)
        driver.vector = vector
        driver.ring(1)  # Wakes the watcher.
        until(lambda: driver.watching)
        time.sleep(0.05)
        assert not driver.watching
        end.set()
        caller.join(5)


@pytest.mark.parametrize("linger", [0.0, 0.0002, 0.003])
def test_no_wake_up_is_lost(linger: float) -> None:
    """Drivers that pause about as long as the watcher lingers: it falls asleep all the time."""
    driver = Driver()
    end = time.monotonic() + 0.6
    errors: list[BaseException] = []
    made = [0] * 4

    def drive(index: int) -> None:
        try:
            number = 0
            while time.monotonic() < end:
                number += 1
                assert driver.call(number, index) == number + 1
                made[index] = number
                pause = time.monotonic() + linger * (number % 7) / 2
                while time.monotonic() < pause:
                    time.sleep(0)
        except BaseException as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)
    try:
        with Watcher(driver.gate, linger=linger):
            threads = [threading.Thread(target=drive, args=(index,)) for index in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
    finally:
        sys.setswitchinterval(interval)
    assert errors == []
    assert min(made) > 5
    assert driver.rung > 0
    if linger > 0.001:
        assert driver.rung < sum(made)  # Some by the doorbell, some without.


def test_a_platform_without_polled_never_watches() -> None:
    gate = Gate(Count(), VectorTable(), Offer(Transport.MMIO))
    gate.mmio_write(FEATURES, 4, 0xF)
    with Watcher(gate, linger=1):
        gate.mmio_write(0, 4, 0)
        time.sleep(0.01)
        assert gate.ram[WATCHING] == 0


def test_a_reset_that_meets_the_watchers_sleep_does_not_promise_to_watch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The header is made with `watching` 1; before it is written, the watcher stores 0."""
    driver = Driver()
    driver.gate.say_watching(True)
    pack = type(HEADER).pack
    asleep = threading.Thread(target=driver.gate.say_watching, args=(False,))

    def slowly(layout: Layout, **members: Any) -> bytes:
        made = pack(layout, **members)
        if layout is HEADER:
            asleep.start()
            asleep.join(0.1)
        return made

    monkeypatch.setattr(Layout, "pack", slowly)
    driver.gate.reset()
    asleep.join(5)
    assert driver.watching == 0


def test_a_store_that_is_seen_late_is_not_lost() -> None:
    """Without the driver's barrier READY may be seen after its load of `watching` gave 1."""
    driver = Driver()
    with Watcher(driver.gate, linger=0.001) as watcher:
        driver.words[driver.gate.frames_offset // 4] = FrameState.FREE
        driver.gate.ring(0)  # Which the watcher takes for a reason to watch.
        looks = 0
        look = driver.gate.watch

        def counted(rounds: int) -> bool:
            nonlocal looks
            found = look(rounds)
            if not driver.watching:
                looks += 1
                if looks == 1:
                    driver.post(1)  # Seen only now; nobody rings.
            return found

        driver.gate.watch = counted
        watcher._wake.set()
        base = driver.gate.frames_offset
        assert driver.wait(base) == 2
