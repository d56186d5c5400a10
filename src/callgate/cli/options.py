# SPDX-License-Identifier: MIT
"""Arguments and options that several commands have, and what is common to their use."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from callgate.trace import Event

File = Annotated[
    str, typer.Argument(metavar="FILE", help="A device file, or FILE:CLASS.", show_default=False)
]
Files = Annotated[
    list[str],
    typer.Argument(metavar="FILE...", help="Device files, or FILE:CLASS.", show_default=False),
]
Slots = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE...",
        help="Device files, or FILE:CLASS. FILE,FILE are functions of one slot.",
        show_default=False,
    ),
]
Trace = Annotated[
    bool,
    typer.Option("--trace", help="Print every access, call, interrupt and DMA to standard error."),
]
HandlerTimeout = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS", help="Give up a device's call, hook or timer that takes longer."
    ),
]
Lspci = Annotated[bool, typer.Option("--lspci", help="Print config space as `lspci -F` reads it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def need_positive(name: str, seconds: float | None) -> None:
    """Raise BadParameter unless a time is above 0, or not given."""
    if seconds is not None and not seconds > 0:
        raise typer.BadParameter(f"{name} must be above 0 seconds, not {seconds:g}")


def tracer(wanted: bool) -> Callable[[Event], None] | None:
    """What prints events, if `wanted`."""
    if not wanted:
        return None
    began = time.perf_counter()

    def show(event: Event) -> None:
        # One write: calls may come from several threads.
        sys.stderr.write(f"{(time.perf_counter() - began) * 1e3:9.3f} ms  {event}\n")

    return show
