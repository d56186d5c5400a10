# SPDX-License-Identifier: MIT
"""The driver side in Python: find a device by name, call it, whatever the machine.

    callgate.driver.open("adder").add(2, 40)        # 42

This works in a Linux guest, as it does where the device itself is in the process: `open` takes what
is there (`callgate.driver.find`). A guest needs nothing but Python and this package:
`pip install --no-deps callgate`.
"""

from callgate.driver.calls import Calls
from callgate.driver.device import GateDevice
from callgate.driver.directory import Directory, Entry
from callgate.driver.door import DmaMemory, Door
from callgate.driver.find import open_device, open_here
from callgate.driver.pci import Interrupt, PciFunction
from callgate.errors import NoAnswer, NotAGate, NotFound

open = open_here

__all__ = [
    "Calls",
    "Directory",
    "DmaMemory",
    "Door",
    "Entry",
    "GateDevice",
    "Interrupt",
    "NoAnswer",
    "NotAGate",
    "NotFound",
    "PciFunction",
    "open",
    "open_device",
    "open_here",
]
