# SPDX-License-Identifier: MIT
"""The driver's PCI: what a function says of itself, and how its interrupts are taken."""

from collections.abc import Callable

import pytest

from callgate.call import call, u64
from callgate.device import Device
from callgate.driver.door import DmaMemory
from callgate.driver.pci import (
    CAP_MSIX,
    CAP_VENDOR,
    COMMAND,
    COMMAND_IO,
    COMMAND_MASTER,
    COMMAND_MEMORY,
    PciFunction,
    answering,
)
from callgate.errors import NotFound
from callgate.interrupt import Interrupt
from callgate.pci.capability import PowerManagement, VendorCapability
from callgate.register import Bar, Register
from callgate.testing import FakeGuest

ONES = 0xFFFF_FFFF


class Plain(Device):
    id = 0x1AF4, 0x10F0
    area = Bar(0, 0x1000)
    ports = Bar(1, 0x10, kind="io")
    wide = Bar(2, 0x1000, width=64, ram=True)
    value = Register(0x10, reset=0x1234_5678)
    port = Register(0x04, width=16, bar=ports, reset=0xABCD)


class Noisy(Device):
    id = 0x1AF4, 0x10F1
    capabilities = (PowerManagement(),)
    ring = Register(0x00, access="w")
    first = Interrupt()
    second = Interrupt()

    @ring.on_write
    def rung(self, value: int) -> None:
        (self.first, self.second)[value].trigger()

    @call
    def add(self, a: u64, b: u64) -> u64:
        return a + b


def config_of(headers: dict[int, int]) -> Callable[[int, int, int], int]:
    """Config space where these functions are, with these header types."""

    def read(function: int, offset: int, size: int) -> int:
        if function not in headers:
            return (1 << 8 * size) - 1
        return headers[function] if offset == 0x0E else 0x1AF4

    return read


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({}, []),
        ({0x00: 0, 0x08: 0, 0xF8: 0}, [0x00, 0x08, 0xF8]),
        ({0x08: 0x80, 0x0B: 0, 0x0F: 0}, [0x08, 0x0B, 0x0F]),
        pytest.param({0x08: 0, 0x0B: 0}, [0x08], id="the first says that it is alone"),
        pytest.param({0x0B: 0}, [], id="without function 0 there are no others"),
    ],
)
def test_who_answers(headers: dict[int, int], found: list[int]) -> None:
    assert list(answering(config_of(headers))) == found


def test_ids_and_address() -> None:
    with FakeGuest(Plain()) as guest:
        function = PciFunction(guest.door, 0x08)
        assert function.id == (0x1AF4, 0x10F0)
        assert str(function) == "00:01.0"
        assert str(PciFunction(guest.door, 0x012B)) == "01:05.3"


def test_enable_keeps_the_other_bits() -> None:
    with FakeGuest(Plain()) as guest:
        function = PciFunction(guest.door, 0x08)
        function.set_config(COMMAND, 2, 0x0400)
        function.enable(master=False)
        assert function.config(COMMAND, 2) == 0x0400 | COMMAND_IO | COMMAND_MEMORY
        function.enable()
        assert function.config(COMMAND, 2) & COMMAND_MASTER


def test_capabilities_in_their_order() -> None:
    with FakeGuest(Noisy(), Plain()) as guest:
        found = [kind for kind, _ in PciFunction(guest.door, 0x08).capabilities()]
        assert found == [0x01, CAP_MSIX, CAP_VENDOR]
        assert list(PciFunction(guest.door, 0x10).capabilities()) == []
        assert list(PciFunction(guest.door, 0x18).capabilities()) == [], "nobody is there"


def test_a_circle_of_capabilities_ends() -> None:
    with FakeGuest(Noisy()) as guest:
        config = guest.machine.functions[0].config
        first = config.get(0x34, 1)
        config.set(first + 1, 1, first)
        assert len(list(PciFunction(guest.door, 0x08).capabilities())) == 48


def test_bars() -> None:
    with FakeGuest(Plain()) as guest:
        function = guest.function(*Plain.id)
        places = [function.bar(index) for index in (0, 1, 2)]
        assert [place.kind for place in places] == ["memory", "io", "memory"]
        bars = guest.machine.functions[0].bars
        assert [place.address for place in places] == [bar.address for bar in bars]
        with pytest.raises(NotFound, match=r"BAR 4 of 00:01.0 must have an address"):
            function.bar(4)


def test_a_wide_bar_above_4_gib() -> None:
    with FakeGuest(Plain()) as guest:
        function = guest.function(*Plain.id)
        function.set_config(0x1C, 4, 0x12)
        assert function.bar(2).address >> 32 == 0x12
        function.write(2, 0x20, 8, 0x1122_3344_5566_7788)
        assert function.read(2, 0x24, 4) == 0x1122_3344


def test_reads_and_writes() -> None:
    with FakeGuest(Plain()) as guest:
        function = guest.function(*Plain.id)
        assert function.read(0, 0x10, 4) == 0x1234_5678
        function.write(0, 0x10, 2, 0xBEEF)
        assert function.read(0, 0x10, 4) == 0x1234_BEEF
        assert function.read(1, 0x04, 2) == 0xABCD
        function.write(1, 0x04, 2, 0x1111)
        assert function.read(1, 0x05, 1) == 0x11


def test_an_interrupt_is_taken_once() -> None:
    with FakeGuest(Noisy()) as guest:
        function = guest.function(*Noisy.id)
        first, second = function.interrupt(0), function.interrupt(1)
        assert not first.take()
        function.write(0, 0, 4, 0)
        assert first.wait(0)
        assert not first.take()
        assert not second.wait(0)


def test_a_masked_interrupt_comes_later() -> None:
    with FakeGuest(Noisy()) as guest:
        function = guest.function(*Noisy.id)
        interrupt = function.interrupt(0)
        interrupt.mask(True)
        function.write(0, 0, 4, 0)
        assert not interrupt.take()
        interrupt.mask(False)
        assert interrupt.take()


def test_an_entry_is_masked_while_it_is_changed() -> None:
    """Else a message could go to half an address."""
    with FakeGuest(Noisy()) as guest:
        function = guest.function(*Noisy.id)
        function.interrupt(0)
        entry = function.msix_entry(0)
        writes: list[int] = []
        write = guest.door.write

        def watch(address: int, size: int, value: int) -> None:
            if address < entry + 12:
                writes.append(guest.door.read(entry + 12, 4))
            write(address, size, value)

        guest.door.write = watch
        function.interrupt(0)
        assert writes == [1, 1, 1]


class Messages(Noisy):
    msi, msix = True, False


class Bare(Messages):
    msi_masking = False


@pytest.mark.parametrize("kind", [Messages, Bare])
def test_by_msi_all_interrupts_are_one(kind: type[Noisy]) -> None:
    with FakeGuest(kind()) as guest:
        function = guest.function(*kind.id)
        interrupt = function.interrupt(1)
        assert not interrupt.take()
        for index in (0, 1):
            function.write(0, 0, 4, index)
            assert interrupt.wait(0)
            assert not interrupt.take()
        with pytest.raises(NotFound, match=r"00:01.0 must have MSI-X for a second interrupt"):
            function.interrupt(0)


def test_a_masked_message_comes_later() -> None:
    with FakeGuest(Messages()) as guest:
        function = guest.function(*Messages.id)
        interrupt = function.interrupt(0)
        interrupt.mask(True)
        function.write(0, 0, 4, 1)
        assert not interrupt.take()
        interrupt.mask(False)
        assert interrupt.take()


def test_msi_without_masks_masks_nothing() -> None:
    with FakeGuest(Bare()) as guest:
        interrupt = guest.function(*Bare.id).interrupt(0)
        with pytest.raises(NotFound, match=r"00:01.0 must have per-vector masking"):
            interrupt.mask(True)


class Narrow(Device):
    """A capability of MSI with 32 address bits, which our own never have."""

    id = 0x1AF4, 0x10F3
    capabilities = (VendorCapability(bytes(11)),)


@pytest.mark.parametrize("control", [0x0000, 0x0100])
def test_msi_with_a_narrow_address(control: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeGuest(Narrow()) as guest:
        config = guest.machine.functions[0].config
        config.define(0x40, bytes([5, 0]) + control.to_bytes(2, "little") + bytes(16))
        config.define(0x42, config.dump()[0x42:0x54], writable=b"\xff" * 18)
        function = guest.function(*Narrow.id)
        address = guest.door.allocate(64).gpa + 64  # where the next one will be
        interrupt = function.interrupt(0)
        assert function.config(0x44, 4) == address
        assert function.config(0x48, 2) == 1
        assert function.config(0x42, 2) == control | 1
        if control:
            interrupt.mask(True)
            assert function.config(0x4C, 4) == 1
        high = DmaMemory(guest.door.allocate(64).gpa + (1 << 32), 64)
        monkeypatch.setattr(guest.door, "allocate", lambda length: high)
        function.set_config(0x42, 2, control)
        with pytest.raises(NotFound, match=r"00:01.0 must have 64-bit MSI to reach 0x1"):
            function.interrupt(0)


def test_interrupts_that_are_not_there() -> None:
    with FakeGuest(Noisy(), Plain()) as guest:
        with pytest.raises(NotFound, match=r"An interrupt of 00:01.0 must be below 3, not 3"):
            guest.function(*Noisy.id).interrupt(3)
        with pytest.raises(NotFound, match=r"00:02.0 must have an MSI-X or MSI capability"):
            guest.function(*Plain.id).interrupt(0)
