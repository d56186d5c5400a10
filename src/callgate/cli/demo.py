# SPDX-License-Identifier: MIT
"""`callgate demo`: every example as machine code, on every architecture and platform.

A row is one thing that a guest did, over one transport. It is right when the guest itself said so,
in a line that ends with "ok". A guest that tries every transport must have such a line for each
that the platform offers, and every guest must end with such a line and with exit code 0.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from callgate.backends.board import BOARDS
from callgate.backends.platform import PLATFORMS, Platform
from callgate.device import Device
from callgate.driver.find import open_device
from callgate.errors import GuestError, LoadError
from callgate.faults import LOGGER
from callgate.gate.abi import Transport
from callgate.load import find_guest, load_device_class
from callgate.machine import Machine

ADDER = "01_adder"
"""The example whose device is called without a processor, too."""
WIDTH = 110
"""Columns of the table where there is no terminal to ask."""
TIMEOUT = 20.0
"""Seconds that a guest may take; one takes a tenth of a second."""
CALLS = {
    "polled": Transport.POLLED,
    "hypercall": Transport.HYPERCALL,
    "hypercall-frame": Transport.HYPERCALL,
    "pio": Transport.PIO,
    "mmio": Transport.MMIO,
}
"""What a guest that tries every transport prints for each: `call pio: ... ok`."""
_LINE = re.compile(r"(?:call (?P<transport>\S+)|(?P<registers>registers)): (?P<said>.*)")


@dataclass(frozen=True)
class Row:
    """One thing that was done, and whether it was right."""

    example: str
    arch: str
    platform: str
    transport: str
    result: str
    good: bool


def run_demo(folder: Path, console: Console | None = None) -> int:
    """Run all examples of `folder`; the exit code: 1 if anything was not right.

    Raises LoadError when a guest program is missing.
    """
    console = console or Console()
    if not console.is_terminal:
        console.width = WIDTH
    began = time.monotonic()
    rows: list[Row] = []
    for place, run in _runs(folder):
        console.print(f"{place} ...", end="", highlight=False)
        started = time.monotonic()
        with _quiet():
            found = list(run())
        wrong = sum(not row.good for row in found)
        verdict = f"[red]{wrong} wrong[/red]" if wrong else "ok"
        console.print(f" {verdict}, {time.monotonic() - started:.2f} s", highlight=False)
        rows += found
    console.print(_table(rows))
    wrong = sum(not row.good for row in rows)
    console.print(
        f"{len(rows)} results in {time.monotonic() - began:.1f} s, "
        + (f"[red]{wrong} of them wrong[/red]" if wrong else "all as they should be"),
        highlight=False,
    )
    return 1 if wrong else 0


def _runs(folder: Path) -> Iterator[tuple[str, Callable[[], Iterable[Row]]]]:
    """What is to be run, in words, and how."""
    files = sorted(folder.glob("*/device.py"))
    if not files:
        raise LoadError(
            f"{folder} must hold examples, each a folder with a device.py: name it with --folder"
        )
    for file in files:
        cls = load_device_class(file)
        example = file.parent.name
        if example == ADDER:
            yield f"{example} without a processor", partial(_drive, example, cls)
        for arch in BOARDS:
            guest = find_guest(file, arch)
            for platform in PLATFORMS.values():
                if arch in platform.architectures:
                    words = f"{example} on {arch}, {platform.name}"
                    yield words, partial(_run, example, cls, arch, platform, guest)


def _run(
    example: str, cls: type[Device], arch: str, platform: Platform, guest: Path
) -> Iterator[Row]:
    fault = ""
    with Machine(cls(), arch=arch, platform=platform.name, guest=guest, timeout=TIMEOUT) as machine:
        try:
            code = machine.run().exit_code
            fault = f"exit code {code}" if code else ""
        except GuestError as error:
            fault = str(error).splitlines()[0]
        output = machine.console.text
    way = "cheapest" if cls.spec.calls else "registers"
    for transport, result, good in judge(output, fault, platform.offer.transports, way):
        yield Row(example, arch, platform.name, transport, result, good)


def judge(output: str, fault: str, offered: Transport, way: str) -> Iterator[tuple[str, str, bool]]:
    """Yield (transport, result, whether it is right) of a guest's run.

    `output` is what it printed, `fault` what was wrong with its end, `offered` what the platform
    offers, `way` the transport of lines that name none.
    """
    seen = set()
    last = ""
    for last in output.splitlines():
        match = _LINE.fullmatch(last)
        good = last.endswith(" ok")
        if match is not None:
            transport = match["transport"] or match["registers"]
            seen.add(transport)
            yield transport, match["said"], good
        elif good:
            yield way, last, good
    for transport, bit in CALLS.items():
        if seen and offered & bit and transport not in seen:
            yield transport, "the guest did not try it", False
    if fault or not last.endswith(" ok"):
        yield "", fault or f"the guest ended with the line {last!r}", False


def _drive(example: str, cls: type[Device]) -> Iterator[Row]:
    """The same device without a processor: its driver is Python, in this process."""
    with Machine(cls(), on="loopback", watch=False) as machine:
        device = open_device(cls.spec.name, machine.door)
        for transport in (Transport.HYPERCALL, Transport.PIO, Transport.MMIO):
            device.transport = transport
            total = device.add(2, 40)
            name = (transport.name or "").lower()
            good = total == 42
            result = f"2 + 40 = {total} {'ok' if good else 'wrong'}"
            yield Row(example, "none", "loopback", name, result, good)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of what guests do wrong: here they call revoked vectors on purpose."""
    level = LOGGER.level
    LOGGER.setLevel(logging.ERROR)
    try:
        yield
    finally:
        LOGGER.setLevel(level)


def _table(rows: list[Row]) -> Table:
    table = Table("example", "architecture", "platform", "transport", "result", box=None)
    before = ("", "", "")
    for row in rows:
        place = (row.example, row.arch, row.platform)
        changed = next((n for n in range(3) if place[n] != before[n]), 3)
        cells = ["" if n < changed else place[n] for n in range(3)]
        result = row.result if row.good else f"[red]{row.result}[/red]"
        table.add_row(*cells, row.transport, result)
        before = place
    return table
