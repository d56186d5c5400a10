# SPDX-License-Identifier: MIT
"""What a bench found: rows of calls, and single checks."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass

MARK = "<!-- callgate bench --markdown -->"


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


def as_markdown(rows: Sequence[Row], checks: Sequence[Check]) -> str:
    """All of it, as README.md shows it between the lines `MARK` and `<!-- end -->`."""
    lines = [
        "| backend | architecture | platform | transport | traps by | median us | p99 us "
        "| bare trap us | ratio | target |",
        "|---|---|---|---|---|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        place = ("", "") if row.arch == "none" else (row.arch, row.platform)
        words = (row.backend, *place, row.transport, row.instruction)
        figures = (
            f"{row.median:.2f}",
            f"{row.p99:.2f}",
            "" if row.bare is None else f"{row.bare:.2f}",
            "" if row.ratio is None else f"{row.ratio:.2f} x",
            _target(row.target, "us" if row.ratio is None else "x", row.met),
        )
        lines.append(f"| {' | '.join((*words, *figures))} |")
    lines += ["", "| | | target |", "|---|---:|---|"]
    for check in checks:
        value = "" if check.value is None else f"{_figure(check.value)} {check.unit}".rstrip()
        lines.append(f"| {check.what} | {value} | {_target(check.target, check.unit, check.met)} |")
    return "\n".join(lines) + "\n"


def _figure(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _target(target: float | None, unit: str, met: bool | None) -> str:
    if target is None:
        return ""
    verdict = {True: "met", False: "missed", None: "not measured"}[met]
    return f"{target:g} {unit}".rstrip() + f": {verdict}"


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of `values` that so many percent of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]
