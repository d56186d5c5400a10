# SPDX-License-Identifier: MIT
"""Bus: every access finds the one who answers, and nobody else, whatever the guest maps where."""

import itertools
import logging
from collections.abc import Callable
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate.device import Device
from callgate.errors import BackendError
from callgate.faults import Faults
from callgate.gate.vectors import VectorTable
from callgate.memory import GuestMemory
from callgate.pci import config as space
from callgate.pci.bar import BarState, Kind, Window
from callgate.pci.bus import Bus, Place
from callgate.pci.config import ConfigSpace, define_header
from callgate.pci.function import Function
from callgate.register import Register
from callgate.timers import Timers

MEMORY, IO = space.COMMAND_MEMORY, space.COMMAND_IO
ECAM = range(0xB000_0000, 0xB020_0000)  # two buses
Shape = tuple[int, int, Kind, Literal[32, 64]]


class Sample:
    """A function whose BARs are memory, but for a hole in the upper half of those of 64 KiB."""

    def __init__(self, name: str, *shapes: Shape) -> None:
        self.name = name
        self.faults = Faults(name)
        self.config = ConfigSpace(self.faults)
        self.on_mapping: Callable[[], None] | None = None
        define_header(self.config, id=(0x1AF4, 0x10F0), class_code=0xFF0000, pin=1)
        self.ram = {
            index: memoryview(bytearray(size if size < 0x10000 else size // 2))
            for index, size, _, _ in shapes
        }
        self.bars = tuple(
            BarState(
                index,
                size,
                kind,
                width=width,
                windows=(Window(f"{name}{index}", 0, len(self.ram[index]), ram=self.ram[index]),),
                config=self.config,
                faults=self.faults,
            )
            for index, size, kind, width in shapes
        )
        self.config.watch(space.COMMAND, 2, self._follow)
        self.config.watch(space.BAR0, 24, self._follow)
        self.config_read = self.config.read
        self.config_write = self.config.write

    def _follow(self) -> None:
        command = self.config.get(space.COMMAND, 2)
        for bar in self.bars:
            bar.decoding = bool(command & (IO if bar.kind == "io" else MEMORY))
        if self.on_mapping is not None:
            self.on_mapping()

    def at(self, *addresses: int) -> "Sample":
        """Place the BARs and let them decode."""
        for bar, address in zip(self.bars, addresses, strict=True):
            bar.place(address)
        self.config.write(space.COMMAND, 2, MEMORY | IO)
        return self


def page(name: str = "a", size: int = 0x1000) -> Sample:
    return Sample(name, (0, size, "memory", 32))


@pytest.fixture
def memory() -> GuestMemory:
    memory = GuestMemory()
    memory.add(0, bytearray(0x10000))
    memory.add(0xFFFF_0000, bytes(0x10000))
    return memory


@pytest.fixture
def bus(memory: GuestMemory) -> Bus:
    return Bus(memory, ecam=ECAM)


def where(bus: Bus, kind: Kind = "memory") -> list[tuple[int, int, str]]:
    """Mappings without ECAM and configuration ports."""
    fixed = ("ecam", "config ports")
    return [
        (each.address, each.length, each.window.name)
        for each in bus.mappings()
        if each.kind == kind and each.window.name not in fixed
    ]


# --- slots and functions ------------------------------------------------------------------------


def test_the_host_bridge_is_there(bus: Bus) -> None:
    assert bus.config_read((0, 0), 0, 4) == 0x10FF_1AF4
    assert bus.config_read((0, 0), 0x0A, 2) == 0x0600
    assert bus.config_read((0, 0), 0x0E, 1) == 0


def test_functions_take_free_slots_or_the_one_that_is_named(bus: Bus) -> None:
    assert bus.plug(page(), slot=2) == (2, 0)
    assert bus.plug(page()) == (1, 0)
    assert str(bus.plug(page())) == "00:03.0"
    assert [str(place) for place in bus.functions] == ["00:00.0", "00:01.0", "00:02.0", "00:03.0"]


def test_several_functions_of_a_slot_are_announced_by_the_first(bus: Bus) -> None:
    bus.plug(page("a"), slot=4)
    assert bus.config_read((4, 0), 0x0E, 1) == 0
    second = bus.plug(page("b"), slot=4, number=5)
    assert bus.config_read((4, 0), 0x0E, 1) == 0x80
    assert bus.config_read((4, 5), 0x0E, 1) == 0
    assert bus.config_read((4, 5), 0, 2) == 0x1AF4
    bus.unplug(second)
    assert bus.config_read((4, 0), 0x0E, 1) == 0


@pytest.mark.parametrize(
    ("slot", "number", "sentence"),
    [
        (1, 0, "must have a place of its own: a is at 00:01.0"),
        (2, 1, "must be plugged in after function 0 of its slot: there is none at 00:02.0"),
        (32, 0, "must be plugged into slot 1 to 31 as function 0 to 7"),
        (1, 8, "must be plugged into slot 1 to 31 as function 0 to 7"),
    ],
)
def test_a_place_that_cannot_be_had_is_told_in_a_sentence(
    bus: Bus, slot: int, number: int, sentence: str
) -> None:
    bus.plug(page("a"), slot=1)
    with pytest.raises(BackendError, match=sentence):
        bus.plug(page("b"), slot=slot, number=number)


def test_a_full_bus_says_so(bus: Bus) -> None:
    for _ in range(31):
        bus.plug(page())
    with pytest.raises(BackendError, match="all slots are taken"):
        bus.plug(page())


def test_who_was_unplugged_stops_answering(bus: Bus) -> None:
    place = bus.plug(page().at(0x8000_0000))
    other = bus.plug(page("b"), slot=place.slot, number=1)
    with pytest.raises(BackendError, match="function 0 the last of its slot"):
        bus.unplug(place)
    bus.unplug(other)
    bus.unplug(place)
    assert bus.mem_read(0x8000_0000, 4) == 0xFFFF_FFFF
    assert bus.config_read(place, 0, 4) == 0xFFFF_FFFF
    with pytest.raises(BackendError, match="must be plugged in"):
        bus.unplug(place)


# --- configuration ------------------------------------------------------------------------------


def test_the_configuration_ports_reach_bytes_words_and_dwords(bus: Bus) -> None:
    sample = page()
    place = bus.plug(sample, slot=3)
    bus.io_write(0xCF8, 4, 0x8000_0000 | place.slot << 11 | 0x3C)
    assert bus.io_read(0xCF8, 4) == 0x8000_183C
    bus.io_write(0xCFC, 1, 0x0B)
    assert bus.io_read(0xCFC, 4) == 0x010B
    assert bus.io_read(0xCFC, 2) == 0x010B
    assert bus.io_read(0xCFD, 1) == 1
    assert bus.io_read(0xCFE, 2) == 0
    bus.io_write(0xCF8, 4, 0x8000_1804)
    bus.io_write(0xCFC, 2, 7)
    assert sample.config.get(space.COMMAND, 2) == 7
    assert sample.faults.counts == {}


def test_the_configuration_ports_are_off_without_the_enable_bit(bus: Bus) -> None:
    bus.io_write(0xCF8, 4, 0)
    assert bus.io_read(0xCFC, 4) == 0xFFFF_FFFF
    bus.io_write(0xCFC, 4, 0)
    bus.io_write(0xCF8, 4, 0x8000_0000)
    assert bus.io_read(0xCFC, 4) == 0x10FF_1AF4


@pytest.mark.parametrize("address", [0x8000_F800, 0x8001_0000, 0x8000_0100])
def test_who_is_not_there_reads_all_ones_without_a_fault(bus: Bus, address: int) -> None:
    bus.io_write(0xCF8, 4, address)
    assert bus.io_read(0xCFC, 4) == 0xFFFF_FFFF
    bus.io_write(0xCFC, 4, 0)
    assert bus.faults.counts == {}


def test_the_address_port_takes_dwords_alone(bus: Bus) -> None:
    bus.io_write(0xCF8, 4, 0xFFFF_FFFF)
    assert bus.io_read(0xCF8, 4) == 0x80FF_FFFC
    bus.io_write(0xCFB, 1, 0x01)
    bus.io_write(0xCF8, 2, 0)
    assert bus.io_read(0xCF8, 4) == 0x80FF_FFFC
    assert bus.io_read(0xCF8, 2) == 0xFFFF
    assert bus.io_read(0xCF9, 1) == 0xFF


def test_ecam_reaches_all_4096_bytes(bus: Bus) -> None:
    bus.plug(page(), slot=3)
    base = ECAM.start | 3 << 15
    assert bus.mem_read(base, 4) == 0x10F0_1AF4
    bus.mem_write(base + 0x3C, 1, 9)
    assert bus.mem_read(base + 0x3C, 1) == 9
    assert bus.mem_read(base + 0xFFC, 4) == 0
    assert bus.mem_read(base | 1 << 12, 4) == 0xFFFF_FFFF
    assert bus.mem_read(ECAM.start + (1 << 20), 4) == 0xFFFF_FFFF
    bus.mem_write(ECAM.start + (1 << 20), 4, 0)
    assert bus.mem_read(base, 8) == 2**64 - 1


def test_a_bus_without_ports_and_ecam_has_neither(memory: GuestMemory) -> None:
    bus = Bus(memory, config_ports=False)
    assert bus.mappings() == []
    assert bus.io_read(0xCF8, 4) == 0xFFFF_FFFF
    assert bus.mem_read(ECAM.start, 4) == 0xFFFF_FFFF


# --- routing ------------------------------------------------------------------------------------


def test_accesses_reach_the_bar(bus: Bus) -> None:
    sample = Sample("a", (0, 0x1000, "memory", 64), (2, 16, "io", 32)).at(0x80_0000_0000, 0xC000)
    bus.plug(sample)
    bus.mem_write(0x80_0000_0010, 8, 0x1122_3344_5566_7788)
    assert bus.mem_read(0x80_0000_0012, 2) == 0x5566
    bus.io_write(0xC00C, 4, 0xFFFF_FFFF_1234_5678)
    assert bus.io_read(0xC00E, 1) == 0x34
    assert sample.ram[0][0x17] == 0x11
    assert bus.faults.counts == {}


def test_ram_answers_and_rom_is_not_written(bus: Bus, memory: GuestMemory) -> None:
    bus.mem_write(0x100, 4, 0xCAFE)
    assert memory.read(0x100, 2) == b"\xfe\xca"
    assert bus.mem_read(0x100, 8) == 0xCAFE
    bus.mem_write(0xFFFF_0000, 4, 1)
    assert bus.mem_read(0xFFFF_0000, 4) == 0
    assert bus.faults.counts == {"memory write": 1}


@pytest.mark.parametrize(
    ("address", "size"),
    [
        (0x7000_0000, 4),
        (0x7FFF_FFFE, 4),
        (0x8000_0FFE, 4),
        (0x8000_0FFF, 8),
        (0x0000_FFFF, 2),
        (2**64 - 4, 8),
        (2**64, 1),
        (-4, 4),
        (0x8000_0000, 3),
        (0x8000_0000, 16),
        (0x100, 3),
    ],
)
def test_what_nobody_answers_wholly_reads_all_ones_and_is_counted(
    bus: Bus, address: int, size: int
) -> None:
    sample = page().at(0x8000_0000)
    bus.plug(sample)
    assert bus.mem_read(address, size) == (1 << 8 * size) - 1
    bus.mem_write(address, size, 0x55)
    assert bus.faults.counts == {"memory read": 1, "memory write": 1}
    assert not any(sample.ram[0])


@pytest.mark.parametrize(("port", "size"), [(0x80, 1), (0xCFE, 4), (0xFFFF, 2), (0x1_0CF8, 4)])
def test_ports_that_nobody_has_read_all_ones(bus: Bus, port: int, size: int) -> None:
    assert bus.io_read(port, size) == (1 << 8 * size) - 1
    bus.io_write(port, size, 0)
    assert bus.faults.counts == {"port read": 1, "port write": 1}


def test_a_hole_in_a_bar_reads_all_ones(bus: Bus) -> None:
    bus.plug(page("a", 0x10000).at(0x8000_0000))
    assert bus.mem_read(0x8000_7FFC, 4) == 0
    assert bus.mem_read(0x8000_8000, 4) == 0xFFFF_FFFF
    assert where(bus) == [(0x8000_0000, 0x8000, "a0")]


def test_decoding_off_answers_nothing(bus: Bus) -> None:
    sample = page().at(0x8000_0000)
    bus.plug(sample)
    sample.config.write(space.COMMAND, 2, IO)
    assert bus.mem_read(0x8000_0000, 4) == 0xFFFF_FFFF
    assert where(bus) == []


# --- remapping and conflicts --------------------------------------------------------------------


def test_a_bar_that_moves_leaves_its_old_address_at_once(bus: Bus) -> None:
    sample = page().at(0x8000_0000)
    bus.plug(sample)
    bus.mem_write(0x8000_0000, 4, 0x1234)
    seen: list[list[tuple[int, int, str]]] = []
    bus.on_change.append(lambda: seen.append(where(bus)))
    bus.mem_write(ECAM.start + (1 << 15) + 0x10, 4, 0x9000_0000)
    assert bus.mem_read(0x8000_0000, 4) == 0xFFFF_FFFF
    assert bus.mem_read(0x9000_0000, 4) == 0x1234
    assert seen == [[(0x9000_0000, 0x1000, "a0")]]
    bus.mem_write(ECAM.start + (1 << 15) + 0x3C, 1, 5)
    bus.refresh()
    assert len(seen) == 1


def test_a_device_can_move_its_own_bar_in_the_middle_of_an_access(bus: Bus) -> None:
    sample = page()
    window = sample.bars[0].windows[0]
    window.write = lambda offset, size, value: sample.bars[0].place(value)
    bus.plug(sample.at(0x8000_0000))
    bus.mem_write(0x8000_0000, 4, 0x9000_0000)
    assert where(bus) == [(0x9000_0000, 0x1000, "a0")]


def test_ram_wins_over_a_bar(bus: Bus, memory: GuestMemory) -> None:
    sample = page("a", 0x8000).at(0x8000)
    bus.plug(sample)
    memory.write(0x8000, b"\x01\x02\x03\x04")
    assert bus.mem_read(0x8000, 4) == 0x04030201
    bus.mem_write(0x9000, 4, 7)
    assert memory.read(0x9000, 4) == b"\x07\0\0\0"
    assert not any(sample.ram[0])
    assert bus.faults.counts == {"BAR conflict": 1}


def test_beside_the_ram_the_bar_still_answers(bus: Bus, memory: GuestMemory) -> None:
    memory.add(0x8000_1000, bytearray(0x1000))
    bus.plug(page("a", 0x4000).at(0x8000_0000))
    assert where(bus) == [(0x8000_0000, 0x1000, "a0"), (0x8000_2000, 0x2000, "a0")]
    bus.mem_write(0x8000_2000, 4, 5)
    assert [each.offset for each in bus.mappings() if each.window.name == "a0"] == [0, 0x2000]
    assert bus.mem_read(0x8000_0FFE, 4) == 0xFFFF_FFFF


def test_ram_that_comes_and_goes_changes_who_answers(bus: Bus, memory: GuestMemory) -> None:
    bus.plug(page().at(0x8000_0000))
    memory.add(0x8000_0000, bytearray(b"\x99" * 0x1000))
    assert bus.mem_read(0x8000_0000, 1) == 0x99
    memory.remove(0x8000_0000)
    assert bus.mem_read(0x8000_0000, 1) == 0


def test_between_bars_the_lower_function_then_the_lower_bar_wins(bus: Bus) -> None:
    two = Sample("b", (0, 0x4000, "memory", 32), (1, 0x1000, "memory", 32))
    bus.plug(two.at(0x8000_0000, 0x8000_3000), slot=2)
    bus.plug(page("a").at(0x8000_1000), slot=1)
    assert where(bus) == [
        (0x8000_0000, 0x1000, "b0"),
        (0x8000_1000, 0x1000, "a0"),
        (0x8000_2000, 0x2000, "b0"),
    ]
    assert bus.faults.counts == {"BAR conflict": 2}


def test_the_hole_of_a_bar_hides_who_comes_later(bus: Bus) -> None:
    bus.plug(page("a", 0x10000).at(0x8000_0000), slot=1)
    bus.plug(page("b").at(0x8000_8000), slot=2)
    assert where(bus) == [(0x8000_0000, 0x8000, "a0")]


def test_ecam_and_the_configuration_ports_win_over_bars(bus: Bus) -> None:
    sample = Sample("a", (0, 0x1000, "memory", 32), (1, 256, "io", 32))
    bus.plug(sample.at(ECAM.start, 0xC00))
    assert bus.mem_read(ECAM.start, 4) == 0x10FF_1AF4
    assert where(bus) == []
    assert where(bus, "io") == [(0xC00, 0xF8, "a1")]
    assert bus.io_read(0xCF8, 4) == 0


def test_a_conflict_is_counted_when_it_appears(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    sample = page("a")
    bus.plug(page("b").at(0x8000_0000), slot=1)
    bus.plug(sample, slot=2)
    with caplog.at_level(logging.WARNING, "callgate.guest"):
        sample.at(0x8000_0000)
        bus.refresh()
        sample.bars[0].place(0x9000_0000)
        sample.bars[0].place(0x8000_0000)
    assert bus.faults.counts == {"BAR conflict": 2}
    assert len(caplog.records) == 1
    assert "a (00:02.0) must not overlap RAM, ECAM or a BAR that comes first" in caplog.text


# --- firmware -----------------------------------------------------------------------------------


def test_firmware_places_the_largest_first_aligned_and_a_page_apart(bus: Bus) -> None:
    bus.plug(Sample("a", (0, 16, "memory", 32), (1, 0x4000, "memory", 32), (2, 4, "io", 32)))
    bus.plug(Sample("b", (0, 0x2000, "memory", 64), (2, 32, "io", 32)))
    bus.assign(
        memory=range(0xC000_1000, 0xD000_0000), ports=range(0xC000, 0x10000), lines=(5, 10, 11)
    )
    assert where(bus) == [
        (0xC000_4000, 0x4000, "a1"),
        (0xC000_8000, 0x2000, "b0"),
        (0xC000_A000, 16, "a0"),
    ]
    assert where(bus, "io") == [(0xC000, 32, "b2"), (0xC020, 4, "a2")]
    assert [bus.config_read((slot, 0), 0x3C, 1) for slot in (0, 1, 2)] == [0, 10, 11]
    assert [bus.config_read((slot, 0), 4, 2) for slot in (0, 1, 2)] == [0, 3, 3]


def test_two_small_bars_do_not_share_a_page(bus: Bus) -> None:
    bus.plug(Sample("a", (0, 16, "memory", 32), (1, 16, "memory", 32)))
    bus.assign(memory=range(0xC000_0000, 0xC001_0000), ports=range(0xC000, 0xD000))
    assert where(bus) == [(0xC000_0000, 16, "a0"), (0xC000_1000, 16, "a1")]


def test_wide_bars_go_above_where_there_is_room(bus: Bus) -> None:
    bus.plug(Sample("a", (0, 0x1000, "memory", 64), (2, 0x1000, "memory", 32)))
    bus.assign(
        memory=range(0xC000_0000, 0xC001_0000),
        ports=range(0xC000, 0xD000),
        memory64=range(0x80_0000_0000, 0x81_0000_0000),
    )
    assert where(bus) == [(0xC000_0000, 0x1000, "a2"), (0x80_0000_0000, 0x1000, "a0")]


def test_assigning_again_packs_anew(bus: Bus) -> None:
    first = bus.plug(page("a", 0x2000))
    ranges = {"memory": range(0xC000_0000, 0xC000_4000), "ports": range(0xC000, 0xD000)}
    bus.assign(**ranges)
    bus.plug(page("b"))
    bus.assign(**ranges)
    bus.unplug(first)
    bus.assign(**ranges)
    assert where(bus) == [(0xC000_0000, 0x1000, "b0")]


def test_a_range_that_is_too_small_is_told_in_a_sentence(bus: Bus) -> None:
    bus.plug(Sample("a", (0, 0x1000, "memory", 32), (1, 0x2000, "memory", 32)))
    with pytest.raises(BackendError) as raised:
        bus.assign(memory=range(0xC000_0000, 0xC000_2000), ports=range(0xC000, 0xD000))
    assert str(raised.value) == (
        "BAR 0 of a (00:01.0) needs 0x1000 bytes of memory space, and 0xc0000000 to 0xc0002000 has "
        "too few left: plug in less, or make the BAR smaller"
    )


# --- all of it ----------------------------------------------------------------------------------


def test_a_device_is_found_sized_placed_and_used_through_ports_alone(bus: Bus) -> None:
    class Sum(Device):
        id = 0x1AF4, 0x10F3
        a = Register(0x00)
        b = Register(0x04)
        total = Register(0x08, access="r")

        @a.on_write
        @b.on_write
        def add(self, value: int) -> None:
            self.total = self.a + self.b & 0xFFFF_FFFF

    bus.plug(
        Function(
            Sum(),
            memory=GuestMemory(),
            deliver=lambda address, data: None,
            set_intx=lambda level: None,
            timers=Timers(),
            table=VectorTable(),
        )
    )

    def select(slot: int, offset: int) -> None:
        bus.io_write(0xCF8, 4, 0x8000_0000 | slot << 11 | offset)

    for slot in range(32):
        select(slot, 0)
        if bus.io_read(0xCFC, 4) == 0x10F3_1AF4:
            break
    select(slot, 0x10)
    bus.io_write(0xCFC, 4, 0xFFFF_FFFF)
    assert ~bus.io_read(0xCFC, 4) & 0xFFFF_FFFF == 0xFFF
    bus.io_write(0xCFC, 4, 0xE000_0000)
    select(slot, 0x04)
    bus.io_write(0xCFC, 2, MEMORY)
    bus.mem_write(0xE000_0000, 4, 40)
    bus.mem_write(0xE000_0004, 4, 2)
    assert bus.mem_read(0xE000_0008, 4) == 42


ADDRESSES = st.one_of(
    st.integers(0x7FFF_C000, 0x8001_4000),
    st.integers(ECAM.start, ECAM.start + (4 << 15)),
    st.sampled_from([0, 0xFFFC, 0xFFFF, 0x10000, 0xCF8, 0xCFC, 0xCFE, 0xC000, 2**64 - 1, 2**64]),
)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["mem", "io", "bar", "command"]),
            ADDRESSES,
            st.sampled_from([1, 2, 4, 8, 0, 3]),
            st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0x8000_0000, 0x8000_1804, 3])),
            st.integers(0, 2),
        ),
        max_size=40,
    )
)
def test_whatever_the_guest_does_one_at_most_answers(
    steps: list[tuple[str, int, int, int, int]],
) -> None:
    logging.disable()
    try:
        memory = GuestMemory()
        memory.add(0, bytearray(0x10000))
        memory.add(0x8000_4000, bytearray(0x1000))
        bus = Bus(memory, ecam=ECAM)
        samples = [
            Sample(name, (0, 0x1000, "memory", 64), (2, 0x10000, "memory", 32), (3, 16, "io", 32))
            for name in "abc"
        ]
        for sample in samples:
            bus.plug(sample)
        for kind, address, size, value, which in steps:
            ones = (1 << 8 * size) - 1
            if kind == "mem":
                bus.mem_write(address, size, value)
                assert 0 <= bus.mem_read(address, size) <= ones
            elif kind == "io":
                bus.io_write(address, size, value)
                assert 0 <= bus.io_read(address, size) <= ones
            elif kind == "bar":
                samples[which].bars[size % 3].place(address)
            else:
                samples[which].config_write(space.COMMAND, 2, value)
            check_decode(bus, memory)
    finally:
        logging.disable(logging.NOTSET)


def check_decode(bus: Bus, memory: GuestMemory) -> None:
    """Mappings are disjoint, outside RAM, inside an enabled BAR, and accesses go where they say."""
    for kind in ("memory", "io"):
        mappings = [each for each in bus.mappings() if each.kind == kind]
        for below, above in itertools.pairwise(mappings):
            assert below.end <= above.address
        for each in mappings:
            assert 0 <= each.offset < each.offset + each.length <= each.window.size
            if kind == "memory":
                assert not memory.overlaps(each.address, each.length)
            if each.window.ram is not None:
                read = bus.mem_read if kind == "memory" else bus.io_read
                assert read(each.address, 1) == each.window.ram[each.offset]


def test_places_are_shown_as_people_write_them() -> None:
    assert str(Place(31, 7)) == "00:1f.7"
