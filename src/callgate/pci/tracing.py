# SPDX-License-Identifier: MIT
"""DMA as events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TypeAlias, TypeVar

from callgate.device import Memory
from callgate.errors import DmaError

T = TypeVar("T")
Record: TypeAlias = Callable[[str, str, tuple[object, ...], str, float], None]
"""(kind, name, arguments, result, when it began)"""


class TracedMemory:
    """Guest memory whose use is told of. What a model does in a view that it got is not seen."""

    def __init__(self, memory: Memory, record: Record) -> None:
        self._memory = memory
        self._record = record

    def read(self, gpa: int, length: int) -> bytes:
        """See `Memory`."""
        return self._told("dma read", gpa, length, "", lambda: self._memory.read(gpa, length))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """See `Memory`."""
        length = memoryview(data).nbytes
        self._told("dma write", gpa, length, "", lambda: self._memory.write(gpa, data))

    def map(self, gpa: int, length: int, *, write: bool = False) -> memoryview:
        """See `Memory`."""
        said = "writable" if write else "read-only"
        return self._told(
            "dma map", gpa, length, said, lambda: self._memory.map(gpa, length, write=write)
        )

    def scatter(
        self, pieces: Iterable[tuple[int, int]], *, write: bool = False
    ) -> list[memoryview]:
        """See `Memory`."""
        return [self.map(gpa, length, write=write) for gpa, length in pieces]

    def check(self, gpa: int, length: int, *, write: bool) -> None:
        """See `Memory`. Nothing is moved, so nothing is told."""
        self._memory.check(gpa, length, write=write)

    def _told(self, kind: str, gpa: int, length: int, said: str, act: Callable[[], T]) -> T:
        began = time.perf_counter()
        try:
            return act()
        except DmaError:
            said = "refused"
            raise
        finally:
            self._record(kind, f"{length} bytes at {gpa:#x}", (), said, began)
