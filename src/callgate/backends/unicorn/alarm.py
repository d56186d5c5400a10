# SPDX-License-Identifier: MIT
"""Wakes the CPU's thread, out of the emulator or out of its sleep, when it is wanted or due.

The emulator runs in C and looks at nothing but the brake. A thread pulls it when a timer is due,
and every `PATIENCE` seconds, since Python can see a signal (Ctrl-C) only when C returns.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

PATIENCE = 0.05


class Alarm:
    """`pull` stops the emulator; `due` says when that is wanted, by `time.monotonic`."""

    def __init__(self, pull: Callable[[], None], due: Callable[[], float]) -> None:
        self._pull = pull
        self._due = due
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._active = False
        self._closed = False
        self._rung = False
        self._wakes = math.inf
        """When the thread looks next. Infinite also while it is awake: so it is told too often
        rather than too seldom."""

    def __enter__(self) -> Alarm:
        """Begin to watch: the emulator runs, with pauses, until the end of the `with` block."""
        with self._condition:
            self._active = True
            if self._thread is None:
                thread = threading.Thread(target=self._watch, name="callgate alarm", daemon=True)
                thread.start()  # Ctrl-C may come before: only what runs can be joined.
                self._thread = thread
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

    def ring(self) -> None:
        """Wake the CPU's thread. From any thread."""
        self._pull()
        with self._condition:
            self._rung = True
            self._condition.notify_all()

    def quiet(self) -> None:
        """Take note: what rang before this is about to be looked at."""
        self._rung = False

    def look(self) -> None:
        """Ask `due` again, since it may be sooner now. From any thread."""
        with self._condition:
            self._condition.notify_all()

    def before_run(self) -> None:
        """Make sure that the thread knows of what is due: the emulator is about to run."""
        if self._due() < self._wakes:
            self.look()

    def sleep(self) -> bool:
        """Sleep until it rings or is due; False, at once, if it could never be."""
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
                self._wakes = math.inf
                if self._closed:
                    return
                if not self._active:
                    self._condition.wait()
                    continue
                wakes = min(time.monotonic() + PATIENCE, self._due())
                self._wakes = wakes
                left = wakes - time.monotonic()
                if left > 0:
                    self._condition.wait(left)
                self._wakes = math.inf
            if time.monotonic() >= wakes:
                self._pull()
                if self._due() <= wakes:
                    # The CPU's thread is at it, and may take its time in a handler.
                    time.sleep(0.001)
