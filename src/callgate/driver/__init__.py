# SPDX-License-Identifier: MIT
"""The driver side in Python: find a device by name, call it, whatever the machine."""

from callgate.driver.device import GateDevice, NoAnswer, open_device
from callgate.driver.directory import Directory, Entry, NotAGate
from callgate.driver.door import DmaMemory, Door
from callgate.driver.pci import Interrupt, PciFunction

open = open_device

__all__ = [
    "Directory",
    "DmaMemory",
    "Door",
    "Entry",
    "GateDevice",
    "Interrupt",
    "NoAnswer",
    "NotAGate",
    "PciFunction",
    "open",
    "open_device",
]
