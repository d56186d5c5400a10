# SPDX-License-Identifier: MIT
"""The guest's writes, on their way from the library to whoever answers them: the callbacks of the
hooks for stores and for `out`. Compiled (_tap.c) where that was built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from callgate.backends.unicorn.engine import ON_ACCESS, ON_OUT, Callback
from callgate.compiled import PURE, compiled
from callgate.pci.bar import Write

Fail: TypeAlias = Callable[[BaseException], None]
QUICK = compiled("callgate.backends.unicorn._tap")
TAPS = None if PURE else QUICK


def on_write(write: Write, base: int, rest: Write, dropped: list[int], fail: Fail) -> Callback:
    """Let `write` take stores, by their offsets from `base`; `rest`, by their addresses, takes what
    is not aligned, and all while there is something in `dropped`."""
    if TAPS is not None:
        return TAPS.Tap(write, base, rest, dropped, fail)

    @ON_ACCESS
    def on_access(_: bool, __: bool, address: int, size: int, value: int, ___: bool) -> bool:
        try:
            if dropped or address & size - 1:
                rest(address, size, value)
            else:
                write(address - base, size, value)
        except BaseException as error:
            fail(error)
        return True

    return on_access


def on_out(places: Mapping[int, tuple[Write, int]], rest: Write, fail: Fail) -> Callback:
    """Let those in `places`, by port << 3 | size, take `out`, by an offset; `rest` takes all else,
    by the port."""
    if TAPS is not None:
        return TAPS.Tap(places, 0, rest, [], fail)
    find = places.get

    @ON_OUT
    def on_instruction(_: bool, port: int, size: int, value: int, __: bool) -> None:
        try:
            found = find(port << 3 | size)
            if found is None:
                rest(port, size, value)
            else:
                write, offset = found
                write(offset, size, value)
        except BaseException as error:
            fail(error)

    return on_instruction
