# SPDX-License-Identifier: MIT
"""Calls on KVM, beside a bare exit of the same host: in C, and in Python with nothing around it.

one round     C: batches of exits     Python: batches of exits     the machine: batches of calls
one row       rounds, one after another; the ratio is that of a round's parts, so that the host's
              own speed, which changes meanwhile, cancels out

Where a row's guest does one thing a batch, its time is taken by the device, on the host's clock, at
a register write between two batches.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fcntl import ioctl
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from callgate.backends.kvm import probe
from callgate.backends.kvm.backend import Kvm
from callgate.backends.kvm.vm import Vm, piece
from callgate.backends.platform import PLATFORMS
from callgate.bench.calls import (
    RAM,
    ROUNDS,
    SIZE,
    TIMEOUT,
    WARM_UP,
    Polled,
    Way,
    cores_apart,
    each_of,
    find_guest,
    find_program,
    gaps_of,
    marks_of,
    place_of,
)
from callgate.bench.device import Bench
from callgate.bench.order import (
    CALL,
    PATHS,
    POST,
    READ,
    RING_PORT,
    ROUND,
    SEVERAL,
    WATCHED,
    WRITE,
    Order,
)
from callgate.bench.report import Check, Row, percentile
from callgate.errors import BenchError
from callgate.gate.abi import PAGE, Transport
from callgate.linux.kvm import (
    KVM_CREATE_VCPU,
    KVM_GET_SREGS,
    KVM_RUN,
    KVM_SET_REGS,
    KVM_SET_SREGS,
    kvm_regs,
    kvm_sregs,
)
from callgate.machine import Machine
from callgate.memory import anonymous

PIO_TARGET = 1.25
POLLED_TARGET = 0.5
EXTRA_TARGET = 2.5
"""Microseconds that a call by pio may cost more than a bare exit."""
START_TARGET = 20.0
"""Milliseconds from making a machine to its guest's first instruction."""
OUT_CODE = bytes.fromhex("66ef ebfc")
STORE_CODE = bytes.fromhex("668907 ebfb")
"""exits.c has the same two programs."""
_STARTS = 20
_OFFERED = {
    "mmio": Transport.MMIO,
    "pio": Transport.PIO,
    "hypercall": Transport.HYPERCALL,
    "hypercall-frame": Transport.HYPERCALL,
    "polled": Transport.POLLED,
}


@dataclass(frozen=True)
class _Bare:
    """What exits.c measures of one kind, in batches of SIZE: microseconds of each."""

    program: Path
    kind: str

    def c(self, batches: int) -> list[float]:
        """A loop in C, in a process of its own."""
        command = [str(self.program), self.kind, str(batches), str(SIZE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"The bare exit loop failed: {done.stderr.strip()}")
        return [int(line) / 1e3 / SIZE for line in done.stdout.split()][WARM_UP:]

    def python(self, batches: int) -> list[float]:
        """A loop in Python around the same guest, with nothing but the ioctl."""
        clock = time.perf_counter_ns
        with ExitStack() as closing:
            vcpu = _bare_vcpu(closing, STORE_CODE if self.kind == "store" else OUT_CODE)
            found = []
            for _ in range(batches):
                began = clock()
                for _ in range(SIZE):
                    ioctl(vcpu, KVM_RUN.number, 0)
                found.append((clock() - began) / 1e3 / SIZE)
        return found[WARM_UP:]


def _bare_vcpu(closing: ExitStack, code: bytes) -> int:
    """A processor in real mode that is about to execute `code` at 0."""
    memory = closing.enter_context(anonymous(PAGE))
    memory[: len(code)] = code
    vm = Vm(hypercalls=False)
    closing.callback(vm.close)
    vm.place([piece(0, closing.enter_context(memoryview(memory)))])
    vcpu = KVM_CREATE_VCPU(vm.fd, 0)
    closing.callback(os.close, vcpu)
    sregs = kvm_sregs()
    KVM_GET_SREGS(vcpu, sregs)
    sregs.cs.base = sregs.cs.selector = 0
    KVM_SET_SREGS(vcpu, sregs)
    KVM_SET_REGS(vcpu, kvm_regs(rflags=2, rdx=0x1000, rbx=0x5000))
    return vcpu


def kvm_rows(architectures: Sequence[str], calls: int) -> Iterator[Row | Check]:
    """Measure. Raises BackendError, BenchError and GuestError."""
    with TemporaryDirectory(prefix="callgate-") as folder:
        program = _build(Path(folder))
        for arch in architectures:
            if arch not in Kvm.architectures:
                continue
            for platform in Kvm.platforms(arch)[:1]:
                offered = PLATFORMS[platform].offer.transports
                for transport, bit in _OFFERED.items():
                    if offered & bit:
                        yield _calls(Way(arch, PLATFORMS[platform], transport), calls)
        for arch in [each for each in architectures if each in Kvm.architectures][:1]:
            yield from _tight(arch, program, calls)
            yield from _several(arch, calls)
    yield _start()


def _build(folder: Path) -> Path:
    """Compile the exit loop."""
    source = Path(__file__).with_name("exits.c")
    program = folder / "exits"
    if (compiler := shutil.which("cc")) is not None:
        command = [compiler]
    elif find_spec("ziglang") is not None:
        command = [sys.executable, "-m", "ziglang", "cc"]
    else:
        raise BenchError("A C compiler must be there for the bare exit loop: apt-get install gcc")
    done = subprocess.run(
        [*command, "-O2", "-pthread", "-o", str(program), str(source)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise BenchError(f"The bare exit loop was not built: {done.stderr.strip()}")
    return program


def _machine(way: Way, device: Bench, **options: float) -> Machine:
    return Machine(
        device,
        on="kvm",
        arch=way.arch,
        platform=way.platform.name,
        guest=find_guest(way.arch),
        ram=RAM,
        timeout=TIMEOUT,
        **options,  # type: ignore[arg-type]
    )


def _calls(way: Way, calls: int) -> Row:
    """A whole call as a driver makes it, the guest library's instructions among it."""
    polled = way.transport == "polled"
    batches = max(calls // (ROUNDS * SIZE), 8) + WARM_UP
    singles = max(calls // ROUNDS, 100) + WARM_UP
    device = Polled() if polled else Bench()
    full: list[float] = []
    single: list[float] = []
    place = place_of(find_program(way.arch))
    with ExitStack() as closing:
        machine = closing.enter_context(_machine(way, device, watch=polled))
        if polled:
            closing.enter_context(cores_apart())
        run = partial(marks_of, machine, device, place)
        path = PATHS[way.transport]
        for _ in range(ROUNDS):
            full += each_of(run(Order(batches, SIZE, what=CALL, path=path)))
            mark = 0.0 if polled else median(gaps_of(run(Order(singles, 0, what=CALL, path=path))))
            gaps = gaps_of(run(Order(singles, 1, what=CALL, path=path)))
            single += [gap - mark for gap in gaps]
    return Row(
        backend="kvm",
        arch=way.arch,
        platform=way.platform.name,
        transport=way.transport,
        instruction=way.instruction,
        median=median(full),
        p99=percentile(single, 99),
        per_second=1e6 * len(full) / sum(full),
    )


def _tight(arch: str, program: Path, calls: int) -> Iterator[Check]:
    """Calls and accesses in as few instructions as it takes, each beside a bare exit in C.

    Where KVM is emulated in software, an instruction of the guest costs a tenth of an exit.
    """
    ring, watched = "a call by pio, full dispatch", "a call while the host watches"
    floors = {RING_PORT: "call", WATCHED: "watched"}
    words = {
        RING_PORT: (ring, "out", None if _native() else PIO_TARGET),
        WATCHED: (watched, "out", POLLED_TARGET),
        READ: ("a register read", "store", None),
        WRITE: ("a register write", "store", None),
        POST: ("a one-way call by NOTIFY (ioeventfd)", "store", None),
        ROUND: ("an interrupt's round trip: register write, message, handler", "store", None),
    }
    batches = max(calls // (ROUNDS * SIZE), 8) + WARM_UP
    for what, (name, kind, target) in words.items():
        bare = _Bare(program, kind)
        device = Bench()
        with ExitStack() as closing:
            way = Way(arch, PLATFORMS[Kvm.platforms(arch)[0]], "pio")
            machine = closing.enter_context(
                _machine(way, device, watch=what == WATCHED, linger=TIMEOUT)
            )
            if what == WATCHED:
                closing.enter_context(cores_apart())
            if what == ROUND and machine.backend.uninterrupted is not None:
                yield Check(f"kvm, {arch}: {name}: {machine.backend.uninterrupted}", None)
                continue
            place = place_of(find_program(arch))
            times, ratios, extra = [], [], []
            for _ in range(ROUNDS):
                alone = median(bare.c(batches))
                whole = median(
                    each_of(marks_of(machine, device, place, Order(batches, SIZE, what)))
                )
                times.append(whole)
                ratios.append(whole / alone)
                extra.append(whole - alone)
        yield Check(f"kvm, {arch}: {name}", median(times), "us")
        yield Check("    to a bare exit in C", median(ratios), "x", target)
        if what == RING_PORT:
            yield Check("    less a bare exit in C", median(extra), "us", EXTRA_TARGET)
            python = median(bare.python(batches)) / median(bare.c(batches))
            yield Check("    the exit in a plain Python loop, to that in C", python, "x")
        if what in floors:
            least = [median(_Bare(program, floors[what]).c(batches)) for _ in range(ROUNDS)]
            alone = median([median(bare.c(batches)) for _ in range(ROUNDS)])
            yield Check(
                "    the least there is, answered in C, to a bare exit", median(least) / alone, "x"
            )


def _native() -> bool:
    """Whether the host's processor virtualizes: an exit is so short then that a ratio to it says
    nothing of our part."""
    return probe.host().virtualizes


def _several(arch: str, calls: int) -> Iterator[Check]:
    """How many calls one processor and two make in a second, by the transport pio."""
    size = max(calls // 4, 500)
    for cpus in (1, 2):
        if cpus > Kvm.most_cpus():
            yield Check(f"kvm, {arch}: calls/s on {cpus} processors: this host has one", None)
            continue
        way = Way(arch, PLATFORMS[Kvm.platforms(arch)[0]], "pio")
        device = Bench()
        with _machine(way, device, watch=False, cpus=cpus) as machine:
            order = Order(WARM_UP + 6, size, what=SEVERAL, path=PATHS["pio"], place=cpus)
            marks = marks_of(machine, device, place_of(find_program(arch)), order)
        rates = [cpus * size / (gap / 1e6) for gap in gaps_of(marks)]
        yield Check(f"kvm, {arch}: calls by pio, {cpus} processors", median(rates), "/s")


def _start() -> Check:
    """From making a machine to its guest's first instruction."""
    device = Bench()
    program = find_program("x86_64")
    took: list[float] = []
    for _ in range(_STARTS):
        began = time.perf_counter_ns()
        with _machine(Way("x86_64", PLATFORMS["kvm"], "pio"), device, watch=False) as machine:
            device.times.clear()
            machine.memory.write(place_of(program), Order(0, 0, what=READ).pack())
            machine.run()
            took.append((device.times[0] - began) / 1e6)
    what = "kvm: from making a machine to its guest's first register write"
    return Check(what, median(took), "ms", START_TARGET)
