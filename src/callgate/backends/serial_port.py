# SPDX-License-Identifier: MIT
"""The console's port where it has an interrupt line: the 16550A of `devices/serial.py`, not on a
PCI bus but at the PC's ports, with the PC's IRQ 4."""

from __future__ import annotations

from typing import TYPE_CHECKING

from callgate.backends.board import CONSOLE_IRQ
from callgate.device import GateControl, Memory, TimerQueue
from callgate.devices.serial import Serial

if TYPE_CHECKING:
    from callgate.backends.system import System

_8N1 = 0x03
_FCR, _FIFOS_ON = 2, 0x41
"""Interrupting at 4 bytes."""


class SerialPort:
    """Joins a 16550A to the system's console. Implements `callgate.device.Plug` for it."""

    size = 8
    gate: GateControl | None = None
    msix_enabled = False

    def __init__(self, system: System) -> None:
        self._system = system
        self.memory: Memory = system.memory
        self.timers: TimerQueue = system.timers
        self._uart = Serial(self._put)
        self._uart.plug_in(self)
        # As firmware leaves it.
        self._uart.lcr = _8N1
        self.write(_FCR, 1, _FIFOS_ON)
        system.console.on_feed = self._uart.feed

    def close(self) -> None:
        """Unplug it."""
        self._system.console.on_feed = None
        self._uart.unplug()

    def read(self, offset: int, size: int) -> int:
        """A guest's read."""
        return self._uart.register_read(0, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """A guest's write."""
        self._uart.register_write(0, offset, size, value)

    def _put(self, data: bytes) -> None:
        for byte in data:
            self._system.console.put(byte)

    # --- Plug ------------------------------------------------------------------------------------

    def bar_memory(self, index: int) -> memoryview:
        """It has none."""
        raise AssertionError

    def trigger(self, index: int) -> None:
        """Raise the line."""
        self.set_level(index, True)

    def set_level(self, index: int, level: bool) -> None:
        """Set the line's level."""
        self._system.set_line(CONSOLE_IRQ, self, level)
