# SPDX-License-Identifier: MIT
"""A time limit for handlers: the guest gets its answer in time, whatever the handler does.

With a limit, a handler runs in a thread of its own while the caller waits. When time is up, the
caller goes on with TIMED_OUT, and an exception is raised inside the handler, which ends a loop of
Python; one that is blocked in C sees it when it comes back. Until it ends its call counts as in
flight, so `revoke` tells the truth. Without a limit none of this is on a call's path.
"""

from __future__ import annotations

import ctypes
import threading
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from callgate.gate.gate import Target
    from callgate.gate.vectors import Abandoned, Slot, VectorTable


class HandlerTimeout(Exception):
    """The handler took longer than the caller of the machine allows."""


class _Ended(BaseException):
    """Raised inside a handler whose time is up; models that catch Exception do not stop it."""


class Deadline:
    """Runs handlers for at most `seconds` each."""

    def __init__(self, seconds: float) -> None:
        if not seconds > 0:
            raise ValueError(f"A handler's time limit must be above 0 seconds, not {seconds}")
        self.seconds = seconds

    def run(
        self,
        table: VectorTable,
        slot: Slot,
        target: Target,
        values: tuple[int, ...],
        payload: memoryview | None,
    ) -> tuple[Any, ...]:
        """What the target's stub returns or raises; HandlerTimeout when time is up.

        The target's lock is held while the stub runs. The stub gets a copy of the payload, since a
        handler that was given up must not see what the frame holds by then.
        """
        copy = None if payload is None else memoryview(bytes(payload))
        job = _Job(table, target, values, copy)
        job.thread.start()
        slot.thread = job.thread.ident or 0
        if not job.ended.wait(self.seconds) and job.give_up(slot):
            raise HandlerTimeout(
                f"the handler must end within {self.seconds:g} s; its call was answered TIMED_OUT"
            )
        if job.error is not None:
            raise job.error
        return job.results


class _Job:
    """One handler in its thread. `turn` orders its end against its being given up."""

    def __init__(
        self,
        table: VectorTable,
        target: Target,
        values: tuple[int, ...],
        payload: memoryview | None,
    ) -> None:
        self.table = table
        self.target = target
        self.values = values
        self.payload = payload
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self.results: tuple[Any, ...] = ()
        self.turn = threading.Lock()
        self.over = False
        self.abandoned: Abandoned | None = None
        self.thread = threading.Thread(target=self._run, name="callgate handler", daemon=True)

    def _run(self) -> None:
        try:
            with self.target.lock or nullcontext():
                try:
                    self.results = self.target.stub(self.values, self.payload)
                finally:
                    with self.turn:
                        self.over = True  # From here on nothing is raised in this thread.
        except BaseException as error:
            self.error = error
        if self.abandoned is not None:
            self.table.settle(self.abandoned)
        self.ended.set()

    def give_up(self, slot: Slot) -> bool:
        """Let the handler run on without us; False when it has just ended."""
        with self.turn:
            if not self.over:
                self.abandoned = self.table.abandon(slot)
                thread = ctypes.c_ulong(self.thread.ident or 0)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(_Ended))
                return True
        self.ended.wait()
        return False
