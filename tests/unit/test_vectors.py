# SPDX-License-Identifier: MIT
"""The vector table, one promise at a time. Threads at random are in test_vectors_stress.py."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest

from callgate.errors import DrainTimeout, VectorError, VectorsExhausted
from callgate.gate.abi import Status
from callgate.gate.vectors import Binding, Slot, VectorTable

SOON = 0.05
"""Seconds that a test gives what must not happen."""


class Call(threading.Thread):
    """A call in flight, in a thread of its own: entered when built, until `end`."""

    def __init__(self, table: VectorTable, binding: Binding, name: str = "vcpu1") -> None:
        super().__init__(name=name, daemon=True)
        self.table = table
        self.binding = binding
        self.slot = table.slot()
        self.status: Status | None = Status.TIMED_OUT
        self._entered = threading.Event()
        self._end = threading.Event()
        self.start()
        assert self._entered.wait(5)

    def run(self) -> None:
        self.status = self.table.enter(self.slot, self.binding)
        self._entered.set()
        if self.status is None:
            self._end.wait(10)
            self.table.leave(self.slot)

    def end(self) -> None:
        self._end.set()
        self.join(5)
        assert not self.is_alive()


class Background(threading.Thread):
    """Runs `act` in a thread of its own, and keeps what it raised."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.act = act
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.act()
        except BaseException as error:
            self.error = error

    def done(self, timeout: float) -> bool:
        self.join(timeout)
        return not self.is_alive()


@contextmanager
def waiting(table: VectorTable, act: Callable[[], object]) -> Iterator[Background]:
    """`act` in the background, once it waits for a call to leave."""
    background = Background(act)
    deadline = time.monotonic() + 5
    while not table.drains:
        assert time.monotonic() < deadline
        assert background.is_alive()
        time.sleep(0.001)
    yield background
    assert background.done(5)


def bind(table: VectorTable, name: str = "add", owner: str = "adder") -> Binding:
    return table.bind(owner, name, 0x51617, None)


def try_to_bind(table: VectorTable) -> Binding | None:
    try:
        return bind(table, "more")
    except VectorsExhausted:
        return None


def bind_all(table: VectorTable) -> list[int]:
    """Every vector that can still be issued, each revoked before the next."""
    vectors = []
    while (binding := try_to_bind(table)) is not None:
        vectors.append(binding.vector)
        table.revoke(binding)
    assert len(set(vectors)) == len(vectors)
    return vectors


def call(table: VectorTable, binding: Binding) -> Status | None:
    """A call that comes and goes; None if it was let in."""
    slot = table.slot()
    status = table.enter(slot, binding)
    if status is None:
        table.leave(slot)
    assert slot.binding is None
    return status


# Numbers


def test_vectors_are_31_bit_numbers_and_never_0() -> None:
    for seed in range(300):
        table = VectorTable(seed=seed)
        assert all(0 < bind(table).vector < 1 << 31 for _ in range(3))


def test_no_seed_no_pattern() -> None:
    tables = [VectorTable() for _ in range(3)]
    sequences = [[bind(table).vector for _ in range(4)] for table in tables]
    assert len({tuple(sequence) for sequence in sequences}) == 3
    starts = {sequence[0] >> 12 for sequence in sequences}
    tags = {vector & 0xFFF for sequence in sequences for vector in sequence}
    assert len(starts) > 1
    assert len(tags) > 4


def test_a_seed_repeats_the_vectors() -> None:
    one, same, other = VectorTable(seed=5), VectorTable(seed=5), VectorTable(seed=6)
    sequence = [bind(one).vector for _ in range(5)]
    assert [bind(same).vector for _ in range(5)] == sequence
    assert [bind(other).vector for _ in range(5)] != sequence


@pytest.mark.parametrize("widths", [(0, 12), (19, 0), (20, 12), (31, 1)])
def test_widths_must_fit_a_vector(widths: tuple[int, int]) -> None:
    with pytest.raises(VectorError, match="at most 31 together, not"):
        VectorTable(index_bits=widths[0], tag_bits=widths[1])


def test_only_what_was_issued_is_ever_called_revoked() -> None:
    table = VectorTable(seed=1, index_bits=3, tag_bits=3)
    live, gone = bind(table), bind(table)
    table.revoke(gone)
    for vector in (*range(-3, 1 << 8), 1 << 31, 1 << 32, (1 << 64) - 1):
        if vector == live.vector:
            assert table.lookup(vector) is live
            assert table.judge(vector) is Status.BUSY  # Live since the look-up: try again.
        else:
            assert table.lookup(vector) is None
            expected = Status.REVOKED if vector == gone.vector else Status.NO_SUCH_VECTOR
            assert table.judge(vector) is expected


def test_an_index_is_reused_late_and_with_its_next_tag() -> None:
    table = VectorTable(seed=1)
    bindings = [bind(table, name) for name in "abcd"]
    for each in (2, 0, 3):
        table.revoke(bindings[each])
    for each in (2, 0, 3):
        old, new = bindings[each].vector, bind(table).vector
        assert new >> 12 == old >> 12
        assert new & 0xFFF == (old + 1) & 0xFFF


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("at_once", [1, 3, 7])
def test_every_vector_is_issued_once_and_then_none(seed: int, at_once: int) -> None:
    table = VectorTable(seed=seed, index_bits=3, tag_bits=3)
    issued: list[int] = []
    live: list[Binding] = []
    while (binding := try_to_bind(table)) is not None:
        live.append(binding)
        issued.append(binding.vector)
        if len(live) == at_once:
            table.revoke(live.pop(0))
    for binding in live:
        table.revoke(binding)
    # What was live at the end may have tags left.
    issued += bind_all(table)
    with pytest.raises(VectorsExhausted, match="All 7 indices of this table"):
        bind(table)
    assert sorted(issued) == list(range(1 << 3, 1 << 6))
    assert {table.judge(vector) for vector in issued} == {Status.REVOKED}
    assert {table.judge(vector) for vector in range(1 << 3)} == {Status.NO_SUCH_VECTOR}


def test_exhaustion_leaves_the_live_ones_alone_and_ends_with_a_free_index() -> None:
    table = VectorTable(seed=1, index_bits=2, tag_bits=4)
    bindings = [bind(table) for _ in range(3)]
    with pytest.raises(VectorsExhausted):
        bind(table)
    assert [call(table, each) for each in bindings] == [None, None, None]
    table.revoke(bindings[1])
    assert bind(table).vector >> 4 == bindings[1].vector >> 4


def test_memory_is_by_index_and_not_by_vector() -> None:
    table = VectorTable(seed=1)
    table.revoke(bind(table))
    tracemalloc.start()
    try:
        for _ in range(30_000):
            table.revoke(bind(table))
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 10_000


TEN_MILLION = """
from callgate.gate.abi import Status
from callgate.gate.vectors import VectorTable

table = VectorTable(seed=1, index_bits=12, tag_bits=12)
issue, revoke = table.bind, table.revoke
seen = bytearray(1 << 24)
for _ in range(10_000_000):
    binding = issue("adder", "add", 1, None)
    seen[binding.vector] = 1
    revoke(binding)
assert seen.count(1) == 10_000_000
sample = range(0, len(seen), 997)
assert all((table.judge(each) is Status.REVOKED) == seen[each] for each in sample)
"""


@pytest.mark.timeout(600)
def test_ten_million_binds_are_ten_million_vectors() -> None:
    # In a process of its own that is not measured: line coverage would make minutes of it.
    clean = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
    subprocess.run([sys.executable, "-c", TEN_MILLION], check=True, env=clean)


# The handshake


def test_enter_writes_the_call_down_before_it_looks_whether_it_may_run() -> None:
    seen: list[tuple[Binding | None, int]] = []

    class Spy(Binding):
        """Looks at the slot at the moment when its refusal is read."""

        __slots__ = ()

        @property
        def refusal(self) -> Status | None:
            seen.append((slot.binding, slot.thread))
            return None

        @refusal.setter
        def refusal(self, value: Status | None) -> None:
            pass

    table = VectorTable()
    slot = table.slot()
    spy = Spy(1, "adder", "add", 0, None)
    assert table.enter(slot, spy) is None
    assert seen == [(spy, threading.get_ident())]


@pytest.mark.parametrize("refused", [False, True])
def test_a_call_leaves_before_it_looks_whether_somebody_waits(refused: bool) -> None:
    seen: list[Binding | None] = []

    class Spy(VectorTable):
        """Looks at the slot at the moment when `drains` is read."""

        __slots__ = ()

        @property
        def drains(self) -> int:
            seen.append(slot.binding)
            return 0

        @drains.setter
        def drains(self, value: int) -> None:
            pass

    table = Spy()
    slot = Slot()
    binding = bind(table)
    if refused:
        table.deny("adder")
        seen.clear()
        assert table.enter(slot, binding) is Status.DENIED
    else:
        assert table.enter(slot, binding) is None
        table.leave(slot)
    assert seen == [None]


def test_a_call_that_leaves_just_before_the_revoker_sleeps_wakes_it() -> None:
    class Leaving(Slot):
        """A slot whose call leaves when it is looked at for the second time."""

        __slots__ = ("held", "looks")
        held: Binding | None
        looks: int

        @property
        def binding(self) -> Binding | None:
            held = self.held
            self.looks += 1
            if self.looks == 2:
                self.held = None
                if table.drains:
                    Background(table.wake)
            return held

        @binding.setter
        def binding(self, value: Binding | None) -> None:
            self.held = value
            self.looks = 0

    table = VectorTable()
    binding = bind(table)
    slot = Leaving()
    table._slots.add(weakref.ref(slot))
    assert table.enter(slot, binding) is None
    slot.thread = 424242
    start = time.monotonic()
    table.revoke(binding, timeout=5)
    assert slot.held is None
    assert time.monotonic() - start < 4


# Revocation


def test_a_revoked_call_is_refused_and_its_vector_is_gone() -> None:
    table = VectorTable()
    binding = bind(table)
    assert call(table, binding) is None
    table.revoke(binding)
    assert call(table, binding) is Status.REVOKED  # Who found it before it left the table.
    assert table.lookup(binding.vector) is None
    assert table.judge(binding.vector) is Status.REVOKED


def test_revoke_waits_for_the_calls_in_flight() -> None:
    table = VectorTable()
    binding, other = bind(table), bind(table, "sub")
    first, second = Call(table, binding), Call(table, binding)
    unconcerned = Call(table, other)
    with waiting(table, lambda: table.revoke(binding)) as revoker:
        assert call(table, binding) is Status.BUSY
        assert call(table, other) is None
        assert table.lookup(binding.vector) is binding
        first.end()
        assert not revoker.done(SOON)
        second.end()
        assert revoker.done(5)
    assert call(table, binding) is Status.REVOKED
    assert table.drains == 0
    unconcerned.end()


def test_who_waits_sleeps() -> None:
    table = VectorTable()
    running = Call(table, bind(table))
    spent: list[float] = []

    def revoke() -> None:
        start = time.thread_time()
        table.revoke(running.binding)
        spent.append(time.thread_time() - start)

    with waiting(table, revoke):
        time.sleep(0.3)
        running.end()
    assert spent[0] < 0.05


def test_two_may_revoke_the_same_binding() -> None:
    table = VectorTable()
    running = Call(table, bind(table))
    vector = running.binding.vector
    with waiting(table, lambda: table.revoke(running.binding)) as one:
        other = Background(lambda: table.revoke(running.binding))
        assert not other.done(SOON)
        assert not one.done(0)
        running.end()
        assert other.done(5)
    assert one.error is None
    assert other.error is None
    again = [bind(table).vector for _ in range(2)]
    assert vector not in again
    assert len({each >> 12 for each in again}) == 2  # Its index was freed once, not twice.


def test_a_drain_that_times_out_says_what_still_runs_and_revokes_all_the_same() -> None:
    table = VectorTable()
    binding = bind(table)
    running = Call(table, binding, name="vcpu7")
    start = time.monotonic()
    with pytest.raises(DrainTimeout) as caught:
        table.revoke(binding, timeout=0.1)
    assert 0.1 <= time.monotonic() - start < 2
    assert caught.value.calls == ("adder.add in thread vcpu7",)
    assert "adder.add in thread vcpu7" in str(caught.value)
    assert "0.1 s" in str(caught.value)
    assert call(table, binding) is Status.REVOKED
    assert table.judge(binding.vector) is Status.REVOKED
    assert bind(table).vector != binding.vector
    with pytest.raises(DrainTimeout):
        table.revoke(binding, timeout=0)
    with waiting(table, lambda: table.revoke(binding)) as patient:
        running.end()
        assert patient.done(5)
    table.revoke(binding, timeout=0)
    assert table.drains == 0


def test_an_interrupted_revocation_is_still_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    table = VectorTable()
    running = Call(table, bind(table))

    def interrupt(self: threading.Condition, timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Condition, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            table.revoke(running.binding)
    assert call(table, running.binding) is Status.REVOKED
    assert table.judge(running.binding.vector) is Status.REVOKED
    assert table.drains == 0
    running.end()


def test_a_handler_may_revoke_its_own_call() -> None:
    table = VectorTable()
    binding = bind(table)
    slot = table.slot()
    assert table.enter(slot, binding) is None
    table.revoke(binding, timeout=0)
    table.leave(slot)
    assert table.judge(binding.vector) is Status.REVOKED


def test_a_handler_in_another_thread_may_revoke_its_own_call() -> None:
    table = VectorTable()
    running = Call(table, bind(table))

    def handler() -> None:
        running.slot.thread = threading.get_ident()
        table.revoke(running.binding, timeout=0)

    background = Background(handler)
    assert background.done(5)
    assert background.error is None
    running.end()


def test_a_handler_still_waits_for_the_other_calls_of_its_own() -> None:
    table = VectorTable()
    running = Call(table, bind(table))
    slot = table.slot()
    assert table.enter(slot, running.binding) is None
    with pytest.raises(DrainTimeout) as caught:
        table.revoke(running.binding, timeout=0)
    assert len(caught.value.calls) == 1
    table.leave(slot)
    running.end()


def test_a_binding_is_revoked_where_it_was_bound() -> None:
    table, other = VectorTable(seed=1), VectorTable(seed=1)
    binding, twin = bind(table), bind(other)
    with pytest.raises(VectorError, match="must be revoked in the table that bound it"):
        other.revoke(binding)
    assert call(table, binding) is None
    assert call(other, twin) is None


def test_a_slot_that_nobody_holds_is_forgotten() -> None:
    table = VectorTable()
    binding = bind(table)
    slot = table.slot()
    table.enter(slot, binding)
    slot.thread = 424242
    del slot
    table.revoke(binding, timeout=0)
    assert not table._slots


def test_an_owner_is_revoked_as_a_whole_and_nobody_else() -> None:
    table = VectorTable()
    add, sub = bind(table), bind(table, "sub")
    tick = bind(table, "tick", "timer")
    running = Call(table, sub)

    def revoke() -> None:
        assert table.revoke_owner("adder") == [add, sub]

    with waiting(table, revoke) as revoker:
        # All are closed before the wait begins, the idle one too.
        assert call(table, add) is Status.BUSY
        assert call(table, tick) is None
        running.end()
        assert revoker.done(5)
    assert revoker.error is None
    assert table.bindings("adder") == []
    assert table.bindings("timer") == [tick]
    assert call(table, tick) is None
    assert [call(table, add), call(table, sub)] == [Status.REVOKED, Status.REVOKED]


def test_the_time_out_of_an_owner_is_for_all_its_calls_together() -> None:
    table = VectorTable()
    running = [Call(table, bind(table, name), name) for name in "abcd"]
    start = time.monotonic()
    with pytest.raises(DrainTimeout) as caught:
        table.revoke_owner("adder", timeout=0.1)
    assert time.monotonic() - start < 0.35
    assert sorted(caught.value.calls) == [f"adder.{name} in thread {name}" for name in "abcd"]
    assert [call(table, each.binding) for each in running] == [Status.REVOKED] * 4
    for each in running:
        each.end()


def test_a_reset_gives_each_call_a_new_vector() -> None:
    table = VectorTable()
    old = [table.bind("adder", name, 7, name.upper()) for name in ("add", "sub")]
    tick = bind(table, "tick", "timer")
    new = table.rebind("adder")
    assert [(each.name, each.signature, each.target) for each in new] == [
        ("add", 7, "ADD"),
        ("sub", 7, "SUB"),
    ]
    assert not {each.vector for each in new} & {each.vector for each in old}
    assert table.bindings("adder") == new
    assert [call(table, each) for each in (*old, *new, tick)] == [
        Status.REVOKED,
        Status.REVOKED,
        None,
        None,
        None,
    ]


def test_a_reset_that_times_out_has_bound_anew() -> None:
    table = VectorTable()
    running = Call(table, bind(table))
    with pytest.raises(DrainTimeout):
        table.rebind("adder", timeout=0.01)
    [fresh] = table.bindings("adder")
    assert call(table, fresh) is None
    assert call(table, running.binding) is Status.REVOKED
    running.end()


def test_two_resets_at_once_bind_once() -> None:
    table = VectorTable()
    running = Call(table, bind(table))
    with waiting(table, lambda: table.rebind("adder")) as reset:
        assert table.rebind("adder", timeout=0) == []
        running.end()
        assert reset.done(5)
    assert len(table.bindings("adder")) == 1


# Handlers that were given up


def test_an_abandoned_call_frees_its_slot_and_stays_in_flight() -> None:
    table = VectorTable()
    binding = bind(table)
    slot = table.slot()
    assert table.enter(slot, binding) is None
    slot.thread = 424242
    given_up = table.abandon(slot)
    assert slot.binding is None
    table.leave(slot)
    assert table.enter(slot, binding) is None
    table.leave(slot)
    with pytest.raises(DrainTimeout) as caught:
        table.deny("adder", timeout=0)
    assert caught.value.calls == ("adder.add in thread 424242",)
    with waiting(table, lambda: table.revoke(binding)) as revoker:
        assert not revoker.done(SOON)
        table.settle(given_up)
        assert revoker.done(5)
    assert revoker.error is None


def test_an_abandoned_handler_may_revoke_its_own_call() -> None:
    table = VectorTable()
    binding = bind(table)
    slot = table.slot()
    assert table.enter(slot, binding) is None
    given_up = table.abandon(slot)
    table.revoke(binding, timeout=0)
    table.settle(given_up)


def test_a_handler_that_revokes_its_own_call_is_freed_when_it_is_given_up() -> None:
    table = VectorTable()
    running = Call(table, bind(table))
    # Its slot names the vCPU's thread; the handler's is known only when it is given up.
    with waiting(table, lambda: table.revoke(running.binding)) as handler:
        assert handler.ident is not None
        running.slot.thread = handler.ident
        given_up = table.abandon(running.slot)
        assert handler.done(5)
    assert handler.error is None
    table.settle(given_up)
    running.end()


def test_an_abandoned_call_counts_for_its_quota_until_it_ends() -> None:
    table = VectorTable()
    table.limit("adder", "add", in_flight=1)
    binding = bind(table)
    slot = table.slot()
    assert table.enter(slot, binding) is None
    given_up = table.abandon(slot)
    table.leave(slot)
    assert call(table, binding) is Status.BUSY
    table.settle(given_up)
    assert call(table, binding) is None
    assert call(table, binding) is None


def test_only_a_call_can_be_abandoned() -> None:
    table = VectorTable()
    with pytest.raises(VectorError, match="A call must be in the slot"):
        table.abandon(table.slot())


# Filter


def test_denied_calls_are_refused_until_they_are_allowed() -> None:
    table = VectorTable()
    add, sub = bind(table), bind(table, "sub")
    table.deny("adder", "add")
    assert [call(table, add), call(table, sub)] == [Status.DENIED, None]
    table.allow("adder", "add")
    assert [call(table, add), call(table, sub)] == [None, None]


def test_an_owner_is_denied_as_a_whole_and_nobody_else() -> None:
    table = VectorTable()
    bindings = [bind(table), bind(table, "sub"), bind(table, "add", "timer")]
    table.deny("adder")
    assert [call(table, each) for each in bindings] == [Status.DENIED, Status.DENIED, None]
    table.allow("adder")
    assert [call(table, each) for each in bindings] == [None, None, None]


def test_a_call_runs_when_neither_form_denies_it() -> None:
    table = VectorTable()
    binding = bind(table)
    table.deny("adder")
    table.deny("adder", "add")
    table.allow("adder")
    assert call(table, binding) is Status.DENIED
    table.deny("adder")
    table.allow("adder", "add")
    assert call(table, binding) is Status.DENIED
    table.allow("adder")
    assert call(table, binding) is None


@pytest.mark.parametrize("name", [None, "add"])
def test_a_reset_does_not_get_past_the_filter(name: str | None) -> None:
    table = VectorTable()
    bind(table)
    table.deny("adder", name)
    [fresh] = table.rebind("adder")
    assert call(table, fresh) is Status.DENIED
    table.allow("adder", name)
    assert call(table, fresh) is None


def test_a_filter_can_come_first() -> None:
    table = VectorTable()
    table.deny("adder", "add")
    assert call(table, bind(table)) is Status.DENIED


def test_deny_waits_for_the_calls_in_flight() -> None:
    table = VectorTable()
    add, sub = Call(table, bind(table)), Call(table, bind(table, "sub"))
    with waiting(table, lambda: table.deny("adder", "add")) as denier:
        assert call(table, add.binding) is Status.DENIED
        assert not denier.done(SOON)
        add.end()
        assert denier.done(5)
    assert denier.error is None
    with waiting(table, lambda: table.deny("adder")) as denier:
        assert not denier.done(SOON)
        sub.end()


def test_deny_waits_for_a_revoked_call_too() -> None:
    table = VectorTable()
    running = Call(table, bind(table))
    with pytest.raises(DrainTimeout):
        table.revoke(running.binding, timeout=0)
    with pytest.raises(DrainTimeout):
        table.deny("adder", timeout=0)
    running.end()


def test_deny_waits_for_nothing_else() -> None:
    table = VectorTable()
    bind(table)
    others = [Call(table, bind(table, "sub")), Call(table, bind(table, "add", "timer"))]
    table.deny("adder", "sub", drain=False)
    table.deny("timer", drain=False)
    table.deny("adder", "add", timeout=0)
    for each in others:
        each.end()


def test_deny_can_skip_the_wait_and_can_time_out() -> None:
    table = VectorTable()
    running = Call(table, bind(table))
    table.deny("adder", drain=False)
    assert call(table, running.binding) is Status.DENIED
    table.allow("adder")
    with pytest.raises(DrainTimeout, match=r"Denied adder\.add, but after 0\.01 s calls still run"):
        table.deny("adder", "add", timeout=0.01)
    assert call(table, running.binding) is Status.DENIED
    running.end()


def test_a_handler_may_deny_its_own_call() -> None:
    table = VectorTable()
    binding = bind(table)
    slot = table.slot()
    assert table.enter(slot, binding) is None
    table.deny("adder", timeout=0)
    table.leave(slot)
    assert call(table, binding) is Status.DENIED


def test_allow_ends_the_wait_of_deny() -> None:
    table = VectorTable()
    running = Call(table, bind(table))
    with waiting(table, lambda: table.deny("adder")) as denier:
        table.allow("adder")
        assert call(table, running.binding) is None  # Any call that leaves wakes the waiter.
        assert denier.done(5)
    running.end()


def test_revoked_and_draining_are_stronger_than_denied_and_allowed() -> None:
    table = VectorTable()
    running = Call(table, bind(table))
    with waiting(table, lambda: table.revoke(running.binding)):
        table.deny("adder", drain=False)
        assert call(table, running.binding) is Status.BUSY
        table.allow("adder")
        assert call(table, running.binding) is Status.BUSY
        running.end()
    table.deny("adder")
    table.allow("adder")
    assert call(table, running.binding) is Status.REVOKED


def test_a_denied_call_can_be_revoked() -> None:
    table = VectorTable()
    binding = bind(table)
    table.deny("adder")
    table.revoke(binding)
    assert call(table, binding) is Status.REVOKED


def test_a_forgotten_owner_leaves_no_filter_and_no_quota() -> None:
    table = VectorTable()
    for owner in ("adder", "timer"):
        table.deny(owner)
        table.deny(owner, "add")
        table.limit(owner, "add", in_flight=1)
    table.forget("adder")
    binding, kept = bind(table), bind(table, "add", "timer")
    assert call(table, binding) is None
    assert binding.quota is None
    assert call(table, kept) is Status.DENIED
    assert kept.quota is not None


# Quotas and counts


def test_a_quota_answers_busy_and_is_counted() -> None:
    now = [0.0]
    table = VectorTable(clock=lambda: now[0])
    binding, other = bind(table), bind(table, "sub")
    table.limit("adder", "add", per_second=2)
    assert [call(table, binding) for _ in range(4)] == [None, None, Status.BUSY, Status.BUSY]
    assert call(table, other) is None
    now[0] += 0.5
    assert call(table, binding) is None
    assert binding.calls.value == 3
    assert binding.refused == {Status.BUSY: 2}
    table.limit("adder", "add")
    assert binding.quota is None
    assert [call(table, binding) for _ in range(9)] == [None] * 9


def test_a_quota_in_flight_is_given_back_when_the_call_leaves() -> None:
    table = VectorTable()
    table.limit("adder", "add", in_flight=2)
    binding = bind(table)
    slots = [table.slot() for _ in range(3)]
    assert [table.enter(slot, binding) for slot in slots] == [None, None, Status.BUSY]
    table.leave(slots[0])
    assert table.enter(slots[2], binding) is None
    table.leave(slots[1])
    table.leave(slots[2])
    assert [call(table, binding) for _ in range(5)] == [None] * 5


def test_a_quota_that_changes_under_a_call_is_given_back_where_it_was_taken() -> None:
    table = VectorTable()
    table.limit("adder", "add", in_flight=1)
    binding = bind(table)
    old = binding.quota
    slot = table.slot()
    assert table.enter(slot, binding) is None
    table.limit("adder", "add")
    table.limit("adder", "add", in_flight=1)
    assert binding.quota is not old
    table.leave(slot)
    assert old is not None
    assert old.take()
    other = table.slot()
    assert [table.enter(slot, binding), table.enter(other, binding)] == [None, Status.BUSY]
    table.leave(slot)


def test_a_quota_is_given_back_once() -> None:
    table = VectorTable()
    table.limit("adder", "add", in_flight=1)
    binding, unlimited = bind(table), bind(table, "sub")
    slot, other = table.slot(), table.slot()
    for each in (binding, unlimited):
        assert table.enter(slot, each) is None
        table.leave(slot)
    assert [table.enter(slot, binding), table.enter(other, binding)] == [None, Status.BUSY]
    table.leave(slot)


def test_a_reset_does_not_fill_the_bucket() -> None:
    table = VectorTable(clock=lambda: 0.0)
    bind(table)
    table.limit("adder", "add", per_second=2)
    [fresh] = table.rebind("adder")
    assert [call(table, fresh) for _ in range(2)] == [None, None]
    [fresh] = table.rebind("adder")
    assert call(table, fresh) is Status.BUSY


def test_a_changed_quota_goes_on_counting() -> None:
    table = VectorTable(clock=lambda: 0.0)
    binding = bind(table)
    table.limit("adder", "add", per_second=2)
    assert [call(table, binding) for _ in range(2)] == [None, None]
    table.limit("adder", "add", per_second=50)
    assert call(table, binding) is Status.BUSY


def test_a_bad_quota_is_refused_and_changes_nothing() -> None:
    table = VectorTable()
    binding = bind(table)
    table.limit("adder", "add", in_flight=1)
    with pytest.raises(VectorError, match="in_flight must be 1 or more"):
        table.limit("adder", "add", in_flight=0)
    slot = table.slot()
    assert [table.enter(slot, binding), call(table, binding)] == [None, Status.BUSY]
    table.leave(slot)


def test_answers_are_counted_by_status() -> None:
    table = VectorTable()
    binding = bind(table)
    assert (binding.calls.value, binding.refused, binding.errors) == (0, {}, {})
    call(table, binding)
    for status in (Status.BAD_COUNT, Status.BAD_COUNT, Status.DEVICE_ERROR, Status.TIMED_OUT):
        binding.note(status)
    table.deny("adder")
    call(table, binding)
    table.revoke(binding)
    call(table, binding)
    assert binding.calls.value == 1
    assert binding.refused == {Status.BAD_COUNT: 2, Status.DENIED: 1, Status.REVOKED: 1}
    assert binding.errors == {Status.DEVICE_ERROR: 1, Status.TIMED_OUT: 1}


def test_a_binding_shows_what_it_is() -> None:
    class Device:
        name = "adder"

    table = VectorTable()
    binding = table.bind(Device(), "add", 1, None)
    assert str(binding) == "adder.add"
    assert repr(binding) == f"<Binding adder.add {binding.vector:#010x} open>"
    table.revoke(binding)
    assert "REVOKED" in repr(binding)


# Snapshots


def through_json(table: VectorTable) -> Any:
    return json.loads(json.dumps(table.state()))


def test_a_fresh_table_continues_where_the_snapshot_was_taken() -> None:
    table = VectorTable()
    add, sub = table.bind("adder", "add", 1, None), table.bind("adder", "sub", 2, None)
    tick = table.bind("timer", "tick", 3, None)
    gone = bind(table, "gone")
    others = [bind(table, "gone", "scrap") for _ in range(4)]
    table.revoke(gone)
    [add] = [each for each in table.rebind("adder") if each.name == "add"]
    [sub] = [each for each in table.bindings("adder") if each.name == "sub"]
    for each in (2, 0, 3, 1):
        table.revoke(others[each])
    state = through_json(table)

    fresh = VectorTable()
    again = {
        name: fresh.bind(owner, name, signature, None)
        for owner, name, signature in (
            ("timer", "tick", 3),
            ("adder", "sub", 2),
            ("adder", "add", 1),
        )
    }
    interim = [each.vector for each in again.values()]
    live = fresh.live
    fresh.restore(state)

    assert {name: each.vector for name, each in again.items()} == {
        "tick": tick.vector,
        "sub": sub.vector,
        "add": add.vector,
    }
    assert fresh.live is live
    assert live == {each.vector: each for each in again.values()}
    assert [call(fresh, each) for each in again.values()] == [None, None, None]
    assert fresh.judge(gone.vector) is Status.REVOKED
    assert {fresh.judge(each.vector) for each in others} == {Status.REVOKED}
    assert {fresh.judge(vector) for vector in interim} == {Status.REVOKED}
    assert {**through_json(fresh), "past": []} == state
    # The same number comes next on both sides, for as long as both do the same.
    more = [(bind(table, "more"), bind(fresh, "more")) for _ in range(20)]
    assert all(one.vector == two.vector for one, two in more)


def test_every_issued_vector_stays_revoked_over_a_snapshot() -> None:
    table = VectorTable(seed=1, index_bits=3, tag_bits=3)
    add = bind(table)
    for _ in range(20):
        table.revoke(bind(table, "gone"))
    state = through_json(table)
    fresh = VectorTable(seed=2, index_bits=3, tag_bits=3)
    interim = bind(fresh)
    before = interim.vector
    fresh.restore(state)
    for vector in range(1 << 6):
        if vector not in (add.vector, before):
            assert fresh.judge(vector) is table.judge(vector)
    more = bind_all(fresh)
    assert {table.judge(vector) for vector in more} == {Status.NO_SUCH_VECTOR}
    assert before not in more
    assert add.vector not in more


def test_a_rewound_table_reissues_only_what_was_live() -> None:
    table = VectorTable(seed=1, index_bits=3, tag_bits=3)
    add = bind(table)
    vector = add.vector
    state = through_json(table)
    issued = {vector}
    for _ in range(4):
        issued.add(bind(table, "later").vector)
        table.revoke_owner("adder")
        add = bind(table)
        issued.add(add.vector)
        table.restore(state)
        assert add.vector == vector
        assert call(table, add) is None
        assert {table.judge(each) for each in issued - {vector}} == {Status.REVOKED}
    table.revoke(add)
    more = bind_all(table)
    assert not issued & set(more)
    assert len(issued) + len(more) == 7 * 8


def test_a_restored_table_can_be_rewound_again() -> None:
    table, other = VectorTable(seed=1), VectorTable(seed=2)
    vector = bind(table).vector
    state = through_json(table)
    binding = bind(other)
    issued = {binding.vector}
    for _ in range(3):
        other.restore(state)
        assert binding.vector == vector
        [binding] = other.rebind("adder")
        assert binding.vector not in issued
        issued.add(binding.vector)


def test_a_snapshot_of_a_restored_table_knows_what_was_issued_before() -> None:
    tables = [VectorTable(seed=seed) for seed in range(4)]
    bindings = [bind(table) for table in tables]
    interim = [binding.vector for binding in bindings]
    for table, after in pairwise(tables):
        after.restore(through_json(table))
    assert bindings[3].vector == interim[0]
    assert {tables[3].judge(vector) for vector in interim[1:]} == {Status.REVOKED}


def test_going_back_and_forth_between_snapshots_forgets_nothing() -> None:
    table, other = VectorTable(seed=1), VectorTable(seed=2)
    bind(table)
    there = through_json(table)
    bind(other)
    here = through_json(other)
    other.restore(there)
    there_from_here = through_json(other)
    issued = set()
    for _ in range(3):
        for state in (here, there_from_here):
            other.restore(state)
            [binding] = other.rebind("adder")
            assert binding.vector not in issued
            issued.add(binding.vector)
    other.revoke(binding)
    assert {other.judge(vector) for vector in issued} == {Status.REVOKED}


def test_a_binding_that_drains_counts_as_revoked_in_a_snapshot() -> None:
    table = VectorTable(seed=1)
    running, kept = Call(table, bind(table)), bind(table, "sub")
    with waiting(table, lambda: table.revoke(running.binding)):
        state = through_json(table)
        running.end()
    assert [each["name"] for each in state["live"]] == ["sub"]
    fresh = VectorTable(seed=2)
    bind(fresh, "sub")
    fresh.restore(state)
    assert fresh.judge(running.binding.vector) is Status.REVOKED
    assert fresh.lookup(kept.vector) is not None


def test_filter_and_quotas_are_not_restored_but_stay() -> None:
    table = VectorTable()
    bind(table)
    state = through_json(table)
    fresh = VectorTable()
    fresh.deny("adder")
    fresh.limit("adder", "add", in_flight=1)
    binding = bind(fresh)
    fresh.restore(state)
    assert call(fresh, binding) is Status.DENIED
    fresh.allow("adder")
    assert call(fresh, binding) is None
    assert binding.quota is not None


def other_machine(**changes: Any) -> VectorTable:
    """The machine that `snapshot` is of, with one thing changed."""
    table = VectorTable(**changes.pop("table", {}))
    for name, (owner, signature) in {
        "add": ("adder", 1),
        "sub": ("adder", 2),
        **changes,
    }.items():
        if owner:
            table.bind(owner, name, signature, None)
    return table


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sub": (None, 0)}, "The snapshot has a call adder.sub that this machine lacks"),
        ({"mul": ("adder", 3)}, "This machine has a call adder.mul that the snapshot lacks"),
        ({"sub": ("timer", 2)}, "The snapshot has a call adder.sub that this machine lacks"),
        (
            {"sub": ("adder", 0xBAD)},
            "The signature of adder.sub must be 0x2, as in the snapshot, not 0xbad",
        ),
        (
            {"table": {"tag_bits": 11}},
            "must have 19 index and 11 tag bits, as this table's, not 19",
        ),
    ],
)
def test_a_snapshot_that_does_not_match_is_refused_and_changes_nothing(
    changes: dict[str, Any], sentence: str
) -> None:
    state = through_json(other_machine())
    table = other_machine(**changes)
    before = through_json(table)
    with pytest.raises(VectorError, match=re.escape(sentence)):
        table.restore(state)
    assert through_json(table) == before
    assert all(table.live[vector].vector == vector for vector in table.live)


def damage(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.update(changes)


def damage_live(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state["live"][0].update(changes)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.pop("key"),
        damage(key="no hexadecimal"),
        damage(key="00" * 16),
        damage(key="00" * 99),
        damage(tags=None),
        damage(tags=[-1, 0]),
        damage(tags=[4097, 0]),
        damage(tags=[1 << 40, 0]),
        damage(tags=["1", "0"]),
        damage(tags=[]),
        damage(tags=[0] * (1 << 19)),
        damage(free=["a"]),
        damage(live=[3]),
        damage(live="live"),
        damage_live(vector="a"),
        damage_live(vector=0),
        damage_live(vector=-1),
        damage_live(vector=1 << 31),
        damage_live(vector=1 << 77),
        lambda state: state["live"][0].update(vector=state["live"][0]["vector"] + 1),
        lambda state: state["live"][0].update(vector=state["live"][1]["vector"]),
        lambda state: state["live"].append(state["live"][0]),
        damage(free=[5]),
        damage(past=None),
        lambda state: state["past"].append(state),
    ],
)
def test_a_damaged_snapshot_is_refused_and_changes_nothing(
    spoil: Callable[[dict[str, Any]], None],
) -> None:
    table = other_machine()
    state = through_json(table)
    spoil(state)
    before = through_json(table)
    with pytest.raises(VectorError, match="The snapshot's vectors are damaged"):
        table.restore(state)
    assert through_json(table) == before


@pytest.mark.parametrize("live", [False, True])
def test_a_vector_never_goes_to_another_call_through_a_snapshot(live: bool) -> None:
    table = VectorTable(seed=0, index_bits=2, tag_bits=1)
    wanted = bind(table).vector
    bind(table, "sub")
    state = through_json(table)
    for seed in range(1, 1000):
        other = VectorTable(seed=seed, index_bits=2, tag_bits=1)
        first = bind(other, "sub").vector
        if first == wanted:
            break
    if not live:
        other.rebind("adder")
    bind(other)
    before = through_json(other)
    with pytest.raises(VectorError, match="restore into a new machine"):
        other.restore(state)
    assert through_json(other) == before


def test_owners_of_one_name_cannot_be_told_apart() -> None:
    class Device:
        name = "adder"

    table = VectorTable()
    table.bind(Device(), "add", 1, None)
    table.bind(Device(), "add", 1, None)
    with pytest.raises(VectorError, match="an owner name for each device"):
        table.state()


@pytest.mark.parametrize("abandoned", [False, True])
def test_a_table_with_calls_in_flight_is_not_restored(abandoned: bool) -> None:
    table = VectorTable()
    binding = bind(table)
    state = through_json(table)
    slot = table.slot()
    assert table.enter(slot, binding) is None
    given_up = table.abandon(slot) if abandoned else None
    with pytest.raises(VectorError, match="must be at rest"):
        table.restore(state)
    if given_up is not None:
        table.settle(given_up)
    table.leave(slot)
    table.restore(state)
