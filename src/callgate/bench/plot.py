# SPDX-License-Identifier: MIT
"""A bench as a picture: each way of calling beside its bare trap (extra: plot)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from callgate.bench.report import Row
from callgate.errors import BenchError

ENDINGS = (".png", ".svg", ".pdf")


def check_plot(file: Path) -> None:
    """Raise BenchError if no plot can be drawn into `file`, before anything is measured for it."""
    if file.suffix not in ENDINGS:
        raise BenchError(f"A plot's file must end in {', '.join(ENDINGS)}, and {file} does not")
    folder = file.resolve().parent
    writable = os.access(file if file.exists() else folder, os.W_OK)
    if not folder.is_dir() or file.is_dir() or not writable:
        raise BenchError(f"A plot's file must be one that can be written, and {file} cannot")
    if find_spec("matplotlib") is None:
        raise BenchError('A plot needs matplotlib: pip install "callgate[plot]"')


def draw(rows: Sequence[Row], file: Path) -> None:
    """Draw medians of whole calls, bare traps and what the targets allow."""
    from matplotlib.figure import Figure

    names = [f"{row.arch} {row.platform}\n{row.transport} {row.instruction}" for row in rows]
    places = list(range(len(rows)))
    figure = Figure(figsize=(9, 1.2 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.barh(places, [row.median for row in rows], 0.38, align="edge", label="whole call")
    bare = [(place, row.bare) for place, row in zip(places, rows, strict=True) if row.bare]
    axes.barh([at - 0.38 for at, _ in bare], [us for _, us in bare], 0.38, align="edge",
              label="bare trap")  # fmt: skip
    limits = [
        (place, row.target * (row.bare if row.ratio is not None and row.bare else 1))
        for place, row in zip(places, rows, strict=True)
        if row.target is not None
    ]
    axes.plot([us for _, us in limits], [at + 0.19 for at, _ in limits], "k|", markersize=14,
              label="target")  # fmt: skip
    axes.set_yticks(places, names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("microseconds, median")
    axes.legend()
    figure.savefig(file)
