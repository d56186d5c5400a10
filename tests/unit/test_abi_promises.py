# SPDX-License-Identifier: MIT
"""What the call ABI promises, one test a promise, from the driver's side of a whole machine.

docs/abi.md defines the bytes. Here the guest is this
test: it reads config space and memory, and writes frames, as any driver would.
"""

import inspect
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy
import pytest

from callgate import errors
from callgate.call import BufferIn, BufferInOut, BufferOut, call, i32, signature_hash, u8, u16, u64
from callgate.device import Device
from callgate.driver import GateDevice
from callgate.errors import DeviceError, DrainTimeout
from callgate.gate.abi import (
    CAPABILITY,
    ENTRY,
    FRAME,
    HEADER,
    CallFlag,
    Feature,
    FrameFlag,
    FrameState,
    Status,
    Transport,
)
from callgate.interrupt import Interrupt
from callgate.register import Bar, Register
from callgate.testing import FakeGuest

IDS = 0x1AF4, 0x10F0
ABI = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"


class Bench(Device):
    """A device with a call of every kind."""

    id = IDS
    abi = ABI
    version = 7
    frames = 6
    parallel = True
    window = Bar(1, 4096)
    control = Register(0, bar=window, reset=1)
    done = Interrupt()

    def __init__(self) -> None:
        self.act: Callable[[], Any] = lambda: None
        self.notified = 0

    @call
    def add(self, a: u64, b: u64) -> u64:
        self.act()
        return (a + b) % 2**64

    @call
    def divide(self, a: i32, b: i32) -> tuple[i32, i32]:
        if b == 0:
            raise DeviceError(33)
        return a // b, a % b

    @call
    def reverse(self, text: bytes, times: u8) -> bytes:
        return text[::-1] * times

    @call
    def scale(self, data: BufferInOut, factor: u16) -> u64:
        words = data.array("<u4")
        words *= factor
        return len(words)

    @call
    def copy(self, source: BufferIn, target: BufferOut) -> None:
        target.view[:] = source.view

    @call
    def many(self, a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8) -> u64:
        return a + b + c + d + e + f + g

    @call(one_way=True)
    def poke(self) -> None:
        self.notified += 1


class Other(Device):
    """Another device of the same machine."""

    id = 0x1AF4, 0x10F1

    @call
    def add(self, a: u64, b: u64) -> u64:
        return 0


class Guest:
    """A driver that has nothing but accesses to config space and memory."""

    def __init__(self, fake: FakeGuest, ids: tuple[int, int] = IDS) -> None:
        self.door = fake.door
        for number in self.door.functions():
            if self.config(number, 0, 4) == ids[0] | ids[1] << 16:
                self.number = number
                break
        else:
            raise LookupError(ids)
        self.find_gate()

    def config(self, number: int, offset: int, size: int) -> int:
        return self.door.config_read(number, offset, size)

    def find_gate(self) -> None:
        """By docs/abi.md, section 2, and nothing else."""
        at = self.config(self.number, 0x34, 1)
        while at:
            words = [self.config(self.number, at + step, 4) for step in range(0, 0x28, 4)]
            found = CAPABILITY.unpack(struct.pack("<10I", *words))
            if found["id"] == 9 and found["signature"] == int.from_bytes(b"CGAT", "little"):
                self.place = found
                break
            at = found["next"]
        else:
            raise LookupError("no gate")
        assert self.place["length"] >= 0x28
        assert self.place["version_major"] == 1
        self.door.config_write(self.number, 4, 2, 7)
        self.gate = self.address(self.place["bar"]) + self.place["gate_offset"]
        self.doorbell = self.gate + self.place["doorbell_offset"]

    def reset(self, fake: FakeGuest) -> None:
        """Reset the function; it forgets where its BARs are, so the driver puts them back."""
        bars = [self.config(self.number, 0x10 + 4 * bar, 4) for bar in range(6)]
        fake.machine.functions[0].reset()
        for bar, address in enumerate(bars):
            self.door.config_write(self.number, 0x10 + 4 * bar, 4, address)
        self.door.config_write(self.number, 4, 2, 7)

    def address(self, bar: int) -> int:
        low = self.config(self.number, 0x10 + 4 * bar, 4)
        if low & 1:
            return low & ~3
        high = self.config(self.number, 0x14 + 4 * bar, 4) if low & 4 else 0
        return low & ~0xF | high << 32

    def read(self, offset: int, length: int) -> bytes:
        words = [self.door.read(self.gate + offset + step, 4) for step in range(0, length, 4)]
        return struct.pack(f"<{len(words)}I", *words)[:length]

    def header(self) -> dict[str, Any]:
        return HEADER.unpack(self.read(0, HEADER.size))

    def directory(self) -> dict[str, dict[str, Any]]:
        header = self.header()
        entries = {}
        for number in range(header["entry_count"]):
            at = header["directory_offset"] + number * header["entry_size"]
            entry = ENTRY.unpack(self.read(at, ENTRY.size))
            start, length = entry["text_offset"] & ~3, entry["text_offset"] & 3
            text = self.read(start, length + entry["text_length"] + 3 & ~3)
            entry["text"] = text[length : length + entry["text_length"]].decode()
            entries[entry["name"].rstrip(b"\0").decode()] = entry
        return entries

    def vector(self, name: str) -> int:
        vector: int = self.directory()[name]["vector"]
        return vector

    def frame(self, index: int) -> int:
        header = self.header()
        at: int = self.gate + header["frames_offset"] + index * header["frame_size"]
        return at

    def fill(
        self, vector: int, *slots: int, index: int = 0, flags: int = 0, count: int | None = None
    ) -> None:
        base = self.frame(index)
        for number, slot in enumerate(slots):
            self.door.write(base + 0x20 + 8 * number, 8, slot % 2**64)
        self.door.write(base + 0x08, 8, flags | (len(slots) if count is None else count) << 16)
        self.door.write(base + 0x10, 8, 0)
        self.door.write(base + 0x04, 4, vector)
        self.door.write(base, 4, FrameState.READY)

    def answer(self, index: int = 0) -> tuple[Status, tuple[int, ...]]:
        base = self.frame(index)
        assert self.door.read(base, 4) == FrameState.DONE
        count = self.door.read(base + 0x0B, 1)
        results = tuple(self.door.read(base + 0x20 + 8 * number, 8) for number in range(count))
        return Status(self.door.read(base + 0x0C, 4)), results

    def call(
        self, vector: int, *slots: int, index: int = 0, **how: int
    ) -> tuple[Status, tuple[int, ...]]:
        self.fill(vector, *slots, index=index, **how)
        self.door.write(self.doorbell, 4, index)
        return self.answer(index)


@pytest.fixture
def device() -> Bench:
    return Bench()


@pytest.fixture
def fake(device: Bench) -> Any:
    with FakeGuest(device, Other()) as fake:
        yield fake


@pytest.fixture
def guest(fake: FakeGuest) -> Guest:
    return Guest(fake)


def eleven() -> list[str]:
    tests = [name for name, value in globals().items() if inspect.isfunction(value)]
    return sorted(name[5:7] for name in tests if name.startswith("test_"))


# --- 1 --------------------------------------------------------------------------------------------


def test_01_discovery_needs_nothing_but_config_space(guest: Guest, fake: FakeGuest) -> None:
    """The capability says where the gate is, how much there is, and what each transport needs."""
    place = guest.place
    header = guest.header()
    assert place["entry_count"] == header["entry_count"] == 7
    assert place["frame_count"] == header["frame_count"] == 6
    assert place["doorbell_offset"] == header["doorbell_offset"]
    assert place["doorbell_offset"] + 4096 == place["gate_length"]
    assert header["frames_offset"] + 6 * header["frame_size"] <= place["doorbell_offset"]
    offered = Transport(place["transports"])
    assert offered & Transport.MMIO
    assert offered & Transport.HYPERCALL
    assert place["instruction"] == fake.machine.platform.offer.instruction
    assert place["selector"] == fake.machine.platform.offer.selector
    # Each place that it names is where something answers.
    vector = guest.vector("add")
    assert guest.call(vector, 1, 2) == (Status.OK, (3,))
    assert place["pio_bar"] != 0xFF
    guest.fill(vector, 3, 4)
    guest.door.io_write(guest.address(place["pio_bar"]) + place["pio_offset"], 4, 0)
    assert guest.answer() == (Status.OK, (7,))
    # A platform without a trap instruction, or a device without calls, says so there.
    with FakeGuest(Bench(), platform="native") as other:
        native = Guest(other).place
        assert native["instruction"] == native["selector"] == 0
        assert not native["transports"] & Transport.HYPERCALL


# --- 2 --------------------------------------------------------------------------------------------


def test_02_the_directory_is_read_without_an_exit_and_announces_its_changes(
    guest: Guest, fake: FakeGuest, device: Bench
) -> None:
    # Without an exit: all of it is plain memory in the BAR, and none of it a trap.
    base, window = guest.gate, fake.door.map(guest.gate, guest.place["doorbell_offset"])
    assert window is not None
    header = HEADER.unpack(window)
    assert header["uuid"].hex() == ABI.replace("-", "")
    assert header["device_version"] == 7
    assert header["name"].rstrip(b"\0") == b"bench"
    entries = guest.directory()
    shown = {
        name: (one["arguments"], one["results"], CallFlag(one["flags"]), one["text"])
        for name, one in entries.items()
    }
    registers, frame_only = CallFlag.REGISTERS, CallFlag.PAYLOAD_IN | CallFlag.PAYLOAD_OUT
    assert shown == {
        "add": (2, 1, registers, "add(u64,u64)->u64"),
        "divide": (2, 2, registers, "divide(i32,i32)->(i32,i32)"),
        "reverse": (2, 1, frame_only, "reverse(bytes,u8)->bytes"),
        "scale": (3, 1, registers | CallFlag.BUFFERS, "scale(inout,u16)->u64"),
        "copy": (4, 0, registers | CallFlag.BUFFERS, "copy(in,out)->()"),
        "many": (7, 1, CallFlag(0), "many(u8,u8,u8,u8,u8,u8,u8)->u64"),
        "poke": (0, 0, registers | CallFlag.ONE_WAY, "poke()->()"),
    }
    assert all(one["signature"] == signature_hash(one["text"]) for one in entries.values())
    # The generation changes with a binding, and an interrupt can say so.
    driver = fake.open("bench")
    assert driver.features & Feature.CHANGE_INTERRUPT
    interrupt = driver.interrupt(header["interrupt"])
    before = guest.header()["generation"]
    assert before % 2 == 0
    assert not interrupt.take()
    device.gate.bind("add")
    assert guest.header()["generation"] not in (before, before + 1)
    assert interrupt.take()
    assert guest.vector("add") != entries["add"]["vector"]
    # An entry keeps its place as long as its call is declared.
    device.gate.revoke("divide")
    assert list(guest.directory()) == list(entries)
    assert guest.vector("divide") == 0
    assert base == guest.gate


# --- 3 --------------------------------------------------------------------------------------------


def test_03_vectors_are_assigned_anew_and_never_mean_another_call(
    guest: Guest, fake: FakeGuest, device: Bench
) -> None:
    # From a start that differs from run to run.
    starts = set()
    for _ in range(4):
        with FakeGuest(Bench()) as other:
            starts.add(Guest(other).vector("add"))
    assert len(starts) > 1
    # 32 bits of which the highest is clear, and never 0.
    table = {name: one["vector"] for name, one in guest.directory().items()}
    assert all(0 < vector < 1 << 31 for vector in table.values())
    assert len(set(table.values())) == len(table)
    # Never again after a revocation, a rebinding or a reset.
    seen = set(table.values())
    for turn in range(60):
        if turn % 3:
            fresh = {device.gate.bind("add"), device.gate.bind("poke")}
        else:
            guest.reset(fake)
            fresh = {one["vector"] for one in guest.directory().values()}
        assert not fresh & seen
        seen |= fresh
    live = {one["vector"] for one in guest.directory().values()}
    assert {guest.call(vector, 1, 1)[0] for vector in seen - live} == {Status.REVOKED}
    # One device's are not another's, nor one machine's another's.
    foreign = Guest(fake, Other.id)
    assert guest.call(foreign.vector("add"), 1, 1) == (Status.NO_SUCH_VECTOR, ())
    with FakeGuest(Bench()) as other:
        status, _ = Guest(other).call(guest.vector("add"), 1, 1)
        assert status in (Status.NO_SUCH_VECTOR, Status.REVOKED)


# --- 4 --------------------------------------------------------------------------------------------


def test_04_a_call_returns_a_status_and_values_whatever_is_asked(
    guest: Guest, fake: FakeGuest, device: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    add, divide = guest.vector("add"), guest.vector("divide")
    answers = {
        Status.OK: guest.call(add, 2, 40),
        Status.NO_SUCH_VECTOR: guest.call(0x7FFF_FFFF ^ add, 2, 40),
        Status.BAD_COUNT: guest.call(add, 2),
        Status.BAD_VALUE: guest.call(divide, 1 << 40, 1),
        Status.BAD_BUFFER: guest.call(guest.vector("copy"), 0, 4, 1 << 60, 4),
        Status.BAD_FRAME: guest.call(add, 2, 40, flags=1 << 15),
        Status.DEVICE_ERROR: guest.call(divide, 1, 0),
    }
    assert guest.door.read(guest.frame(0) + 0x10, 8) == 33  # the device's own code
    device.act = lambda: 1 / 0
    answers[Status.DEVICE_FAULT] = guest.call(add, 2, 40)
    device.act = lambda: None
    device.gate.deny("add")
    answers[Status.DENIED] = guest.call(add, 2, 40)
    device.gate.allow("add")
    device.gate.limit("add", per_second=1e-6)
    guest.call(add, 2, 40)
    answers[Status.BUSY] = guest.call(add, 2, 40)
    device.gate.revoke("add")
    answers[Status.REVOKED] = guest.call(add, 2, 40)
    with FakeGuest(slow := Bench(), handler_timeout=0.02) as other:
        slow.act = lambda: time.sleep(0.2)
        late = Guest(other)
        answers[Status.TIMED_OUT] = late.call(late.vector("add"), 2, 40)
    assert {status: answer[0] for status, answer in answers.items()} == {
        status: status for status in Status
    }
    assert answers.pop(Status.OK) == (Status.OK, (42,))
    assert {results for _, results in answers.values()} == {()}
    # The driver's side has an exception for each.
    kinds = [each for each in vars(errors).values() if isinstance(each, type)]
    statuses = {each.status for each in kinds if issubclass(each, errors.CallError)} - {-1}
    assert statuses == {int(status) for status in Status if status}
    # The host was told of the model's bug, and of what the guest did wrong.
    assert "bench.add: the device model raised" in caplog.text
    assert device.faults.counts["NO_SUCH_VECTOR"] == 1
    assert guest.call(divide, -7, 2) == (Status.OK, (2**64 - 4, 1))


# --- 5 --------------------------------------------------------------------------------------------


def test_05_only_a_write_triggers_and_done_is_what_counts(
    guest: Guest, fake: FakeGuest, device: Bench
) -> None:
    ran: list[int] = []
    device.act = lambda: ran.append(1)
    guest.fill(guest.vector("add"), 1, 2)
    place = guest.place
    ports = guest.address(place["pio_bar"]) + place["pio_offset"]
    before = guest.read(0, place["doorbell_offset"])
    for offset in range(0, 0x20, 4):
        guest.door.read(guest.doorbell + offset, 4)
    for size in (1, 2, 8):
        guest.door.read(guest.doorbell, size)
    for offset in (0, 4, 8):
        guest.door.io_read(ports + offset, 4)
    assert guest.read(0, place["doorbell_offset"]) == before
    assert ran == []
    # The doorbell can be read to wait; it says the generation.
    assert guest.door.read(guest.doorbell, 4) == guest.header()["generation"]
    # The write may be posted: another thread may carry it out. The state tells when it is done.
    held = threading.Event()
    device.act = lambda: held.wait(5)
    base = guest.frame(0)
    write = threading.Thread(target=guest.door.write, args=(guest.doorbell, 4, 0))
    write.start()
    while guest.door.read(base, 4) == FrameState.READY:
        time.sleep(0.001)
    assert guest.door.read(base, 4) == FrameState.RUNNING
    assert guest.door.read(guest.doorbell, 4) == guest.header()["generation"]
    held.set()
    while guest.door.read(base, 4) != FrameState.DONE:
        time.sleep(0.001)
    assert guest.answer() == (Status.OK, (3,))
    write.join(5)


# --- 6 --------------------------------------------------------------------------------------------


def test_06_frames_are_shared_memory_and_the_host_judges_its_copy(
    guest: Guest, fake: FakeGuest, device: Bench
) -> None:
    count = guest.place["frame_count"]
    frames = [fake.door.map(guest.frame(index), FRAME.size) for index in range(count)]
    assert all(frame is not None for frame in frames)  # No exit moves an argument or a result.
    # Each vCPU has one, and they call at the same time without a lock.
    together = threading.Barrier(count, timeout=5)
    device.act = together.wait
    vector = guest.vector("add")
    answers: dict[int, Any] = {}

    def vcpu(index: int) -> None:
        answers[index] = guest.call(vector, index, 100, index=index)

    vcpus = [threading.Thread(target=vcpu, args=(index,)) for index in range(count)]
    for each in vcpus:
        each.start()
    for each in vcpus:
        each.join(10)
    assert answers == {index: (Status.OK, (100 + index,)) for index in range(count)}
    # What the guest writes while the call runs is not seen by it.
    frame = frames[0]
    assert frame is not None

    def scribble() -> None:
        frame[4:0x80] = b"\xff" * 0x7C

    device.act = scribble
    guest.fill(vector, 2, 40)
    guest.door.write(guest.doorbell, 4, 0)
    assert guest.answer() == (Status.OK, (42,))
    # An inline payload goes the same way.
    payload = guest.frame(1) + FRAME.size
    guest.door.write(payload, 8, int.from_bytes(b"callgate", "little"))
    status, (slot,) = guest.call(guest.vector("reverse"), 8 << 32, 1, index=1)
    assert (status, slot) == (Status.OK, 8 << 32)
    assert guest.door.read(payload, 8) == int.from_bytes(b"etagllac", "little")


# --- 7 --------------------------------------------------------------------------------------------


def test_07_one_vector_by_any_transport_with_the_same_result(
    guest: Guest, fake: FakeGuest, device: Bench
) -> None:
    driver = fake.open("bench")
    calls = {name: one.vector for name, one in driver.calls.items()}
    wanted = {
        ("add", (2, 40)): (Status.OK, 0, (42,)),
        ("divide", (2**64 - 7, 2)): (Status.OK, 0, (2**64 - 4, 1)),
        ("divide", (1, 0)): (Status.DEVICE_ERROR, 33, ()),
        ("divide", (1 << 40, 1)): (Status.BAD_VALUE, 0, ()),
        ("poke", ()): (Status.OK, 0, ()),
    }
    for (name, slots), expected in wanted.items():
        for transport in (Transport.MMIO, Transport.PIO, Transport.HYPERCALL):
            status, code, results = driver.invoke(calls[name], slots, transport=transport)
            assert (status, code) == expected[:2]
            if status == Status.OK:
                assert results[: len(expected[2])] == expected[2]
    assert device.notified == 3
    # One-way, by NOTIFY and by the flag of a frame.
    driver.notify("poke")
    assert device.notified == 4
    assert driver.invoke(calls["add"], (1, 2), frame_flags=FrameFlag.ONE_WAY,
                         transport=Transport.MMIO) == (Status.OK, 0, ())  # fmt: skip
    # The frame form of a hypercall rings any frame, and carries what registers cannot.
    place = driver.place
    guest.fill(calls["many"], *range(7), index=5)
    doorbell = guest.header()["doorbell_vector"]
    hypercall = guest.door.hypercall
    assert hypercall(place.instruction, place.selector, doorbell, (5,))[0] == Status.OK
    assert guest.answer(5) == (Status.OK, (21,))
    assert hypercall(place.instruction, place.selector, doorbell, (6,))[0] == Status.BAD_VALUE
    many = hypercall(place.instruction, place.selector, calls["many"], tuple(range(6)))
    assert many[0] == Status.BAD_FRAME
    # polled: while the host watches, READY is the whole trigger.
    with FakeGuest(Bench(), watch=True) as watched:
        polling = Guest(watched)
        assert polling.header()["features"] & Feature.POLLED
        polling.door.write(polling.doorbell + 0x0C, 4, Feature.POLLED)
        vector = polling.vector("add")
        without = 0
        end = time.monotonic() + 5
        while without < 5 and time.monotonic() < end:
            polling.fill(vector, 1, 2)
            if polling.header()["watching"]:
                without += 1
            else:
                polling.door.write(polling.doorbell, 4, 0)
            while polling.door.read(polling.frame(0), 4) != FrameState.DONE:
                assert time.monotonic() < end
            assert polling.answer() == (Status.OK, (3,))
        assert without == 5


# --- 8 --------------------------------------------------------------------------------------------


def test_08_revocation_is_atomic(guest: Guest, device: Bench) -> None:
    """Callers hammer a vector while it is revoked: after `revoke` returned, none gets in."""
    revoked = threading.Event()
    begun_after: list[int] = []
    answers: list[Status] = []

    def handler() -> None:
        if revoked.is_set():
            begun_after.append(1)
        time.sleep(0.0002)
        if revoked.is_set():
            begun_after.append(2)

    device.act = handler
    for _ in range(8):
        vector = guest.vector("add")
        stop = threading.Event()

        def hammer(index: int, vector: int = vector, stop: threading.Event = stop) -> None:
            while not stop.is_set():
                answers.append(guest.call(vector, 1, 2, index=index)[0])

        callers = [threading.Thread(target=hammer, args=(index,)) for index in range(3)]
        for caller in callers:
            caller.start()
        time.sleep(0.004)
        device.gate.revoke("add")
        revoked.set()
        time.sleep(0.002)
        stop.set()
        for caller in callers:
            caller.join(5)
        revoked.clear()
        assert guest.call(vector, 1, 2) == (Status.REVOKED, ())
        device.gate.bind("add")
    assert begun_after == []
    assert set(answers) <= {Status.OK, Status.BUSY, Status.REVOKED}
    assert {Status.OK, Status.REVOKED} <= set(answers)
    # A time-out says which have not drained.
    held, inside = threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        held.wait(5)

    device.act = hold
    vector = guest.vector("add")
    caller = threading.Thread(target=guest.call, args=(vector, 1, 2), name="vcpu 3")
    caller.start()
    assert inside.wait(5)
    with pytest.raises(DrainTimeout) as caught:
        device.gate.revoke("add", timeout=0.01)
    assert caught.value.calls == ("bench.add in thread vcpu 3",)
    assert guest.call(vector, 1, 2, index=1) == (Status.REVOKED, ())
    held.set()
    caller.join(5)
    assert guest.answer() == (Status.OK, (3,))


# --- 9 --------------------------------------------------------------------------------------------


def test_09_the_host_decides_what_is_exposed(guest: Guest, fake: FakeGuest, device: Bench) -> None:
    add = guest.vector("add")
    other = Guest(fake, Other.id)
    gate = device.gate
    # Per device and call, while the guest runs.
    gate.deny("add")
    assert guest.call(add, 1, 2) == (Status.DENIED, ())
    assert guest.call(guest.vector("divide"), 7, 2) == (Status.OK, (3, 1))
    gate.deny()
    assert guest.call(guest.vector("divide"), 7, 2) == (Status.DENIED, ())
    assert other.call(other.vector("add"), 1, 2) == (Status.OK, (0,))
    # What the guest does, a reset say, does not undo it.
    guest.reset(fake)
    add = guest.vector("add")
    assert guest.call(add, 1, 2) == (Status.DENIED, ())
    gate.allow()
    assert guest.call(add, 1, 2) == (Status.OK, (3,))
    # Ordered against calls in flight: when `deny` returns, they have ended.
    inside, ended = threading.Event(), threading.Event()

    def slow() -> None:
        inside.set()
        time.sleep(0.03)
        ended.set()

    device.act = slow
    caller = threading.Thread(target=guest.call, args=(add, 1, 2))
    caller.start()
    assert inside.wait(5)
    gate.deny("add")
    assert ended.is_set()
    caller.join(5)
    assert guest.answer() == (Status.OK, (3,))
    gate.allow("add")
    device.act = lambda: None
    # A quota for each vector.
    gate.limit("add", per_second=5)
    statuses = [guest.call(add, 1, 2)[0] for _ in range(40)]
    assert statuses == [Status.OK] * 5 + [Status.BUSY] * 35
    assert guest.call(guest.vector("divide"), 7, 2)[0] == Status.OK
    gate.limit("add")
    assert guest.call(add, 1, 2)[0] == Status.OK


# --- 10 -------------------------------------------------------------------------------------------


def test_10_bulk_data_lies_in_the_guests_memory_and_is_checked_at_use(
    guest: Guest, fake: FakeGuest, device: Bench
) -> None:
    memory = fake.memory
    ram = memory.slots[0]
    words = numpy.arange(64, dtype="<u4")
    memory.write(0x1000, words.tobytes())
    assert guest.call(guest.vector("scale"), 0x1000, 256, 3) == (Status.OK, (64,))
    assert numpy.frombuffer(memory.read(0x1000, 256), "<u4").tolist() == (words * 3).tolist()
    copy = guest.vector("copy")
    assert guest.call(copy, 0x1000, 16, 0x2000, 16) == (Status.OK, ())
    assert memory.read(0x2000, 16) == memory.read(0x1000, 16)
    # Zero copy: the device's view is the memory itself.
    view = device.memory.map(0x2000, 4, write=True)
    memory.write(0x2000, b"abcd")
    assert bytes(view) == b"abcd"
    # Wholly in RAM, or not at all.
    before = memory.read(0x1000, 0x2000)
    for gpa, length in (
        (ram.end - 8, 16),
        (ram.end, 16),
        (2**64 - 8, 16),
        (0x1000, 2**64 - 1),
        (guest.gate, 16),  # a BAR is no memory
    ):
        assert guest.call(copy, 0x1000, 16, gpa, length) == (Status.BAD_BUFFER, ())
        assert guest.call(copy, gpa, length, 0x2000, 16) == (Status.BAD_BUFFER, ())
    memory.add(0x5_0000_0000, bytes(4096))
    assert guest.call(copy, 0x5_0000_0000, 16, 0x2000, 16)[0] == Status.OK
    memory.write(0x2000, before[0x1000:0x1010])
    assert guest.call(copy, 0x1000, 16, 0x5_0000_0000, 16) == (Status.BAD_BUFFER, ())  # ROM
    memory.remove(0x5_0000_0000)
    assert guest.call(copy, 0x5_0000_0000, 16, 0x2000, 16) == (Status.BAD_BUFFER, ())
    assert memory.read(0x1000, 0x2000) == before
    # Checked at use: without bus mastering nothing is reached any more.
    guest.door.config_write(guest.number, 4, 2, 3)
    assert guest.call(copy, 0x1000, 16, 0x2000, 16) == (Status.BAD_BUFFER, ())


# --- 11 -------------------------------------------------------------------------------------------


def test_11_versions_and_features_are_negotiated_and_layouts_are_little_endian(
    guest: Guest, device: Bench
) -> None:
    version, features = guest.doorbell + 8, guest.doorbell + 12
    header = guest.header()
    highest = header["version_major"] << 16 | header["version_minor"]
    assert guest.place["version_major"] << 16 | guest.place["version_minor"] == highest == 0x10000
    for wanted, agreed in ((highest + 1, 0), (0x20000, 0), (0, 0), (highest, highest)):
        guest.door.write(version, 4, wanted)
        assert guest.door.read(version, 4) == agreed
    # A driver that writes neither speaks 1.0 without features.
    assert guest.door.read(features, 4) == 0
    guest.door.write(guest.doorbell + 4, 4, guest.vector("poke"))
    assert device.notified == 0
    # In force is what both know; the bits that no version defines are never.
    guest.door.write(features, 4, 0xFFFF_FFFF)
    assert guest.door.read(features, 4) == header["features"] == 0xF
    guest.door.write(features, 4, Feature.NOTIFY)
    assert guest.door.read(features, 4) == Feature.NOTIFY
    guest.door.write(guest.doorbell + 4, 4, guest.vector("poke"))
    assert device.notified == 1
    # Explicit widths, little-endian: byte by byte, whatever machine the host is.
    assert guest.read(0, 4) == b"CGHD"
    assert guest.read(4, 4) == b"\0\0\1\0"
    vector = guest.vector("add")
    guest.call(vector, 0x0102_0304_0506_0708, 0)
    frame = [guest.door.read(guest.frame(0) + byte, 1) for byte in range(0x28)]
    assert frame[:4] == [3, 0, 0, 0]
    assert bytes(frame[4:8]) == vector.to_bytes(4, "little")
    assert frame[8:0x10] == [0, 0, 2, 1, 0, 0, 0, 0]
    assert frame[0x20:0x28] == [8, 7, 6, 5, 4, 3, 2, 1]


# --- and that is all ------------------------------------------------------------------------------


def test_there_are_eleven_and_the_driver_library_keeps_them_too(
    fake: FakeGuest, device: Bench
) -> None:
    assert [name for name in eleven() if name.isdigit()] == [f"{n:02}" for n in range(1, 12)]
    for transport in (None, Transport.MMIO, Transport.PIO, Transport.HYPERCALL):
        driver: GateDevice = fake.open("bench", transport=transport)
        assert driver.add(2, 40) == 42
        assert driver.divide(-7, 2) == (-4, 1)
        assert driver.reverse(b"abc", 2) == b"cbacba"
        data = bytearray(struct.pack("<3I", 1, 2, 3))
        assert driver.scale(data, 5) == 3
        assert data == struct.pack("<3I", 5, 10, 15)
        assert driver.many(1, 2, 3, 4, 5, 6, 7) == 28
        assert driver.poke() is None
        with pytest.raises(DeviceError) as caught:
            driver.divide(1, 0)
        assert caught.value.code == 33
        device.gate.bind("add")
        assert driver.add(1, 1) == 2  # looked up again by its name
