# SPDX-License-Identifier: MIT
import threading
import time
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate.timers import ManualClock, Timers


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(100.0)


@pytest.fixture
def timers(clock: ManualClock) -> Timers:
    return Timers(clock)


def test_runs_once_when_due(timers: Timers, clock: ManualClock) -> None:
    ran: list[float] = []
    timers.after(2, lambda: ran.append(clock()))
    assert timers.next_due() == 102.0
    clock.advance(1.9)
    assert timers.run_due() == 0
    clock.advance(0.1)
    assert timers.run_due() == 1
    clock.advance(10)
    assert timers.run_due() == 0
    assert ran == [102.0]
    assert timers.next_due() is None


def test_runs_in_order_of_due_time_then_of_start(timers: Timers, clock: ManualClock) -> None:
    ran: list[str] = []
    timers.after(3, lambda: ran.append("late"))
    timers.after(1, lambda: ran.append("first"))
    timers.after(1, lambda: ran.append("second"))
    clock.advance(5)
    assert timers.run_due() == 3
    assert ran == ["first", "second", "late"]


def test_periodic_timer_keeps_its_grid_and_leaves_missed_ticks_out(
    timers: Timers, clock: ManualClock
) -> None:
    ran: list[float] = []
    timers.every(10, lambda: ran.append(clock()))
    clock.advance(10)
    timers.run_due()
    clock.advance(35)  # Ticks at 120, 130 and 140 have passed.
    assert timers.run_due() == 1
    assert timers.next_due() == 150.0
    clock.advance(5)
    timers.run_due()
    assert ran == [110.0, 145.0, 150.0]


def test_cancelled_timer_does_not_run(timers: Timers, clock: ManualClock) -> None:
    ran: list[str] = []
    timer = timers.after(1, lambda: ran.append("no"))
    every = timers.every(1, lambda: ran.append("no"))
    timer.cancel()
    timer.cancel()
    every.cancel()
    assert timers.next_due() is None
    clock.advance(5)
    assert timers.run_due() == 0
    assert ran == []


def test_periodic_timer_can_cancel_itself(timers: Timers, clock: ManualClock) -> None:
    ran: list[int] = []

    def tick() -> None:
        ran.append(1)
        timer.cancel()

    timer = timers.every(1, tick)
    for _ in range(5):
        clock.advance(1)
        timers.run_due()
    assert ran == [1]


def test_timer_cancelled_by_one_that_runs_before_it(timers: Timers, clock: ManualClock) -> None:
    ran: list[str] = []
    timers.after(1, lambda: other.cancel())
    other = timers.after(2, lambda: ran.append("no"))
    clock.advance(3)
    assert timers.run_due() == 1
    assert ran == []


def test_a_timer_that_starts_timers_does_not_hold_run_due_up(
    timers: Timers, clock: ManualClock
) -> None:
    def again() -> None:
        timers.after(0, again)

    again()
    assert timers.run_due() == 1
    assert timers.run_due() == 1
    assert timers.next_due() == clock()


def test_an_exception_comes_out_and_loses_no_other_timer(
    timers: Timers, clock: ManualClock
) -> None:
    ran: list[str] = []

    def fail() -> None:
        raise RuntimeError("a bug")

    timers.after(1, fail)
    timers.after(2, lambda: ran.append("still"))
    clock.advance(5)
    with pytest.raises(RuntimeError, match="a bug"):
        timers.run_due()
    assert timers.run_due() == 1
    assert ran == ["still"]


def test_on_change_tells_only_of_an_earlier_due_time(timers: Timers) -> None:
    told: list[float | None] = []
    timers.on_change = lambda: told.append(timers.next_due())
    timers.after(5, lambda: None)
    timers.after(9, lambda: None)
    timers.after(1, lambda: None)
    assert told == [105.0, 101.0]


def test_on_change_after_the_first_was_cancelled(timers: Timers) -> None:
    timers.after(1, lambda: None).cancel()
    told: list[float | None] = []
    timers.on_change = lambda: told.append(timers.next_due())
    timers.after(5, lambda: None)
    assert told == [105.0]


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_after_refuses_the_past(timers: Timers, seconds: float) -> None:
    with pytest.raises(ValueError, match="0 or more seconds from now"):
        timers.after(seconds, lambda: None)


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_every_refuses_no_period(timers: Timers, seconds: float) -> None:
    with pytest.raises(ValueError, match="more than 0 seconds"):
        timers.every(seconds, lambda: None)


def test_manual_clock_does_not_go_back(clock: ManualClock) -> None:
    with pytest.raises(ValueError, match="must not go back"):
        clock.advance(-1)


def test_the_queue_does_not_grow_by_cancelled_timers(timers: Timers) -> None:
    timers.after(1, lambda: None)
    for _ in range(10_000):
        timers.after(60, lambda: None).cancel()
    assert len(timers._heap) < 200


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=40))
def test_each_timer_runs_once_in_order_unless_cancelled(plan: list[tuple[int, bool]]) -> None:
    clock = ManualClock()
    timers = Timers(clock)
    ran: list[tuple[int, int]] = []
    for number, (seconds, cancel) in enumerate(plan):
        timer = timers.after(seconds, partial(ran.append, (seconds, number)))
        if cancel:
            timer.cancel()
    while (due := timers.next_due()) is not None:
        clock.advance(due - clock())
        assert timers.run_due() > 0
    wanted = [(seconds, number) for number, (seconds, cancel) in enumerate(plan) if not cancel]
    assert ran == sorted(wanted)


def test_threads_may_start_and_cancel_while_another_runs() -> None:
    timers = Timers()
    ran: list[int] = []

    def start() -> None:
        for _ in range(300):
            timers.after(0, lambda: ran.append(1))
            timers.after(30, lambda: ran.append(2)).cancel()

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 30
    while len(ran) < 1200 and time.monotonic() < until:
        timers.run_due()
    for thread in threads:
        thread.join()
    assert ran == [1] * 1200
