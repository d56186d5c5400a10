# SPDX-License-Identifier: MIT
"""Edu: what the specification promises a driver, and what QEMU's device does where it is silent."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from callgate.devices.edu import BUFFER, BUFFER_SIZE, COMPUTED, TRANSFERRED, Edu
from callgate.pci import config as space
from callgate.testing import FakeGuest

IDENTIFICATION, LIVENESS, FACTORIAL = 0x00, 0x04, 0x08
STATUS, INTERRUPT_STATUS, RAISE, ACK = 0x20, 0x24, 0x60, 0x64
SOURCE, DESTINATION, COUNT, COMMAND = 0x80, 0x88, 0x90, 0x98
COMPUTING, COMPUTED_INTERRUPT = 0x01, 0x80
START, TO_RAM, DMA_INTERRUPT = 1, 2, 4
NARROW = (IDENTIFICATION, LIVENESS, FACTORIAL, STATUS, INTERRUPT_STATUS, RAISE, ACK)
WIDE = (SOURCE, DESTINATION, COUNT, COMMAND)
ONES = 0xFFFF_FFFF
SIZE = 1 << 20
DMA_TIME, EPSILON = 0.1, 1e-6


class Driver:
    """A driver of the device."""

    def __init__(self, edu: Edu, guest: FakeGuest) -> None:
        self.edu = edu
        self.guest = guest
        self.function = guest.function(*edu.id)
        self.bar = guest.machine.functions[0].bars[0]

    def read(self, offset: int, size: int = 4) -> int:
        return self.function.read(0, offset, size)

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self.function.write(0, offset, size, value)

    def factorial(self, n: int) -> int:
        """Wait until it is computed."""
        self.write(FACTORIAL, n)
        self.guest.advance(n * self.edu.multiplication_time)
        assert self.read(STATUS) & COMPUTING == 0
        return self.read(FACTORIAL)

    def start(self, source: int, destination: int, count: int, command: int = START) -> None:
        for register, value in zip(WIDE, (source, destination, count, command), strict=True):
            self.write(register, value, 8)

    def dma(self, source: int, destination: int, count: int, command: int = START) -> None:
        """Wait until it has ended."""
        self.start(source, destination, count, command)
        self.guest.advance(DMA_TIME + EPSILON)
        assert self.read(COMMAND, 8) == command & ~START

    @property
    def intx(self) -> bool:
        """Whether INTA is asserted."""
        return bool(self.function.config(space.STATUS, 2) & space.STATUS_INTERRUPT)

    @property
    def faults(self) -> dict[str, int]:
        return self.edu.faults.counts

    def reset(self) -> None:
        """Reset the machine; firmware gives the device its place again."""
        self.guest.machine.reset()
        self.function.enable()


Make = Callable[..., Driver]


@pytest.fixture
def make() -> Iterator[Make]:
    """Plug in a device with the attributes given."""
    with ExitStack() as stack:

        def make(**attributes: Any) -> Driver:
            edu = Edu()
            for name, value in attributes.items():
                setattr(edu, name, value)
            return Driver(edu, stack.enter_context(FakeGuest(edu)))

        yield make


@pytest.fixture
def driver(make: Make) -> Driver:
    return make()


@pytest.fixture
def quiet() -> Iterator[None]:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


# --- as QEMU's edu -------------------------------------------------------------------------------


def test_it_is_found_as_edu(driver: Driver) -> None:
    config = driver.function.config
    assert config(0, 4) == 0x11E8_1234
    assert config(space.REVISION, 4) == 0x00FF_0010
    assert config(space.SUBSYSTEM, 4) == 0x1100_1AF4
    assert config(space.INTERRUPT_PIN, 1) == 1
    assert [config(at, 4) for at in range(0x40, 0x50, 4)] == [0x0080_0005, 0, 0, 0]  # MSI alone
    driver.function.set_config(space.BAR0, 4, ONES)
    assert config(space.BAR0, 4) == 0xFFF0_0000  # 1 MiB


def test_registers_after_reset(driver: Driver) -> None:
    after = [0x0100_00ED, 0, 0, 0, 0, ONES, ONES, 0, 0, 0, 0]
    assert [driver.read(offset) for offset in NARROW + WIDE] == after
    driver.write(LIVENESS, 1)
    driver.write(STATUS, COMPUTED_INTERRUPT)
    driver.write(RAISE, 1)
    driver.write(FACTORIAL, 1000)
    driver.edu.buffer[:] = b"x" * BUFFER_SIZE
    driver.start(BUFFER, 0x1000, BUFFER_SIZE, START | TO_RAM | DMA_INTERRUPT)
    driver.reset()
    assert [driver.read(offset) for offset in NARROW + WIDE] == after
    assert driver.edu.buffer == bytes(BUFFER_SIZE)
    driver.guest.advance(1)
    assert not driver.intx
    assert driver.guest.memory.read(0x1000, 1) == b"\0"


@given(value=st.integers(0, ONES))
def test_it_lives(value: int) -> None:
    with FakeGuest(edu := Edu()) as guest:
        driver = Driver(edu, guest)
        driver.write(LIVENESS, value)
        assert driver.read(LIVENESS) == value ^ ONES


# --- factorial -----------------------------------------------------------------------------------


@given(n=st.one_of(st.integers(0, 40), st.integers(0, ONES)))
def test_factorial_is_modulo_2_to_the_32(n: int) -> None:
    with FakeGuest(edu := Edu()) as guest:
        driver = Driver(edu, guest)
        assert driver.factorial(n) == (math.factorial(n) % 2**32 if n < 1000 else 0)


def test_computing_takes_its_time(make: Make) -> None:
    driver = make(multiplication_time=1.0)
    driver.write(FACTORIAL, 5)
    driver.guest.advance(4.9)
    assert (driver.read(STATUS), driver.read(FACTORIAL)) == (COMPUTING, 5)
    driver.write(FACTORIAL, 3)
    assert driver.faults == {"busy": 1}
    driver.guest.advance(0.1)
    assert (driver.read(STATUS), driver.read(FACTORIAL)) == (0, 120)
    assert driver.factorial(3) == 6


@pytest.mark.parametrize("meanwhile", [0, COMPUTED_INTERRUPT])
def test_what_status_says_at_the_end_decides_on_the_interrupt(
    driver: Driver, meanwhile: int
) -> None:
    driver.write(STATUS, meanwhile ^ COMPUTED_INTERRUPT)
    driver.write(FACTORIAL, 1000)
    driver.write(STATUS, meanwhile)
    assert driver.read(STATUS) == COMPUTING | meanwhile
    driver.guest.advance(1)
    assert driver.read(INTERRUPT_STATUS) == (COMPUTED if meanwhile else 0)
    assert driver.intx == bool(meanwhile)


def test_status_keeps_one_bit(driver: Driver) -> None:
    driver.write(STATUS, ONES)
    assert driver.read(STATUS) == COMPUTED_INTERRUPT
    driver.write(STATUS, ~COMPUTED_INTERRUPT & ONES)
    assert driver.read(STATUS) == 0


# --- interrupts ----------------------------------------------------------------------------------


def test_intx_is_asserted_until_all_is_acknowledged(driver: Driver) -> None:
    driver.write(RAISE, 0x12)
    driver.write(RAISE, 0x21)
    assert (driver.read(INTERRUPT_STATUS), driver.intx) == (0x33, True)
    driver.write(ACK, 0x03)
    assert (driver.read(INTERRUPT_STATUS), driver.intx) == (0x30, True)
    driver.write(ACK, ONES)
    assert (driver.read(INTERRUPT_STATUS), driver.intx) == (0, False)
    driver.write(RAISE, 0)
    assert not driver.intx


def test_each_raise_is_a_message(driver: Driver) -> None:
    message = driver.function.interrupt(0)
    seen = []
    for offset, value in ((RAISE, 1), (RAISE, 1), (ACK, 1), (RAISE, 0), (RAISE, 6), (ACK, 2)):
        driver.write(offset, value)
        seen.append(message.take())
    assert seen == [True, True, False, False, True, False]
    assert (driver.read(INTERRUPT_STATUS), driver.intx) == (4, False)


# --- DMA -----------------------------------------------------------------------------------------


def test_there_and_back_again(driver: Driver) -> None:
    data = bytes(range(256)) * 16
    near, far = driver.function.allocate(BUFFER_SIZE).gpa, driver.function.allocate(5000).gpa
    driver.guest.memory.write(near, data)
    driver.dma(near, BUFFER, BUFFER_SIZE)
    assert driver.edu.buffer == data
    assert (driver.read(INTERRUPT_STATUS), driver.intx) == (0, False)
    driver.dma(BUFFER + 0x10, far + 1, 0x100, START | TO_RAM | DMA_INTERRUPT)
    assert driver.guest.memory.read(far, 0x102) == b"\0" + data[0x10:0x110] + b"\0"
    assert (driver.read(INTERRUPT_STATUS), driver.intx) == (TRANSFERRED, True)
    assert driver.faults == {}


def test_a_transfer_takes_its_time(make: Make) -> None:
    driver = make(dma_time=2.0)
    driver.edu.buffer[:4] = b"data"
    driver.start(BUFFER, 0x1000, 4, START | TO_RAM)
    driver.guest.advance(1.9)
    assert driver.guest.memory.read(0x1000, 4) == bytes(4)
    driver.start(0, 0, 0, START)
    assert driver.faults == {"busy": 4}
    assert [driver.read(offset, 8) for offset in WIDE] == [BUFFER, 0x1000, 4, START | TO_RAM]
    driver.guest.advance(0.1)
    assert driver.guest.memory.read(0x1000, 4) == b"data"
    assert driver.read(COMMAND, 8) == TO_RAM


def test_a_command_without_start_is_forgotten(driver: Driver) -> None:
    driver.dma(0x1000, BUFFER, 0, 0xF9)
    driver.write(COMMAND, TO_RAM, 8)
    assert driver.read(COMMAND, 8) == 0xF8


@pytest.mark.parametrize("mask", [(1 << 28) - 1, ONES, (1 << 64) - 1])
def test_an_address_has_no_more_bits_than_the_device(make: Make, mask: int) -> None:
    driver = make(dma_mask=mask)
    driver.guest.memory.write(0x1000, b"data")
    driver.dma(0x1000 | ~mask & (1 << 64) - 1, BUFFER, 4)
    assert driver.edu.buffer[:4] == b"data"
    driver.dma(BUFFER, 0x2000 | ~mask & (1 << 64) - 1, 4, START | TO_RAM)
    assert driver.guest.memory.read(0x2000, 4) == b"data"
    driver.dma(0x1000 | mask ^ mask >> 1, BUFFER, 4)  # its highest bit counts: nothing is there
    assert driver.edu.buffer[:4] == bytes(4)


@pytest.mark.parametrize("command", [START, START | TO_RAM])
def test_without_bus_mastering_nothing_moves_and_the_end_comes(
    driver: Driver, command: int
) -> None:
    driver.edu.buffer[:4] = b"here"
    driver.guest.memory.write(0x1000, b"there")
    driver.function.set_config(space.COMMAND, 2, space.COMMAND_MEMORY)
    places = (BUFFER, 0x1000) if command & TO_RAM else (0x1000, BUFFER)
    driver.dma(*places, 4, command | DMA_INTERRUPT)
    assert driver.read(INTERRUPT_STATUS) == TRANSFERRED
    assert driver.guest.memory.read(0x1000, 5) == b"there"
    assert driver.edu.buffer[:4] == (b"here" if command & TO_RAM else bytes(4))
    assert driver.faults == {"dma": 1}


@pytest.mark.parametrize("command", [START, START | TO_RAM])
def test_what_is_half_in_ram_moves_by_half(driver: Driver, command: int) -> None:
    end = driver.guest.memory.slots[-1].end
    driver.edu.buffer[:8] = b"original"
    driver.guest.memory.write(end - 4, b"last")
    places = (BUFFER, end - 4) if command & TO_RAM else (end - 4, BUFFER)
    driver.dma(*places, 8, command)
    assert driver.guest.memory.read(end - 4, 4) == (b"orig" if command & TO_RAM else b"last")
    assert driver.edu.buffer[:8] == (b"original" if command & TO_RAM else b"last" + bytes(4))
    assert driver.faults == {"dma": 1}


near_the_buffer = st.integers(BUFFER - 16, BUFFER + BUFFER_SIZE + 16)


@pytest.mark.usefixtures("quiet")
@given(
    inside=st.one_of(near_the_buffer, st.integers(0, 2**64 - 1)),
    count=st.one_of(st.integers(0, BUFFER_SIZE + 16), st.integers(0, 2**64 - 1)),
    to_ram=st.booleans(),
)
def test_only_what_is_all_in_the_buffer_moves(inside: int, count: int, to_ram: bool) -> None:
    with FakeGuest(edu := Edu()) as guest:
        driver = Driver(edu, guest)
        ram = driver.function.allocate(BUFFER_SIZE).gpa
        here, there = bytes(range(1, 256)) * 17, b"\xff" * BUFFER_SIZE
        edu.buffer[:] = here = here[:BUFFER_SIZE]
        guest.memory.write(ram, there)
        if to_ram:
            driver.dma(inside, ram, count, START | TO_RAM)
        else:
            driver.dma(ram, inside, count)
        begin = inside - BUFFER
        end = begin + count
        if begin >= 0 and end <= BUFFER_SIZE:
            if to_ram:
                there = here[begin:end] + there[count:]
            else:
                here = here[:begin] + there[:count] + here[end:]
            assert driver.faults == {}
        else:
            assert driver.faults == {"dma": 1}
        assert (bytes(edu.buffer), guest.memory.read(ram, BUFFER_SIZE)) == (here, there)


# --- what a guest may do -------------------------------------------------------------------------


def test_dma_registers_take_4_or_8_bytes(driver: Driver) -> None:
    driver.write(COUNT, 0x1122_3344_5566_7788, 8)
    assert driver.read(COUNT, 8) == 0x1122_3344_5566_7788
    assert driver.read(COUNT, 4) == 0x5566_7788
    driver.write(COUNT, 0x99AA_BBCC, 4)
    assert driver.read(COUNT, 8) == 0x99AA_BBCC
    assert driver.faults == {}
    driver.write(COUNT + 4, 1, 4)
    assert driver.read(COUNT + 4, 4) == ONES
    assert driver.read(COUNT, 8) == 0x99AA_BBCC
    assert driver.faults == {"bad write": 1, "bad read": 1}


def test_what_is_not_to_be_written_or_read(driver: Driver) -> None:
    driver.write(IDENTIFICATION, 0)
    driver.write(INTERRUPT_STATUS, 1)
    assert (driver.read(IDENTIFICATION), driver.read(INTERRUPT_STATUS)) == (0x0100_00ED, 0)
    assert (driver.read(RAISE), driver.read(ACK)) == (ONES, ONES)
    assert driver.faults == {"read-only register": 2, "bad read": 2}


def is_access(offset: int, size: int) -> bool:
    return (offset in NARROW and size == 4) or (offset in WIDE and size in (4, 8))


@pytest.mark.usefixtures("quiet")
@given(
    offset=st.one_of(st.integers(0, 0xA8), st.integers(0, SIZE + 8)),
    size=st.sampled_from([1, 2, 4, 8, 3]),
    value=st.integers(0, 2**64 - 1),
)
def test_any_other_access_reads_all_ones(offset: int, size: int, value: int) -> None:
    assume(not is_access(offset, size))
    with FakeGuest(edu := Edu()) as guest:
        driver = Driver(edu, guest)
        before = dict(edu._register_values)
        driver.bar.write(offset, size, value)
        assert driver.bar.read(offset, size) == (1 << 8 * size) - 1
        assert edu._register_values == before
        assert sum(driver.faults.values()) == 2


@pytest.mark.usefixtures("quiet")
@given(
    accesses=st.lists(
        st.tuples(
            st.one_of(st.sampled_from(NARROW + WIDE), st.integers(0, SIZE)),
            st.sampled_from([4, 4, 8, 2, 1, 3]),
            st.one_of(
                st.none(),
                st.integers(0, 255),
                st.sampled_from([BUFFER, BUFFER + 0xFFF, 0x1000]),
                st.integers(0, 2**64 - 1),
            ),
        ),
        max_size=40,
    )
)
def test_nothing_that_a_guest_does_raises(accesses: list[tuple[int, int, int | None]]) -> None:
    with FakeGuest(edu := Edu()) as guest:
        driver = Driver(edu, guest)
        for number, (offset, size, value) in enumerate(accesses):
            if value is None:
                assert 0 <= driver.bar.read(offset, size) < 1 << 8 * size
            else:
                driver.bar.write(offset, size, value)
            if number % 4 == 0:
                guest.advance(0.2)
            assert len(edu._started_timers) == edu.computing + edu.dma_start
            assert driver.intx == bool(edu.interrupt_status)
        assert edu.bugs._known == set()
        assert len(edu.buffer) == BUFFER_SIZE
