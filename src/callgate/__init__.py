# SPDX-License-Identifier: MIT
"""Write a PCI device in Python; any guest, on any hypervisor, can call it.

The names below are the public ones. Everything that needs more than the standard library is
imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from callgate.call import (
    Buffer,
    BufferIn,
    BufferInOut,
    BufferOut,
    call,
    i8,
    i16,
    i32,
    i64,
    u8,
    u16,
    u32,
    u64,
)
from callgate.device import Device, Timer
from callgate.errors import (
    BackendError,
    BudgetError,
    CallError,
    CallgateError,
    DeclarationError,
    DeviceError,
    DmaError,
    GuestError,
    LoadError,
    PlugError,
    Stopped,
    VectorError,
)
from callgate.interrupt import Interrupt, Interrupts
from callgate.register import Bar, Field, Register

if TYPE_CHECKING:
    from callgate.cli import main
    from callgate.machine import Machine

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "Bar",
    "BudgetError",
    "Buffer",
    "BufferIn",
    "BufferInOut",
    "BufferOut",
    "CallError",
    "CallgateError",
    "DeclarationError",
    "Device",
    "DeviceError",
    "DmaError",
    "Field",
    "GuestError",
    "Interrupt",
    "Interrupts",
    "LoadError",
    "Machine",
    "PlugError",
    "Register",
    "Stopped",
    "Timer",
    "VectorError",
    "call",
    "i8",
    "i16",
    "i32",
    "i64",
    "main",
    "u8",
    "u16",
    "u32",
    "u64",
]


def __getattr__(name: str) -> Any:
    if name == "Machine":
        from callgate.machine import Machine

        return Machine
    if name == "main":
        from callgate.cli import main

        return main
    raise AttributeError(f"module 'callgate' has no attribute {name!r}")
