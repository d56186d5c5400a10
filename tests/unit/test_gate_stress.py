# SPDX-License-Identifier: MIT
"""vCPUs that call by frames and hypercalls, and hands that revoke, bind, reset, deny and limit.

Each call carries its vector and a number of its own. Its handler checks, when it begins and before
it ends, that it may still run: a hand marks a vector as over the moment that `revoke` or `reset`
has returned, and a call as denied the moment that `deny` has. The interpreter is made to switch
threads as often as it can, so that every order of their steps comes up.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator
from itertools import cycle
from typing import Any

import pytest

from callgate.call import call, u64
from callgate.deadline import Deadline
from callgate.device import Device
from callgate.errors import DrainTimeout
from callgate.gate.abi import FRAME, FrameState, Status
from callgate.gate.gate import Gate, Offer, Router
from callgate.gate.vectors import Binding, VectorTable

pytestmark = [pytest.mark.usefixtures("each_way"), pytest.mark.uncovered]

SECONDS = 0.5
TURNS = 10
"""What each hand and each vCPU does at least, however slow the machine is."""
CPUS = 4
FREE, READY, RUNNING, DONE = FrameState


@pytest.fixture(autouse=True)
def hurried() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


class Model(Device):
    """Handlers that know whether they may run."""

    id = 0x1AF4, 0x10F0
    frames = CPUS + 1

    def __init__(self) -> None:
        self.vectors: set[int] = set()
        self.over: set[int] = set()
        self.denied: set[str] = set()
        self.ran: list[int] = []
        self.wrong: list[str] = []
        self.act: Callable[[], object] = lambda: time.sleep(0)

    @call
    def add(self, token: u64) -> u64:
        return self.handle("add", token)

    @call
    def sub(self, token: u64) -> u64:
        return self.handle("sub", token)

    def handle(self, name: str, token: int) -> int:
        self.check(name, token >> 32, "began")
        self.ran.append(token)
        self.act()
        self.check(name, token >> 32, "still ran")
        return token ^ 1

    def check(self, name: str, vector: int, what: str) -> None:
        if vector in self.over:
            self.wrong.append(f"a call {what} after its vector was taken back")
        if name in self.denied:
            self.wrong.append(f"a call {what} after it was denied")
        if vector not in self.vectors:
            self.wrong.append(f"a call {what} of another device's vector")


class ParallelModel(Model):
    id = 0x1AF4, 0x10F1
    parallel = True


class Table(VectorTable):
    """Remembers all that was bound."""

    __slots__ = ("bound",)

    def __init__(self) -> None:
        super().__init__()
        self.bound: list[Binding] = []

    def bind(self, owner: Hashable, name: str, signature: int, target: Any) -> Binding:
        binding = super().bind(owner, name, signature, target)
        assert isinstance(owner, Model)
        owner.vectors.add(binding.vector)
        self.bound.append(binding)
        return binding


class Host:
    """Two devices and their vCPUs."""

    def __init__(self, limit: float | None = None) -> None:
        self.table = Table()
        self.models: list[Model] = [Model(), ParallelModel()]
        for model in self.models:
            model.time_limit = None if limit is None else Deadline(model.lock, limit)
        self.gates = [Gate(model, self.table, Offer()) for model in self.models]
        self.router = Router(self.table)
        self.stop = threading.Event()
        self.errors: list[BaseException] = []
        self.turns: Counter[Callable[[], None]] = Counter()

    def run(self, *hands: Callable[[], None]) -> None:
        """Run vCPUs, whoever rings in vain, and each of `hands`, again and again for a while."""
        cpus = [Cpu(self, number) for number in range(CPUS)]
        acts = [*(cpu.call for cpu in cpus), self.ring_in_vain, *hands]
        threads = [
            threading.Thread(target=self.repeat, args=(act,), name="hurried", daemon=True)
            for act in acts
        ]
        start = time.monotonic()
        for thread in threads:
            thread.start()
        while not self.stop.wait(SECONDS):
            if all(self.turns[act] >= TURNS for act in acts):
                break
            assert time.monotonic() - start < 60, "a wake-up or a doorbell was lost"
        self.stop.set()
        for thread in threads:
            thread.join(20)
        if self.errors:
            raise self.errors[0]
        assert not any(thread.is_alive() for thread in threads), "a wake-up was lost"
        end = time.monotonic() + 5
        while self.table.running():  # Of those that were given up.
            assert time.monotonic() < end
            time.sleep(0.001)
        for model in self.models:
            assert model.wrong == []
        self.check_the_books([answer for cpu in cpus for answer in cpu.answers])

    def repeat(self, act: Callable[[], None]) -> None:
        try:
            while not self.stop.is_set():
                act()
                self.turns[act] += 1
        except BaseException as error:
            self.errors.append(error)
            self.stop.set()

    def ring_in_vain(self) -> None:
        for gate in self.gates:
            gate.look()
        time.sleep(0)

    def check_the_books(self, answers: list[tuple[int, Status | None]]) -> None:
        """Every call was answered once, and ran once or not at all, as its answer says."""
        assert len({token for token, _ in answers}) == len(answers)
        assert Status.OK in {status for _, status in answers}
        ran = Counter(token for model in self.models for token in model.ran)
        assert set(ran.values()) <= {1}, "a call ran twice"
        for token, status in answers:
            if status is Status.OK:
                assert ran[token] == 1
            elif status not in (None, Status.TIMED_OUT):  # A reset came between: it may have run.
                assert ran[token] == 0
        let_in = sum(each.calls.value for each in self.table.bound)
        refused: Counter[Status] = Counter()
        for each in self.table.bound:
            refused.update(each.refused)
        # What waited for the device until its time was up was let in, and did not begin.
        assert let_in >= ran.total() if self.models[0].time_limit else let_in == ran.total()
        assert refused.keys() <= {Status.BUSY, Status.REVOKED, Status.DENIED}
        assert self.table.drains == 0
        assert len({each.vector for each in self.table.bound}) == len(self.table.bound)


class Cpu:
    """Calls one device or the other, by its present vector or by one that it remembers."""

    serial = 0

    def __init__(self, host: Host, number: int) -> None:
        self.host = host
        self.number = number
        self.slot = host.table.slot()
        self.random = random.Random(number)
        self.remembered: dict[Gate, list[int]] = defaultdict(list)
        self.answers: list[tuple[int, Status | None]] = []
        """By token; None: a reset came between."""

    def call(self) -> None:
        gate = self.random.choice(self.host.gates)
        binding = gate.binding(self.random.choice(["add", "sub"]))
        remembered = self.remembered[gate]
        if remembered and self.random.random() < 0.2:
            vector = self.random.choice(remembered)
        elif binding is not None:
            vector = binding.vector
            if self.random.random() < 0.1:
                remembered.append(vector)
        else:
            return
        self.serial += 1
        token = vector << 32 | self.number << 28 | self.serial << 1
        way = self.random.choice([self.by_frame, self.by_shared_frame, self.by_registers])
        status = way(gate, vector, token)
        if status is not None or way == self.by_frame:
            self.answers.append((token, status))

    def by_registers(self, gate: Gate, vector: int, token: int) -> Status:
        status, results = self.host.router.call(self.slot, vector, lambda count: (token,))
        assert results == ((token ^ 1,) if status is Status.OK else ())
        return status

    def by_frame(self, gate: Gate, vector: int, token: int) -> Status | None:
        return self.frame(gate, self.number, vector, token)

    def by_shared_frame(self, gate: Gate, vector: int, token: int) -> Status | None:
        """One at a time fills the frame that is everybody's; all ring it."""
        if not SHARED.acquire(blocking=False):
            gate.mmio_write(0, 4, CPUS)
            return None
        try:
            status = self.frame(gate, CPUS, vector, token)
            if status is None:
                self.answers.append((token, None))
            return status
        finally:
            SHARED.release()

    def frame(self, gate: Gate, index: int, vector: int, token: int) -> Status | None:
        base = gate.frames_offset + index * gate.frame_size
        quads = gate.ram[base : base + FRAME.size].cast("Q")
        quads[4] = token
        quads[1] = 1 << 16 | self.random.choice([0, 0, 1])
        quads[0] = vector << 32 | READY
        gate.mmio_write(0, 4, index)
        end = time.monotonic() + 20
        while quads[0] & 0xFFFF_FFFF not in (FREE, DONE):
            # Another thread answers it: that one who rang in vain, or who shares the frame.
            assert time.monotonic() < end, "a call was never answered"
            time.sleep(0)
        if quads[0] & 0xFFFF_FFFF == FREE:
            return None
        status = Status(quads[1] >> 32)
        if status is Status.OK and not quads[1] & 1:
            assert quads[4] == token ^ 1, "a call got another's result"
        return status


SHARED = threading.Lock()


def test_nothing_runs_after_revoke_and_no_stale_vector_finds_a_new_owner() -> None:
    host = Host()
    turns = cycle((gate, name) for gate in host.gates for name in ("add", "sub"))

    def revoke() -> None:
        gate, name = next(turns)
        binding = gate.binding(name)
        assert binding is not None
        gate.revoke(name)
        gate.device.over.add(binding.vector)  # type: ignore[attr-defined]
        assert host.table.judge(binding.vector) is Status.REVOKED
        gate.bind(name)

    host.run(revoke)


def test_nothing_runs_between_deny_and_allow() -> None:
    host = Host()
    turns = cycle([("add",), ("add", "sub"), ("sub",)])

    def deny(gate: Gate) -> None:
        denied: set[str] = gate.device.denied  # type: ignore[attr-defined]
        names = next(turns)
        gate.deny(*names)
        denied.update(names)
        time.sleep(0)
        denied.clear()
        gate.allow(*names)

    host.run(*(lambda gate=gate: deny(gate) for gate in host.gates))


def test_nothing_runs_after_a_reset() -> None:
    """One hand resets, one changes quotas, one binds."""
    host = Host()
    gates = cycle(host.gates)
    limits = cycle([1, 2, 3, None])

    def reset() -> None:
        gate = next(gates)
        old = [gate.binding(name) for name in ("add", "sub")]
        gate.reset()
        gate.device.over.update(each.vector for each in old if each)  # type: ignore[attr-defined]
        time.sleep(0.001)

    def limit() -> None:
        for gate in host.gates:
            gate.limit("add", in_flight=next(limits))
        time.sleep(0.001)

    def bind() -> None:
        for gate in host.gates:
            gate.bind("sub")
        time.sleep(0.001)

    host.run(reset, limit, bind)


# An exception that is raised in a thread can strike in a weak reference's callback, which drops it:
# then that handler runs on, as one does that blocks.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_handlers_that_were_given_up_are_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """They are answered TIMED_OUT and run on; `revoke` does not return before they have ended."""
    host = Host(limit=0.003)
    turns = cycle([0.0, 0.002, 0.004])
    for model in host.models:
        model.act = lambda: time.sleep(next(turns))

    def revoke() -> None:
        for gate in host.gates:
            binding = gate.binding("add")
            if binding is None:
                gate.bind("add")
                continue
            try:
                gate.revoke("add", timeout=0.2)
            except DrainTimeout:
                continue
            gate.device.over.add(binding.vector)  # type: ignore[attr-defined]
            gate.bind("add")

    host.run(revoke)
