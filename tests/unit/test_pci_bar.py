# SPDX-License-Identifier: MIT
"""BARs: sizing, addresses, and which accesses reach a window."""

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate.faults import Faults
from callgate.pci.bar import BarState, Kind, Window
from callgate.pci.config import ConfigSpace


def make(
    size: int = 4096,
    kind: Kind = "memory",
    *windows: Window,
    width: Literal[32, 64] = 32,
    prefetchable: bool = False,
    index: int = 0,
) -> tuple[BarState, ConfigSpace, Faults]:
    faults = Faults("sample")
    config = ConfigSpace(faults)
    bar = BarState(
        index,
        size,
        kind,
        width=width,
        prefetchable=prefetchable,
        windows=windows,
        config=config,
        faults=faults,
    )
    return bar, config, faults


@pytest.mark.parametrize(
    ("kind", "width", "prefetchable", "size", "mask"),
    [
        ("memory", 32, False, 16, 0xFFFF_FFF0),
        ("memory", 32, False, 4096, 0xFFFF_F000),
        ("memory", 32, True, 1 << 31, 0x8000_0008),
        ("memory", 64, False, 16, 0xFFFF_FFFF_FFFF_FFF4),
        ("memory", 64, True, 1 << 40, 0xFFFF_FF00_0000_000C),
        ("io", 32, False, 4, 0xFFFF_FFFD),
        ("io", 32, False, 256, 0xFFFF_FF01),
    ],
)
def test_sizing_reads_the_mask(
    kind: Kind, width: Literal[32, 64], prefetchable: bool, size: int, mask: int
) -> None:
    _, config, _ = make(size, kind, width=width, prefetchable=prefetchable, index=2)
    assert config.read(0x18, 4) == mask & 0xF & ~-size
    for offset in range(0x18, 0x18 + width // 8, 4):
        config.write(offset, 4, 0xFFFF_FFFF)
    assert config.get(0x18, width // 8) == mask
    assert config.read(0x18 + width // 8, 4) == 0


def test_the_address_is_what_was_written_rounded_down() -> None:
    bar, config, _ = make(4096, width=64)
    config.write(0x10, 4, 0x1234_5678)
    config.write(0x14, 4, 0xAB)
    assert bar.address == 0xAB_1234_5000
    bar.place(0xCD_0000_1000)
    assert bar.address == 0xCD_0000_1000
    assert config.read(0x10, 4) == 0x1004


@pytest.mark.parametrize(
    ("kind", "width", "address", "enabled"),
    [
        ("memory", 32, 0, False),
        ("memory", 32, 0x1000, True),
        ("memory", 32, 0xFFFF_E000, True),
        ("memory", 32, 0xFFFF_F000, False),
        ("memory", 64, 0xFFFF_F000, True),
        ("memory", 64, 0xFFFF_FFFF_FFFF_E000, True),
        ("memory", 64, 0xFFFF_FFFF_FFFF_F000, False),
        ("io", 32, 0, False),
        ("io", 32, 0xF000, True),
        ("io", 32, 0x1_0000, False),
        ("io", 32, 0xFFFF_F000, False),
    ],
)
def test_it_answers_where_an_address_was_assigned(
    kind: Kind, width: Literal[32, 64], address: int, enabled: bool
) -> None:
    bar, _, _ = make(4096, kind, width=width)
    bar.place(address)
    assert not bar.enabled
    bar.decoding = True
    assert bar.enabled is enabled


def test_a_window_of_memory_is_memory() -> None:
    ram = memoryview(bytearray(16))
    window = Window("ram", 0, 16, ram=ram)
    window.write(4, 8, 0x1122_3344_5566_7788)
    assert ram[4] == 0x88
    assert window.read(6, 2) == 0x5566


def test_accesses_reach_the_window_that_holds_them() -> None:
    log: list[tuple[int, ...]] = []

    def read(*access: int) -> int:
        log.append(access)
        return 7

    def write(*access: int) -> None:
        log.append(access)

    ram = Window("ram", 0, 16, ram=memoryview(bytearray(16)))
    bar, _, faults = make(64, "memory", ram, Window("bell", 16, 16, read=read, write=write))
    bar.write(12, 4, 0xFFFF_FFFF_0000_0005)
    assert bar.read(12, 4) == 5
    assert bar.read(20, 8) == 7
    bar.write(31, 1, 0x1FF)
    assert log == [(4, 8), (15, 1, 0xFF)]
    assert faults.counts == {}


@pytest.mark.parametrize(
    ("offset", "size"),
    [(14, 4), (15, 2), (30, 4), (32, 1), (60, 8), (64, 1), (1 << 40, 4), (-4, 4), (0, 3), (0, 16)],
)
def test_an_access_outside_one_window_reads_all_ones(offset: int, size: int) -> None:
    ram = memoryview(bytearray(32))
    bar, _, faults = make(
        64, "memory", Window("low", 0, 16, ram=ram[:16]), Window("high", 16, 16, ram=ram[16:])
    )
    assert bar.read(offset, size) == (1 << 8 * size) - 1
    bar.write(offset, size, 0xFF)
    assert bytes(ram) == bytes(32)
    assert faults.counts == {"BAR read": 1, "BAR write": 1}


@given(
    st.lists(st.tuples(st.integers(-4, 70), st.integers(0, 17), st.integers(0, 2**72)), max_size=30)
)
def test_no_access_raises_and_memory_holds_what_was_written(
    accesses: list[tuple[int, int, int]],
) -> None:
    ram = memoryview(bytearray(32))
    bar, _, _ = make(64, "memory", Window("ram", 8, 32, ram=ram))
    expected = bytearray(32)
    for offset, size, value in accesses:
        bar.write(offset, size, value)
        start = offset - 8
        if size in (1, 2, 4, 8) and start >= 0 and start + size <= 32:
            data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
            expected[start : start + size] = data
            assert bar.read(offset, size) == int.from_bytes(data, "little")
        else:
            assert bar.read(offset, size) == (1 << 8 * size) - 1
    assert ram == expected
