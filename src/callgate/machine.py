# SPDX-License-Identifier: MIT
"""Machine: devices, memory, a guest program and a backend, run together.

with Machine(Adder(), guest="adder.elf", arch="aarch64") as machine:
    result = machine.run()

Machine((Disk(), Net()), Adder())    two devices in slot 1, as functions 0 and 1; one in slot 2
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Self

from callgate.backends.base import Budget, Linux, backend
from callgate.backends.board import BOARDS
from callgate.backends.console import Console
from callgate.backends.platform import platform as find_platform
from callgate.backends.result import Result
from callgate.backends.system import System
from callgate.device import Device
from callgate.driver.direct import DirectDoor, announce
from callgate.elf import Program, read_program
from callgate.errors import BackendError, GuestError, Stopped
from callgate.gate.abi import PAGE, Transport
from callgate.gate.vectors import VectorTable
from callgate.gate.watcher import LINGER, Watcher
from callgate.memory import GuestMemory, anonymous
from callgate.overrun import Overrun
from callgate.pci.bus import Bus, Place
from callgate.pci.function import Function
from callgate.timers import Timers, check_seconds
from callgate.trace import Trace

__all__ = ["Machine", "Result"]
RAM = 32 << 20
_NEWLINE = 0x0A
_EXCHANGE = 10.0
"""Seconds that a guest has for an answer, if the machine was given no time-out."""


class Machine:
    """One virtual machine; a `with` block closes it.

    `devices` are plugged in from slot 1 on, in this order; a tuple of up to 8 is one slot, whose
    functions they are from 0 on. `on` names the backend, `arch` the architecture (left out: that of
    the guest program), `platform` whom the guest takes for its hypervisor. `guest` is an ELF file;
    `linux` is booted instead of one. `ram` is in bytes, a multiple of 4096, `cpus` how many
    processors the guest finds. `instructions` and `timeout` (seconds) bound each run,
    `handler_timeout` (seconds) each call, hook, timer and reset of a device. `trace` is called with
    all that crosses the boundary. `seed` makes vectors the same from run to run. `clock` is what
    device timers and quotas go by. `watch` lets the host answer drivers that do not ring (transport
    `polled`), for `linger` seconds after their last call. With `reboot` off, a guest that resets
    the machine has ended.

    Raises BackendError, LoadError, DeclarationError where a device does not fit a PCI function, and
    TypeError for what is no device.
    """

    def __init__(
        self,
        *devices: Device | tuple[Device, ...],
        on: str = "unicorn",
        arch: str | None = None,
        platform: str | None = None,
        guest: Path | str | None = None,
        linux: Linux | None = None,
        ram: int = RAM,
        cpus: int = 1,
        instructions: int | None = None,
        timeout: float | None = None,
        handler_timeout: float | None = None,
        trace: Trace | None = None,
        seed: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        watch: bool = True,
        linger: float = LINGER,
        reboot: bool = True,
    ) -> None:
        kind = backend(on)
        self.program: Program | None = None
        self.linux = linux
        self.reboot = reboot
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
        if not _is_number(ram) or ram <= 0 or ram % PAGE:
            raise BackendError(f"A machine's ram must be a multiple of {PAGE} bytes, not {ram!r}")
        if not _is_number(cpus) or not 1 <= cpus <= kind.most_cpus():
            raise BackendError(
                f"A machine on {on} must have 1 to {kind.most_cpus()} processors, not {cpus!r}"
            )
        if instructions is not None and (not _is_number(instructions) or instructions < 1):
            raise BackendError(
                f"A machine's instructions must be a number of at least 1, not {instructions!r}"
            )
        check_seconds("A machine's timeout", timeout)
        check_seconds("A machine's handler_timeout", handler_timeout)
        self.board = BOARDS[arch]
        self.platform = find_platform(platform, arch, kind.platforms(arch))
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
                self.board,
                self.platform,
                self.memory,
                self.bus,
                self.table,
                self.timers,
                cpus,
                kind.has_lines,
            )
            self._closing.callback(self.system.close)
            self.router = self.system.router
            self.router.trace = trace
            self.functions = tuple(
                self._plug(device, Place(slot, number), handler_timeout, trace)
                for slot, several in enumerate(devices, 1)
                for number, device in enumerate(
                    several if isinstance(several, tuple) else (several,)
                )
            )
            """All of them, in the order in which they were given."""
            self._overrun = Overrun([function.device for function in self.functions])
            self.backend = kind(self.system)
            self._closing.callback(self.backend.close)
            self.system.backend = self.backend
            if watch:
                self._watch(linger)
            self._start()
            self._closing.callback(self._overrun.close)
            if not kind.has_processor:
                self._closing.callback(announce(self))
        except BaseException:
            self._closing.close()
            raise

    @cached_property
    def door(self) -> DirectDoor:
        """What `callgate.driver` works through in this process, while no guest runs."""
        return DirectDoor(self)

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

        Raises BudgetError when it used up its instructions or its time, and Stopped when `stop` was
        called; calling `run` again goes on, with a new budget. Raises GuestError when the guest
        cannot go on, or had ended before. With a backend that has no processor, timers run until
        `stop`, which is the end then.
        """
        self._need_guest()
        began = time.monotonic()
        budget = self._budget(self.timeout)
        with self._overrun.until(budget.deadline):
            self.backend.run(budget)
            while self.system.restarting and self.reboot:
                self._begin_anew()
                self.backend.run(budget)
        code = self.system.exit_code
        if code is None:
            if self.backend.has_processor:
                raise Stopped("The machine was stopped before its guest ended: run it to go on")
            code = 0
        instructions = None
        if self.instructions is not None and budget.instructions is not None:
            instructions = self.instructions - budget.instructions
        return Result(code, self.console.text, instructions, time.monotonic() - began)

    def stop(self) -> None:
        """Let `run` end soon with Stopped; one that is to come, at once. From any thread."""
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
        budget = self._budget(self.timeout or _EXCHANGE)
        try:
            console.feed(line.rstrip(b"\n") + b"\n")
            with self._overrun.until(budget.deadline):
                self.backend.run(budget)
        finally:
            console.on_byte = None
        return bytes(console.output[start:]).rstrip(b"\r\n")

    def reset(self) -> None:
        """Begin anew: memory, functions, console and processor are as after power-on.

        Calls get new vectors. What a model holds beside its registers is its own to reset.
        """
        self.console.clear()
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Reset all but the console, whose reader sees one boot behind the other."""
        for function in self.functions:
            function.reset()
        self._ram[:] = bytes(len(self._ram))
        self.system.reset()
        self._start()

    def _need_guest(self) -> None:
        if not self.backend.has_processor:
            return
        if self.program is None and self.linux is None:
            raise GuestError("A machine must be given a guest program before it can run")
        if self.system.exit_code is not None:
            raise GuestError(
                f"The guest has ended with {self.system.exit_code}: the machine must be reset "
                "before it can run again"
            )

    def _budget(self, timeout: float | None) -> Budget:
        deadline = None if timeout is None else time.monotonic() + timeout
        return Budget(self.instructions, deadline)

    def _plug(
        self, device: Device, place: Place, time_limit: float | None, trace: Trace | None
    ) -> Function:
        function = Function(
            device,
            memory=self.memory,
            deliver=self.system.send,
            set_intx=partial(self.system.set_intx, place),
            timers=self.timers,
            table=self.table,
            offer=self.platform.offer,
            time_limit=time_limit,
            trace=trace,
        )
        self._closing.callback(function.close)
        self.bus.plug(function, *place)
        return function

    def _watch(self, linger: float) -> None:
        if self.platform.offer.transports & Transport.POLLED:
            for function in self.functions:
                if function.gate is not None:
                    self._closing.enter_context(Watcher(function.gate, linger=linger))

    def _start(self) -> None:
        """Do what firmware does, and put the processor at the program's entry."""
        bars, ports = self.board.bars, self.board.ports
        self.bus.assign(memory=range(bars.base, bars.end), ports=range(ports.base, ports.end))
        if self.program is not None:
            self.program.load(self.memory)
            self.system.symbol_at = self.program.symbol_at
            self.backend.reset(self.program.entry)
        elif self.linux is not None:
            self.backend.boot(self.linux)

    def _give_ram_back(self) -> None:
        for gpa in [slot.gpa for slot in self.memory.slots]:  # No slot is held here, nor its view.
            self.memory.remove(gpa)
        # A model may hold a view of it; then it lives as long as that.
        with suppress(BufferError):
            self._ram.close()


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
