# SPDX-License-Identifier: MIT
"""MSI: the capability with its one message, masks and pending bits (PCI Local Bus 3.0, 6.8.1).

    +0   |       message control        |     next      |    id, 05h    |
    +4   |                       message address                | 00 |
    +8   |                    message upper address                     |
    +C   |           reserved           |         message data          |
    +10  |  mask bits     one for each vector; all this and what        |
    +14  |  pending bits  follows only with per-vector masking          |

    message control   | 15:9 | 8 masking | 7 64-bit | 6:4 granted | 3:1 vectors | 0 enable |

Numbers of vectors are powers of two, of which control has the logarithms: `vectors` is how many the
function has (multiple message capable), `granted` how many the driver lets it use (multiple message
enable). Vector n puts n into the low bits of the message data, which are as many as `granted` needs
(6.8.1.6).

A function must work with fewer vectors than it has, in a way of its own (6.8.3.4). Here interrupt i
has vector i modulo what was granted, as an interrupter of xHCI has (xHCI 1.2, 4.17).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from callgate.pci.capability import MSI, Capability
from callgate.pci.message import Messages

MAX_VECTORS = 32
ENABLE = 1 << 0
WIDE = 1 << 7
MASKING = 1 << 8
_GRANTED = 7 << 4
_CONTROL, _ADDRESS, _DATA, _MASK, _PENDING = 0x02, 0x04, 0x0C, 0x10, 0x14
_ONES = 0xFFFF_FFFF


class MsiCapability(Capability):
    """The capability for 1, 2, 4, ... 32 vectors, with a 64-bit address."""

    def __init__(self, vectors: int, *, masking: bool) -> None:
        control = MASKING * masking | WIDE | vectors.bit_length() - 1 << 1
        body = struct.pack("<HQH", control, 0, 0)
        writable = struct.pack("<HIIH", _GRANTED | ENABLE, _ONES & ~3, _ONES, 0xFFFF)
        if masking:
            body += struct.pack("<HII", 0, 0, 0)
            writable += struct.pack("<HI", 0, (1 << vectors) - 1)
        super().__init__(MSI, body, writable=writable)


class Msi(Messages):
    """The MSI part of a function with so many interrupts, 1 or more. See `Messages`.

    The masks are the function's own even where a VMM makes the messages: linux/vfio.h leaves them
    to the device, and QEMU passes on what the guest writes.
    """

    def __init__(
        self, interrupts: int, deliver: Callable[[int, int], None] | None, *, masking: bool = True
    ) -> None:
        super().__init__(min(MAX_VECTORS, 1 << (interrupts - 1).bit_length()), deliver)
        self.masking = masking
        self.granted = 1

    def capability(self) -> MsiCapability:
        """What configuration space has of it."""
        return MsiCapability(self.vectors, masking=self.masking)

    def follow(self) -> None:
        """See `Messages`. More vectors than there are is not allowed, and means all."""
        with self._lock:
            control = self._config.get(self._at + _CONTROL, 2)
            self.enabled = bool(control & ENABLE)
            self.granted = min(1 << ((control & _GRANTED) >> 4), self.vectors)
            self._show_pending()

    def _vector(self, interrupt: int) -> int:
        # A VMM may connect vectors in parts, so control counts; or grant them by that alone.
        return interrupt % max(self.granted, self.signalled)

    def _is_masked(self, vector: int) -> bool:
        return self.masking and bool(self._config.get(self._at + _MASK, 4) >> vector & 1)

    def _where(self, vector: int) -> tuple[int, int]:
        address = self._config.get(self._at + _ADDRESS, 8)
        data = self._config.get(self._at + _DATA, 2)
        return address, data & ~(self.granted - 1) | vector

    def _show_pending(self) -> None:
        if self.masking:
            bits = sum(1 << vector for vector in self._pending_vectors())
            self._config.set(self._at + _PENDING, 4, bits)
