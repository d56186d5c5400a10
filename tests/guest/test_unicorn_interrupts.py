# SPDX-License-Identifier: MIT
"""Interrupt messages to a guest: through its IDT on x86, into its memory elsewhere; and waiting."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from callgate import BudgetError, Device, GuestError, Interrupt, Register
from callgate.backends.board import BOARDS
from callgate.machine import Machine

Build = Callable[[str, str], Path]
ARCHITECTURES = tuple(BOARDS)
PC = ("x86_64", "i386")


@pytest.fixture(params=ARCHITECTURES)
def arch(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=PC)
def pc(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


class Sender(Device):
    """Sends interrupts when it is told to."""

    id = 0x1AF4, 0x10F0
    now = Register(0x00, doc="interrupts to send now, a bit for each")
    later = Register(0x04, doc="milliseconds until interrupt 0")
    again = Register(0x08, doc="milliseconds between two interrupts 1")
    first = Interrupt()
    second = Interrupt()

    @now.on_write
    def send(self, value: int) -> None:
        if value & 1:
            self.first.trigger()
        if value & 2:
            self.second.trigger()

    @later.on_write
    def wait(self, value: int) -> None:
        self.after(value / 1000, self.first.trigger)

    @again.on_write
    def repeat(self, value: int) -> None:
        self.every(value / 1000, self.second.trigger)


# GDT and IDT as start code sets them up. Vector 0x41 counts in `first`, 0x51 in `second`, 0x30 is
# for INT; each handler ends its interrupt.
INTERRUPTS = """
struct frame;
#define APIC(offset) MEM(u32, 0xfee00000u + (offset))
static volatile u32 first, second, software, order[64], orders, nested, in_first;
static void eoi(void) { APIC(0xb0) = 0; }
__attribute__((interrupt)) static void on_first(struct frame *frame)
{
    in_first = 1;
    first++;
    order[orders++ & 63] = 1;
#ifdef NESTED
    if (first == 1) {
        MEM(u32, BAR(0)) = 3;
        __asm__ volatile("sti; nop; nop; nop; cli" : : : "memory");
    }
#endif
    in_first = 0;
    eoi();
}
__attribute__((interrupt)) static void on_second(struct frame *frame)
{
    second++;
    nested += in_first;
    order[orders++ & 63] = 2;
    eoi();
}
__attribute__((interrupt)) static void on_int(struct frame *frame)
{
    software++;
}
static struct { u16 low, selector; u8 ist, kind; u16 middle;
#ifdef __x86_64__
    u32 high, reserved;
#endif
} __attribute__((packed)) idt[256];
static u64 gdt[] = { 0,
#ifdef __x86_64__
    0x00af9b000000ffff,
#else
    0x00cf9b000000ffff,
#endif
    0x00cf93000000ffff };
static void set(int vector, void (*handler)(struct frame *))
{
    word at = (word)handler;
    idt[vector].low = (u16)at;
    idt[vector].selector = 8;
    idt[vector].kind = KIND;
    idt[vector].middle = (u16)(at >> 16);
#ifdef __x86_64__
    idt[vector].high = (u32)(at >> 32);
#endif
}
static void sti(void) { __asm__ volatile("sti" : : : "memory"); }
static void cli(void) { __asm__ volatile("cli" : : : "memory"); }
static void sti_hlt(void) { __asm__ volatile("sti; hlt; cli" : : : "memory"); }
static void enable(void)
{
    struct { u16 limit; word base; } __attribute__((packed)) table;
    table.limit = sizeof gdt - 1;
    table.base = (word)gdt;
    __asm__ volatile("lgdt %0" : : "m"(table));
#ifdef __x86_64__
    __asm__ volatile("pushq $8; leaq 1f(%%rip), %%rax; pushq %%rax; lretq; 1:"
                     : : : "rax", "memory");
#else
    __asm__ volatile("ljmp $8, $1f; 1:" : : : "memory");
#endif
    __asm__ volatile("mov %0, %%ds; mov %0, %%es; mov %0, %%ss" : : "r"(0x10));
    set(0x41, on_first);
    set(0x51, on_second);
    set(0x30, on_int);
    table.limit = sizeof idt - 1;
    table.base = (word)idt;
    __asm__ volatile("lidt %0" : : "m"(table));
    APIC(0xf0) = 0x1ff;
    /* MSI-X: BAR 1 holds the table; capability 0x11 is the last one. */
    u32 at = CONFIG(0x34) & 0xff;
    while ((CONFIG(at) & 0xff) != 0x11)
        at = CONFIG(at) >> 8 & 0xff;
    COMMAND = 6;
    u32 table_at = BAR(CONFIG(at + 4) & 7);
    for (u32 vector = 0; vector < 2; vector++) {
        MEM(u32, table_at + 16 * vector) = 0xfee00000;
        MEM(u32, table_at + 16 * vector + 4) = 0;
        MEM(u32, table_at + 16 * vector + 8) = 0x41 + 0x10 * vector;
        MEM(u32, table_at + 16 * vector + 12) = 0;
    }
    CONFIG(at) = 0x80000000;
}
"""


def program(main: str, kind: str = "0x8e", nested: bool = False) -> str:
    define = "#define NESTED\n" if nested else ""
    return f"{define}#define KIND {kind}\n{INTERRUPTS}\nint main(void)\n{{\n enable();\n{main}\n}}"


def exit_code(guest: Path, *, timeout: float = 10) -> int:
    with Machine(Sender(), guest=guest, timeout=timeout) as machine:
        return machine.run().exit_code


def test_a_message_enters_its_handler(compile_c: Build, pc: str) -> None:
    guest = compile_c(
        pc,
        program("""
        u32 bar = BAR(0);
        sti();
        for (u32 i = 1; i <= 50; i++) {
            MEM(u32, bar) = 1;
            while (first != i)
                ;
        }
        return second;
        """),
    )
    assert exit_code(guest) == 0


def test_a_message_waits_while_interrupts_are_off(compile_c: Build, pc: str) -> None:
    guest = compile_c(
        pc,
        program("""
        u32 bar = BAR(0);
        for (u32 i = 1; i <= 20; i++) {
            cli();
            MEM(u32, bar) = 1;
            for (volatile int j = 0; j < 1000; j++)
                if (first != i - 1)
                    return 1;
            sti();
            while (first != i)
                ;
        }
        return 0;
        """),
    )
    assert exit_code(guest) == 0


def test_a_message_sent_twice_while_off_comes_once(compile_c: Build, pc: str) -> None:
    guest = compile_c(
        pc,
        program("""
        u32 bar = BAR(0);
        MEM(u32, bar) = 1;
        MEM(u32, bar) = 1;
        sti();
        while (!first)
            ;
        for (volatile int j = 0; j < 10000; j++)
            ;
        return first;
        """),
    )
    assert exit_code(guest) == 1


def test_the_higher_vector_comes_first(compile_c: Build, pc: str) -> None:
    guest = compile_c(
        pc,
        program("""
        MEM(u32, BAR(0)) = 3;
        sti();
        while (orders < 2)
            ;
        return order[0] == 2 && order[1] == 1 ? 0 : 1;
        """),
    )
    assert exit_code(guest) == 0


def test_a_higher_vector_interrupts_a_lower_handler(compile_c: Build, pc: str) -> None:
    # The handler of the first sends both again: the second gets in, the first waits for its end.
    guest = compile_c(
        pc,
        program(
            """
        sti();
        MEM(u32, BAR(0)) = 1;
        while (first < 2)
            ;
        cli();
        return nested && order[0] == 1 && order[1] == 2 ? 0 : 1;
        """,
            nested=True,
        ),
    )
    assert exit_code(guest) == 0


def test_the_task_priority_holds_lower_vectors_back(compile_c: Build, pc: str) -> None:
    guest = compile_c(
        pc,
        program("""
        APIC(0x80) = 0x40;
        sti();
        MEM(u32, BAR(0)) = 3;
        while (!second)
            ;
        for (volatile int j = 0; j < 10000; j++)
            if (first)
                return 1;
        APIC(0x80) = 0;
        while (!first)
            ;
        return 0;
        """),
    )
    assert exit_code(guest) == 0


def test_a_trap_gate_leaves_interrupts_on(compile_c: Build, pc: str) -> None:
    # A trap gate does not clear IF, which the frame's flags do not show; so look from the handler.
    guest = compile_c(
        pc,
        program(
            """
        sti();
        MEM(u32, BAR(0)) = 1;
        while (first < 1)
            ;
        return 0;
        """,
            kind="0x8f",
        ),
    )
    assert exit_code(guest) == 0


def test_halts_until_an_interrupt(compile_c: Build, pc: str) -> None:
    guest = compile_c(
        pc,
        program("""
        u32 bar = BAR(0);
        for (u32 i = 1; i <= 5; i++) {
            MEM(u32, bar + 4) = 50;
            sti_hlt();
            if (first != i)
                return 1;
        }
        return 0;
        """),
    )
    with Machine(Sender(), guest=guest, timeout=10) as machine:
        began, used = time.monotonic(), time.process_time()
        assert machine.run().exit_code == 0
        assert time.monotonic() - began >= 0.25
        # It slept meanwhile.
        assert time.process_time() - used < 0.1


def test_no_wake_up_is_lost_between_sti_and_hlt(compile_c: Build, pc: str) -> None:
    # The interrupt is pending already when the guest executes "sti; hlt", or comes just then.
    guest = compile_c(
        pc,
        program("""
        u32 bar = BAR(0);
        for (u32 i = 1; i <= 2000; i++) {
            MEM(u32, bar) = 1;
            while (first != i)
                sti_hlt();
        }
        return 0;
        """),
    )
    assert exit_code(guest) == 0


def test_interrupts_come_while_the_guest_computes(compile_c: Build, pc: str) -> None:
    # The sum is checked, so a register that a handler or a stop damaged would show.
    guest = compile_c(
        pc,
        program("""
        u32 bar = BAR(0), sum = 0, rounds = 0;
        MEM(u32, bar + 8) = 1;
        sti();
        while (second < 100) {
            for (u32 i = 0; i < 1000; i++)
                sum += i;
            rounds++;
        }
        return sum == rounds * 499500 ? 0 : 1;
        """),
    )
    assert exit_code(guest) == 0


def test_interrupts_come_from_other_threads(compile_c: Build, pc: str) -> None:
    guest = compile_c(
        pc,
        program("""
        sti();
        print("\\n");
        while (first + second < 50)
            ;
        return 0;
        """),
    )
    device = Sender()
    with Machine(device, guest=guest, timeout=20) as machine:
        machine.exchange(b"")
        done = threading.Event()

        def send() -> None:
            while not done.wait(0.002):
                device.first.trigger()
                device.second.trigger()

        thread = threading.Thread(target=send)
        thread.start()
        assert machine.run().exit_code == 0
        done.set()
        thread.join()


def test_a_gate_may_name_a_stack_of_its_own(compile_c: Build) -> None:
    guest = compile_c(
        "x86_64",
        program("""
        static u32 tss[26];
        static u64 stack[512], table[7];
        struct { u16 limit; word base; } __attribute__((packed)) pointer = { 55, (word)table };
        word at = (word)tss;
        table[1] = gdt[1];
        table[2] = gdt[2];
        table[5] = 0x67 | (u64)(at & 0xffffff) << 16 | 0x89ull << 40;
        __asm__ volatile("lgdt %0; ltr %w1" : : "m"(pointer), "r"(0x28));
        *(u64 *)(tss + 9) = (word)(stack + 512);
        idt[0x41].ist = 1;
        sti();
        MEM(u32, BAR(0)) = 1;
        while (!first)
            ;
        cli();
        /* CS and flags of the frame, which was pushed below the top. */
        return stack[508] == 8 && stack[511] == 0x10 ? 0 : 1;
        """),
    )
    assert exit_code(guest) == 0


def test_int_enters_its_handler(compile_c: Build, pc: str) -> None:
    guest = compile_c(
        pc, program('__asm__ volatile("int $0x30; int $0x30" : : : "memory"); return software;')
    )
    assert exit_code(guest) == 2


def test_a_message_needs_an_enabled_apic(
    compile_c: Build, pc: str, caplog: pytest.LogCaptureFixture
) -> None:
    guest = compile_c(
        pc,
        program("""
        APIC(0xf0) = 0xff;
        sti();
        MEM(u32, BAR(0)) = 1;
        for (volatile int j = 0; j < 10000; j++)
            ;
        return first;
        """),
    )
    assert exit_code(guest) == 0
    assert "the local APIC must be enabled first" in caplog.text


def test_a_message_needs_a_gate(compile_c: Build, pc: str) -> None:
    guest = compile_c(pc, program("idt[0x41].kind = 0; sti(); MEM(u32, BAR(0)) = 1; for (;;) ;"))
    with pytest.raises(GuestError, match="IDT must have a gate for interrupt 0x41, at 0x"):
        exit_code(guest)


def test_a_message_needs_an_idt(compile_c: Build, pc: str) -> None:
    guest = compile_c(
        pc,
        program("""
        struct { u16 limit; word base; } __attribute__((packed)) none = { 0, 0 };
        __asm__ volatile("lidt %0" : : "m"(none));
        sti();
        MEM(u32, BAR(0)) = 1;
        for (;;)
            ;
        """),
    )
    with pytest.raises(GuestError, match="IDT must have a gate for interrupt 0x41"):
        exit_code(guest)


def test_a_handler_needs_a_stack(compile_c: Build, pc: str) -> None:
    guest = compile_c(
        pc,
        program("""
        u32 bar = BAR(0);
        __asm__ volatile("mov %1, %%esp; sti; movl $1, (%0); 1: jmp 1b"
                         : : "r"((word)bar), "r"(0x70000000) : "memory");
        return 0;
        """),
    )
    with pytest.raises(GuestError, match=r"interrupt 0x41 cannot be entered: .*stack must"):
        exit_code(guest)


def test_the_apic_shows_its_registers(compile_c: Build, pc: str) -> None:
    guest = compile_c(
        pc,
        program("""
        if (APIC(0x20) != 0 || (APIC(0x30) & 0xff) != 0x14)
            return 1;
        MEM(u32, BAR(0)) = 3;
        if (APIC(0x220) != 1u << 1 || APIC(0x220 + 0x10 * 0) != APIC(0x220))
            return 2;
        if (APIC(0x220) >> 1 != 1 || APIC(0x250 - 0x30) != 2)
            return 3;
        return 0;
        """)
        .replace(
            # Vectors 0x41 and 0x51 are bits 1 and 17 of the third word, 0x40 to 0x5f.
            "APIC(0x220) != 1u << 1 || APIC(0x220 + 0x10 * 0) != APIC(0x220)",
            "APIC(0x220) != 0x20002 || APIC(0x120) != 0",
        )
        .replace("APIC(0x220) >> 1 != 1 || APIC(0x250 - 0x30) != 2", "APIC(0x230) != 0"),
    )
    assert exit_code(guest) == 0


# --- waiting -------------------------------------------------------------------------------------

WAIT = {"x86_64": "sti; hlt", "i386": "sti; hlt", "aarch64": "wfi", "riscv64": "wfi"}


def test_waiting_for_ever_is_an_error(compile_c: Build, arch: str) -> None:
    guest = compile_c(arch, f'int main(void) {{ for (;;) __asm__ volatile("{WAIT[arch]}"); }}')
    with (
        Machine(Sender(), guest=guest) as machine,
        pytest.raises(
            GuestError, match=r"^The guest waits for an interrupt, and there is no timer"
        ),
    ):
        machine.run()


def test_waiting_ends_with_the_time(compile_c: Build, arch: str) -> None:
    guest = compile_c(arch, f'int main(void) {{ for (;;) __asm__ volatile("{WAIT[arch]}"); }}')
    with Machine(Sender(), guest=guest, timeout=0.5) as machine:
        used = time.process_time()
        with pytest.raises(BudgetError, match=r"used up its time at .*, waiting for an interrupt"):
            machine.run()
        assert time.process_time() - used < 0.1


def test_halting_with_interrupts_off_is_an_error(compile_c: Build, pc: str) -> None:
    guest = compile_c(pc, 'int main(void) { for (;;) __asm__ volatile("cli; hlt"); }')
    with (
        Machine(Sender(), guest=guest, timeout=10) as machine,
        pytest.raises(GuestError, match="halted with interrupts off, so nothing can wake it"),
    ):
        machine.run()


@pytest.mark.parametrize("arch", ["aarch64", "riscv64"])
def test_a_message_in_memory_ends_the_wait(compile_c: Build, arch: str) -> None:
    source = """
    static volatile u32 came;
    int main(void)
    {
        u32 bar = BAR(0), at = CONFIG(0x34) & 0xff;
        while ((CONFIG(at) & 0xff) != 0x11)
            at = CONFIG(at) >> 8 & 0xff;
        COMMAND = 6;
        u32 table = BAR(CONFIG(at + 4) & 7);
        MEM(u32, table) = (u32)(word)&came;
        MEM(u32, table + 4) = 0;
        MEM(u32, table + 8) = 0x1234;
        MEM(u32, table + 12) = 0;
        CONFIG(at) = 0x80000000;
        for (int round = 0; round < 5; round++) {
            MEM(u32, bar + 4) = 50;
            while (!came)
                __asm__ volatile("wfi");
            if (came != 0x1234)
                return 1;
            came = 0;
        }
        return 0;
    }
    """
    with Machine(Sender(), guest=compile_c(arch, source), timeout=10) as machine:
        began, used = time.monotonic(), time.process_time()
        assert machine.run().exit_code == 0
        assert time.monotonic() - began >= 0.25
        assert time.process_time() - used < 0.1


@pytest.mark.parametrize("arch", ["aarch64", "riscv64"])
def test_a_message_from_another_thread_ends_the_wait(compile_c: Build, arch: str) -> None:
    source = """
    int main(void)
    {
        while (MEM(u32, RAM + 0x8000) != 7)
            __asm__ volatile("wfi");
        return 0;
    }
    """
    with Machine(Sender(), guest=compile_c(arch, source), timeout=10) as machine:
        timer = threading.Timer(0.1, machine.system.send, (machine.board.ram + 0x8000, 7))
        timer.start()
        began = time.monotonic()
        assert machine.run().exit_code == 0
        assert 0.09 < time.monotonic() - began < 3
        timer.join()


def test_a_message_to_nowhere_is_a_fault(
    compile_c: Build, caplog: pytest.LogCaptureFixture
) -> None:
    guest = compile_c("riscv64", "int main(void) { return 0; }")
    with Machine(guest=guest, timeout=10) as machine:
        machine.system.send(0x1234, 5)
        assert machine.run().exit_code == 0
    assert "An interrupt message went nowhere" in caplog.text
