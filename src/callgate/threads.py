# SPDX-License-Identifier: MIT
"""What a device's model does at this moment, in which thread, and how that is ended.

Nothing is written down for this on the way of a call or an access. It is read from the stacks of
all threads, when somebody asks:

    thread    ... | entry: Slot.run, Device.enter ... | the model's own frames ...
"""

from __future__ import annotations

import ctypes
import gc
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from callgate.report import is_models

if TYPE_CHECKING:
    from callgate.device import Device

F = TypeVar("F", bound=Callable[..., Any])
Describe: TypeAlias = Callable[[Mapping[str, Any]], "tuple[Device, str]"]
_ENTRIES: dict[CodeType, Describe | None] = {}
ENTRY = "__callgate_entry__"
"""The global variable by which code that is made for one call says so: what `describe` tells."""
_LOOKING = threading.Lock()
WAKE = signal.SIGURG
"""Wakes the main thread. Who does not handle it is not disturbed by it."""


class Ended(BaseException):
    """Raised in a thread whose time is up; models that catch Exception do not stop it."""

    verb = "was ended"
    """How a report tells of it."""


class _Lowered(BaseException):
    """Raised in a thread by itself."""


class Running(NamedTuple):
    """A piece of a model's code that runs in `thread`. `what` names the device's call or hook."""

    device: Device
    what: str
    thread: int
    traceback: TracebackType
    """From the entry inwards."""

    @property
    def place(self) -> str:
        """Where in the model's file it is; empty if none of the code is the model's."""
        traceback: TracebackType | None = self.traceback
        while traceback is not None:
            file = traceback.tb_frame.f_code.co_filename
            if is_models(file):
                return f"{Path(file).name}, line {traceback.tb_lineno}"
            traceback = traceback.tb_next
        return ""


def entry(describe: Describe | None) -> Callable[[F], F]:
    """Mark a function through which a thread enters a model; `describe` tells, of its variables,
    the device and what is run. None: the function waits for another thread, which runs it."""

    def mark(function: F) -> F:
        _ENTRIES[function.__code__] = describe
        return function

    return mark


def running(device: Device | None = None) -> Iterator[Running]:
    """What of the device's model, or of all models, runs now in other threads than this one."""
    for thread, frame in frames().items():
        traceback, entered = unwind(frame)
        if thread == threading.get_ident() or entered is None:
            continue
        entered_by = _entered_by(entered)
        if entered_by is None:
            continue
        owner, what = entered_by
        # Without a traceback it waits for the device's lock.
        if traceback is not None and (device is None or owner is device):
            yield Running(owner, f"{owner}.{what}", thread, traceback)


def frames() -> dict[int, FrameType]:
    """The innermost frame of each thread."""
    # Before CPython 3.11.9 and 3.12.3 the collector can run in there, and wait for ever for a lock
    # that is held in there (python/cpython#106883).
    with _LOOKING:
        collecting = gc.isenabled()
        gc.disable()
        try:
            return sys._current_frames()
        finally:
            if collecting:
                gc.enable()


def unwind(frame: FrameType | None) -> tuple[TracebackType | None, FrameType | None]:
    """A frame, and those that led to it, as the traceback of an exception that is raised there;
    and the entry that they came through, if there is one."""
    traceback = None
    while frame is not None and frame.f_code not in _ENTRIES and ENTRY not in frame.f_globals:
        traceback = TracebackType(traceback, frame, frame.f_lasti, frame.f_lineno or 0)
        frame = frame.f_back
    return traceback, frame


def _entered_by(entered: FrameType) -> tuple[Device, str] | None:
    made_for: tuple[Device, str] | None = entered.f_globals.get(ENTRY)
    describe = _ENTRIES.get(entered.f_code)
    return made_for if describe is None else describe(entered.f_locals)


def end(thread: int) -> None:
    """Raise Ended in another thread: at once where it runs Python, later where it blocks in C.

    It strikes anywhere, between a lock and the `try` that gives it back too: so only while the
    thread runs a model's code, and the model can be left as by an interrupted thread.

    Before CPython 3.12 the pending exception keeps one flag up for all threads, and a traced thread
    (under a debugger or line coverage) that enters a function looks at the flag again and again:
    all of them stand still until the blocked one comes back. Only a thread that takes such an
    exception lowers the flag, so this one takes one too, and enters no function before. The other's
    stays: it is seen when that thread wakes.
    """
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    other, own = ctypes.c_ulong(thread), ctypes.c_ulong(threading.get_ident())
    ended, lowered = ctypes.py_object(Ended), ctypes.py_object(_Lowered)
    try:
        raise_in(other, ended)
        if sys.version_info < (3, 12):
            raise_in(own, lowered)
            while True:  # It comes after the call, at the latest with the first jump back.
                pass
    except _Lowered:
        return


def can_wake() -> bool:
    """Whether this is the main thread, which from here on can be woken by `wake`."""
    if threading.current_thread() is not threading.main_thread():
        return False
    if signal.getsignal(WAKE) is signal.SIG_DFL:
        signal.signal(WAKE, _do_nothing)
    return callable(signal.getsignal(WAKE))


def wake() -> None:
    """Have the main thread come back from a C function that sleeps, waits or reads, to Python.

    Python runs handlers of signals there, and goes on sleeping if they raise nothing. What `end`
    has raised in the thread strikes in the handler, and nothing does where `end` was not called.
    """
    main = threading.main_thread().ident
    if main is not None:
        signal.pthread_kill(main, WAKE)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    pass


def withdraw() -> None:
    """See to it that no exception is to come that another thread raised in this one."""
    own, lowered = ctypes.c_ulong(threading.get_ident()), ctypes.py_object(_Lowered)
    try:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(own, lowered)  # It takes the other's place.
        while True:
            pass
    except (Ended, _Lowered):
        return


def end_all(device: Device) -> None:
    """End what of the device's model runs: a loop soon, what is blocked in C when it comes back."""
    for each in running(device):
        if each.place:  # Else it runs our own code, which may have taken a lock.
            end(each.thread)


def leave_behind(device: Device) -> None:
    """Name in the log what of the device's model runs still, and is waited for no longer."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for each in running(device):
        name = names.get(each.thread, str(each.thread))
        device.bugs.leave_behind(each.what, name, each.place)


def join(thread: threading.Thread, seconds: float) -> bool:
    """Wait for the end of a thread that may run a model's code, at most `seconds`: after half of
    them that code is ended. Then the thread is left behind, and this is False."""
    thread.join(seconds / 2)
    if not thread.is_alive():
        return True
    for each in _of(thread):
        if each.place:
            end(each.thread)
    thread.join(seconds / 2)
    if not thread.is_alive():
        return True
    for each in _of(thread):
        each.device.bugs.leave_behind(each.what, thread.name, each.place)
    return False


def _of(thread: threading.Thread) -> list[Running]:
    return [each for each in running() if each.thread == thread.ident]
