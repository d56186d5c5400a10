# SPDX-License-Identifier: MIT
"""What crosses the boundary, as events; nothing is recorded unless somebody asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Event:
    """One access, call or interrupt."""

    device: str
    kind: str
    """`read`, `write`, `call`, `config read`, `config write`, `interrupt`."""
    name: str
    """Register, call or place by name."""
    arguments: tuple[Any, ...]
    """Of a call: its arguments; of a write: the value."""
    result: str
    """What came back, readable; empty when nothing does."""
    seconds: float
    """How long the device took."""

    def __str__(self) -> str:
        shown = ", ".join(_short(argument) for argument in self.arguments)
        if self.kind == "call":
            what = f"{self.name}({shown})"
        elif self.arguments:
            what = f"{self.name} = {self.arguments[0]:#x}"
        else:
            what = self.name
        answer = f" -> {self.result}" if self.result else ""
        return f"{self.device:<12} {self.kind:<12} {what}{answer}  [{self.seconds * 1e6:.1f} us]"


Trace: TypeAlias = Callable[[Event], None]


def _short(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1 << 16:
        return f"{value:#x}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
