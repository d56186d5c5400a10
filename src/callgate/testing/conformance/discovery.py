# SPDX-License-Identifier: MIT
"""A driver finds everything by config space alone (docs/abi.md, sections 1 to 4)."""

from __future__ import annotations

from callgate.driver.directory import find_gate
from callgate.driver.find import open_device
from callgate.driver.pci import CAP_MSIX, CAP_VENDOR, PciFunction
from callgate.gate.abi import (
    CAPABILITY_SIGNATURE,
    HEADER,
    HEADER_SIGNATURE,
    VERSION,
    CallFlag,
    DoorbellRegister,
    Feature,
    Instruction,
    Transport,
)
from callgate.testing.conformance.devices import VENDOR, Bell, Bulk, Store, Sums, Values
from callgate.testing.conformance.fixtures import MakeRig, every_platform

_ALL_ONES = 0xFFFF_FFFF


class DiscoveryTests:
    """Bus, ids, capabilities, BARs, directory."""

    def test_the_bus_shows_who_is_there(self, make: MakeRig) -> None:
        """The host bridge is function 00.0, devices follow from slot 1 on; nothing else answers."""
        rig = make(Sums(), Store())
        assert list(rig.door.functions()) == [0x00, 0x08, 0x10]
        assert PciFunction(rig.door, 0x08).id == Sums.id
        assert PciFunction(rig.door, 0x10).id == Store.id
        for absent in (0x18, 0x09, 0xF8, 0x100, 0xFF08):
            assert rig.door.config_read(absent, 0, 4) == _ALL_ONES

    def test_config_space_takes_every_aligned_size(self, make: MakeRig) -> None:
        """Bytes and words are parts of the dword."""
        rig = make(Sums())
        function = rig.function(rig.devices[0], enable=False)
        vendor, device = Sums.id
        assert function.config(0, 4) == device << 16 | vendor
        assert [function.config(at, 2) for at in (0, 2)] == [vendor, device]
        assert [function.config(at, 1) for at in range(4)] == [
            vendor & 0xFF,
            vendor >> 8,
            device & 0xFF,
            device >> 8,
        ]
        function.set_config(0x3C, 1, 0x5A)
        assert function.config(0x3C, 4) & 0xFF == 0x5A

    def test_what_is_read_only_stays(self, make: MakeRig) -> None:
        """Ids and capabilities cannot be written."""
        rig = make(Sums())
        function = rig.function(rig.devices[0], enable=False)
        capability = dict(function.capabilities())[CAP_VENDOR]
        for at in (0x00, 0x08, capability, capability + 4):
            before = function.config(at, 4)
            function.set_config(at, 4, ~before & _ALL_ONES)
            assert function.config(at, 4) == before

    def test_ecam_and_ports_show_the_same(self, make: MakeRig) -> None:
        """Config space in memory is that behind CF8 and CFC, extended space included."""
        rig = make(Sums())
        function = rig.function(rig.devices[0])
        base = rig.machine.board.ecam.base + (function.address << 12)
        for at in (0x00, 0x04, 0x10, 0x34):
            assert rig.door.read(base + at, 4) == function.config(at, 4)
        assert rig.door.read(base + 0x100, 4) == 0
        if not rig.machine.board.is_x86:
            return
        for at in range(0, 0x40, 4):
            rig.door.io_write(0xCF8, 4, 1 << 31 | function.address << 8 | at)
            assert rig.door.io_read(0xCFC, 4) == rig.door.read(base + at, 4)
            assert rig.door.io_read(0xCFE, 2) == rig.door.read(base + at + 2, 2)

    def test_bars_tell_their_size(self, make: MakeRig) -> None:
        """All ones written to a BAR read back as its size, its kind in the low bits."""
        rig = make(Store())
        function = rig.function(rig.devices[0], enable=False)
        function.set_config(4, 2, 0)
        sizes = {}
        for index in (0, 1, 2, 4, 5):
            at = 0x10 + 4 * index
            before = function.config(at, 4)
            function.set_config(at, 4, _ALL_ONES)
            sizes[index] = function.config(at, 4)
            function.set_config(at, 4, before)
            assert function.config(at, 4) == before
        assert sizes[0] == 0xFFFF_F000
        assert sizes[1] == 0xFFFF_E000
        assert sizes[2] == 0xFFFF_FF0C, "64 bits, prefetchable"
        assert sizes[4] == 0xFFFF_FFE1, "I/O"
        assert sizes[5] == 0, "none"

    def test_the_upper_half_of_a_wide_bar(self, make: MakeRig) -> None:
        """It is the next BAR's register, and all of its bits are address."""
        rig = make(Store())
        function = rig.function(rig.devices[0], enable=False)
        function.set_config(4, 2, 0)
        function.set_config(0x1C, 4, _ALL_ONES)
        assert function.config(0x1C, 4) == _ALL_ONES
        function.set_config(0x1C, 4, 0)

    def test_bars_may_be_sized_while_they_decode(self, make: MakeRig) -> None:
        """Careless drivers do so; the device answers again as soon as the address is back."""
        rig = make(Store())
        function = rig.function(rig.devices[0])
        before = function.config(0x10, 4)
        function.set_config(0x10, 4, _ALL_ONES)
        assert function.config(0x10, 4) == 0xFFFF_F000
        function.set_config(0x10, 4, before)
        assert function.read(0, 0x04, 4) == 0x3333_3333

    def test_the_capability_leads_to_the_gate(self, make: MakeRig) -> None:
        """What it says is what the header says."""
        rig = make(Sums())
        function = rig.function(rig.devices[0])
        place = find_gate(function)
        assert place is not None
        base = function.bar(place.bar).address + place.offset
        read = rig.door.read
        assert read(base, 4) == HEADER_SIGNATURE
        assert read(base + HEADER.offset("doorbell_offset"), 4) == place.doorbell
        assert place.doorbell % 4096 == place.offset % 4096 == 0
        assert place.length == place.doorbell + 4096
        at = dict(function.capabilities())[CAP_VENDOR]
        assert function.config(at + 4, 4) == CAPABILITY_SIGNATURE
        assert function.config(at + 0x24, 2) == read(base + HEADER.offset("frame_count"), 2) == 4
        assert function.config(at + 0x26, 2) == read(base + HEADER.offset("entry_count"), 2) == 4

    @every_platform
    def test_the_capability_names_what_the_platform_offers(self, make: MakeRig) -> None:
        """Transports, instruction and selector are the platform's."""
        rig = make(Sums())
        place = find_gate(rig.function(rig.devices[0], enable=False))
        assert place is not None
        offer = rig.machine.platform.offer
        assert place.transports == offer.transports
        assert place.instruction == offer.instruction
        assert place.selector == offer.selector
        assert place.transports & Transport.MMIO, "the doorbell page is always there"
        if not offer.transports & Transport.HYPERCALL:
            assert not place.transports & Transport.HYPERCALL
            assert place.instruction is Instruction.NONE
        else:
            assert place.transports & Transport.HYPERCALL
            assert place.instruction is not Instruction.NONE

    def test_a_device_without_calls_has_no_gate(self, make: MakeRig) -> None:
        """Nor the capability, nor, without interrupts, an MSI-X table or an interrupt pin."""
        rig = make(Store())
        function = rig.function(rig.devices[0], enable=False)
        assert find_gate(function) is None
        assert CAP_MSIX not in dict(function.capabilities())
        assert function.config(0x3D, 1) == 0

    def test_msix_has_an_entry_for_each_interrupt(self, make: MakeRig) -> None:
        """Those of the class in their order, then the gate's, which the header names."""
        rig = make(Bell())
        function = rig.function(rig.devices[0])
        at = dict(function.capabilities())[CAP_MSIX]
        assert function.config(at + 2, 2) & 0x7FF == 4 - 1
        assert function.config(0x3D, 1) == 1
        assert rig.open(rig.devices[0]).directory.interrupt == 3

    def test_the_directory_lists_the_calls(self, make: MakeRig) -> None:
        """Names, signatures, slot counts and flags are those of the class."""
        rig = make(Values(), Bulk())
        for device in rig.devices:
            directory = rig.open(device).directory
            assert directory.name == device.spec.name
            assert directory.uuid == device.spec.uuid
            assert directory.version == device.version
            assert list(directory.entries) == [call.name for call in device.spec.calls]
            for call in device.spec.calls:
                entry = directory.entries[call.name]
                assert entry.text == call.text
                assert entry.signature == call.hash
                assert (entry.arguments, entry.results) == (call.arguments, call.result_slots)
                assert entry.flags == call.flags
                assert 0 < entry.vector < 1 << 31

    def test_flags_tell_what_a_call_needs(self, make: MakeRig) -> None:
        """Payload, buffers, one way, and whether registers suffice."""
        rig = make(Sums(), Bulk())
        sums, bulk = (rig.open(device).calls for device in rig.devices)
        assert sums["add"].flags == CallFlag.REGISTERS
        assert sums["poke"].flags == CallFlag.REGISTERS | CallFlag.ONE_WAY
        assert bulk["reverse"].flags == CallFlag.PAYLOAD_IN | CallFlag.PAYLOAD_OUT
        assert bulk["total"].flags == CallFlag.REGISTERS | CallFlag.BUFFERS

    def test_a_device_is_found_by_name(self, make: MakeRig) -> None:
        """Wherever on the bus it is; of several, the first."""
        rig = make(Store(), Bell(), Sums())
        device = open_device("sums", rig.door)
        assert device.function.address == 3 << 3
        assert device.function.id[0] == VENDOR
        assert device.add(2, 40) == 42

    def test_version_and_features_are_agreed_on(self, make: MakeRig) -> None:
        """The host echoes a version that it speaks, and keeps the features that it knows."""
        rig = make(Sums())
        device = rig.open(rig.devices[0])
        doorbell = device.doorbell
        version = doorbell + DoorbellRegister.VERSION
        features = doorbell + DoorbellRegister.FEATURES
        assert device.features == device.directory.features
        assert device.features >= Feature.NOTIFY | Feature.CHANGE_INTERRUPT | Feature.DONE_INTERRUPT
        read, write = rig.door.read, rig.door.write
        for refused in (VERSION + 1, VERSION + (1 << 16), 0, _ALL_ONES):
            write(version, 4, refused)
            assert read(version, 4) == 0
        write(version, 4, VERSION)
        assert read(version, 4) == VERSION
        write(features, 4, _ALL_ONES)
        assert read(features, 4) == device.directory.features
        write(features, 4, Feature.NOTIFY)
        assert read(features, 4) == Feature.NOTIFY

    def test_the_doorbell_reads_as_the_generation(self, make: MakeRig) -> None:
        """Which is even at rest, and changes with every binding."""
        rig = make(Sums())
        device = rig.open(rig.devices[0])
        doorbell = device.doorbell
        before = rig.door.read(doorbell, 4)
        assert before == device.directory.generation
        assert before % 2 == 0
        assert rig.door.read(doorbell + DoorbellRegister.NOTIFY, 4) == 0
        rig.devices[0].gate.bind("add")
        after = rig.door.read(doorbell, 4)
        assert after not in (before, _ALL_ONES)
        device.refresh()
        assert device.directory.generation == after
