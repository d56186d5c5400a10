# SPDX-License-Identifier: MIT
"""The local APIC of the Unicorn backend (Intel SDM, volume 3, chapter 11)."""

import pytest

from callgate.backends.unicorn.apic import LocalApic
from callgate.faults import Faults

MESSAGES = 0xFEE0_0000
EOI, SPURIOUS, PRIORITY = 0xB0, 0xF0, 0x80


@pytest.fixture
def apic() -> LocalApic:
    apic = LocalApic(Faults("guest"))
    apic.write(SPURIOUS, 4, 0x1FF)
    return apic


def test_takes_the_highest_vector_first(apic: LocalApic) -> None:
    assert apic.pending() is None
    for vector in (0x31, 0x52, 0x51):
        assert apic.request(MESSAGES, vector)
    taken = []
    while apic.pending() is not None:
        taken.append(apic.accept())
        apic.write(EOI, 4, 0)
    assert taken == [0x52, 0x51, 0x31]


def test_a_class_holds_its_own_and_lower_ones_back_until_its_end(apic: LocalApic) -> None:
    apic.request(MESSAGES, 0x51)
    assert apic.accept() == 0x51
    apic.request(MESSAGES, 0x52)
    apic.request(MESSAGES, 0x31)
    assert apic.pending() is None
    apic.request(MESSAGES, 0x61)
    assert apic.pending() == 0x61
    apic.accept()
    apic.write(EOI, 4, 0)
    assert apic.pending() is None
    apic.write(EOI, 4, 0)
    assert apic.pending() == 0x52


def test_an_end_too_many_is_harmless(apic: LocalApic) -> None:
    apic.write(EOI, 4, 0)
    apic.request(MESSAGES, 0x20)
    assert apic.pending() == 0x20


def test_the_task_priority_holds_back(apic: LocalApic) -> None:
    apic.write(PRIORITY, 4, 0x50)
    apic.request(MESSAGES, 0x5F)
    assert apic.pending() is None
    assert apic.read(0xA0, 4) == 0x50
    apic.write(PRIORITY, 4, 0x4F)
    assert apic.pending() == 0x5F


@pytest.mark.parametrize(
    ("address", "data"),
    [
        (MESSAGES | 5 << 12, 0x41),  # another processor
        (MESSAGES, 0x0F),  # vector of an exception
        (MESSAGES, 0x441),  # NMI
    ],
)
def test_refuses_what_it_has_not(apic: LocalApic, address: int, data: int) -> None:
    assert not apic.request(address, data)
    assert apic.pending() is None


@pytest.mark.parametrize(
    ("address", "data"),
    [(MESSAGES | 0xFF << 12, 0x41), (MESSAGES, 0x141), (MESSAGES | 1 << 12 | 0xC, 0x41)],
)
def test_takes_broadcasts_lowest_priority_and_logical_destinations(
    apic: LocalApic, address: int, data: int
) -> None:
    assert apic.request(address, data)
    assert apic.pending() == 0x41


def test_is_off_at_reset() -> None:
    faults = Faults("guest")
    apic = LocalApic(faults)
    assert apic.read(SPURIOUS, 4) == 0xFF
    assert not apic.request(MESSAGES, 0x41)
    assert faults.counts == {"APIC disabled": 1}


def test_shows_what_is_requested_and_in_service(apic: LocalApic) -> None:
    apic.request(MESSAGES, 0x51)
    apic.accept()
    apic.request(MESSAGES, 0xFF)
    apic.request(MESSAGES, 0x20)
    assert apic.read(0x120, 4) == 1 << 0x11
    assert apic.read(0x270, 4) == 1 << 31
    assert apic.read(0x210, 4) == 1
    assert apic.read(0x200, 4) == apic.read(0x180, 4) == 0


def test_keeps_other_registers(apic: LocalApic) -> None:
    apic.write(0x320, 4, 0x10000)
    assert apic.read(0x320, 4) == 0x10000
    apic.write(0x20, 4, 0x0500_0000)
    apic.write(0x30, 4, 0)
    assert apic.read(0x20, 4) == 0
    assert apic.read(0x30, 4) == 0x50014
    apic.write(0x324, 4, 5)
    assert apic.read(0x324, 4) == 0
