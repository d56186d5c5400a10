# SPDX-License-Identifier: MIT
"""A door into a machine in this process: no processor, accesses go to the bus as they are.

It is what the loopback backend offers, and works beside any other in-process machine that is not
running. A machine has one (`Machine.door`), since memory for DMA is handed out by it.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from callgate.driver.door import DmaMemory
from callgate.driver.pci import answering
from callgate.errors import DmaError
from callgate.gate.abi import MAX_REGISTER_VALUES, Instruction, Status, Transport, round_up

if TYPE_CHECKING:
    from callgate.machine import Machine

_ALIGN = 64
_numbers = count()
_here: WeakValueDictionary[int, Machine] = WeakValueDictionary()


def announce(machine: Machine) -> Callable[[], object]:
    """Let `machines` list a machine whose drivers are in this process; what is returned ends it."""
    number = next(_numbers)
    _here[number] = machine
    return partial(_here.pop, number, None)


def machines() -> list[Machine]:
    """Machines without a processor that are open in this process, in the order of their making."""
    return [machine for _, machine in sorted(_here.items())]


class DirectDoor:
    """Driver's accesses straight to a machine's bus, memory and vectors. From any thread."""

    apart = False
    transports = ~Transport(0)

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._bus = machine.bus
        self._memory = machine.memory
        self._ecam = machine.board.ecam.base
        self._slots = threading.local()
        self._lock = threading.Lock()
        ram = next(slot for slot in machine.memory.slots if slot.gpa == machine.board.ram)
        self._next, self._end = ram.gpa + ram.length // 2, ram.end
        self.register_slots = machine.router.slots
        self.read = self._bus.mem_read
        self.write = self._bus.mem_write
        self.io_read = self._bus.io_read
        self.io_write = self._bus.io_write
        self.load = self._memory.read

    def functions(self) -> Iterator[int]:
        """See `Door`."""
        return answering(self.config_read)

    def config_read(self, function: int, offset: int, size: int) -> int:
        """See `Door`; through ECAM."""
        return self._bus.mem_read(self._ecam + (function << 12) + offset, size)

    def config_write(self, function: int, offset: int, size: int, value: int) -> None:
        """See `Door`; through ECAM."""
        self._bus.mem_write(self._ecam + (function << 12) + offset, size, value)

    def hypercall(
        self, instruction: Instruction, selector: int, vector: int, slots: tuple[int, ...]
    ) -> tuple[Status, tuple[int, ...]]:
        """See `Door`."""
        try:
            slot = self._slots.slot
        except AttributeError:  # One for each thread, as for each vCPU.
            slot = self._slots.slot = self._machine.table.slot()
        padded = (*slots, *(0,) * (MAX_REGISTER_VALUES - len(slots)))
        status, results = self._machine.router.call(slot, vector, lambda count: padded[:count])
        return status, results

    def map(self, address: int, length: int) -> memoryview | None:
        """See `Door`: RAM, and windows of BARs that are plain memory."""
        mappings = [each for each in self._bus.mappings() if each.kind == "memory"]
        index = bisect_right([each.address for each in mappings], address) - 1
        if index >= 0:
            found = mappings[index]
            ram = found.window.ram
            if ram is not None and address + length <= found.end:
                start = address - found.base
                return ram[start : start + length]
        try:
            return self._memory.map(address, length, write=True)
        except DmaError:
            return None

    def allocate(self, length: int) -> DmaMemory:
        """See `Door`; from the upper half of RAM, and never given back: drivers are short-lived."""
        with self._lock:
            gpa, end = self._next, self._next + round_up(max(length, 1), _ALIGN)
            if end > self._end:
                raise MemoryError(f"{length} bytes for DMA are more than the RAM has left")
            self._next = end
        self._memory.write(gpa, bytes(length))
        return DmaMemory(gpa, length)

    def store(self, gpa: int, data: bytes) -> None:
        """See `Door`."""
        self._memory.write(gpa, data)

    def interrupt(self, function: int, index: int) -> None:
        """See `Door`: all are messages."""

    def pause(self, seconds: float) -> None:
        """See `Door`: run the timers that are due, and sleep if none was."""
        if not self._machine.timers.run_due():
            time.sleep(seconds)
