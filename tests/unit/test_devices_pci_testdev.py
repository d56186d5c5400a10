# SPDX-License-Identifier: MIT
"""PciTestdev: the header, what is counted of which test, and what goes to its eventfd instead."""

import logging
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate import Bar
from callgate.devices.pci_testdev import PciTestdev
from callgate.pci import config as space
from callgate.testing import FakeGuest

TEST, WIDTH, OFFSET, DATA, COUNT, NAME = 0x00, 0x01, 0x04, 0x08, 0x0C, 0x10
HEADER = struct.Struct("<BB2xIII32s")
NONE = 0xFF
KINDS = "no-eventfd", "wildcard-eventfd", "datamatch-eventfd"
PLACES = [(0, 0x800), (0, 0x801), (0, 0x802), (1, 0x83), (1, 0x84), (1, 0x85)]
DATAS = 0xFA, 0xCE, 0xFA
SIZES = 4096, 256
ALL = [pytest.param(index, id=f"{index}") for index in range(6)]


class Driver:
    """A driver of the device."""

    def __init__(self, testdev: PciTestdev, guest: FakeGuest) -> None:
        self.testdev = testdev
        self.guest = guest
        self.function = guest.function(*testdev.id)
        self.bars = guest.machine.functions[0].bars

    def read(self, bar: int, offset: int, size: int = 1) -> int:
        return self.function.read(bar, offset, size)

    def write(self, bar: int, offset: int, value: int, size: int = 1) -> None:
        self.function.write(bar, offset, size, value)

    def header(self, bar: int) -> tuple[int, int, int, int, int, str]:
        raw = bytes(self.read(bar, offset) for offset in range(HEADER.size))
        *numbers, name = HEADER.unpack(raw)
        return (*numbers, name.rstrip(b"\0").decode())

    def start(self, index: int) -> tuple[int, int, int]:
        """Start a test; BAR, offset and data of its writes."""
        bar, offset = PLACES[index]
        self.write(bar, TEST, index % 3)
        return bar, offset, DATAS[index % 3]

    @property
    def count(self) -> int:
        return self.read(0, COUNT, 4)


@pytest.fixture
def driver() -> Iterator[Driver]:
    with FakeGuest(testdev := PciTestdev()) as guest:
        yield Driver(testdev, guest)


# --- as QEMU's pci-testdev -----------------------------------------------------------------------


def test_it_is_found_as_pci_testdev(driver: Driver) -> None:
    config, set_config = driver.function.config, driver.function.set_config
    assert config(0, 4) == 0x0005_1B36
    assert config(space.REVISION, 4) == 0x00FF_0000
    assert config(space.SUBSYSTEM, 4) == 0x1100_1AF4
    assert config(space.INTERRUPT_PIN, 1) == 0
    sizes = []
    for index in range(6):
        set_config(space.BAR0 + 4 * index, 4, 0xFFFF_FFFF)
        sizes.append(config(space.BAR0 + 4 * index, 4))
    assert sizes == [0xFFFF_F000, 0xFFFF_FF01, 0, 0, 0, 0]


@pytest.mark.parametrize("index", ALL)
def test_both_bars_show_the_header(driver: Driver, index: int) -> None:
    bar, offset, data = driver.start(index)
    name = f"{'portio' if bar else 'mmio'}-{KINDS[index % 3]}"
    assert driver.header(0) == driver.header(1) == (index, 1, offset, data, 0, name)
    assert driver.read(bar, 0, 4) == 1 << 8 | index
    assert driver.read(bar, 0x40, 4) == driver.read(bar, offset) == 0


@pytest.mark.parametrize("number", [3, 4, NONE])
@pytest.mark.parametrize("bar", [0, 1])
def test_without_a_test_all_is_zero(driver: Driver, bar: int, number: int) -> None:
    assert driver.header(bar) == (0, 0, 0, 0, 0, "")
    driver.start(2)
    driver.write(bar, TEST, number)
    assert driver.header(bar) == (0, 0, 0, 0, 0, "")
    driver.write(0, 0x802, 0xFA, 2)
    assert (driver.count, driver.testdev.test) == (0, None)


def test_a_reset_ends_the_test(driver: Driver) -> None:
    driver.start(0)
    driver.guest.machine.reset()
    driver.function.enable()
    assert driver.header(0) == (0, 0, 0, 0, 0, "")


def test_membar_has_nothing_behind_it() -> None:
    class Large(PciTestdev):
        membar = Bar(2, 1 << 26, width=64, prefetchable=True)

    with FakeGuest(testdev := Large()) as guest:
        driver = Driver(testdev, guest)
        driver.function.set_config(0x18, 4, 0xFFFF_FFFF)
        driver.function.set_config(0x1C, 4, 0xFFFF_FFFF)
        assert driver.function.config(0x18, 4) == 0xFC00_000C
        assert driver.function.config(0x1C, 4) == 0xFFFF_FFFF
        driver.bars[2].write(0, 4, 0)
        assert driver.bars[2].read(0, 4) == 0xFFFF_FFFF
        assert testdev.faults.counts == {"bad write": 1, "bad read": 1}


# --- what is counted -----------------------------------------------------------------------------


@pytest.mark.parametrize("index", ALL)
def test_a_byte_is_counted_or_signals(driver: Driver, index: int) -> None:
    bar, offset, data = driver.start(index)
    for written in (data, data ^ 1, data):
        driver.write(bar, offset, written)
    driver.write(bar, offset + 1, data)
    driver.write(bar, offset - 1, data)
    seen = driver.count, driver.testdev.signals
    assert seen == {0: (2, 0), 1: (0, 3), 2: (0, 2)}[index % 3]
    driver.start(index)
    assert (driver.count, driver.testdev.signals) == (0, 0)


@pytest.mark.parametrize("index", ALL)
@pytest.mark.parametrize("size", [2, 4])
def test_an_eventfd_is_for_single_bytes(driver: Driver, index: int, size: int) -> None:
    bar, offset, data = driver.start(index)
    for written in (data, data ^ 1):
        driver.write(bar, offset & -size, written * 0x0101_0101 & (1 << 8 * size) - 1, size)
    assert (driver.count, driver.testdev.signals) == (2 if index % 3 == 1 else 1, 0)


@pytest.mark.parametrize("index", [3, 4, 5])
def test_an_eventfd_is_for_one_bar(driver: Driver, index: int) -> None:
    _, offset, data = driver.start(index)
    driver.write(0, offset, data)
    assert (driver.count, driver.testdev.signals) == (1, 0)


def test_the_count_has_32_bits(driver: Driver) -> None:
    driver.start(0)
    driver.testdev.count = 0xFFFF_FFFF
    driver.write(0, 0x800, 0xFA)
    assert driver.count == 0


def test_the_header_is_not_to_be_written(driver: Driver) -> None:
    driver.start(0)
    before = driver.header(0)
    for offset in range(WIDTH, HEADER.size):
        driver.write(0, offset, 9)
    assert driver.header(0) == before


def test_a_test_starts_by_a_wider_write(driver: Driver) -> None:
    driver.write(1, TEST, 0xFFFF_FF02, 4)
    assert driver.read(1, TEST) == 5


# --- what a guest may do -------------------------------------------------------------------------


@pytest.mark.parametrize("bar", [0, 1])
@pytest.mark.parametrize(("offset", "size"), [(1, 2), (2, 4), (0x83, 2), (0xFF, 2), (0, 3)])
def test_accesses_that_are_none_read_all_ones(
    driver: Driver, bar: int, offset: int, size: int
) -> None:
    driver.start(3)
    driver.bars[bar].write(offset, size, 0xFAFA)
    assert driver.bars[bar].read(offset, size) == (1 << 8 * size) - 1
    assert driver.count == 0
    assert sum(driver.testdev.faults.counts.values()) == 2


@given(
    accesses=st.lists(
        st.tuples(
            st.sampled_from([0, 1]),
            st.one_of(st.sampled_from([0, 0, 0x800, 0x80, 0x84]), st.integers(0, 4100)),
            st.sampled_from([1, 1, 2, 4, 8, 3]),
            st.one_of(st.none(), st.integers(0, 3), st.just(0xFA), st.integers(0, 2**64 - 1)),
        ),
        max_size=40,
    )
)
def test_nothing_that_a_guest_does_raises(
    accesses: list[tuple[int, int, int, int | None]],
) -> None:
    logging.disable()
    try:
        with FakeGuest(testdev := PciTestdev()) as guest:
            bars = Driver(testdev, guest).bars
            for bar, offset, size, value in accesses:
                refused = sum(testdev.faults.counts.values())
                if value is None:
                    assert 0 <= bars[bar].read(offset, size) < 1 << 8 * size
                else:
                    bars[bar].write(offset, size, value)
                bad = size == 3 or offset % size or offset + size > SIZES[bar]
                assert sum(testdev.faults.counts.values()) == refused + bool(bad)
            assert testdev.bugs._known == set()
    finally:
        logging.disable(logging.NOTSET)
