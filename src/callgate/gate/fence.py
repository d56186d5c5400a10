# SPDX-License-Identifier: MIT
"""A barrier in memory that a guest's processors see at the same time as ours.

x86 keeps loads in order, and stores in order; only a load may overtake an earlier store. Other
processors reorder nearly all that one thread does not notice. Python has no barriers of its own,
but its locks have: to take one orders it before what follows, to give it back after what precedes.
"""

from __future__ import annotations

import platform
from threading import Lock

WEAK = platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686")
"""Whether loads overtake loads here, and stores stores."""


def fence() -> None:
    """Let all that is stored and loaded before be done before what is stored and loaded after."""
    lock = Lock()  # Its own: no other thread is to be waited for.
    # Once is not enough where each half orders one side alone (arm64): both could meet inside.
    with lock:
        pass
    with lock:
        pass
