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

# --- The platform, and PCI -----------------------------------------------------------------------

ECAM = 0xB000_0000
RAM_END = 32 << 20
ALL_ONES = 0xFFFF_FFFF

COMMAND, STATUS, BAR0, CAPABILITIES = 0x04, 0x06, 0x10, 0x34
IO_DECODE, MEMORY_DECODE, BUS_MASTER = 1, 2, 4
HAS_CAPABILITIES = 1 << 4
MSIX_ENABLE = 1 << 15
PCI_EXPRESS = 0x10
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
        return bytes(self.hardware.mem_read(address + i, 1) for i in range(length))

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
        if not (
            self.accepted & FEATURE_POLLED and self.hardware.mem_read(self.gate + WATCHING, 4)
        ):
            (self.ring_pio if pio else self.ring)(index)
        return self.wait(index)

    def reset(self) -> None:
        """Function-level reset, which is PCI's own."""
        place = next(place for kind, place in self.config.capabilities() if kind == PCI_EXPRESS)
        assert self.config.read(place + 4, 4) & 1 << 28, "FLR is not offered"
        saved = [self.config.read(BAR0 + 4 * index, 4) for index in range(6)]
        self.config.write(place + 8, 2, self.config.read(place + 8, 2) | 1 << 15)
        for index, value in enumerate(saved):
            self.config.write(BAR0 + 4 * index, 4, value)
        self.config.write(COMMAND, 2, IO_DECODE | MEMORY_DECODE | BUS_MASTER)

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
        self.entered = threading.Event()
        self.leave = threading.Event()

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

    @call
    def block(self) -> None:
        self.entered.set()
        self.leave.wait(5)

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


@pytest.fixture
def sample() -> Sample:
    return Sample()


@pytest.fixture
def machine(sample: Sample) -> Iterator[Machine]:
    # The host does not watch, so that only a doorbell makes it look.
    with Machine(sample, Other(), on="loopback", handler_timeout=0.2, watch=False) as machine:
        yield machine


@pytest.fixture
def driver(machine: Machine) -> Driver:
    return Driver(machine.bus, 1)
