# SPDX-License-Identifier: MIT
"""Capabilities: what a function says of itself beyond the header (PCI Local Bus 3.0, 6.7).

        +0      +1      +2 ...
    +-------+-------+------------------+
    |  id   | next  |  body            |      chained from the header's byte 34h; each on a dword
    +-------+-------+------------------+

A class declares its own: `capabilities = (PowerManagement(), VendorCapability(b"..."))`. Those of
MSI, MSI-X and the gate are added by themselves. A capability holds no state of a device: objects
are shared by all devices of the class.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Protocol

from callgate.errors import DeclarationError
from callgate.pci.bar import BarState
from callgate.pci.config import (
    CAPABILITIES,
    CAPABILITY_END,
    STATUS,
    STATUS_CAPABILITIES,
    ConfigSpace,
)

POWER_MANAGEMENT = 0x01
MSI = 0x05
VENDOR_SPECIFIC = 0x09
PCI_EXPRESS = 0x10
MSIX = 0x11
FIRST = 0x40
"""Where the chain begins: behind the header."""


class Host(Protocol):
    """The function that a capability is part of."""

    @property
    def config(self) -> ConfigSpace:
        """Its configuration space."""

    @property
    def awake(self) -> bool:
        """Whether it is in D0; in D3hot it decodes nothing and issues nothing."""

    @property
    def bars(self) -> tuple[BarState, ...]:
        """Its BARs."""

    def set_awake(self, awake: bool) -> None:
        """Enter D0 or D3hot."""

    def reset(self) -> None:
        """Reset the function."""


class Capability:
    """One capability: `id` (8 bits) and `body`, the bytes behind id and next pointer.

    `writable` says which bits of the body the guest writes, `w1c` which it clears by writing 1;
    both count from the body's start, and what they leave out is read-only. A subclass overrides
    `wrote` to act on a write. Raises DeclarationError.
    """

    def __init__(self, id: int, body: bytes, *, writable: bytes = b"", w1c: bytes = b"") -> None:
        where = f"{type(self).__name__}({id!r})"
        if not 0 <= id <= 0xFF:
            raise DeclarationError(f"{where}: the id of a capability must be 0 to 0xff")
        if 2 + len(body) > CAPABILITY_END - FIRST:
            raise DeclarationError(
                f"{where}: the body of a capability must be at most "
                f"{CAPABILITY_END - FIRST - 2} bytes, not {len(body)}"
            )
        if max(len(writable), len(w1c)) > len(body):
            raise DeclarationError(f"{where}: a mask must not be longer than the body")
        self.id = id
        self.body = bytes(body)
        self.writable = bytes(writable)
        self.w1c = bytes(w1c)

    @property
    def size(self) -> int:
        """Bytes in configuration space, id and next pointer included."""
        return 2 + len(self.body)

    def placed(self, host: Host, at: int) -> None:
        """Called when it has its place, `at` of `host.config`; watches the whole body."""
        host.config.watch(at + 2, len(self.body), lambda: self.wrote(host, at))

    def wrote(self, host: Host, at: int) -> None:
        """Called after the guest wrote to the body; the capability is at `at` of `host.config`."""


class VendorCapability(Capability):
    """Bytes of the vendor's own, behind id, next pointer and length (appendix H)."""

    def __init__(self, data: bytes, *, writable: bytes = b"") -> None:
        length = 3 + len(data)
        # Too long a capability is refused by the base class; the length byte must not fail before.
        body = bytes([length & 0xFF]) + data
        super().__init__(VENDOR_SPECIFIC, body, writable=b"\0" + writable if writable else b"")


class PowerManagement(Capability):
    """D0 and D3hot, without PME (PCI Power Management 1.2, 3.2).

    In D3hot the function answers configuration accesses alone. Coming back to D0 keeps all state
    (No_Soft_Reset).
    """

    def __init__(self) -> None:
        version, no_soft_reset = 3, 1 << 3
        super().__init__(
            POWER_MANAGEMENT,
            struct.pack("<HHBB", version, no_soft_reset, 0, 0),
            writable=struct.pack("<HH", 0, 3),
        )

    def wrote(self, host: Host, at: int) -> None:
        """Follow the state that was written; D1 and D2, not supported, change nothing (3.2.4)."""
        state = host.config.get(at + 4, 2) & 3
        if state in (0, 3):
            host.set_awake(state == 0)
        else:
            host.config.change(at + 4, 2, clear=3, set=0 if host.awake else 3)


class PciExpress(Capability):
    """A PCI Express endpoint, version 2, with function level reset (PCI Express Base 3.0, 7.8).

    `integrated`: the function lies on the root bus itself, and has no link. Otherwise it says a
    link of 2.5 GT/s and one lane.
    """

    _DEVICE_CONTROL = 0x08
    _FUNCTION_LEVEL_RESET = 1 << 15

    def __init__(self, *, integrated: bool = True) -> None:
        kind = 9 if integrated else 0
        role_based_errors, can_reset = 1 << 15, 1 << 28
        control = 2 << 12 | 1 << 11 | 1 << 4  # 512-byte read requests, no snoop, relaxed ordering
        link = 0 if integrated else 1 << 4 | 1
        body = struct.pack(
            "<HIHHIHH", 2 | kind << 4, role_based_errors | can_reset, control, 0, link, 0, link
        )
        super().__init__(
            PCI_EXPRESS,
            # Slot and root registers, and the second halves of all: nothing to say.
            body.ljust(58, b"\0"),
            # Function level reset reads as zero: `wrote` takes it back.
            writable=struct.pack("<HIH", 0, 0, 0xFFFF),
            w1c=struct.pack("<HIHH", 0, 0, 0, 0x000F),
        )

    def wrote(self, host: Host, at: int) -> None:
        """Reset the function when the driver asks for it."""
        if host.config.get(at + self._DEVICE_CONTROL, 2) & self._FUNCTION_LEVEL_RESET:
            host.reset()


def place(host: Host, capabilities: Iterable[Capability], owner: str) -> dict[int, Capability]:
    """Chain the capabilities in `host.config`; returns them by offset. Raises DeclarationError."""
    config = host.config
    placed: dict[int, Capability] = {}
    pointer, at = CAPABILITIES, FIRST
    for capability in capabilities:
        if at + capability.size > CAPABILITY_END:
            raise DeclarationError(
                f"The capabilities of {owner} must fit the {CAPABILITY_END - FIRST} bytes behind "
                f"the header; {type(capability).__name__} (id {capability.id:#04x}, "
                f"{capability.size} bytes) would end at {at + capability.size:#x}"
            )
        config.preset(pointer, 1, at)
        config.preset(at, 1, capability.id)
        config.define(at + 2, capability.body, writable=capability.writable, w1c=capability.w1c)
        capability.placed(host, at)
        placed[at] = capability
        pointer, at = at + 1, at + capability.size + 3 & ~3
    if placed:
        config.preset(STATUS, 2, STATUS_CAPABILITIES)
    return placed
