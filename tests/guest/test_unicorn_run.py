# SPDX-License-Identifier: MIT
"""A guest begins, writes, reads and ends; and what ends it otherwise."""

import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from callgate import (
    BackendError,
    BudgetError,
    Device,
    GuestError,
    LoadError,
    Register,
    Stopped,
)
from callgate.backends.board import BOARDS
from callgate.backends.unicorn import hostcode
from callgate.machine import Machine

Build = Callable[[str, str], Path]
ARCHITECTURES = tuple(BOARDS)

SEVEN = {
    "x86_64": "mov $7, %eax",
    "i386": "mov $7, %eax",
    "aarch64": "mov x0, #7",
    "riscv64": "li a0, 7",
}
FOREVER = {
    "x86_64": "spin: inc %rax\n jmp spin",
    "i386": "spin: inc %eax\n jmp spin",
    "aarch64": "spin: add x0, x0, #1\n b spin",
    "riscv64": "spin: addi a0, a0, 1\n j spin",
}
ECHO = {
    # Add one to each byte that comes, until it is a dot.
    "x86_64": """
1:  mov $0x3fd, %dx
    in %dx, %al
    test $1, %al
    jz 1b
    mov $0x3f8, %dx
    in %dx, %al
    cmp $'.', %al
    je 2f
    inc %al
    out %al, %dx
    jmp 1b
2:""",
    "aarch64": """
    movz x1, #0x0900, lsl #16
1:  ldr w2, [x1, #0x18]
    tbnz w2, #4, 1b
    ldr w2, [x1]
    cmp w2, #'.'
    b.eq 2f
    add w2, w2, #1
    str w2, [x1]
    b 1b
2:""",
    "riscv64": """
    li a1, 0x10000000
1:  lbu a2, 5(a1)
    andi a2, a2, 1
    beqz a2, 1b
    lbu a2, 0(a1)
    li a3, '.'
    beq a2, a3, 2f
    addi a2, a2, 1
    sb a2, 0(a1)
    j 1b
2:""",
}
ECHO["i386"] = ECHO["x86_64"]


class Clock(Device):
    """Has a timer, for what timers do to a guest that runs."""

    id = 0x1AF4, 0x10F0
    ticks = Register(0x00, access="r")

    def attach(self) -> None:
        self.every(0.001, self.tick)

    def tick(self) -> None:
        self.ticks += 1


@pytest.fixture(params=ARCHITECTURES)
def arch(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_writes_and_ends(build: Build, arch: str) -> None:
    guest = build(arch, f"_start: put 'H'\n put 'i'\n {SEVEN[arch]}\n exit")
    with Machine(guest=guest, arch=arch, timeout=10) as machine:
        result = machine.run()
    assert result.output == "Hi"
    assert result.exit_code == 7
    assert result.instructions is None
    assert 0 < result.elapsed < 10


def test_takes_the_architecture_from_the_program(build: Build, arch: str) -> None:
    with Machine(guest=build(arch, f"_start: {SEVEN[arch]}\n exit"), timeout=10) as machine:
        assert machine.board.arch == arch
        assert machine.run().exit_code == 7


def test_reads_what_it_is_given(build: Build, arch: str) -> None:
    guest = build(arch, f"_start: {ECHO[arch]}\n {SEVEN[arch]}\n exit")
    with Machine(guest=guest, timeout=10) as machine:
        machine.console.feed(b"HAL.")
        assert machine.run().output == "IBM"


def test_exchanges_lines(build: Build, arch: str) -> None:
    # The end of a line, plus one, is none; so the program gets ends of lines as tabs.
    guest = build(arch, f"_start: {ECHO[arch]}\n {SEVEN[arch]}\n exit")
    with Machine(guest=guest, timeout=10) as machine:
        assert machine.exchange(b"HAL\t") == b"IBM"
        # What followed the end of the line was read, but has no part in the first answer.
        assert machine.exchange(b"@\t").endswith(b"A")
        assert machine.exchange(b".") == b"\x0b"
        with pytest.raises(GuestError, match="has ended with 7: the machine must be reset"):
            machine.exchange(b"more")


def test_runs_again_after_a_reset(build: Build, arch: str) -> None:
    guest = build(arch, f"_start: put 'H'\n {SEVEN[arch]}\n exit")
    with Machine(guest=guest, timeout=10) as machine:
        first = machine.run()
        with pytest.raises(GuestError, match="has ended with 7: the machine must be reset"):
            machine.run()
        machine.memory.write(machine.board.ram, b"dirt")
        machine.reset()
        assert machine.memory.read(machine.board.ram, 4) == bytes(4)
        again = machine.run()
    assert (again.exit_code, again.output) == (first.exit_code, first.output) == (7, "H")


def test_ends_with_32_bits(build: Build) -> None:
    guest = build("x86_64", "_start: mov $0xfedcba98, %eax\n exit")
    with Machine(guest=guest, timeout=10) as machine:
        assert machine.run().exit_code == 0xFEDCBA98


def test_counts_instructions(build: Build, arch: str) -> None:
    loop = {
        "x86_64": "mov $1000, %ecx\n 1: dec %ecx\n jnz 1b",
        "i386": "mov $1000, %ecx\n 1: dec %ecx\n jnz 1b",
        "aarch64": "mov x1, #1000\n 1: subs x1, x1, #1\n b.ne 1b",
        "riscv64": "li a1, 1000\n 1: addi a1, a1, -1\n bnez a1, 1b",
    }
    with Machine(
        guest=build(arch, f"_start: {loop[arch]}\n exit"), instructions=100_000, timeout=10
    ) as machine:
        instructions = machine.run().instructions
    assert instructions is not None
    # Those of `exit`, and of the block that was begun before the guest ended.
    assert 2001 <= instructions <= 2040


def test_ends_at_its_budget_of_instructions(build: Build, arch: str) -> None:
    guest = build(arch, f"_start: {FOREVER[arch]}")
    with Machine(guest=guest, instructions=12_345, timeout=10) as machine:
        with pytest.raises(
            BudgetError,
            match=r"^The guest used up its budget of instructions at 0x\w+ \(spin(\+0x\w+)?\)$",
        ):
            machine.run()
        assert 12_346 // 2 in machine.backend.registers().values()
        # It goes on where it was, with a new budget.
        with pytest.raises(BudgetError):
            machine.run()
        assert 12_345 in machine.backend.registers().values()


def test_counts_exactly_while_timers_interrupt(build: Build, arch: str) -> None:
    with Machine(
        Clock(), guest=build(arch, f"_start: {FOREVER[arch]}"), instructions=5_000_000
    ) as machine:
        with pytest.raises(BudgetError):
            machine.run()
        assert 2_500_000 in machine.backend.registers().values()


def test_ends_at_its_time(build: Build, arch: str) -> None:
    with Machine(guest=build(arch, f"_start: {FOREVER[arch]}"), timeout=0.1) as machine:
        began = time.monotonic()
        with pytest.raises(BudgetError, match=r"^The guest used up its time at 0x\w+ \(spin"):
            machine.run()
        assert 0.1 <= time.monotonic() - began < 1


# An instruction that loads, adds and stores, next to a count in a register. Where the emulator is
# stopped in its middle, it is executed twice.
COUNT_IN_MEMORY = {
    "x86_64": "mov $0x8000, %rbx\n spin: incl (%rbx)\n inc %rax\n jmp spin",
    "i386": "mov $0x8000, %ebx\n spin: incl (%ebx)\n inc %eax\n jmp spin",
    "aarch64": """
    movz x1, #0x4000, lsl #16
    movk x1, #0x8000
spin:
1:  ldxr x2, [x1]
    add x2, x2, #1
    stxr w3, x2, [x1]
    cbnz w3, 1b
    add x0, x0, #1
    b spin""",
    "riscv64": """
    li a1, 0x80008000
    li a2, 1
spin: amoadd.d x0, a2, (a1)
    addi a0, a0, 1
    j spin""",
}
COUNT_REGISTER = {"x86_64": "rax", "i386": "eax", "aarch64": "x0", "riscv64": "a0"}


@pytest.mark.parametrize("host", [hostcode.HOST, "another"])
def test_stops_between_instructions(
    build: Build, arch: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if host != hostcode.HOST:
        # As on a host for which there is no host code.
        monkeypatch.setattr(hostcode.Brake.__init__, "__defaults__", (host,))
    device = Clock()
    with Machine(device, guest=build(arch, f"_start: {COUNT_IN_MEMORY[arch]}"), timeout=0.4) as m:
        with pytest.raises(BudgetError):
            m.run()
        assert device.ticks > 5
        stored = int.from_bytes(m.memory.read(m.board.ram + 0x8000, 4), "little")
        counted = m.backend.registers()[COUNT_REGISTER[arch]] & 0xFFFF_FFFF
        # One of the two may have been executed last.
        assert 0 <= stored - counted <= 1


def test_counts_in_python_as_in_host_code(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostcode.InstructionLimit.__init__, "__defaults__", ("another",))
    guest = build("x86_64", "_start: mov $100, %ecx\n 1: dec %ecx\n jnz 1b\n hlt")
    with Machine(guest=guest, instructions=10_000) as machine:
        with pytest.raises(GuestError, match="halted with interrupts off"):
            machine.run()
        assert machine.backend.registers()["rcx"] == 0


def test_timers_run_while_the_guest_runs(build: Build, arch: str) -> None:
    device = Clock()
    guest = build(arch, f"_start: {FOREVER[arch]}")
    with Machine(device, guest=guest, timeout=0.3) as machine, pytest.raises(BudgetError):
        machine.run()
    assert 20 < device.ticks <= 301


def test_stops_for_another_thread(build: Build, arch: str) -> None:
    with Machine(guest=build(arch, f"_start: {FOREVER[arch]}"), timeout=10) as machine:
        timer = threading.Timer(0.05, machine.stop)
        timer.start()
        began = time.monotonic()
        with pytest.raises(Stopped, match="was stopped before its guest ended: run it to go on"):
            machine.run()
        assert time.monotonic() - began < 2
        timer.join()
        # A stop that comes before is not lost either.
        machine.stop()
        with pytest.raises(Stopped):
            machine.run()


def test_ctrl_c_ends_a_guest_that_runs(build: Build, arch: str) -> None:
    usual = signal.getsignal(signal.SIGINT)
    with Machine(guest=build(arch, f"_start: {FOREVER[arch]}"), timeout=10) as machine:
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            machine.run()
        assert time.monotonic() - began < 2
        timer.join()
    assert signal.getsignal(signal.SIGINT) is usual


def test_ctrl_c_ends_a_guest_that_traps_all_the_time(build: Build) -> None:
    guest = build("x86_64", "_start: mov $0x80, %dx\n 1: out %al, %dx\n jmp 1b")
    with Machine(guest=guest, timeout=20) as machine:
        for _ in range(5):
            timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                machine.run()
            timer.join()


class Stuck(Device):
    """Never comes back from a write."""

    id = 0x1AF4, 0x10F1
    trap = Register(0x00)

    @trap.on_write
    def hang(self, value: int) -> None:
        while True:
            pass


def test_ctrl_c_ends_a_model_that_hangs(build: Build) -> None:
    guest = build(
        "x86_64",
        "_start: mov $0xcf8, %dx\n mov $0x80000810, %eax\n out %eax, %dx\n"
        "mov $0xcfc, %dx\n in %dx, %eax\n mov %eax, %ebx\n mov %eax, (%rbx)\n exit",
    )
    with Machine(Stuck(), guest=guest, timeout=20) as machine:
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            machine.run()
        timer.join()


def test_runs_in_another_thread(build: Build, arch: str) -> None:
    guest = build(arch, f"_start: put 'H'\n {SEVEN[arch]}\n exit")
    codes: list[int] = []
    with Machine(guest=guest, timeout=10) as machine:
        thread = threading.Thread(target=lambda: codes.append(machine.run().exit_code))
        thread.start()
        thread.join()
    assert codes == [7]


def test_several_machines_run_at_once(build: Build) -> None:
    results: dict[str, str] = {}

    def run(arch: str) -> None:
        guest = build(arch, f"_start: put '{arch[0]}'\n {SEVEN[arch]}\n exit")
        with Machine(Clock(), guest=guest, timeout=20) as machine:
            results[arch] = machine.run().output

    threads = [threading.Thread(target=run, args=(arch,)) for arch in ARCHITECTURES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {arch: arch[0] for arch in ARCHITECTURES}


def test_gives_everything_back(build: Build) -> None:
    guest = build("x86_64", f"_start: {SEVEN['x86_64']}\n exit")

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    def once() -> weakref.ref[Machine]:
        with Machine(Clock(), guest=guest, timeout=10) as machine:
            machine.memory.write(0x200000, b"\xff" * 0x800000)
            machine.run()
            return weakref.ref(machine)

    threads = threading.active_count()
    for _ in range(3):
        once()
    gc.collect()
    before = resident()
    machines = [once() for _ in range(20)]
    gc.collect()
    assert resident() - before < 20 << 20
    assert all(machine() is None for machine in machines)
    assert threading.active_count() == threads


def test_closing_twice_is_harmless(build: Build) -> None:
    machine = Machine(guest=build("x86_64", "_start: exit"))
    machine.close()
    machine.close()
    with pytest.raises(BackendError, match="must be reset to a program"):
        machine.run()


# --- what a machine refuses ----------------------------------------------------------------------


def test_refuses_a_program_of_another_architecture(build: Build) -> None:
    guest = build("aarch64", f"_start: {SEVEN['aarch64']}\n exit")
    with pytest.raises(LoadError, match=r"is for aarch64, the machine is x86_64: "):
        Machine(guest=guest, arch="x86_64")


def test_refuses_a_program_larger_than_ram(build: Build) -> None:
    guest = build("x86_64", "_start: mov $big, %eax\n exit\n .bss\n big: .skip 0x400000")
    with pytest.raises(LoadError, match="must lie in the machine's memory"):
        Machine(guest=guest, ram=4 << 20)


@pytest.mark.parametrize("ram", [0, 4095, -4096])
def test_refuses_ram_that_is_no_pages(ram: int) -> None:
    with pytest.raises(BackendError, match="must be a multiple of 4096 bytes"):
        Machine(ram=ram)


def test_refuses_an_unknown_architecture() -> None:
    with pytest.raises(
        BackendError, match="must be one of x86_64, i386, aarch64, riscv64, not 'pdp11'"
    ):
        Machine(arch="pdp11")


def test_refuses_to_run_without_a_program() -> None:
    with Machine() as machine, pytest.raises(GuestError, match="must be given a guest program"):
        machine.run()
