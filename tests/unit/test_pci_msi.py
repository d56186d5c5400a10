# SPDX-License-Identifier: MIT
"""MSI: what the capability says, and where, when and how often a message goes."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate.faults import Faults
from callgate.pci.config import ConfigSpace
from callgate.pci.msi import Msi

AT = 0x50
CONTROL, ADDRESS, UPPER, DATA, MASK, PENDING = (
    AT + at for at in (0x02, 0x04, 0x08, 0x0C, 0x10, 0x14)
)
ENABLE = 1
ALL = 0xFFFF_FFFF


class Sample:
    """The MSI of a function with so many interrupts, whose capability is at 50h."""

    def __init__(self, interrupts: int = 4, *, masking: bool = True) -> None:
        self.sent: list[tuple[int, int]] = []
        self.msi = Msi(interrupts, lambda *message: self.sent.append(message), masking=masking)
        self.config = ConfigSpace(Faults("sample"))
        capability = self.msi.capability()
        self.size = capability.size
        self.config.define(AT + 2, capability.body, writable=capability.writable)
        self.config.watch(AT + 2, capability.size - 2, self.follow)
        self.msi.placed(self.config, AT)

    def follow(self) -> None:
        self.msi.follow()
        self.msi.flush()

    def master(self, on: bool = True) -> None:
        self.msi.may_send = on
        self.msi.flush()

    def enable(self, granted: int) -> None:
        """Grant so many vectors: message n is data 4D00h + n."""
        self.config.write(ADDRESS, 4, 0xFEE0_1000)
        self.config.write(UPPER, 4, 0x12)
        self.config.write(DATA, 2, 0x4D00)
        self.config.write(CONTROL, 2, ENABLE | granted.bit_length() - 1 << 4)
        self.master()

    def take(self) -> list[int]:
        """What was sent since the last time: the low bits of the data."""
        assert all(address == 0x12_FEE0_1000 and data >> 8 == 0x4D for address, data in self.sent)
        taken = [data & 0xFF for _, data in self.sent]
        self.sent.clear()
        return taken

    @property
    def pending(self) -> int:
        return self.config.read(PENDING, 4)


# --- the capability ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interrupts", "vectors"),
    [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (16, 16), (17, 32), (32, 32), (33, 32), (2048, 32)],
)
def test_vectors_are_the_next_power_of_two(interrupts: int, vectors: int) -> None:
    sample = Sample(interrupts)
    assert sample.msi.vectors == vectors
    control = sample.config.read(CONTROL, 2)
    assert 1 << (control >> 1 & 7) == vectors
    sample.config.write(MASK, 4, ALL)
    assert sample.config.read(MASK, 4) == (1 << vectors) - 1  # 6.8.1.7: the others are reserved.


@pytest.mark.parametrize(
    ("masking", "control", "size"), [(True, 0b1_1000_0100, 0x18), (False, 0b0_1000_0100, 0x0E)]
)
def test_what_the_capability_says(masking: bool, control: int, size: int) -> None:
    sample = Sample(masking=masking)
    assert (sample.config.read(CONTROL, 2), sample.size) == (control, size)
    assert not any(sample.config.dump()[ADDRESS:])


def test_what_the_guest_may_write() -> None:
    sample = Sample(2)
    for at in range(AT, AT + 0x18, 2):
        sample.config.write(at, 2, 0xFFFF)
    read = sample.config.read
    assert read(CONTROL, 2) == 0x0180 | 1 << 1 | 0x70 | ENABLE
    assert [read(at, 4) for at in (ADDRESS, UPPER, DATA)] == [ALL & ~3, ALL, 0xFFFF]
    assert [read(at, 4) for at in (MASK, PENDING)] == [0b11, 0]


# --- messages ------------------------------------------------------------------------------------


def test_a_message_is_the_data_with_the_vector_in_its_low_bits() -> None:
    sample = Sample()
    sample.enable(4)
    for interrupt in (2, 0, 3):
        sample.msi.trigger(interrupt)
    assert sample.take() == [2, 0, 3]
    sample.config.write(DATA, 2, 0xFFFF)
    sample.msi.trigger(1)
    assert sample.sent == [(0x12_FEE0_1000, 0xFFFD)]


@pytest.mark.parametrize("granted", [1, 2, 4, 8])
def test_with_fewer_vectors_interrupts_share_them(granted: int) -> None:
    sample = Sample(8)
    sample.enable(granted)
    sample.config.write(DATA, 2, 0x4DF0)
    for interrupt in range(8):
        sample.msi.trigger(interrupt)
    # Granted one, the function must not change the data at all (6.8.1.6).
    assert sample.take() == [0xF0 + interrupt % granted for interrupt in range(8)]


def test_more_interrupts_than_vectors_can_be() -> None:
    sample = Sample(100)
    sample.enable(32)
    for interrupt in (31, 32, 99):
        sample.msi.trigger(interrupt)
    assert sample.take() == [31, 0, 3]


@pytest.mark.parametrize("control", range(3, 8))
def test_more_vectors_than_there_are_cannot_be_granted(control: int) -> None:
    sample = Sample(3)
    sample.enable(4)
    sample.config.write(CONTROL, 2, ENABLE | control << 4)
    for interrupt in range(3):
        sample.msi.trigger(interrupt)
    assert sample.take() == [0, 1, 2]


def test_a_masked_vector_is_pending_and_goes_once_when_unmasked() -> None:
    sample = Sample()
    sample.enable(4)
    sample.config.write(MASK, 4, 0b1010)
    for interrupt in (1, 1, 0, 3, 2):
        sample.msi.trigger(interrupt)
    assert (sample.take(), sample.pending) == ([0, 2], 0b1010)
    assert sample.msi.is_pending(3)
    sample.config.write(MASK, 4, 0b1000)
    assert (sample.take(), sample.pending) == ([1], 0b1000)
    sample.config.write(MASK, 4, 0)
    assert (sample.take(), sample.pending) == ([3], 0)


def test_interrupts_that_share_a_vector_share_its_pending_bit() -> None:
    sample = Sample()
    sample.enable(2)
    sample.config.write(MASK, 4, 0b11)
    for interrupt in (1, 3, 2):
        sample.msi.trigger(interrupt)
    assert sample.pending == 0b11
    sample.msi.withdraw(1)
    sample.msi.withdraw(0)
    assert sample.pending == 0b11  # 3 is not settled.
    sample.config.write(MASK, 4, 0)
    assert (sample.take(), sample.pending) == ([0, 1], 0)


def test_what_is_settled_is_not_sent() -> None:
    sample = Sample()
    sample.enable(4)
    sample.config.write(MASK, 4, 0b0100)
    sample.msi.trigger(2)
    sample.msi.withdraw(2)
    assert sample.pending == 0
    sample.config.write(MASK, 4, 0)
    assert sample.take() == []
    sample.config.write(MASK, 4, 0b0100)
    sample.msi.trigger(2)
    assert sample.pending == 0b0100
    sample.config.write(MASK, 4, 0)
    assert sample.take() == [2]


def test_pending_bits_follow_what_is_granted() -> None:
    sample = Sample()
    sample.enable(4)
    sample.config.write(MASK, 4, 0b1111)
    sample.msi.trigger(3)
    assert sample.pending == 0b1000
    sample.config.write(CONTROL, 2, ENABLE | 1 << 4)
    assert sample.pending == 0b0010


@pytest.mark.parametrize("masking", [True, False])
@pytest.mark.parametrize("what", ["bus mastering", "enable"])
def test_what_holds_all_back_loses_none(what: str, masking: bool) -> None:
    sample = Sample(masking=masking)
    sample.enable(4)

    def switch(on: bool) -> None:
        if what == "enable":
            sample.config.write(CONTROL, 2, 2 << 4 | ENABLE * on)
        else:
            sample.master(on)

    switch(False)
    for interrupt in (3, 0, 3):
        sample.msi.trigger(interrupt)
    assert sample.take() == []
    assert [sample.msi.is_pending(vector) for vector in range(4)] == [True, False, False, True]
    assert sample.pending == (0b1001 if masking else 0)
    switch(True)
    assert sample.take() == [0, 3]


def test_after_a_reset_nothing_is_pending() -> None:
    sample = Sample()
    sample.enable(4)
    sample.config.write(MASK, 4, 1)
    sample.msi.trigger(0)
    sample.config.reset()
    sample.msi.reset()
    sample.follow()
    assert not sample.msi.in_use
    assert (sample.msi.granted, sample.pending) == (1, 0)


def test_a_message_may_end_in_configuration_space() -> None:
    sample = Sample()
    sample.enable(4)
    sample.msi.deliver = lambda address, data: sample.config.write(MASK, 4, data & 0xFF)
    sample.msi.trigger(2)
    assert sample.config.read(MASK, 4) == 2


# --- a VMM that makes the messages ---------------------------------------------------------------


def connected(sample: Sample, vectors: int) -> list[int]:
    told: list[int] = []
    sample.msi.connect(told.append, vectors)
    sample.master()
    return told


@pytest.mark.parametrize("granted", [None, 1, 2, 4])
def test_a_vmm_grants_what_it_connects(granted: int | None) -> None:
    """Or by control, while it connects vectors in parts."""
    sample = Sample()
    if granted is not None:
        sample.enable(granted)
    told = connected(sample, 2)
    for interrupt in range(4):
        sample.msi.trigger(interrupt)
    modulus = max(granted or 1, 2)
    assert told == [interrupt % modulus for interrupt in range(4)]
    assert sample.sent == []


def test_a_vmm_is_told_of_what_is_not_masked() -> None:
    sample = Sample()
    sample.config.write(MASK, 4, 0b10)
    told = connected(sample, 4)
    sample.msi.trigger(1)
    sample.msi.trigger(0)
    assert (told, sample.pending) == ([0], 0b10)
    sample.config.write(MASK, 4, 0)
    assert (told, sample.pending) == ([0, 1], 0)


def test_without_anywhere_to_go_a_message_is_pending() -> None:
    sample = Sample()
    sample.msi.deliver = None
    sample.enable(4)
    sample.msi.trigger(2)
    assert sample.pending == 0b100
    told = connected(sample, 4)
    assert (told, sample.pending) == ([2], 0)
    sample.msi.connect(told.append, 0)
    assert sample.msi.signal is None
    sample.msi.trigger(2)
    assert (told, sample.pending) == ([2], 0b100)


# --- whatever is done ----------------------------------------------------------------------------


class Step(NamedTuple):
    kind: str
    number: int


STEPS = st.lists(
    st.one_of(
        st.builds(Step, st.sampled_from(["trigger", "withdraw"]), st.integers(0, 39)),
        st.builds(Step, st.just("mask"), st.integers(0, ALL)),
        st.builds(Step, st.just("control"), st.integers(0, 0xFFFF)),
        st.builds(Step, st.just("master"), st.integers(0, 1)),
    ),
    max_size=40,
)


@given(interrupts=st.integers(1, 40), steps=STEPS)
def test_a_vector_is_pending_exactly_while_an_event_of_it_cannot_go(
    interrupts: int, steps: list[Step]
) -> None:
    sample = Sample(interrupts)
    vectors = sample.msi.vectors
    waiting: set[int] = set()
    expected: list[int] = []
    sample.config.write(ADDRESS, 4, 0xFEE0_1000)
    sample.config.write(UPPER, 4, 0x12)
    sample.config.write(DATA, 2, 0x4D00)
    for kind, number in steps:
        if kind == "trigger":
            waiting.add(number % interrupts)
            sample.msi.trigger(number % interrupts)
        elif kind == "withdraw":
            waiting.discard(number % interrupts)
            sample.msi.withdraw(number % interrupts)
        elif kind == "master":
            sample.master(bool(number))
        else:
            at, size = (MASK, 4) if kind == "mask" else (CONTROL, 2)
            sample.config.write(at, size, number)
        control, mask = sample.config.read(CONTROL, 2), sample.config.read(MASK, 4)
        granted = min(1 << (control >> 4 & 7), vectors)
        may_go = control & ENABLE and sample.msi.may_send
        wanted = {each % granted for each in waiting}
        gone = {each for each in wanted if may_go and not mask >> each & 1}
        expected += sorted(gone)
        waiting = {each for each in waiting if each % granted not in gone}
        assert sample.pending == sum(1 << each for each in wanted - gone)
    assert sample.take() == expected
