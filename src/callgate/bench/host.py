# SPDX-License-Identifier: MIT
"""What costs no guest: calls from Python, the look-up of vectors, how long it takes to begin."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from callgate.bench.device import Bench
from callgate.bench.report import Check, Row, percentile
from callgate.driver.find import open_device
from callgate.gate.abi import Transport
from callgate.gate.gate import Router
from callgate.gate.vectors import VectorTable
from callgate.machine import Machine

LOOPBACK_TARGET = 3.0
"""Microseconds."""
FLAT_TARGET = 1.15
FEW, MANY = 10, 100_000
IMPORT_TARGET = 150.0
RUN_TARGET = 1000.0
"""Milliseconds."""
_BATCH = 100
_ROUNDS = 40
_STARTS = 5
_EXAMPLE = Path("examples", "01_adder", "device.py")


def loopback_rows(calls: int) -> Iterator[Row]:
    """Calls from a driver in Python: `device.add(2, 40)`."""
    for transport in (Transport.HYPERCALL, Transport.PIO, Transport.MMIO):
        name = (transport.name or "").lower()
        with Machine(Bench(), on="loopback", watch=False) as machine:
            device = open_device("bench", machine.door, transport=transport)
            add = device.add

            def call(add: Callable[[int, int], int] = add) -> None:
                add(2, 40)

            batches = _batches(call, max(calls // _BATCH, 10))
            single = _singles(call, calls)
        yield Row(
            backend="loopback",
            arch="none",
            platform=machine.platform.name,
            transport=name,
            instruction="",
            median=median(batches),
            p99=percentile(single, 99),
            per_second=1e6 * len(batches) / sum(batches),
            target=LOOPBACK_TARGET if transport is Transport.HYPERCALL else None,
        )


def dispatch_checks() -> Iterator[Check]:
    """Whether the number of vectors that are bound tells in the time that one call takes.

    Ten of the vectors are called in turn, as a guest's hot loop would. The second figure is the
    worst case: every call another vector, in no order, so nothing is in the processor's cache.
    """
    with Machine(Bench(), on="loopback", watch=False) as machine:
        gate = machine.functions[0].gate
        assert gate is not None
        binding = gate.binding("add")
        assert binding is not None
        few, many = (_bound(binding.target, count) for count in (FEW, MANY))
        order = random.Random(1)
        chosen = order.sample(list(many.live), FEW)
        shuffled = order.sample(list(many.live), MANY)
        rounds = [
            (
                _dispatch(few, list(few.live)),
                _dispatch(many, chosen),
                _dispatch(many, shuffled[start * FEW * _BATCH :][: FEW * _BATCH]),
            )
            for start in range(_ROUNDS)
        ]
    yield Check(
        f"dispatch with {MANY:,} vectors bound, to that with {FEW}",
        median(b / a for a, b, _ in rounds),
        "",
        FLAT_TARGET,
    )
    yield Check(
        f"the same, each call another of the {MANY:,}: cold cache",
        median(c / a for a, _, c in rounds),
    )


def start_checks() -> Iterator[Check]:
    """How long it takes to begin."""
    program = (
        "import time; t = time.perf_counter(); import callgate; print(time.perf_counter() - t)"
    )
    took = [float(_python("-c", program)) * 1e3 for _ in range(_STARTS)]
    yield Check("import callgate", median(took), "ms", IMPORT_TARGET)


def run_check() -> Check:
    """How long `callgate run` takes for the first example, from the shell to its end."""
    what = f"callgate run {_EXAMPLE.as_posix()}"
    here = Path.cwd()
    for above in (here, *here.parents):
        if (above / _EXAMPLE).is_file():
            break
    else:
        return Check(f"{what}: no such file here or above", None, "ms", RUN_TARGET)
    took = []
    for _ in range(_STARTS):
        began = time.perf_counter()
        try:
            _python("-m", "callgate", "run", str(above / _EXAMPLE))
        except subprocess.CalledProcessError as error:
            return Check(f"{what}: {error.stderr.strip()}", None, "ms", RUN_TARGET)
        took.append((time.perf_counter() - began) * 1e3)
    return Check(what, median(took), "ms", RUN_TARGET)


def _python(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, *arguments], check=True, capture_output=True, text=True
    ).stdout


def _bound(target: object, count: int) -> VectorTable:
    """A table with so many vectors, each of another owner's call, all leading to one method."""
    table = VectorTable(seed=1)
    for owner in range(count):
        table.bind(owner, "add", 0, target)
    return table


def _dispatch(table: VectorTable, vectors: list[int]) -> float:
    """Microseconds that a call in register form takes, over these vectors in turn."""
    call = Router(table).call
    slot = table.slot()

    def fetch(count: int) -> tuple[int, ...]:
        return 2, 40

    turns = max(FEW * _BATCH // len(vectors), 1)
    began = time.perf_counter()
    for _ in range(turns):
        for vector in vectors:
            call(slot, vector, fetch)
    return (time.perf_counter() - began) * 1e6 / (turns * len(vectors))


def _batches(call: Callable[[], None], count: int) -> list[float]:
    """Microseconds of a call, on the average of each batch."""
    took = []
    for _ in range(count):
        began = time.perf_counter()
        for _ in range(_BATCH):
            call()
        took.append((time.perf_counter() - began) * 1e6 / _BATCH)
    return took


def _singles(call: Callable[[], None], count: int) -> list[float]:
    """Microseconds of each of many calls."""
    clock = time.perf_counter_ns
    took = []
    for _ in range(count):
        began = clock()
        call()
        took.append((clock() - began) / 1e3)
    return took
