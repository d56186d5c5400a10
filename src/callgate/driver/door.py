# SPDX-License-Identifier: MIT
"""Door: what a driver in Python needs from the machine it runs on.

A door is small, because each environment has to give one: the loopback backend in this process, a
guest's sysfs, a test agent inside an emulated guest. Addresses are physical, as BARs and DMA have
them; values are unsigned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from callgate.gate.abi import Instruction, Transport

if TYPE_CHECKING:
    from callgate.driver.pci import Interrupt


@dataclass(frozen=True)
class DmaMemory:
    """Memory that devices can reach: `length` bytes at `gpa`."""

    gpa: int
    length: int


class Door(Protocol):
    """A driver's access to its machine."""

    @property
    def apart(self) -> bool:
        """Whether the device is in another process: to spin does not keep it from answering."""

    @property
    def transports(self) -> Transport:
        """What it can do of what the platform offers."""

    @property
    def register_slots(self) -> int:
        """Slots that a hypercall's registers carry: 6, or 3 in 32-bit code."""

    def functions(self) -> Iterator[int]:
        """PCI functions that answer, as domain << 16 | bus << 8 | device << 3 | function."""

    def config_read(self, function: int, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes of config space."""

    def config_write(self, function: int, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes of config space."""

    def read(self, address: int, size: int) -> int:
        """Load 1, 2, 4 or 8 bytes; 8 may be two loads, the lower half first."""

    def write(self, address: int, size: int, value: int) -> None:
        """Store 1, 2, 4 or 8 bytes; 8 may be two stores, the lower half first."""

    def io_read(self, port: int, size: int) -> int:
        """Read 1, 2 or 4 bytes from an I/O port."""

    def io_write(self, port: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes to an I/O port."""

    def hypercall(
        self, instruction: Instruction, selector: int, vector: int, slots: tuple[int, ...]
    ) -> tuple[int, tuple[int, ...]]:
        """Execute the trap instruction in register form: (status, result slots).

        There may be more slots than the call has results; what is in those means nothing.
        """

    def map(self, address: int, length: int) -> memoryview | None:
        """Plain memory at `address`, without a copy, or None where this door cannot."""

    def allocate(self, length: int) -> DmaMemory:
        """Memory for DMA, zeroed and aligned to 64 bytes at least. Raises MemoryError."""

    def load(self, gpa: int, length: int) -> bytes:
        """Bytes of RAM."""

    def store(self, gpa: int, data: bytes) -> None:
        """Write bytes of RAM."""

    def interrupt(self, function: int, index: int) -> Interrupt | None:
        """Interrupt `index` of a function, where it comes otherwise than as a message to memory."""

    def pause(self, seconds: float) -> None:
        """Let the rest of the machine (timers, other processors) go on for up to `seconds`."""
