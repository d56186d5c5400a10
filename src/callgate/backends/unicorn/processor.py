# SPDX-License-Identifier: MIT
"""What differs between architectures: the base of x86.py, arm.py and riscv.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from callgate.backends.system import System, report
from callgate.backends.unicorn.engine import Engine, Registers
from callgate.errors import GuestError
from callgate.pci.bus import Mapping


@dataclass(frozen=True)
class Traps:
    """How the hooks of a processor reach the run loop."""

    fail: Callable[[BaseException], None]
    """Takes an exception, which ends the run and leaves it there."""
    break_off: Callable[[], None]
    """Asks for the end of the block of instructions that is being executed."""


class Processor(ABC):
    """One processor of an engine, from reset on. All methods belong to the thread that runs it."""

    library: ClassVar[tuple[int, int]]
    """The library's architecture and mode."""
    shown: ClassVar[dict[str, int]]
    """What `registers` gives: names of the manual, numbers of the library; the first is the PC."""
    interrupts: ClassVar[bool] = False
    """Whether a message can interrupt it. Where not, a wait ends with whatever happens first."""

    def __init__(self, engine: Engine, system: System, traps: Traps) -> None:
        self.engine = engine
        self.system = system
        self.traps = traps
        self._shown = Registers(engine, list(self.shown.values()))
        self.install()

    @abstractmethod
    def install(self) -> None:
        """Set hooks, and registers to their state at power-on."""

    @property
    def pc(self) -> int:
        """The address of the next instruction."""
        self._shown.fetch(1)
        return self._shown.values[0]

    @pc.setter
    def pc(self, address: int) -> None:
        self._shown.values[0] = address
        self._shown.store(1)

    def registers(self) -> dict[str, int]:
        """Every register of `shown`."""
        self._shown.fetch(len(self.shown))
        return dict(zip(self.shown, self._shown.values, strict=False))

    def mappings(self) -> Sequence[Mapping]:
        """What the processor itself answers to in memory."""
        return ()

    def request(self, address: int, data: int) -> bool:
        """Take an interrupt message; whether it will interrupt. From any thread."""
        return False

    def deliver(self) -> bool:
        """Enter the handler of a pending interrupt, if the processor takes one now."""
        return False

    @property
    def held_back(self) -> bool:
        """Whether an interrupt is pending that `deliver` did not enter."""
        return False

    def check_wait(self) -> None:
        """Raise GuestError if the processor waits for an interrupt that it could never take."""

    def stopped(self, sentence: str) -> GuestError:
        """The error for a guest that cannot go on: the sentence, the place, the registers."""
        return GuestError(report(sentence, self.registers(), self.system, self.system.board.bits))
