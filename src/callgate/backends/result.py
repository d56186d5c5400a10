# SPDX-License-Identifier: MIT
"""How a guest's run ended, whichever backend ran it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    exit_code: int
    """What the guest gave, 32 bits at most."""
    output: str
    """All that the guest wrote to its console since the machine was made or reset."""
    instructions: int | None
    """How many it executed; None without a budget of them, since counting slows the guest down."""
    elapsed: float
    """Seconds that it ran."""
