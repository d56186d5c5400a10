# SPDX-License-Identifier: MIT
"""`callgate probe --bench`: what a server's answers cost, from this process's side of the socket.

There is no VMM in between, so this is the server and the socket alone. A register is read, and what
was read is written back to it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeAlias

from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.client import Client, RegionInfo, RequestError
from callgate.backends.vfio_user.protocol import Region, RegionFlag
from callgate.cli.probe_survey import region_name
from callgate.errors import BackendError

_BURST = 16
"""Posted writes between two flushes: no more, lest a full socket buffer is what is measured."""
_LOADS = 64
"""Loads that one measurement of mapped memory takes: one is shorter than the clock's reading."""
_CONFIG_WIDTH = 4
_WIDTHS = (4, 8, 2, 1)
"""What a register is tried with, in this order: some devices have it one way alone."""
_MOST_PLACES = 64

Place: TypeAlias = tuple[int, int, int]
"""(region, offset, size) of a register."""


@dataclass(frozen=True)
class Measured:
    """One row: seconds."""

    what: str
    where: str
    median: float
    p99: float
    samples: int


def bench(client: Client, count: int, place: Place | None) -> Iterator[Measured]:
    """Measure; without a `place`, the first register that traps and can be read.

    Raises BackendError when the device has none.
    """
    first = "config + 0x0"
    yield _row("config read", first, count, lambda: client.read(Region.CONFIG, 0, _CONFIG_WIDTH))
    _, regions, _ = client.info()
    with ExitStack() as closing:
        bars = list(_bars(client, min(regions, p.BARS), closing))
        region, offset, size = place or _register(client, bars)
        where = f"{region_name(region)} + {offset:#x}"

        def read() -> bytes:
            return client.read(region, offset, size)

        value = read()

        def post() -> None:
            client.write(region, offset, value, posted=True)

        def post_and_read() -> None:
            post()
            read()

        yield _row("register read", where, count, read)
        yield _row("posted write", where, count, post, pause=read)
        yield _row("posted write, then read", where, count, post_and_read)
        yield _row("write, answered", where, count, lambda: client.write(region, offset, value))
        for bar in bars:
            row = _mapped(bar, count)
            if row is not None:
                yield row
                break


def _bars(client: Client, count: int, closing: ExitStack) -> Iterator[RegionInfo]:
    for index in range(count):
        try:
            bar = client.region(index)
        except RequestError:
            continue
        if bar.fd >= 0:
            closing.callback(os.close, bar.fd)
        if bar.size:
            yield bar


def _register(client: Client, bars: list[RegionInfo]) -> Place:
    """The first place that is no plain memory: the start of a BAR, else what follows an area."""
    both = RegionFlag.READ | RegionFlag.WRITE
    usable = [bar for bar in bars if bar.flags & both == both]
    starts = [(bar, 0) for bar in usable]
    ends = [(bar, at + size) for bar in usable for at, size in bar.areas]
    for bar, offset in (*starts, *ends[:_MOST_PLACES]):
        for width in _WIDTHS:
            if offset + width > bar.size or _plain(bar, offset, width):
                continue
            try:
                client.read(bar.index, offset, width)
            except RequestError:
                continue
            return bar.index, offset, width
    raise BackendError("The device must have a register that traps: name one with --at")


def _plain(bar: RegionInfo, offset: int, width: int) -> bool:
    return any(at < offset + width and offset < at + size for at, size in bar.areas)


def _mapped(bar: RegionInfo, count: int) -> Measured | None:
    """Loads from the first area of a BAR that can be mapped."""
    for offset, size in bar.areas:
        try:
            pages = bar.map(offset, size)
        except BackendError:
            continue
        with pages, memoryview(pages) as plain, plain.cast("I") as words:

            def load() -> None:
                for _ in range(_LOADS):
                    words[0]

            where = f"{region_name(bar.index)} + {offset:#x}"
            row = _row("mapped read", where, count, load)
            return Measured(row.what, row.where, row.median / _LOADS, row.p99 / _LOADS, row.samples)
    return None


def _row(
    what: str,
    where: str,
    count: int,
    run: Callable[[], object],
    *,
    pause: Callable[[], object] | None = None,
) -> Measured:
    """Run it `count` times; between every few runs, unmeasured, `pause`."""
    clock = time.perf_counter
    times = []
    for _ in range(min(count, _BURST)):  # Unmeasured: caches, and the server's first time.
        run()
    for number in range(count):
        if pause is not None and number % _BURST == 0:
            pause()
        began = clock()
        run()
        times.append(clock() - began)
    if pause is not None:
        pause()
    times.sort()
    return Measured(what, where, times[count // 2], times[min(count - 1, count * 99 // 100)], count)
