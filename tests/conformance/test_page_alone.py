# SPDX-License-Identifier: MIT
"""docs/abi.md alone suffices to write a driver: this one was written from it.

The numbers below are typed in from the page, and nothing of callgate's own driver is used. The
comments name the page's section.
"""

import hashlib
import struct
import threading
import time
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import NamedTuple, Protocol, TypeVar

import pytest

from callgate import (
    BufferIn,
    BufferInOut,
    BufferOut,
    Device,
    DeviceError,
    Interrupt,
    Machine,
    Register,
    call,
    i8,
    i16,
    i32,
    i64,
    u8,
    u16,
    u32,
    u64,
)
from callgate.pci.bus import Place

# --- The platform, and PCI -----------------------------------------------------------------------

ECAM = 0xB000_0000
RAM_END = 32 << 20
ALL_ONES = 0xFFFF_FFFF

COMMAND, STATUS, BAR0, CAPABILITIES = 0x04, 0x06, 0x10, 0x34
IO_DECODE, MEMORY_DECODE, BUS_MASTER = 1, 2, 4
HAS_CAPABILITIES = 1 << 4
MSIX_ENABLE = 1 << 15
MSIX = 0x11

# --- docs/abi.md ---------------------------------------------------------------------------------

VENDOR_SPECIFIC = 0x09
CGAT = int.from_bytes(b"CGAT", "little")
CGHD = int.from_bytes(b"CGHD", "little")

HYPERCALL, PIO, MMIO, POLLED = 1, 2, 4, 8  # transports
FEATURE_POLLED, FEATURE_NOTIFY, FEATURE_CHANGE, FEATURE_DONE = 1, 2, 4, 8
ONE_WAY, PAYLOAD_IN, PAYLOAD_OUT, BUFFERS, REGISTERS = 1, 2, 4, 8, 0x10  # a call's flags
FRAME_ONE_WAY, FRAME_INTERRUPT = 1, 2
FREE, READY, RUNNING, DONE = 0, 1, 2, 3

OK, NO_SUCH_VECTOR, REVOKED, BAD_COUNT, BAD_VALUE, BAD_BUFFER = range(6)
BAD_FRAME, DENIED, BUSY, DEVICE_ERROR, DEVICE_FAULT, TIMED_OUT = range(6, 12)

DOORBELL, NOTIFY, VERSION, FEATURES = 0x00, 0x04, 0x08, 0x0C
VERSION_1_0 = 1 << 16

T = TypeVar("T")

PAYLOAD = 0x80
SLOTS = 12


class Hardware(Protocol):
    """What a processor can do."""

    def mem_read(self, address: int, size: int) -> int: ...
    def mem_write(self, address: int, size: int, value: int) -> None: ...
    def io_read(self, port: int, size: int) -> int: ...
    def io_write(self, port: int, size: int, value: int) -> None: ...


class Ecam:
    """One function's configuration space."""

    def __init__(self, hardware: Hardware, slot: int, function: int = 0) -> None:
        self._hardware = hardware
        self._base = ECAM + (slot << 15) + (function << 12)

    def read(self, offset: int, size: int) -> int:
        return self._hardware.mem_read(self._base + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self._hardware.mem_write(self._base + offset, size, value)

    def bytes(self, offset: int, length: int) -> bytes:
        return bytes(self.read(offset + i, 1) for i in range(length))

    def capabilities(self) -> Iterator[tuple[int, int]]:
        """Yield (id, offset)."""
        if not self.read(STATUS, 2) & HAS_CAPABILITIES:
            return
        place = self.read(CAPABILITIES, 1) & ~3
        for _ in range(48):
            if not place:
                return
            yield self.read(place, 1), place
            place = self.read(place + 1, 1) & ~3

    def bar(self, index: int) -> int:
        low = self.read(BAR0 + 4 * index, 4)
        if low & 1:
            return low & ~3
        high = self.read(BAR0 + 4 * index + 4, 4) if low & 6 == 4 else 0
        return (high << 32) | (low & ~0xF)


class Capability(NamedTuple):
    """Section 2."""

    id: int
    next: int
    length: int
    bar: int
    signature: int
    version_minor: int
    version_major: int
    gate_offset: int
    gate_length: int
    doorbell_offset: int
    transports: int
    instruction: int
    pio_bar: int
    reserved: int
    pio_offset: int
    selector: int
    frame_count: int
    entry_count: int


CAPABILITY = struct.Struct("<BBBBIHHIIIBBBBIIHH")


class Header(NamedTuple):
    """Section 3, up to `text_length`."""

    signature: int
    version_minor: int
    version_major: int
    features: int
    generation: int
    uuid: bytes
    device_version: int
    directory_offset: int
    entry_count: int
    entry_size: int
    frames_offset: int
    frame_count: int
    interrupt: int
    frame_size: int
    doorbell_offset: int
    doorbell_vector: int
    name: bytes
    text_offset: int
    text_length: int


HEADER = struct.Struct("<IHHII16sIIHHIHHIII40sII")
GENERATION, WATCHING, HEADER_SIZE = 0x0C, 0x80, 0xC0


class Entry(NamedTuple):
    """Section 4."""

    vector: int
    arguments: int
    results: int
    flags: int
    signature: int
    name: bytes
    text_offset: int
    text_length: int


ENTRY = struct.Struct("<IBBHQ40sII")


class Answer(NamedTuple):
    status: int
    code: int
    values: tuple[int, ...]
    payload: Callable[[int], bytes]
    """The bytes that a result slot names."""


class NoSuchCall(Exception):
    """The directory does not have it, or it is not bound."""


class WrongSignature(Exception):
    """The driver was built for another ABI."""


class Lost(Exception):
    """The device was reset: the call may have run or not."""


def signature_hash(text: str) -> int:
    """Section 4: the first 8 bytes of the SHA-256, as a little-endian number."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def capability_of(config: Ecam) -> Capability | None:
    """Section 2."""
    for kind, place in config.capabilities():
        if kind == VENDOR_SPECIFIC and config.read(place + 4, 4) == CGAT:
            found = Capability._make(CAPABILITY.unpack(config.bytes(place, CAPABILITY.size)))
            if found.length >= CAPABILITY.size and found.version_major == 1:
                return found
    return None


class Driver:
    """One device's calls."""

    def __init__(self, hardware: Hardware, slot: int) -> None:
        self.hardware = hardware
        self.config = Ecam(hardware, slot)
        capability = capability_of(self.config)
        assert capability is not None
        self.capability = capability
        self.config.write(COMMAND, 2, IO_DECODE | MEMORY_DECODE | BUS_MASTER)
        self.gate = self.config.bar(capability.bar) + capability.gate_offset
        self.doorbell = self.gate + capability.doorbell_offset
        self.accepted = 0
        self.header = self.read_header()

    def copy(self, address: int, length: int) -> bytes:
        # Eight at a time, since plain memory has no width of its own.
        start = address & ~7
        words = range(start, address + length, 8)
        data = b"".join(self.hardware.mem_read(word, 8).to_bytes(8, "little") for word in words)
        return data[address - start :][:length]

    def store(self, address: int, data: bytes) -> None:
        for i, byte in enumerate(data):
            self.hardware.mem_write(address + i, 1, byte)

    # Section 3

    def read_header(self) -> Header:
        def read(_: int) -> Header:
            return Header._make(HEADER.unpack(self.copy(self.gate, HEADER.size)))

        return self.consistently(read)

    def consistently(self, read: Callable[[int], T]) -> T:
        """Return what `read` (which is given the generation) read while nothing changed."""
        for _ in range(1000):
            generation = self.generation
            if generation % 2:
                continue
            found = read(generation)
            if self.generation == generation:
                return found
        raise AssertionError("The directory never rests")

    @property
    def generation(self) -> int:
        return self.hardware.mem_read(self.gate + GENERATION, 4)

    def negotiate(self, version: int, features: int = 0) -> tuple[int, int]:
        """Return what the host agreed to."""
        self.hardware.mem_write(self.doorbell + VERSION, 4, version)
        agreed = self.hardware.mem_read(self.doorbell + VERSION, 4)
        self.hardware.mem_write(self.doorbell + FEATURES, 4, features)
        self.accepted = self.hardware.mem_read(self.doorbell + FEATURES, 4)
        return agreed, self.accepted

    # Section 4

    def entries(self) -> list[Entry]:
        header = self.header

        def read(_: int) -> list[Entry]:
            first = self.gate + header.directory_offset
            places = range(first, first + header.entry_count * header.entry_size, header.entry_size)
            return [Entry._make(ENTRY.unpack(self.copy(place, ENTRY.size))) for place in places]

        return self.consistently(read)

    def entry(self, name: str) -> Entry:
        wanted = name.encode().ljust(40, b"\0")
        for entry in self.entries():
            if entry.name == wanted:
                return entry
        raise NoSuchCall(name)

    def text(self, entry: Entry) -> str:
        return self.copy(self.gate + entry.text_offset, entry.text_length).decode()

    def find(self, text: str) -> int:
        """Return the vector of the call with this signature."""
        entry = self.entry(text.partition("(")[0])
        if not entry.vector:
            raise NoSuchCall(text)
        if entry.signature != signature_hash(text):
            raise WrongSignature(text)
        return entry.vector

    # Section 5

    def frame(self, index: int) -> int:
        return self.gate + self.header.frames_offset + index * self.header.frame_size

    def state(self, index: int = 0) -> int:
        return self.hardware.mem_read(self.frame(index), 4)

    def fill(
        self,
        vector: int,
        values: tuple[int, ...] = (),
        payload: bytes = b"",
        *,
        index: int = 0,
        flags: int = 0,
        count: int | None = None,
    ) -> None:
        frame = self.frame(index)
        assert self.state(index) in (FREE, DONE)
        hardware = self.hardware
        hardware.mem_write(frame + 0x04, 4, vector)
        hardware.mem_write(frame + 0x08, 2, flags)
        hardware.mem_write(frame + 0x0A, 1, len(values) if count is None else count)
        hardware.mem_write(frame + 0x10, 8, 0)
        for slot, value in enumerate(values):
            hardware.mem_write(frame + 0x20 + 8 * slot, 8, value & 0xFFFF_FFFF_FFFF_FFFF)
        self.store(frame + PAYLOAD, payload)
        hardware.mem_write(frame, 4, READY)

    def ring(self, index: int = 0) -> None:
        self.hardware.mem_write(self.doorbell + DOORBELL, 4, index)

    def ring_pio(self, index: int = 0) -> None:
        self.hardware.io_write(self.port + DOORBELL, 4, index)

    @property
    def port(self) -> int:
        return self.config.bar(self.capability.pio_bar) + self.capability.pio_offset

    def wait(self, index: int = 0) -> Answer:
        while (state := self.state(index)) != DONE:
            if state == FREE:
                raise Lost
            assert self.hardware.mem_read(self.doorbell, 4) != ALL_ONES
            time.sleep(0.0001)
        frame, hardware = self.frame(index), self.hardware
        results = hardware.mem_read(frame + 0x0B, 1)

        def payload(slot: int) -> bytes:
            start, length = slot & ALL_ONES, slot >> 32
            return self.copy(frame + PAYLOAD + start, length)

        return Answer(
            hardware.mem_read(frame + 0x0C, 4),
            hardware.mem_read(frame + 0x10, 8),
            tuple(hardware.mem_read(frame + 0x20 + 8 * slot, 8) for slot in range(results)),
            payload,
        )

    def call(
        self,
        vector: int,
        *values: int,
        payload: bytes = b"",
        index: int = 0,
        flags: int = 0,
        count: int | None = None,
        pio: bool = False,
    ) -> Answer:
        self.fill(vector, values, payload, index=index, flags=flags, count=count)
        if not (self.accepted & FEATURE_POLLED and self.hardware.mem_read(self.gate + WATCHING, 4)):
            (self.ring_pio if pio else self.ring)(index)
        return self.wait(index)

    def enable_msix(self, table_index: int, address: int, data: int) -> None:
        place = next(place for kind, place in self.config.capabilities() if kind == MSIX)
        where = self.config.read(place + 4, 4)
        entry = self.config.bar(where & 7) + (where & ~7) + 16 * table_index
        for offset, value in ((0, address), (4, 0), (8, data), (12, 0)):
            self.hardware.mem_write(entry + offset, 4, value)
        self.config.write(place + 2, 2, MSIX_ENABLE)


def at(start: int, length: int) -> int:
    """Return the slot of a `bytes` value."""
    return length << 32 | start


# --- The device ----------------------------------------------------------------------------------


class Color(IntEnum):
    RED = 1
    BLUE = 7


class Sample(Device):
    """A device with a call of each kind."""

    id = 0x1AF4, 0x10F7
    note = Register(0x00)
    done = Interrupt("something is done")

    def __init__(self) -> None:
        self.pinged = 0
        self.kept = 0

    @call
    def add(self, a: u64, b: u64) -> u64:
        return (a + b) & 0xFFFF_FFFF_FFFF_FFFF

    @call
    def negate(self, a: i8, b: i16, c: i32, d: i64) -> tuple[i8, i16, i32, i64]:
        return -a, -b, -c, -d

    @call
    def narrow(self, a: u8, b: u16, c: u32, d: bool) -> tuple[bool, u32]:
        return not d, a + b + c

    @call
    def paint(self, color: Color) -> Color:
        return Color.BLUE if color is Color.RED else Color.RED

    @call
    def turn(self, data: bytes, more: bytes) -> tuple[bytes, bytes]:
        return more[::-1], data[::-1]

    @call
    def grow(self, size: u32) -> bytes:
        return bytes(size)

    @call
    def total(self, data: BufferIn) -> u64:
        return sum(data.view)

    @call
    def count_up(self, data: BufferOut) -> None:
        data.view[:] = bytes(i & 0xFF for i in range(len(data)))

    @call
    def invert(self, data: BufferInOut) -> None:
        data.view[:] = bytes(byte ^ 0xFF for byte in data.view)

    @call
    def refuse(self, code: u64) -> u32:
        raise DeviceError(code, "as asked")

    @call
    def crash(self) -> None:
        raise ZeroDivisionError("as asked")

    @call
    def hang(self) -> None:
        while True:
            time.sleep(0.001)

    @call(one_way=True)
    def ping(self) -> None:
        self.pinged += 1

    @call(one_way=True)
    def keep(self, value: u32) -> None:
        self.kept = value


class Other(Device):
    """A device with a call of its own."""

    id = 0x1AF4, 0x10F6

    @call
    def one(self) -> u8:
        return 1


class Slow(Device):
    """A device that answers when it is told to."""

    id = 0x1AF4, 0x10F5
    parallel = True

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.leave = threading.Event()

    @call
    def block(self) -> None:
        self.entered.set()
        self.leave.wait(5)


ADD = "add(u64,u64)->u64"
PING = "ping()->()"

SIGNATURES = {
    ADD: (2, 1, REGISTERS),
    "negate(i8,i16,i32,i64)->(i8,i16,i32,i64)": (4, 4, REGISTERS),
    "narrow(u8,u16,u32,bool)->(bool,u32)": (4, 2, REGISTERS),
    "turn(bytes,bytes)->(bytes,bytes)": (2, 2, PAYLOAD_IN | PAYLOAD_OUT),
    "grow(u32)->bytes": (1, 1, PAYLOAD_OUT),
    "total(in)->u64": (2, 1, BUFFERS | REGISTERS),
    "count_up(out)->()": (2, 0, BUFFERS | REGISTERS),
    "invert(inout)->()": (2, 0, BUFFERS | REGISTERS),
    "refuse(u64)->u32": (1, 1, REGISTERS),
    "crash()->()": (0, 0, REGISTERS),
    PING: (0, 0, ONE_WAY | REGISTERS),
    "keep(u32)->()": (1, 0, ONE_WAY | REGISTERS),
}


class Host(Protocol):
    """What the host side may do to a device's calls."""

    def bind(self, name: str) -> int: ...
    def revoke(self, name: str) -> None: ...
    def deny(self, *names: str) -> None: ...
    def allow(self, *names: str) -> None: ...
    def limit(self, name: str, *, per_second: float | None) -> None: ...


def host(machine: Machine, device: int = 0) -> Host:
    gate = machine.functions[device].gate
    assert gate is not None
    return gate


@pytest.fixture
def sample() -> Sample:
    return Sample()


@pytest.fixture
def machine(sample: Sample) -> Iterator[Machine]:
    # The host does not watch, so that only a doorbell makes it look.
    with Machine(sample, Other(), on="loopback", watch=False) as machine:
        yield machine


@pytest.fixture
def driver(machine: Machine) -> Driver:
    return Driver(machine.bus, 1)


# --- Section 2: discovery ------------------------------------------------------------------------


class Ports:
    """Configuration space by CF8 and CFC, as `Ecam`."""

    def __init__(self, hardware: Hardware, slot: int) -> None:
        self._hardware = hardware
        self._slot = slot

    def read(self, offset: int, size: int) -> int:
        self._hardware.io_write(0xCF8, 4, 0x8000_0000 | self._slot << 11 | offset & 0xFC)
        return self._hardware.io_read(0xCFC + (offset & 3), size)


def test_a_walk_of_the_bus_finds_the_devices(machine: Machine) -> None:
    found = {}
    for slot in range(32):
        config = Ecam(machine.bus, slot)
        if config.read(0, 4) != ALL_ONES and capability_of(config) is not None:
            found[slot] = config.read(0, 4)
    assert found == {1: 0x10F7_1AF4, 2: 0x10F6_1AF4}


def test_the_capability_names_gate_and_transports(machine: Machine, driver: Driver) -> None:
    found = driver.capability
    assert found.length >= 0x28
    assert (found.version_major, found.version_minor) == (1, 0)
    assert found.transports & (MMIO | PIO) == MMIO | PIO
    assert found.gate_offset % 4096 == found.doorbell_offset % 4096 == 0
    assert found.gate_length == found.doorbell_offset + 4096
    assert found.bar < 6
    assert found.pio_bar < 6
    assert found.reserved == 0
    header = driver.header
    assert (found.doorbell_offset, found.frame_count, found.entry_count) == (
        header.doorbell_offset,
        header.frame_count,
        header.entry_count,
    )


def test_config_ports_show_the_same_capability(machine: Machine, driver: Driver) -> None:
    ports = Ports(machine.bus, 1)
    place = next(p for kind, p in driver.config.capabilities() if kind == VENDOR_SPECIFIC)
    by_ports = bytes(ports.read(place + i, 1) for i in range(CAPABILITY.size))
    assert by_ports == driver.config.bytes(place, CAPABILITY.size)


def test_a_gate_that_is_gone_reads_all_ones(machine: Machine, driver: Driver) -> None:
    machine.bus.unplug(Place(1, 0))
    assert driver.config.read(0, 4) == ALL_ONES
    assert machine.bus.mem_read(driver.doorbell, 4) == ALL_ONES


# --- Section 3: the header -----------------------------------------------------------------------


def test_the_header(driver: Driver) -> None:
    header = driver.header
    assert header.signature == CGHD
    assert (header.version_major, header.version_minor) == (1, 0)
    assert header.name == b"sample".ljust(40, b"\0")
    assert header.generation % 2 == 0
    for offset in (
        header.directory_offset,
        header.entry_size,
        header.frames_offset,
        header.frame_size,
    ):
        assert offset % 8 == 0
    assert header.entry_size >= 0x40
    assert header.frame_size >= 256
    assert header.directory_offset >= HEADER_SIZE
    for end in (
        header.directory_offset + header.entry_count * header.entry_size,
        header.frames_offset + header.frame_count * header.frame_size,
        header.text_offset + header.text_length,
    ):
        assert end <= header.doorbell_offset
    assert any(header.uuid)
    assert 0 < header.doorbell_vector < 1 << 31


def test_the_version_is_agreed_upon(driver: Driver) -> None:
    assert driver.negotiate(VERSION_1_0) == (VERSION_1_0, 0)
    offered = driver.header.version_major << 16 | driver.header.version_minor
    assert driver.negotiate(offered)[0] == offered
    for version in (offered + 1, 2 << 16, 0):
        assert driver.negotiate(version)[0] == 0


def test_features_in_force_are_those_that_both_know(driver: Driver) -> None:
    offered = driver.header.features
    assert driver.negotiate(VERSION_1_0, ALL_ONES)[1] == offered
    assert driver.negotiate(VERSION_1_0, 1 << 31)[1] == 0
    assert driver.negotiate(VERSION_1_0, FEATURE_NOTIFY | 1 << 31)[1] == FEATURE_NOTIFY


# --- Section 4: the directory --------------------------------------------------------------------


def test_the_directory_has_each_call_once(driver: Driver) -> None:
    entries = {entry.name.rstrip(b"\0").decode(): entry for entry in driver.entries()}
    for text, shape in SIGNATURES.items():
        entry = entries[text.partition("(")[0]]
        assert (entry.arguments, entry.results, entry.flags) == shape, text
        assert driver.text(entry) == text
        assert entry.signature == signature_hash(text)
        assert 0 < entry.vector < 1 << 31


def test_the_example_hash() -> None:
    assert signature_hash(ADD) == 0xB68BD69F011C6117


def test_an_enumeration_counts_as_its_integer(driver: Driver) -> None:
    assert driver.text(driver.entry("paint")) == "paint(u32)->u32"


def test_another_signature_is_refused(driver: Driver) -> None:
    with pytest.raises(WrongSignature):
        driver.find("add(u32,u32)->u32")
    with pytest.raises(NoSuchCall):
        driver.find("subtract(u64,u64)->u64")


def test_a_binding_changes_the_generation(machine: Machine, driver: Driver) -> None:
    before = driver.generation
    host(machine).bind("add")
    assert driver.generation != before
    assert driver.generation % 2 == 0
    assert machine.bus.mem_read(driver.doorbell, 4) == driver.generation
    assert machine.bus.io_read(driver.port, 4) == driver.generation


def test_the_directory_is_read_while_it_changes(machine: Machine, driver: Driver) -> None:
    bound = [driver.find(ADD)]
    reads = 0

    def read(_: int) -> int:
        nonlocal reads
        reads += 1
        if reads == 1:  # between the two looks at the generation
            bound.append(host(machine).bind("add"))
        place = driver.gate + driver.header.directory_offset
        return machine.bus.mem_read(place, 4)

    assert driver.consistently(read) == bound[1]
    assert reads == 2


# --- Sections 5 and 6: calls ---------------------------------------------------------------------


@pytest.fixture(params=["mmio", "pio"])
def pio(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "pio")


def test_integers(driver: Driver, pio: bool) -> None:
    add = driver.find(ADD)
    assert driver.call(add, 2, 40, pio=pio)[:3] == (OK, 0, (42,))
    assert driver.call(add, (1 << 64) - 1, 2, pio=pio).values == (1,)


def test_negative_numbers_are_sign_extended(driver: Driver, pio: bool) -> None:
    negate = driver.find("negate(i8,i16,i32,i64)->(i8,i16,i32,i64)")
    answer = driver.call(negate, 1, -2, 3, -4, pio=pio)
    minus_one, minus_three = (1 << 64) - 1, (1 << 64) - 3
    assert answer[:3] == (OK, 0, (minus_one, 2, minus_three, 4))
    # The same bits zero-extended are no i8.
    assert driver.call(negate, 0xFF, 0, 0, 0, pio=pio).status == BAD_VALUE


def test_bools_and_narrow_numbers(driver: Driver) -> None:
    narrow = driver.find("narrow(u8,u16,u32,bool)->(bool,u32)")
    assert driver.call(narrow, 255, 65535, 1, 1).values == (0, 65791)
    for values in ((256, 0, 0, 0), (0, 65536, 0, 0), (0, 0, 1 << 32, 0), (0, 0, 0, 2)):
        answer = driver.call(narrow, *values)
        assert answer[:3] == (BAD_VALUE, 0, ())


def test_enumerations(driver: Driver) -> None:
    paint = driver.find("paint(u32)->u32")
    assert driver.call(paint, 1).values == (7,)
    assert driver.call(paint, 2).status == BAD_VALUE


def test_bytes_both_ways(driver: Driver, pio: bool) -> None:
    turn = driver.find("turn(bytes,bytes)->(bytes,bytes)")
    answer = driver.call(turn, at(0, 3), at(8, 5), payload=b"abc.....hello", pio=pio)
    assert answer.status == OK
    # The first from the payload's start, the second at the next multiple of 8.
    assert answer.values == (at(0, 5), at(8, 3))
    assert [answer.payload(slot) for slot in answer.values] == [b"olleh", b"cba"]


def test_bytes_need_no_alignment_and_may_be_none(driver: Driver) -> None:
    turn = driver.find("turn(bytes,bytes)->(bytes,bytes)")
    room = driver.header.frame_size - PAYLOAD
    answer = driver.call(turn, at(1, 3), at(room, 0), payload=b".abc")
    assert [answer.payload(slot) for slot in answer.values] == [b"", b"cba"]


def test_a_payload_that_leaves_the_frame(driver: Driver) -> None:
    turn = driver.find("turn(bytes,bytes)->(bytes,bytes)")
    room = driver.header.frame_size - PAYLOAD
    for slot in (at(room, 1), at(room + 1, 0), at(0, room + 1), at(ALL_ONES, ALL_ONES)):
        assert driver.call(turn, slot, at(0, 0)).status == BAD_FRAME


def test_a_whole_payload_comes_back(driver: Driver) -> None:
    grow = driver.find("grow(u32)->bytes")
    room = driver.header.frame_size - PAYLOAD
    answer = driver.call(grow, room)
    assert answer.values == (at(0, room),)
    assert driver.call(grow, room + 1)[:3] == (DEVICE_FAULT, 0, ())


def test_buffers(machine: Machine, driver: Driver, pio: bool) -> None:
    machine.memory.write(0x1000, b"\x01\x02\x03\x04")
    total = driver.find("total(in)->u64")
    assert driver.call(total, 0x1000, 4, pio=pio).values == (10,)
    assert driver.call(driver.find("count_up(out)->()"), 0x2000, 4, pio=pio).status == OK
    assert machine.memory.read(0x2000, 5) == b"\x00\x01\x02\x03\x00"
    assert driver.call(driver.find("invert(inout)->()"), 0x1001, 2, pio=pio).status == OK
    assert machine.memory.read(0x1000, 4) == b"\x01\xfd\xfc\x04"


def test_buffers_must_be_memory(driver: Driver) -> None:
    total = driver.find("total(in)->u64")
    for gpa, length in (
        (RAM_END - 1, 2),
        (RAM_END, 1),
        (0, RAM_END + 1),
        ((1 << 64) - 1, 2),
        (driver.gate, 8),
    ):
        assert driver.call(total, gpa, length).status == BAD_BUFFER
    assert driver.call(total, RAM_END - 1, 1).status == OK
    assert driver.call(total, 0, 0)[:3] == (OK, 0, (0,))


def test_buffers_need_bus_mastering(driver: Driver) -> None:
    driver.config.write(COMMAND, 2, IO_DECODE | MEMORY_DECODE)
    assert driver.call(driver.find("total(in)->u64"), 0x1000, 4).status == BAD_BUFFER
    assert driver.call(driver.find(ADD), 1, 2).status == OK


def test_the_devices_own_code(driver: Driver, pio: bool) -> None:
    refuse = driver.find("refuse(u64)->u32")
    assert driver.call(refuse, 77, pio=pio)[:3] == (DEVICE_ERROR, 77, ())
    assert driver.call(refuse, (1 << 64) - 1, pio=pio).code == (1 << 64) - 1


@pytest.mark.filterwarnings("default")
def test_a_model_that_fails(driver: Driver) -> None:
    assert driver.call(driver.find("crash()->()"))[:3] == (DEVICE_FAULT, 0, ())
    assert driver.call(driver.find(ADD), 1, 2).status == OK


class Rough(Device):
    """Calls that end otherwise."""

    id = 0x1AF4, 0x10F5
    frames = 2

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.end = threading.Event()
        self.seen = 0

    @call
    def decline(self) -> None:
        raise DeviceError(-5)

    @call
    def follow(self, address: u64) -> u64:
        self.seen += 1
        return int.from_bytes(self.memory.read(address, 8), "little")

    @call
    def hold(self) -> u64:
        self.begun.set()
        self.end.wait(10)
        return 7


def test_a_negative_code_comes_in_twos_complement() -> None:
    with Machine(Rough(), on="loopback", watch=False) as machine:
        driver = Driver(machine.bus, 1)
        answer = driver.call(driver.find("decline()->()"))
        assert (answer.status, answer.code) == (DEVICE_ERROR, 0xFFFF_FFFF_FFFF_FFFB)


def test_an_address_that_the_model_follows_is_bad_when_it_is_used() -> None:
    rough = Rough()
    with Machine(rough, on="loopback", watch=False) as machine:
        driver = Driver(machine.bus, 1)
        follow = driver.find("follow(u64)->u64")
        machine.memory.write(0x1000, b"\1" + bytes(7))
        assert driver.call(follow, 0x1000).values == (1,)
        assert driver.call(follow, RAM_END)[:3] == (BAD_BUFFER, 0, ())
        assert rough.seen == 2  # It ran in part.


def test_a_call_that_outlives_a_reset_is_answered_when_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("callgate.gate.gate.RESET_DRAIN", 0.05)
    rough = Rough()
    with Machine(rough, on="loopback", watch=False) as machine:
        driver = Driver(machine.bus, 1)
        hold = driver.find("hold()->u64")
        driver.fill(hold, (), index=1)
        vcpu = threading.Thread(target=driver.ring, args=(1,))
        vcpu.start()
        assert rough.begun.wait(5)
        driver.fill(hold, (), index=0)
        gate = machine.functions[0].gate
        assert gate is not None
        gate.reset()  # The function's own would take its addresses away.
        assert driver.state(0) == FREE
        assert driver.state(1) in (READY, RUNNING)
        assert driver.find("hold()->u64") != hold
        rough.end.set()
        vcpu.join(5)
        assert driver.state(1) == DONE
        assert driver.wait(1).values == (7,)


def test_a_handler_that_takes_too_long() -> None:
    with Machine(Sample(), on="loopback", handler_timeout=0.1, watch=False) as machine:
        driver = Driver(machine.bus, 1)
        assert driver.call(driver.find("hang()->()"))[:3] == (TIMED_OUT, 0, ())


def test_counts(driver: Driver) -> None:
    add = driver.find(ADD)
    for count in (0, 1, 3, SLOTS, SLOTS + 1, 255):
        assert driver.call(add, 1, 2, count=count)[:3] == (BAD_COUNT, 0, ())


def test_frame_flags(driver: Driver) -> None:
    add = driver.find(ADD)
    for flags in (0x04, 0x8000):
        assert driver.call(add, 1, 2, flags=flags).status == BAD_FRAME


def test_vectors_that_lead_nowhere(machine: Machine, driver: Driver) -> None:
    other = Driver(machine.bus, 2).find("one()->u8")
    bound = {entry.vector for entry in driver.entries()}
    never = next(vector for vector in range(1, 1 << 31) if vector not in bound)
    for vector in (0, never, driver.find(ADD) | 1 << 31, ALL_ONES, other):
        assert driver.call(vector, 1, 2).status == NO_SUCH_VECTOR
    # Bound to another device, but no more.
    host(machine, 1).revoke("one")
    assert driver.call(other).status == REVOKED


def test_the_order_of_judgement(machine: Machine, driver: Driver) -> None:
    add, total = driver.find(ADD), driver.find("total(in)->u64")
    narrow = driver.find("narrow(u8,u16,u32,bool)->(bool,u32)")
    assert driver.call(0, flags=0x80).status == BAD_FRAME  # before the vector
    assert driver.call(narrow, 256, 0, 0).status == BAD_COUNT  # before the values
    assert driver.call(total, RAM_END).status == BAD_COUNT  # before the buffers
    host(machine).deny("add")
    assert driver.call(add, 1, 2, 3).status == DENIED  # before the count
    assert driver.call(add, 1, 2, flags=0x80).status == BAD_FRAME


def test_each_frame_is_its_own(driver: Driver) -> None:
    add = driver.find(ADD)
    for index in range(driver.header.frame_count):
        assert driver.call(add, index, 1, index=index).values == (index + 1,)
    assert all(driver.state(index) == DONE for index in range(driver.header.frame_count))


def test_the_host_leaves_alone_what_is_the_drivers(driver: Driver) -> None:
    frame = driver.frame(0)
    driver.hardware.mem_write(frame + 0x18, 8, 0x0123_4567_89AB_CDEF)
    add = driver.find(ADD)
    driver.call(add, 1, 2)
    assert driver.hardware.mem_read(frame + 0x18, 8) == 0x0123_4567_89AB_CDEF
    assert driver.hardware.mem_read(frame + 0x04, 4) == add


def test_doorbells_that_are_dropped(driver: Driver) -> None:
    hardware, add = driver.hardware, driver.find(ADD)
    driver.ring(driver.header.frame_count)
    driver.ring(ALL_ONES)
    driver.ring(1)  # not READY
    assert driver.state(1) == FREE
    driver.fill(add, (1, 2))
    for offset, size in ((0, 1), (0, 2), (0, 8), (1, 4), (0x10, 4)):
        hardware.mem_write(driver.doorbell + offset, size, 0)
        assert driver.state() == READY
        assert hardware.mem_read(driver.doorbell + offset, size) == (1 << 8 * size) - 1
    driver.ring()
    assert driver.wait().values == (3,)


# --- One-way calls: sections 5 and 6.5 -----------------------------------------------------------


def test_a_one_way_call_in_a_frame(sample: Sample, driver: Driver, pio: bool) -> None:
    assert driver.call(driver.find(PING), pio=pio).status == OK
    assert driver.call(driver.find("keep(u32)->()"), 9, flags=FRAME_ONE_WAY, pio=pio).status == OK
    assert (sample.pinged, sample.kept) == (1, 9)


def test_the_flag_one_way_leaves_the_results_out(driver: Driver) -> None:
    assert driver.call(driver.find(ADD), 1, 2, flags=FRAME_ONE_WAY)[:3] == (OK, 0, ())


@pytest.mark.parametrize("by_port", [False, True], ids=["mmio", "pio"])
def test_notify(sample: Sample, driver: Driver, by_port: bool) -> None:
    hardware = driver.hardware

    def notify(vector: int) -> None:
        if by_port:
            hardware.io_write(driver.port + NOTIFY, 4, vector)
        else:
            hardware.mem_write(driver.doorbell + NOTIFY, 4, vector)

    ping = driver.find(PING)
    notify(ping)
    assert sample.pinged == 0, "the feature is not in force"
    driver.negotiate(VERSION_1_0, FEATURE_NOTIFY)
    notify(ping)
    assert sample.pinged == 1
    for vector in (driver.find(ADD), driver.find("keep(u32)->()"), driver.find("crash()->()"), 0):
        notify(vector)
    assert sample.pinged == 1
    assert hardware.mem_read(driver.doorbell + NOTIFY, 4) == 0
    assert hardware.io_read(driver.port + NOTIFY, 4) == 0


# --- Section 7: when bindings change -------------------------------------------------------------


def test_revoked_and_looked_up_again(machine: Machine, driver: Driver) -> None:
    gate, old = host(machine), driver.find(ADD)
    gate.revoke("add")
    assert driver.call(old, 1, 2)[:3] == (REVOKED, 0, ())
    assert driver.entry("add").vector == 0
    with pytest.raises(NoSuchCall):
        driver.find(ADD)
    gate.bind("add")
    new = driver.find(ADD)
    assert new != old
    assert driver.call(new, 1, 2).values == (3,)
    assert driver.call(old, 1, 2).status == REVOKED


def test_an_entry_keeps_its_place(machine: Machine, driver: Driver) -> None:
    before = [entry.name for entry in driver.entries()]
    host(machine).revoke("add")
    assert [entry.name for entry in driver.entries()] == before
    host(machine).bind("add")
    assert [entry.name for entry in driver.entries()] == before


def test_denied(machine: Machine, driver: Driver) -> None:
    gate, add = host(machine), driver.find(ADD)
    gate.deny("add")
    assert driver.call(add, 1, 2)[:3] == (DENIED, 0, ())
    gate.allow("add")
    assert driver.call(add, 1, 2).status == OK


def test_busy_by_a_quota(machine: Machine, driver: Driver) -> None:
    gate, add = host(machine), driver.find(ADD)
    gate.limit("add", per_second=1)
    assert driver.call(add, 1, 2).status == OK
    assert driver.call(add, 1, 2)[:3] == (BUSY, 0, ())
    gate.limit("add", per_second=None)
    assert driver.call(add, 1, 2).status == OK


def test_busy_while_it_drains() -> None:
    slow = Slow()
    with Machine(slow, on="loopback", watch=False) as machine:
        driver = Driver(machine.bus, 1)
        block = driver.find("block()->()")
        driver.fill(block, index=1)
        caller = threading.Thread(target=driver.ring, args=(1,))
        caller.start()
        assert slow.entered.wait(5)
        assert driver.state(1) in (READY, RUNNING)
        revoker = threading.Thread(target=host(machine).revoke, args=("block",))
        revoker.start()
        # Too many arguments, so that no second call begins before the first drains.
        while (status := driver.call(block, 0).status) == BAD_COUNT:
            time.sleep(0.001)
        assert status == BUSY
        slow.leave.set()
        caller.join()
        revoker.join()
        assert driver.wait(1).status == OK
        assert driver.call(block).status == REVOKED


def test_a_reset_frees_the_frames_and_moves_the_vectors(machine: Machine, driver: Driver) -> None:
    driver.negotiate(VERSION_1_0, FEATURE_NOTIFY)
    add, doorbell_vector = driver.find(ADD), driver.header.doorbell_vector
    driver.call(add, 1, 2, index=1)
    driver.fill(add, (1, 2))
    machine.reset()
    driver = Driver(machine.bus, 1)
    with pytest.raises(Lost):
        driver.wait()
    assert driver.state(1) == FREE
    assert machine.bus.mem_read(driver.doorbell + FEATURES, 4) == 0
    assert driver.header.doorbell_vector != doorbell_vector
    assert driver.call(add, 1, 2).status == REVOKED
    assert driver.call(driver.find(ADD), 1, 2).values == (3,)


# --- The gate's interrupt: section 3 -------------------------------------------------------------

MESSAGE = 0x0000_CA11
MAILBOX = 0x3000


@pytest.fixture
def arrived(machine: Machine, driver: Driver) -> Callable[[], bool]:
    driver.enable_msix(driver.header.interrupt, MAILBOX, MESSAGE)

    def since_last_time() -> bool:
        word = int.from_bytes(machine.memory.read(MAILBOX, 4), "little")
        machine.memory.write(MAILBOX, bytes(4))
        assert word in (0, MESSAGE)
        return word == MESSAGE

    return since_last_time


def test_the_change_interrupt(
    machine: Machine, driver: Driver, arrived: Callable[[], bool]
) -> None:
    gate = host(machine)
    gate.bind("add")
    assert not arrived()
    driver.negotiate(VERSION_1_0, FEATURE_CHANGE)
    for change in (gate.revoke, gate.bind):
        before = driver.generation
        change("add")
        assert arrived()
        assert driver.generation != before
    gate.deny("add")
    assert not arrived(), "a filter changes no binding"


def test_the_done_interrupt(driver: Driver, arrived: Callable[[], bool]) -> None:
    add = driver.find(ADD)
    driver.call(add, 1, 2, flags=FRAME_INTERRUPT)
    assert not arrived(), "the feature is not in force"
    driver.negotiate(VERSION_1_0, FEATURE_DONE)
    driver.call(add, 1, 2)
    assert not arrived()
    driver.call(add, 1, 2, flags=FRAME_INTERRUPT)
    assert arrived()
    driver.call(0, flags=FRAME_INTERRUPT)
    assert arrived(), "an error is an answer too"


# --- Section 6.4: polled -------------------------------------------------------------------------


def test_polled() -> None:
    with Machine(Sample(), on="loopback") as machine:
        driver = Driver(machine.bus, 1)
        driver.negotiate(VERSION_1_0, FEATURE_POLLED)
        add = driver.find(ADD)
        rung = 0

        def ring(index: int = 0) -> None:
            nonlocal rung
            rung += 1
            Driver.ring(driver, index)

        driver.ring = ring  # type: ignore[method-assign]
        # The first call is rung; while the host watches, none needs to be.
        calls, end = 0, time.monotonic() + 5
        while calls < 20 or (rung == calls and time.monotonic() < end):
            assert driver.call(add, calls, 1).values == (calls + 1,)
            calls += 1
        assert 0 < rung < calls
        # Left alone, the host stops watching, and a doorbell is needed again.
        while machine.bus.mem_read(driver.gate + WATCHING, 4):
            time.sleep(0.001)
        assert driver.call(add, 1, 2).values == (3,)
