# SPDX-License-Identifier: MIT
from collections.abc import Callable
from typing import Any

class Frame:
    gate: Any
    calls: dict[int, Any]
    slot: Any
    words: memoryview
    quads: memoryview
    payload: memoryview
    woken: Callable[[], None] | None
    def __init__(
        self,
        gate: object,
        calls: dict[int, Any],
        words: memoryview,
        quads: memoryview,
        payload: memoryview,
        slot: object,
        /,
    ) -> None: ...
    def look(self, from_watcher: bool = ..., /) -> None: ...
    def watch(self, looks: int, /) -> bool: ...
    def clear(self) -> None: ...

class Bell:
    def __init__(
        self, frames: tuple[Frame, ...], otherwise: Callable[[int, int, int], None], /
    ) -> None: ...
    def __call__(self, offset: int, size: int, value: int, /) -> None: ...
