# SPDX-License-Identifier: MIT
"""A quota: how often a call may start, and how often it may run at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from threading import Lock

from callgate.errors import VectorError


class Quota:
    """How many calls may start in a second, and how many may run at once. Safe from any thread.

    `per_second` fills a bucket that holds `burst` calls (by default one second's worth, at least
    one); `in_flight` bounds the calls between `take` and `give`. None means without limit.
    """

    __slots__ = ("_clock", "_filled", "_lock", "_running", "_tokens", "burst", "in_flight", "rate")

    rate: float | None
    burst: float
    in_flight: int | None

    def __init__(
        self,
        *,
        per_second: float | None = None,
        burst: float | None = None,
        in_flight: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lock = Lock()
        self._clock = clock
        self._filled = clock()
        self._tokens = math.inf
        self._running = 0
        self.rate = None
        self.burst = math.inf
        self.change(per_second=per_second, burst=burst, in_flight=in_flight)

    def change(
        self,
        *,
        per_second: float | None = None,
        burst: float | None = None,
        in_flight: int | None = None,
    ) -> None:
        """Put these limits in place of the old ones; calls that run go on, and still count."""
        if per_second is not None and not per_second > 0:
            raise VectorError(
                f"A quota's per_second must be above 0, not {per_second}: use deny to forbid a call"
            )
        if burst is not None and (per_second is None or not burst >= 1):
            raise VectorError(
                f"A quota's burst must be at least 1 and come with per_second, not {burst}"
            )
        if in_flight is not None and in_flight < 1:
            raise VectorError(
                f"A quota's in_flight must be 1 or more, not {in_flight}: use deny to forbid a call"
            )
        with self._lock:
            self._fill()
            self.rate = per_second
            if per_second is None:
                self.burst = math.inf
                self._tokens = math.inf
            else:
                self.burst = burst if burst is not None else max(1.0, per_second)
                self._tokens = min(self._tokens, self.burst)
            self.in_flight = in_flight

    def take(self) -> bool:
        """Let a call start: True, and `give` must follow when it ends. False: answer BUSY."""
        with self._lock:
            if self.in_flight is not None and self._running >= self.in_flight:
                return False
            if self.rate is not None:
                self._fill()
                if self._tokens < 1:
                    return False
                self._tokens -= 1
            self._running += 1
            return True

    def give(self) -> None:
        """End a call that `take` let start."""
        with self._lock:
            self._running -= 1

    def _fill(self) -> None:
        now = self._clock()
        if self.rate is not None:
            self._tokens = min(self.burst, self._tokens + (now - self._filled) * self.rate)
        self._filled = now
