# SPDX-License-Identifier: MIT
"""GateDevice: Python's values in and out, frames and buffers given back, vectors looked up anew."""

import enum
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate import errors
from callgate.call import BufferIn, BufferInOut, BufferOut, call, i8, i32, u8, u16, u64
from callgate.device import Device
from callgate.driver import open_device
from callgate.driver.device import GateDevice
from callgate.driver.door import DmaMemory
from callgate.driver.frame import Frame
from callgate.errors import NoAnswer, NotFound
from callgate.gate.abi import DoorbellRegister, Feature, FrameState, Status, Transport
from callgate.register import Bar
from callgate.testing import FakeGuest

ONES = (1 << 64) - 1


class Mode(enum.IntEnum):
    OFF = 0
    ON = 5


class Sample(Device):
    id = 0x1AF4, 0x10F0
    frames = 3
    frame_size = 512

    pokes = 0

    @call
    def add(self, a: u64, b: u64) -> u64:
        return (a + b) & ONES

    @call
    def narrow(self, a: u8) -> u8:
        return a

    @call
    def pair(self, a: i8, b: i32) -> tuple[i32, i8]:
        return b, a

    @call
    def truth(self, a: bool) -> bool:
        return not a

    @call
    def mode(self, a: Mode) -> Mode:
        return a

    @call
    def turn(self, data: bytes, tail: bytes) -> tuple[bytes, u16]:
        return (data + tail)[::-1], len(data)

    @call
    def total(self, data: BufferIn) -> u64:
        return sum(data.view)

    @call
    def count(self, data: BufferOut) -> None:
        data.view[:] = bytes(range(len(data)))

    @call
    def invert(self, data: BufferInOut) -> None:
        data.view[:] = bytes(byte ^ 0xFF for byte in data.view)

    @call
    def refuse(self, code: u64) -> None:
        raise errors.DeviceError(code)

    @call
    def fail(self) -> None:
        raise RuntimeError

    @call(one_way=True)
    def poke(self) -> None:
        self.pokes += 1

    @call(name="timeout")
    def timeout_call(self) -> u8:
        return 77

    @call(name="place")
    def place_call(self) -> u8:
        return 78


@pytest.fixture
def sample() -> Sample:
    return Sample()


@pytest.fixture
def guest(sample: Sample) -> Iterator[FakeGuest]:
    with FakeGuest(sample) as guest:
        yield guest


@pytest.fixture(params=["hypercall", "pio", "mmio", "unmapped", "apart"])
def device(request: pytest.FixtureRequest, guest: FakeGuest) -> GateDevice:
    """By each transport, through a door that maps nothing, and by the quick way of one whose
    devices are in another process."""
    name: str = request.param
    if name == "apart":
        guest.door.apart = True
        return guest.open("sample", transport=Transport.MMIO)
    if name == "unmapped":
        guest.door.map = lambda address, length: None  # type: ignore[method-assign]
        return guest.open("sample", transport=Transport.MMIO)
    return guest.open("sample", transport=Transport[name.upper()])


@pytest.mark.parametrize("wrong", [1 << 64, -(1 << 63) - 1, 1 << 200], ids=hex)
def test_a_number_must_fit_64_bits(device: GateDevice, wrong: int) -> None:
    for arguments, place in ((wrong, 0), 1), ((0, wrong), 2):
        sentence = f"argument {place}, u64, must be -2**63 to 2**64 - 1, not {wrong:#x}"
        with pytest.raises(ValueError, match=re.escape(f"add(u64,u64)->u64: {sentence}")):
            device.add(*arguments)
    with pytest.raises(ValueError, match=r"argument 1, i8, must be -2\*\*63"):
        device.pair(wrong, 0)
    assert device.add(2, 40) == 42


@pytest.mark.parametrize("wrong", ["x", 1.0, None, b"x"], ids=repr)
def test_what_is_no_number(device: GateDevice, wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"argument 2, u64, must be a number, not {wrong!r}"):
        device.add(1, wrong)
    with pytest.raises(TypeError, match=f"argument 1, bool, must be a number, not {wrong!r}"):
        device.truth(wrong)
    assert device.add(2, 40) == 42


def test_numbers(device: GateDevice) -> None:
    assert device.add(2, 40) == 42
    assert device.add(ONES, 2) == 1
    assert device.add(-1, 0) == ONES, "modulo 2^64"
    assert device.add(-(1 << 63), ONES) == (1 << 63) - 1
    assert device.pair(-128, 2**31 - 1) == (2**31 - 1, -128)
    assert device.truth(True) is False
    assert device.truth(0) is True
    assert device.mode(Mode.ON) == Mode.ON


def test_bytes(device: GateDevice) -> None:
    assert device.turn(b"abc", b"") == (b"cba", 3)
    assert device.turn(b"", b"xyz") == (b"zyx", 0)
    assert device.turn(bytes(9), b"\1") == (b"\1" + bytes(9), 9)
    assert device.turn(bytearray(376), memoryview(b"12345678")) == (b"87654321" + bytes(376), 376)


def test_what_is_no_bytes(device: GateDevice) -> None:
    for wrong in ("text", 5, [1, 2]):
        sentence = f"argument 2 must be bytes, not {wrong!r}"
        with pytest.raises(TypeError, match=re.escape(sentence)):
            device.turn(b"", wrong)


def test_bytes_that_fill_the_payload_to_its_last_byte(device: GateDevice) -> None:
    data = bytes(range(256)) + bytes(127)
    assert device.turn(data, b"") == (data[::-1], 383)
    with pytest.raises(errors.BadFrame, match="at most 384 bytes"):
        device.turn(bytes(385), b"")
    with pytest.raises(errors.BadFrame, match="at most 384 bytes"):
        device.turn(bytes(377), b"12345678")


def test_buffers(device: GateDevice) -> None:
    data = bytearray(b"\1\2\3")
    assert device.total(data) == device.total(bytes(data)) == 6
    assert device.count(data) is None
    assert data == b"\0\1\2"
    device.invert(data)
    assert data == b"\xff\xfe\xfd"
    assert device.total(b"") == 0


def test_a_buffer_of_the_drivers_own(device: GateDevice) -> None:
    memory = device.function.allocate(16)
    device.count(DmaMemory(memory.gpa + 4, 4))
    assert device.function.door.load(memory.gpa, 8) == b"\0\0\0\0\0\1\2\3"


def test_what_is_only_written_starts_empty(guest: FakeGuest, sample: Sample) -> None:
    """A buffer that is used again does not show the device what it held."""
    device = guest.open("sample")
    device.total(b"secret")

    sample.gate.deny("count")
    with pytest.raises(errors.Denied):
        device.count(bytearray(6))
    assert guest.door.load(device._spare[64][0], 6) == bytes(6)


def test_a_buffer_that_cannot_be_written(device: GateDevice) -> None:
    with pytest.raises(TypeError, match="a bytearray, not bytes"):
        device.count(b"123")


def test_buffers_are_used_again(guest: FakeGuest) -> None:
    device = guest.open("sample")
    device.total(bytes(1000))
    start = guest.door.allocate(0).gpa
    for size in (1000, 513, 1024):
        device.total(bytes(size))
        device.invert(bytearray(size))
    assert guest.door.allocate(0).gpa == start + 64


@pytest.mark.uncovered
def test_many_calls_use_no_more_memory_and_frames(device: GateDevice) -> None:
    for _ in range(50):
        device.invert(bytearray(300_000))
        with pytest.raises(errors.BadValue):
            device.narrow(256)
        with pytest.raises(errors.DeviceFault):
            device.fail()
    assert len(device.free) == len(device.frames) == 3


@pytest.mark.parametrize(
    ("name", "arguments", "kind"),
    [
        ("narrow", (256,), errors.BadValue),
        ("narrow", (-1,), errors.BadValue),
        ("mode", (1,), errors.BadValue),
        ("truth", (2,), errors.BadValue),
        ("fail", (), errors.DeviceFault),
        ("total", (DmaMemory(ONES, 1),), errors.BadBuffer),
    ],
)
def test_each_status_is_an_exception(
    device: GateDevice, name: str, arguments: tuple[Any, ...], kind: type[errors.CallError]
) -> None:
    with pytest.raises(kind, match=rf"^{name}\("):
        getattr(device, name)(*arguments)


def test_filters_are_exceptions(device: GateDevice, sample: Sample) -> None:
    sample.gate.deny("add")
    with pytest.raises(errors.Denied):
        device.add(1, 2)
    sample.gate.allow("add")
    sample.gate.limit("add", per_second=1)
    device.add(1, 2)
    with pytest.raises(errors.Busy):
        device.add(1, 2)


def test_the_devices_own_code(device: GateDevice) -> None:
    with pytest.raises(errors.DeviceError) as caught:
        device.refuse(ONES)
    assert caught.value.code == ONES


def test_wrong_arguments(device: GateDevice) -> None:
    for arguments in ((), (1,), (1, 2, 3)):
        with pytest.raises(TypeError, match=r"add\(u64,u64\)->u64 takes 2 arguments"):
            device.add(*arguments)
    for argument in ("1", 1.5, None):
        with pytest.raises(TypeError):
            device.add(argument, 1)
    assert device.add(1, 1) == 2


def test_a_name_that_is_not_there(device: GateDevice) -> None:
    with pytest.raises(AttributeError, match="must have a call 'sub'; its calls are add, narrow"):
        device.sub(1)
    with pytest.raises(NotFound, match="sample must have a call 'sub'; its calls are add, narrow"):
        device.call("sub")
    assert not hasattr(device, "__array__")


def test_a_call_named_like_something_of_ours(device: GateDevice) -> None:
    """`call` reaches it, and the device stays what it is."""
    assert device.timeout == 10.0
    for _ in range(2):
        assert device.call("timeout") == 77
        assert device.call("place") == 78
        device.refresh()
    assert device.timeout == 10.0
    assert device.place.doorbell


def test_one_way(device: GateDevice, sample: Sample) -> None:
    assert device.poke() is None
    device.notify("poke")
    assert sample.pokes == 2


# --- vectors --------------------------------------------------------------------------------------


def test_a_revoked_vector_is_looked_up(device: GateDevice, sample: Sample) -> None:
    assert device.add(1, 2) == 3
    old = device.calls["add"].vector
    sample.gate.bind("add")
    assert device.add(1, 2) == 3
    assert device.calls["add"].vector != old


def test_a_call_without_a_vector_is_revoked(device: GateDevice, sample: Sample) -> None:
    device.add(1, 2)
    sample.gate.revoke("add")
    for _ in range(2):
        with pytest.raises(errors.Revoked, match="add"):
            device.add(1, 2)
    assert device.narrow(5) == 5
    sample.gate.bind("add")
    assert device.add(1, 2) == 3


def test_a_driver_that_looks_up_by_itself(guest: FakeGuest, sample: Sample) -> None:
    device = guest.open("sample", relookup=False)
    device.add(1, 2)
    sample.gate.bind("add")
    for _ in range(2):
        with pytest.raises(errors.Revoked):
            device.add(1, 2)
    device.refresh()
    assert device.add(1, 2) == 3
    sample.gate.revoke("add")
    device.refresh()
    with pytest.raises(errors.Revoked):
        device.add(1, 2)


def test_a_host_that_rebinds_without_end(
    guest: FakeGuest, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller gets Revoked in the end, and no endless loop."""
    device = guest.open("sample")
    refresh = device.refresh

    def refresh_too_late() -> None:
        refresh()
        sample.gate.bind("add")

    monkeypatch.setattr(device, "refresh", refresh_too_late)
    sample.gate.bind("add")
    with pytest.raises(errors.Revoked, match="keeps binding it anew"):
        device.add(1, 2)


def test_a_reset_is_survived(device: GateDevice, guest: FakeGuest) -> None:
    """Vectors, the doorbell's vector and the features are all agreed on anew."""
    device.add(1, 2)
    guest.machine.reset()
    device.function.enable()
    assert device.add(1, 2) == 3
    assert device.turn(b"abc", b"") == (b"cba", 3)
    assert device.features == Feature.NOTIFY | Feature.CHANGE_INTERRUPT | (
        Feature.DONE_INTERRUPT | Feature.POLLED
    )
    device.notify("poke")
    assert guest.machine.functions[0].device.pokes == 1  # type: ignore[attr-defined]


def test_a_gate_that_moved(device: GateDevice) -> None:
    function = device.function
    bar = 0x10 + 4 * device.place.bar
    device.add(1, 2)
    function.set_config(bar, 4, device.base + 0x0400_0000 & 0xFFFF_FFFF)
    device.refresh()
    assert device.turn(b"abc", b"") == (b"cba", 3)
    assert len(device.free) == 3


# --- transports -----------------------------------------------------------------------------------


def test_the_cheapest_transport_is_chosen(guest: FakeGuest) -> None:
    device = guest.open("sample")
    assert device.choose(True) is Transport.HYPERCALL
    assert device.choose(False) is Transport.PIO
    with FakeGuest(Sample(), platform="native") as other:
        device = other.open("sample")
        assert device.choose(True) is Transport.PIO
        assert device.add(1, 2) == 3


def test_a_transport_that_is_not_offered() -> None:
    with FakeGuest(Sample(), platform="native") as guest:
        device = guest.open("sample")
        with pytest.raises(errors.BackendError, match="offers, pio, mmio, polled, not hypercall"):
            device.transport = Transport.HYPERCALL
        with pytest.raises(errors.BackendError, match="not hypercall"):
            guest.open("sample", transport=Transport.HYPERCALL)


def test_changing_the_transport_takes_effect_at_once(
    guest: FakeGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = guest.open("sample")
    assert device.add(1, 2) == 3
    monkeypatch.setattr(guest.door, "hypercall", None)
    device.transport = Transport.MMIO
    assert device.add(1, 2) == 3


def test_a_watching_host_needs_no_doorbell(guest: FakeGuest) -> None:
    """While it says so; the frame is then answered by somebody else."""
    device = guest.open("sample", transport=Transport.POLLED)
    assert not device.watched
    assert device.add(1, 2) == 3, "nobody watches, so it rang"
    gate = guest.machine.functions[0].gate
    assert gate is not None
    gate.say_watching(True)
    assert device.watched
    assert device.choose(False) is Transport.POLLED
    answered: list[int] = []

    def pause(seconds: float) -> None:
        for index in range(3):
            gate.ring(index, from_watcher=True)
        answered.append(1)

    guest.door.pause = pause
    assert device.add(1, 2) == 3
    assert answered
    gate.say_watching(False)


def test_calls_that_do_not_fit_32_bit_registers() -> None:
    """They take a frame there, by hypercall too."""

    class Wide(Device):
        id = 0x1AF4, 0x10F1

        @call
        def four(self, a: u8, b: u8, c: u8, d: u8) -> tuple[u8, u8, u8, u8]:
            return d, c, b, a

    for arch, fits in (("x86_64", True), ("i386", False)):
        with FakeGuest(Wide(), arch=arch) as guest:
            device = guest.open("wide")
            assert device.in_registers(device.calls["four"]) is fits
            for transport in (None, Transport.HYPERCALL, Transport.MMIO):
                device.transport = transport
                assert device.four(1, 2, 3, 4) == (4, 3, 2, 1)


def test_a_device_without_a_port() -> None:
    """Its BARs left no room for one: then the transport is not offered."""

    class Full(Device):
        id = 0x1AF4, 0x10F2
        one = Bar(0, 16)
        two = Bar(1, 16)
        three = Bar(2, 16)
        four = Bar(3, 16)

        @call
        def twice(self, a: u8) -> u16:
            return 2 * a

    with FakeGuest(Full(), platform="native") as guest:
        device = guest.open("full")
        assert device.place.pio_bar is None
        assert device.choose(False) is Transport.MMIO
        assert device.twice(21) == 42


# --- frames ---------------------------------------------------------------------------------------


def unanswered(device: GateDevice, guest: FakeGuest) -> None:
    """Let doorbells lead nowhere."""
    guest.door.write = lambda address, size, value: None
    device.transport = Transport.MMIO


def test_a_host_that_does_not_answer(guest: FakeGuest) -> None:
    device = guest.open("sample", timeout=0.01)
    write = guest.door.write
    unanswered(device, guest)
    for _ in range(3):
        with pytest.raises(NoAnswer, match=r"sample must answer within 0.01 s"):
            device.add(1, 2)
    with pytest.raises(errors.Busy, match="has 3 frames"):
        device.add(1, 2)
    guest.door.write = write
    for frame in device.frames:
        device.ring(frame.index, Transport.MMIO)
    assert device.add(1, 2) == 3, "the frames came back when the host was done with them"


def test_a_buffer_that_the_host_may_still_write_to(guest: FakeGuest) -> None:
    """It is not used again."""
    device = guest.open("sample", timeout=0.01)
    unanswered(device, guest)
    with pytest.raises(NoAnswer):
        device.total(b"123")
    assert not any(device._spare.values())


def test_a_device_that_has_gone(guest: FakeGuest) -> None:
    device = guest.open("sample", transport=Transport.MMIO)
    device.function.set_config(4, 2, 0)
    with pytest.raises(NoAnswer, match="doorbell page reads all ones"):
        device.add(1, 2)


def test_a_device_that_has_gone_behind_a_door_that_does_not_map(guest: FakeGuest) -> None:
    guest.door.map = lambda address, length: None  # type: ignore[method-assign]
    device = guest.open("sample", transport=Transport.MMIO)
    device.function.set_config(4, 2, 0)
    with pytest.raises(NoAnswer, match="doorbell page reads all ones"):
        device.add(1, 2)


def test_a_reset_during_a_call(guest: FakeGuest) -> None:
    device = guest.open("sample", transport=Transport.MMIO)
    gate = guest.machine.functions[0].gate
    assert gate is not None
    guest.door.write = lambda address, size, value: gate.reset()
    with pytest.raises(NoAnswer, match="reset during the call"):
        device.add(1, 2)


def test_a_doorbell_vector_that_was_revoked(guest: FakeGuest) -> None:
    """The frame is taken back, and the call made anew by the new one."""
    device = guest.open("sample", transport=Transport.HYPERCALL)
    assert device.turn(b"abc", b"") == (b"cba", 3)
    guest.machine.functions[0].gate.reset()  # type: ignore[union-attr]
    frame = device.frames[0]
    reply = device.invoke(1, (), frame=frame, transport=Transport.HYPERCALL)
    assert reply == (Status.REVOKED, 0, ())
    assert frame.state == FrameState.FREE
    assert device.turn(b"abc", b"") == (b"cba", 3)


def test_threads_share_the_frames(guest: FakeGuest) -> None:
    device = guest.open("sample", transport=Transport.MMIO)
    wrong: list[object] = []

    def run(start: int) -> None:
        for number in range(start, start + 100):
            try:
                found = device.turn(number.to_bytes(8, "little"), b"x")
            except errors.Busy:
                continue
            if found != (b"x" + number.to_bytes(8, "big"), 8):
                wrong.append(found)

    threads = [threading.Thread(target=run, args=(1000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(device.free) == 3


def test_an_answer_that_does_not_fit_the_frame(guest: FakeGuest) -> None:
    frame = guest.open("sample").frames[0]
    with pytest.raises(errors.BadFrame, match="inside the frame's payload"):
        frame.read_payload(380, 5)
    with pytest.raises(errors.BadFrame, match="at most 384 bytes"):
        frame.write_payload(bytes(385))


def test_an_answer_that_no_driver_knows(guest: FakeGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    device = guest.open("sample", transport=Transport.MMIO)
    monkeypatch.setattr(Frame, "reply", lambda self: (99, 0, ()))
    with pytest.raises(errors.CallgateError, match="the unknown status 99"):
        device.add(1, 2)
    monkeypatch.setattr(Frame, "reply", lambda self: (0, 0, ()))
    with pytest.raises(errors.CallgateError, match="must answer 1 result slots, not 0"):
        device.add(1, 2)


@given(data=st.binary(max_size=384), offset=st.integers(0, 384))
def test_a_payload_comes_back_whatever_its_length(data: bytes, offset: int) -> None:
    """Through a door that maps as through one that does not."""
    with FakeGuest(Sample()) as guest:
        mapped = guest.open("sample").frames[0]
        guest.door.map = lambda address, length: None  # type: ignore[method-assign]
        other = Frame(guest.door, 0, mapped.base, 512)
        for writer, reader in ((mapped, other), (other, mapped)):
            writer.write_payload(data)
            start = min(offset, len(data))
            assert reader.read_payload(start, len(data) - start) == data[start:]


def test_a_version_that_the_host_does_not_speak(guest: FakeGuest) -> None:
    read = guest.door.read

    def refuse(address: int, size: int) -> int:
        value = read(address, size)
        bar = guest.machine.functions[0].bars[1]
        gate = guest.machine.functions[0].gate
        assert gate is not None
        return 0 if address == bar.address + gate.ram_size + DoorbellRegister.VERSION else value

    guest.door.read = refuse
    with pytest.raises(errors.CallgateError, match=r"must speak version 1\.0"):
        guest.open("sample")


def test_the_first_of_a_name_is_opened() -> None:
    with FakeGuest(Sample(), Sample()) as guest:
        assert open_device("sample", guest.door).function.address == 0x08


def test_looking_for_a_device_leaves_others_alone() -> None:
    """Their bus mastering is not turned on."""

    class Other(Sample):
        id = 0x1AF4, 0x10F5

    with FakeGuest(Other(), Sample()) as guest:
        guest.open("sample")
        assert not guest.machine.functions[0].config.get(4, 2) & 4
        assert guest.machine.functions[1].config.get(4, 2) & 4
