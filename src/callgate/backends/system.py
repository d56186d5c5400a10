# SPDX-License-Identifier: MIT
"""System: everything around the processor. A backend hands it each access that it trapped.

access --> board's own devices --> I/O ports in memory --> PCI bus --> nothing: all ones
           (console, exit)         (where there are no     (BARs, ECAM,
                                    I/O instructions)       CF8, RAM)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from callgate.backends.board import (
    RESET,
    RESET_VALUE,
    SLEEP_CONTROL,
    SLEEP_ENABLE,
    SLEEP_STATUS,
    SOFT_OFF,
    Board,
    gsi_of_slot,
)
from callgate.backends.console import Console, Pl011, Uart16550
from callgate.backends.platform import Platform
from callgate.errors import DmaError
from callgate.faults import Faults
from callgate.gate.abi import MAX_REGISTER_VALUES
from callgate.gate.gate import Router
from callgate.gate.vectors import VectorTable
from callgate.memory import GuestMemory
from callgate.pci.bar import Kind, Window, ones
from callgate.pci.bus import Bus, Mapping, Place
from callgate.timers import Timers

if TYPE_CHECKING:
    from callgate.backends.base import Backend
    from callgate.backends.serial_port import SerialPort

APIC = range(0xFEE0_0000, 0xFEF0_0000)
"""Where a message on x86 is an interrupt (Intel SDM, volume 3, 11.11.1)."""
_LOOKED_AT = ((0x60, 1), (0x64, 1), (0x70, 2), (0x2E8, 8), (0x2F8, 8), (0x3E8, 8))
"""Ports where Linux looks for what no PC need have, and is not at fault: the keyboard's controller,
the clock with its memory, three more serial ports."""
_FINISHER_PASS = 0x5555
_FINISHER_FAIL = 0x3333


class System:
    """One machine's memory, bus, console, timers and calls. The machine makes and owns it all.

    `lines` says that the backend has an interrupt controller. Accesses never raise for what a guest
    does.
    """

    def __init__(
        self,
        board: Board,
        platform: Platform,
        memory: GuestMemory,
        bus: Bus,
        table: VectorTable,
        timers: Timers,
        cpus: int = 1,
        lines: bool = False,
    ) -> None:
        self.board = board
        self.platform = platform
        self.memory = memory
        self.bus = bus
        self.timers = timers
        self.router = Router(table, MAX_REGISTER_VALUES * board.bits // 64)
        self.call_slots = [table.slot() for _ in range(cpus)]
        """Where each processor's hypercall in flight is written down."""
        self.console = Console()
        self.lines = lines
        self._asserted: dict[int, set[object]] = {}
        """Who pulls which interrupt line."""
        self.faults = Faults("guest")
        self.exit_code: int | None = None
        """What the guest ended with; None while it has not."""
        self.restarting = False
        """Whether the guest ended in order to begin anew."""
        self.symbol_at: Callable[[int], str | None] = lambda address: None
        """The guest program's name for an address, for reports."""
        self.backend: Backend | None = None
        self._serial: SerialPort | None = None
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

    def set_intx(self, place: Place, level: bool) -> None:
        """Take the INTA line of a PCI function; those of one slot share theirs.

        Where there is no interrupt controller for it, a driver sees it as the interrupt bit of the
        function's status register, and polls that.
        """
        if self.lines:
            self.set_line(gsi_of_slot(place.slot), place, level)

    def set_line(self, gsi: int, who: object, level: bool) -> None:
        """Pull an interrupt line, or let it go; it is up while anybody pulls it."""
        pulling = self._asserted.setdefault(gsi, set())
        (pulling.add if level else pulling.discard)(who)
        if self.backend is not None:
            self.backend.set_line(gsi, bool(pulling))

    def reset(self) -> None:
        """Forget what the guest did: exit code, lines, the board's own devices."""
        self.close()
        self.exit_code = None
        self.restarting = False
        self._asserted.clear()
        self._own = self._place_devices()

    def close(self) -> None:
        """Unplug the board's own devices. Harmless when repeated."""
        if self._serial is not None:
            self._serial.close()
            self._serial = None

    def end(self, code: int) -> None:
        """End the run: the guest is done, with `code`."""
        self.exit_code = code
        if self.backend is not None:
            self.backend.stop()

    def restart(self) -> None:
        """End the run in order to begin anew."""
        self.restarting = True
        self.end(0)

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
        placed = [_place(kind, board.console, "console", *self._uart())]
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
        if self.lines:
            placed.append(_place(kind, SLEEP_CONTROL, "power", _Power.size, _Power(self)))
            placed.extend(
                _place(kind, port, "absent", size, _Absent()) for port, size in _LOOKED_AT
            )
        return placed

    def _uart(self) -> tuple[int, _Answering]:
        """The console's port, and its size: one that interrupts where there is a line for it."""
        if self.lines:
            from callgate.backends.serial_port import SerialPort

            self._serial = SerialPort(self)
            return self._serial.size, self._serial
        uart = Pl011(self.console) if self.board.arch == "aarch64" else Uart16550(self.console)
        return uart.size, uart


class _Answering(Protocol):
    def read(self, offset: int, size: int) -> int: ...
    def write(self, offset: int, size: int, value: int) -> None: ...


class _Absent:
    """Nothing there, and nobody's mistake to look."""

    def read(self, offset: int, size: int) -> int:
        return ones(size)

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


class _Power:
    """ACPI's sleep and reset registers, as far as a machine that never sleeps has them."""

    size = 3

    def __init__(self, system: System) -> None:
        self.system = system

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        port = SLEEP_CONTROL + offset
        if port == SLEEP_CONTROL and value == SOFT_OFF << 2 | SLEEP_ENABLE:
            self.system.end(0)
        elif port == RESET and value == RESET_VALUE:
            self.system.restart()
        elif port != SLEEP_STATUS:  # Which Linux clears before it sleeps.
            self.system.faults.note(
                "power", f"Nothing here sleeps: {value:#x} at port {port:#x} was dropped"
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


def report(sentence: str, registers: dict[str, int], system: System, bits: int) -> str:
    """`sentence` with the program counter's place, and the registers in rows of four."""
    pc = next(iter(registers.values()))
    cells = [f"{name:>6} {value:0{bits // 4}x}" for name, value in registers.items()]
    rows = ["".join(cells[start : start + 4]) for start in range(0, len(cells), 4)]
    return "\n".join([f"{sentence}, at {system.place(pc)}", *rows])
