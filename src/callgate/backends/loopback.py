# SPDX-License-Identifier: MIT
"""loopback: no processor. The driver is Python in this process (`callgate.driver`)."""

from __future__ import annotations

import threading
import time
from typing import ClassVar

from callgate.backends.base import Backend, Budget
from callgate.backends.system import System
from callgate.errors import BackendError, BudgetError

_STEP = 0.001


class Loopback(Backend):
    """Runs the machine's timers, and nothing else: there is no guest program."""

    name: ClassVar[str] = "loopback"
    architectures: ClassVar[tuple[str, ...]] = ("x86_64", "i386", "aarch64", "riscv64")
    has_processor: ClassVar[bool] = False

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self._stopped = threading.Event()

    def reset(self, entry: int) -> None:
        """There is nothing to execute: raises BackendError."""
        raise BackendError(
            "The loopback backend has no processor to run a guest program: leave the guest out and "
            "use callgate.driver, or choose another backend"
        )

    def run(self, budget: Budget) -> None:
        """Run timers until `stop`, or until the deadline (BudgetError)."""
        timers = self.system.timers
        while not self._stopped.wait(_STEP):
            timers.run_due()
            if budget.deadline is not None and time.monotonic() >= budget.deadline:
                raise BudgetError("The machine's time budget is used up: nobody stopped it before")
        self._stopped.clear()

    def stop(self) -> None:
        """Let `run` return."""
        self._stopped.set()

    @property
    def uninterrupted(self) -> str:
        """There is no processor."""
        return "there is no processor to be interrupted"

    def remap(self) -> None:
        """Nothing is mapped: the driver's accesses go through the bus."""

    def registers(self) -> dict[str, int]:
        """None."""
        return {}
