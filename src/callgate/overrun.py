# SPDX-License-Identifier: MIT
"""The end of a run whose time is up while code of a device model runs, and does not end.

A backend stops its guest in time; but it cannot stop a hook, a handler or a timer in which the
guest's processor waits. So a thread looks a little later whether the run has ended, and if not,
ends what the models do.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Condition, Thread, main_thread

from callgate.device import Device
from callgate.errors import BudgetError
from callgate.threads import Ended, can_wake, end, running, wake

GRACE = 0.1
"""Seconds that a run has to end by itself when its time is up."""
_NEVER = float("inf")


class Overrun:
    """Sees to it that runs of a machine with `devices` end in time, one run after the other.

    `close` ends its thread, which the first run with a deadline starts. That a run has begun or
    ended wakes it only where it sleeps for too long: runs may be short.
    """

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = devices
        self._changed = Condition()
        self._deadline = _NEVER
        self._wakes = 0.0
        """When the thread looks next, if nobody wakes it."""
        self._can_wake = False
        self._ended: dict[str, str] = {}
        self._closed = False
        self._thread = Thread(target=self._watch, name="callgate overrun", daemon=True)

    @contextmanager
    def until(self, deadline: float | None) -> Iterator[None]:
        """A run, which is to end at `deadline`, by `time.monotonic`; without one it may last.

        Raises BudgetError, which names what had to be ended. Where the run is in the main thread of
        the process, and the code too, that is woken from a system call. Other code that is blocked
        in C ends when it comes back: a `handler_timeout` does not wait for that.
        """
        if deadline is None:
            yield
            return
        wakes = can_wake()
        with self._changed:
            self._can_wake = wakes
            self._deadline = deadline
            if self._thread.ident is None:
                self._thread.start()
            elif deadline + GRACE < self._wakes:
                self._changed.notify()
        try:
            yield
        except (BudgetError, Ended):
            ended = self._settle()
            if not ended:
                raise
            what = " and ".join(f"{what} ({place})" for what, place in ended.items())
            raise BudgetError(f"The guest used up its time, and {what} had not ended") from None
        finally:
            self._settle()

    def close(self) -> None:
        """Harmless when repeated."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _settle(self) -> dict[str, str]:
        """From here on nothing is ended; what was, and where in the model's file."""
        with self._changed:
            self._deadline = _NEVER
            ended, self._ended = self._ended, {}
            return ended

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                if self._deadline + GRACE <= now:
                    self._end()
                    self._wakes = now + GRACE
                else:
                    self._wakes = self._deadline + GRACE
                self._changed.wait(None if self._wakes == _NEVER else self._wakes - now)

    def _end(self) -> None:
        for device in self._devices:
            for each in running(device):
                if not each.place:
                    continue
                if each.what not in self._ended:
                    self._ended[each.what] = each.place
                    error = Ended("the run's time is up").with_traceback(each.traceback)
                    device.bugs.report(each.what, error)
                else:
                    device.bugs.still_runs(each.what, each.place)
                end(each.thread)
                if self._can_wake and each.thread == main_thread().ident:
                    wake()
