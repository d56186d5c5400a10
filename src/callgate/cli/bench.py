# SPDX-License-Identifier: MIT
"""`callgate bench`: the measurements as a table, as JSON, as a picture."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from callgate.backends.base import backend
from callgate.backends.board import BOARDS
from callgate.bench import report
from callgate.bench.calls import measure, ways
from callgate.bench.host import dispatch_checks, loopback_rows, run_check, start_checks
from callgate.bench.plot import check_plot, draw
from callgate.bench.report import Check, Row
from callgate.errors import BackendError

BACKENDS = ("loopback", "unicorn", "kvm", "qemu")
USUAL = ("loopback", "unicorn")
"""Measured when none is named: they need nothing that is not installed."""
WIDTH = 130
"""Columns of the table where there is no terminal to ask."""


def run_bench(
    *,
    backends: Sequence[str] | None,
    architectures: Sequence[str] | None,
    calls: int,
    form: str,
    plot: Path | None,
    modules: Path | None,
) -> None:
    """Measure, and print as `form` says: `table`, `json` or `markdown`.

    Raises BackendError, BenchError and GuestError.
    """
    backends = _known("backend that can be measured", backends, BACKENDS, USUAL)
    architectures = _known("architecture", architectures, tuple(BOARDS), tuple(BOARDS))
    if plot is not None:
        check_plot(plot)
    progress = Console(stderr=True)
    rows: list[Row] = []
    checks: list[Check] = []
    if "loopback" in backends:
        progress.print("measuring loopback ...", highlight=False)
        rows += loopback_rows(calls)
        checks += dispatch_checks()
        checks += start_checks()
    if "unicorn" in backends:
        for way in ways(architectures):
            words = f"measuring unicorn, {way.arch}, {way.platform.name}, {way.transport} ..."
            progress.print(words, highlight=False)
            rows.append(measure(way, calls))
        checks.append(run_check())
    if "kvm" in backends:
        from callgate.bench.kvm import kvm_rows

        backend("kvm")  # It says what this host lacks.
        progress.print("measuring kvm ...", highlight=False)
        for each in kvm_rows(architectures, calls):
            if isinstance(each, Row):
                rows.append(each)
            else:
                checks.append(each)
    if "qemu" in backends:
        from callgate.bench.qemu import qemu_rows
        from callgate.devices.virtio_blk import VirtioBlk

        progress.print("measuring qemu ...", highlight=False)
        found, singles = qemu_rows(calls, VirtioBlk)
        rows += found
        checks += singles
        if modules is not None:
            from callgate.bench.linux import linux_checks

            progress.print("measuring qemu, drivers in Linux ...", highlight=False)
            checks += linux_checks(modules, calls)
    if plot is not None:
        draw(rows, plot)
    if form == "json":
        sys.stdout.write(report.as_json(rows, checks) + "\n")
    elif form == "markdown":
        sys.stdout.write(report.as_markdown(rows, checks))
    else:
        _print(rows, checks)


def _known(
    what: str, wanted: Sequence[str] | None, known: Sequence[str], usual: Sequence[str]
) -> Sequence[str]:
    for each in wanted or ():
        if each not in known:
            raise BackendError(f"The {what} must be one of {', '.join(known)}, not {each!r}")
    return wanted or usual


def _print(rows: Iterable[Row], checks: Iterable[Check]) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    table = Table(box=None, pad_edge=False)
    for name in ("backend", "architecture", "platform", "transport", "traps by"):
        table.add_column(name, no_wrap=True)
    for name in ("median us", "p99 us", "calls/s", "bare us", "ratio", "target", ""):
        table.add_column(name, justify="right")
    for row in rows:
        target = "" if row.target is None else f"<= {row.target:g}"
        if row.target is not None:
            target += " x" if row.ratio is not None else " us"
        table.add_row(
            *(row.backend, row.arch, row.platform, row.transport, row.instruction),
            f"{row.median:.2f}",
            f"{row.p99:.2f}",
            f"{row.per_second:,.0f}",
            "" if row.bare is None else f"{row.bare:.2f}",
            "" if row.ratio is None else f"{row.ratio:.2f} x",
            target,
            _verdict(row.met),
        )
    console.print(table)
    table = Table(box=None, pad_edge=False)
    table.add_column("check")
    for name in ("value", "target", ""):
        table.add_column(name, justify="right")
    for check in checks:
        table.add_row(
            check.what,
            "" if check.value is None else f"{check.value:.3g} {check.unit}",
            "" if check.target is None else f"<= {check.target:g} {check.unit}",
            _verdict(check.met),
        )
    console.print()
    console.print(table)


def _verdict(met: bool | None) -> str:
    if met is None:
        return ""
    return "[green]met[/green]" if met else "[red]missed[/red]"
