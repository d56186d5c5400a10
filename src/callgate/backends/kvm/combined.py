# SPDX-License-Identifier: MIT
"""Writes that KVM collects (coalesced MMIO) where a BAR combines them: the ring, and its zones.

    run page + 2 pages   | first: 32 | last: 32 | entries: address 64, length 32, 0, data 64 |

KVM adds at `last`, we take at `first`; the VM has one ring, which each vCPU's page shows. An exit
is answered when all that was collected before it has been carried out.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from mmap import PAGESIZE
from threading import Lock
from typing import TYPE_CHECKING

from callgate.linux.kvm import (
    KVM_COALESCED_MMIO_MAX,
    KVM_COALESCED_MMIO_PAGE_OFFSET,
    KVM_REGISTER_COALESCED_MMIO,
    KVM_UNREGISTER_COALESCED_MMIO,
    kvm_coalesced_mmio,
    kvm_coalesced_mmio_ring,
    kvm_coalesced_mmio_zone,
)
from callgate.linux.layout import offset

if TYPE_CHECKING:
    from callgate.backends.system import System

LATEST = 0.002
"""Seconds that a write may wait."""
_FIRST, _LAST = (offset(kvm_coalesced_mmio_ring, name) // 4 for name in ("first", "last"))
_ENTRIES = offset(kvm_coalesced_mmio_ring, "coalesced_mmio")
_ENTRY = ctypes.sizeof(kvm_coalesced_mmio)
_DATA = offset(kvm_coalesced_mmio, "data")
_LENGTH = offset(kvm_coalesced_mmio, "len")


class Combined:
    """The collected writes of one VM. `page` is a vCPU's run page, whole."""

    def __init__(self, vm: int, page: memoryview) -> None:
        start = KVM_COALESCED_MMIO_PAGE_OFFSET * PAGESIZE
        self._vm = vm
        self._ring = page[start : start + PAGESIZE]
        self._words = self._ring.cast("I")
        self._zones: set[tuple[int, int]] = set()
        self._turn = Lock()
        self.active = False
        """Whether any write is collected."""

    def close(self) -> None:
        """Let go of the page."""
        self._words.release()
        self._ring.release()

    def follow(self, system: System) -> None:
        """Collect where windows combine now, and nowhere else."""
        wanted = {
            (each.address, each.length)
            for each in system.mappings()
            if each.kind == "memory" and each.window.combines
        }
        for address, length in self._zones - wanted:
            zone = kvm_coalesced_mmio_zone(addr=address, size=length)
            KVM_UNREGISTER_COALESCED_MMIO(self._vm, zone)
            self._zones.discard((address, length))
        for address, length in wanted - self._zones:
            with suppress(OSError):  # No room: each write comes out by itself.
                zone = kvm_coalesced_mmio_zone(addr=address, size=length)
                KVM_REGISTER_COALESCED_MMIO(self._vm, zone)
                self._zones.add((address, length))
        self.active = bool(self._zones)

    def carry_out(self, system: System) -> None:
        """Carry out what was collected. From any thread."""
        words, ring = self._words, self._ring
        if words[_FIRST] == words[_LAST]:
            return
        with self._turn:
            while (first := words[_FIRST]) != words[_LAST]:
                at = _ENTRIES + first * _ENTRY
                address = int.from_bytes(ring[at : at + 8], "little")
                length = int.from_bytes(ring[at + _LENGTH : at + _LENGTH + 4], "little")
                value = int.from_bytes(ring[at + _DATA : at + _DATA + length], "little")
                words[_FIRST] = (first + 1) % KVM_COALESCED_MMIO_MAX
                system.mem_write(address, length, value)
