# SPDX-License-Identifier: MIT
"""Bugs in a device model: the user's own traceback, without our frames."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path

_PACKAGE = str(Path(__file__).resolve().parent)
_REMEMBERED = 1024
_reported: set[tuple[str, str, int]] = set()
_log = logging.getLogger("callgate.device")


def user_traceback(error: BaseException) -> str:
    """The traceback of `error` from the first frame outside this package on; whole if there is none.

    Frames of the package that lie below the user's (a register's setter, say) are left out too.
    """
    shown = traceback.TracebackException.from_exception(error)
    frames = [frame for frame in shown.stack if not _is_ours(frame.filename)]
    if frames:
        shown.stack = traceback.StackSummary.from_list(frames)
    return "".join(shown.format()).rstrip()


def _is_ours(filename: str) -> bool:
    ours = filename.startswith((_PACKAGE, "<callgate "))
    return ours and not filename.startswith(str(Path(_PACKAGE, "devices")))


def report_bug(where: str, error: BaseException) -> None:
    """Log a model's exception, naming device and register or call; the guest goes on.

    The same bug is logged loudly once: a guest that can make a model fail must not fill the log.
    """
    line = error.__traceback__.tb_lineno if error.__traceback__ else 0
    bug = (where, type(error).__name__, line)
    if bug in _reported:
        _log.debug("%s: the device model raised %s again", where, type(error).__name__)
        return
    if len(_reported) < _REMEMBERED:
        _reported.add(bug)
    _log.error("%s: the device model raised\n%s", where, user_traceback(error))
