# SPDX-License-Identifier: MIT
"""An exit keeps nothing that it allocates, whatever kind it is."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from callgate import Machine
from callgate.backends.kvm import probe
from callgate.bench.calls import find_program, place_of
from callgate.bench.device import Bench
from callgate.bench.order import CALL, PATHS, READ, RING_PORT, WRITE, Order
from callgate.register import Register

LACKING = probe.lacks()
pytestmark = pytest.mark.skipif(LACKING is not None, reason=f"kvm: {LACKING}")
BATCHES, EXITS = 6, 512
KEPT = (BATCHES - 2) * EXITS
"""Bytes in all, one for each exit: a number of another size, a free list that grew. What each kept,
the smallest object even, would be many times that."""


class Weighing(Bench):
    """Weighs what Python has allocated, where the other takes the time."""

    name = "bench"
    mark = Register(0x00, access="w")

    def __init__(self) -> None:
        super().__init__()
        self.weights = [0] * (BATCHES + 1)
        self.marks = 0

    @mark.on_write
    def weigh(self, value: int) -> None:
        self.weights[self.marks] = tracemalloc.get_traced_memory()[0]
        self.marks += 1


@pytest.fixture
def traced() -> Iterator[None]:
    """Python writes down what it allocates."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    "order",
    [
        Order(BATCHES, EXITS, READ),
        Order(BATCHES, EXITS, WRITE),
        Order(BATCHES, EXITS, RING_PORT),
        Order(BATCHES, EXITS, CALL, PATHS["pio"]),
        Order(BATCHES, EXITS, CALL, PATHS["mmio"]),
        Order(BATCHES, EXITS, CALL, PATHS["hypercall"]),
    ],
    ids=["read", "write", "ring", "pio", "mmio", "hypercall"],
)
def test_an_exit_keeps_nothing(guests: Path, order: Order) -> None:
    program = find_program("x86_64")
    device = Weighing()
    with Machine(
        device, on="kvm", arch="x86_64", guest=program.path, watch=False, timeout=300
    ) as machine:
        if order.path == PATHS["hypercall"] and machine.platform.name == "kvm":
            pytest.skip(f"kvm: no hypercalls: {probe.host().no_hypercall}")
        machine.memory.write(place_of(program), order.pack())
        assert machine.run().exit_code == 0
    assert device.marks == BATCHES + 1
    first, last = device.weights[2], device.weights[-1]
    assert last - first <= KEPT, f"{last - first} bytes in {(BATCHES - 2) * EXITS} exits"
