# SPDX-License-Identifier: MIT
"""A count that many threads add to without a lock, and that is still exact.

`itertools.count` steps within one C call, so two threads never get the same step. It can be read
only by stepping it, so a reader takes a step and remembers it: the value is the step's number less
the readers' own steps. Readers are rare; they share one lock.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from threading import Lock

_READING = Lock()


class Counter:
    """Counts calls of `tick()`, which costs what a call of a C function costs and needs no lock."""

    __slots__ = ("_reads", "tick")

    tick: Callable[[], int]

    def __init__(self) -> None:
        self.tick = count().__next__
        self._reads = 0

    @property
    def value(self) -> int:
        """How many ticks there were, exactly, not counting the readers' own."""
        with _READING:
            value = self.tick() - self._reads
            self._reads += 1
        return value
