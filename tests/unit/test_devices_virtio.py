# SPDX-License-Identifier: MIT
"""The virtio transport: what a driver finds, how both agree, when it is told."""

import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from tests.unit import virtio as v
from tests.unit.virtio import Driver

from callgate import Device, Register
from callgate.devices.virtio import CONFIG, Queue, Request, Virtio
from callgate.pci import config as space
from callgate.testing import FakeGuest

ALL = v.VERSION_1 | v.INDIRECT_DESC | v.EVENT_IDX
PLAIN = v.VERSION_1
FEATURE = 1 << 5


class Echo(Virtio):
    """Writes back what it reads, reversed."""

    id = 0x1AF4, 0x1069
    features = FEATURE
    queue_sizes: Sequence[int] = (16, 64)
    level = Register(CONFIG, width=64, access="r")
    threaded = False

    def fill_config(self) -> None:
        self.level = 7

    def handle(self, queue: Queue, request: Request) -> int:
        data = b"".join(self.memory.read(gpa, length) for gpa, length in request.readable)[::-1]
        if data == b"!gub":
            raise KeyError("a bug")
        written = 0
        for gpa, length in request.writable:
            part = data[written : written + length]
            self.memory.write(gpa, part)
            written += len(part)
        return written


class ThreadedEcho(Echo):
    """The same on a thread."""

    threaded = True


@pytest.fixture(params=[Echo, ThreadedEcho])
def echo(request: pytest.FixtureRequest) -> Virtio:
    device: Virtio = request.param()
    return device


@pytest.fixture
def driver(echo: Virtio) -> Iterator[Driver]:
    with FakeGuest(echo) as guest:
        yield Driver(guest, echo.id)
        settle_all(echo, guest)
        assert not echo.bugs._known


def settle_all(device: Virtio, guest: FakeGuest) -> None:
    guest.advance(0)
    device.settle()


def kinds(device: Device) -> set[str]:
    return set(device.faults.counts)


# --- what a driver finds -------------------------------------------------------------------------


def test_capabilities_name_the_structures(driver: Driver) -> None:
    assert set(driver.places) == {v.COMMON, v.NOTIFY, v.ISR, v.DEVICE, v.ACCESS}
    lengths = {kind: place.length for kind, place in driver.places.items()}
    assert lengths[v.COMMON] == 0x38
    assert lengths[v.ISR] == 1
    assert lengths[v.DEVICE] == 8
    ends = sorted((p.offset, p.offset + p.length) for k, p in driver.places.items() if k != 5)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(ends))
    assert driver.multiplier == 4
    assert lengths[v.NOTIFY] >= 4 * driver.common(v.NUM_QUEUES, 2)
    assert driver.function.config(0x08, 1) >= 1
    assert driver.function.config(0x2E, 2) >= 0x40


def test_without_configuration_there_is_no_structure_for_it() -> None:
    class Bare(Virtio):
        id = 0x1AF4, 0x1070

    class Derived(Bare):
        queue_sizes = (2,)

    with FakeGuest(Derived()) as guest:
        assert set(Driver(guest, Derived.id).places) == {v.COMMON, v.NOTIFY, v.ISR, v.ACCESS}


def test_configuration_is_read_in_all_widths(driver: Driver) -> None:
    assert driver.read(v.DEVICE, 0, 8) == 7
    assert driver.read(v.DEVICE, 0, 4) == 7
    assert driver.read(v.DEVICE, 4, 4) == 0
    assert driver.read(v.DEVICE, 0, 1) == 7


def test_bars_are_reached_through_config_space(driver: Driver) -> None:
    function, at = driver.function, driver.places[v.ACCESS].at
    function.set_config(space.COMMAND, 2, 0)  # No decoding: firmware comes this way before.

    def choose(offset: int, length: int, bar: int = 0) -> None:
        function.set_config(at + 4, 1, bar)
        function.set_config(at + 8, 4, offset)
        function.set_config(at + 12, 4, length)

    choose(v.NUM_QUEUES, 2)
    assert function.config(at + 16, 2) == 2
    assert function.config(at + 16, 4) & 0xFFFF == 2
    choose(v.STATUS, 1)
    function.set_config(at + 16, 1, v.ACKNOWLEDGE)
    assert function.config(at + 16, 1) == v.ACKNOWLEDGE
    function.enable()
    assert driver.status == v.ACKNOWLEDGE
    assert function.config(at + 2, 1) == 20  # The length is not writable,
    function.set_config(at + 3, 1, 0xFF)
    assert function.config(at + 3, 1) == v.ACCESS  # nor is the type.


@pytest.mark.parametrize(
    ("bar", "offset", "length"),
    [(5, 0, 4), (0, 0, 0), (0, 0, 3), (0, 0, 8), (0, 2, 4), (0, 0xFFFF_FFFC, 4), (255, 0, 4)],
)
def test_nonsense_there_reads_ones(driver: Driver, bar: int, offset: int, length: int) -> None:
    function, at = driver.function, driver.places[v.ACCESS].at
    function.set_config(at + 4, 1, bar)
    function.set_config(at + 8, 4, offset)
    function.set_config(at + 12, 4, length)
    function.set_config(at + 16, 4, 0)
    assert function.config(at + 16, 4) == 0xFFFF_FFFF


# --- negotiation ---------------------------------------------------------------------------------


def test_features_are_offered(driver: Driver) -> None:
    assert driver.offered & (ALL | FEATURE) == ALL | FEATURE
    driver.set_common(v.DEVICE_FEATURE_SELECT, 4, 2)
    assert driver.common(v.DEVICE_FEATURE, 4) == 0
    driver.set_common(v.DEVICE_FEATURE_SELECT, 4, 0xFFFF_FFFF)
    assert driver.common(v.DEVICE_FEATURE, 4) == 0


@pytest.mark.parametrize("features", [0, FEATURE, PLAIN | 1 << 6, PLAIN | 1 << 63, 1 << 31])
def test_features_that_cannot_be_are_refused(driver: Driver, features: int, echo: Virtio) -> None:
    assert not driver.negotiate(features)
    assert driver.status == v.ACKNOWLEDGE | v.DRIVER
    assert kinds(echo) == {"virtio"}
    assert echo.negotiated == 0
    assert driver.negotiate(PLAIN | FEATURE)
    assert echo.negotiated == PLAIN | FEATURE


def test_features_behind_the_64_bits_are_refused(driver: Driver, echo: Virtio) -> None:
    driver.set_common(v.DRIVER_FEATURE_SELECT, 4, 2)
    driver.set_common(v.DRIVER_FEATURE, 4, 0)
    assert kinds(echo) == set()
    driver.set_common(v.DRIVER_FEATURE, 4, 1)
    assert kinds(echo) == {"virtio"}


def test_features_are_fixed_once_agreed(driver: Driver, echo: Virtio) -> None:
    assert driver.negotiate(PLAIN)
    driver.accept(PLAIN | FEATURE)
    assert echo.negotiated == PLAIN
    assert "virtio" in kinds(echo)


def test_a_driver_is_not_ready_before_features_are_agreed(driver: Driver, echo: Virtio) -> None:
    driver.status = v.ACKNOWLEDGE | v.DRIVER | v.DRIVER_OK
    assert driver.status == v.ACKNOWLEDGE | v.DRIVER
    assert kinds(echo) == {"virtio"}


def test_status_bits_stay_until_a_reset(driver: Driver, echo: Virtio) -> None:
    driver.negotiate()
    driver.status = v.ACKNOWLEDGE
    assert driver.status == v.ACKNOWLEDGE | v.DRIVER | v.FEATURES_OK
    assert kinds(echo) == {"virtio"}
    driver.status = 0xFF  # What the driver has no say in stays.
    assert driver.status == 0xFF & ~(v.NEEDS_RESET | 16 | 32)
    driver.reset()
    assert echo.negotiated == 0


def test_a_reset_takes_everything_back(driver: Driver) -> None:
    driver.start(size=8)
    driver.set_common(v.CONFIG_VECTOR, 2, 1)
    driver.reset()
    assert driver.common(v.SIZE, 2) == 16
    assert driver.common(v.ENABLE, 2) == 0
    assert driver.common(v.DESC, 8) == 0
    assert driver.common(v.CONFIG_VECTOR, 2) == v.NO_VECTOR
    assert driver.common(v.NUM_QUEUES, 2) == 2
    driver.start().add([b"abc"], [3])


# --- queues --------------------------------------------------------------------------------------


def test_each_queue_has_its_registers(driver: Driver) -> None:
    driver.negotiate()
    for index, size in enumerate((16, 64)):
        driver.set_common(v.SELECT, 2, index)
        assert driver.common(v.SIZE, 2) == size
        assert driver.common(v.NOTIFY_OFF, 2) == index
        driver.set_common(v.DESC, 8, 0x1000 * (index + 1))
        driver.set_common(v.VECTOR, 2, index)
    driver.set_common(v.SELECT, 2, 0)
    assert driver.common(v.DESC, 4) == 0x1000
    assert driver.common(v.VECTOR, 2) == 0
    for nowhere in (2, 0xFFFF):
        driver.set_common(v.SELECT, 2, nowhere)
        assert driver.common(v.SIZE, 2) == 0
        assert driver.common(v.ENABLE, 2) == 0


def test_a_queue_that_is_not_there_takes_nothing(driver: Driver, echo: Virtio) -> None:
    driver.negotiate()
    driver.set_common(v.SELECT, 2, 2)
    for offset, size in ((v.SIZE, 2), (v.ENABLE, 2), (v.DESC, 8), (v.VECTOR, 2)):
        driver.set_common(offset, size, 1)
    assert driver.common(v.SIZE, 2) == driver.common(v.ENABLE, 2) == driver.common(v.DESC, 8) == 0
    assert kinds(echo) == {"virtio"}


@pytest.mark.parametrize("size", [0, 3, 12, 32, 32768, 0xFFFF])
def test_a_size_that_cannot_be_is_dropped(driver: Driver, echo: Virtio, size: int) -> None:
    driver.negotiate()
    driver.set_common(v.SIZE, 2, size)
    assert driver.common(v.SIZE, 2) == 16
    assert kinds(echo) == {"virtio"}


def test_a_queue_may_have_a_single_entry(driver: Driver, echo: Virtio) -> None:
    ring = driver.start(PLAIN, size=1)
    for _ in range(3):
        ring.add([], [4])
        ring.kick()
        settle_all(echo, driver.guest)
        assert len(ring.take()) == 1


@pytest.mark.parametrize(("offset", "address"), [(v.DESC, 8), (v.AVAIL, 1), (v.USED, 2)])
def test_rings_must_be_aligned(driver: Driver, echo: Virtio, offset: int, address: int) -> None:
    driver.negotiate()
    driver.set_common(offset, 8, address)
    driver.set_common(v.ENABLE, 2, 1)
    assert driver.common(v.ENABLE, 2) == 0
    assert kinds(echo) == {"virtio"}


def test_a_queue_is_enabled_once_and_after_negotiation(driver: Driver, echo: Virtio) -> None:
    driver.set_common(v.ENABLE, 2, 1)
    assert driver.common(v.ENABLE, 2) == 0
    ring = driver.start()
    for value in (0, 2, 1):
        driver.set_common(v.ENABLE, 2, value)
        assert driver.common(v.ENABLE, 2) == 1
    driver.set_common(v.DESC, 8, 0)
    assert driver.common(v.DESC, 8) == ring.desc
    assert echo.faults.counts == {"virtio": 5}


@pytest.mark.parametrize("indirect", [False, True])
def test_requests_are_answered(driver: Driver, echo: Virtio, indirect: bool) -> None:
    ring = driver.start()
    first = ring.add([b"ab", b"cd"], [3, 1], indirect)
    second = ring.add([b"xyz"], [8], indirect)
    ring.kick()
    settle_all(echo, driver.guest)
    done = ring.take()
    assert done == [(first, 4, [b"dcb", b"a"]), (second, 3, [b"zyx" + bytes(5)])]
    assert kinds(echo) == set()


def test_rings_go_round(driver: Driver, echo: Virtio) -> None:
    ring = driver.start(size=4)
    for number in range(0, 0x10008, 2):
        if number == 64:  # Near the end of what 16 bits count, without going all the way.
            number = 0
        if number > 64 and number < 0xFFF0:
            continue
        ring.add([b"ab"], [2])
        ring.add([b"cd"], [2])
        ring.kick()
        settle_all(echo, driver.guest)
        assert [each.data for each in ring.take()] == [[b"ba"], [b"dc"]]


def test_both_queues_work(driver: Driver, echo: Virtio) -> None:
    driver.negotiate()
    rings = [driver.queue(0), driver.queue(1)]
    driver.ready()
    for ring in rings:
        ring.add([b"ab"], [2])
        ring.kick()
    settle_all(echo, driver.guest)
    assert [len(ring.take()) for ring in rings] == [1, 1]


# --- notifications -------------------------------------------------------------------------------


def test_what_was_available_before_is_looked_at_when_the_driver_is_ready(
    driver: Driver, echo: Virtio
) -> None:
    assert driver.negotiate()
    ring = driver.queue()
    ring.add([b"ab"], [2])
    ring.kick()  # Too early: noted, and nothing is done.
    settle_all(echo, driver.guest)
    assert ring.take() == []
    assert kinds(echo) == {"virtio"}
    driver.ready()
    settle_all(echo, driver.guest)
    assert len(ring.take()) == 1


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 1), (0, 8), (2, 2), (4, 2), (8, 2), (0xFF8, 4), (0xFFE, 2)]
)
def test_a_notification_elsewhere_is_noted(
    driver: Driver, echo: Virtio, offset: int, size: int
) -> None:
    ring = driver.start()  # Queue 1, at 4, is not enabled.
    settle_all(echo, driver.guest)
    ring.add([b"ab"], [2])
    driver.write(v.NOTIFY, offset, size, 0)
    settle_all(echo, driver.guest)
    assert ring.take() == []
    assert echo.faults.counts == {"virtio": 1}


def test_what_no_structure_has_reads_ones(driver: Driver, echo: Virtio) -> None:
    assert driver.read(v.COMMON, 0x38, 4) == 0xFFFF_FFFF
    assert driver.read(v.NOTIFY, 0, 2) == 0xFFFF
    assert kinds(echo) == {"bad read"}


def test_the_driver_is_told_when_to_notify(driver: Driver, echo: Virtio) -> None:
    ring = driver.start(PLAIN)
    ring.add([b"ab"], [2])
    ring.kick()
    settle_all(echo, driver.guest)
    assert ring.load(ring.used) == 0
    ring = driver.start(PLAIN | v.EVENT_IDX)
    ring.add([b"ab"], [2])
    ring.add([b"ab"], [2])
    ring.kick()
    settle_all(echo, driver.guest)
    assert ring.avail_event == 2


# --- interrupts ----------------------------------------------------------------------------------


def test_without_msix_a_level_and_isr_say_it(driver: Driver, echo: Virtio) -> None:
    ring = driver.start(PLAIN)
    ring.add([b"ab"], [2])
    assert not driver.function.config(space.STATUS, 2) & space.STATUS_INTERRUPT
    ring.kick()
    settle_all(echo, driver.guest)
    assert driver.function.config(space.STATUS, 2) & space.STATUS_INTERRUPT
    assert driver.read(v.ISR, 0, 1) == 1
    assert driver.read(v.ISR, 0, 1) == 0
    assert not driver.function.config(space.STATUS, 2) & space.STATUS_INTERRUPT
    echo.config_changed()
    ring.add([b"ab"], [2])
    ring.kick()
    settle_all(echo, driver.guest)
    assert driver.read(v.ISR, 0, 1) == 3
    echo.config_changed()
    driver.reset()
    assert not driver.function.config(space.STATUS, 2) & space.STATUS_INTERRUPT
    assert driver.read(v.ISR, 0, 1) == 0


def test_each_queue_has_the_vector_that_it_was_given(driver: Driver, echo: Virtio) -> None:
    interrupts = [driver.function.interrupt(index) for index in range(2)]
    driver.negotiate()
    driver.set_common(v.CONFIG_VECTOR, 2, 0)
    rings = driver.queue(0, vector=1), driver.queue(1, vector=v.NO_VECTOR)
    driver.ready()
    for ring, expected in zip(rings, (True, False), strict=True):
        ring.add([b"ab"], [2])
        ring.kick()
        settle_all(echo, driver.guest)
        assert len(ring.take()) == 1
        assert interrupts[1].take() is expected
    assert not interrupts[0].take()
    echo.config_changed()
    assert interrupts[0].take()
    assert driver.common(v.GENERATION, 1) == 1
    assert driver.read(v.ISR, 0, 1) == 0


def test_a_vector_that_is_not_there_reads_as_none(driver: Driver, echo: Virtio) -> None:
    driver.negotiate()
    for offset in (v.CONFIG_VECTOR, v.VECTOR):
        driver.set_common(offset, 2, 1)
        assert driver.common(offset, 2) == 1
        driver.set_common(offset, 2, 2)
        assert driver.common(offset, 2) == v.NO_VECTOR
    assert echo.faults.counts == {"virtio": 2}


def test_a_batch_makes_one_interrupt(driver: Driver, echo: Virtio) -> None:
    count = 0

    def counted(index: int) -> None:
        nonlocal count
        count += 1

    interrupt = driver.function.interrupt(0)
    ring = driver.start(PLAIN, vector=0)
    (function,) = driver.guest.machine.functions
    assert function.msix is not None
    function.connect(function.msix, counted, function.msix.vectors)
    for _ in range(8):
        ring.add([b"ab"], [2])
    ring.kick()
    settle_all(echo, driver.guest)
    assert len(ring.take()) == 8
    assert count == 1
    assert not interrupt.take()


@pytest.mark.parametrize(
    ("features", "suppress", "expected"),
    [
        (PLAIN, lambda ring: ring.store(ring.avail, 1), False),
        (PLAIN, lambda ring: ring.set_used_event(5), True),
        (PLAIN | v.EVENT_IDX, lambda ring: ring.store(ring.avail, 1), True),
        (PLAIN | v.EVENT_IDX, lambda ring: ring.set_used_event(0), True),
        (PLAIN | v.EVENT_IDX, lambda ring: ring.set_used_event(1), True),
        (PLAIN | v.EVENT_IDX, lambda ring: ring.set_used_event(2), False),
        (PLAIN | v.EVENT_IDX, lambda ring: ring.set_used_event(-1), False),
    ],
)
def test_interrupts_come_when_they_are_wanted(
    driver: Driver, echo: Virtio, features: int, suppress: object, expected: bool
) -> None:
    interrupt = driver.function.interrupt(0)
    ring = driver.start(features, vector=0)
    suppress(ring)  # type: ignore[operator]
    ring.add([b"ab"], [2])
    ring.add([b"ab"], [2])
    ring.kick()
    settle_all(echo, driver.guest)
    assert len(ring.take()) == 2
    assert interrupt.take() is expected


def test_configuration_does_not_change_for_who_is_not_there(driver: Driver, echo: Virtio) -> None:
    echo.config_changed()
    assert driver.read(v.ISR, 0, 1) == 0
    assert driver.common(v.GENERATION, 1) == 1


def test_a_message_to_the_device_itself_does_no_harm(driver: Driver, echo: Virtio) -> None:
    """The guest aims the queue's message at the place where the queue is notified."""
    driver.function.interrupt(0)
    entry = driver.function.msix_entry(0)
    place = driver.places[v.NOTIFY]
    target = driver.function.bar(place.bar).address + place.offset
    driver.guest.door.write(entry, 4, target & 0xFFFF_FFFF)
    driver.guest.door.write(entry + 4, 4, target >> 32)
    ring = driver.start(PLAIN, vector=0)
    for _ in range(3):
        ring.add([b"ab"], [2])
        ring.kick()
        settle_all(echo, driver.guest)
        assert len(ring.take()) == 1
    (function,) = driver.guest.machine.functions
    ring.add([b"ab"], [2])
    ring.kick()
    function.reset()  # Waits for the thread, which may be about to send that message.
    assert kinds(echo) <= {"virtio", "dma"}


# --- what goes wrong -----------------------------------------------------------------------------


def one(ring: v.Ring, *entries: tuple[int, int, int, int], head: int = 0) -> None:
    """Lay descriptors from 0 on, and make one chain of them available."""
    for index, entry in enumerate(entries):
        ring.describe(index, *entry)
    ring.offer(head)


def table(ring: v.Ring, *entries: tuple[int, int, int, int]) -> int:
    return ring.driver.allocate(b"".join(struct.pack("<QIHH", *entry) for entry in entries))


def jump(ring: v.Ring, count: int) -> None:
    ring.store(ring.avail + 2, count)


NOWHERE = 0x7FFF_0000_0000
BREAKAGES = {
    "head": lambda ring: one(ring, head=ring.size),
    "next": lambda ring: one(ring, (NOWHERE, 0, v.NEXT, ring.size)),
    "loop": lambda ring: one(ring, (NOWHERE, 0, v.NEXT, 1), (NOWHERE, 0, v.NEXT, 0)),
    "self": lambda ring: one(ring, (NOWHERE, 0, v.NEXT, 0)),
    "order": lambda ring: one(ring, (0x8000_0000, 1, v.WRITE | v.NEXT, 1), (0x8000_0000, 1, 0, 0)),
    "indirect and next": lambda ring: one(ring, (NOWHERE, 16, v.INDIRECT | v.NEXT, 1)),
    "indirect nowhere": lambda ring: one(ring, (NOWHERE, 16, v.INDIRECT, 0)),
    "indirect of 0": lambda ring: one(ring, (ring.desc, 0, v.INDIRECT, 0)),
    "indirect of 24": lambda ring: one(ring, (ring.desc, 24, v.INDIRECT, 0)),
    "indirect, huge": lambda ring: one(ring, (ring.desc, 0xFFFF_FFF0, v.INDIRECT, 0)),
    "indirect in indirect": lambda ring: one(
        ring, (table(ring, (ring.desc, 16, v.INDIRECT, 0)), 16, v.INDIRECT, 0)
    ),
    "indirect loop": lambda ring: one(
        ring, (table(ring, (NOWHERE, 0, v.NEXT, 0)), 16, v.INDIRECT, 0)
    ),
    "indirect index": lambda ring: one(
        ring, (table(ring, (NOWHERE, 0, v.NEXT, 1)), 16, v.INDIRECT, 0)
    ),
    "available jumps": lambda ring: jump(ring, ring.size + 1),
    "available goes back": lambda ring: jump(ring, 0xFFFF),
    "buffer nowhere": lambda ring: one(ring, (NOWHERE, 4, 0, 0)),
    "buffer over the end": lambda ring: one(ring, (0xFFFF_FFFF_FFFF_FFFF, 4, 0, 0)),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_queue_that_makes_no_sense_needs_a_reset(driver: Driver, echo: Virtio, name: str) -> None:
    interrupt = driver.function.interrupt(1)
    ring = driver.start()
    driver.set_common(v.CONFIG_VECTOR, 2, 1)
    if not name.startswith("available"):
        ring.add([b"ab"], [2])
    BREAKAGES[name](ring)
    ring.kick()
    settle_all(echo, driver.guest)
    assert driver.status & v.NEEDS_RESET
    assert interrupt.take()
    assert kinds(echo) in ({"broken queue"}, {"dma"})
    if not name.startswith("available"):
        assert ring.used_idx == 1, "what came before was answered"
    used = ring.used_idx
    ring.add([b"ab"], [2])
    ring.kick()  # It does nothing any more,
    settle_all(echo, driver.guest)
    assert ring.used_idx == used
    driver.ready()
    assert driver.status & v.NEEDS_RESET
    fresh = driver.start()  # until it is reset.
    assert not driver.status & v.NEEDS_RESET
    fresh.add([b"ab"], [2])
    fresh.kick()
    settle_all(echo, driver.guest)
    assert fresh.take()[0].data == [b"ba"]


def test_indirect_descriptors_must_be_negotiated(driver: Driver, echo: Virtio) -> None:
    ring = driver.start(PLAIN)
    ring.add([b"ab"], [2], indirect=True)
    ring.kick()
    settle_all(echo, driver.guest)
    assert driver.status & v.NEEDS_RESET
    assert kinds(echo) == {"broken queue"}


def test_an_indirect_table_may_end_a_chain(driver: Driver, echo: Virtio) -> None:
    ring = driver.start()
    data, room = driver.allocate(b"ab"), driver.allocate(2)
    ring.held[0] = [], [(room, 2)]
    inner = table(ring, (data + 1, 1, v.NEXT, 1), (0, 0, v.NEXT, 2), (room, 2, v.WRITE, 0))
    one(ring, (data, 1, v.NEXT, 1), (inner, 48, v.INDIRECT | v.WRITE, 0))
    ring.kick()
    settle_all(echo, driver.guest)
    assert ring.take() == [(0, 2, [b"ba"])]


@pytest.mark.parametrize("which", [v.DESC, v.AVAIL, v.USED])
def test_rings_must_be_in_memory(driver: Driver, echo: Virtio, which: int) -> None:
    driver.negotiate()
    ring = v.Ring(driver, 0, 16)
    for offset, address in ((v.DESC, ring.desc), (v.AVAIL, ring.avail), (v.USED, ring.used)):
        driver.set_common(offset, 8, NOWHERE if offset == which else address)
    driver.set_common(v.ENABLE, 2, 1)
    driver.ready()
    ring.add([b"ab"], [2])
    ring.kick()
    settle_all(echo, driver.guest)
    assert driver.status & v.NEEDS_RESET
    assert kinds(echo) == {"dma"}


def test_without_bus_mastering_nothing_is_touched(driver: Driver, echo: Virtio) -> None:
    ring = driver.start()
    ring.add([b"ab"], [2])
    driver.function.set_config(space.COMMAND, 2, space.COMMAND_MEMORY)
    ring.kick()
    settle_all(echo, driver.guest)
    assert ring.used_idx == 0
    assert kinds(echo) == {"dma"}


@pytest.mark.parametrize("cls", [Echo, ThreadedEcho])
def test_a_bug_in_the_model_is_shown_and_needs_a_reset(
    cls: type[Virtio], caplog: pytest.LogCaptureFixture
) -> None:
    device = cls()
    with FakeGuest(device) as guest:
        driver = Driver(guest, device.id)
        ring = driver.start()
        ring.add([b"bug!"], [2])
        ring.kick()
        settle_all(device, guest)
        assert driver.status & v.NEEDS_RESET
        assert "KeyError: 'a bug'" in caplog.text
        driver.start()
        assert not driver.status & v.NEEDS_RESET


def test_a_long_batch_goes_on_by_itself(driver: Driver, echo: Virtio) -> None:
    """What is enough for one turn leaves the rest to the next, with an interrupt for each."""
    ring = driver.start()
    big = driver.allocate(1 << 18)
    for _ in range(4):
        ring.add_pieces([(big, 1 << 18, v.WRITE)])
    ring.kick()
    if not echo.threaded:
        assert ring.used_idx == 1
    for _ in range(4):
        settle_all(echo, driver.guest)
    assert len(ring.take()) == 4


@pytest.mark.parametrize("sizes", [(), (3,), (0,), (65536,), (1,) * 1025])
def test_a_model_must_have_queues_that_can_be(sizes: tuple[int, ...]) -> None:
    device = Echo()
    device.queue_sizes = sizes
    with pytest.raises(ValueError, match="queue"):
        FakeGuest(device)
