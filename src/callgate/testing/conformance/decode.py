# SPDX-License-Identifier: MIT
"""Who answers where: BARs that move, decoding that goes off, several devices on one bus."""

from __future__ import annotations

from callgate.driver.pci import (
    COMMAND,
    COMMAND_IO,
    COMMAND_MASTER,
    COMMAND_MEMORY,
    PciFunction,
)
from callgate.gate.abi import Status
from callgate.testing.conformance.devices import Bulk, Store, Sums
from callgate.testing.conformance.fixtures import MakeRig
from callgate.testing.conformance.rig import ONES, Rig

_ALL_ONES = 0xFFFF_FFFF


def free_memory(rig: Rig) -> int:
    """An address in the board's BAR window that nobody has, well aligned."""
    return rig.machine.board.bars.base + 0x0400_0000


def move(function: PciFunction, bar: int, address: int) -> None:
    """Write a BAR's address while it decodes, as one that knows no better does."""
    low = function.config(0x10 + 4 * bar, 4)
    if low & 7 == 4:
        function.set_config(0x14 + 4 * bar, 4, address >> 32)
    function.set_config(0x10 + 4 * bar, 4, address & _ALL_ONES)


class DecodeTests:
    """After each of these changes the very next access meets the new state."""

    def test_registers_move_with_their_bar(self, make: MakeRig) -> None:
        """The old address stops answering, the new one answers; what was stored is still there."""
        rig = make(Store())
        function = rig.function(rig.devices[0])
        read, write = rig.door.read, rig.door.write
        old, new = function.bar(0).address, free_memory(rig)
        write(old + 0x04, 4, 0xC0FFEE)
        assert read(old + 0x04, 4) == 0xC0FFEE
        for source, target in ((old, new), (new, new + 0x10_0000), (new + 0x10_0000, old)):
            move(function, 0, target)
            assert read(source + 0x04, 4) == rig.nothing & _ALL_ONES
            assert read(target + 0x04, 4) == 0xC0FFEE
            write(source + 0x04, 4, 1)
            assert read(target + 0x04, 4) == 0xC0FFEE

    def test_plain_memory_moves_with_its_bar(self, make: MakeRig) -> None:
        """The same for a BAR that is memory, which a backend maps and does not trap."""
        rig = make(Store())
        function = rig.function(rig.devices[0])
        read, write = rig.door.read, rig.door.write
        shared = rig.devices[0].bar_memory(Store.shared)
        old, new = function.bar(1).address, free_memory(rig)
        write(old + 0x1FF8, 4, 0xC0FFEE)
        for source, target in ((old, new), (new, new + 0x2000), (new + 0x2000, old)):
            move(function, 1, target)
            assert read(source + 0x1FF8, 4) == rig.nothing & _ALL_ONES
            assert read(target + 0x1FF8, 4) == 0xC0FFEE
            write(source + 0x1FF8, 4, 1)
            write(target, 4, source & _ALL_ONES)
            assert int.from_bytes(shared[:4], "little") == source & _ALL_ONES
            assert shared[0x1FF8:0x1FFC] == (0xC0FFEE).to_bytes(4, "little")

    def test_a_bar_that_is_moved_back_and_forth(self, make: MakeRig) -> None:
        """Many times, with an access at each place: nothing of an old map is left."""
        rig = make(Store())
        function = rig.function(rig.devices[0])
        home = function.bar(1).address
        for turn in range(20):
            target = free_memory(rig) + 0x2000 * (turn % 5)
            move(function, 1, target)
            rig.door.write(target + 4 * turn, 4, turn)
            assert rig.door.read(home, 4) == rig.nothing & _ALL_ONES
        move(function, 1, home)
        assert [rig.door.read(home + 4 * turn, 4) for turn in range(20)] == list(range(20))

    def test_ports_move_with_their_bar(self, make: MakeRig) -> None:
        """The same for an I/O BAR."""
        rig = make(Store())
        function = rig.function(rig.devices[0])
        old, new = function.bar(4).address, 0xE000
        rig.door.io_write(old, 4, 0xC0FFEE)
        function.set_config(0x20, 4, new)
        assert rig.door.io_read(old, 4) == _ALL_ONES
        assert rig.door.io_read(new, 4) == 0xC0FFEE
        assert rig.door.io_read(new + 4, 1) == 0x60

    def test_the_gate_moves_with_its_bar(self, make: MakeRig) -> None:
        """A driver that looks up the place anew calls on; the old doorbell is dead."""
        rig = make(Sums())
        device = rig.open(rig.devices[0])
        assert device.call("add", 1, 2) == 3
        old = device.function.bar(device.place.bar).address
        move(device.function, device.place.bar, free_memory(rig))
        assert rig.door.read(old + device.place.doorbell, 4) == rig.nothing & _ALL_ONES
        device.refresh()
        for way in rig.ways(device):
            reply = way.invoke(device, device.calls["add"].vector, (40, 2))
            assert (reply[0], reply[2][0]) == (Status.OK, 42), way

    def test_wide_bars_reach_above_4_gib(self, make: MakeRig) -> None:
        """A BAR of 64 bits may lie where 32 do not reach, if the processor does."""
        rig = make(Store())
        if rig.machine.board.bits == 32:
            return
        function = rig.function(rig.devices[0])
        high = 1 << 35
        move(function, 2, high)
        assert rig.door.read(high, 4) == 0x4433_2211

    def test_memory_decoding_off(self, make: MakeRig) -> None:
        """All memory BARs read all ones and drop writes; I/O goes on. Later all is as it was."""
        rig = make(Store())
        function = rig.function(rig.devices[0])
        registers, memory = function.bar(0).address, function.bar(1).address
        function.write(0, 0x04, 4, 0xC0FFEE)
        function.write(1, 0x10, 4, 0xBEEF)
        command = function.config(COMMAND, 2)
        function.set_config(COMMAND, 2, command & ~COMMAND_MEMORY)
        for address in (registers + 0x04, memory + 0x10):
            assert rig.door.read(address, 4) == rig.nothing & _ALL_ONES
            assert rig.door.read(address, 1) == rig.nothing & 0xFF
            rig.door.write(address, 4, 0)
        assert function.read(4, 0, 4) == 0x5050_5050
        function.set_config(COMMAND, 2, command)
        assert rig.door.read(registers + 0x04, 4) == 0xC0FFEE
        assert rig.door.read(memory + 0x10, 4) == 0xBEEF

    def test_io_decoding_off(self, make: MakeRig) -> None:
        """The same for I/O BARs."""
        rig = make(Store())
        function = rig.function(rig.devices[0])
        port = function.bar(4).address
        command = function.config(COMMAND, 2)
        function.set_config(COMMAND, 2, command & ~COMMAND_IO)
        assert rig.door.io_read(port, 4) == _ALL_ONES
        assert rig.door.io_read(port + 4, 1) == 0xFF
        rig.door.io_write(port, 4, 0)
        assert function.read(0, 0x04, 4) == 0x3333_3333
        function.set_config(COMMAND, 2, command)
        assert rig.door.io_read(port, 4) == 0x5050_5050

    def test_nothing_answers_where_nothing_is(self, make: MakeRig) -> None:
        """All ones, whatever the size; a write there does no harm."""
        rig = make(Store())
        hole = free_memory(rig)
        for size in rig.widths:
            assert rig.door.read(hole, size) == rig.nothing >> 64 - 8 * size
            rig.door.write(hole, size, 0)
        for size in (1, 2, 4):
            assert rig.door.io_read(0xF000, size) == ONES >> 64 - 8 * size
            rig.door.io_write(0xF000, size, 0)

    def test_ram_is_the_same_from_both_sides(self, make: MakeRig) -> None:
        """What the processor stores, devices see, and the other way round."""
        rig = make(Store())
        memory = rig.door.allocate(64)
        rig.door.store(memory.gpa, bytes(range(64)))
        assert rig.door.read(memory.gpa + 8, 8) == int.from_bytes(range(8, 16), "little")
        for size in rig.widths:
            rig.door.write(memory.gpa + 8 * size, size, 0xA5)
            found = rig.door.load(memory.gpa + 8 * size, size)
            assert found == (0xA5).to_bytes(size, "little")

    def test_bus_mastering_off(self, make: MakeRig) -> None:
        """A device that may not master the bus cannot reach a buffer; registers and calls go on."""
        rig = make(Bulk())
        device = rig.open(rig.devices[0])
        memory = rig.door.allocate(64)
        rig.door.store(memory.gpa, bytes([1] * 64))
        slots, vector = (memory.gpa, 64), device.calls["total"].vector
        function = device.function
        command = function.config(COMMAND, 2)
        function.set_config(COMMAND, 2, command & ~COMMAND_MASTER)
        for way in rig.ways(device):
            assert way.invoke(device, vector, slots)[0] == Status.BAD_BUFFER, way
        assert device.call("reverse", b"abc") == b"cba"
        function.set_config(COMMAND, 2, command)
        for way in rig.ways(device):
            status, _, results = way.invoke(device, vector, slots)
            assert (status, results[0]) == (Status.OK, 64), way

    def test_several_devices_are_apart(self, make: MakeRig) -> None:
        """Each has its own registers, calls and vectors, two of one class too."""
        rig = make(Sums(), Store(), Sums(), Store())
        first, _, second, _ = rig.devices
        one, two = rig.open(first), rig.open(second)
        assert one.call("step", 3) == 3
        assert two.call("step", 5) == 5
        assert one.call("step", 1) == 4
        vectors = [entry.vector for each in (one, two) for entry in each.calls.values()]
        assert len(set(vectors)) == len(vectors)
        stores = [rig.function(device) for device in rig.devices if isinstance(device, Store)]
        for value, function in enumerate(stores):
            function.write(0, 0x04, 4, value)
        assert [function.read(0, 0x04, 4) for function in stores] == [0, 1]

    def test_functions_of_one_slot_are_apart(self, make: MakeRig) -> None:
        """The header type tells that there are several; each has its own config space and BARs."""
        rig = make(Store())
        first = rig.function(rig.devices[0], enable=False)
        assert first.config(0x0E, 1) == 0
        second = rig.plug(Store(), 1, 5)
        assert first.config(0x0E, 1) == 0x80
        assert list(rig.door.functions()) == [0x00, 0x08, 0x0D]
        for value, function in enumerate((first, second)):
            function.enable()
            function.write(0, 0x04, 4, value)
            function.write(4, 0, 4, value + 2)
        assert [function.read(0, 0x04, 4) for function in (first, second)] == [0, 1]
        assert [function.read(4, 0, 4) for function in (first, second)] == [2, 3]
        second.set_config(COMMAND, 2, 0)
        assert first.read(0, 0x04, 4) == 0
        assert rig.door.read(second.bar(0).address + 4, 4) == _ALL_ONES
