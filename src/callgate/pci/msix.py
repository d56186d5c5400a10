# SPDX-License-Identifier: MIT
"""MSI-X: table, pending bits and capability (PCI Local Bus 3.0, 6.8.2).

    BAR    0        10 .... size / 2                   size
           | entry 0 | entry 1 ... | pending bits       |

    entry  | address, low | address, high | data | control: bit 0 masks the vector |

    capability, from its body    +2  message control: 15 enable, 14 function mask, 10:0 entries - 1
                                 +4  table: offset | BAR       +8  pending bits: offset | BAR

A message that cannot go sets its pending bit and goes when it can. The specification says so of
masked vectors (6.8.3.4 and 6.8.3.5). Here it also holds while bus mastering is off or the function
is in D3hot: the function may not write then (6.2.2, command bit 2), and a driver that turns bus
mastering on after it unmasked loses nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from threading import Lock

from callgate.faults import Faults
from callgate.pci.bar import Window, ones
from callgate.pci.capability import MSIX, Capability

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


class Msix:
    """The MSI-X part of a function with `vectors` entries, 1 to 2048.

    `deliver(address, data)` sends a message. `enabled` and `function_masked` follow the capability,
    `may_send` follows bus mastering: who changes one of them calls `flush`. Safe from any thread.
    """

    def __init__(self, vectors: int, deliver: Callable[[int, int], None], faults: Faults) -> None:
        self.vectors = vectors
        self.deliver = deliver
        self.enabled = False
        self.function_masked = False
        self.may_send = False
        self.signal: Callable[[int], None] | None = None
        """Where a VMM that owns table and masks (vfio-user) takes interrupts, by index."""
        self._faults = faults
        self._lock = Lock()
        self._table = bytearray(_MASKED_ENTRY * vectors)
        self._writable = _WRITABLE_ENTRY * vectors
        self._pending: set[int] = set()
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

    def trigger(self, index: int) -> None:
        """Send the message of a vector, or make it pending."""
        with self._lock:
            send = self._message(index)
            if send is None:
                self._pending.add(index)
        if send is not None:
            send()

    def flush(self) -> None:
        """Send what is pending and can go."""
        with self._lock:
            ready = {index: self._message(index) for index in sorted(self._pending)}
            self._pending = {index for index, send in ready.items() if send is None}
        for send in ready.values():
            if send is not None:
                send()

    def is_pending(self, index: int) -> bool:
        """Whether the pending bit of a vector is set."""
        return index in self._pending

    def reset(self) -> None:
        """All vectors masked, nothing pending, disabled."""
        with self._lock:
            self._table[:] = _MASKED_ENTRY * self.vectors
            self._pending.clear()
            self.enabled = self.function_masked = False

    def _message(self, index: int) -> Callable[[], None] | None:
        """How to send a vector's message now; None when it cannot go.

        To be called outside the lock: a message is a write, which may end in this very table.
        """
        if not self.may_send:
            return None
        if self.signal is not None:
            return partial(self.signal, index)
        address, data, control = struct.unpack_from("<QII", self._table, index * ENTRY)
        if control & 1 or self.function_masked or not self.enabled:
            return None
        return partial(self.deliver, address, data)

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
