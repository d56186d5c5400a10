# SPDX-License-Identifier: MIT
"""x86, 64 and 32 bits: VMCALL, VMMCALL and INT 0x1F, CPUID, interrupts through the guest's IDT.

The library has no interrupt line, so what a processor does when it takes an interrupt is done here,
between two runs (Intel SDM, volume 3, 6.12 to 6.14):

    64 bits   gate of 16 bytes; the stack (that of the TSS, if the gate names one) is aligned to 16,
              and gets SS RSP RFLAGS CS RIP
    32 bits   gate of 8 bytes; the stack gets EFLAGS CS EIP

`int n` goes the same way. Exceptions do not, since the library does not tell their error codes, nor
does anything from user mode, since it lets nobody change the privilege level: these end the run.
Segments are taken to be flat.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import cache
from typing import ClassVar

from unicorn import unicorn_const as uc
from unicorn import x86_const as x86

from callgate.backends.system import APIC
from callgate.backends.unicorn.apic import SIZE, LocalApic
from callgate.backends.unicorn.engine import (
    ON_CPUID,
    ON_INTERRUPT,
    ON_INVALID,
    Engine,
    EngineError,
    Registers,
)
from callgate.backends.unicorn.processor import Processor
from callgate.gate.abi import PAGE, Instruction
from callgate.pci.bar import Window
from callgate.pci.bus import Mapping

_INSTRUCTIONS = {
    Instruction.VMCALL: b"\x0f\x01\xc1",
    Instruction.VMMCALL: b"\x0f\x01\xd9",
}
_CALL_INTERRUPT = 0x1F
_STI_HLT = b"\xfb\xf4"
_INT3, _INT = 0xCC, 0xCD
_DENIED = 0xFFFF_FFFF
"""What a hypercall from user mode gives: -1, as KVM's -EPERM."""
_EXCEPTIONS = {
    0: "a divide error",
    1: "a debug exception",
    3: "a breakpoint exception",
    4: "an overflow exception",
    5: "a bound range exception",
    6: "an invalid opcode exception",
    7: "a device-not-available exception",
    8: "a double fault",
    10: "an invalid TSS exception",
    11: "a segment-not-present exception",
    12: "a stack fault",
    13: "a general protection exception",
    14: "a page fault",
    16: "an x87 exception",
    17: "an alignment check",
    19: "a SIMD exception",
}
_TF, _IF, _NT, _RF, _VM = 1 << 8, 1 << 9, 1 << 14, 1 << 16, 1 << 17
_PRESENT, _INTERRUPT_GATE, _TRAP_GATE = 0x80, 0xE, 0xF
_TSS_IST = 0x24
_FEATURES, _HYPERVISOR_LEAVES = 1, range(0x4000_0000, 0x4001_0000)
_HYPERVISOR, _X2APIC = 1 << 31, 1 << 21
"""Of leaf 1, ECX."""
_APIC = 1 << 9
"""Of leaf 1, EDX."""


class X86(Processor):
    """What both widths share."""

    interrupts = True
    program: ClassVar[tuple[int, int, int, int]]
    """PC, flags, SP, CS."""
    numbers: ClassVar[tuple[int, int, int, int]]
    """EAX, EBX, ECX, EDX."""
    calling: ClassVar[tuple[int | None, ...]]
    """Vector and status; argument and result slots; CS."""
    halves: ClassVar[bool]
    """Whether a slot is two registers."""

    def install(self) -> None:
        """Set hooks, and registers to their state at power-on."""
        engine, fail, exception = self.engine, self.traps.fail, self._exception
        self.apic = LocalApic(self.system.faults)
        self._held_back = False
        self._state = Registers(engine, self.program)
        self._cpuid_values = Registers(engine, self.numbers)
        self._instruction = self.system.platform.offer.instruction
        self._hypercall = hypercall = self._make_hypercall()
        by_interrupt = self._instruction is Instruction.INT_1F

        def on_interrupt(_: bool, number: int, __: bool) -> None:
            try:
                if by_interrupt and number == _CALL_INTERRUPT:
                    hypercall()
                else:
                    exception(number)
            except BaseException as error:
                fail(error)

        def on_invalid(_: bool, __: bool) -> bool:
            try:
                return self._call_instruction()
            except BaseException as error:
                fail(error)
                return True

        def on_cpuid(_: bool, __: bool) -> int:
            try:
                return self._cpuid()
            except BaseException as error:
                fail(error)
                return 1

        engine.hook(uc.UC_HOOK_INTR, ON_INTERRUPT(on_interrupt))
        engine.hook(uc.UC_HOOK_INSN_INVALID, ON_INVALID(on_invalid))
        engine.hook(uc.UC_HOOK_INSN, ON_CPUID(on_cpuid), 1, 0, x86.UC_X86_INS_CPUID)

    # --- hypercalls ------------------------------------------------------------------------------

    def _make_hypercall(self) -> Callable[[], None]:
        registers = Registers(self.engine, self.calling, halves=self.halves)
        call, slot, faults = self.system.router.call, self.system.call_slots[0], self.system.faults
        fetch, values = registers.fetcher(), registers.values
        slots, answer = registers.slots(1), registers.answerer()
        cs = len(values) - 1

        def hypercall() -> None:
            fetch()
            if values[cs] & 3:
                faults.note("hypercall", "A hypercall must not come from user mode")
                answer(_DENIED, ())
            else:
                answer(*call(slot, values[0] & 0xFFFF_FFFF, slots))

        return hypercall

    def _call_instruction(self) -> bool:
        """Serve VMCALL or VMMCALL, whichever is the platform's; False for what is none of it."""
        code = _INSTRUCTIONS.get(self._instruction)
        pc = self.pc
        try:
            if code is None or self.engine.read(pc, len(code)) != code:
                return False
        except EngineError:
            return False
        self._hypercall()
        self.pc = pc + len(code)
        return True

    def _cpuid(self) -> int:
        """Answer the leaves that tell the hypervisor; 0 leaves the others to the library."""
        numbers = self._cpuid_values
        numbers.fetch(1)
        leaf = numbers.values[0] & 0xFFFF_FFFF
        signature = self.system.platform.signature
        if leaf == _FEATURES:
            ax, bx, cx, dx = _features(*self.library)
            cx = cx & ~(_X2APIC | _HYPERVISOR) | (_HYPERVISOR if signature else 0)
            answer = ax, bx, cx, dx | _APIC
        elif leaf in _HYPERVISOR_LEAVES:
            answer = (0, 0, 0, 0)
            if signature and leaf == _HYPERVISOR_LEAVES.start:
                answer = (leaf, *struct.unpack("<3I", signature))
        else:
            return 0
        for index, value in enumerate(answer):
            numbers.values[index] = value
        numbers.store(4)
        return 1

    # --- interrupts ------------------------------------------------------------------------------

    def mappings(self) -> Sequence[Mapping]:
        """Return the local APIC's page."""
        window = Window("local APIC", 0, SIZE, read=self.apic.read, write=self._write_apic)
        return (Mapping("memory", APIC.start, SIZE, window, 0),)

    def _write_apic(self, offset: int, size: int, value: int) -> None:
        self.apic.write(offset, size, value)
        if self.apic.pending() is not None:
            self.traps.break_off()

    def request(self, address: int, data: int) -> bool:
        """Take an interrupt message; whether it will interrupt. From any thread."""
        return self.apic.request(address, data)

    def deliver(self) -> bool:
        """Enter the handler of a pending interrupt, if the processor takes one now."""
        self._held_back = False
        if self.apic.pending() is None:
            return False
        state = self._state
        state.fetch(2)
        pc = state.values[0]
        if not state.values[1] & _IF or self._before_halt(pc):
            self._held_back = True
            return False
        self._enter(self.apic.accept())
        return True

    @property
    def held_back(self) -> bool:
        """Whether an interrupt is pending that `deliver` did not enter."""
        return self._held_back

    def check_wait(self) -> None:
        """Raise GuestError if the processor waits for an interrupt that it could never take."""
        self._state.fetch(2)
        if not self._state.values[1] & _IF:
            raise self.stopped("The guest halted with interrupts off, so nothing can wake it")

    def _before_halt(self, pc: int) -> bool:
        """Whether the processor is between STI and HLT.

        STI holds interrupts back for one more instruction (Intel SDM, volume 2, STI). The library
        does not tell, so that is not done, but for the one instruction that matters: an interrupt
        between the two would leave the guest halted that waits for it.
        """
        try:
            return self.engine.read(pc - 1, 2) == _STI_HLT
        except EngineError:
            return False

    def _exception(self, number: int) -> None:
        """`int n`, or an exception."""
        pc = self.pc
        try:
            before = self.engine.read(pc - 2, 2)
        except EngineError:
            before = b"\0\0"
        if before == bytes((_INT, number)) or (number == 3 and before[1] == _INT3):
            self._enter(number)
            return
        name = _EXCEPTIONS.get(number, f"exception {number}")
        raise self.stopped(f"The guest raised {name}, which this backend does not deliver")

    def _enter(self, vector: int) -> None:
        """Call the handler of `vector` as the processor does."""
        try:
            self._enter_gate(vector)
        except EngineError as error:
            raise self.stopped(
                f"The handler of interrupt {vector:#x} cannot be entered: IDT, TSS and stack must "
                f"lie in memory ({error})"
            ) from None

    def _enter_gate(self, vector: int) -> None:
        state = self._state
        state.fetch(4)
        pc, flags, sp, cs = state.values
        if cs & 3:
            raise self.stopped(
                f"Interrupt {vector:#x} came in user mode, and this backend cannot change to "
                "privilege level 0: keep interrupts off there"
            )
        target, selector, stack, kind = self._gate(vector)
        if not kind & _PRESENT or kind & 0xF not in (_INTERRUPT_GATE, _TRAP_GATE):
            raise self.stopped(f"The guest's IDT must have a gate for interrupt {vector:#x}")
        sp = self._push(sp, stack, pc, cs, flags)
        flags &= ~(_TF | _NT | _RF | _VM)
        if kind & 0xF == _INTERRUPT_GATE:
            flags &= ~_IF
        values = state.values
        values[0], values[1], values[2] = target, flags, sp
        state.store(3)
        if selector != cs:
            self.engine.uc.reg_write(x86.UC_X86_REG_CS, selector)

    def _table(self, register: int) -> tuple[int, int]:
        """Base and limit of IDTR or TR."""
        _, base, limit, _ = self.engine.uc.reg_read(register)
        return base, limit

    def _gate(self, vector: int) -> tuple[int, int, int, int]:
        """Return (address, selector, IST, kind) of an IDT gate; kind 0 if there is none."""
        raise NotImplementedError

    def _push(self, sp: int, stack: int, pc: int, cs: int, flags: int) -> int:
        """Push what an interrupt pushes; returns the stack pointer after that."""
        raise NotImplementedError


class X8664(X86):
    """An x86 processor in 64-bit mode."""

    library = uc.UC_ARCH_X86, uc.UC_MODE_64
    shown: ClassVar = {
        name.lower(): getattr(x86, f"UC_X86_REG_{name}")
        for name in (
            *("RIP", "RFLAGS", "RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", "RSP"),
            *("R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15"),
            *("CS", "SS", "CR0", "CR2", "CR3", "CR4"),
        )
    }
    program = (
        x86.UC_X86_REG_RIP,
        x86.UC_X86_REG_RFLAGS,
        x86.UC_X86_REG_RSP,
        x86.UC_X86_REG_CS,
    )
    numbers = (x86.UC_X86_REG_RAX, x86.UC_X86_REG_RBX, x86.UC_X86_REG_RCX, x86.UC_X86_REG_RDX)
    calling = (
        x86.UC_X86_REG_RAX,
        x86.UC_X86_REG_RDI,
        x86.UC_X86_REG_RSI,
        x86.UC_X86_REG_RDX,
        x86.UC_X86_REG_R10,
        x86.UC_X86_REG_R8,
        x86.UC_X86_REG_R9,
        x86.UC_X86_REG_CS,
    )
    halves = False

    def _gate(self, vector: int) -> tuple[int, int, int, int]:
        base, limit = self._table(x86.UC_X86_REG_IDTR)
        if 16 * vector + 15 > limit:
            return 0, 0, 0, 0
        low, selector, stack, kind, middle, high = struct.unpack(
            "<HHBBHI", self.engine.read(base + 16 * vector, 12)
        )
        return high << 32 | middle << 16 | low, selector, stack & 7, kind

    def _push(self, sp: int, stack: int, pc: int, cs: int, flags: int) -> int:
        top = sp
        if stack:
            base, _ = self._table(x86.UC_X86_REG_TR)
            at = base + _TSS_IST + 8 * (stack - 1)
            top = int.from_bytes(self.engine.read(at, 8), "little")
        top = (top & ~15) - 40
        ss: int = self.engine.uc.reg_read(x86.UC_X86_REG_SS)
        self.engine.write(top, struct.pack("<5Q", pc, cs, flags, sp, ss))
        return top


class I386(X86):
    """An x86 processor in protected mode."""

    library = uc.UC_ARCH_X86, uc.UC_MODE_32
    shown: ClassVar = {
        name.lower(): getattr(x86, f"UC_X86_REG_{name}")
        for name in (
            *("EIP", "EFLAGS", "EAX", "EBX", "ECX", "EDX", "ESI", "EDI", "EBP", "ESP"),
            *("CS", "SS", "CR0", "CR2", "CR3", "CR4"),
        )
    }
    program = (
        x86.UC_X86_REG_EIP,
        x86.UC_X86_REG_EFLAGS,
        x86.UC_X86_REG_ESP,
        x86.UC_X86_REG_CS,
    )
    numbers = (x86.UC_X86_REG_EAX, x86.UC_X86_REG_EBX, x86.UC_X86_REG_ECX, x86.UC_X86_REG_EDX)
    calling = (
        *(x86.UC_X86_REG_EAX, None),
        *(x86.UC_X86_REG_EBX, x86.UC_X86_REG_ECX),
        *(x86.UC_X86_REG_EDX, x86.UC_X86_REG_ESI),
        *(x86.UC_X86_REG_EDI, x86.UC_X86_REG_EBP),
        *(x86.UC_X86_REG_CS, None),
    )
    halves = True

    def _gate(self, vector: int) -> tuple[int, int, int, int]:
        base, limit = self._table(x86.UC_X86_REG_IDTR)
        if 8 * vector + 7 > limit:
            return 0, 0, 0, 0
        low, selector, _, kind, high = struct.unpack(
            "<HHBBH", self.engine.read(base + 8 * vector, 8)
        )
        return high << 16 | low, selector, 0, kind

    def _push(self, sp: int, stack: int, pc: int, cs: int, flags: int) -> int:
        sp = sp - 12 & 0xFFFF_FFFF
        self.engine.write(sp, struct.pack("<3I", pc, cs, flags))
        return sp


@cache
def _features(arch: int, mode: int) -> tuple[int, int, int, int]:
    """What the library's CPUID leaf 1 gives in EAX, EBX, ECX and EDX, found by executing one."""
    engine = Engine(arch, mode)
    names = x86.UC_X86_REG_EAX, x86.UC_X86_REG_EBX, x86.UC_X86_REG_ECX, x86.UC_X86_REG_EDX
    engine.uc.mem_map(0, PAGE)
    engine.uc.mem_write(0, b"\x0f\xa2\xf4")  # cpuid; hlt
    engine.uc.reg_write(names[0], _FEATURES)
    engine.run(0)
    ax, bx, cx, dx = (engine.uc.reg_read(name) & 0xFFFF_FFFF for name in names)
    engine.close()
    return ax, bx, cx, dx
