# SPDX-License-Identifier: MIT
"""A virtio driver in Python, by the book: capabilities, negotiation, split virtqueues."""

import struct
from collections.abc import Sequence
from typing import NamedTuple

from callgate.device import Device
from callgate.driver import PciFunction
from callgate.testing import FakeGuest

COMMON, NOTIFY, ISR, DEVICE, ACCESS = 1, 2, 3, 4, 5
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128
INDIRECT_DESC, EVENT_IDX, VERSION_1 = 1 << 28, 1 << 29, 1 << 32
NEXT, WRITE, INDIRECT = 1, 2, 4
NO_VECTOR = 0xFFFF

DEVICE_FEATURE_SELECT, DEVICE_FEATURE, DRIVER_FEATURE_SELECT, DRIVER_FEATURE = 0, 4, 8, 12
CONFIG_VECTOR, NUM_QUEUES, STATUS, GENERATION = 0x10, 0x12, 0x14, 0x15
SELECT, SIZE, VECTOR, ENABLE, NOTIFY_OFF = 0x16, 0x18, 0x1A, 0x1C, 0x1E
DESC, AVAIL, USED = 0x20, 0x28, 0x30


class Place(NamedTuple):
    """A structure, as a capability names it; `at` is the capability."""

    at: int
    bar: int
    offset: int
    length: int


class Driver:
    """A driver of the first device with these ids."""

    def __init__(self, guest: FakeGuest, id: tuple[int, int]) -> None:
        self.guest = guest
        self.memory = guest.memory
        self.function: PciFunction = guest.function(*id)
        self.places: dict[int, Place] = {}
        for kind, at in self.function.capabilities():
            if kind == 9:
                config = self.function.config
                place = Place(at, config(at + 4, 1), config(at + 8, 4), config(at + 12, 4))
                self.places.setdefault(config(at + 3, 1), place)
        self.multiplier = self.function.config(self.places[NOTIFY].at + 16, 4)

    def read(self, kind: int, offset: int, size: int) -> int:
        place = self.places[kind]
        return self.function.read(place.bar, place.offset + offset, size)

    def write(self, kind: int, offset: int, size: int, value: int) -> None:
        place = self.places[kind]
        self.function.write(place.bar, place.offset + offset, size, value)

    def common(self, offset: int, size: int) -> int:
        return self.read(COMMON, offset, size)

    def set_common(self, offset: int, size: int, value: int) -> None:
        self.write(COMMON, offset, size, value)

    @property
    def status(self) -> int:
        return self.common(STATUS, 1)

    @status.setter
    def status(self, value: int) -> None:
        self.set_common(STATUS, 1, value)

    @property
    def offered(self) -> int:
        found = 0
        for half in range(2):
            self.set_common(DEVICE_FEATURE_SELECT, 4, half)
            found |= self.common(DEVICE_FEATURE, 4) << 32 * half
        return found

    def accept(self, features: int) -> None:
        for half in range(2):
            self.set_common(DRIVER_FEATURE_SELECT, 4, half)
            self.set_common(DRIVER_FEATURE, 4, features >> 32 * half & 0xFFFF_FFFF)

    def reset(self) -> None:
        self.status = 0
        while self.status:
            self.guest.door.pause(0.001)

    def negotiate(self, features: int | None = None) -> bool:
        """From a reset to FEATURES_OK; all that is offered if nothing is named."""
        self.reset()
        self.status = ACKNOWLEDGE
        self.status = ACKNOWLEDGE | DRIVER
        self.features = self.offered if features is None else features
        self.accept(self.features)
        self.status = ACKNOWLEDGE | DRIVER | FEATURES_OK
        return bool(self.status & FEATURES_OK)

    def ready(self) -> None:
        self.status = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK

    def queue(self, index: int = 0, size: int = 0, vector: int = NO_VECTOR) -> "Ring":
        """Set a queue up, with the device's own size if none is named."""
        self.set_common(SELECT, 2, index)
        if size:
            self.set_common(SIZE, 2, size)
        size = self.common(SIZE, 2)
        ring = Ring(self, index, size)
        for offset, address in ((DESC, ring.desc), (AVAIL, ring.avail), (USED, ring.used)):
            self.set_common(offset, 4, address & 0xFFFF_FFFF)
            self.set_common(offset + 4, 4, address >> 32)
        self.set_common(VECTOR, 2, vector)
        self.set_common(ENABLE, 2, 1)
        return ring

    def start(self, features: int | None = None, size: int = 0, vector: int = NO_VECTOR) -> "Ring":
        """All of it, with one queue."""
        assert self.negotiate(features)
        ring = self.queue(0, size, vector)
        self.ready()
        return ring

    def allocate(self, data: bytes | int) -> int:
        """Memory with these bytes, or of this size; its address."""
        content = bytes(data)
        gpa = self.guest.door.allocate(len(content)).gpa
        self.memory.write(gpa, content)
        return gpa


class Done(NamedTuple):
    """An entry of the used ring, with what the writable pieces hold then."""

    head: int
    length: int
    data: list[bytes]


class Ring:
    """A split virtqueue, the driver's side."""

    def __init__(self, driver: Driver, index: int, size: int) -> None:
        self.driver = driver
        self.memory = driver.memory
        self.index = index
        self.size = size
        self.desc = driver.allocate(16 * size)
        self.avail = driver.allocate(6 + 2 * size)
        self.used = driver.allocate(6 + 8 * size)
        self.free = list(range(size))
        self.held: dict[int, tuple[list[int], list[tuple[int, int]]]] = {}
        self.idx = 0
        self.seen = 0
        driver.set_common(SELECT, 2, index)
        self.notify_at = driver.common(NOTIFY_OFF, 2) * driver.multiplier

    def describe(self, index: int, gpa: int, length: int, flags: int, following: int) -> None:
        entry = struct.pack("<QIHH", gpa, length, flags, following)
        self.memory.write(self.desc + 16 * index, entry)

    def offer(self, head: int) -> None:
        """Make a head available, without saying so."""
        self.memory.write(self.avail + 4 + 2 * (self.idx % self.size), struct.pack("<H", head))
        self.idx = self.idx + 1 & 0xFFFF
        self.memory.write(self.avail + 2, struct.pack("<H", self.idx))

    def add(
        self, readable: Sequence[bytes] = (), writable: Sequence[int] = (), indirect: bool = False
    ) -> int:
        """Make a request available; its head."""
        pieces = [(self.driver.allocate(data), len(data), 0) for data in readable]
        pieces += [(self.driver.allocate(length), length, WRITE) for length in writable]
        return self.add_pieces(pieces, indirect)

    def add_pieces(self, pieces: Sequence[tuple[int, int, int]], indirect: bool = False) -> int:
        """The same of pieces that are there: (address, length, flags)."""
        last = len(pieces) - 1
        if indirect:
            table = b"".join(
                struct.pack("<QIHH", gpa, length, flags | NEXT * (n < last), n + 1)
                for n, (gpa, length, flags) in enumerate(pieces)
            )
            indices = [self.free.pop()]
            self.describe(indices[0], self.driver.allocate(table), len(table), INDIRECT, 0)
        else:
            indices = [self.free.pop() for _ in pieces]
            for n, (gpa, length, flags) in enumerate(pieces):
                following = indices[n + 1] if n < last else 0
                self.describe(indices[n], gpa, length, flags | NEXT * (n < last), following)
        written = [(gpa, length) for gpa, length, flags in pieces if flags & WRITE]
        self.held[indices[0]] = indices, written
        self.offer(indices[0])
        return indices[0]

    def kick(self) -> None:
        self.driver.write(NOTIFY, self.notify_at, 2, self.index)

    def load(self, gpa: int) -> int:
        return int.from_bytes(self.memory.read(gpa, 2), "little")

    def store(self, gpa: int, value: int) -> None:
        self.memory.write(gpa, struct.pack("<H", value))

    @property
    def used_idx(self) -> int:
        return self.load(self.used + 2)

    @property
    def avail_event(self) -> int:
        return self.load(self.used + 4 + 8 * self.size)

    def set_used_event(self, value: int) -> None:
        self.store(self.avail + 4 + 2 * self.size, value & 0xFFFF)

    def take(self) -> list[Done]:
        """What was used since the last time; its descriptors are free again."""
        found = []
        while self.seen != self.used_idx:
            at = self.used + 4 + 8 * (self.seen % self.size)
            head, length = struct.unpack("<II", self.memory.read(at, 8))
            indices, written = self.held.pop(head)
            self.free += indices
            data = [self.memory.read(gpa, count) for gpa, count in written]
            found.append(Done(head, length, data))
            self.seen = self.seen + 1 & 0xFFFF
        return found


def settle(device: Device) -> None:
    """Wait for what runs on a thread of the device's."""
    device.settle()  # type: ignore[attr-defined]
