# SPDX-License-Identifier: MIT
"""The thread on which a device carries out requests that may wait, for a disk say.

    wake() --> work() ............ busy ............ --> what it returned: interrupts
                 ^   defer(callback) runs in between, with nothing under way

It takes no lock of the device while it works, so that a reset, which has that lock, can wait for
it. Interrupts come after, since a message that the guest aims at this very device takes the lock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Condition, Thread

from callgate.report import user_traceback

_log = logging.getLogger("callgate.device")

After = Callable[[], None]


class Worker:
    """Runs `work` after each `wake`, one at a time; wakes that come meanwhile make one more.

    `work` returns what is to be done after it, when the device may be reset already.
    """

    def __init__(self, work: Callable[[], After], name: str) -> None:
        self._work = work
        self._turn = Condition()
        self._wanted = False
        self._busy = False
        self._telling = False
        self._closed = False
        self._deferred: list[Callable[[], None]] = []
        Thread(target=self._run, name=name, daemon=True).start()

    def wake(self) -> None:
        """Let `work` run (again)."""
        with self._turn:
            if not self._wanted:
                self._wanted = True
                self._turn.notify_all()

    def defer(self, callback: Callable[[], None]) -> None:
        """Run `callback` when no work is under way: now, or on the thread when it is done."""
        with self._turn:
            if self._busy or self._wanted:
                self._deferred.append(callback)
                return
        callback()

    def halt(self) -> None:
        """Forget what was asked for, and wait until no work is under way."""
        with self._turn:
            # Not until it is seen: the thread may wait for a lock that the caller has, to tell.
            self._wanted = False
            self._deferred.clear()
            self._turn.wait_for(lambda: not self._busy)

    def settle(self) -> None:
        """Wait until all that was woken for is done, and told. Not with the device's lock held."""
        with self._turn:
            self._turn.wait_for(lambda: not (self._busy or self._wanted or self._telling))

    def close(self) -> None:
        """End when the work under way is done, and wait for that."""
        with self._turn:
            self._closed = True
            self._turn.notify_all()
        self.halt()

    def _run(self) -> None:
        while True:
            with self._turn:
                self._telling = False
                self._turn.notify_all()
                self._turn.wait_for(lambda: self._wanted or self._closed)
                if self._closed:
                    return
                self._wanted, self._busy = False, True
            after = self._guard(self._work) or _nothing
            while True:
                with self._turn:
                    deferred, self._deferred = self._deferred, []
                    if not deferred:
                        self._busy, self._telling = False, True
                        self._turn.notify_all()
                        break
                for callback in deferred:
                    self._guard(callback)
            self._guard(after)

    def _guard(self, run: Callable[[], After | None]) -> After | None:
        try:
            return run()
        except Exception as error:
            # Not a bug of the model, which guards its own code: of ours. Requests go on.
            _log.error("a virtio device's thread raised\n%s", user_traceback(error))
            return None


def _nothing() -> None:
    """Nothing to do after it."""
