# SPDX-License-Identifier: MIT
"""Reading a gate: what a host says is copied, checked, and refused if it contradicts itself."""

from typing import Any

import pytest

from callgate.call import BufferIn, call, u8, u64
from callgate.device import Device
from callgate.driver.directory import find_gate, read_directory
from callgate.driver.find import open_device
from callgate.driver.pci import PciFunction
from callgate.errors import NotAGate, NotFound
from callgate.gate.abi import (
    CAPABILITY,
    CAPABILITY_SIGNATURE,
    ENTRY,
    HEADER,
    HEADER_SIGNATURE,
    CallFlag,
    Instruction,
    Transport,
)
from callgate.pci.capability import VendorCapability
from callgate.register import Bar
from callgate.testing import FakeGuest

GATE = 0x1000
SOUND: dict[str, int] = {
    "length": CAPABILITY.size,
    "signature": CAPABILITY_SIGNATURE,
    "version_major": 1,
    "gate_offset": GATE,
    "gate_length": 0x6000,
    "doorbell_offset": 0x5000,
    "transports": 4,
    "pio_bar": 0xFF,
}
SOUND_HEADER: dict[str, int] = {
    "signature": HEADER_SIGNATURE,
    "version_major": 1,
    "directory_offset": HEADER.size,
    "entry_count": 1,
    "entry_size": ENTRY.size,
    "frames_offset": 0x1000,
    "frame_count": 4,
    "frame_size": 0x1000,
    "doorbell_offset": 0x5000,
}


class Sound(Device):
    id = 0x1AF4, 0x10F0

    @call
    def add(self, a: u64, b: u64) -> u64:
        return a + b

    @call
    def mixed(self, a: u8, data: bytes, buffer: BufferIn) -> tuple[u8, bytes]:
        return a, data


def liar(capability: dict[str, int], header: dict[str, Any], entry: dict[str, Any]) -> Device:
    """A device that fakes a gate in plain memory."""

    class Liar(Device):
        id = 0x1AF4, 0x10FC
        area = Bar(0, 0x8000, ram=True)
        capabilities = (VendorCapability(CAPABILITY.pack(**SOUND | capability)[3:]),)

        def attach(self) -> None:
            self.area[GATE:][: HEADER.size] = HEADER.pack(name=b"liar", **SOUND_HEADER | header)
            packed = ENTRY.pack(**dict[str, Any](vector=1, name=b"call") | entry)
            self.area[GATE + HEADER.size :][: ENTRY.size] = packed

    return Liar()


def test_a_gate_is_found_by_config_space_alone() -> None:
    with FakeGuest(Sound()) as guest:
        function = PciFunction(guest.door, 0x08)
        function.set_config(4, 2, 0)
        place = find_gate(function)
        assert place is not None
        gate = guest.machine.functions[0].gate
        assert gate is not None
        assert (place.offset, place.length, place.doorbell) == (0, gate.size, gate.ram_size)
        assert place.instruction is Instruction.VMCALL
        assert place.transports == Transport(15)
        assert (place.bar, place.pio_bar) == (1, 3)


@pytest.mark.parametrize("mapped", [True, False])
def test_the_directory(mapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A door that cannot map reads it access by access."""
    with FakeGuest(Sound()) as guest:
        if not mapped:
            monkeypatch.setattr(guest.door, "map", lambda address, length: None)
        function = guest.function(*Sound.id)
        place = find_gate(function)
        assert place is not None
        directory = read_directory(function, place)
        assert directory.name == "sound"
        assert directory.uuid == Sound.spec.uuid
        assert directory.version == 1
        assert directory.frames == (4096, 16, 4096)
        add, mixed = directory.entries.values()
        assert (add.name, add.text) == ("add", "add(u64,u64)->u64")
        assert add.parameter_types == ("u64", "u64")
        assert add.result_types == ("u64",)
        assert mixed.parameter_types == ("u8", "bytes", "in")
        assert mixed.result_types == ("u8", "bytes")
        assert (mixed.arguments, mixed.results) == (4, 2)
        assert mixed.flags == (CallFlag.PAYLOAD_IN | CallFlag.PAYLOAD_OUT | CallFlag.BUFFERS)


@pytest.mark.parametrize(
    "capability",
    [
        {"version_major": 2},
        {"version_major": 0},
        {"bar": 6},
        {"gate_offset": 0x1004},
        {"gate_offset": 0xFFFF_F000},
        {"gate_length": 0x5FFF},
        {"gate_length": 0xFFFF_FFFF},
        {"doorbell_offset": 0x6000},
        {"doorbell_offset": 0x4FF0},
    ],
)
def test_a_capability_that_cannot_be(capability: dict[str, int]) -> None:
    with FakeGuest(liar(capability, {}, {})) as guest, pytest.raises(NotAGate, match="capability"):
        find_gate(PciFunction(guest.door, 0x08))


def test_a_capability_of_somebody_else() -> None:
    with FakeGuest(liar({"signature": 0}, {}, {})) as guest:
        assert find_gate(PciFunction(guest.door, 0x08)) is None


@pytest.mark.parametrize(
    ("capability", "transports", "pio_bar"),
    [
        ({"transports": 0xFF}, Transport(15) & ~Transport.PIO, None),
        ({"transports": 0x06, "pio_bar": 7}, Transport.MMIO, None),
        ({"transports": 0x06, "pio_bar": 5}, Transport.MMIO | Transport.PIO, 5),
    ],
)
def test_transports_that_can_be_used(
    capability: dict[str, int], transports: Transport, pio_bar: int | None
) -> None:
    """Bits of a later version are left out, and a port without a BAR."""
    with FakeGuest(liar(capability, {}, {})) as guest:
        place = find_gate(PciFunction(guest.door, 0x08))
        assert place is not None
        assert (place.transports, place.pio_bar) == (transports, pio_bar)


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize(
    "header",
    [
        {"signature": 0},
        {"signature": 0xFFFF_FFFF},
        {"version_major": 2},
        {"entry_size": 0x38},
        {"entry_size": 0x44},
        {"directory_offset": 0x4FF8},
        {"directory_offset": 0xC4},
        {"directory_offset": 0xFFFF_FFF8},
        {"entry_count": 0xFFFF},
        {"frames_offset": 0x2000},
        {"frames_offset": 0xFFFF_F000},
        {"frame_count": 0},
        {"frame_count": 0xFFFF},
        {"frame_size": 0x80},
        {"frame_size": 0x1001},
        {"frame_size": 0xFFFF_FFF8},
        {"doorbell_offset": 0x4000},
        {"text_offset": 0x4FFF, "text_length": 2},
        {"text_offset": 0xFFFF_FFFF, "text_length": 0xFFFF_FFFF},
    ],
)
def test_a_header_that_cannot_be(
    header: dict[str, int], mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeGuest(liar({}, header, {})) as guest:
        if not mapped:
            monkeypatch.setattr(guest.door, "map", lambda address, length: None)
        function = guest.function(0x1AF4, 0x10FC)
        place = find_gate(function)
        assert place is not None
        with pytest.raises(NotAGate):
            read_directory(function, place)


def test_an_entry_whose_text_is_not_its_signature() -> None:
    """Then its slots are numbers, as many as it says."""
    text = b"call(u8)->()"
    entry = {"arguments": 2, "results": 1, "signature": 1, "text_offset": 0x200}
    entry["text_length"] = len(text)
    header = {"text_offset": 0x200, "text_length": len(text)}
    device = liar({}, header, entry)
    with FakeGuest(device) as guest:
        device.bar_memory(type(device).area)[GATE + 0x200 :][: len(text)] = text  # type: ignore[attr-defined]
        function = guest.function(0x1AF4, 0x10FC)
        place = find_gate(function)
        assert place is not None
        found = read_directory(function, place).entries["call"]
        assert found.parameter_types == ("u64", "u64")
        assert found.result_types == ("u64",)


def test_an_entry_with_too_many_slots() -> None:
    with FakeGuest(liar({}, {}, {"arguments": 13})) as guest:
        function = guest.function(0x1AF4, 0x10FC)
        place = find_gate(function)
        assert place is not None
        with pytest.raises(NotAGate, match="at most 12 slots"):
            read_directory(function, place)


def test_a_directory_that_never_rests() -> None:
    with FakeGuest(liar({}, {"generation": 3}, {})) as guest:
        function = guest.function(0x1AF4, 0x10FC)
        place = find_gate(function)
        assert place is not None
        with pytest.raises(NotAGate, match="during each of 1000 readings"):
            read_directory(function, place)


def test_a_directory_that_changes_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read before the change is not mixed with what came after."""
    sound = Sound()
    with FakeGuest(sound) as guest:
        function = guest.function(*Sound.id)
        place = find_gate(function)
        assert place is not None
        whole, left = guest.door.map, [3]

        def map_and_change(address: int, length: int) -> memoryview | None:
            view = whole(address, length)
            copy = memoryview(bytes(view)) if view is not None else None
            if left[0]:
                left[0] -= 1
                sound.gate.bind("add")
            return copy

        monkeypatch.setattr(guest.door, "map", map_and_change)
        directory = read_directory(function, place)
        gate = guest.machine.functions[0].gate
        assert gate is not None
        for name, entry in directory.entries.items():
            binding = gate.binding(name)
            assert binding is not None
            assert entry.vector == binding.vector


def test_a_broken_device_does_not_hide_the_next_one() -> None:
    devices = liar({"version_major": 2}, {}, {}), liar({}, {"signature": 0}, {}), Sound()
    with FakeGuest(*devices) as guest:
        assert open_device("sound", guest.door).call("add", 2, 40) == 42
        with pytest.raises(NotFound, match=r"named 'nobody'.*version 1.*sound"):
            open_device("nobody", guest.door)
