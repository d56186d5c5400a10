# SPDX-License-Identifier: MIT
"""The local APIC of one processor: as much of it as interrupt messages need.

    message, address      | FEE | 19:12 destination | 3 redirect | 2 logical |
    message, data         | 15 level | 10:8 delivery: 0 fixed, 1 lowest priority | 7:0 vector |

    page at FEE0_0000     020 id   030 version   080 task priority   0A0 processor priority
                          0B0 end of interrupt   0F0 spurious vector, bit 8: enabled
                          100..170 in service   200..270 requested   (a bit for each vector)

Vectors of a higher class (bits 7:4) come first and interrupt lower ones; a class whose handler has
not written "end of interrupt" holds its own and all lower classes back (Intel SDM, volume 3, 11.8).
Timer, IPIs and local lines do not exist: their registers keep what is written, and nothing happens.
"""

from __future__ import annotations

from threading import Lock

from callgate.faults import Faults

SIZE = 0x1000
_ID, _VERSION, _TASK_PRIORITY, _PROCESSOR_PRIORITY = 0x020, 0x030, 0x080, 0x0A0
_END_OF_INTERRUPT, _SPURIOUS = 0x0B0, 0x0F0
_IN_SERVICE, _TRIGGER, _REQUESTED, _ERRORS = 0x100, 0x180, 0x200, 0x280
_VERSION_VALUE = 0x14 | 5 << 16
_ENABLED = 1 << 8
_BROADCAST = 0xFF
_FIXED, _LOWEST = 0, 1


class LocalApic:
    """The APIC with id 0. `request` may be called from any thread."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._lock = Lock()
        self._requested = 0
        self._in_service = 0
        self._registers = {_SPURIOUS: 0xFF}

    def request(self, address: int, data: int) -> bool:
        """Take a message; False if nobody here is meant, or can take it."""
        vector = data & 0xFF
        delivery = data >> 8 & 7
        destination = address >> 12 & 0xFF
        if not self._registers[_SPURIOUS] & _ENABLED:
            self._faults.note(
                "APIC disabled",
                f"An interrupt message for vector {vector:#x} was lost: the local APIC must be "
                "enabled first, by bit 8 of its spurious vector register",
            )
        elif delivery not in (_FIXED, _LOWEST) or vector < 0x10:
            self._faults.note(
                "interrupt message",
                "An interrupt message must have delivery mode 0 or 1 and a vector from 0x10 on, "
                f"not the data {data:#x}",
            )
        elif destination not in (0, _BROADCAST) and not address & 4:
            self._faults.note(
                "interrupt message",
                f"An interrupt message must go to the APIC with id 0, not {destination}",
            )
        else:
            with self._lock:
                self._requested |= 1 << vector
            return True
        return False

    def pending(self) -> int | None:
        """The vector that the processor would take now, if it takes interrupts."""
        vector = self._requested.bit_length() - 1
        return vector if vector >> 4 > self._priority() >> 4 else None

    def accept(self) -> int:
        """Move the pending vector into service, and return it."""
        with self._lock:
            vector = self._requested.bit_length() - 1
            self._requested &= ~(1 << vector)
            self._in_service |= 1 << vector
        return vector

    def _priority(self) -> int:
        serving = max(self._in_service.bit_length() - 1, 0) & 0xF0
        task = self._registers.get(_TASK_PRIORITY, 0)
        return task if task >> 4 >= serving >> 4 else serving

    def read(self, offset: int, size: int) -> int:
        """A guest's read; registers are 32 bits wide, 16 bytes apart."""
        value = 0
        if not offset & 0xF:
            value = self._read(offset)
        return value & (1 << 8 * size) - 1

    def _read(self, offset: int) -> int:
        bank = offset - _IN_SERVICE
        if 0 <= bank < _ERRORS - _IN_SERVICE:
            bits = {_IN_SERVICE: self._in_service, _REQUESTED: self._requested}
            return bits.get(offset & ~0x7F, 0) >> 2 * (offset & 0x70) & 0xFFFF_FFFF
        if offset == _VERSION:
            return _VERSION_VALUE
        if offset == _PROCESSOR_PRIORITY:
            return self._priority()
        return self._registers.get(offset, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        """A guest's write."""
        if offset == _END_OF_INTERRUPT:
            with self._lock:
                self._in_service &= ~(1 << self._in_service.bit_length() >> 1)
        elif size == 4 and not offset & 0xF and offset not in (_ID, _VERSION, _PROCESSOR_PRIORITY):
            self._registers[offset] = value
