# SPDX-License-Identifier: MIT
"""A time limit for handlers: the guest gets its answer in time, whatever the handler does.

With a limit, a call runs in a thread of its own while its caller waits. When time is up, the caller
goes on with TIMED_OUT, and an exception is raised inside the handler, which ends a loop of Python;
one that is blocked in C sees it when it comes back. Until it ends its call counts as in flight, so
`revoke` tells the truth. Without a limit none of this is on a call's path.

    caller                     thread
    start, wait                take the device's lock, no longer than the limit
                               judge the call, then, if it was not given up: running
    time is up: give up        the handler            <-- here, and nowhere else, it is interrupted
                               over
    answer                     give back all that was taken

An exception that strikes anywhere can strike between a lock and the `try` that gives it back. So it
is raised only while the handler runs, and a handler that times out inside a library can leave that
library as an interrupted thread would: the limit is for models under test, not a way to schedule.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from typing import TYPE_CHECKING, Any

from callgate.gate.abi import Status

if TYPE_CHECKING:
    from callgate.call import Stub
    from callgate.gate.gate import Gate
    from callgate.gate.target import Answer, Target
    from callgate.gate.vectors import Binding


class HandlerTimeout(Exception):
    """The handler took longer than the caller of the machine allows."""


class _Ended(BaseException):
    """Raised inside a handler whose time is up; models that catch Exception do not stop it."""


class _Lowered(BaseException):
    """Raised in the thread that gives a handler up, by itself: see `_end`."""


class Deadline:
    """Runs calls for at most `seconds` each."""

    def __init__(self, seconds: float) -> None:
        if not seconds > 0:
            raise ValueError(f"A handler's time limit must be above 0 seconds, not {seconds}")
        self.seconds = seconds

    def run(
        self,
        gate: Gate,
        binding: Binding,
        values: tuple[int, ...],
        payload: memoryview | None,
    ) -> Answer:
        """What `Target.execute` answers, or TIMED_OUT when time is up.

        The call works on a copy of the payload: once it was given up, the frame is not its own.
        """
        copy = None if payload is None else memoryview(bytearray(payload))
        job = Job(gate, binding, values, copy, self.seconds)
        try:
            job.start()
        except RuntimeError as error:  # The host has no thread left.
            binding.note(Status.BUSY)
            gate.device.bugs.report(f"{binding}, time limit", error)
            return Status.BUSY, 0, ()
        if (job.ended.wait(self.seconds) or not job.give_up()) and job.answer is not None:
            if payload is not None and copy is not None and binding.target.places:
                payload[:] = copy
            return job.answer
        if job.error is not None:
            raise job.error
        binding.note(Status.TIMED_OUT)
        sentence = (
            f"the handler must end within {self.seconds:g} s; its call was answered TIMED_OUT"
        )
        gate.device.bugs.report(str(binding), HandlerTimeout(sentence))
        return Status.TIMED_OUT, 0, ()


class Job:
    """One call in its thread. `_turn` orders its handler's begin and end against `give_up`."""

    def __init__(
        self,
        gate: Gate,
        binding: Binding,
        values: tuple[int, ...],
        payload: memoryview | None,
        seconds: float,
    ) -> None:
        self.ended = threading.Event()
        self.answer: Answer | None = None
        self.error: BaseException | None = None
        self._gate = gate
        self._binding = binding
        self._values = values
        self._payload = payload
        self._seconds = seconds
        self._turn = threading.Lock()
        self._given_up = False
        self._running = False
        self._over = False
        self._thread = threading.Thread(target=self._work, name="callgate handler", daemon=True)

    def start(self) -> None:
        """Begin. Raises RuntimeError when no thread can be started."""
        self._thread.start()

    def run(
        self, stub: Stub, values: tuple[int, ...], payload: memoryview | None
    ) -> tuple[Any, ...]:
        """Run the handler; for `execute`, in the job's thread."""
        with self._turn:
            if self._given_up:
                raise _Ended
            self._running = True
        try:
            return stub(values, payload)
        finally:
            with self._turn:
                self._over = True  # From here on nothing is raised in this thread.

    def give_up(self) -> bool:
        """Let the call run on without us; False when its handler has just ended."""
        with self._turn:
            if not self._over:
                self._given_up = True
                if self._running:
                    _end(self._thread.ident or 0)
                return True
        self.ended.wait()
        return False

    def _work(self) -> None:
        lock = self._binding.target.lock
        try:
            if lock is None:
                self._execute()
            elif lock.acquire(timeout=self._seconds):
                # Else another handler keeps it, and by now nobody waits for us.
                try:
                    self._execute()
                finally:
                    lock.release()
        except _Ended:
            pass
        except BaseException as error:
            self.error = error
        self.ended.set()

    def _execute(self) -> None:
        # A slot of its own: the frame's is free for the next call as soon as this is given up.
        slot = self._gate.table.slot()
        target: Target = self._binding.target
        self.answer = target.execute(slot, self._binding, self._values, self._payload, self)


def _end(thread: int) -> None:
    """Raise _Ended in another thread: at once where it runs Python, later where it blocks in C.

    Before CPython 3.12 the pending exception keeps one flag up for all threads, and a traced thread
    (under a debugger or line coverage) that enters a function looks at the flag again and again:
    all of them stand still until the blocked one comes back. Only a thread that takes such an
    exception lowers the flag, so this one takes one too. The other's stays: it is seen when that
    thread wakes.
    """
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    other = ctypes.c_ulong(thread)
    if sys.version_info >= (3, 12):
        raise_in(other, ctypes.py_object(_Ended))
        return
    own = ctypes.c_ulong(threading.get_ident())
    ended, lowered = ctypes.py_object(_Ended), ctypes.py_object(_Lowered)
    try:
        raise_in(other, ended)
        raise_in(own, lowered)
        while True:  # It comes after the call, at the latest with the first jump back.
            pass
    except _Lowered:
        return
