# SPDX-License-Identifier: MIT
"""Bugs in a device model: the user's own traceback, without our frames."""

from __future__ import annotations

import logging
import os
import traceback
from pathlib import Path

_PACKAGE = str(Path(__file__).resolve().parent) + os.sep
_MODELS = _PACKAGE + "devices" + os.sep
"""The stock devices, which are written as a user's are."""
_REMEMBERED = 256
_log = logging.getLogger("callgate.device")


class Bugs:
    """What a device's model raised. Each bug is logged loudly once, then quietly: a guest that can
    make a model fail must not fill the log. Safe to use from any thread."""

    def __init__(self) -> None:
        self._known: set[tuple[str, str, str, int]] = set()

    def report(self, where: str, error: BaseException, *, at: str = "") -> None:
        """Log an exception of the model; the guest goes on.

        `where` names device and register or call. It is one of few: what the guest can choose, such
        as an offset, is `at`.
        """
        bug = where, type(error).__name__, *_place(error)
        if bug in self._known or len(self._known) >= _REMEMBERED:
            _log.debug("%s%s: the device model raised %s again", where, at, type(error).__name__)
            return
        self._known.add(bug)
        _log.error("%s%s: the device model raised\n%s", where, at, user_traceback(error))


def user_traceback(error: BaseException) -> str:
    """The traceback of `error` from the first frame outside this package; whole if there is none.

    Frames of the package that lie below the user's (a register's setter, say) are left out too, and
    so they are of the exceptions that led to it.
    """
    shown = traceback.TracebackException.from_exception(error)
    chain = [shown]
    while chain:
        each = chain.pop()
        frames = [frame for frame in each.stack if not _is_ours(frame.filename)]
        if frames:
            each.stack = traceback.StackSummary.from_list(frames)
        chain += [cause for cause in (each.__cause__, each.__context__) if cause is not None]
    return "".join(shown.format()).rstrip()


def _place(error: BaseException) -> tuple[str, int]:
    """Where it was raised: the innermost line that is not ours."""
    place = "", 0
    for frame, line in traceback.walk_tb(error.__traceback__):
        filename = frame.f_code.co_filename
        if not _is_ours(filename):
            place = filename, line
    return place


def _is_ours(filename: str) -> bool:
    ours = filename.startswith((_PACKAGE, "<callgate ", "<frozen importlib"))
    return ours and not filename.startswith(_MODELS)
