# SPDX-License-Identifier: MIT
"""A thread that stops the emulator when something is due, and the place where the CPU's sleeps.

The emulator runs in C and looks at nothing. Whoever wants its thread asks for it (`ring`); a timer
that comes due asks too, and so does the clock after `PATIENCE` seconds of one run, since Python can
see a signal (Ctrl-C) only when C returns.

    CPU's thread      begin() [ emulator ........... ] end()   sleep() ........
    alarm's thread    wait until due, rung or impatient: stop() until end()
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

PATIENCE = 0.05
_INSIST = 0.0005
"""Seconds between two stops. The library forgets one that came before it began to execute."""


class Alarm:
    """`stop` stops the emulator; `due` says when that has to be, by `time.monotonic`."""

    def __init__(self, stop: Callable[[], None], due: Callable[[], float]) -> None:
        self._stop = stop
        self._due = due
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._rung = False
        self._closed = False
        self._wakes = math.inf
        """When the thread looks next. Infinite also while it is awake: it is told more often than it
        need be, but never too seldom."""
        self._run = 0
        """Odd while the emulator runs; another number for each run."""
        self._active = False

    def __enter__(self) -> Alarm:
        """Runs begin and end from here on."""
        with self._condition:
            self._active = True
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._watch, name="callgate alarm", daemon=True
                )
                self._thread.start()
            self._condition.notify_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._active = False

    def close(self) -> None:
        """End the thread."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def ring(self) -> None:
        """Let the CPU's thread come back from emulator or sleep soon. From any thread."""
        with self._condition:
            self._rung = True
            self._condition.notify_all()

    def look(self) -> None:
        """Ask `due` again: it has changed. From any thread."""
        with self._condition:
            self._condition.notify_all()

    def begin(self) -> None:
        """The emulator is about to run."""
        self._run += 1
        if self._due() < self._wakes:
            self.look()

    def end(self) -> None:
        """The emulator has stopped; what rang until now is answered by that."""
        self._run += 1

    def quiet(self) -> None:
        """What rang is being answered: called before looking at what there is to do."""
        self._rung = False

    def sleep(self) -> bool:
        """Sleep until it is rung or `due`; False if neither can ever be."""
        with self._condition:
            while not self._rung:
                due = self._due()
                if due == math.inf:
                    return False
                left = due - time.monotonic()
                if left <= 0:
                    break
                self._condition.wait(left)
        return True

    def _watch(self) -> None:
        while True:
            with self._condition:
                if self._closed:
                    return
                run = self._run
                wakes = math.inf
                if self._active and not self._rung:
                    wakes = min(time.monotonic() + PATIENCE, self._due())
                if not (self._active and self._rung):
                    self._wakes = wakes
                    left = wakes - time.monotonic()
                    if left > 0:
                        self._condition.wait(None if wakes == math.inf else left)
                    self._wakes = math.inf
                impatient = run == self._run and time.monotonic() >= wakes
                wanted = self._rung or impatient or self._due() <= time.monotonic()
            if wanted and self._active:
                self._insist()

    def _insist(self) -> None:
        run = self._run
        if run % 2 == 0:
            time.sleep(_INSIST)
        while run % 2 and run == self._run:
            self._stop()
            time.sleep(_INSIST)
