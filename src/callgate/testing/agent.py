# SPDX-License-Identifier: MIT
"""AgentDoor: a driver's door whose accesses a guest program executes, one instruction each.

    with Machine(Adder(), on="unicorn", guest="build/guest/aarch64/agent.elf") as machine:
        assert callgate.driver.open("adder", AgentDoor(machine)).add(2, 40) == 42

The program is guest/bare/agent.c, which tells the protocol: a line for each access, and a line with
the answer. Where the guest's RAM is in reach of this process the lines go through it, and the
console says only that one is there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import RLock

from callgate.driver.door import DmaMemory
from callgate.driver.frame import known
from callgate.driver.pci import answering
from callgate.errors import GuestError
from callgate.gate.abi import MAX_REGISTER_VALUES, Instruction, Transport, round_up
from callgate.machine import Machine

_ALIGN = 64


class AgentDoor:
    """See `callgate.driver.Door`. Callers take turns: the guest has one processor.

    RAM that devices and driver share is the agent's own; `load` and `store` look at it from the
    host's side, `read` and `write` from the guest's. Raises GuestError when the guest ends, or
    answers something else than the agent does.
    """

    apart = False
    transports = ~Transport(0)

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._turn = RLock()
        self.register_slots = MAX_REGISTER_VALUES * machine.board.bits // 64
        self.load = machine.memory.read
        self._by_memory = isinstance(machine, Machine)
        self._next = self._end = 0
        self.restart()

    def restart(self) -> None:
        """Begin anew with a machine that was reset: what was allocated is gone."""
        self._box = self._box_size = 0
        start, size = self._ask("m")
        self._next, self._end = start, start + size
        if self._by_memory:
            self._box, self._box_size = self._ask("b")

    # --- Door ------------------------------------------------------------------------------------

    def functions(self) -> Iterator[int]:
        """See `Door`."""
        return answering(self.config_read)

    def config_read(self, function: int, offset: int, size: int) -> int:
        """See `Door`; by the mechanism that is usual on the board."""
        return self._ask(f"c {function:x} {offset:x} {size:x}")[0]

    def config_write(self, function: int, offset: int, size: int, value: int) -> None:
        """See `Door`."""
        self._ask(f"C {function:x} {offset:x} {size:x} {value:x}")

    def read(self, address: int, size: int) -> int:
        """See `Door`: one load, but two for 8 bytes in 32-bit code."""
        return self._ask(f"r {size:x} {address:x}")[0]

    def write(self, address: int, size: int, value: int) -> None:
        """See `Door`: one store, but two for 8 bytes in 32-bit code."""
        self._ask(f"w {size:x} {address:x} {value:x}")

    def io_read(self, port: int, size: int) -> int:
        """See `Door`: `in` on x86, elsewhere a load from where the ports are in memory."""
        return self._ask(f"i {size:x} {port:x}")[0]

    def io_write(self, port: int, size: int, value: int) -> None:
        """See `Door`."""
        self._ask(f"o {size:x} {port:x} {value:x}")

    def hypercall(
        self, instruction: Instruction, selector: int, vector: int, slots: tuple[int, ...]
    ) -> tuple[int, tuple[int, ...]]:
        """See `Door`. The instruction must be one of the guest's processor: else GuestError."""
        padded = (*slots, *(0,) * (MAX_REGISTER_VALUES - len(slots)))
        words = " ".join(f"{word:x}" for word in (instruction, selector, vector, *padded))
        status, *results = self._ask(f"h {words}")
        return known(status), tuple(results)

    def map(self, address: int, length: int) -> memoryview | None:
        """None: every access is the guest's."""
        return None

    def allocate(self, length: int) -> DmaMemory:
        """See `Door`; from the agent's own RAM, and never given back."""
        with self._turn:
            gpa, end = self._next, self._next + round_up(max(length, 1), _ALIGN)
            if end > self._end:
                raise MemoryError(f"{length} bytes for DMA are more than the agent has left")
            self._next = end
        self.store(gpa, bytes(length))
        return DmaMemory(gpa, length)

    def store(self, gpa: int, data: bytes) -> None:
        """See `Door`."""
        self._machine.memory.write(gpa, data)

    def interrupt(self, function: int, index: int) -> None:
        """See `Door`: all are messages."""

    def pause(self, seconds: float) -> None:
        """See `Door`: wait, then let the guest run a little, and with it timers that are due."""
        time.sleep(seconds)
        self._ask("m")

    # --- interrupts of the processor --------------------------------------------------------------

    def message(self, index: int) -> tuple[int, int]:
        """Address and data of an interrupt message that the guest counts; `index` below 16.

        On x86 a vector of the processor, elsewhere a word that the guest looks at.
        """
        address, data = self._ask(f"t {index:x}")
        return address, data

    def messages(self, index: int) -> int:
        """How often that message has come. A word in RAM cannot tell two from one."""
        return self._ask(f"n {index:x}")[0]

    # --- the agent -------------------------------------------------------------------------------

    def _ask(self, line: str) -> list[int]:
        with self._turn:
            answer = self._exchange(line.encode())
        if not answer.startswith(b"="):
            shown = answer.decode(errors="replace")
            raise GuestError(f"The agent must carry out {line!r}, and it answered {shown!r}")
        return [int(word, 16) for word in answer[1:].split()]

    def _exchange(self, line: bytes) -> bytes:
        machine, box = self._machine, self._box
        if not box:
            return machine.exchange(line)
        machine.memory.write(box, line + b"\n")
        machine.exchange(b"")
        return machine.memory.read(box + self._box_size, self._box_size).partition(b"\n")[0]
