# SPDX-License-Identifier: MIT
"""Machine: memory, bus, devices and a backend, run together.

    with Machine(Adder(), on="unicorn", arch="aarch64", guest="adder.elf") as machine:
        result = machine.run()
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from callgate.backends.base import Backend, Budget, backend
from callgate.backends.board import BOARDS
from callgate.backends.platform import platform as find_platform
from callgate.backends.system import System
from callgate.device import Device
from callgate.errors import BackendError, GuestError
from callgate.gate.abi import Transport
from callgate.gate.vectors import VectorTable
from callgate.gate.watcher import Watcher
from callgate.memory import GuestMemory, anonymous
from callgate.pci.bus import Bus
from callgate.pci.function import Function
from callgate.timers import Timers
from callgate.trace import Trace

MIB = 1 << 20


@dataclass(frozen=True)
class Result:
    """How a guest's run ended."""

    exit_code: int
    output: str
    """What it wrote to its console."""
    seconds: float


class Machine:
    """A machine with these devices in slots 1, 2, ... of its PCI bus.

    `on` is a backend's name, `arch` one of x86_64, i386, aarch64, riscv64, `platform` who traps the
    guest's hypercalls (the architecture's usual one if not given). `guest` is an ELF file, `ram` its
    memory in bytes. `instructions` and `timeout` (seconds) bound each `run`; `handler_timeout`
    (seconds) bounds each handler of a call. `trace` gets every event. `seed` makes the vectors the
    same from run to run. `clock` is what timers go by.

    `close`, or leaving the `with` block, gives everything back. Raises BackendError, LoadError, and DeclarationError where a device does not fit the bus.
    """

    def __init__(
        self,
        *devices: Device,
        on: str = "unicorn",
        arch: str = "x86_64",
        platform: str | None = None,
        guest: str | Path | None = None,
        ram: int = 32 * MIB,
        instructions: int | None = None,
        timeout: float | None = None,
        handler_timeout: float | None = None,
        trace: Trace | None = None,
        seed: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        watch: bool = True,
    ) -> None:
        if arch not in BOARDS:
            raise BackendError(f"The architecture must be one of {', '.join(BOARDS)}, not {arch!r}")
        self._backend_class = backend(on)
        if arch not in self._backend_class.architectures:
            raise BackendError(
                f"{on} runs guests for {', '.join(self._backend_class.architectures)}, not {arch}"
            )
        self.devices = devices
        self.board = BOARDS[arch]
        self.platform = find_platform(platform, arch)
        self.guest = Path(guest) if guest is not None else None
        self.instructions = instructions
        self.timeout = timeout
        self.table = VectorTable(seed=seed)
        self.timers = Timers(clock)
        self.memory = GuestMemory()
        self.functions: tuple[Function, ...] = ()
        self._ram = ram
        self._handler_timeout = handler_timeout
        self._trace = trace
        self._watch = watch
        self._open = ExitStack()
        try:
            self._build()
        except BaseException:
            self._open.close()
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
        self._open.close()

    def _build(self) -> None:
        board = self.board
        self.memory.add(board.ram, anonymous(self._ram))
        self.bus = Bus(
            self.memory,
            ecam=range(board.ecam.base, board.ecam.end),
            config_ports=board.is_x86,
        )
        self.system = System(
            board, self.platform, self.memory, self.bus, self.table, self.timers
        )
        self.router = self.system.router
        self.console = self.system.console
        self.functions = tuple(self._plug(device) for device in self.devices)
        self.bus.assign(
            memory=range(board.bars.base, board.bars.end),
            ports=range(board.ports.base, board.ports.end),
            lines=(10, 11),
        )
        self.backend: Backend = self._backend_class(self.system)
        self._open.callback(self.backend.close)
        self.system.backend = self.backend
        gates = [each.gate for each in self.functions if each.gate is not None]
        if self._watch and gates and self.platform.offer.transports & Transport.POLLED:
            self._open.enter_context(Watcher(gates))
        if self.guest is not None:
            self.load(self.guest)

    def _plug(self, device: Device) -> Function:
        function = Function(
            device,
            memory=self.memory,
            deliver=self.system.send,
            set_intx=partial(_no_line, device),
            timers=self.timers,
            table=self.table,
            offer=self.platform.offer,
            time_limit=self._handler_timeout,
            trace=self._trace,
        )
        self._open.callback(function.close)
        self.bus.plug(function)
        return function

    def load(self, guest: Path) -> None:
        """Put an ELF file into RAM and the processor at its entry. Raises LoadError."""
        from callgate.elf import load_program

        program = load_program(guest, self.board, self.memory)
        self.system.program = program
        self.system.exit_code = None
        self.backend.reset(program.entry)

    def reset(self) -> None:
        """Reset the machine: devices, console, processor; the guest program is loaded anew."""
        for function in self.functions:
            function.reset()
        self.bus.assign(
            memory=range(self.board.bars.base, self.board.bars.end),
            ports=range(self.board.ports.base, self.board.ports.end),
            lines=(10, 11),
        )
        self.console.clear()
        if self.guest is not None:
            self.load(self.guest)

    def run(self) -> Result:
        """Run the guest until it ends. Raises BudgetError and GuestError."""
        if self.guest is None and self._backend_class.has_processor:
            raise GuestError("A machine must have a guest program to run: give one as guest=")
        began = time.monotonic()
        self.backend.run(self._budget())
        code = self.system.exit_code
        if code is None:
            raise GuestError("The run was stopped before the guest ended: run goes on with it")
        return Result(code, self.console.text, time.monotonic() - began)

    def _budget(self) -> Budget:
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        return Budget(self.instructions, deadline)

    def exchange(self, line: bytes) -> bytes:
        """Send one line to the guest's console and run it until it has answered one line.

        Neither has its end of line. Raises GuestError when the guest ends instead.
        """
        answer = bytearray()

        def take(byte: int) -> None:
            if byte == 0x0A:
                self.backend.stop()
            answer.append(byte)

        self.console.on_byte = take
        self.console.feed(line + b"\n")
        try:
            while not answer.endswith(b"\n"):
                self.backend.run(self._budget())
                if self.system.exit_code is not None and not answer.endswith(b"\n"):
                    raise GuestError("The guest must answer a line, and it ended instead")
        finally:
            self.console.on_byte = None
        return bytes(answer[:-1]).rstrip(b"\r")


def _no_line(device: Device, level: bool) -> None:
    """INTA is seen in the status register; the machine has no interrupt controller for it."""


