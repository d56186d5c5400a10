# SPDX-License-Identifier: MIT
"""The vector table, one promise at a time. Threads at random are in test_vectors_stress.py."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from callgate.call import CallRefused
from callgate.errors import DrainTimeout, VectorError, VectorsExhausted
from callgate.gate.abi import Status
from callgate.gate.vectors import Binding, Slot, VectorTable

SOON = 0.05
"""Seconds that a test gives what must not happen."""


class Call(threading.Thread):
    """A call in flight, in a thread of its own: entered when built, until `end`."""

    def __init__(self, table: VectorTable, binding: Binding, name: str = "vcpu1") -> None:
        super().__init__(name=name, daemon=True)
        self.binding = binding
        self.slot = table.slot()
        self.status: Status | None = Status.TIMED_OUT
        self._entered = threading.Event()
        self._end = threading.Event()
        self.start()
        assert self._entered.wait(5)

    def run(self) -> None:
        self.status = answer(self.slot, self.binding, self.handle)
        self._entered.set()

    def handle(self) -> None:
        self._entered.set()
        self._end.wait(10)

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


def answer(
    slot: Slot, binding: Binding, handler: Callable[[], object] = lambda: None
) -> Status | None:
    """What a call is refused with; None if it was let in."""
    try:
        slot.run(binding, None, lambda values, payload: handler(), (), None)
    except CallRefused as refused:
        return refused.status
    finally:
        assert slot.binding is None
    return None


def call(
    table: VectorTable, binding: Binding, handler: Callable[[], object] = lambda: None
) -> Status | None:
    """A call from a vCPU of its own."""
    return answer(table.slot(), binding, handler)


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
            assert table.live.get(vector) is live
            assert table.judge(vector) is Status.BUSY  # Live since the look-up: try again.
        else:
            assert table.live.get(vector) is None
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


@pytest.mark.uncovered
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
import gc
from callgate.gate.abi import Status
from callgate.gate.vectors import VectorTable

gc.disable()
table = VectorTable(seed=1, index_bits=12, tag_bits=12)
bind = table.bind
names = [str(number) for number in range(1000)]
issued = bytearray(1 << 24)
for _ in range(10_000_000 // len(names)):
    for name in names:
        issued[bind("adder", name, 1, None).vector] = 1
    table.revoke_owner("adder")  # As a reset does.
assert issued.count(1) == 10_000_000
wrapped = sum(issued[index << 12] and issued[(index << 12) - 1 + 4096] for index in range(4096))
assert wrapped > 1000
sample = range(0, len(issued), 997)
assert all((table.judge(each) is Status.REVOKED) == issued[each] for each in sample)
"""


@pytest.mark.uncovered
@pytest.mark.timeout(600)
def test_ten_million_binds_are_ten_million_vectors() -> None:
    # In a process of its own that is not measured: line coverage would make minutes of it.
    clean = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
    subprocess.run([sys.executable, "-c", TEN_MILLION], check=True, env=clean)


# Revocation


def test_a_revoked_call_is_refused_and_its_vector_is_gone() -> None:
    table = VectorTable()
    binding = bind(table)
    assert call(table, binding) is None
    table.revoke(binding)
    assert call(table, binding) is Status.REVOKED  # Who found it before it left the table.
    assert table.live.get(binding.vector) is None
    assert table.judge(binding.vector) is Status.REVOKED


def test_revoke_waits_for_the_calls_in_flight() -> None:
    table = VectorTable()
    binding, other = bind(table), bind(table, "sub")
    first, second = Call(table, binding), Call(table, binding)
    unconcerned = Call(table, other)
    with waiting(table, lambda: table.revoke(binding)) as revoker:
        assert call(table, binding) is Status.BUSY
        assert call(table, other) is None
        assert table.live.get(binding.vector) is binding
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
    assert call(table, binding, lambda: table.revoke(binding, timeout=0)) is None
    assert table.judge(binding.vector) is Status.REVOKED


def test_a_handler_still_waits_for_the_other_calls_of_its_own() -> None:
    table = VectorTable()
    running = Call(table, bind(table))

    def handler() -> None:
        with pytest.raises(DrainTimeout) as caught:
            table.revoke(running.binding, timeout=0)
        assert len(caught.value.calls) == 1

    assert call(table, running.binding, handler) is None
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
    assert answer(slot, binding) is None
    assert len(table._slots) == 1
    del slot
    assert not table._slots


def test_an_owner_is_revoked_as_a_whole_and_nobody_else() -> None:
    table = VectorTable()
    add, sub = bind(table), bind(table, "sub")
    tick = bind(table, "tick", "timer")
    running = Call(table, sub)

    with waiting(table, lambda: table.revoke_owner("adder")) as revoker:
        # All are closed before the wait begins, the idle one too.
        assert call(table, add) is Status.BUSY
        assert call(table, tick) is None
        running.end()
        assert revoker.done(5)
    assert revoker.error is None
    assert table.live == {tick.vector: tick}
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


# Filter


def test_denied_calls_are_refused_until_they_are_allowed() -> None:
    table = VectorTable()
    bindings = [bind(table), bind(table, "sub"), bind(table, "add", "timer")]
    table.deny("adder", ["add"])
    assert [call(table, each) for each in bindings] == [Status.DENIED, None, None]
    table.deny("adder", ["add", "sub"])
    assert [call(table, each) for each in bindings] == [Status.DENIED, Status.DENIED, None]
    table.allow("adder", ["add"])
    assert [call(table, each) for each in bindings] == [None, Status.DENIED, None]
    table.allow("adder", ["add", "sub"])
    assert [call(table, each) for each in bindings] == [None, None, None]


def test_a_call_that_is_bound_anew_does_not_get_past_the_filter() -> None:
    table = VectorTable()
    bind(table)
    table.deny("adder", ["add"])
    table.revoke_owner("adder")
    fresh = bind(table)
    assert call(table, fresh) is Status.DENIED
    table.allow("adder", ["add"])
    assert call(table, fresh) is None


def test_a_filter_can_come_first() -> None:
    table = VectorTable()
    table.deny("adder", ["add"])
    assert call(table, bind(table)) is Status.DENIED


def test_deny_waits_for_the_calls_in_flight() -> None:
    table = VectorTable()
    add, sub = Call(table, bind(table)), Call(table, bind(table, "sub"))
    with waiting(table, lambda: table.deny("adder", ["add"])) as denier:
        assert call(table, add.binding) is Status.DENIED
        assert not denier.done(SOON)
        add.end()
        assert denier.done(5)
    assert denier.error is None
    with waiting(table, lambda: table.deny("adder", ["add", "sub"])) as denier:
        assert not denier.done(SOON)
        sub.end()


def test_deny_waits_for_a_revoked_call_too() -> None:
    table = VectorTable()
    running = Call(table, bind(table))
    with pytest.raises(DrainTimeout):
        table.revoke(running.binding, timeout=0)
    with pytest.raises(DrainTimeout):
        table.deny("adder", ["add"], timeout=0)
    running.end()


def test_deny_waits_for_nothing_else() -> None:
    table = VectorTable()
    bind(table)
    others = [Call(table, bind(table, "sub")), Call(table, bind(table, "add", "timer"))]
    for owner, name in (("adder", "sub"), ("timer", "add")):
        with pytest.raises(DrainTimeout):
            table.deny(owner, [name], timeout=0)
    table.deny("adder", ["add"], timeout=0)
    for each in others:
        each.end()


def test_deny_can_time_out() -> None:
    table = VectorTable()
    running = Call(table, bind(table))
    with pytest.raises(DrainTimeout, match=r"Denied adder\.add, but after 0\.01 s calls still run"):
        table.deny("adder", ["add"], timeout=0.01)
    assert call(table, running.binding) is Status.DENIED
    running.end()


def test_a_handler_may_deny_its_own_call() -> None:
    table = VectorTable()
    binding = bind(table)
    assert call(table, binding, lambda: table.deny("adder", ["add"], timeout=0)) is None
    assert call(table, binding) is Status.DENIED


def test_allow_ends_the_wait_of_deny() -> None:
    table = VectorTable()
    running = Call(table, bind(table))
    with waiting(table, lambda: table.deny("adder", ["add"])) as denier:
        table.allow("adder", ["add"])
        assert call(table, running.binding) is None  # Any call that leaves wakes the waiter.
        assert denier.done(5)
    running.end()


def test_revoked_and_draining_are_stronger_than_denied_and_allowed() -> None:
    table = VectorTable()
    running = Call(table, bind(table))
    with waiting(table, lambda: table.revoke(running.binding)):
        with pytest.raises(DrainTimeout):
            table.deny("adder", ["add"], timeout=0)
        assert call(table, running.binding) is Status.BUSY
        table.allow("adder", ["add"])
        assert call(table, running.binding) is Status.BUSY
        running.end()
    table.deny("adder", ["add"])
    table.allow("adder", ["add"])
    assert call(table, running.binding) is Status.REVOKED


def test_a_denied_call_can_be_revoked() -> None:
    table = VectorTable()
    binding = bind(table)
    table.deny("adder", ["add"])
    table.revoke(binding)
    assert call(table, binding) is Status.REVOKED


def test_a_forgotten_owner_leaves_no_filter_and_no_quota() -> None:
    table = VectorTable()
    for owner in ("adder", "timer"):
        table.deny(owner, ["add"])
        table.limit(owner, "add", in_flight=1)
    table.forget("adder")
    binding, kept = bind(table), bind(table, "add", "timer")
    assert call(table, binding) is None
    assert binding.quota is None
    assert call(table, kept) is Status.DENIED
    assert kept.quota is not None


# Quotas and counts


def test_a_quota_is_the_calls_whatever_vector_it_has() -> None:
    table = VectorTable(clock=lambda: 0.0)
    old, other = bind(table), bind(table, "sub")
    table.limit("adder", "add", per_second=2)
    quota = old.quota
    assert quota is not None
    assert quota.take()
    table.revoke(old)
    fresh = bind(table)
    assert fresh.quota is quota
    assert other.quota is None
    assert [quota.take() for _ in range(2)] == [True, False]
    table.limit("adder", "add", per_second=50)
    assert fresh.quota is quota
    assert not quota.take()  # It goes on counting.
    table.limit("adder", "add")
    assert fresh.quota is None


def test_a_bad_quota_is_refused_and_changes_nothing() -> None:
    table = VectorTable()
    binding = bind(table)
    table.limit("adder", "add", in_flight=1)
    with pytest.raises(VectorError, match="in_flight must be 1 or more"):
        table.limit("adder", "add", in_flight=0)
    assert binding.quota is not None
    assert [binding.quota.take(), binding.quota.take()] == [True, False]


def test_answers_are_counted_by_status() -> None:
    table = VectorTable()
    binding = bind(table)
    assert (binding.calls.value, binding.refused, binding.errors) == (0, {}, {})
    call(table, binding)
    for status in (Status.BAD_COUNT, Status.BAD_COUNT, Status.DEVICE_ERROR, Status.TIMED_OUT):
        binding.note(status)
    table.deny("adder", ["add"])
    call(table, binding)
    assert binding.calls.value == 1  # Whoever answers the others counts them.
    assert binding.refused == {Status.BAD_COUNT: 2}
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
