# SPDX-License-Identifier: MIT
"""Interrupts: MSI-X with its masks, and the pin without MSI-X (PCI Local Bus 3.0, 6.8, 6.2.3)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import cast

import pytest

from callgate.driver.device import GateDevice
from callgate.driver.pci import (
    CAP_MSIX,
    COMMAND,
    COMMAND_MASTER,
    COMMAND_NO_INTX,
    STATUS,
    STATUS_INTERRUPT,
    Interrupt,
    PciFunction,
)
from callgate.gate.abi import DoorbellRegister, Feature, FrameFlag, Transport
from callgate.testing.conformance.devices import Bell
from callgate.testing.conformance.fixtures import MakeRig
from callgate.testing.conformance.rig import InterruptedDoor, Rig

_RING, _QUIET, _LATER, _RINGS = 0x00, 0x04, 0x08, 0x0C
_ENABLE, _MASK_ALL = 0x8000, 0x4000
_PATIENCE = 10
"""Seconds that an interrupt has to arrive."""


def ring(function: PciFunction, index: int) -> None:
    """Let the device trigger an interrupt."""
    function.write(0, _RING, 4, index)


def pending(function: PciFunction) -> int:
    """The pending bits, of all vectors."""
    at = dict(function.capabilities())[CAP_MSIX]
    place = function.config(at + 8, 4)
    return function.read(place & 7, place & ~7, 4)


def control(function: PciFunction, *, set: int = 0, clear: int = 0) -> None:
    """Change bits of MSI-X's message control."""
    at = dict(function.capabilities())[CAP_MSIX] + 2
    function.set_config(at, 2, function.config(at, 2) & ~clear | set)


def pin(function: PciFunction) -> bool:
    """Whether the status register says that INTA is wanted."""
    return bool(function.config(STATUS, 2) & STATUS_INTERRUPT)


def interrupted(rig: Rig) -> InterruptedDoor:
    """The door to a processor that takes messages; skips the test where it does not."""
    reason = rig.uninterrupted
    if reason is not None:
        pytest.skip(f"{rig.case.backend}: {reason}")
    assert isinstance(rig.door, InterruptedDoor)
    return rig.door


def came(*interrupts: Interrupt) -> bool:
    """Whether each comes: from another process it has a way to go."""
    return all(interrupt.wait(_PATIENCE) for interrupt in interrupts)


def only(interrupts: Sequence[Interrupt], *indices: int) -> bool:
    """Whether these of them come, and come once, and the others do not."""
    return came(*(interrupts[index] for index in indices)) and not any(
        interrupt.take() for interrupt in interrupts
    )


def arrived(door: InterruptedDoor, counts: list[int]) -> bool:
    """Whether so many messages of each index come to the processor."""
    end = time.monotonic() + _PATIENCE
    while (found := [door.messages(index) for index in range(len(counts))]) != counts:
        if time.monotonic() >= end:
            break
    return found == counts


class InterruptTests:
    """A message is a write of 32 bits, made once, when nothing masks it."""

    def test_each_interrupt_has_its_message(self, make: MakeRig) -> None:
        """Address and data are those of the table's entry."""
        rig = make(Bell())
        function = rig.function(rig.devices[0])
        each = [function.interrupt(index) for index in range(3)]
        for index in (1, 0, 2, 1):
            ring(function, index)
            assert only(each, index)
        assert pending(function) == 0

    def test_the_table_holds_what_was_written(self, make: MakeRig) -> None:
        """After a reset an entry is masked; of an address bits 1 and 0 are zero."""
        rig = make(Bell())
        function = rig.function(rig.devices[0])
        entry = function.msix_entry(2)
        assert [rig.door.read(entry + at, 4) for at in (0, 4, 8, 12)] == [0, 0, 0, 1]
        for at, value in ((0, 0x1234_5677), (4, 0x9), (8, 0xFFFF_FFFF), (12, 0xFFFF_FFFF)):
            rig.door.write(entry + at, 4, value)
        found = [rig.door.read(entry + at, 4) for at in (0, 4, 8, 12)]
        assert found == [0x1234_5674, 0x9, 0xFFFF_FFFF, 1]
        assert rig.door.read(entry, 8) == 0x9_1234_5674

    def test_the_whole_data_is_sent(self, make: MakeRig) -> None:
        """32 bits of it, to where the entry says, and not a byte more."""
        rig = make(Bell())
        function = rig.function(rig.devices[0])
        function.interrupt(0)
        memory = rig.door.allocate(64)
        entry = function.msix_entry(0)
        rig.door.write(entry, 4, memory.gpa + 4 & 0xFFFF_FFFF)
        rig.door.write(entry + 8, 4, 0xCAFE_F00D)
        ring(function, 0)
        data = bytes(4) + (0xCAFE_F00D).to_bytes(4, "little") + bytes(4)
        end = time.monotonic() + _PATIENCE
        while (found := rig.door.load(memory.gpa, 12)) != data and time.monotonic() < end:
            pass
        assert found == data

    def test_a_masked_entry_is_pending(self, make: MakeRig) -> None:
        """However often it was triggered, its message comes once, when the mask goes."""
        rig = make(Bell())
        function = rig.function(rig.devices[0])
        first, second = function.interrupt(0), function.interrupt(1)
        second.mask(True)
        ring(function, 1)
        ring(function, 1)
        ring(function, 0)
        assert pending(function) == 1 << 1
        assert only((first, second), 0)
        second.mask(False)
        assert only((first, second), 1)
        assert pending(function) == 0
        ring(function, 1)
        assert came(second)

    def test_the_functions_mask(self, make: MakeRig) -> None:
        """Holds all back, and lets go of all."""
        rig = make(Bell())
        function = rig.function(rig.devices[0])
        each = [function.interrupt(index) for index in range(3)]
        control(function, set=_MASK_ALL)
        ring(function, 0)
        ring(function, 2)
        assert pending(function) == 0b101
        assert not any(interrupt.take() for interrupt in each)
        control(function, clear=_MASK_ALL)
        assert only(each, 0, 2)
        assert pending(function) == 0

    def test_without_bus_mastering_a_message_waits(self, make: MakeRig) -> None:
        """A message is a write by the device."""
        rig = make(Bell())
        function = rig.function(rig.devices[0])
        interrupt = function.interrupt(0)
        command = function.config(COMMAND, 2)
        function.set_config(COMMAND, 2, command & ~COMMAND_MASTER)
        ring(function, 0)
        assert not interrupt.take()
        assert pending(function) == 1
        function.set_config(COMMAND, 2, command)
        assert came(interrupt)
        assert pending(function) == 0

    def test_a_call_and_a_timer_interrupt_too(self, make: MakeRig) -> None:
        """From a handler, and at a time of the device's own."""
        rig = make(Bell())
        device = rig.open(rig.devices[0])
        first, third = device.interrupt(0), device.interrupt(2)
        assert device.chime(2) == 1
        assert came(third)
        device.function.write(0, _LATER, 4, 2000)
        assert came(first)
        assert not third.take()

    def test_the_processor_is_interrupted(self, make: MakeRig) -> None:
        """Each message is taken once, and the access that caused it is made once."""
        rig = make(Bell())
        door = interrupted(rig)
        bell = cast(Bell, rig.devices[0])
        device = rig.open(bell)
        function = device.function
        for index in range(3):
            address, data = door.message(index)
            function.interrupt(index)
            entry = function.msix_entry(index)
            rig.door.write(entry, 4, address & 0xFFFF_FFFF)
            rig.door.write(entry + 4, 4, address >> 32)
            rig.door.write(entry + 8, 4, data)
        counts = [0, 0, 0]
        for index in (0, 1, 1, 2, 0, 1):
            ring(function, index)
            counts[index] += 1
            assert arrived(door, counts)
        assert bell.rings == 6
        assert device.chime(2) == 7
        counts[2] += 1
        assert arrived(door, counts)

    def test_the_gate_tells_when_a_frame_is_done(self, make: MakeRig) -> None:
        """Where the driver accepted the feature and the frame asks for it."""
        rig = make(Bell())
        device = rig.open(rig.devices[0])
        assert device.features & Feature.DONE_INTERRUPT
        done = device.interrupt(device.directory.interrupt)
        vector = device.calls["chime"].vector

        def invoke(flags: int) -> None:
            device.invoke(vector, (9,), frame_flags=flags, transport=Transport.MMIO)

        invoke(0)
        assert not done.take()
        invoke(FrameFlag.INTERRUPT)
        assert came(done)
        _accept(rig, device, Feature(0))
        invoke(FrameFlag.INTERRUPT)
        assert not done.take()

    def test_the_gate_tells_when_bindings_change(self, make: MakeRig) -> None:
        """Where the driver accepted the feature."""
        rig = make(Bell())
        bell = rig.devices[0]
        device = rig.open(bell)
        changed = device.interrupt(device.directory.interrupt)
        bell.gate.bind("chime")
        assert came(changed)
        bell.gate.revoke("chime")
        assert came(changed)
        _accept(rig, device, Feature(0))
        bell.gate.bind("chime")
        assert not changed.take()

    def test_the_pin_without_msix(self, make: MakeRig) -> None:
        """The status register says that INTA is wanted, until the device takes it back."""
        rig = make(Bell())
        function = rig.function(rig.devices[0])

        assert not pin(function)
        ring(function, 0)
        ring(function, 1)
        assert pin(function)
        function.write(0, _QUIET, 4, 0)
        assert pin(function), "the other one is still up"
        function.write(0, _QUIET, 4, 1)
        assert not pin(function)

    def test_the_pin_and_its_switches(self, make: MakeRig) -> None:
        """Interrupt Disable hides the pin and not the status; MSI-X takes over from the pin."""
        rig = make(Bell())
        function = rig.function(rig.devices[0])

        ring(function, 0)
        command = function.config(COMMAND, 2)
        function.set_config(COMMAND, 2, command | COMMAND_NO_INTX)
        assert pin(function)
        function.set_config(COMMAND, 2, command)
        control(function, set=_ENABLE)
        assert not pin(function)
        interrupt = function.interrupt(0)
        ring(function, 0)
        assert not pin(function)
        assert came(interrupt)


def _accept(rig: Rig, device: GateDevice, features: Feature) -> None:
    rig.door.write(device.doorbell + DoorbellRegister.FEATURES, 4, features)
