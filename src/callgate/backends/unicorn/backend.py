# SPDX-License-Identifier: MIT
"""The Unicorn backend: runs the emulator, and does between two runs what the emulator does not.

    look: stopped? out of budget? timers due, map changed, interrupt to deliver
      |
      +-- the guest waits --> sleep until something rings or is due
      +-- else ------------> run, until a hook, the alarm or the guest itself ends it

A run ends by itself when the guest executes HLT or WFI, and between two blocks of instructions when
the brake was pulled.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from types import FrameType
from typing import ClassVar

from unicorn import unicorn_const as uc

from callgate.backends.base import Backend, Budget
from callgate.backends.system import System
from callgate.backends.unicorn.alarm import Alarm
from callgate.backends.unicorn.arm import AArch64
from callgate.backends.unicorn.engine import Engine, EngineError
from callgate.backends.unicorn.hostcode import Brake, InstructionCounter
from callgate.backends.unicorn.memory import AddressSpace
from callgate.backends.unicorn.ports import Ports
from callgate.backends.unicorn.processor import Processor, Traps
from callgate.backends.unicorn.riscv import RiscV64
from callgate.backends.unicorn.x86 import I386, X8664
from callgate.errors import BackendError, BudgetError

_PROCESSORS: dict[str, type[Processor]] = {
    "x86_64": X8664,
    "i386": I386,
    "aarch64": AArch64,
    "riscv64": RiscV64,
}
_HELD_BACK = 0.0002
"""Seconds after which a guest that had interrupts off is looked at again. The library does not tell
when they go on."""
_OUR_CODE = str(Path(__file__).parent)
_LAST_PAGE = "The guest touched the last page of the address space, where nothing can be mapped"
_SENTENCES = {
    uc.UC_ERR_FETCH_UNMAPPED: "The guest jumped to where there is no memory",
    uc.UC_ERR_FETCH_PROT: "The guest jumped to where there is no memory but a device",
    uc.UC_ERR_READ_UNMAPPED: _LAST_PAGE,
    uc.UC_ERR_WRITE_UNMAPPED: _LAST_PAGE,
    uc.UC_ERR_MAP: _LAST_PAGE,
    uc.UC_ERR_INSN_INVALID: "The guest executed an invalid instruction",
}


class Unicorn(Backend):
    """An emulated CPU inside this process."""

    name = "unicorn"
    architectures: ClassVar[tuple[str, ...]] = tuple(_PROCESSORS)

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self._engine: Engine | None = None
        self._processor: Processor
        self._space: AddressSpace
        self._ports: Ports | None
        self._counter: InstructionCounter
        self._brake: Brake
        self._alarm = Alarm(self._pull, self._due)
        self._thread = 0
        """The thread that is in `run`, or 0."""
        self._deadline = math.inf
        self._held_until = math.inf
        self._stopping = False
        self._woken = False
        self._waiting = False
        """Whether the guest waits for an interrupt."""
        self._error: BaseException | None = None
        system.timers.on_change = self._alarm.look

    # --- Backend ---------------------------------------------------------------------------------

    def reset(self, entry: int) -> None:
        """Put the processor into its state at power-on, about to execute at `entry`."""
        if self._engine is not None:
            self._engine.close()
        kind = _PROCESSORS[self.system.board.arch]
        engine = Engine(*kind.library)
        self._engine = engine
        traps = Traps(self._fail, self._break_off)
        self._processor = kind(engine, self.system, traps)
        extra = tuple(self._processor.mappings())
        self._space = AddressSpace(engine, self.system, extra, self._fail, self._break_off)
        x86 = self.system.board.is_x86
        self._ports = Ports(engine, self.system, self._space, self._fail) if x86 else None
        self._brake = Brake(engine)
        self._counter = InstructionCounter(engine)
        self._processor.pc = entry
        self._waiting = self._woken = self._stopping = False
        self._error = None

    def run(self, budget: Budget) -> None:
        """Run the guest until `stop` is called."""
        if self._engine is None:
            raise BackendError("A program must be loaded, and the machine reset, before it can run")
        self._deadline = math.inf if budget.deadline is None else budget.deadline
        self._thread = self._space.owner = get_ident()
        self._counter.switch(budget.instructions is not None)
        try:
            with self._alarm, self._signals():
                while not self._look(budget):
                    if self._waiting:
                        self._wait()
                    else:
                        self._execute(budget)
        finally:
            self._thread = 0

    def stop(self) -> None:
        """Let `run` return soon, or at once when it is called next."""
        self._stopping = True
        self._break_off()

    def remap(self) -> None:
        """Follow the system's mappings, which changed."""
        if self._engine is not None:
            if self._ports is not None:
                self._ports.follow()
            self._space.follow()

    def registers(self) -> dict[str, int]:
        """The processor's registers by the names of its manual, the program counter first."""
        if self._engine is None:
            raise BackendError("The machine must be reset before its registers can be read")
        return self._processor.registers()

    def interrupt(self, address: int, data: int) -> None:
        """Deliver an interrupt message to the local APIC."""
        if self._engine is not None and self._processor.request(address, data):
            self._break_off()

    def wake(self) -> None:
        """Let a guest that waits look at its memory."""
        if self._engine is not None and not self._processor.interrupts:
            self._woken = True
            if self._waiting:
                self._break_off()

    def close(self) -> None:
        """Give back the processor and all that was mapped."""
        self._alarm.close()
        if self._engine is not None:
            self._engine.close()
            self._engine = None
            del self._processor, self._space, self._ports, self._brake, self._counter

    # --- between two runs ------------------------------------------------------------------------

    def _look(self, budget: Budget) -> bool:
        """Do what there is to do; True when `run` is to return."""
        self._alarm.quiet()
        self._brake.release()
        self._raise_error()
        if self.system.timers.run_due():
            self._woken = True
        if self._space.stale:
            self._space.follow()
        if self._processor.deliver() or (self._woken and not self._processor.interrupts):
            self._waiting = False
        self._woken = False
        # Last, since a timer may have stopped it.
        if self._stopping:
            self._stopping = False
            return True
        self._check(budget)
        self._held_until = math.inf
        if self._processor.held_back:
            self._held_until = time.monotonic() + _HELD_BACK
        return False

    def _check(self, budget: Budget) -> None:
        if budget.instructions is not None and budget.instructions <= 0:
            what = "budget of instructions"
        elif time.monotonic() >= self._deadline:
            what = "time"
        else:
            return
        pc = self._processor.pc
        waiting = ", waiting for an interrupt" if self._waiting else ""
        raise BudgetError(f"The guest used up its {what} at {self.system.place(pc)}{waiting}")

    def _wait(self) -> None:
        self._processor.check_wait()
        if not self._alarm.sleep():
            raise self._processor.stopped(
                "The guest waits for an interrupt, and there is no timer that could send one "
                "(give a timeout if another thread of the host may)"
            )

    def _execute(self, budget: Budget) -> None:
        engine, space, alarm = self._engine, self._space, self._alarm
        assert engine is not None
        limit = budget.instructions or 0
        pc = self._processor.pc
        self._counter.reset()
        space.safe = False
        alarm.before_run()
        try:
            status = engine.run(pc, limit)
        finally:
            space.safe = True
        done = limit
        if limit:
            done = min(self._counter.value, limit)
            budget.instructions = limit - done
        if status != uc.UC_ERR_OK:
            self._raise_error()
            sentence = _SENTENCES.get(status, f"The guest cannot go on: {EngineError(status)}")
            raise self._processor.stopped(sentence)
        self._waiting = not self._brake.stopped and (not limit or done < limit)

    def _due(self) -> float:
        due = self._deadline
        timers = self.system.timers
        timer = timers.next_due()
        if timer is not None:
            due = min(due, timer - timers.clock() + time.monotonic())
        return due if self._waiting else min(due, self._held_until)

    # --- from hooks and other threads ------------------------------------------------------------

    def _break_off(self) -> None:
        """Ask for the end of the run, or of the sleep, that is under way."""
        if get_ident() == self._thread:
            self._pull()
        else:
            self._alarm.ring()

    def _pull(self) -> None:
        if self._engine is not None:
            self._brake.pull()

    def _fail(self, error: BaseException) -> None:
        """Take an exception that left a hook; it comes out of `run`. The first one counts."""
        if self._error is None:
            self._error = error
        self._pull()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let Ctrl-C raise, but not inside a hook's own code.

        An exception that a signal raises before a hook's `try` would leave the hook, and ctypes
        would print it and go on. So it is put off until the run has ended. In a model's code it is
        raised at once, since that may be the loop that the user wants to break.
        """
        usual = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(usual):
            yield
            return

        def on_signal(number: int, frame: FrameType | None) -> None:
            if frame is not None and frame.f_code.co_filename.startswith(_OUR_CODE):
                try:
                    usual(number, frame)
                except BaseException as error:
                    self._fail(error)
            else:
                usual(number, frame)

        signal.signal(signal.SIGINT, on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, usual)
        self._raise_error()
