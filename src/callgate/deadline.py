# SPDX-License-Identifier: MIT
"""A time limit for a model's code: who waits for it goes on in time, whatever the code does.

With a limit, each call, register hook, timer and reset runs in a thread of its own while its caller
waits. When time is up, the caller goes on, and an exception is raised in the thread, which ends a
loop of Python; code that is blocked in C sees it when it comes back. Until it ends, a call counts
as in flight, so `revoke` tells the truth, and the device's lock stays taken; but nobody waits for
that longer than the limit. Without a limit none of this is on the way.

    caller                     thread
    start, wait                take the device's lock, no longer than the limit
                               may it run still? then: running
    time is up: give up        the model's code          <-- here, and nowhere else, it is ended
                               over
    go on                      give back all that was taken

An exception that strikes anywhere can strike between a lock and the `try` that gives it back. So it
is raised only while the model's code runs, and a handler that times out inside a library can leave
that library as an interrupted thread would: the limit is for models under test, not a way to
schedule.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from callgate.threads import Ended, end, entry, frames, unwind, withdraw
from callgate.timers import check_seconds

T = TypeVar("T")


class HandlerTimeout(Exception):
    """A piece of a model's code took longer than whoever runs the machine allows.

    `begun` says whether it began: else the device was not free in time.
    """

    verb = "took too long"
    """How a report tells of it."""

    def __init__(self, sentence: str, begun: bool) -> None:
        super().__init__(sentence)
        self.begun = begun


class NoThread(RuntimeError):
    """The host has no thread left to run a model's code in."""


class Deadline:
    """Runs the model's code of one device, which has the `lock`, for at most `seconds` a piece."""

    def __init__(self, lock: threading.RLock, seconds: float) -> None:
        check_seconds("A handler's time limit", seconds)
        self.lock = lock
        self.seconds = seconds

    def run(self, work: Callable[[Job], T]) -> T:
        """Return what `work` returns, which is given a `Job` to run the model's code by.

        Raises HandlerTimeout, with the place where that code is, when time is up; NoThread; and
        what `work` raises. Once it was given up, what `work` does is nobody's.
        """
        job = Job(self)
        # Who has the device's lock cannot hand it to another thread, so he does the work himself.
        # Then code that is blocked in C keeps him for as long as it takes.
        run = job.run_here if self.lock._is_owned() else job.run_there  # type: ignore[attr-defined]
        return run(work)


class Job:
    """One piece of work. To it, this is the device's lock; `_turn` orders begin and end of the
    model's code against `give_up`."""

    def __init__(self, deadline: Deadline) -> None:
        self._lock = deadline.lock
        self._seconds = deadline.seconds
        self._turn = threading.Lock()
        self._thread = 0
        self._given_up = False
        self._running = False
        self._over = False
        self._traceback: TracebackType | None = None

    # --- for the work ----------------------------------------------------------------------------

    @entry(None)
    def acquire(self) -> None:
        """Take the device's lock. Raises HandlerTimeout when other code keeps it for too long."""
        if not self._lock.acquire(timeout=self._seconds):
            raise self._late()

    def release(self) -> None:
        """Give it back."""
        self._lock.release()

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function of the model's."""
        with self._turn:
            if self._given_up:
                raise Ended
            self._running = True
        try:
            return function(*arguments)
        finally:
            with self._turn:
                self._over = True  # From here on nothing is raised in this thread.
            if self._given_up:
                withdraw()  # Nor comes what was raised just before.

    # --- for the caller --------------------------------------------------------------------------

    @entry(None)
    def run_there(self, work: Callable[[Job], T]) -> T:
        """Do the work in another thread."""
        outcome: list[T] = []
        errors: list[BaseException] = []
        ended = threading.Event()

        def do() -> None:
            self._thread = threading.get_ident()
            try:
                outcome.append(work(self))
            except BaseException as error:
                errors.append(error)
            ended.set()

        try:
            threading.Thread(target=do, name="callgate handler", daemon=True).start()
        except RuntimeError as error:
            raise NoThread(str(error)) from error
        if not ended.wait(self._seconds) and self.give_up():
            raise self._late()
        ended.wait()
        if errors:
            raise errors[0]
        return outcome[0]

    def run_here(self, work: Callable[[Job], T]) -> T:
        """Do the work in this thread."""
        self._thread = threading.get_ident()
        timer = threading.Timer(self._seconds, self.give_up)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError as error:
            raise NoThread(str(error)) from error
        try:
            result = work(self)
        except Ended:
            if not self._given_up:  # It is meant for whoever called us.
                raise
        finally:
            timer.cancel()
        if self._given_up:
            raise self._late()
        return result

    def give_up(self) -> bool:
        """Let it run on without us, and end it if it can be ended; False when it is over."""
        with self._turn:
            if self._over:
                return False
            self._given_up = True
            if self._running:
                self._traceback, _ = unwind(frames().get(self._thread))
                end(self._thread)
            return True

    def _late(self) -> HandlerTimeout:
        sentence = f"it must end within {self._seconds:g} s"
        if not self._running:
            sentence = (
                f"it must begin within {self._seconds:g} s, and other code of the device kept it "
                "from that"
            )
        return HandlerTimeout(sentence, self._running).with_traceback(self._traceback)
