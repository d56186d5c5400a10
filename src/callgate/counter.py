# SPDX-License-Identifier: MIT
"""A count that many threads add to without a lock, and that is still exact.

`itertools.count` steps within one C call, so two threads never get the same step. It can be read
only by stepping it, so a reader takes a step and remembers it: the value is the step's number less
the readers' own steps. Readers are rare; they share one lock.
"""

from __future__ import annotations

from itertools import count
from threading import Lock
from typing import TYPE_CHECKING

_READING = Lock()

if TYPE_CHECKING:
    _Count = count[int]
else:
    _Count = count


class Counter(_Count):
    """Counts the calls of `next(counter)`, none of which needs a lock. Starts at 0."""

    _reads = 0

    @property
    def value(self) -> int:
        """How often others called `next`, exactly."""
        with _READING:
            value = next(self) - self._reads
            self._reads += 1
        return value
