# SPDX-License-Identifier: MIT
"""A whole call as its guest sees it, beside a bare trap of the same emulator (docs/benchmarks.md).

one round     bare: mark, 64 traps, mark, 64 traps, ...     time of a batch / 64
              full: mark, 64 calls, mark, 64 calls, ...     time of a batch / 64
              full: mark, 1 call, mark, 1 call, ...         time less that of a mark
one row       rounds, one after another: the machine's own speed changes meanwhile, and a round's
              two halves see the same
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

from callgate.backends.platform import PLATFORMS, Platform
from callgate.bench.device import Bench
from callgate.bench.order import CALL, OUT, PATHS, STORE, SYMBOL, TRAP, Order
from callgate.bench.report import Row, percentile
from callgate.call import call, u64
from callgate.elf import Program, read_program
from callgate.errors import BenchError, GuestError
from callgate.gate.abi import Instruction, Transport
from callgate.machine import Machine

ROUNDS = 10
SIZE = 64
"""Calls of a batch."""
WARM_UP = 4
"""First batches of a run, which do not count: the emulator translates the guest's code in them."""
RAM = 4 << 20
TIMEOUT = 60.0
DOORBELL_TARGET = 4.0
REGISTER_TARGET = 6.0
"""How many bare traps a call may cost."""
_REGISTERS = (Instruction.INT_1F, Instruction.HVC, Instruction.ECALL)
_OFFERED = {
    "mmio": Transport.MMIO,
    "pio": Transport.PIO,
    "hypercall": Transport.HYPERCALL,
    "hypercall-frame": Transport.HYPERCALL,
    "polled": Transport.POLLED,
}


@dataclass(frozen=True)
class Way:
    """What a row measures."""

    arch: str
    platform: Platform
    transport: str

    @property
    def instruction(self) -> str:
        """What the guest traps by."""
        if self.transport == "polled":
            return ""
        if self.transport.startswith("hypercall"):
            return self.platform.offer.instruction.name.lower()
        return "out" if self.transport == "pio" and self.arch in ("x86_64", "i386") else "store"

    @property
    def target(self) -> float | None:
        """How many bare traps a call may cost, if that is said."""
        if self.transport in ("mmio", "pio"):
            return DOORBELL_TARGET
        offer = self.platform.offer
        if self.transport == "hypercall" and offer.instruction in _REGISTERS:
            return REGISTER_TARGET
        return None

    def trap(self) -> Order | None:
        """The bare trap to compare with; None: there is none."""
        order = Order(0, 0)
        match self.instruction:
            case "":
                return None
            case "out":
                return replace(order, what=OUT)
            case "store":
                return replace(order, what=STORE)
            case _:
                offer = self.platform.offer
                return replace(
                    order,
                    what=TRAP,
                    instruction=int(offer.instruction),
                    selector=offer.selector,
                )


class Polled(Bench):
    """The same, for calls that do not trap: it takes the time of the first call of each batch."""

    name = "bench"

    @call
    def add(self, a: u64, b: u64) -> u64:
        """Return the sum, modulo 2**64."""
        if not a:
            self.times.append(time.perf_counter_ns())
        return (a + b) & 0xFFFF_FFFF_FFFF_FFFF


def ways(architectures: Sequence[str]) -> Iterator[Way]:
    """All ways of an architecture by its usual platform; by its others, what only they have."""
    for arch in architectures:
        fitting = [each for each in PLATFORMS.values() if arch in each.architectures]
        seen = set()
        for platform in fitting:
            for transport, bit in _OFFERED.items():
                way = Way(arch, platform, transport)
                if not platform.offer.transports & bit or (transport, way.instruction) in seen:
                    continue
                seen.add((transport, way.instruction))
                yield way


def find_program(arch: str) -> Program:
    """The bench's guest, read. Raises BenchError."""
    return read_program(find_guest(arch), arch)


def find_guest(arch: str) -> Path:
    """The bench's guest, from build/guest here or above. Raises BenchError."""
    here = Path.cwd()
    for above in (here, *here.parents):
        path = above / "build" / "guest" / arch / "bench.elf"
        if path.is_file():
            return path
    raise BenchError(
        f"build/guest/{arch}/bench.elf must be there: build it with `python guest/build.py bench`"
    )


def measure(way: Way, calls: int) -> Row:
    """Measure one way with about this many calls. Raises BenchError and GuestError."""
    program = find_program(way.arch)
    batches = max(calls // (ROUNDS * SIZE), 8) + WARM_UP
    singles = max(calls // ROUNDS, 100) + WARM_UP
    trap = way.trap()
    full: list[float] = []
    single: list[float] = []
    bare: list[float] = []
    ratios: list[float] = []
    polled = way.transport == "polled"
    device = Polled() if polled else Bench()
    with (
        Machine(
            device,
            arch=way.arch,
            platform=way.platform.name,
            guest=program.path,
            ram=RAM,
            timeout=TIMEOUT,
            watch=polled,
        ) as machine,
        cores_apart() if polled else nullcontext(),
    ):
        run = partial(marks_of, machine, device, place_of(program))
        order = Order(batches, SIZE, what=CALL, path=PATHS[way.transport])
        for _ in range(ROUNDS):
            whole = each_of(run(order))
            full += whole
            if trap is not None:
                alone = each_of(_run_bare(program, replace(trap, batches=batches, size=SIZE)))
                bare += alone
                ratios.append(median(whole) / median(alone))
            mark = 0.0
            if not polled:
                mark = median(gaps_of(run(replace(order, size=0, batches=singles))))
            gaps = gaps_of(run(replace(order, size=1, batches=singles)))
            single += [gap - mark for gap in gaps]
    return Row(
        backend="unicorn",
        arch=way.arch,
        platform=way.platform.name,
        transport=way.transport,
        instruction=way.instruction,
        median=median(full),
        p99=percentile(single, 99),
        per_second=1e6 * len(full) / sum(full),
        bare=median(bare) if bare else None,
        ratio=median(ratios) if ratios else None,
        target=way.target,
    )


@contextmanager
def cores_apart() -> Iterator[None]:
    """Give the emulator's thread and the watching one a core each, if there are two.

    The scheduler puts them onto one core when others keep the machine busy. Then each call waits
    for a change of threads, which is no property of the call.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        yield
        return
    for thread in threading.enumerate():
        if thread.name.startswith("callgate watcher") and thread.native_id is not None:
            os.sched_setaffinity(thread.native_id, cores[1:])
    os.sched_setaffinity(0, cores[:1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def marks_of(machine: Machine, device: Bench, place: int, order: Order) -> list[int]:
    """The clock at each mark, in nanoseconds."""
    machine.reset()
    device.times.clear()
    machine.memory.write(place, order.pack())
    result = machine.run()
    if result.exit_code:
        raise GuestError(
            f"The bench's guest must end with 0, not {result.exit_code} (see guest/bare/bench.c)"
        )
    return device.times[:]


def _run_bare(program: Program, trap: Order) -> list[int]:
    from callgate.backends.unicorn.bare import MARK, PLACE, run_bare

    order = replace(trap, place=PLACE if trap.what == STORE else PLACE >> 16, mark=MARK)
    memory = [(segment.address, segment.data) for segment in program.segments]
    memory.append((place_of(program), order.pack()))
    times: list[int] = []
    clock = time.perf_counter_ns

    def mark() -> None:
        times.append(clock())

    run_bare(program.arch, program.entry, memory, order.batches + 1, mark)
    return times


def place_of(program: Program) -> int:
    """Where the guest looks for its order. Raises BenchError."""
    for symbol in program.symbols:
        if symbol.name == SYMBOL:
            return symbol.address
    raise BenchError(f"{program.path} must have the symbol {SYMBOL}: it must not be stripped")


def gaps_of(times: Sequence[int]) -> list[float]:
    """Microseconds from mark to mark, without the first ones."""
    return [
        (after - before) / 1e3
        for before, after in zip(times[WARM_UP:], times[WARM_UP + 1 :], strict=False)
    ]


def each_of(times: Sequence[int]) -> list[float]:
    """Microseconds of each call or trap, on the average of each batch."""
    return [gap / SIZE for gap in gaps_of(times)]
