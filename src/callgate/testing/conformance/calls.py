# SPDX-License-Identifier: MIT
"""Calls: every transport carries every call with the same result (docs/abi.md, 5 and 6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from callgate import errors
from callgate.driver.device import GateDevice
from callgate.driver.door import DmaMemory
from callgate.gate.abi import (
    HEADER,
    CallFlag,
    DoorbellRegister,
    Feature,
    FrameFlag,
    FrameState,
    Status,
    Transport,
)
from callgate.testing.conformance.devices import Broken, Bulk, Colour, Sums, Values
from callgate.testing.conformance.fixtures import MakeRig, every_platform
from callgate.testing.conformance.rig import ONES, Rig, Way

_TRIES = 200
_LINGER = 0.3
"""Seconds that a host watches on: a guest whose accesses come by its console is slow to look."""


def each_way(rig: Rig, device: GateDevice, name: str) -> list[Way]:
    """The ways that carry this call: the register form only where its slots fit."""
    fits = device.in_registers(device.calls[name])
    return [way for way in rig.ways(device) if way.framed or fits]


class CallTests:
    """Arguments in, results out, a status in any case."""

    @every_platform
    def test_each_transport_carries_a_call(self, make: MakeRig) -> None:
        """The same vector, the same result, and the handler ran once each time."""
        rig = make(Sums())
        sums = cast(Sums, rig.devices[0])
        device = rig.open(sums)
        vector = device.calls["add"].vector
        ways = rig.ways(device)
        for number, way in enumerate(ways):
            status, _, results = way.invoke(device, vector, (number, 40))
            assert (status, results[0]) == (Status.OK, number + 40), way
            assert sums.ran == number + 1, way
        offered = rig.machine.platform.offer.transports
        assert {way.transport for way in ways} == {each for each in Transport if offered & each}

    @every_platform
    def test_each_transport_carries_calls_by_name(self, make: MakeRig) -> None:
        """A driver that is told which transport to use, and one that chooses."""
        rig = make(Sums())
        device = rig.open(rig.devices[0])
        for transport in (None, *Transport):
            if transport is None or device.place.transports & transport:
                device.transport = transport
                assert [device.add(2, 40), device.call("add", 1, 1)] == [42, 2], transport

    @every_platform
    def test_each_width_of_numbers(self, make: MakeRig) -> None:
        """The ends of each type's range arrive, and come back."""
        rig = make(Values())
        values = cast(Values, rig.devices[0])
        device = rig.open(values)
        highest = (0xFF, 0xFFFF, 0xFFFF_FFFF, ONES)
        for transport in Transport:
            if not device.place.transports & transport:
                continue
            device.transport = transport
            for numbers in ((0, 0, 0, 0), highest, (0x12, 0x3456, 0x789A_BCDE, 1 << 63)):
                assert device.unsigned(*numbers) == numbers[::-1], transport
                assert values.seen == numbers
            lowest = [-(1 << bits - 1) for bits in (8, 16, 32, 64)]
            for signed in (lowest, [~each for each in lowest], [-1, -1, -1, -1]):
                assert device.signed(*signed) == tuple(signed[::-1]), transport
                assert values.seen == tuple(signed)

    @every_platform
    def test_booleans_and_enumerations(self, make: MakeRig) -> None:
        """The handler gets Python's own, the guest numbers."""
        rig = make(Values())
        values = cast(Values, rig.devices[0])
        device = rig.open(values)
        for transport in Transport:
            if not device.place.transports & transport:
                continue
            device.transport = transport
            for flag in (True, False):
                assert device.flag(flag) is flag
                assert values.seen is flag
            assert device.colour(40) == 40
            assert values.seen is Colour.BLUE
            device.nothing()
            assert not values.seen

    @every_platform
    def test_as_many_slots_as_a_frame_holds(self, make: MakeRig) -> None:
        """Twelve in, twelve out; registers do not carry that many."""
        rig = make(Values())
        device = rig.open(rig.devices[0])
        numbers = tuple(range(100, 112))
        entry = device.calls["most"]
        assert not entry.flags & CallFlag.REGISTERS
        for way in each_way(rig, device, "most"):
            assert way.invoke(device, entry.vector, numbers) == (Status.OK, 0, numbers[::-1]), way

    @every_platform
    def test_values_outside_their_type(self, make: MakeRig) -> None:
        """BAD_VALUE, and the handler does not run."""
        rig = make(Values())
        values = cast(Values, rig.devices[0])
        device = rig.open(values)
        wrong: dict[str, list[tuple[int, ...]]] = {
            "flag": [(2,), (ONES,)],
            "colour": [(0,), (3,), (41,), (ONES,), (1 << 32 | 1,)],
            "narrow": [(128,), (0xFF,), (ONES - 128,)],
            "unsigned": [(256, 0, 0, 0), (0, 1 << 16, 0, 0), (0, 0, 1 << 32, 0), (ONES, 0, 0, 0)],
            "signed": [(0, 1 << 15, 0, 0), (0, 0, 1 << 31, 0), (0, ONES - 0x8000, 0, 0)],
        }
        count = 0
        for name, cases in wrong.items():
            for way in each_way(rig, device, name):
                for slots in cases:
                    reply = way.invoke(device, device.calls[name].vector, slots)
                    assert reply[0] == Status.BAD_VALUE, (way, name, slots)
                    count += 1
        assert values.seen is None
        assert values.faults.counts == {"BAD_VALUE": count}

    def test_payloads(self, make: MakeRig) -> None:
        """Bytes of any length both ways, up to all that the frame holds."""
        rig = make(Bulk())
        device = rig.open(rig.devices[0])
        for length in (0, 1, 7, 8, 9, 100, 383, 384):
            data = bytes(number * 7 & 0xFF for number in range(length))
            assert device.reverse(data) == data[::-1]
        with pytest.raises(errors.BadFrame):
            device.reverse(bytes(385))

    @every_platform
    def test_several_payloads_of_one_call(self, make: MakeRig) -> None:
        """Each argument and each result has its place."""
        rig = make(Bulk())
        device = rig.open(rig.devices[0])
        for transport in Transport:
            if device.place.transports & transport:
                device.transport = transport
                assert device.cut(b"abc", b"defgh", 5) == (b"abcde", 8, b"fgh"), transport
                assert device.cut(b"", b"", 0) == (b"", 0, b""), transport

    @every_platform
    def test_buffers(self, make: MakeRig) -> None:
        """Guest memory that the handler reads, writes, or both."""
        rig = make(Bulk())
        device = rig.open(rig.devices[0])
        for transport in Transport:
            if not device.place.transports & transport:
                continue
            device.transport = transport
            data = bytearray(range(200))
            assert device.total(data) == sum(range(200)), transport
            assert device.invert(data) == 200, transport
            assert data == bytes(255 - number for number in range(200)), transport
            device.fill(data, 0x5A)
            assert data == b"\x5a" * 200, transport
            assert device.total(b"") == 0, transport

    def test_a_buffer_is_the_memory_itself(self, make: MakeRig) -> None:
        """The processor's own loads see what the handler wrote, without a copy."""
        rig = make(Bulk())
        device = rig.open(rig.devices[0])
        memory = rig.door.allocate(4096)
        rig.door.write(memory.gpa, 4, 0x0403_0201)
        assert device.total(memory) == 10
        device.fill(DmaMemory(memory.gpa + 8, 9), 0xEE)
        assert rig.door.read(memory.gpa + 8, 8) == 0xEEEE_EEEE_EEEE_EEEE
        assert rig.door.read(memory.gpa + 16, 8) == 0xEE
        assert rig.door.read(memory.gpa, 4) == 0x0403_0201

    @every_platform
    def test_a_device_refuses(self, make: MakeRig) -> None:
        """DEVICE_ERROR with the device's own code, which has 64 bits where the registers do."""
        rig = make(Sums())
        device = rig.open(rig.devices[0])
        for way in rig.ways(device):
            for code in (1, 0x8000_0000, 0xDEAD_BEEF_1234_5678):
                reply = way.invoke(device, device.calls["refuse"].vector, (code,))
                assert reply[:2] == (Status.DEVICE_ERROR, code), way
        with pytest.raises(errors.DeviceError) as caught:
            device.refuse(77)
        assert caught.value.code == 77

    @every_platform
    def test_a_handler_that_fails(self, make: MakeRig) -> None:
        """DEVICE_FAULT, for an exception and for a result that does not fit; the next one works."""
        rig = make(Broken())
        device = rig.open(rig.devices[0])
        for way in rig.ways(device):
            for name in ("fail", "misfit", "text"):
                reply = way.invoke(device, device.calls[name].vector)
                assert reply[0] == Status.DEVICE_FAULT, (way, name)
            assert way.invoke(device, device.calls["fine"].vector, (9,))[2][0] == 9, way

    @every_platform
    def test_a_vector_that_nobody_has(self, make: MakeRig) -> None:
        """NO_SUCH_VECTOR, also for numbers that no vector can have."""
        rig = make(Sums())
        device = rig.open(rig.devices[0])
        taken = {entry.vector for entry in device.calls.values()}
        unknown = next(number for number in range(0x0123_4567, 0x0223_4567) if number not in taken)
        for way in rig.ways(device):
            for vector in (0, unknown, 0x7FFF_FFFF, 0x8000_0001, 0xFFFF_FFFF):
                reply = way.invoke(device, vector, (1, 2))
                assert reply[0] == Status.NO_SUCH_VECTOR, (way, hex(vector))

    def test_a_wrong_count(self, make: MakeRig) -> None:
        """BAD_COUNT in a frame; registers have no count."""
        rig = make(Sums())
        sums = cast(Sums, rig.devices[0])
        device = rig.open(sums)
        vector = device.calls["add"].vector
        for count in (0, 1, 3, 12, 13, 255):
            reply = device.invoke(vector, (1, 2), count=count, transport=Transport.MMIO)
            assert reply == (Status.BAD_COUNT, 0, ()), count
        assert sums.ran == 0
        assert sums.faults.counts == {"BAD_COUNT": 6}

    @every_platform
    def test_registers_do_not_carry_a_payload(self, make: MakeRig) -> None:
        """BAD_FRAME for a call that needs a frame, and for more slots than the registers have."""
        rig = make(Bulk(), Values())
        assert rig.door.register_slots == rig.slots
        bulk, values = (rig.open(device) for device in rig.devices)
        way = Way(Transport.HYPERCALL, False)
        if way not in rig.ways(bulk):
            return
        vectors = [bulk.calls["reverse"].vector, values.calls["most"].vector]
        if rig.slots < 4:
            vectors.append(values.calls["unsigned"].vector)
        for vector in vectors:
            assert way.invoke(bulk, vector, (1,))[0] == Status.BAD_FRAME

    @every_platform
    def test_the_judgement_comes_in_order(self, make: MakeRig) -> None:
        """Frame, vector, filter, count, values, buffers: the first that is wrong is told."""
        rig = make(Bulk())
        bulk = rig.devices[0]
        device = rig.open(bulk)
        fill = device.calls["fill"].vector

        def status(vector: int, slots: tuple[int, ...], flags: int = 0) -> int:
            return device.invoke(vector, slots, transport=Transport.MMIO, frame_flags=flags)[0]

        assert status(0, (0,), 0x8000) == Status.BAD_FRAME
        assert status(0, (0,)) == Status.NO_SUCH_VECTOR
        bulk.gate.deny("fill")
        assert status(fill, (ONES,)) == Status.DENIED
        bulk.gate.allow("fill")
        assert status(fill, (ONES,)) == Status.BAD_COUNT
        assert status(fill, (ONES, 1, 256)) in (Status.BAD_VALUE, Status.BAD_BUFFER)
        assert status(fill, (ONES, 1, 1)) == Status.BAD_BUFFER

    def test_a_frame_keeps_what_is_the_drivers(self, make: MakeRig) -> None:
        """Vector, flags, count and cookie stay; results and status come; only DONE says so."""
        rig = make(Sums())
        device = rig.open(rig.devices[0])
        frame = device.frames[1]
        frame.write_quad(3, 0x1122_3344_5566_7788)
        vector = device.calls["add"].vector
        device.invoke(vector, (2, 40), frame=frame, transport=Transport.MMIO)
        assert frame.read_quad(0) == vector << 32 | FrameState.DONE
        assert frame.read_quad(1) == 1 << 24 | 2 << 16
        assert frame.read_quad(2) == 0
        assert frame.read_quad(3) == 0x1122_3344_5566_7788
        assert [frame.read_quad(number) for number in (4, 5)] == [42, 40]

    def test_a_frame_that_is_not_ready(self, make: MakeRig) -> None:
        """Ringing for it changes nothing."""
        rig = make(Sums())
        sums = cast(Sums, rig.devices[0])
        device = rig.open(sums)
        frame = device.frames[0]
        for state in (FrameState.FREE, FrameState.DONE, 77):
            frame.write_quad(0, device.calls["add"].vector << 32 | state)
            device.ring(0, Transport.MMIO)
            assert frame.state == state
        assert sums.ran == 0

    def test_frames_do_not_touch_each_other(self, make: MakeRig) -> None:
        """All are filled before any is rung; each gets its own answer, in any order."""
        rig = make(Sums())
        device = rig.open(rig.devices[0])
        vector = device.calls["add"].vector
        for frame in device.frames:
            frame.submit(vector, 2 << 16, (frame.index, 100))
        for index in (2, 0, 3, 1):
            device.ring(index, Transport.MMIO)
            device.wait(device.frames[index])
        assert [frame.reply()[2] for frame in device.frames] == [(100,), (101,), (102,), (103,)]

    def test_one_way(self, make: MakeRig) -> None:
        """A frame with the flag gets its status and no results; NOTIFY needs no frame at all, and
        its caller does not wait."""
        rig = make(Sums())
        sums = cast(Sums, rig.devices[0])
        device = rig.open(sums)
        reply = device.invoke(
            device.calls["add"].vector,
            (1, 2),
            frame_flags=FrameFlag.ONE_WAY,
            transport=Transport.MMIO,
        )
        assert reply == (Status.OK, 0, ())
        assert sums.ran == 1
        assert device.features & Feature.NOTIFY
        device.notify("poke")
        assert _until(rig, lambda: sums.ran == 2)
        assert device.place.pio_bar is not None
        device.function.write(
            device.place.pio_bar, DoorbellRegister.NOTIFY, 4, device.calls["poke"].vector
        )
        assert _until(rig, lambda: sums.ran == 3)
        assert device.poke() is None
        assert _until(rig, lambda: sums.ran == 4)

    @every_platform
    def test_a_hypercall_for_a_frame_that_is_not(self, make: MakeRig) -> None:
        """The doorbell vector answers BAD_VALUE for an index past the last frame."""
        rig = make(Sums())
        device = rig.open(rig.devices[0])
        if not device.place.transports & Transport.HYPERCALL:
            return
        for index in (4, 1000, 0xFFFF_FFFF):
            assert device.ring(index, Transport.HYPERCALL) == Status.BAD_VALUE
        assert device.ring(3, Transport.HYPERCALL) == Status.OK

    @every_platform
    def test_a_hypercall_needs_no_decoding(self, make: MakeRig) -> None:
        """The register form touches no BAR, so it works with all of them off."""
        rig = make(Sums())
        device = rig.open(rig.devices[0])
        if not device.place.transports & Transport.HYPERCALL:
            return
        device.function.set_config(0x04, 2, 0)
        way = Way(Transport.HYPERCALL, False)
        assert way.invoke(device, device.calls["add"].vector, (2, 40))[2][0] == 42

    def test_a_watched_frame_needs_no_doorbell(self, make: MakeRig) -> None:
        """While the header says so, storing READY is the whole trigger (docs/abi.md, 6.4)."""
        rig = make(Sums(), linger=_LINGER)
        device = rig.open(rig.devices[0])
        assert device.features & Feature.POLLED
        assert rig.door.read(device.base + HEADER.offset("watching"), 4) in (0, 1)
        frame, vector = device.frames[0], device.calls["add"].vector
        for _ in range(_TRIES):
            device.invoke(vector, (0, 0), transport=Transport.MMIO)  # The doorbell wakes the host.
            if not _until(rig, lambda: device.watched):
                continue
            frame.submit(vector, 2 << 16, (2, 40))
            if not device.watched:  # It had just stopped: then a doorbell is due.
                device.ring(0, Transport.MMIO)
                continue
            assert _until(rig, lambda: frame.state == FrameState.DONE)
            assert frame.reply() == (Status.OK, 0, (42,))
            return
        pytest.fail("the host must watch the frames for a while after a doorbell")


def _until(rig: Rig, condition: Callable[[], bool]) -> bool:
    for _ in range(_TRIES):
        if condition():
            return True
        rig.door.pause(0)
    return False
