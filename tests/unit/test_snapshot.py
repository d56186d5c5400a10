# SPDX-License-Identifier: MIT
"""Snapshots of the vector table: no vector is issued twice, whatever is restored into what."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from callgate.call import CallRefused
from callgate.errors import VectorError, VectorsExhausted
from callgate.gate import snapshot
from callgate.gate.abi import Status
from callgate.gate.vectors import Binding, VectorTable


def bind(table: VectorTable, name: str = "add", owner: str = "adder") -> Binding:
    return table.bind(owner, name, 0x51617, None)


def bind_all(table: VectorTable) -> list[int]:
    """Every vector that can still be issued, each revoked before the next."""
    vectors: list[int] = []
    while True:
        try:
            binding = bind(table, "more")
        except VectorsExhausted:
            assert len(set(vectors)) == len(vectors)
            return vectors
        vectors.append(binding.vector)
        table.revoke(binding)


def rebind(table: VectorTable, owner: str = "adder") -> list[Binding]:
    """What a reset of a device does."""
    old = [each for each in table.live.values() if each.owner == owner]
    table.revoke_owner(owner)
    return [table.bind(owner, each.name, each.signature, None) for each in old]


def call(table: VectorTable, binding: Binding) -> Status | None:
    """What a call is refused with; None if it was let in."""
    try:
        table.slot().run(binding, None, lambda values, payload: None, (), None)
    except CallRefused as refused:
        return refused.status
    return None


def through_json(table: VectorTable) -> Any:
    return json.loads(json.dumps(snapshot.state(table)))


def test_a_fresh_table_continues_where_the_snapshot_was_taken() -> None:
    table = VectorTable()
    add, sub = table.bind("adder", "add", 1, None), table.bind("adder", "sub", 2, None)
    tick = table.bind("timer", "tick", 3, None)
    gone = bind(table, "gone")
    others = [bind(table, "gone", "scrap") for _ in range(4)]
    table.revoke(gone)
    add, sub = rebind(table)
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
    snapshot.restore(fresh, state)

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
    snapshot.restore(fresh, state)
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
        snapshot.restore(table, state)
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
        snapshot.restore(other, state)
        assert binding.vector == vector
        [binding] = rebind(other)
        assert binding.vector not in issued
        issued.add(binding.vector)


def test_a_snapshot_of_a_restored_table_knows_what_was_issued_before() -> None:
    tables = [VectorTable(seed=seed) for seed in range(4)]
    bindings = [bind(table) for table in tables]
    interim = [binding.vector for binding in bindings]
    for table, after in pairwise(tables):
        snapshot.restore(after, through_json(table))
    assert bindings[3].vector == interim[0]
    assert {tables[3].judge(vector) for vector in interim[1:]} == {Status.REVOKED}


def test_going_back_and_forth_between_snapshots_forgets_nothing() -> None:
    table, other = VectorTable(seed=1), VectorTable(seed=2)
    bind(table)
    there = through_json(table)
    bind(other)
    here = through_json(other)
    snapshot.restore(other, there)
    there_from_here = through_json(other)
    issued = set()
    for _ in range(3):
        for state in (here, there_from_here):
            snapshot.restore(other, state)
            [binding] = rebind(other)
            assert binding.vector not in issued
            issued.add(binding.vector)
    other.revoke(binding)
    assert {other.judge(vector) for vector in issued} == {Status.REVOKED}


def test_a_binding_that_drains_counts_as_revoked_in_a_snapshot() -> None:
    table = VectorTable(seed=1)
    going, kept = bind(table), bind(table, "sub")
    states: list[Any] = []

    def handler(values: tuple[int, ...], payload: memoryview | None) -> None:
        """It runs while another thread drains it."""
        revoking = threading.Thread(target=table.revoke, args=(going,))
        revoking.start()
        while not table.drains:
            time.sleep(0.001)
        states.append(through_json(table))

    table.slot().run(going, None, handler, (), None)
    (state,) = states
    assert [each["name"] for each in state["live"]] == ["sub"]
    fresh = VectorTable(seed=2)
    bind(fresh, "sub")
    snapshot.restore(fresh, state)
    assert fresh.judge(going.vector) is Status.REVOKED
    assert kept.vector in fresh.live


def test_filter_and_quotas_are_not_restored_but_stay() -> None:
    table = VectorTable()
    bind(table)
    state = through_json(table)
    fresh = VectorTable()
    fresh.deny("adder", ["add"])
    fresh.limit("adder", "add", in_flight=1)
    binding = bind(fresh)
    snapshot.restore(fresh, state)
    assert call(fresh, binding) is Status.DENIED
    fresh.allow("adder", ["add"])
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
        snapshot.restore(table, state)
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
        snapshot.restore(table, state)
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
        rebind(other)
    bind(other)
    before = through_json(other)
    with pytest.raises(VectorError, match="restore into a new machine"):
        snapshot.restore(other, state)
    assert through_json(other) == before


def test_owners_of_one_name_cannot_be_told_apart() -> None:
    class Device:
        name = "adder"

    table = VectorTable()
    table.bind(Device(), "add", 1, None)
    table.bind(Device(), "add", 1, None)
    with pytest.raises(VectorError, match="an owner name for each device"):
        snapshot.state(table)


def test_a_table_with_calls_in_flight_is_not_restored() -> None:
    table = VectorTable()
    state = through_json(table)

    def handler(values: tuple[int, ...], payload: memoryview | None) -> None:
        with pytest.raises(VectorError, match="must be at rest"):
            snapshot.restore(table, state)

    table.slot().run(bind(table), None, handler, (), None)
    table.revoke_owner("adder")
    snapshot.restore(table, state)
