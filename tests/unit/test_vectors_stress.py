# SPDX-License-Identifier: MIT
"""Many callers against one hand that revokes, binds again, denies and allows, all the time.

Every handler checks, when it begins and before it ends, that it may still run: the hand marks a
call as over the moment that `revoke` or `deny` has returned. The interpreter is made to switch
threads as often as it can, so that every order of the two sides' steps comes up.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from itertools import cycle
from queue import Queue

import pytest

from callgate.errors import DrainTimeout
from callgate.gate.abi import Status
from callgate.gate.vectors import Abandoned, Binding, VectorTable

SECONDS = 0.5
TURNS = 10
"""What each hand does at least, however slow the machine is."""
CALLERS = 5
HAND = CALLERS
"""The number of a hand that calls, too."""


@pytest.fixture(autouse=True)
def hurried() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


class Target:
    """What a binding leads to: a handler that knows whether it may run."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.over = False
        self.denied = False
        self.runs = [0] * (CALLERS + 1)

    def handle(self, caller: int, vector: int, owner_of: dict[int, str]) -> None:
        self.check("began")
        assert owner_of[vector] == self.owner, "a stale vector reached a new owner"
        time.sleep(0)
        self.runs[caller] += 1
        self.check("still ran")

    def check(self, what: str) -> None:
        assert not self.over, f"a call {what} after revoke had returned"
        assert not self.denied, f"a call {what} after deny had returned"


class Host:
    """A table with one call for each owner, the callers, and what they were answered."""

    def __init__(self, owners: list[str]) -> None:
        self.table = VectorTable()
        self.owner_of: dict[int, str] = {}
        self.bindings: list[Binding] = []
        self.targets: list[Target] = []
        self.current: dict[str, Binding] = {}
        self.answers: list[Tally[Status]] = [Tally() for _ in range(CALLERS + 1)]
        self.stop = threading.Event()
        self.errors: list[BaseException] = []
        for owner in owners:
            self.bind(owner)

    def bind(self, owner: str) -> Binding:
        target = Target(owner)
        binding = self.table.bind(owner, "add", 1, target)
        assert binding.vector not in self.owner_of
        self.publish(binding, target)
        return binding

    def publish(self, binding: Binding, target: Target) -> None:
        self.owner_of[binding.vector] = target.owner
        self.targets.append(target)
        self.bindings.append(binding)
        self.current[target.owner] = binding

    def run(self, *acts: Callable[[], None]) -> None:
        """Run the callers, and each of `acts` again and again, for a while."""
        turns = Tally[Callable[[], None]]()

        def repeat(act: Callable[[], None]) -> None:
            try:
                while not self.stop.is_set():
                    act()
                    turns[act] += 1
            except BaseException as error:
                self.errors.append(error)
                self.stop.set()

        callers = [Caller(self, number) for number in range(CALLERS)]
        every = [*(caller.call for caller in callers), *acts]
        threads = [threading.Thread(target=repeat, args=(act,), daemon=True) for act in every]
        start = time.monotonic()
        for thread in threads:
            thread.start()
        while not self.stop.wait(SECONDS):
            if all(turns[act] >= TURNS for act in every):
                break
            assert time.monotonic() - start < 30, "a wake-up was lost"
        self.stop.set()
        for thread in threads:
            thread.join(10)
        if self.errors:
            raise self.errors[0]
        assert not any(thread.is_alive() for thread in threads), "a wake-up was lost"
        self.check_the_books()

    def check_the_books(self) -> None:
        """Every call was answered once, and each answer is in the counts."""
        answers = sum(self.answers, Tally())
        refused: Tally[Status] = Tally()
        for binding in self.bindings:
            refused.update(binding.refused)
        ran = sum(sum(target.runs) for target in self.targets)
        assert answers[Status.OK] == ran
        assert answers[Status.OK] == sum(binding.calls.value for binding in self.bindings)
        assert {status: n for status, n in answers.items() if status is not Status.OK} == refused
        assert self.table.drains == 0


class Caller:
    """Calls one of the owners, by its present vector or by one that it remembers."""

    def __init__(self, host: Host, number: int) -> None:
        self.host = host
        self.number = number
        self.slot = host.table.slot()
        self.random = random.Random(number)
        self.remembered = list(host.current.values())

    def call(self) -> None:
        host, table, slot = self.host, self.host.table, self.slot
        if self.random.random() < 0.8:
            vector = self.random.choice(list(host.current.values())).vector
        else:
            vector = self.random.choice(self.remembered).vector
        binding = table.live.get(vector)
        if binding is None:
            assert table.judge(vector) is Status.REVOKED
            return
        if self.random.random() < 0.1:
            self.remembered[self.random.randrange(len(self.remembered))] = binding
        status = table.enter(slot, binding)
        if status is None:
            try:
                binding.target.handle(self.number, vector, host.owner_of)
            finally:
                table.leave(slot)
        host.answers[self.number][Status.OK if status is None else status] += 1


def test_nothing_runs_after_revoke_and_no_stale_vector_finds_a_new_owner() -> None:
    host = Host(["adder", "timer"])
    owners = cycle(["adder", "timer"])

    def revoke() -> None:
        owner = next(owners)
        old = host.current[owner]
        host.table.revoke(old)
        old.target.over = True
        assert host.table.judge(old.vector) is Status.REVOKED
        host.bind(owner)

    host.run(revoke)


def test_nothing_runs_between_deny_and_allow() -> None:
    host = Host(["adder", "timer"])
    names = cycle(["add", None])

    def deny() -> None:
        name = next(names)
        host.table.deny("adder", name)
        host.current["adder"].target.denied = True
        time.sleep(0)
        host.current["adder"].target.denied = False
        host.table.allow("adder", name)

    host.run(deny)


def test_three_hands_at_once() -> None:
    """One resets, one denies, and one changes quotas."""
    host = Host(["adder", "timer"])
    limits = cycle([1, 2, 3, None])

    def reset() -> None:
        old = host.current["adder"]
        host.table.revoke_owner("adder")
        old.target.over = True
        host.bind("adder")

    def deny() -> None:
        host.table.deny("timer")
        host.current["timer"].target.denied = True
        time.sleep(0)
        host.current["timer"].target.denied = False
        host.table.allow("timer")

    def limit() -> None:
        host.table.limit("adder", "add", in_flight=next(limits))
        time.sleep(0.001)

    host.run(reset, deny, limit)


def test_handlers_that_were_given_up_are_waited_for() -> None:
    host = Host(["adder"])
    slot = host.table.slot()
    given_up: Queue[tuple[Abandoned, Target]] = Queue(3)

    def give_up() -> None:
        """Call, and leave the handler's end to the other hand."""
        time.sleep(0)
        if given_up.full():
            return
        binding = host.current["adder"]
        status = host.table.enter(slot, binding)
        host.answers[HAND][Status.OK if status is None else status] += 1
        if status is None:
            target: Target = binding.target
            target.check("began")
            target.runs[HAND] += 1
            given_up.put((host.table.abandon(slot), target))

    def settle() -> None:
        time.sleep(0)
        if not given_up.empty():
            call, target = given_up.get()
            target.check("still ran")
            host.table.settle(call)

    def revoke() -> None:
        old = host.current["adder"]
        while not host.stop.is_set():  # Who settles stops, too.
            try:
                host.table.revoke(old, timeout=0.2)
            except DrainTimeout:
                continue
            old.target.over = True
            host.bind("adder")
            break

    host.run(give_up, settle, revoke)
