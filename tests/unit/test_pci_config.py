# SPDX-License-Identifier: MIT
"""Configuration space: every bit follows its access rule, and no access raises."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate.faults import Faults
from callgate.pci import config as space
from callgate.pci.config import ConfigSpace, define_header


@pytest.fixture
def config() -> ConfigSpace:
    config = ConfigSpace(Faults("sample"))
    define_header(
        config,
        id=(0x1AF4, 0x10F0),
        class_code=0x0C0330,
        revision=7,
        subsystem=(0x1234, 0x5678),
        pin=space.PIN_A,
    )
    return config


def test_the_header_says_who_it_is(config: ConfigSpace) -> None:
    assert config.read(0x00, 4) == 0x10F01AF4
    assert config.read(0x08, 4) == 0x0C033007
    assert config.read(0x2C, 4) == 0x56781234
    assert config.read(0x3D, 1) == 1
    assert config.read(0x0E, 1) == 0


def test_bytes_words_and_dwords_are_the_same_bytes(config: ConfigSpace) -> None:
    assert config.read(0x00, 2) == 0x1AF4
    assert config.read(0x02, 2) == 0x10F0
    assert [config.read(offset, 1) for offset in range(4)] == [0xF4, 0x1A, 0xF0, 0x10]


@pytest.mark.parametrize("offset", [0x00, 0x08, 0x2C, 0x34, 0x40, 0xFF0, 0xFFC])
def test_read_only_bytes_stay(config: ConfigSpace, offset: int) -> None:
    before = config.read(offset, 4)
    config.write(offset, 4, ~before & 0xFFFF_FFFF)
    assert config.read(offset, 4) == before


def test_the_command_register_has_the_usual_bits(config: ConfigSpace) -> None:
    config.write(space.COMMAND, 2, 0xFFFF)
    assert config.read(space.COMMAND, 2) == 0x0547
    config.write(space.COMMAND + 1, 1, 0)
    assert config.read(space.COMMAND, 2) == 0x0047


def test_status_errors_are_cleared_by_writing_one(config: ConfigSpace) -> None:
    config.change(space.STATUS, 2, set=0xF908)
    config.write(space.COMMAND, 4, 0x2000_0000)
    assert config.read(space.STATUS, 2) == 0xD908
    config.write(space.STATUS, 2, 0xFFFF)
    assert config.read(space.STATUS, 2) == 0x0008


def test_firmware_and_drivers_own_cache_line_and_line(config: ConfigSpace) -> None:
    config.write(0x0C, 4, 0xFFFF_FFFF)
    config.write(0x3C, 4, 0xFFFF_FF0B)
    assert config.read(0x0C, 4) == 0xFF
    assert config.read(0x3C, 4) == 0x010B


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 0), (0, 3), (0, 8), (1, 2), (2, 4), (3, 2), (4095, 2), (4096, 1), (4096, 4), (-4, 4)],
)
def test_a_bad_access_reads_all_ones_and_writes_nothing(
    config: ConfigSpace, offset: int, size: int
) -> None:
    before = config.dump(space.SIZE)
    assert config.read(offset, size) == (1 << 8 * size) - 1
    config.write(offset, size, 0)
    assert config.dump(space.SIZE) == before
    assert config._faults.counts == {"config read": 1, "config write": 1}


def test_extended_space_reads_zeros(config: ConfigSpace) -> None:
    assert not any(config.read(offset, 4) for offset in range(256, 4096, 4))


def test_a_watcher_learns_of_writes_to_its_bytes(config: ConfigSpace) -> None:
    seen: list[int] = []
    config.watch(space.COMMAND, 2, lambda: seen.append(config.read(space.COMMAND, 2)))
    config.write(space.STATUS, 2, 0xFFFF)
    config.write(space.COMMAND, 2, 7)
    config.write(space.COMMAND, 4, 6)
    config.write(space.COMMAND + 1, 1, 4)
    config.read(space.COMMAND, 2)
    assert seen == [7, 6, 0x406]


def test_a_watcher_of_several_dwords_learns_of_each(config: ConfigSpace) -> None:
    seen: list[None] = []
    config.watch(0x42, 8, lambda: seen.append(None))
    for offset in (0x3C, 0x40, 0x44, 0x48, 0x4C):
        config.write(offset, 4, 0)
    assert len(seen) == 3


def test_a_reset_brings_back_what_was_defined(config: ConfigSpace) -> None:
    before = config.dump(space.SIZE)
    config.write(space.COMMAND, 2, 0x0547)
    config.set(0x80, 4, 0xDEADBEEF)
    config.reset()
    assert config.dump(space.SIZE) == before
    config.preset(space.HEADER_TYPE, 1, 0x80)
    config.reset()
    assert config.read(space.HEADER_TYPE, 1) == 0x80


@given(
    initial=st.binary(min_size=8, max_size=8),
    writable=st.binary(min_size=8, max_size=8),
    w1c=st.binary(min_size=8, max_size=8),
    writes=st.lists(
        st.tuples(st.integers(-8, 20), st.integers(0, 9), st.integers(0, 2**64 - 1)), max_size=20
    ),
)
def test_masks_hold_whatever_is_written(
    initial: bytes, writable: bytes, w1c: bytes, writes: list[tuple[int, int, int]]
) -> None:
    config = ConfigSpace(Faults("sample"))
    config.define(0x40, initial, writable=writable, w1c=w1c)
    value = int.from_bytes(initial, "little")
    can_change = int.from_bytes(writable, "little")
    can_clear = int.from_bytes(w1c, "little")
    for offset, size, data in writes:
        config.write(0x40 + offset, size, data)
        if size in (1, 2, 4) and offset % size == 0 and offset >= 0 and offset + size <= 8:
            covered = ((1 << 8 * size) - 1) << 8 * offset
            shifted = data << 8 * offset & covered
            value = value & ~(can_change & covered) | shifted & can_change
            value &= ~(shifted & can_clear)
    assert config.get(0x40, 8) == value
    assert config.dump(0x40) == bytes(0x40)
    assert not any(config.dump(space.SIZE)[0x48:])
