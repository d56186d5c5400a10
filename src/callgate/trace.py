# SPDX-License-Identifier: MIT
"""What crosses the boundary, as events; nothing is recorded unless somebody asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Event:
    """One access, call, interrupt or DMA."""

    device: str
    kind: str
    """`read`, `write`, `call`, `config read`, `config write`, `interrupt`, `dma read`, `dma write`,
    `dma map`."""
    name: str
    """Register, call or place by name."""
    arguments: tuple[Any, ...]
    """Of a call: its arguments; of a write: the value."""
    result: str
    """What came back, readable; empty when nothing does."""
    seconds: float
    """How long the device took."""
    via: str = ""
    """Of a call: which way it came, such as `hypercall` or `frame 0 by mmio`."""

    def __str__(self) -> str:
        if self.kind == "call":
            what = f"{self.name}({', '.join(map(shown, self.arguments))})"
        elif self.arguments:
            what = f"{self.name} = {self.arguments[0]:#x}"
        else:
            what = self.name
        answer = f" -> {self.result}" if self.result else ""
        way = f"  ({self.via})" if self.via else ""
        time = f"[{self.seconds * 1e6:.1f} us]"
        return f"{self.device:<12} {self.kind:<12} {what}{answer}{way}  {time}"


Trace: TypeAlias = Callable[[Event], None]


def shown(value: object) -> str:
    """An argument or a result: a number in decimal, from 65536 on in hexadecimal."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1 << 16:
        return f"{value:#x}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
