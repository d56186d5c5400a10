# SPDX-License-Identifier: MIT
"""Registers: every width and access kind, accesses that are a part of one or span several."""

from __future__ import annotations

from typing import cast

from callgate.testing.conformance.devices import Store
from callgate.testing.conformance.fixtures import MakeRig
from callgate.testing.conformance.rig import ONES

_ALL_ONES = 0xFFFF_FFFF


class RegisterTests:
    """What a device's class declares is what the guest's instructions meet."""

    def test_reset_values(self, make: MakeRig) -> None:
        """Each width reads as declared."""
        rig = make(Store())
        function = rig.function(rig.devices[0])
        assert function.read(0, 0x00, 1) == 0x11
        assert function.read(0, 0x02, 2) == 0x2222
        assert function.read(0, 0x04, 4) == 0x3333_3333
        assert function.read(0, 0x08, 8) == 0x4444_4444_4444_4444

    def test_each_width_is_stored(self, make: MakeRig) -> None:
        """The model sees what was written, the guest what the model stored."""
        rig = make(Store())
        store = cast(Store, rig.devices[0])
        function = rig.function(store)
        values = {"byte": 0xA1, "half": 0xB2C3, "word": 0xD4E5_F607, "wide": 0x1829_3A4B_5C6D_7E8F}
        for name, value in values.items():
            register = getattr(Store, name)
            function.write(0, register.offset, register.size, value)
            assert getattr(store, name) == value
            setattr(store, name, value ^ 0xFF)
            assert function.read(0, register.offset, register.size) == value ^ 0xFF

    def test_a_part_of_a_register(self, make: MakeRig) -> None:
        """A narrower access reaches its bytes alone."""
        rig = make(Store())
        store = cast(Store, rig.devices[0])
        function = rig.function(store)
        store.word, store.wide = 0x4433_2211, 0x8877_6655_4433_2211
        assert [function.read(0, 0x04 + at, 1) for at in range(4)] == [0x11, 0x22, 0x33, 0x44]
        assert [function.read(0, 0x04 + at, 2) for at in (0, 2)] == [0x2211, 0x4433]
        assert [function.read(0, 0x08 + at, 4) for at in (0, 4)] == [0x4433_2211, 0x8877_6655]
        function.write(0, 0x05, 1, 0xAB)
        assert function.read(0, 0x04, 4) == 0x4433_AB11  # A write may be posted: this comes behind.
        assert store.word == 0x4433_AB11
        function.write(0, 0x0C, 2, 0xCDEF)
        assert function.read(0, 0x0C, 2) == 0xCDEF
        assert store.wide == 0x8877_CDEF_4433_2211

    def test_an_access_over_several_registers(self, make: MakeRig) -> None:
        """An aligned access that covers whole registers reaches each of them."""
        rig = make(Store())
        store = cast(Store, rig.devices[0])
        function = rig.function(store)
        assert function.read(0, 0x28, 8) == 0xBBBB_BBBB_AAAA_AAAA
        function.write(0, 0x28, 8, 0x2222_2222_1111_1111)
        assert (store.low, store.high) == (0x1111_1111, 0x2222_2222)

    def test_an_access_that_straddles(self, make: MakeRig) -> None:
        """One that is not aligned is refused: all ones, nothing written, counted."""
        rig = make(Store())
        store = cast(Store, rig.devices[0])
        function = rig.function(store)
        for offset, size in ((0x29, 4), (0x2A, 4), (0x2B, 2), (0x05, 2), (0x09, 4)):
            assert function.read(0, offset, size) == ONES >> 64 - 8 * size, (offset, size)
            function.write(0, offset, size, 0)
        assert (store.low, store.high) == (0xAAAA_AAAA, 0xBBBB_BBBB)
        assert (store.word, store.wide) == (0x3333_3333, 0x4444_4444_4444_4444)
        assert store.faults.counts == {"bad read": 5, "bad write": 5}

    def test_a_hole_between_registers(self, make: MakeRig) -> None:
        """All ones, nothing written, counted; also where an access is only partly in one."""
        rig = make(Store())
        store = cast(Store, rig.devices[0])
        function = rig.function(store)
        assert function.read(0, 0x100, 4) == _ALL_ONES
        assert function.read(0, 0x01, 1) == 0xFF
        assert function.read(0, 0x00, 2) == 0xFFFF
        function.write(0, 0x00, 2, 0)
        assert function.read(0, 0x00, 1) == 0x11
        assert store.byte == 0x11
        assert store.faults.counts == {"bad read": 3, "bad write": 1}

    def test_access_kinds(self, make: MakeRig) -> None:
        """Read-only keeps, write-only reads zeros, ones clear, ones set."""
        rig = make(Store())
        store = cast(Store, rig.devices[0])
        function = rig.function(store)

        def write_read(offset: int, value: int) -> int:
            function.write(0, offset, 4, value)
            return function.read(0, offset, 4)

        assert write_read(Store.fixed.offset, 0) == 0x1234_5678
        assert write_read(Store.blind.offset, 0x77) == 0
        assert store.blind == 0x77
        assert write_read(Store.clear.offset, 0x0000_FF0F) == 0xFFFF_00F0
        assert write_read(Store.clear.offset, 0) == 0xFFFF_00F0
        assert write_read(Store.set.offset, 0x0000_00F0) == 0x0000_00F0
        assert write_read(Store.set.offset, 0x0F00_0000) == 0x0F00_00F0

    def test_access_kinds_of_fields(self, make: MakeRig) -> None:
        """Each field of a register follows its own kind, in one write."""
        rig = make(Store())
        store = cast(Store, rig.devices[0])
        function = rig.function(store)
        function.write(0, Store.mixed.offset, 4, 0xAB_CD_0B_FF)
        assert function.read(0, Store.mixed.offset, 4) == 0x00_CD_04_0F
        assert (store.ready, store.event, store.mode, store.key) == (0x0F, 0x04, 0xCD, 0xAB)
        function.write(0, Store.mixed.offset + 1, 1, 0x04)
        assert function.read(0, Store.mixed.offset, 4) == 0x00_CD_00_0F
        assert (store.ready, store.event, store.mode, store.key) == (0x0F, 0x00, 0xCD, 0xAB)

    def test_hooks_run_once_for_each_access(self, make: MakeRig) -> None:
        """A read has one side effect, a write one; nothing is fetched ahead or repeated."""
        rig = make(Store())
        store = cast(Store, rig.devices[0])
        function = rig.function(store)
        assert [function.read(0, Store.count.offset, 4) for _ in range(3)] == [1, 2, 3]
        for value in (5, 6, 7):
            function.write(0, Store.latch.offset, 4, value)
        function.read(0, Store.fixed.offset, 4)  # Behind what was posted.
        assert store.written == [5, 6, 7]
        assert store.reads == 3

    def test_a_hooked_bar_sees_each_access_as_it_was_made(self, make: MakeRig) -> None:
        """Offset, size and value are those of the instruction."""
        rig = make(Store())
        store = cast(Store, rig.devices[0])
        function = rig.function(store)
        value = 0x8877_6655_4433_2211
        for size in rig.widths:
            assert function.read(2, 0x40, size) == value & ONES >> 64 - 8 * size
            function.write(2, 0x48, size, value & ONES >> 64 - 8 * size)
        function.read(2, 0xFF, 1)
        expected: list[tuple[int, ...]] = []
        for size in rig.widths:
            expected += [(0x40, size), (0x48, size, value & ONES >> 64 - 8 * size)]
        assert store.accesses == [*expected, (0xFF, 1)]

    def test_memory_that_both_sides_share(self, make: MakeRig) -> None:
        """Any size, aligned or not; the model sees the bytes at once."""
        rig = make(Store())
        store = cast(Store, rig.devices[0])
        function = rig.function(store)
        shared = store.bar_memory(Store.shared)
        for size in (1, 2, 4, 8):
            value = 0x8877_6655_4433_2211 & ONES >> 64 - 8 * size
            function.write(1, 0x40 * size, size, value)
            assert shared[0x40 * size :][:size] == value.to_bytes(size, "little")
        shared[0x1FFC:] = b"abcd"
        assert function.read(1, 0x1FFC, 4) == int.from_bytes(b"abcd", "little")
        assert function.read(1, 0x1FFF, 1) == ord("d")

    def test_ports(self, make: MakeRig) -> None:
        """Registers of an I/O BAR, whole and in part."""
        rig = make(Store())
        store = cast(Store, rig.devices[0])
        function = rig.function(store)
        assert function.read(4, 0, 4) == 0x5050_5050
        function.write(4, 0, 4, 0x4433_2211)
        # A write may be posted: a read comes behind it.
        assert [function.read(4, at, 1) for at in range(4)] == [0x11, 0x22, 0x33, 0x44]
        assert store.port == 0x4433_2211
        assert function.read(4, 2, 2) == 0x4433
        function.write(4, 1, 1, 0xAB)
        assert function.read(4, 4, 1) == 0x60
        assert store.port == 0x4433_AB11
        assert function.read(4, 0x10, 4) == _ALL_ONES
