# SPDX-License-Identifier: MIT
"""What a bench found: rows of calls, and single checks."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from callgate.errors import CallgateError


class BenchError(CallgateError):
    """Something that a bench needs is not there."""


@dataclass(frozen=True)
class Row:
    """One way of calling. Times are in microseconds, of whole calls as their caller sees them."""

    backend: str
    arch: str
    platform: str
    transport: str
    instruction: str
    """What the guest traps by; empty: it does not."""
    median: float
    p99: float
    per_second: float
    """Calls."""
    bare: float | None = None
    """Median of a bare trap of the same emulator, where there is one."""
    ratio: float | None = None
    """Whole call to bare trap, measured in turns."""
    target: float | None = None
    """What is wanted of the ratio; of the median where there is no ratio."""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None:
            return None
        return (self.median if self.ratio is None else self.ratio) <= self.target


@dataclass(frozen=True)
class Check:
    """A single figure. `value` is None when it could not be measured; `what` then says why."""

    what: str
    value: float | None
    unit: str = ""
    target: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none, or no value."""
        if self.target is None or self.value is None:
            return None
        return self.value <= self.target


def as_json(rows: Sequence[Row], checks: Sequence[Check]) -> str:
    """All of it, for programs."""
    found = {
        "host": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "system": platform.platform(),
        },
        "calls": [{**asdict(row), "met": row.met} for row in rows],
        "checks": [{**asdict(check), "met": check.met} for check in checks],
    }
    return json.dumps(found, indent=2)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of `values` that so many percent of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]
