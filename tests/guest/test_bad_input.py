# SPDX-License-Identifier: MIT
"""Whatever a guest sends, or a model does, has a defined answer, and everybody else goes on.

Each fault is counted; the log gets one loud line for each kind.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import cast

import pytest

from callgate.backends.base import backend
from callgate.call import BufferInOut, BufferOut, call, u8, u32, u64
from callgate.device import Device
from callgate.driver.device import GateDevice
from callgate.driver.pci import COMMAND, COMMAND_MASTER, PciFunction
from callgate.errors import BackendError
from callgate.faults import Faults
from callgate.gate.abi import FRAME, DoorbellRegister, FrameFlag, FrameState, Status, Transport
from callgate.register import Bar, Register
from callgate.testing.conformance import Case, MakeRig, Rig, Way
from callgate.testing.conformance.devices import Bell, Broken, Bulk, Held, Store, Sums, Values
from callgate.testing.conformance.rig import cases_of, make_rig

GUESTS = Path(__file__).resolve().parents[2] / "build" / "guest"
ONES = (1 << 64) - 1
ALL_ONES = 0xFFFF_FFFF
MMIO = Transport.MMIO
FRAMES = Way(MMIO, True)
REGISTERS = Way(Transport.HYPERCALL, False)
LOG = "callgate.guest"


def cases() -> list[Case]:
    """One board of the loopback backend, and every one on which real instructions run."""
    found = [Case("loopback", "x86_64", "kvm-intel")]
    with suppress(BackendError):  # The conformance suite tells it.
        found += [case for case in cases_of("unicorn") if case.is_default]
    return found


@pytest.fixture(params=cases(), ids=str)
def make(request: pytest.FixtureRequest) -> Iterator[MakeRig]:
    case: Case = request.param
    if backend(case.backend).has_processor and not (GUESTS / case.arch / "agent.elf").exists():
        pytest.skip(f"{case}: the agent must be built first: python guest/build.py")
    with ExitStack() as stack:
        yield lambda *devices, **options: stack.enter_context(
            make_rig(case, GUESTS, *devices, **options)
        )


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[Faults, str, int], None]:
    """Check that a kind of fault was counted so often, and logged loudly once."""
    caplog.set_level(logging.DEBUG, LOG)

    def check(faults: Faults, kind: str, count: int) -> None:
        assert faults.counts.get(kind) == count, faults.counts
        lines = [record for record in caplog.records if record.name == LOG]
        lines = [line for line in lines if line.getMessage().startswith(f"{faults.owner}: ")]
        loud = [line for line in lines if line.levelno == logging.WARNING]
        assert [f"({kind}: " in line.getMessage() for line in loud].count(True) == 1
        assert len(lines) == sum(faults.counts.values())

    return check


Told = Callable[[Faults, str, int], None]


def framed(rig: Rig) -> list[Way]:
    """The ways by which a call travels in a frame."""
    return [way for way in rig.ways(rig.open(rig.devices[0])) if way.framed]


# --- vectors and counts ---------------------------------------------------------------------------


def test_unknown_stale_and_foreign_vectors(make: MakeRig, told: Told) -> None:
    rig = make(Sums(), Sums())
    sums, other = rig.devices
    one, two = (rig.open(device) for device in rig.devices)
    stale = one.calls["add"].vector
    sums.gate.bind("add")
    foreign = two.calls["add"].vector
    ways = framed(rig)
    for way in ways:
        for vector in (0, 1, 0x8000_0000 | foreign, ALL_ONES, foreign):
            assert way.invoke(one, vector, (1, 2)) == (Status.NO_SUCH_VECTOR, 0, ()), way
        assert way.invoke(one, stale, (1, 2)) == (Status.REVOKED, 0, ())
    told(sums.faults, "NO_SUCH_VECTOR", 5 * len(ways))
    told(sums.faults, "REVOKED", len(ways))
    assert other.faults.counts == {}
    assert one.call("add", 2, 40) == two.call("add", 2, 40) == 42


def test_vectors_in_registers_that_lead_nowhere(make: MakeRig, told: Told) -> None:
    rig = make(Sums(), Bulk())
    device = rig.open(rig.devices[0])
    stale = device.calls["add"].vector
    rig.devices[0].gate.bind("add")
    for vector in (0, 1, 0x8000_0000 | stale, ALL_ONES):
        assert REGISTERS.invoke(device, vector, (1, 2))[0] == Status.NO_SUCH_VECTOR
    assert REGISTERS.invoke(device, stale, (1, 2))[0] == Status.REVOKED
    assert cast(Sums, rig.devices[0]).ran == 0
    payload = rig.open(rig.devices[1]).calls["reverse"].vector
    for _ in range(3):
        assert REGISTERS.invoke(device, payload, (1,))[0] == Status.BAD_FRAME
    for kind, count in (("NO_SUCH_VECTOR", 4), ("REVOKED", 1), ("BAD_FRAME", 3)):
        told(rig.machine.router.faults, kind, count)


def test_wrong_counts(make: MakeRig, told: Told) -> None:
    rig = make(Sums())
    sums = cast(Sums, rig.devices[0])
    device = rig.open(sums)
    counts = (0, 1, 3, 12, 13, 200, 255)
    for count in counts:
        reply = device.invoke(device.calls["add"].vector, (1, 2), count=count, transport=MMIO)
        assert reply == (Status.BAD_COUNT, 0, ())
    told(sums.faults, "BAD_COUNT", len(counts))
    assert sums.ran == 0


def test_values_outside_their_type(make: MakeRig, told: Told) -> None:
    rig = make(Values())
    values = cast(Values, rig.devices[0])
    device = rig.open(values)
    wrong = [
        ("unsigned", (256, 0, 0, 0)),
        ("unsigned", (0, 0, ONES, 0)),
        ("signed", (0x80, 0, 0, 0)),
        ("signed", (0, 0, 1 << 63, 0)),
        ("flag", (2,)),
        ("flag", (ONES,)),
        ("colour", (3,)),
        ("colour", (ONES,)),
    ]
    for name, slots in wrong:
        vector = device.calls[name].vector
        assert FRAMES.invoke(device, vector, slots) == (Status.BAD_VALUE, 0, ()), name
    told(values.faults, "BAD_VALUE", len(wrong))
    assert values.seen is None


# --- frames ---------------------------------------------------------------------------------------


def test_a_frame_index_past_the_end(make: MakeRig, told: Told) -> None:
    rig = make(Sums())
    device = rig.open(rig.devices[0])
    indices = (4, 5, 0x1000, 0x7FFF_FFFF, ALL_ONES)
    for index in indices:
        device.ring(index, MMIO)
        device.ring(index, Transport.PIO)
        assert device.ring(index, Transport.HYPERCALL) == Status.BAD_VALUE
    told(rig.devices[0].faults, "frame index", 3 * len(indices))
    assert device.call("add", 2, 40) == 42


def test_flags_that_do_not_exist(make: MakeRig, told: Told) -> None:
    rig = make(Sums())
    sums = cast(Sums, rig.devices[0])
    device = rig.open(sums)
    for flag in (4, 0x80, 0x8000, 0xFFFF, 4 | FrameFlag.ONE_WAY):
        reply = device.invoke(device.calls["add"].vector, (1, 2), frame_flags=flag, transport=MMIO)
        assert reply == (Status.BAD_FRAME, 0, ())
    told(sums.faults, "BAD_FRAME", 5)
    assert sums.ran == 0


def test_payload_past_the_frame(make: MakeRig, told: Told) -> None:
    rig = make(Bulk())
    device = rig.open(rig.devices[0])
    room = 512 - FRAME.size
    wrong = [
        (0, room + 1),
        (room, 1),
        (1, room),
        (room + 1, 0),
        (ALL_ONES, 1),
        (0, ALL_ONES),
        (ALL_ONES, ALL_ONES),
        (8, ALL_ONES - 7),
    ]
    vector = device.calls["reverse"].vector
    for offset, length in wrong:
        slot = length << 32 | offset
        assert FRAMES.invoke(device, vector, (slot,), b"payload")[0] == Status.BAD_FRAME, hex(slot)
    told(rig.devices[0].faults, "BAD_FRAME", len(wrong))
    assert FRAMES.invoke(device, vector, (room,), b"")[0] == Status.OK, "an empty one at the end"
    assert device.call("reverse", b"abc") == b"cba"


class Sly(Device):
    """Its handlers do to the frame what another processor of the guest could do meanwhile."""

    id = 0x1AF4, 0x10F0
    frames = 2
    frame_size = 256

    def attach(self) -> None:
        self.frame = memoryview(b"")
        self.seen: list[int] = []

    @call
    def spoil(self, a: u64, data: bytes) -> u64:
        before = bytes(data)
        self.frame[:] = b"\xff" * len(self.frame)
        assert data == before
        return a + 1

    @call
    def note(self, a: u8) -> u8:
        self.seen.append(a)
        return a

    @call
    def length(self, data: bytes) -> u32:
        self.seen.append(len(data))
        return len(data)


def sly_frame(rig: Rig, index: int) -> memoryview:
    gate = rig.machine.functions[0].gate
    assert gate is not None
    start = gate.frames_offset + index * gate.frame_size
    return gate.ram[start : start + gate.frame_size]


def test_a_frame_that_changes_while_its_call_runs(make: MakeRig) -> None:
    """The host judged a copy: the answer is that of the call as it was made."""
    rig = make(Sly())
    sly = cast(Sly, rig.devices[0])
    device = rig.open(sly)
    sly.frame = sly_frame(rig, 0)
    frame = device.frames[0]
    slots = (41, 5 << 32)
    vector = device.calls["spoil"].vector
    reply = device.invoke(vector, slots, b"bytes", frame=frame, transport=MMIO)
    assert reply == (Status.OK, 0, (42,))
    assert frame.state == FrameState.DONE
    assert device.call("note", 7) == 7


@pytest.fixture
def often() -> Iterator[None]:
    """Let threads take turns so often that they meet anywhere."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.parametrize("name", ["note", "length"])
def test_a_frame_that_changes_while_it_is_read(make: MakeRig, often: None, name: str) -> None:
    """Whatever another thread stores when, a handler sees only what its types allow."""
    rig = make(Sly())
    sly = cast(Sly, rig.devices[0])
    device = rig.open(sly)
    sly.frame = sly_frame(rig, 0)
    quads = sly.frame.cast("Q")
    bad = 300 if name == "note" else 0xFFFF << 32
    head = 1 << 16
    stop = threading.Event()

    def spoil() -> None:
        while not stop.is_set():
            for value, count in ((5, head), (bad, head), (5, head | 0x8000), (5, 3 << 16)):
                quads[4] = value
                quads[1] = count

    thread = threading.Thread(target=spoil)
    thread.start()
    frame, vector = device.frames[0], device.calls[name].vector
    try:
        for _ in range(100):
            frame.submit(vector, head, (5,))
            device.ring(0, MMIO)
            device.wait(frame)  # The watcher may have been quicker, and not be done yet.
    finally:
        stop.set()
        thread.join()
    assert set(sly.seen) <= ({5} if name == "note" else {0, 5})
    assert set(sly.faults.counts) <= {"BAD_VALUE", "BAD_FRAME", "BAD_COUNT"}
    assert device.invoke(vector, (5,), transport=MMIO)[0] in (Status.OK, Status.BAD_FRAME)


def test_a_directory_that_the_guest_spoilt(make: MakeRig) -> None:
    """It is the guest's own loss: the host does not read it."""
    rig = make(Sums())
    device = rig.open(rig.devices[0])
    vector = device.calls["add"].vector
    base = device.function.bar(device.place.bar).address
    for offset in range(0, 0x200, 8):
        rig.door.write(base + offset, 8, ONES)
    assert FRAMES.invoke(device, vector, (2, 40)) == (Status.OK, 0, (42,))
    rig.devices[0].gate.bind("step")
    rig.reset()
    assert rig.open(rig.devices[0]).call("add", 2, 40) == 42


# --- buffers --------------------------------------------------------------------------------------


def test_buffers_that_are_not_memory(make: MakeRig, told: Told) -> None:
    rig = make(Bulk())
    device = rig.open(rig.devices[0])
    board = rig.machine.board
    ram = rig.machine.memory.slots[0]
    own = device.function.bar(device.place.bar).address
    wrong = [
        (ram.end, 1),
        (ram.end - 1, 2),
        (ram.end - 1, ONES),
        (ram.gpa, ram.length + 1),
        (ram.gpa, ONES),
        (board.ecam.base, 4),
        (own, 16),
        (ONES, 1),
        (ONES - 3, 4),
        (ONES - 3, 8),
        (1 << 63, 1 << 63),
        ((1 << 63) + 8, 1 << 63),
    ]
    for name, extra in (("total", ()), ("fill", (0,)), ("invert", ())):
        for gpa, length in wrong:
            vector = device.calls[name].vector
            answer = FRAMES.invoke(device, vector, (gpa, length, *extra))
            assert answer == (Status.BAD_BUFFER, 0, ()), (name, hex(gpa), hex(length))
    told(rig.devices[0].faults, "BAD_BUFFER", 3 * len(wrong))
    assert device.call("total", b"\1\2") == 3


def test_a_hole_between_two_pieces_of_memory(make: MakeRig, told: Told) -> None:
    """A range with a hole in it is refused as a whole; nothing is written before the hole."""
    rig = make(Bulk())
    device = rig.open(rig.devices[0])
    ram = rig.machine.memory.slots[0]
    rig.machine.memory.add(ram.end + 0x1000, bytearray(0x1000))
    rig.machine.memory.write(ram.end - 16, bytes(range(16)))
    vector = device.calls["fill"].vector
    for length in (17, 0x1001, 0x2010):
        answer = FRAMES.invoke(device, vector, (ram.end - 16, length, 0xEE))
        assert answer[0] == Status.BAD_BUFFER
    assert rig.machine.memory.read(ram.end - 16, 16) == bytes(range(16))
    told(rig.devices[0].faults, "BAD_BUFFER", 3)
    assert FRAMES.invoke(device, vector, (ram.end + 0x1000, 0x1000, 0xEE))[0] == Status.OK
    assert rig.door.read(ram.end + 0x1FFC, 4) == 0xEEEE_EEEE


def test_memory_that_is_read_only(make: MakeRig, told: Told) -> None:
    """A device may read it and not write it; the processor's stores to it are dropped."""
    rig = make(Bulk())
    device = rig.open(rig.devices[0])
    ram = rig.machine.memory.slots[0]
    rom, content = ram.end + 0x10_0000, bytes(range(256)) * 16
    rig.machine.memory.add(rom, content)
    calls = device.calls
    assert FRAMES.invoke(device, calls["total"].vector, (rom, 256))[2] == (sum(range(256)),)
    for length in (1, 4096):
        slots = (rom, length, 0)
        assert FRAMES.invoke(device, calls["fill"].vector, slots)[0] == Status.BAD_BUFFER
        assert FRAMES.invoke(device, calls["invert"].vector, slots[:2])[0] == Status.BAD_BUFFER
    told(rig.devices[0].faults, "BAD_BUFFER", 4)
    for size in rig.widths:
        assert rig.door.read(rom + 8, size) == int.from_bytes(content[8 : 8 + size], "little")
        rig.door.write(rom + 8, size, 0)
    assert rig.machine.memory.read(rom, 4096) == content
    told(rig.machine.bus.faults, "memory write", len(rig.widths))


class Late(Device):
    """Reaches for memory after the guest took it away."""

    id = 0x1AF4, 0x10F1
    frames = 2
    frame_size = 256

    @call
    def fill(self, data: BufferOut, value: u8) -> None:
        function = self.plugged
        function.config.set(COMMAND, 2, 0)  # type: ignore[attr-defined]
        function._follow()  # type: ignore[attr-defined]
        data.view[:] = bytes([value]) * len(data)

    @call
    def reach(self, gpa: u64, length: u64) -> None:
        self.memory.read(gpa, length)

    @call
    def keep(self, data: BufferInOut) -> u32:
        return len(data)


def test_memory_that_goes_while_a_call_runs(make: MakeRig, told: Told) -> None:
    rig = make(Late())
    device = rig.open(rig.devices[0])
    memory = rig.door.allocate(64)
    if REGISTERS in rig.ways(device):
        vector = device.calls["fill"].vector
        assert REGISTERS.invoke(device, vector, (memory.gpa, 64, 1))[0] == Status.BAD_BUFFER
        told(rig.devices[0].faults, "BAD_BUFFER", 1)
    assert rig.door.load(memory.gpa, 64) == bytes(64)


def test_a_model_that_trusts_an_address(make: MakeRig, told: Told) -> None:
    """A number is no buffer, and nobody checked it: then the access itself is refused."""
    rig = make(Late())
    device = rig.open(rig.devices[0])
    ram = rig.machine.memory.slots[0]
    for gpa, length in ((ram.end, 4), (ONES, 8), (ram.gpa, ONES), (1 << 62, 1 << 40)):
        vector = device.calls["reach"].vector
        assert FRAMES.invoke(device, vector, (gpa, length))[0] == Status.BAD_BUFFER
    told(rig.devices[0].faults, "BAD_BUFFER", 4)


def test_dma_without_bus_mastering(make: MakeRig, told: Told) -> None:
    rig = make(Bulk())
    device = rig.open(rig.devices[0])
    memory = rig.door.allocate(64)
    function = device.function
    function.set_config(COMMAND, 2, function.config(COMMAND, 2) & ~COMMAND_MASTER)
    for name, slots in (("total", ()), ("fill", (1,)), ("invert", ())):
        vector = device.calls[name].vector
        reply = FRAMES.invoke(device, vector, (memory.gpa, 64, *slots))
        assert reply == (Status.BAD_BUFFER, 0, ())
    told(rig.devices[0].faults, "BAD_BUFFER", 3)
    assert rig.door.load(memory.gpa, 64) == bytes(64)


# --- accesses -------------------------------------------------------------------------------------


def test_odd_accesses_to_registers(make: MakeRig, told: Told) -> None:
    """Misaligned, straddling, or where no register is: all ones, and nothing is written."""
    rig = make(Store())
    store = cast(Store, rig.devices[0])
    function = rig.function(store)
    before = dict(store._register_values)
    wrong = [(0x29, 4), (0x2A, 4), (0x2B, 2), (0x01, 1), (0x00, 2), (0x100, 4), (0xFFF, 1)]
    for offset, size in wrong:
        assert function.read(0, offset, size) == ONES >> 64 - 8 * size
        function.write(0, offset, size, 0)
    told(store.faults, "bad read", len(wrong))
    told(store.faults, "bad write", len(wrong))
    function.write(0, 0x10, 4, 0)
    function.write(0, 0x10, 4, 0)
    told(store.faults, "read-only register", 2)
    assert store._register_values == before


def test_odd_accesses_to_the_doorbell(make: MakeRig, told: Told) -> None:
    """32 bits, aligned, one of four: anything else rings nothing."""
    rig = make(Sums())
    sums = cast(Sums, rig.devices[0])
    device = rig.open(sums)
    frame = device.frames[0]
    frame.submit(device.calls["add"].vector, 2 << 16, (1, 2))
    doorbell = device.doorbell
    wrong = [(0, 1), (0, 2), (2, 2), (1, 4), (2, 4), (16, 4), (0xFFC, 4)]
    if 8 in rig.widths:
        wrong.append((0, 8))
    for offset, size in wrong:
        assert rig.door.read(doorbell + offset, size) == ONES >> 64 - 8 * size
        rig.door.write(doorbell + offset, size, 0)
    told(sums.faults, "doorbell page", 2 * len(wrong))
    assert sums.ran == 0
    assert frame.state == FrameState.READY
    device.ring(0, MMIO)
    assert frame.reply() == (Status.OK, 0, (3,))


def test_a_notify_that_leads_nowhere(make: MakeRig, told: Told) -> None:
    rig = make(Sums(), Sums())
    sums = cast(Sums, rig.devices[0])
    one, two = (rig.open(device) for device in rig.devices)
    notify = one.doorbell + DoorbellRegister.NOTIFY
    wrong = [0, ALL_ONES, one.calls["add"].vector, two.calls["poke"].vector]
    for vector in wrong:
        rig.door.write(notify, 4, vector)
    told(sums.faults, "notify", len(wrong))
    assert sums.ran == cast(Sums, rig.devices[1]).ran == 0


def test_odd_accesses_to_the_msix_table(make: MakeRig, told: Told) -> None:
    rig = make(Bell())
    function = rig.function(rig.devices[0])
    entry = function.msix_entry(0)
    for offset, size in ((0, 1), (4, 2), (2, 4), (13, 1)):
        assert rig.door.read(entry + offset, size) == ONES >> 64 - 8 * size
        rig.door.write(entry + offset, size, 0)
    faults = rig.devices[0].faults
    told(faults, "msix read", 4)
    told(faults, "msix write", 4)
    assert [rig.door.read(entry + at, 4) for at in (0, 4, 8, 12)] == [0, 0, 0, 1]


def test_interrupt_messages_to_nowhere(make: MakeRig, told: Told) -> None:
    """Where no RAM is, they are dropped; the device goes on."""
    rig = make(Bell())
    bell = cast(Bell, rig.devices[0])
    function = rig.function(bell)
    interrupt = function.interrupt(0)
    entry = function.msix_entry(0)
    own = [rig.door.read(entry + at, 4) for at in (0, 4)]
    hole = rig.machine.board.bars.base + 0x0400_0000
    for low, high in ((hole, 0), (0xFFFF_FFFC, 0xFFFF_FFFF), (entry & ALL_ONES, 0)):
        rig.door.write(entry, 4, low)
        rig.door.write(entry + 4, 4, high)
        function.write(0, 0x00, 4, 0)
    told(rig.machine.system.faults, "interrupt message", 3)
    for at, value in zip((0, 4), own, strict=True):
        rig.door.write(entry + at, 4, value)
    function.write(0, 0x00, 4, 0)
    assert interrupt.take()
    assert bell.rings == 4


def test_odd_accesses_to_config_space(make: MakeRig, told: Told) -> None:
    """By ECAM, where any access can be made: one that is not aligned is refused, or is bytes."""
    rig = make(Sums())
    sums = rig.devices[0]
    function = rig.function(sums)
    place = rig.machine.board.ecam.base + (function.address << 12)
    before = [function.config(at, 4) for at in range(0, 0x40, 4)]
    refused = 0
    for offset in (0x3D, 0x05, 0x11):
        bytes_there = function.config(offset, 1) | function.config(offset + 1, 1) << 8
        value = rig.door.read(place + offset, 2)
        # An emulator may have made two accesses of it, as some host bridges do.
        assert value in (0xFFFF, bytes_there)
        refused += value == 0xFFFF
        rig.door.write(place + offset, 2, bytes_there)
    if refused:
        told(sums.faults, "config read", refused)
        told(sums.faults, "config write", refused)
    assert [function.config(at, 4) for at in range(0, 0x40, 4)] == before


def test_accesses_to_nothing(make: MakeRig, told: Told) -> None:
    rig = make(Sums())
    hole = rig.machine.board.bars.base + 0x0400_0000
    for _ in range(10):
        assert rig.door.read(hole, 4) == ALL_ONES
        rig.door.write(hole, 4, 0)
        assert rig.door.io_read(0xF000, 2) == 0xFFFF
        rig.door.io_write(0xF000, 2, 0)
    for kind in ("memory read", "memory write", "port read", "port write"):
        told(rig.machine.bus.faults, kind, 10)


# --- BARs where they should not be ----------------------------------------------------------------


def put(function: PciFunction, bar: int, address: int) -> None:
    function.set_config(0x10 + 4 * bar, 4, address & ALL_ONES)


def test_a_bar_over_ram(make: MakeRig, told: Told) -> None:
    """RAM stays RAM, under the guest's own feet too; the BAR is hidden until it goes elsewhere."""
    rig = make(Store())
    store = rig.devices[0]
    function = rig.function(store)
    home = [function.bar(index).address for index in (0, 1)]
    ram = rig.machine.memory.slots[0]
    memory = rig.door.allocate(0x4000)
    page = memory.gpa + 0x1FFF & ~0x1FFF
    rig.door.store(page, b"guest's own")
    for target in (page, ram.gpa, ram.gpa + 0x10_0000, ram.end - 0x2000):
        for bar in (0, 1):
            put(function, bar, target)
            rig.door.write(page + 0x100, 4, target & ALL_ONES)
            assert rig.door.read(page + 0x100, 4) == target & ALL_ONES
            put(function, bar, home[bar])
    assert rig.door.load(page, 11) == b"guest's own"
    assert store.faults.counts == {}
    assert rig.machine.bus.faults.counts["BAR conflict"] >= 6
    assert function.read(0, 0x04, 4) == 0x3333_3333
    function.write(1, 0, 4, 0xC0FFEE)
    assert function.read(1, 0, 4) == 0xC0FFEE
    told(rig.machine.bus.faults, "BAR conflict", rig.machine.bus.faults.counts["BAR conflict"])


def test_a_bar_over_config_space_and_console(make: MakeRig) -> None:
    """What the board needs to go on stays where it is."""
    rig = make(Store())
    function = rig.function(rig.devices[0])
    board = rig.machine.board
    home, port = function.bar(0).address, function.bar(4).address
    for target in (board.ecam.base, board.ecam.base + 0x8000, 0xFEE0_0000):
        put(function, 0, target)
        assert function.id == Store.id
    if board.is_x86:
        for target in (board.console & ~0x1F, 0xCE0, 0x40):
            put(function, 4, target)
            assert function.id == Store.id
    else:
        put(function, 0, board.console)
        assert function.id == Store.id
    put(function, 0, home)
    put(function, 4, port)
    assert function.read(0, 0x04, 4) == 0x3333_3333
    assert function.read(4, 0, 4) == 0x5050_5050


def test_bars_over_each_other(make: MakeRig, told: Told) -> None:
    """The lower function wins; the other one is hidden, and back when the first goes."""
    rig = make(Store(), Store())
    one, two = (rig.function(device) for device in rig.devices)
    one.write(0, 0x04, 4, 1)
    two.write(0, 0x04, 4, 2)
    place, home = one.bar(0).address, two.bar(0).address
    put(two, 0, place)
    assert rig.door.read(place + 0x04, 4) == 1
    assert rig.door.read(home + 0x04, 4) == ALL_ONES
    told(rig.machine.bus.faults, "BAR conflict", 1)
    one.set_config(COMMAND, 2, 0)
    assert rig.door.read(place + 0x04, 4) == 2
    one.enable()
    assert rig.door.read(place + 0x04, 4) == 1
    put(two, 0, home)
    assert (one.read(0, 0x04, 4), two.read(0, 0x04, 4)) == (1, 2)


def test_two_bars_of_one_function_at_one_place(make: MakeRig) -> None:
    """Where both are, the lower BAR wins; the rest of the other still answers."""
    rig = make(Store())
    function = rig.function(rig.devices[0])
    registers, memory = function.bar(0).address, function.bar(1).address
    function.write(1, 0x1004, 4, 0xC0FFEE)
    put(function, 0, memory)
    assert rig.door.read(memory + 0x04, 4) == 0x3333_3333
    assert rig.door.read(memory + 0x1004, 4) == 0xC0FFEE
    put(function, 0, registers)
    assert rig.door.read(memory + 0x04, 4) == 0
    assert rig.door.read(registers + 0x04, 4) == 0x3333_3333


# --- too much -------------------------------------------------------------------------------------


def test_a_flood_against_a_quota(make: MakeRig, told: Told) -> None:
    """BUSY costs the host little, and a neighbour nothing."""
    rig = make(Held(), Sums(), clock=lambda: 0.0)
    held = cast(Held, rig.devices[0])
    device, neighbour = (rig.open(each) for each in rig.devices)
    held.gate.limit("step", per_second=10)
    vector = device.calls["step"].vector
    answers = []
    for number in range(100):
        answers.append(FRAMES.invoke(device, vector, (1,))[0])
        assert neighbour.call("add", number, 1) == number + 1
    assert answers == [Status.OK] * 10 + [Status.BUSY] * 90
    assert held.ran == 10
    told(held.faults, "BUSY", 90)


def test_a_flood_of_everything(make: MakeRig) -> None:
    """However often a guest errs: the log gets a line for each kind, the counts the rest."""
    rig = make(Sums())
    sums = rig.devices[0]
    device = rig.open(sums)
    for number in range(100):
        device.ring(1000 + number, MMIO)
        rig.door.read(device.doorbell + 0x40 + 4 * (number % 64), 4)
        FRAMES.invoke(device, number, ())
    assert sums.faults.counts == dict.fromkeys(
        ("frame index", "doorbell page", "NO_SUCH_VECTOR"), 100
    )
    assert device.call("add", 2, 40) == 42


# --- models ---------------------------------------------------------------------------------------


def bugs(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "callgate.device" and record.levelno == logging.ERROR
    ]


def comes_back(device: GateDevice, name: str, *slots: int) -> bool:
    """Whether the call is answered with OK after a while.

    A handler that was ended has its device until it gets to run once more.
    """
    vector = device.calls[name].vector
    return any(not FRAMES.invoke(device, vector, slots)[0] for _ in range(100))


def test_a_handler_that_raises(make: MakeRig, caplog: pytest.LogCaptureFixture) -> None:
    """The guest gets DEVICE_FAULT, the log one traceback, which names device and call."""
    rig = make(Broken(), Sums())
    device, neighbour = (rig.open(each) for each in rig.devices)
    for way in rig.ways(device):
        for _ in range(5):
            assert way.invoke(device, device.calls["fail"].vector)[0] == Status.DEVICE_FAULT
            assert neighbour.call("add", 1, 1) == 2
    (line,) = bugs(caplog)
    assert "broken.fail" in line
    assert "ZeroDivisionError: a bug in a handler" in line
    assert device.call("fine", 7) == 7
    assert rig.devices[0].faults.counts == {}, "it was no fault of the guest"


@pytest.mark.parametrize("name", ["misfit", "text", "flood"])
def test_a_result_that_does_not_fit(
    make: MakeRig, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    rig = make(Broken())
    device = rig.open(rig.devices[0])
    for _ in range(3):
        reply = FRAMES.invoke(device, device.calls[name].vector)
        assert reply == (Status.DEVICE_FAULT, 0, ())
    (line,) = bugs(caplog)
    assert f"broken.{name}" in line
    assert device.call("fine", 7) == 7


def test_a_hook_that_raises(make: MakeRig, caplog: pytest.LogCaptureFixture) -> None:
    rig = make(Broken())
    function = rig.function(rig.devices[0])
    for _ in range(3):
        assert function.read(0, 0, 4) == ALL_ONES
        function.write(0, 0, 4, 1)
    read, write = bugs(caplog)
    assert "broken.wrong" in read
    assert "broken.wrong" in write
    assert "RuntimeError: a bug in a hook" in read


def test_a_handler_that_never_ends(make: MakeRig, caplog: pytest.LogCaptureFixture) -> None:
    """TIMED_OUT when its time is up; the guest, and the device's other calls, go on."""
    rig = make(Broken(), Sums(), handler_timeout=0.05)
    broken = cast(Broken, rig.devices[0])
    device, neighbour = (rig.open(each) for each in rig.devices)
    try:
        for _ in range(2):
            reply = FRAMES.invoke(device, device.calls["spin"].vector)
            assert reply == (Status.TIMED_OUT, 0, ())
            assert neighbour.call("add", 2, 40) == 42
            assert comes_back(device, "fine", 7)
    finally:
        broken.give_up.set()
    line = bugs(caplog)[0]
    assert "broken.spin" in line
    assert "0.05 s" in line


class Stuck(Device):
    """A handler that waits in C, where no exception reaches it."""

    id = 0x1AF4, 0x10F2
    frames = 2
    frame_size = 256

    def attach(self) -> None:
        self.give_up = threading.Event()

    @call
    def wait(self) -> u32:
        self.give_up.wait(30)
        return 1

    @call
    def fine(self) -> u32:
        return 1


def test_a_handler_that_cannot_be_ended(make: MakeRig) -> None:
    """Its device is blocked and says so in time, its neighbours are not; later all is well."""
    rig = make(Stuck(), Sums(), handler_timeout=0.05)
    stuck = cast(Stuck, rig.devices[0])
    device, neighbour = (rig.open(each) for each in rig.devices)
    try:
        reply = FRAMES.invoke(device, device.calls["wait"].vector)
        assert reply[0] == Status.TIMED_OUT
        for _ in range(3):
            began = time.monotonic()
            assert neighbour.call("add", 2, 40) == 42
            blocked = FRAMES.invoke(device, device.calls["fine"].vector)[0]
            assert blocked in (Status.TIMED_OUT, Status.BUSY)
            assert time.monotonic() - began < 5
    finally:
        stuck.give_up.set()
    assert comes_back(device, "fine")


class Quitter(Device):
    """Models that want to end the process, or to give what no register holds."""

    id = 0x1AF4, 0x10F3
    area = Bar(0, 0x1000)
    wide = Register(0x00, width=8)

    @wide.on_read
    def read_wide(self) -> int:
        return 300

    @area.on_read
    def read_area(self, offset: int, size: int) -> int:
        return -1

    @area.on_write
    def write_area(self, offset: int, size: int, value: int) -> None:
        raise KeyError(offset)


def test_a_hook_whose_value_does_not_fit(make: MakeRig, caplog: pytest.LogCaptureFixture) -> None:
    rig = make(Quitter())
    function = rig.function(rig.devices[0])
    assert function.read(0, 0, 1) == 0xFF
    assert function.read(0, 0x10, 4) == ALL_ONES
    for offset in (0x10, 0x20, 0x30):
        function.write(0, offset, 4, 1)
    assert len(bugs(caplog)) in (2, 3)
