# SPDX-License-Identifier: MIT
"""Timers of a machine: what a device asked to be run later, and the clock that they go by.

Nothing here waits. Whoever runs the guest calls `run_due` when `next_due` is reached, so that a
device's timers run on the thread of the CPU, between two of the guest's instructions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from threading import Lock

from callgate.errors import BackendError

_MANY = 64
"""Cancelled timers that the queue holds before it looks whether it is mostly made of them."""


class Timer:
    """A timer that was started with `Timers.after` or `Timers.every`."""

    __slots__ = ("_queue", "callback", "cancelled", "due", "number", "period")

    def __init__(
        self,
        queue: Timers,
        number: int,
        due: float,
        period: float | None,
        callback: Callable[[], None],
    ) -> None:
        self._queue = queue
        self.number = number
        self.due = due
        self.period = period
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        """Stop the timer: after this its callback does not start again. Harmless when repeated."""
        self._queue._cancel(self)

    def __lt__(self, other: Timer) -> bool:
        return (self.due, self.number) < (other.due, other.number)


class Timers:
    """A queue of timers by `clock`, which returns seconds. Every method is safe from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.on_change: Callable[[], None] = _nothing
        """Called when a timer was started that is due before all others."""
        self._lock = Lock()
        self._heap: list[Timer] = []
        self._started = 0
        self._cancelled = 0

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` once, `seconds` (0 or more) from now."""
        if not seconds >= 0:
            raise ValueError(f"A timer must start 0 or more seconds from now, not {seconds}")
        return self._start(seconds, None, callback)

    def every(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` every `seconds` (more than 0), first when they have passed.

        Ticks stay on that grid. Those that were missed, because nobody called `run_due` in time,
        are left out.
        """
        if not seconds > 0:
            raise ValueError(f"A timer's period must be more than 0 seconds, not {seconds}")
        return self._start(seconds, seconds, callback)

    def next_due(self) -> float | None:
        """When, by the clock, the next timer is due; None when there is none."""
        with self._lock:
            self._drop_cancelled()
            return self._heap[0].due if self._heap else None

    def run_due(self) -> int:
        """Run what is due by now, earliest first, and return how many callbacks ran.

        A timer that a callback starts runs at the next call at the earliest: this always returns.
        What a callback raises comes out; the other timers stay in the queue.
        """
        if not self._heap:
            return 0
        now = self.clock()
        ran = 0
        last = self._started
        held: list[Timer] = []
        try:
            while (timer := self._take(now, last, held)) is not None:
                ran += 1
                timer.callback()
        finally:
            with self._lock:
                for timer in held:
                    heappush(self._heap, timer)
        return ran

    def _start(self, seconds: float, period: float | None, callback: Callable[[], None]) -> Timer:
        with self._lock:
            self._started += 1
            timer = Timer(self, self._started, self.clock() + seconds, period, callback)
            self._drop_cancelled()
            heappush(self._heap, timer)
            first = self._heap[0] is timer
        if first:
            self.on_change()
        return timer

    def _take(self, now: float, last: int, held: list[Timer]) -> Timer | None:
        """The next due timer, started no later than `last`; a periodic one is queued anew."""
        with self._lock:
            while True:
                self._drop_cancelled()
                if not self._heap or self._heap[0].due > now:
                    return None
                timer = heappop(self._heap)
                if timer.number <= last:
                    break
                held.append(timer)
            if timer.period is not None:
                missed = (now - timer.due) // timer.period
                timer.due += (missed + 1) * timer.period
                heappush(self._heap, timer)
            return timer

    def _cancel(self, timer: Timer) -> None:
        with self._lock:
            if timer.cancelled:
                return
            timer.cancelled = True
            self._cancelled += 1
            if self._cancelled > _MANY and self._cancelled > len(self._heap) // 2:
                self._heap = [each for each in self._heap if not each.cancelled]
                heapify(self._heap)
                self._cancelled = 0

    def _drop_cancelled(self) -> None:
        while self._heap and self._heap[0].cancelled:
            heappop(self._heap)
            self._cancelled = max(0, self._cancelled - 1)


def check_seconds(what: str, seconds: float | None) -> None:
    """Raise BackendError unless a time limit is more than 0, or None."""
    if seconds is not None and not (isinstance(seconds, int | float) and seconds > 0):
        raise BackendError(f"{what} must be more than 0 seconds, not {seconds!r}")


class ManualClock:
    """A clock that stands still until `advance`: what tests and replays give to `Timers`."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def __call__(self) -> float:
        """Seconds, as `advance` left them."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass; they must not be negative."""
        if seconds < 0:
            raise ValueError(f"A clock must not go back, and {seconds} seconds would")
        self._now += seconds


def _nothing() -> None:
    """Do nothing; what `on_change` is until somebody wants to know."""
