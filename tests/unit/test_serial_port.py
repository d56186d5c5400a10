# SPDX-License-Identifier: MIT
"""The PC with an interrupt controller: the console's port with IRQ 4, lines that several pull, and
what else lies at its ports."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from callgate.backends import base
from callgate.backends.board import CONSOLE_IRQ, gsi_of_slot
from callgate.backends.loopback import Loopback
from callgate.backends.system import System, report
from callgate.device import Device
from callgate.interrupt import Interrupt
from callgate.machine import Machine
from callgate.timers import ManualClock

COM1 = 0x3F8
IER, IIR, LCR, LSR = COM1 + 1, COM1 + 2, COM1 + 3, COM1 + 5
BY_DATA, BY_THRE, NONE = 0x04, 0x02, 0x01


class Board(Device):
    id = 0x1AF4, 0x10F1
    done = Interrupt()


class Lined(Loopback):
    """A backend with an interrupt controller, which writes down what its lines do."""

    has_lines = True

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self.levels: dict[int, bool] = {}

    def set_line(self, gsi: int, level: bool) -> None:
        self.levels[gsi] = level


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    module = ModuleType("lined")
    module.Lined = Lined  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lined", module)
    monkeypatch.setitem(base._BACKENDS, "lined", "lined:Lined")
    with Machine(Board(), Board(), on="lined", watch=False, clock=ManualClock()) as machine:
        yield machine


@pytest.fixture
def system(machine: Machine) -> System:
    return machine.system


def level(machine: Machine, gsi: int) -> bool:
    assert isinstance(machine.backend, Lined)
    return machine.backend.levels.get(gsi, False)


def faults(system: System) -> int:
    return sum(system.faults.counts.values())


# --- the console's port ---------------------------------------------------------------------------


def test_what_firmware_left(system: System) -> None:
    assert system.io_read(LCR, 1) == 0x03
    assert system.io_read(LSR, 1) == 0x60
    assert system.io_read(IIR, 1) == 0xC0 | NONE  # The FIFOs are on.


def test_what_the_guest_writes_is_the_consoles(system: System) -> None:
    for byte in b"hi\n":
        system.io_write(COM1, 1, byte)
    assert system.console.text == "hi\n"


def test_what_is_fed_interrupts(machine: Machine, system: System) -> None:
    system.io_write(IER, 1, 0x01)
    assert not level(machine, CONSOLE_IRQ)
    machine.console.feed(b"abcd")  # As many as the FIFO's trigger.
    assert level(machine, CONSOLE_IRQ)
    assert system.io_read(IIR, 1) & 0x0F == BY_DATA
    assert bytes(system.io_read(COM1, 1) for _ in range(4)) == b"abcd"
    assert not level(machine, CONSOLE_IRQ)
    assert system.io_read(LSR, 1) & 1 == 0


def test_room_for_more_interrupts(machine: Machine, system: System) -> None:
    system.io_write(IER, 1, 0x02)
    assert level(machine, CONSOLE_IRQ)
    assert system.io_read(IIR, 1) & 0x0F == BY_THRE
    assert not level(machine, CONSOLE_IRQ)


def test_a_reset_plugs_in_a_new_one(machine: Machine, system: System) -> None:
    system.io_write(IER, 1, 0x03)
    system.io_write(LCR, 1, 0x1B)
    machine.console.feed(b"abcd")
    machine.reset()
    assert system.io_read(LCR, 1) == 0x03
    assert system.io_read(LSR, 1) & 1 == 0
    machine.console.feed(b"x")
    assert system.io_read(COM1, 1) == ord("x")


def test_closing_unplugs_it(machine: Machine) -> None:
    assert machine.console.on_feed is not None
    machine.close()
    assert machine.console.on_feed is None


# --- lines ----------------------------------------------------------------------------------------


def test_a_line_is_up_while_anybody_pulls_it(machine: Machine, system: System) -> None:
    gsi = 20
    system.set_line(gsi, "one", True)
    system.set_line(gsi, "two", True)
    system.set_line(gsi, "one", False)
    assert level(machine, gsi)
    system.set_line(gsi, "two", False)
    assert not level(machine, gsi)
    system.set_line(gsi, "two", False)
    assert not level(machine, gsi)


def test_a_function_has_the_line_of_its_slot(machine: Machine) -> None:
    first, second = (function.device for function in machine.functions)
    assert isinstance(first, Board)
    assert isinstance(second, Board)
    first.done.trigger()
    assert level(machine, gsi_of_slot(1))
    assert not level(machine, gsi_of_slot(2))
    second.done.trigger()
    first.done.deassert()
    assert not level(machine, gsi_of_slot(1))
    assert level(machine, gsi_of_slot(2))


# --- what else is there ---------------------------------------------------------------------------


def test_the_machine_is_switched_off(system: System) -> None:
    system.io_write(0x601, 1, 0x80)  # Linux clears the status first.
    system.io_write(0x600, 1, 5 << 2 | 1 << 5)
    assert (system.exit_code, system.restarting) == (0, False)
    assert system.io_read(0x600, 1) == 0
    assert faults(system) == 0


def test_the_machine_is_reset(system: System) -> None:
    system.io_write(0x602, 1, 1)
    assert (system.exit_code, system.restarting) == (0, True)


def test_nothing_sleeps(system: System) -> None:
    system.io_write(0x600, 1, 3 << 2 | 1 << 5)
    assert system.exit_code is None
    assert faults(system) == 1


def test_where_linux_looks_for_what_is_not_there(system: System) -> None:
    """It is not at fault."""
    for port in (0x60, 0x64, 0x70, 0x2F8, 0x3EF):
        system.io_write(port, 1, 0x55)
        assert system.io_read(port, 1) == 0xFF
    assert faults(system) == 0


def test_ports_that_keep_what_is_written(system: System) -> None:
    for port in (0x21, 0xA1, 0x80):
        system.io_write(port, 1, 0x5A)
        assert system.io_read(port, 1) == 0x5A


def test_the_exit_port(system: System) -> None:
    assert system.io_read(0xF4, 4) == 0
    system.io_write(0xF4, 4, 41)
    assert system.exit_code == 41


def test_messages_that_are_interrupts(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    woken: list[bool] = []
    monkeypatch.setattr(machine.backend, "interrupt", lambda *message: seen.append(message))
    monkeypatch.setattr(machine.backend, "wake", lambda: woken.append(True))
    machine.system.send(0xFEE0_1000, 0x41)
    assert (seen, woken) == ([(0xFEE0_1000, 0x41)], [])
    machine.system.send(0x1000, 0x1234)
    assert machine.memory.read(0x1000, 4) == b"\x34\x12\0\0"
    assert (len(seen), woken) == (1, [True])
    machine.system.send(0xA000_0000, 1)
    assert faults(machine.system) == 1
    assert len(woken) == 1


def test_a_report_names_the_place(system: System) -> None:
    registers = {"rip": 0x1000, "rax": 1, "rbx": 2, "rcx": 3, "rdx": 4}
    lines = report("It stopped", registers, system, 32).splitlines()
    assert lines[0] == "It stopped, at 0x1000"
    assert lines[1:] == [
        "   rip 00001000   rax 00000001   rbx 00000002   rcx 00000003",
        "   rdx 00000004",
    ]
    system.symbol_at = lambda address: f"main+{address - 0xFF0:#x}"
    assert system.place(0x1000) == "0x1000 (main+0x10)"


# --- boards with their ports in memory ------------------------------------------------------------


@pytest.fixture
def riscv() -> Iterator[System]:
    with Machine(Board(), on="loopback", arch="riscv64", watch=False) as machine:
        yield machine.system


@pytest.mark.parametrize(("value", "code"), [(0x5555, 0), (41 << 16 | 0x3333, 41)])
def test_the_finisher_ends_the_machine(riscv: System, value: int, code: int) -> None:
    assert riscv.mem_read(0x10_0000, 4) == 0
    riscv.mem_write(0x10_0000, 4, value)
    assert riscv.exit_code == code


def test_what_the_finisher_does_not_know(riscv: System) -> None:
    riscv.mem_write(0x10_0000, 4, 0x7777)
    riscv.mem_write(0x10_0004, 4, 0x5555)
    assert riscv.exit_code is None
    assert faults(riscv) == 2


def test_the_console_is_in_memory(riscv: System) -> None:
    riscv.mem_write(0x1000_0000, 1, ord("!"))
    assert riscv.console.text == "!"
    assert riscv.mem_read(0x1000_0005, 1) == 0x60


def test_ports_are_in_memory(riscv: System) -> None:
    """Nothing answers there: all ones, as from the bus."""
    riscv.mem_write(0x0300_C000, 4, 1)
    assert riscv.mem_read(0x0300_C000, 4) == riscv.bus.io_read(0xC000, 4)
    assert riscv.mem_read(0x0300_FFF0, 2) == 0xFFFF
    assert not any(each.kind == "io" for each in riscv.mappings())
