# SPDX-License-Identifier: MIT
"""Bugs in a device model: the user's own traceback, without our frames."""

from __future__ import annotations

import inspect
import linecache
import logging
import os
import re
import traceback
from collections.abc import Callable
from functools import cache
from itertools import dropwhile
from pathlib import Path
from threading import Lock
from types import CodeType
from typing import Any

_PACKAGE = str(Path(__file__).resolve().parent) + os.sep
_MODELS = _PACKAGE + "devices" + os.sep
"""The stock devices, which are written as a user's are."""
_REMEMBERED = 256
_log = logging.getLogger("callgate.device")


class ResultMisfit(Exception):
    """What a function of the model's returned is not what it says: told where it is defined."""

    def __init__(self, sentence: str, function: Callable[..., Any]) -> None:
        super().__init__(sentence)
        self.code = inspect.unwrap(function).__code__


class Bugs:
    """What a device's model raised. Each bug is logged loudly once, then quietly: a guest that can
    make a model fail must not fill the log. Safe to use from any thread."""

    def __init__(self) -> None:
        self._known: set[tuple[str, str, str, int]] = set()
        self._counts: dict[str, int] = {}
        self._left: set[tuple[str, str]] = set()
        self._lock = Lock()

    def report(self, where: str, error: BaseException, *, at: str = "") -> None:
        """Count and log an exception of the model; the guest goes on.

        `where` names device and register or call. It is one of few: what the guest can choose, such
        as an offset, is `at`.
        """
        kind, verb = type(error).__name__, getattr(error, "verb", "raised")
        bug = where, kind, *_place(error)
        with self._lock:
            self._counts[where] = self._counts.get(where, 0) + 1
            known = bug in self._known or len(self._known) >= _REMEMBERED
            if not known:
                self._known.add(bug)
        if known:
            _log.debug("%s%s: the device model %s again (%s)", where, at, verb, kind)
        else:
            _log.error("%s%s: the device model %s\n%s", where, at, verb, user_traceback(error))

    @property
    def counts(self) -> dict[str, int]:
        """How often each `where` was reported, as a copy."""
        with self._lock:
            return dict(self._counts)

    def suspect(self, where: str, error: Exception, *, at: str = "") -> None:
        """Log, at level DEBUG, where an exception left the model that is the guest's fault as a
        rule: it gave an address. It may be the model's all the same."""
        if _log.isEnabledFor(logging.DEBUG):
            sentence = "%s%s: this left the device model; it is the guest's fault, or a bug\n%s"
            _log.debug(sentence, where, at, user_traceback(error))

    def still_runs(self, what: str, place: str) -> None:
        """Log, once, that code of the model's was to end and has not yet."""
        with self._lock:
            known = (what, "") in self._left
            self._left.add((what, ""))
        if not known:
            _log.error(
                "%s (%s) has not ended yet: what is blocked in C ends when it comes back; a "
                "handler_timeout (--handler-timeout) does not wait for that",
                what,
                place,
            )

    def leave_behind(self, what: str, thread: str, place: str) -> None:
        """Log, once, that code of the model's still runs and is waited for no longer."""
        with self._lock:
            known = (what, thread) in self._left
            self._left.add((what, thread))
        if not known:
            where = f" ({place})" if place else ""
            _log.error("%s%s does not end, and is left behind in thread %s", what, where, thread)


def user_traceback(error: BaseException) -> str:
    """The traceback of `error` from the first frame of the user's; whole if there is none.

    Frames of the package that lie below the user's (a register's setter, say) are left out too, and
    so they are of the exceptions that led to it.
    """
    shown = traceback.TracebackException.from_exception(error)
    if isinstance(error, ResultMisfit):
        shown.stack = traceback.StackSummary.from_list([_definition(error.code)])
    chain = [shown]
    while chain:
        each = chain.pop()
        theirs = (frame for frame in each.stack if not is_ours(frame.filename))
        frames = list(dropwhile(lambda frame: _is_library(frame.filename), theirs))
        if frames or each is not shown or hasattr(error, "verb"):
            each.stack = traceback.StackSummary.from_list(frames)
        chain += [cause for cause in (each.__cause__, each.__context__) if cause is not None]
    return "".join(shown.format()).rstrip()


def _definition(code: CodeType) -> traceback.FrameSummary:
    """The line with a function's name; its code begins with its decorators."""
    begin = re.compile(rf"\s*(async\s+)?def\s+{code.co_name}\b")
    numbers = range(code.co_firstlineno, max(line or 0 for *_, line in code.co_lines()) + 1)
    lines = (n for n in numbers if begin.match(linecache.getline(code.co_filename, n)))
    line = next(lines, code.co_firstlineno)
    return traceback.FrameSummary(code.co_filename, line, code.co_name)


def is_users(error: BaseException) -> bool:
    """Whether it was raised in, or below, code that is neither ours nor an installed package's."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(is_models(frame.filename) for frame in frames)


def is_models(filename: str) -> bool:
    """Whether a file is neither ours, but for the stock devices, nor an installed package's."""
    return not is_ours(filename) and not _is_library(filename)


def _place(error: BaseException) -> tuple[str, int]:
    """Where it was raised: the innermost line that is not ours."""
    place = "", 0
    for frame, line in traceback.walk_tb(error.__traceback__):
        filename = frame.f_code.co_filename
        if not is_ours(filename):
            place = filename, line
    return place


def is_ours(filename: str) -> bool:
    """Whether it is one of the package's own, and no model's."""
    ours = filename.startswith((_PACKAGE, "<callgate ", "<frozen importlib"))
    return ours and not filename.startswith(_MODELS)


def _is_library(filename: str) -> bool:
    return filename.startswith(_libraries())


@cache
def _libraries() -> tuple[str, ...]:
    """Where Python's own modules and installed packages are."""
    import sysconfig  # Not needed to declare a device.

    return tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib", "platlib")})
