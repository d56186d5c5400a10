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
from callgate.backends.unicorn.hostcode import Brake, InstructionLimit
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
# The library does not tell when the guest turns interrupts on. So while one is held back, the guest
# goes on by a block at a time, and if that takes long, for a while.
_STEPS = 100
_A_WHILE = 0.0002
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


class _Emulator:
    """Everything that is made anew with a reset: an engine and what is hooked into it."""

    def __init__(self, system: System, traps: Traps, entry: int) -> None:
        kind = _PROCESSORS[system.board.arch]
        self.engine = Engine(*kind.library)
        try:
            self.brake = Brake(self.engine)
            self.processor = kind(self.engine, system, traps)
            extra = tuple(self.processor.mappings())
            self.space = AddressSpace(self.engine, system, extra, traps)
            self.ports: Ports | None = None
            if system.board.is_x86:
                self.ports = Ports(self.engine, system, self.space, traps)
            self.limit = InstructionLimit(self.engine)
            self.processor.pc = entry
        except BaseException:
            self.engine.close()
            raise

    def follow(self) -> None:
        """Follow the system's mappings."""
        if self.ports is not None:
            self.ports.follow()
        self.space.follow()


class Unicorn(Backend):
    """An emulated CPU inside this process."""

    name = "unicorn"
    architectures: ClassVar[tuple[str, ...]] = tuple(_PROCESSORS)

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self._emulator: _Emulator | None = None
        self._alarm = Alarm(self._pull, self._due)
        self._thread = 0
        """The thread that is in `run`, or 0."""
        self._deadline = math.inf
        self._held_until = math.inf
        """When to look again at a guest that holds an interrupt back."""
        self._steps = 0
        """Blocks that it executed since it does."""
        self._stopping = False
        self._woken = False
        """Whether something happened that ends the wait of a processor without interrupts."""
        self._waiting = False
        """Whether the guest waits for an interrupt."""
        self._error: BaseException | None = None
        system.timers.on_change = self._alarm.look

    # --- Backend ---------------------------------------------------------------------------------

    def reset(self, entry: int) -> None:
        """Put the processor into its state at power-on, about to execute at `entry`."""
        self._drop()
        self._waiting = self._woken = self._stopping = False
        self._error = None
        self._emulator = _Emulator(self.system, Traps(self._fail, self._break_off), entry)

    def run(self, budget: Budget) -> None:
        """Run the guest until `stop` is called."""
        emulator = self._started()
        self._deadline = math.inf if budget.deadline is None else budget.deadline
        self._thread = emulator.space.owner = get_ident()
        emulator.limit.switch(budget.instructions is not None)
        try:
            with self._alarm, self._signals():
                while not self._look(emulator, budget):
                    if self._waiting:
                        self._wait(emulator)
                    else:
                        self._execute(emulator, budget)
        finally:
            self._thread = 0

    def stop(self) -> None:
        """Let `run` return soon, or at once when it is called next."""
        self._stopping = True
        self._break_off()

    def remap(self) -> None:
        """Follow the system's mappings, which changed."""
        if self._emulator is not None:
            self._emulator.follow()

    def registers(self) -> dict[str, int]:
        """The processor's registers by the names of its manual, the program counter first."""
        return self._started().processor.registers()

    def interrupt(self, address: int, data: int) -> None:
        """Deliver an interrupt message to the local APIC."""
        emulator = self._emulator
        if emulator is not None and emulator.processor.request(address, data):
            self._break_off()

    def wake(self) -> None:
        """Let a guest that waits look at its memory."""
        emulator = self._emulator
        if emulator is not None and not emulator.processor.interrupts:
            self._woken = True
            if self._waiting:
                self._break_off()

    def close(self) -> None:
        """Give back the processor and all that was mapped."""
        self._alarm.close()
        self._drop()

    def _drop(self) -> None:
        emulator, self._emulator = self._emulator, None
        if emulator is not None:
            emulator.engine.close()

    def _started(self) -> _Emulator:
        if self._emulator is None:
            raise BackendError("The machine must be reset to a program before its processor runs")
        return self._emulator

    # --- between two runs ------------------------------------------------------------------------

    def _look(self, emulator: _Emulator, budget: Budget) -> bool:
        """Do what there is to do; True when `run` is to return."""
        processor = emulator.processor
        self._alarm.quiet()
        emulator.brake.release()
        self._raise_error()
        if self.system.timers.run_due():
            self._woken = True
        if emulator.space.stale:
            emulator.space.follow()
        if processor.deliver() or (self._woken and not processor.interrupts):
            self._waiting = False
        self._woken = False
        # Last, since a timer may have stopped it.
        if self._stopping:
            self._stopping = False
            return True
        self._check(processor, budget)
        self._held_until = math.inf
        if not processor.held_back:
            self._steps = 0
        elif self._steps < _STEPS:
            self._steps += 1
            emulator.brake.release_for_one()
        else:
            self._held_until = time.monotonic() + _A_WHILE
        return False

    def _check(self, processor: Processor, budget: Budget) -> None:
        if budget.instructions is not None and budget.instructions <= 0:
            what = "budget of instructions"
        elif time.monotonic() >= self._deadline:
            what = "time"
        else:
            return
        waiting = ", waiting for an interrupt" if self._waiting else ""
        place = self.system.place(processor.pc)
        raise BudgetError(f"The guest used up its {what} at {place}{waiting}")

    def _wait(self, emulator: _Emulator) -> None:
        emulator.processor.check_wait()
        if not self._alarm.sleep():
            raise emulator.processor.stopped(
                "The guest waits for an interrupt, and there is no timer that could send one "
                "(give a timeout if another thread of the host may)"
            )

    def _execute(self, emulator: _Emulator, budget: Budget) -> None:
        space, limit = emulator.space, emulator.limit
        if budget.instructions is not None:
            limit.left = budget.instructions
        pc = emulator.processor.pc
        self._alarm.before_run()
        space.safe = False
        try:
            status = emulator.engine.run(pc)
        finally:
            space.safe = True
        if budget.instructions is not None:
            budget.instructions = limit.left
        if status != uc.UC_ERR_OK:
            self._raise_error()
            sentence = _SENTENCES.get(status, f"The guest cannot go on: {EngineError(status)}")
            raise emulator.processor.stopped(sentence)
        self._waiting = not emulator.brake.stopped and budget.instructions != 0

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
        if self._emulator is not None:
            self._emulator.brake.pull()

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
