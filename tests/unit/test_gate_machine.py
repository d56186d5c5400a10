# SPDX-License-Identifier: MIT
"""Gates, frames and hypercalls of one machine against a model of what was issued, denied, limited.

The vector table is tiny, so that indices wrap, retire and run out within a few steps, and every
number that could be a vector is judged after every step. Threads are in test_gate_stress.py and,
step by step, in test_handshake.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from callgate.call import call, u64
from callgate.device import Device
from callgate.errors import VectorsExhausted
from callgate.gate.abi import (
    ENTRY,
    FRAME,
    HEADER,
    Feature,
    FrameFlag,
    FrameState,
    Status,
)
from callgate.gate.gate import Gate, Offer, Router
from callgate.gate.vectors import VectorTable

pytestmark = pytest.mark.uncovered

INDEX_BITS, TAG_BITS = 4, 2
INDICES = (1 << INDEX_BITS) - 1
ALL = range(1 << TAG_BITS, 1 << INDEX_BITS + TAG_BITS)
"""Every number that can be a vector."""
NAMES = ("add", "sub", "poke")
FREE, READY, RUNNING, DONE = FrameState
FRAMES = 3
NOTIFY, FEATURES = 0x04, 0x0C
NO_VECTOR = 0


class Adder(Device):
    """Each call tells that it ran, with what token."""

    id = 0x1AF4, 0x10F0
    frames = FRAMES

    def __init__(self) -> None:
        self.ran: list[tuple[str, int]] = []
        self.act: Callable[[], object] = lambda: None

    @call
    def add(self, token: u64) -> u64:
        self.ran.append(("add", token))
        self.act()
        return token + 1

    @call
    def sub(self, token: u64) -> u64:
        self.ran.append(("sub", token))
        self.act()
        return token - 1

    @call(one_way=True)
    def poke(self) -> None:
        self.ran.append(("poke", 0))
        self.act()


class Timer(Adder):
    """Another device, with calls of the same names."""

    id = 0x1AF4, 0x10F1


gates = st.sampled_from([0, 1])
names = st.sampled_from(NAMES)
frames = st.integers(0, FRAMES - 1)


class Gates(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 99))
    def begin(self, seed: int) -> None:
        self.table = VectorTable(
            seed=seed, index_bits=INDEX_BITS, tag_bits=TAG_BITS, clock=lambda: 0.0
        )
        self.devices = Adder(), Timer()
        self.issued: set[int] = set()
        self.live: dict[tuple[int, str], int] = {}
        self.denied: set[tuple[int, str]] = set()
        self.tokens: dict[tuple[int, str], int] = {}
        """Calls that each quota lets start still; no time passes."""
        self.posted: dict[tuple[int, int], Any] = {}
        """Frames that are READY: what they call and must be answered."""
        self.token = 0
        self.gates = [Gate(device, self.table, Offer()) for device in self.devices]
        self.slot = self.table.slot()
        self.router = Router(self.table)
        for number in (0, 1):
            self.accept(number)
            self.bound(number, (*NAMES, "(doorbell)"))

    def accept(self, number: int) -> None:
        self.gates[number].mmio_write(FEATURES, 4, int(Feature.NOTIFY))

    def bound(self, number: int, what: tuple[str, ...]) -> None:
        """The gate has bound these: each has a vector that nobody ever had."""
        header = HEADER.unpack(self.gates[number].ram)
        for name in what:
            vector = self.shown(number, name) if name in NAMES else header["doorbell_vector"]
            assert vector in ALL
            assert vector not in self.issued
            self.issued.add(vector)
            self.live[number, name] = vector

    def shown(self, number: int, name: str) -> int:
        """As the directory has it."""
        ram = self.gates[number].ram
        at = HEADER.unpack(ram)["directory_offset"] + NAMES.index(name) * ENTRY.size
        entry = ENTRY.unpack(ram[at : at + ENTRY.size])
        assert entry["name"].rstrip(b"\0").decode() == name
        vector: int = entry["vector"]
        return vector

    @property
    def left(self) -> int:
        """How many indices can be bound."""
        bound = {vector >> TAG_BITS for vector in self.live.values()}
        free = {vector >> TAG_BITS for vector in ALL if vector not in self.issued} - bound
        return len(free)

    # --- the host ---------------------------------------------------------------------------------

    @rule(number=gates, name=names)
    def bind(self, number: int, name: str) -> None:
        self.live.pop((number, name), None)
        if self.left:
            assert self.gates[number].bind(name) == self.shown(number, name)
            self.bound(number, (name,))
        else:
            try:
                self.gates[number].bind(name)
            except VectorsExhausted:
                return
            raise AssertionError("a vector was issued twice")

    @rule(number=gates, name=names)
    def revoke(self, number: int, name: str) -> None:
        self.gates[number].revoke(name)
        self.live.pop((number, name), None)

    @rule(number=gates)
    def reset(self, number: int) -> None:
        assume(self.left + len(NAMES) + 1 > 2 * (len(NAMES) + 1))  # It is not to end halfway.
        self.gates[number].reset()
        self.was_reset(number)

    def was_reset(self, number: int) -> None:
        for name in (*NAMES, "(doorbell)"):
            self.live.pop((number, name), None)
        self.bound(number, (*NAMES, "(doorbell)"))
        for index in range(FRAMES):
            if self.posted.pop((number, index), None) is not None:
                assert self.frame(number, index)["state"] == FREE
        self.accept(number)

    @rule(number=gates, chosen=st.sets(names))
    def deny(self, number: int, chosen: set[str]) -> None:
        self.gates[number].deny(*chosen)
        self.denied |= {(number, name) for name in chosen or NAMES}

    @rule(number=gates, chosen=st.sets(names))
    def allow(self, number: int, chosen: set[str]) -> None:
        self.gates[number].allow(*chosen)
        self.denied -= {(number, name) for name in chosen or NAMES}

    @rule(
        number=gates,
        name=names,
        calls=st.none() | st.integers(1, 2),
        at_once=st.none() | st.integers(1, 3),
    )
    def limit(self, number: int, name: str, calls: int | None, at_once: int | None) -> None:
        """One call runs at a time here, so `in_flight` is never reached."""
        self.gates[number].limit(name, per_second=calls, in_flight=at_once)
        if calls is None:
            self.tokens.pop((number, name), None)
        else:
            left = self.tokens.get((number, name), calls)
            self.tokens[number, name] = min(left, calls)

    # --- the guest --------------------------------------------------------------------------------

    def judge(self, vector: int, number: int | None) -> tuple[Status, tuple[int, str] | None]:
        """What a call is answered, through gate `number` or by registers, and what it runs."""
        found = next((key for key, each in self.live.items() if each == vector), None)
        if found is None:
            return (Status.REVOKED if vector in self.issued else Status.NO_SUCH_VECTOR), None
        if number is not None and (found[0] != number or found[1] == "(doorbell)"):
            return Status.NO_SUCH_VECTOR, None
        if found in self.denied:
            return Status.DENIED, None
        if found in self.tokens:
            if not self.tokens[found]:
                return Status.BUSY, None
            self.tokens[found] -= 1
        return Status.OK, found

    def expect(self, found: tuple[int, str] | None, token: int) -> None:
        """Exactly this ran since the last time, if anything."""
        ran = [(number, *each) for number in (0, 1) for each in self.devices[number].ran]
        for device in self.devices:
            device.ran.clear()
        if found is None:
            assert ran == []
        else:
            assert ran == [(*found, 0 if found[1] == "poke" else token)]

    def some_vector(self, data: st.DataObject) -> int:
        kind = data.draw(st.sampled_from(["live", "limited", "issued", "any"]))
        live = set(self.live.values())
        limited = {self.live[key] for key in self.tokens if key in self.live}
        pool = {"live": live, "limited": limited or live, "issued": self.issued, "any": set(ALL)}
        return data.draw(st.sampled_from(sorted(pool[kind])))

    def arguments(self, vector: int) -> tuple[int, ...]:
        self.token += 1
        pokes = {self.live.get((number, "poke")) for number in (0, 1)}
        return () if vector in pokes else (self.token,)

    @rule(data=st.data(), number=gates, index=frames, flags=st.sampled_from([0, 0, 1]))
    def post(self, data: st.DataObject, number: int, index: int, flags: int) -> None:
        """Fill a frame; nobody has rung."""
        if (number, index) not in self.posted:
            vector = self.some_vector(data)
            values = self.arguments(vector)
            gate = self.gates[number]
            base = gate.frames_offset + index * gate.frame_size
            gate.ram[base : base + FRAME.size] = FRAME.pack(
                state=READY,
                vector=vector,
                flags=flags,
                arguments=len(values),
                status=0x5A,
                values=(*values, *(0,) * (12 - len(values))),
            )
            self.posted[number, index] = vector, values, flags

    @rule(number=gates, index=frames, way=st.sampled_from(["mmio", "pio", "vector"]))
    def ring(self, number: int, index: int, way: str) -> None:
        gate = self.gates[number]
        if way == "mmio":
            gate.mmio_write(0, 4, index)
        elif way == "pio":
            gate.pio_write(0, 4, index)
        else:
            doorbell = self.live[number, "(doorbell)"]
            status, _ = self.router.call(self.slot, doorbell, lambda count: (index,))
            assert status is Status.OK
        self.answered(number, index)

    @rule(number=gates)
    def look(self, number: int) -> None:
        """Ring for all at once; handlers run frame by frame."""
        posted = [index for index in range(FRAMES) if (number, index) in self.posted]
        before = {index: self.judge(self.posted[number, index][0], number) for index in posted}
        self.gates[number].look()
        ran = self.devices[number].ran
        assert len(ran) == sum(status is Status.OK for status, _ in before.values())
        for index in posted:
            _, values, flags = self.posted.pop((number, index))
            status, found = before[index]
            self.check(number, index, status, found, values, flags)
            if found is not None:
                assert ran.pop(0) == (found[1], values[0] if values else 0)

    def answered(self, number: int, index: int) -> None:
        """The frame was rung: it is DONE if it was READY, and its call ran once or not at all."""
        if (number, index) not in self.posted:
            self.expect(None, 0)
            return
        vector, values, flags = self.posted.pop((number, index))
        status, found = self.judge(vector, number)
        self.check(number, index, status, found, values, flags)
        self.expect(found, values[0] if values else 0)

    def frame(self, number: int, index: int) -> dict[str, Any]:
        gate = self.gates[number]
        base = gate.frames_offset + index * gate.frame_size
        return FRAME.unpack(gate.ram[base : base + FRAME.size])

    def check(
        self,
        number: int,
        index: int,
        status: Status,
        found: tuple[int, str] | None,
        values: tuple[int, ...],
        flags: int,
    ) -> None:
        frame = self.frame(number, index)
        assert frame["state"] == DONE
        assert frame["status"] == status
        results = self.results(found, values)
        if flags & FrameFlag.ONE_WAY:
            results = ()
        assert frame["values"][: frame["results"]] == results

    @staticmethod
    def results(found: tuple[int, str] | None, values: tuple[int, ...]) -> tuple[int, ...]:
        match found:
            case (_, "add"):
                return (values[0] + 1,)
            case (_, "sub"):
                return (values[0] - 1,)
        return ()

    @rule(data=st.data())
    def hypercall(self, data: st.DataObject) -> None:
        vector = self.some_vector(data)
        doorbells = {self.live[number, "(doorbell)"]: number for number in (0, 1)}
        if vector in doorbells:
            return  # `ring` has that.
        values = self.arguments(vector)
        status, found = self.judge(vector, None)
        answer = self.router.call(self.slot, vector, lambda count: values[:count])
        assert answer == (status, self.results(found, values))
        self.expect(found, values[0] if values else 0)

    @rule(data=st.data(), number=gates)
    def notify(self, data: st.DataObject, number: int) -> None:
        vector = self.some_vector(data)
        found = None
        if vector == self.live.get((number, "poke")):
            _, found = self.judge(vector, number)
        self.gates[number].mmio_write(NOTIFY, 4, vector)
        self.expect(found, 0)

    @rule(
        number=gates,
        name=st.sampled_from(["add", "sub"]),
        index=frames,
        act=st.sampled_from(["revoke", "bind", "deny", "reset"]),
    )
    def a_handler_acts(self, number: int, name: str, index: int, act: str) -> None:
        """A handler takes its own call back while it runs; its call is answered all the same."""
        vector = self.live.get((number, name), NO_VECTOR)
        assume(vector and (number, index) not in self.posted and self.left > len(NAMES) + 1)
        self.token += 1
        token = self.token
        gate = self.gates[number]

        def handler() -> None:
            self.devices[number].act = lambda: None
            if act == "reset":
                gate.reset()
            else:
                getattr(gate, act)(name)

        self.devices[number].act = handler
        base = gate.frames_offset + index * gate.frame_size
        gate.ram[base : base + FRAME.size] = FRAME.pack(
            state=READY, vector=vector, arguments=1, values=(token, *(0,) * 11)
        )
        gate.mmio_write(0, 4, index)
        status, found = self.judge(vector, number)
        self.devices[number].act = lambda: None
        self.check(number, index, status, found, (token,), 0)
        self.expect(found, token)
        if found is None:
            return
        if act == "deny":
            self.denied.add((number, name))
        elif act == "reset":
            self.was_reset(number)
        else:
            del self.live[number, name]
            if act == "bind":
                self.bound(number, (name,))

    # --- what must hold ---------------------------------------------------------------------------

    @invariant()
    def every_number_is_judged_right(self) -> None:
        assert self.table.live.keys() == set(self.live.values())
        for vector in range(1 << INDEX_BITS + TAG_BITS + 1):
            if vector in self.table.live:
                assert self.table.judge(vector) is Status.BUSY
            elif vector in self.issued:
                assert self.table.judge(vector) is Status.REVOKED
            else:
                assert self.table.judge(vector) is Status.NO_SUCH_VECTOR

    @invariant()
    def the_directory_is_right_and_at_rest(self) -> None:
        for number in (0, 1):
            header = HEADER.unpack(self.gates[number].ram)
            assert header["generation"] % 2 == 0
            assert header["doorbell_vector"] == self.live[number, "(doorbell)"]
            for name in NAMES:
                assert self.shown(number, name) == self.live.get((number, name), NO_VECTOR)

    @invariant()
    def what_was_not_rung_waits(self) -> None:
        for number, index in self.posted:
            assert self.frame(number, index)["state"] == READY
        assert self.table.drains == 0
        assert not self.table.running()


TestGates = Gates.TestCase
TestGates.settings = settings(max_examples=50, stateful_step_count=40)
