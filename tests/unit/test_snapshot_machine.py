# SPDX-License-Identifier: MIT
"""Snapshots of the vector table against a model of three sets: issued, live and denied.

The table is tiny, so that indices wrap, retire and run out within a few steps, and every number
that could be a vector is judged after every step. Gates are in test_gate_machine.py.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from callgate.call import CallRefused
from callgate.errors import VectorError, VectorsExhausted
from callgate.gate import snapshot
from callgate.gate.abi import Status
from callgate.gate.vectors import Binding, VectorTable

pytestmark = pytest.mark.uncovered

INDEX_BITS, TAG_BITS = 3, 2
INDICES = (1 << INDEX_BITS) - 1
ALL = range(1 << TAG_BITS, 1 << INDEX_BITS + TAG_BITS)
"""Every number that can be a vector."""

Name = tuple[str, str]
NAMES: list[Name] = [(owner, name) for owner in ("adder", "timer") for name in "abc"]
names = st.sampled_from(NAMES)
owners = st.sampled_from(["adder", "timer"])
seeds = st.integers(0, 99)


@dataclass
class Snapshot:
    """What a table gave out, and the model's side of it."""

    state: Any
    vectors: dict[Name, int]
    issued_by: dict[str, set[int]]
    passed_over: set[int]


class Vectors(RuleBasedStateMachine):
    @initialize(seed=seeds)
    def begin(self, seed: int) -> None:
        self.table = self.new(seed)
        self.slot = self.table.slot()
        # By the key under which a number was drawn, which a restored table takes over.
        self.issued_by: dict[str, set[int]] = defaultdict(set)
        self.live: dict[Name, tuple[int, Binding]] = {}
        self.stale: list[Binding] = []
        self.denied: set[Name] = set()
        # Passing over a number that another key has issued spends it under this key as well.
        self.passed_over: set[int] = set()
        self.snapshots: list[Snapshot] = []

    def new(self, seed: int) -> VectorTable:
        return VectorTable(seed=seed, index_bits=INDEX_BITS, tag_bits=TAG_BITS)

    @property
    def issued(self) -> set[int]:
        return set().union(*self.issued_by.values())

    @property
    def key(self) -> str:
        return str(snapshot.state(self.table)["key"])

    def spent(self) -> set[int]:
        """What is revoked under the present key."""
        return {vector for vector in ALL if self.table.numbering.own(vector)}

    def can_bind(self) -> bool:
        bound = {vector >> TAG_BITS for vector, _ in self.live.values()}
        return any(each not in self.issued and each >> TAG_BITS not in bound for each in ALL)

    def record(self, name: Name, binding: Binding) -> None:
        assert (binding.owner, binding.name) == name
        assert binding.vector in ALL
        assert binding.vector not in self.issued
        self.issued_by[self.key].add(binding.vector)
        self.live[name] = binding.vector, binding

    # What the host does

    @rule(name=names)
    def bind(self, name: Name) -> None:
        if name in self.live:
            return
        if self.can_bind():
            before = self.spent()
            binding = self.table.bind(*name, signature=1, target=None)
            self.passed_over |= self.spent() - before
            assert self.passed_over <= self.issued
            self.record(name, binding)
        else:
            with pytest.raises(VectorsExhausted):
                self.table.bind(*name, signature=1, target=None)

    @rule(name=names)
    def revoke(self, name: Name) -> None:
        if name in self.live:
            _, binding = self.live.pop(name)
            self.table.revoke(binding)
            self.stale.append(binding)

    @precondition(lambda self: self.stale)
    @rule(data=st.data())
    def revoke_again(self, data: st.DataObject) -> None:
        self.table.revoke(data.draw(st.sampled_from(self.stale)))

    @rule(owner=owners)
    def revoke_owner(self, owner: str) -> None:
        old = [name for name in NAMES if name[0] == owner and name in self.live]
        self.table.revoke_owner(owner)
        self.stale += [self.live.pop(name)[1] for name in old]

    @rule(owner=owners)
    def reset(self, owner: str) -> None:
        old = [name for name in NAMES if name[0] == owner and name in self.live]
        self.revoke_owner(owner)
        for name in old:
            self.bind(name)

    @rule(name=names)
    def deny(self, name: Name) -> None:
        self.table.deny(name[0], [name[1]])
        self.denied.add(name)

    @rule(name=names)
    def allow(self, name: Name) -> None:
        self.table.allow(name[0], [name[1]])
        self.denied.discard(name)

    # Snapshots

    @rule()
    def take_snapshot(self) -> None:
        state = json.loads(json.dumps(snapshot.state(self.table)))
        vectors = {name: vector for name, (vector, _) in self.live.items()}
        issued_by = {key: set(issued) for key, issued in self.issued_by.items()}
        self.snapshots.append(Snapshot(state, vectors, issued_by, set(self.passed_over)))

    def bind_for(self, wanted: dict[Name, int]) -> bool:
        """Make the live names those of the snapshot; False if there are not vectors enough."""
        for name in NAMES:
            if name in self.live and name not in wanted:
                self.revoke(name)
        for name in wanted:
            self.bind(name)
        return self.live.keys() == wanted.keys()

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def rewind(self, data: st.DataObject) -> None:
        """Restore into this table, which has issued vectors since, or comes from elsewhere."""
        taken = data.draw(st.sampled_from(self.snapshots))
        if self.bind_for(taken.vectors):
            self.restore(taken)

    @precondition(lambda self: self.snapshots)
    @rule(seed=st.integers(100, 199), data=st.data())
    def restore_elsewhere(self, seed: int, data: st.DataObject) -> None:
        """Restore into another machine, which has bound its calls already."""
        taken = data.draw(st.sampled_from(self.snapshots))
        self.table = self.new(seed)
        self.slot = self.table.slot()
        self.issued_by.clear()
        self.passed_over = set()
        self.live, self.stale, self.denied = {}, [], set()
        assert self.bind_for(dict(reversed(taken.vectors.items())))
        self.restore(taken)

    def restore(self, taken: Snapshot) -> None:
        key = taken.state["key"]
        vectors = taken.vectors
        before = snapshot.state(self.table)
        others = set().union(*(issued for k, issued in self.issued_by.items() if k != key))
        if (others | self.passed_over) & set(vectors.values()):
            # This table gave one of the vectors to another call, which only a tiny one does.
            with pytest.raises(VectorError, match="restore into a new machine"):
                snapshot.restore(self.table, taken.state)
            assert snapshot.state(self.table) == before
            return
        snapshot.restore(self.table, taken.state)
        for name, vector in vectors.items():
            self.live[name] = vector, self.live[name][1]
        self.passed_over |= taken.passed_over
        for each, issued in taken.issued_by.items():
            self.issued_by[each] |= issued

    # What must hold

    @invariant()
    def every_number_is_judged_right(self) -> None:
        live = dict(self.live.values())
        assert self.table.live == live
        issued = self.issued
        for vector in range(1 << INDEX_BITS + TAG_BITS + 1):
            if vector in live:
                assert self.table.judge(vector) is Status.BUSY
                assert self.table.live.get(vector) is live[vector]
                assert live[vector].vector == vector
            elif vector in issued:
                assert self.table.judge(vector) is Status.REVOKED
            else:
                assert self.table.judge(vector) is Status.NO_SUCH_VECTOR

    @invariant()
    def calls_are_answered_right(self) -> None:
        for name, (_, binding) in self.live.items():
            expected = Status.DENIED if name in self.denied else None
            assert self.call(binding) is expected
        for binding in self.stale:
            assert self.call(binding) is Status.REVOKED

    def call(self, binding: Binding) -> Status | None:
        try:
            self.slot.run(binding, None, lambda values, payload: None, (), None)
        except CallRefused as refused:
            return refused.status
        return None


TestVectors = Vectors.TestCase
TestVectors.settings = settings(max_examples=100, stateful_step_count=40)
