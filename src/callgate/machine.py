# SPDX-License-Identifier: MIT
"""Machine: devices, memory, a guest program and a backend, run together.

with Machine(Adder(), guest="adder.elf", arch="aarch64") as machine:
    result = machine.run()
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from callgate.backends.base import Budget, backend
from callgate.backends.board import BOARDS
from callgate.backends.console import Console
from callgate.backends.platform import platform as find_platform
from callgate.backends.system import System
from callgate.device import Device
from callgate.elf import Program, read_program
from callgate.errors import BackendError, GuestError
from callgate.gate.abi import Transport
from callgate.gate.vectors import VectorTable
from callgate.gate.watcher import Watcher
from callgate.memory import GuestMemory, anonymous
from callgate.pci.bus import Bus
from callgate.pci.function import Function
from callgate.timers import Timers
from callgate.trace import Trace

RAM = 32 << 20
PAGE = 4096
_NEWLINE = 0x0A
_EXCHANGE = 10.0
"""Seconds that a guest has for an answer, if the machine was given no time-out."""


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    exit_code: int
    """What the guest gave, 32 bits at most."""
    output: str
    """All that the guest wrote to its console since the machine was made or reset."""
    instructions: int | None
    """How many it executed; None without a budget of them, since counting slows the guest down."""
    elapsed: float
    """Seconds that it ran."""


class Machine:
    """One virtual machine; a `with` block closes it.

    `devices` are plugged in from slot 1 on, in this order. `on` names the backend, `arch` the
    architecture (left out: that of the guest program), `platform` whom the guest takes for its
    hypervisor. `guest` is an ELF file. `ram` is in bytes, a multiple of 4096. `instructions` and
    `timeout` (seconds) bound each run, `handler_timeout` (seconds) each call's handler. `trace` is
    called with all that crosses the boundary. `seed` makes vectors the same from run to run.
    `clock` is what device timers and quotas go by. `watch` lets the host answer drivers that do not
    ring (transport `polled`).

    Raises BackendError, LoadError, and DeclarationError where a device does not fit a PCI function.
    """

    def __init__(
        self,
        *devices: Device,
        on: str = "unicorn",
        arch: str | None = None,
        platform: str | None = None,
        guest: Path | str | None = None,
        ram: int = RAM,
        instructions: int | None = None,
        timeout: float | None = None,
        handler_timeout: float | None = None,
        trace: Trace | None = None,
        seed: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        watch: bool = True,
    ) -> None:
        kind = backend(on)
        self.program: Program | None = None
        if guest is not None:
            if not kind.has_processor:
                raise BackendError(
                    f"The backend {on} has no processor: it must not be given a guest"
                )
            self.program = read_program(guest, arch)
            arch = self.program.arch
        arch = arch or kind.architectures[0]
        if arch not in kind.architectures:
            names = ", ".join(kind.architectures)
            raise BackendError(f"The architecture on {on} must be one of {names}, not {arch!r}")
        if ram <= 0 or ram % PAGE:
            raise BackendError(f"A machine's ram must be a multiple of {PAGE} bytes, not {ram}")
        self.board = BOARDS[arch]
        self.platform = find_platform(platform, arch)
        self.instructions = instructions
        self.timeout = timeout
        self.timers = Timers(clock)
        self.table = VectorTable(seed=seed, clock=clock)
        self.memory = GuestMemory()
        self._closing = ExitStack()
        try:
            self._ram = anonymous(ram)
            self._closing.callback(self._give_ram_back)
            self.memory.add(self.board.ram, self._ram)
            ecam = range(self.board.ecam.base, self.board.ecam.end)
            self.bus = Bus(self.memory, ecam=ecam, config_ports=self.board.is_x86)
            self.system = System(
                self.board, self.platform, self.memory, self.bus, self.table, self.timers
            )
            self.router = self.system.router
            self.router.trace = trace
            self.functions = tuple(self._plug(device, handler_timeout, trace) for device in devices)
            self.backend = kind(self.system)
            self._closing.callback(self.backend.close)
            self.system.backend = self.backend
            if watch:
                self._watch()
            self._start()
        except BaseException:
            self._closing.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unplug the devices and give everything back. Harmless when repeated."""
        self._closing.close()

    @property
    def console(self) -> Console:
        """What the guest writes and reads."""
        return self.system.console

    def run(self) -> Result:
        """Run the guest until it ends.

        Raises BudgetError when it used up its instructions or its time (calling `run` again goes on
        with a new budget), and GuestError when it cannot go on, or had ended before. With a backend
        that has no processor, timers run until `stop`.
        """
        self._need_guest()
        began = time.monotonic()
        budget = self._budget(self.timeout)
        self.backend.run(budget)
        code = self.system.exit_code
        if code is None:
            if self.backend.has_processor:
                raise GuestError("The guest has not ended: the machine was stopped before")
            code = 0
        instructions = None
        if self.instructions is not None and budget.instructions is not None:
            instructions = self.instructions - budget.instructions
        return Result(code, self.console.text, instructions, time.monotonic() - began)

    def stop(self) -> None:
        """Let `run` return soon. From any thread."""
        self.backend.stop()

    def exchange(self, line: bytes) -> bytes:
        """Give the guest a line to read, and run it until it has written one, or ended.

        Returns that line without its end. Raises as `run` does; without a `timeout`, the guest has
        10 seconds.
        """
        if not self.backend.has_processor:
            raise BackendError(
                f"The backend {self.backend.name} has no guest to exchange lines with"
            )
        self._need_guest()
        console = self.console
        start = len(console.output)

        def on_byte(byte: int) -> None:
            if byte == _NEWLINE:
                self.backend.stop()

        console.on_byte = on_byte
        try:
            console.feed(line.rstrip(b"\n") + b"\n")
            self.backend.run(self._budget(self.timeout or _EXCHANGE))
        finally:
            console.on_byte = None
        return bytes(console.output[start:]).rstrip(b"\r\n")

    def reset(self) -> None:
        """Begin anew: memory, functions, console and processor are as after power-on.

        Calls get new vectors. What a model holds beside its registers is its own to reset.
        """
        for function in self.functions:
            function.reset()
        self._ram[:] = bytes(len(self._ram))
        self.system.reset()
        self._start()

    def _need_guest(self) -> None:
        if not self.backend.has_processor:
            return
        if self.program is None:
            raise GuestError("A machine must be given a guest program before it can run")
        if self.system.exit_code is not None:
            raise GuestError(
                f"The guest has ended with {self.system.exit_code}: the machine must be reset "
                "before it can run again"
            )

    def _budget(self, timeout: float | None) -> Budget:
        deadline = None if timeout is None else time.monotonic() + timeout
        return Budget(self.instructions, deadline)

    def _plug(self, device: Device, time_limit: float | None, trace: Trace | None) -> Function:
        function = Function(
            device,
            memory=self.memory,
            deliver=self.system.send,
            set_intx=self.system.set_line,
            timers=self.timers,
            table=self.table,
            offer=self.platform.offer,
            time_limit=time_limit,
            trace=trace,
        )
        self._closing.callback(function.close)
        self.bus.plug(function)
        return function

    def _watch(self) -> None:
        gates = [function.gate for function in self.functions if function.gate is not None]
        if gates and self.platform.offer.transports & Transport.POLLED:
            self._closing.enter_context(Watcher(gates))

    def _start(self) -> None:
        """Do what firmware does, and put the processor at the program's entry."""
        bars, ports = self.board.bars, self.board.ports
        self.bus.assign(memory=range(bars.base, bars.end), ports=range(ports.base, ports.end))
        if self.program is not None:
            self.program.load(self.memory)
            self.system.symbol_at = self.program.symbol_at
            self.backend.reset(self.program.entry)

    def _give_ram_back(self) -> None:
        for slot in self.memory.slots:
            self.memory.remove(slot.gpa)
        # A model may hold a view of it; then it lives as long as that.
        with suppress(BufferError):
            self._ram.close()
