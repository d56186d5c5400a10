# SPDX-License-Identifier: MIT
"""The host's hand on the calls while a guest makes them (docs/abi.md, section 7), and resets."""

from __future__ import annotations

import threading
from typing import cast

import pytest

from callgate import errors
from callgate.driver.pci import COMMAND
from callgate.gate.abi import FrameState, Status
from callgate.testing.conformance.devices import Broken, Held, Store, Sums
from callgate.testing.conformance.fixtures import MakeRig, every_platform
from callgate.testing.conformance.rig import Rig

_PATIENCE = 10
"""Seconds after which a thread of a test is given up."""
_TRIES = 100


def all_answer(rig: Rig, status: Status, vector: int, slots: tuple[int, ...] = (1,)) -> bool:
    """Whether this call is answered with the status, every way."""
    device = rig.open(rig.devices[0])
    answers = {str(way): way.invoke(device, vector, slots)[0] for way in rig.ways(device)}
    assert answers == dict.fromkeys(answers, status)
    return True


class ControlTests:
    """What `device.gate` promises holds at the guest's very next call."""

    @every_platform
    def test_a_revoked_vector(self, make: MakeRig) -> None:
        """REVOKED for ever, whatever is bound later; the directory shows the new one."""
        rig = make(Held())
        held = rig.devices[0]
        device = rig.open(held)
        first = device.calls["step"].vector
        held.gate.revoke("step")
        assert all_answer(rig, Status.REVOKED, first)
        device.refresh()
        assert device.calls["step"].vector == 0
        second = held.gate.bind("step")
        third = held.gate.bind("step")
        assert len({first, second, third}) == 3
        for vector in (first, second):
            assert all_answer(rig, Status.REVOKED, vector)
        assert all_answer(rig, Status.OK, third)
        device.refresh()
        assert device.calls["step"].vector == third

    @every_platform
    def test_a_driver_looks_up_anew(self, make: MakeRig) -> None:
        """By name, when its vector turns out to be revoked; not while there is none."""
        rig = make(Held())
        held = rig.devices[0]
        device, strict = rig.open(held), rig.open(held, relookup=False)
        assert device.step(1) == strict.step(1) - 1 == 1
        held.gate.bind("step")
        assert device.step(1) == 3
        for _ in range(2):
            with pytest.raises(errors.Revoked):
                strict.step(1)
        strict.refresh()
        assert strict.step(1) == 4
        held.gate.revoke("step")
        for _ in range(2):
            with pytest.raises(errors.Revoked):
                device.step(1)
        held.gate.bind("step")
        assert device.step(1) == 5

    def test_entries_keep_their_places(self, make: MakeRig) -> None:
        """A driver may remember where an entry is."""
        rig = make(Held())
        held = rig.devices[0]
        device = rig.open(held)
        before = list(device.calls)
        held.gate.revoke("step")
        held.gate.bind("other")
        device.refresh()
        assert list(device.calls) == before
        assert [entry.vector == 0 for entry in device.calls.values()].count(True) == 1

    @every_platform
    def test_a_handler_revokes_its_own_call(self, make: MakeRig) -> None:
        """This one is still answered, the next is not."""
        rig = make(Held())
        held = cast(Held, rig.devices[0])
        device = rig.open(held)
        held.revoke_inside = True
        for way in rig.ways(device):
            vector = held.gate.bind("step")
            status, _, results = way.invoke(device, vector, (1,))
            assert (status, results[0]) == (Status.OK, held.ran), way
            assert way.invoke(device, vector, (1,))[0] == Status.REVOKED, way

    @every_platform
    def test_revoke_waits_for_calls_in_flight(self, make: MakeRig) -> None:
        """When it returns, the handler has ended; the caller still gets its answer."""
        rig = make(Held())
        held = cast(Held, rig.devices[0])
        device = rig.open(held)
        for way in rig.ways(device):
            held.attach()
            vector = held.gate.bind("hold")
            ended: list[bool] = []

            def revoke(ended: list[bool] = ended) -> None:
                if held.entered.wait(_PATIENCE):
                    held.gate.revoke("hold", timeout=_PATIENCE)
                    ended.append(held.ended)

            thread = threading.Thread(target=revoke)
            thread.start()
            try:
                status, _, results = way.invoke(device, vector)
            finally:
                thread.join(_PATIENCE)
            assert (status, results[0]) == (Status.OK, 1), way
            assert ended == [True], way
            assert way.invoke(device, vector)[0] == Status.REVOKED, way

    def test_a_host_that_rebinds_while_the_guest_calls(self, make: MakeRig) -> None:
        """Every call of a driver that looks up anew gets an answer, and runs at most once."""
        rig = make(Held())
        held = cast(Held, rig.devices[0])
        device = rig.open(held)
        turns = threading.Semaphore(0)
        vectors = {device.calls["step"].vector}

        def rebind() -> None:
            for _ in range(6):
                if turns.acquire(timeout=_PATIENCE):
                    vectors.add(held.gate.bind("step"))

        thread = threading.Thread(target=rebind)
        thread.start()
        answered = 0
        for number in range(60):
            # The host goes on at a moment of its own, while the next calls are made.
            if number % 10 == 0:
                turns.release()
            try:
                device.step(1)
                answered += 1
            except (errors.Busy, errors.Revoked):
                pass
        thread.join(_PATIENCE)
        assert len(vectors) == 7
        assert answered == held.ran > 0
        assert device.step(1) == answered + 1

    @every_platform
    def test_deny_and_allow(self, make: MakeRig) -> None:
        """DENIED at once, and open again at once, with the same vector; others are left alone."""
        rig = make(Held())
        held = rig.devices[0]
        device = rig.open(held)
        step, other = device.calls["step"].vector, device.calls["other"].vector
        for _ in range(2):
            held.gate.deny("step")
            assert all_answer(rig, Status.DENIED, step)
            assert all_answer(rig, Status.OK, other, ())
            held.gate.allow("step")
            assert all_answer(rig, Status.OK, step)

    @every_platform
    def test_a_quota_of_calls(self, make: MakeRig) -> None:
        """BUSY beyond it, however the guest calls; time, or another quota, lets it go on."""
        now = [0.0]
        rig = make(Held(), clock=lambda: now[0])
        held = cast(Held, rig.devices[0])
        device = rig.open(held)
        vector = device.calls["step"].vector
        for way in rig.ways(device):
            now[0] += 10
            held.gate.limit("step", per_second=3)
            now[0] += 10
            answers = [way.invoke(device, vector, (1,))[0] for _ in range(10)]
            assert answers == [Status.OK] * 3 + [Status.BUSY] * 7, way
            now[0] += 1.01
            answers = [way.invoke(device, vector, (1,))[0] for _ in range(4)]
            assert answers == [Status.OK] * 3 + [Status.BUSY], way
            held.gate.limit("step")
            assert way.invoke(device, vector, (1,))[0] == Status.OK, way

    @every_platform
    def test_a_handler_that_takes_too_long(self, make: MakeRig) -> None:
        """TIMED_OUT, with the guest going on; calls work again as soon as it has been ended."""
        rig = make(Broken(), handler_timeout=0.02)
        broken = cast(Broken, rig.devices[0])
        device = rig.open(broken)
        try:
            for way in rig.ways(device):
                assert way.invoke(device, device.calls["spin"].vector)[0] == Status.TIMED_OUT, way
                fine = device.calls["fine"].vector
                answers = (way.invoke(device, fine, (7,))[0] for _ in range(_TRIES))
                assert Status.OK in answers, way
        finally:
            broken.give_up.set()

    def test_a_reset_revokes_everything(self, make: MakeRig) -> None:
        """Every call has a new vector, the old ones answer REVOKED; registers are as declared."""
        rig = make(Sums(), Store())
        sums, store = rig.devices
        device = rig.open(sums)
        old = [entry.vector for entry in device.calls.values()]
        function = rig.function(store)
        function.write(0, 0x04, 4, 1)
        rig.reset()
        function = rig.function(store)
        assert function.read(0, 0x04, 4) == 0x3333_3333
        for vector in old:
            assert all_answer(rig, Status.REVOKED, vector, ())
        device = rig.open(sums)
        new = [entry.vector for entry in device.calls.values()]
        assert not {*old} & {*new}
        assert device.add(2, 40) == 42

    def test_a_reset_frees_frames_and_forgets_features(self, make: MakeRig) -> None:
        """Whoever waited for a frame finds it FREE."""
        rig = make(Sums())
        sums = rig.devices[0]
        device = rig.open(sums)
        frame = device.frames[2]
        frame.submit(device.calls["add"].vector, 2 << 16, (1, 2))
        rig.machine.functions[0].reset()
        device.function.enable()
        rig.machine.bus.assign(
            memory=range(rig.machine.board.bars.base, rig.machine.board.bars.end),
            ports=range(rig.machine.board.ports.base, rig.machine.board.ports.end),
        )
        assert frame.state == FrameState.FREE
        doorbell = device.doorbell
        assert [rig.door.read(doorbell + at, 4) for at in (8, 12)] == [0, 0]
        assert device.call("add", 2, 40) == 42

    def test_after_a_reset_nothing_decodes(self, make: MakeRig) -> None:
        """A function that was reset waits for its driver."""
        rig = make(Store())
        function = rig.function(rig.devices[0])
        address = function.bar(0).address
        rig.machine.functions[0].reset()
        assert function.config(COMMAND, 2) == 0
        assert function.config(0x10, 4) == 0
        assert rig.door.read(address + 4, 4) == 0xFFFF_FFFF

    @every_platform
    def test_a_vector_of_another_device(self, make: MakeRig) -> None:
        """NO_SUCH_VECTOR through a frame; a hypercall reaches whoever has it."""
        rig = make(Sums(), Sums())
        first, second = (rig.open(device) for device in rig.devices)
        foreign = second.calls["add"].vector
        for way in rig.ways(first):
            expected = Status.NO_SUCH_VECTOR if way.framed else Status.OK
            assert way.invoke(first, foreign, (2, 40))[0] == expected, way
        rig.devices[1].gate.revoke("add")
        for way in rig.ways(first):
            assert way.invoke(first, foreign, (2, 40))[0] == Status.REVOKED, way
