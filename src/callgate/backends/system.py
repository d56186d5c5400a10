# SPDX-License-Identifier: MIT
"""System: everything around the processor. A backend hands it each access that it trapped.

access --> board's own devices --> I/O ports in memory --> PCI bus --> nothing: all ones
           (console, exit)         (where there are no     (BARs, ECAM,
                                    I/O instructions)       CF8, RAM)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from callgate.backends.board import Board
from callgate.backends.console import Console, Pl011, Uart16550
from callgate.backends.platform import Platform
from callgate.errors import DmaError
from callgate.faults import Faults
from callgate.gate.abi import MAX_REGISTER_VALUES
from callgate.gate.gate import Router
from callgate.gate.vectors import VectorTable
from callgate.memory import GuestMemory
from callgate.pci.bar import Kind, Window
from callgate.pci.bus import Bus, Mapping
from callgate.timers import Timers

if TYPE_CHECKING:
    from callgate.backends.base import Backend

APIC = range(0xFEE0_0000, 0xFEF0_0000)
"""Where a message on x86 is an interrupt (Intel SDM, volume 3, 11.11.1)."""
_FINISHER_PASS = 0x5555
_FINISHER_FAIL = 0x3333


class System:
    """One machine's memory, bus, console, timers and calls. The machine makes and owns it all.

    Accesses never raise for what a guest does.
    """

    def __init__(
        self,
        board: Board,
        platform: Platform,
        memory: GuestMemory,
        bus: Bus,
        table: VectorTable,
        timers: Timers,
    ) -> None:
        self.board = board
        self.platform = platform
        self.memory = memory
        self.bus = bus
        self.timers = timers
        self.router = Router(table, MAX_REGISTER_VALUES * board.bits // 64)
        self.call_slot = table.slot()
        """Where the processor's hypercall in flight is written down."""
        self.console = Console()
        self.faults = Faults("guest")
        self.exit_code: int | None = None
        """What the guest ended with; None while it has not."""
        self.symbol_at: Callable[[int], str | None] = lambda address: None
        """The guest program's name for an address, for reports."""
        self.backend: Backend | None = None
        self._own = self._place_devices()
        bus.on_change.append(self._remap)
        memory.on_change.append(self._remap)

    # --- decode ----------------------------------------------------------------------------------

    def mappings(self) -> list[Mapping]:
        """What answers where, beside RAM: the board's devices and what the bus maps now.

        Where I/O ports are in memory, they are listed there.
        """
        window = self.board.port_window
        found = list(self._own)
        for each in self.bus.mappings():
            if each.kind == "io" and window is not None:
                address = window.base + each.address
                each = Mapping("memory", address, each.length, each.window, each.offset)
            found.append(each)
        return found

    def mem_read(self, address: int, size: int) -> int:
        """A guest's load of 1, 2, 4 or 8 bytes at a guest physical address."""
        own = self._find("memory", address, size)
        if own is not None:
            return own.window.read(address - own.base, size)
        port = self._port(address, size)
        if port is not None:
            return self.bus.io_read(port, size)
        return self.bus.mem_read(address, size)

    def mem_write(self, address: int, size: int, value: int) -> None:
        """A guest's store of 1, 2, 4 or 8 bytes at a guest physical address."""
        own = self._find("memory", address, size)
        if own is not None:
            own.window.write(address - own.base, size, value)
            return
        port = self._port(address, size)
        if port is not None:
            self.bus.io_write(port, size, value)
            return
        self.bus.mem_write(address, size, value)

    def io_read(self, port: int, size: int) -> int:
        """A guest's `in` of 1, 2 or 4 bytes."""
        own = self._find("io", port, size)
        return own.window.read(port - own.base, size) if own else self.bus.io_read(port, size)

    def io_write(self, port: int, size: int, value: int) -> None:
        """A guest's `out` of 1, 2 or 4 bytes."""
        own = self._find("io", port, size)
        if own is not None:
            own.window.write(port - own.base, size, value)
        else:
            self.bus.io_write(port, size, value)

    def _find(self, kind: Kind, address: int, size: int) -> Mapping | None:
        for each in self._own:
            if each.kind == kind and each.address <= address and address + size <= each.end:
                return each
        return None

    def _port(self, address: int, size: int) -> int | None:
        window = self.board.port_window
        if window is None or not window.base <= address <= window.end - size:
            return None
        return address - window.base

    # --- towards the guest -----------------------------------------------------------------------

    def send(self, address: int, data: int) -> None:
        """Send an MSI or MSI-X message: a write of 32 bits, which on x86 may be an interrupt."""
        if self.board.is_x86 and address in APIC:
            if self.backend is not None:
                self.backend.interrupt(address, data)
            return
        try:
            self.memory.write(address, data.to_bytes(4, "little"))
        except DmaError as error:
            self.faults.note("interrupt message", f"An interrupt message went nowhere: {error}")
            return
        if self.backend is not None:
            self.backend.wake()

    def set_line(self, level: bool) -> None:
        """Take the INTA line of a function.

        No board here has an interrupt controller for it: the driver sees it as the interrupt bit of
        the function's status register, and polls that.
        """

    def reset(self) -> None:
        """Forget what the guest did: console, exit code, the board's own devices."""
        self.console.clear()
        self.exit_code = None
        self._own = self._place_devices()

    def end(self, code: int) -> None:
        """End the run: the guest is done, with `code`."""
        self.exit_code = code
        if self.backend is not None:
            self.backend.stop()

    def place(self, address: int) -> str:
        """An address of the guest's code, with the program's name for it if it has one."""
        symbol = self.symbol_at(address)
        return f"{address:#x} ({symbol})" if symbol else f"{address:#x}"

    def _remap(self) -> None:
        if self.backend is not None:
            self.backend.remap()

    # --- the board's own devices -----------------------------------------------------------------

    def _place_devices(self) -> list[Mapping]:
        board = self.board
        kind: Kind = "io" if board.is_x86 else "memory"
        uart = Pl011(self.console) if board.arch == "aarch64" else Uart16550(self.console)
        placed = [_place(kind, board.console, "console", uart.size, uart)]
        if board.arch == "riscv64":
            assert board.exit is not None
            placed.append(_place(kind, board.exit, "exit", 0x1000, _Finisher(self)))
        if board.is_x86:
            assert board.exit is not None
            placed.append(_place(kind, board.exit, "exit", 4, _DebugExit(self)))
            # What software touches on every PC before it knows better: two masked interrupt
            # controllers, and the port whose writes are a delay.
            placed.extend(_place(kind, port, "8259", 2, _Latch(2)) for port in (0x20, 0xA0))
            placed.append(_place(kind, 0x80, "delay", 1, _Latch(1)))
        return placed


class _Answering(Protocol):
    def read(self, offset: int, size: int) -> int: ...
    def write(self, offset: int, size: int, value: int) -> None: ...


class _DebugExit:
    """QEMU's isa-debug-exit: a write ends the machine."""

    def __init__(self, system: System) -> None:
        self.system = system

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self.system.end(value)


class _Finisher:
    """SiFive's test finisher: 0x5555 ends with 0, code << 16 | 0x3333 with the code."""

    def __init__(self, system: System) -> None:
        self.system = system

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0 and value & 0xFFFF == _FINISHER_PASS:
            self.system.end(0)
        elif offset == 0 and value & 0xFFFF == _FINISHER_FAIL:
            self.system.end(value >> 16 & 0xFFFF)
        else:
            self.system.faults.note(
                "exit device",
                f"The exit device takes 0x5555 or code << 16 | 0x3333 at offset 0, not {value:#x}",
            )


class _Latch:
    """Bytes that read back as written."""

    def __init__(self, size: int) -> None:
        self.bytes = bytearray(size)

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.bytes[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.bytes[offset : offset + size] = value.to_bytes(size, "little")


def _place(kind: Kind, address: int, name: str, size: int, device: _Answering) -> Mapping:
    window = Window(name, 0, size, read=device.read, write=device.write)
    return Mapping(kind, address, size, window, 0)
