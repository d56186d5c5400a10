# SPDX-License-Identifier: MIT
"""Interrupts by MSI (PCI Local Bus 3.0, 6.8.1 and 6.8.3)."""

from __future__ import annotations

import time

import pytest

from callgate.device import Device
from callgate.driver.pci import (
    CAP_MSI,
    CAP_MSIX,
    COMMAND,
    COMMAND_MASTER,
    MSI_ENABLE,
    MSI_MASKING,
    MSI_WIDE,
)
from callgate.gate.abi import FrameFlag, Transport
from callgate.testing.conformance.devices import BothBell, MsiBell
from callgate.testing.conformance.fixtures import MakeRig
from callgate.testing.conformance.interrupts import arrived, interrupted, pin, ring
from callgate.testing.conformance.rig import Rig

_DATA = 0xCAF0
_PATIENCE = 5
_LOG2 = {1: 0, 2: 1, 4: 2}


class _Msi:
    """A function's MSI as a driver programs it, with a word of RAM for its messages."""

    def __init__(self, rig: Rig, bell: Device) -> None:
        self.function = rig.function(bell)
        at = self.function.capability(CAP_MSI)
        assert at is not None, "there must be an MSI capability"
        self.at = at
        self._door = rig.door
        self._word = rig.door.allocate(64).gpa + 4
        self.direct(self._word, _DATA)

    def direct(self, address: int, data: int) -> None:
        """Where messages go, and what is written there."""
        self.function.set_config(self.at + 0x04, 4, address & 0xFFFF_FFFF)
        self.function.set_config(self.at + 0x08, 4, address >> 32)
        self.function.set_config(self.at + 0x0C, 2, data)

    def enable(self, granted: int) -> None:
        """Grant so many vectors."""
        self.function.set_config(self.at + 2, 2, _LOG2[granted] << 4 | MSI_ENABLE)

    def disable(self) -> None:
        """Back to the pin."""
        self.function.set_config(self.at + 2, 2, 0)

    def mask(self, vectors: int) -> None:
        """Mask these, by their bits, and no others."""
        self.function.set_config(self.at + 0x10, 4, vectors)

    @property
    def pending(self) -> int:
        """The pending bits."""
        return self.function.config(self.at + 0x14, 4)

    def take(self) -> int | None:
        """The vector of the message that came since the last time. No other byte was written."""
        before, data, after = (self._door.load(self._word + at, 4) for at in (-4, 0, 4))
        assert before == after == bytes(4)
        if data == bytes(4):
            return None
        self._door.store(self._word, bytes(4))
        return int.from_bytes(data, "little") - _DATA

    def wait(self) -> int | None:
        """`take`, where a message is expected: in another process it has a way to go."""
        end = time.monotonic() + _PATIENCE
        while (vector := self.take()) is None and time.monotonic() < end:
            self._door.pause(0.001)
        return vector


class MsiTests:
    """One address, and a vector in the low bits of the data."""

    def test_msi_has_vectors_for_all_interrupts(self, make: MakeRig) -> None:
        """As many as the next power of two says, a 64-bit address and masks; and no MSI-X."""
        rig = make(MsiBell())
        msi = _Msi(rig, rig.devices[0])
        assert msi.function.config(msi.at + 2, 2) == MSI_MASKING | MSI_WIDE | _LOG2[4] << 1
        assert msi.function.capability(CAP_MSIX) is None
        assert [msi.function.config(msi.at + at, 4) for at in (0x10, 0x14)] == [0, 0]

    @pytest.mark.parametrize("granted", [1, 2, 4])
    def test_msi_vectors_are_shared_where_few_are_granted(
        self, make: MakeRig, granted: int
    ) -> None:
        """Interrupt i has vector i modulo what was granted."""
        rig = make(MsiBell())
        msi = _Msi(rig, rig.devices[0])
        msi.enable(granted)
        for index in (1, 0, 2, 1):
            ring(msi.function, index)
            assert msi.wait() == index % granted
        assert not pin(msi.function)

    def test_a_masked_msi_vector_waits(self, make: MakeRig) -> None:
        """However often it was triggered, its message comes once, when the mask goes."""
        rig = make(MsiBell())
        msi = _Msi(rig, rig.devices[0])
        msi.enable(4)
        msi.mask(0b010)
        ring(msi.function, 1)
        ring(msi.function, 1)
        assert msi.take() is None
        ring(msi.function, 2)
        assert msi.wait() == 2
        msi.mask(0)
        assert msi.wait() == 1
        assert msi.take() is None
        ring(msi.function, 1)
        assert msi.wait() == 1

    def test_msi_pending_bits(self, make: MakeRig) -> None:
        """Set while a masked message waits, until it went or its event is settled."""
        rig = make(MsiBell())
        msi = _Msi(rig, rig.devices[0])
        msi.enable(4)
        msi.mask(0b111)
        ring(msi.function, 0)
        ring(msi.function, 2)
        assert msi.pending == 0b101
        msi.function.write(0, 0x04, 4, 0)
        assert msi.pending == 0b100
        msi.mask(0)
        assert (msi.wait(), msi.pending) == (2, 0)

    def test_without_bus_mastering_an_msi_message_waits(self, make: MakeRig) -> None:
        """A message is a write by the device."""
        rig = make(MsiBell())
        msi = _Msi(rig, rig.devices[0])
        msi.enable(4)
        command = msi.function.config(COMMAND, 2)
        msi.function.set_config(COMMAND, 2, command & ~COMMAND_MASTER)
        ring(msi.function, 1)
        assert msi.take() is None
        msi.function.set_config(COMMAND, 2, command)
        assert msi.wait() == 1

    def test_msi_takes_over_from_thepin(self, make: MakeRig) -> None:
        """And gives back to it, while the device still asserts it."""
        rig = make(MsiBell())
        msi = _Msi(rig, rig.devices[0])
        ring(msi.function, 0)
        assert pin(msi.function)
        msi.enable(1)
        assert not pin(msi.function)
        ring(msi.function, 1)
        assert (msi.wait(), pin(msi.function)) == (0, False)
        msi.disable()
        assert pin(msi.function)

    def test_msix_goes_before_msi(self, make: MakeRig) -> None:
        """Where both are enabled, which software must not do, MSI is not used (6.8.1.3)."""
        rig = make(BothBell())
        msi = _Msi(rig, rig.devices[0])
        msi.enable(4)
        ring(msi.function, 1)
        assert msi.wait() == 1
        interrupt = msi.function.interrupt(1)
        ring(msi.function, 1)
        assert interrupt.wait(_PATIENCE)
        assert msi.take() is None

    def test_the_gates_interrupt_by_msi(self, make: MakeRig) -> None:
        """It comes behind the device's own."""
        rig = make(MsiBell())
        device = rig.open(rig.devices[0])
        msi = _Msi(rig, rig.devices[0])
        vector = device.calls["chime"].vector
        for granted in (4, 2):
            msi.enable(granted)
            device.invoke(vector, (9,), frame_flags=FrameFlag.INTERRUPT, transport=Transport.MMIO)
            assert msi.wait() == device.directory.interrupt % granted
            msi.disable()

    def test_the_processor_is_interrupted_by_msi(self, make: MakeRig) -> None:
        """Each message is taken once."""
        rig = make(MsiBell())
        door = interrupted(rig)
        msi = _Msi(rig, rig.devices[0])
        msi.direct(*door.message(0))
        msi.enable(1)
        for count in (1, 2, 3):
            ring(msi.function, count - 1)
            assert arrived(door, [count])
