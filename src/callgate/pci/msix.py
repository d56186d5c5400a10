# SPDX-License-Identifier: MIT
"""MSI-X: table, pending bits and capability (PCI Local Bus 3.0, 6.8.2).

    BAR    0        10 .... size / 2                   size
           | entry 0 | entry 1 ... | pending bits       |

    entry  | address, low | address, high | data | control: bit 0 masks the vector |

    capability, from its body    +2  message control: 15 enable, 14 function mask, 10:0 entries - 1
                                 +4  table: offset | BAR       +8  pending bits: offset | BAR

When a message goes, and when it is pending, is the same as with MSI (`message.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from callgate.faults import Faults
from callgate.pci.bar import Window, ones
from callgate.pci.capability import MSIX, Capability
from callgate.pci.message import Messages

ENTRY = 16
MAX_VECTORS = 2048
ENABLE = 1 << 15
FUNCTION_MASK = 1 << 14
_MASKED_ENTRY = struct.pack("<IIII", 0, 0, 0, 1)
# Address bits 1:0 are zero; of the vector control, bit 0 alone exists.
_WRITABLE_ENTRY = struct.pack("<IIII", ~3 & 0xFFFF_FFFF, 0xFFFF_FFFF, 0xFFFF_FFFF, 1)


class MsixCapability(Capability):
    """Where table and pending bits are: in `bar`, at 0 and at `pending_at`."""

    def __init__(self, vectors: int, bar: int, pending_at: int) -> None:
        super().__init__(
            MSIX,
            struct.pack("<HII", vectors - 1, bar, pending_at | bar),
            writable=struct.pack("<H", ENABLE | FUNCTION_MASK),
        )


class Msix(Messages):
    """The MSI-X part of a function with `vectors` entries, 1 to 2048. See `Messages`.

    Interrupt n has vector n. A VMM that makes the messages keeps table and masks as well.
    """

    def __init__(
        self, vectors: int, deliver: Callable[[int, int], None] | None, faults: Faults
    ) -> None:
        super().__init__(vectors, deliver)
        self.function_masked = False
        self._faults = faults
        self._table = bytearray(_MASKED_ENTRY * vectors)
        self._writable = _WRITABLE_ENTRY * vectors
        half = max(ENTRY * vectors, 2048)
        self.pending_at = 1 << (half - 1).bit_length()
        self.bar_size = 2 * self.pending_at
        self._pending_bytes = (vectors + 63) // 64 * 8

    def windows(self) -> tuple[Window, ...]:
        """What a BAR of `bar_size` bytes holds."""
        return (
            Window(
                "msix table", 0, len(self._table), read=self._read_table, write=self._write_table
            ),
            Window(
                "msix pending",
                self.pending_at,
                self._pending_bytes,
                read=self._read_pending,
                write=self._write_pending,
            ),
        )

    def follow(self) -> None:
        """See `Messages`."""
        with self._lock:
            control = self._config.get(self._at + 2, 2)
            self.enabled = bool(control & ENABLE)
            self.function_masked = bool(control & FUNCTION_MASK)

    def reset(self) -> None:
        """See `Messages`; all vectors are masked."""
        with self._lock:
            self._table[:] = _MASKED_ENTRY * self.vectors
            self.function_masked = False
        super().reset()

    def _vector(self, interrupt: int) -> int:
        return interrupt

    def _is_masked(self, vector: int) -> bool:
        if self.signal is not None:
            return False
        return self.function_masked or bool(self._table[vector * ENTRY + 12] & 1)

    def _where(self, vector: int) -> tuple[int, int]:
        address, data = struct.unpack_from("<QI", self._table, vector * ENTRY)
        return address, data

    def _read_table(self, offset: int, size: int) -> int:
        if size in (4, 8) and not offset % size:
            return int.from_bytes(self._table[offset : offset + size], "little")
        return self._bad("read", offset, size)

    def _write_table(self, offset: int, size: int, value: int) -> None:
        if size not in (4, 8) or offset % size:
            self._bad("write", offset, size)
            return
        end = offset + size
        writable = int.from_bytes(self._writable[offset:end], "little")
        with self._lock:
            self._table[offset:end] = (value & writable).to_bytes(size, "little")
        if self._pending:
            self.flush()

    def _read_pending(self, offset: int, size: int) -> int:
        if size not in (4, 8) or offset % size:
            return self._bad("read", offset, size)
        with self._lock:
            bits = sum(1 << index for index in self._pending)
        return bits >> 8 * offset & ones(size)

    def _write_pending(self, offset: int, size: int, value: int) -> None:
        self._faults.note("msix pending", "the MSI-X pending bits are read-only")

    def _bad(self, access: str, offset: int, size: int) -> int:
        self._faults.note(
            f"msix {access}",
            f"a {access} of MSI-X table or pending bits must be 4 or 8 aligned bytes, "
            f"not {size} at {offset:#x}",
        )
        return ones(size)
