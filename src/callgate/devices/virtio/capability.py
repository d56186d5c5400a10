# SPDX-License-Identifier: MIT
"""Vendor capabilities that say where a virtio device's structures are (4.1.4).

+0    id 09h | next | length | type        type: 1 common, 2 notify, 3 ISR, 4 device, 5 access
+4    BAR    | id   | 0      | 0
+8    offset in the BAR
+12   length
+16   notify: what a queue's notify offset is multiplied by (4.1.4.4)
      access: data; reading or writing it accesses the BAR (4.1.4.9)
"""

from __future__ import annotations

import struct
from enum import IntEnum

from callgate.pci.bar import SIZES, BarState
from callgate.pci.capability import Host, VendorCapability


class Structure(IntEnum):
    """Types of structures (VIRTIO_PCI_CAP_*)."""

    COMMON = 1
    NOTIFY = 2
    ISR = 3
    DEVICE = 4
    ACCESS = 5


class VirtioCapability(VendorCapability):
    """Says that a structure of `length` bytes is at `offset` of a BAR."""

    def __init__(
        self,
        kind: Structure,
        bar: int,
        offset: int,
        length: int,
        extra: bytes = b"",
        *,
        writable: bytes = b"",
    ) -> None:
        data = struct.pack("<BBBxxII", kind, bar, 0, offset, length) + extra
        super().__init__(data, writable=writable)


class ConfigAccess(VirtioCapability):
    """A way to the BARs for who cannot reach memory yet, such as firmware (4.1.4.9).

    The driver writes BAR, offset and length (1, 2 or 4 bytes), then reads or writes the data. It
    works whether or not the function decodes memory.
    """

    _DATA = 16

    def __init__(self) -> None:
        super().__init__(
            Structure.ACCESS,
            0,
            0,
            0,
            bytes(4),
            writable=struct.pack("<BBBxxII4s", 0, 0xFF, 0, 0xFFFF_FFFF, 0xFFFF_FFFF, b"\xff" * 4),
        )

    def placed(self, host: Host, at: int) -> None:
        """Follow reads and writes of the data alone."""
        host.config.watch(at + self._DATA, 4, lambda: self._access(host, at, write=True))
        host.config.watch_reads(at + self._DATA, 4, lambda: self._access(host, at, write=False))

    def _access(self, host: Host, at: int, *, write: bool) -> None:
        index, offset, length = struct.unpack("<B3xII", host.config.dump()[at + 4 : at + 16])
        data = at + self._DATA
        bar = _find(host, index)
        # A driver that chose no such place may not access it; there is nothing to answer then.
        if bar is None or length not in SIZES or length > 4 or offset % length:
            if not write:
                host.config.set(data, 4, 0xFFFF_FFFF)
        elif write:
            bar.write(offset, length, host.config.get(data, length))
        else:
            host.config.set(data, length, bar.read(offset, length))


def _find(host: Host, index: int) -> BarState | None:
    return next((bar for bar in host.bars if bar.index == index), None)
