# SPDX-License-Identifier: MIT
"""A call against the hand that takes it back, in every order of their steps (gate/vectors.py).

A step is a load or store of what the two share. Both run in threads of their own, but only one at a
time, up to its next step. All orders are tried in which neither is interrupted more than twice:
what goes wrong in this handshake goes wrong with two.

Where a frame's way is compiled its steps are one, but for those of the model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from callgate.call import call
from callgate.device import Device
from callgate.gate import vectors
from callgate.gate.abi import FRAME, Feature, FrameFlag, FrameState, Status
from callgate.gate.gate import Gate, Offer, Router
from callgate.gate.vectors import Binding, Slot, VectorTable

pytestmark = [pytest.mark.usefixtures("each_way"), pytest.mark.uncovered]

INTERRUPTIONS = 2


# --- one step at a time ---------------------------------------------------------------------------


class Actor:
    """A thread that runs while it is its turn."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.turn = threading.Semaphore(0)
        self.may_run: Callable[[], bool] = lambda: True
        self.done = False
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self.run, args=(act,), daemon=True)

    def run(self, act: Callable[[], None]) -> None:
        self.turn.acquire()
        try:
            act()
        except BaseException as error:
            self.error = error
        self.done = True
        STAGE.back.release()


class Stage:
    """Where actors take turns; what is not an actor's passes."""

    def __init__(self) -> None:
        self.actors: dict[int, Actor] = {}
        self.back = threading.Semaphore(0)

    def step(self, may_run: Callable[[], bool] = lambda: True) -> None:
        """Let another go first, at least until `may_run`."""
        actor = self.actors.get(threading.get_ident())
        if actor is not None:
            actor.may_run = may_run
            self.back.release()
            actor.turn.acquire()

    def play(
        self,
        acts: list[Callable[[], None]],
        script: list[int],
        begin: Callable[[list[Actor]], None],
    ) -> list[tuple[list[int], int]]:
        """Run them by the script, then without interruption; who could have had each turn, and who
        had it."""
        actors = [Actor(act) for act in acts]
        for actor in actors:
            actor.thread.start()
        begin(actors)
        self.actors = {actor.thread.ident or 0: actor for actor in actors}
        played: list[tuple[list[int], int]] = []
        last = 0
        while not all(actor.done for actor in actors):
            able = [n for n, each in enumerate(actors) if not each.done and each.may_run()]
            assert able, "a wake-up was lost: each waits for the other"
            if len(played) < len(script):
                last = script[len(played)]
                assert last in able
            elif last not in able:
                last = able[0]
            played.append((able, last))
            actors[last].turn.release()
            assert self.back.acquire(timeout=10)
        self.actors.clear()
        for actor in actors:
            if actor.error is not None:
                raise actor.error
        return played


STAGE = Stage()


def every_order(play: Callable[[list[int]], list[tuple[list[int], int]]]) -> int:
    """Play all scripts with few interruptions; how many there were."""
    scripts: list[list[int]] = [[]]
    count = 0
    while scripts:
        script = scripts.pop()
        played = play(script)
        count += 1
        taken = [who for _, who in played]
        for at in range(len(script), len(played)):
            for other in set(played[at][0]) - {taken[at]}:
                new = [*taken[:at], other]
                cut = sum(
                    after != before and before in able
                    for before, after, (able, _) in zip(new, new[1:], played[1:], strict=False)
                )
                if cut <= INTERRUPTIONS:
                    scripts.append(new)
    return count


# --- what they share, step by step ----------------------------------------------------------------


def stepped(name: str, kind: type) -> property:
    """The attribute of a class with slots, each load and store of it a step."""
    plain = vars(kind)[name]

    def load(self: object) -> Any:
        STAGE.step()
        return plain.__get__(self)

    def store(self: object, value: Any) -> None:
        STAGE.step()
        plain.__set__(self, value)

    return property(load, store)


class SteppedSlot(Slot):
    __slots__ = ()
    binding = stepped("binding", Slot)
    thread = stepped("thread", Slot)


class SteppedBinding(Binding):
    __slots__ = ()
    refusal = stepped("refusal", Binding)


class SteppedLock:
    """The table's lock, and the condition that goes with it."""

    def __init__(self) -> None:
        self.taken = False
        self.waiting: list[list[bool]] = []

    def acquire(self) -> None:
        STAGE.step(lambda: not self.taken)
        assert not self.taken
        self.taken = True

    def release(self) -> None:
        self.taken = False

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()

    def wait(self, timeout: float | None = None) -> None:
        awake = [False]
        self.waiting.append(awake)
        self.release()
        STAGE.step(lambda: awake[0])
        self.acquire()

    def notify_all(self) -> None:
        assert self.taken
        for awake in self.waiting:
            awake[0] = True
        self.waiting.clear()


class SteppedTable(VectorTable):
    __slots__ = ()
    drains = stepped("drains", VectorTable)

    def __init__(self) -> None:
        super().__init__()
        self.lock = self._left = SteppedLock()  # type: ignore[assignment]


# --- the calls ------------------------------------------------------------------------------------


class Model(Device):
    id = 0x1AF4, 0x10F0
    frames = 1

    def __init__(self) -> None:
        self.over = False
        self.ran = 0
        self.wrong: list[str] = []

    @call(one_way=True)
    def run(self) -> None:
        self.ran += 1
        if self.over:
            self.wrong.append("a call began after it was taken back")
        STAGE.step()
        if self.over:
            self.wrong.append("a call still ran after it was taken back")


class Play:
    """A gate, a guest's call by one of its ways, and a hand of the host's."""

    def __init__(self, way: str, hand: str) -> None:
        self.device = Model()
        self.table = SteppedTable()
        self.gate = Gate(self.device, self.table, Offer())
        self.router = Router(self.table)
        self.slot = self.table.slot()
        self.words = self.gate.ram.cast("I")
        self.quads = self.gate.ram.cast("Q")
        self.guest: Callable[[], None] = getattr(self, way)
        self.host: Callable[[], None] = getattr(self, hand)
        self.way = way
        self.status: Status | None = None
        self.seen: set[Status] = set()
        self.waited = 0
        for _ in range(2):  # So that every play has the same steps: a slot for NOTIFY is there.
            self([])

    def __call__(self, script: list[int]) -> list[tuple[list[int], int]]:
        self.gate.allow("run")
        self.gate.mmio_write(12, 4, int(Feature.NOTIFY))
        self.gate.limit("run", in_flight=1 if self.way == "limited" else None)
        self.vector = self.gate.bind("run")
        self.binding = self.gate.binding("run")
        self.device.over, self.device.ran = False, 0
        played = STAGE.play([self.guest, self.take_back], script, self.begin)
        assert self.device.wrong == []
        assert self.status is not None, "a call was not answered"
        assert self.device.ran == (self.status is Status.OK)
        assert self.table.drains == 0
        assert not self.table.running()
        assert self.guest_again() in (Status.DENIED, Status.REVOKED, Status.NO_SUCH_VECTOR)
        self.seen.add(self.status)
        self.waited += any(able == [0] for able, _ in played)
        return played

    def begin(self, actors: list[Actor]) -> None:
        """As if the host's thread had made the last call in each slot: its calls it does not wait
        for."""
        for reference in self.table._slots:
            slot = reference()
            assert slot is not None
            slot.thread = actors[1].thread.ident or 0

    def guest_again(self) -> Status:
        status, _ = self.router.call(self.slot, self.vector, lambda count: ())
        return status

    # The guest's ways

    def frame(self) -> None:
        self.fill(0)

    def unusual(self) -> None:
        self.fill(FrameFlag.ONE_WAY)

    def limited(self) -> None:
        self.fill(0)

    def fill(self, flags: int) -> None:
        base = self.gate.frames_offset
        self.quads[base // 8 + 1] = flags | 0x7F << 32
        self.quads[base // 8] = self.vector << 32 | FrameState.READY
        self.gate.mmio_write(0, 4, 0)
        frame = FRAME.unpack(self.gate.ram[base : base + FRAME.size])
        if frame["state"] == FrameState.DONE:
            self.status = Status(frame["status"])
        else:  # A reset came between.
            assert frame["state"] == FrameState.FREE
            self.status = Status.OK if self.device.ran else Status.REVOKED

    def hypercall(self) -> None:
        self.status, _ = self.router.call(self.slot, self.vector, lambda count: ())

    def notify(self) -> None:
        self.gate.mmio_write(4, 4, self.vector)
        self.status = Status.OK if self.device.ran else Status.REVOKED

    # The host's hands

    def take_back(self) -> None:
        self.host()
        self.device.over = True

    def revoke(self) -> None:
        self.gate.revoke("run")

    def deny(self) -> None:
        self.gate.deny("run")

    def reset(self) -> None:
        self.gate.reset()


@pytest.fixture(autouse=True)
def stepping(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(vectors, "Slot", SteppedSlot)
    monkeypatch.setattr(vectors, "Binding", SteppedBinding)
    yield
    STAGE.actors.clear()


@pytest.mark.parametrize("hand", ["revoke", "deny", "reset"])
@pytest.mark.parametrize("way", ["frame", "unusual", "limited", "hypercall", "notify"])
def test_a_call_is_not_run_after_it_was_taken_back_and_is_answered_once(
    way: str, hand: str
) -> None:
    play = Play(way, hand)
    count = every_order(play)
    assert Status.OK in play.seen
    assert len(play.seen) > 1
    assert play.waited > 0
    print(f"{way}, {hand}: {count} orders, {play.waited} in which the host waits, {play.seen}")
