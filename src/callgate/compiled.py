# SPDX-License-Identifier: MIT
"""The compiled modules: what Python alone does too, in less time.

    callgate.gate._frame                a usual frame's way through the gate
    callgate.backends.unicorn._tap      the guest's writes, from the library to a window

Each stands beside the Python that does the same, which is run where it was not built (no C compiler
or no Python.h when callgate was installed), where CALLGATE_PURE is set, and in a Python without a
GIL, on which these modules rely.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

PURE = bool(os.environ.get("CALLGATE_PURE"))


def compiled(name: str) -> Any:
    """The module; None where it was not built, or where there is no GIL."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return None
    try:
        return import_module(name)
    except ModuleNotFoundError:
        return None
