# SPDX-License-Identifier: MIT
"""x86, 64 and 32 bits: VMCALL, VMMCALL and INT 0x1F, CPUID, interrupts through the guest's IDT.

The library has no interrupt line, so what a processor does when it takes an interrupt is done here,
between two runs (Intel SDM, volume 3, 6.12 to 6.14):

    64 bits   gate of 16 bytes; the stack becomes the TSS's IST or RSP0 if the gate or a change of
              privilege says so, is aligned to 16, and gets SS RSP RFLAGS CS RIP
    32 bits   gate of 8 bytes; with a change of privilege the TSS's SS0:ESP0; gets (SS ESP) EFLAGS
              CS EIP

Not done: virtual-8086 mode, task gates, checks of limits and types. Segments are taken to be flat.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from typing import ClassVar

from unicorn import Uc, UcError
from unicorn import unicorn_const as uc
from unicorn import x86_const as x86

from callgate.backends.system import APIC
from callgate.backends.unicorn import apic
from callgate.backends.unicorn.engine import (
    ON_CPUID,
    ON_INTERRUPT,
    ON_INVALID,
    Registers,
)
from callgate.backends.unicorn.memory import AddressSpace
from callgate.backends.unicorn.ports import Ports
from callgate.backends.unicorn.processor import Processor
from callgate.gate.abi import Instruction
from callgate.pci.bar import Window
from callgate.pci.bus import Mapping

_CODE = {
    Instruction.VMCALL: b"\x0f\x01\xc1",
    Instruction.VMMCALL: b"\x0f\x01\xd9",
    Instruction.INT_1F: b"\xcd\x1f",
}
_CALL_INTERRUPT = 0x1F
_STI, _INT3, _INT = 0xFB, 0xCC, 0xCD
_DENIED = 0xFFFF_FFFF
"""What a hypercall from user mode gives: -1, KVM's -EPERM."""
_EXCEPTIONS = {
    0: "a divide error",
    1: "a debug exception",
    3: "a breakpoint",
    4: "an overflow",
    5: "a bound range exception",
    6: "an invalid opcode",
    7: "a device-not-available exception",
    8: "a double fault",
    10: "an invalid-TSS exception",
    11: "a segment-not-present exception",
    12: "a stack fault",
    13: "a general protection exception",
    14: "a page fault",
    16: "an x87 exception",
    17: "an alignment check",
    19: "a SIMD exception",
}
_TF, _IF, _NT, _RF, _VM = 1 << 8, 1 << 9, 1 << 14, 1 << 16, 1 << 17
_INTERRUPT_GATE, _TRAP_GATE = 0xE, 0xF
_LEAF_FEATURES, _LEAF_HYPERVISOR, _LEAF_HYPERVISOR_END = 1, 0x4000_0000, 0x4001_0000
_HYPERVISOR = 1 << 31
_CPUID = b"\x0f\xa2"

# rip and flags first, then what a delivery needs, then the rest for a report.
_AX, _BX, _CX, _DX = range(4)


class _X86(Processor):
    """What both widths share."""

    interrupts = True
    call_registers: ClassVar[tuple[int | None, ...]]
    """Vector and status, six slots' worth of arguments and results, CS, PC."""
    call_width: ClassVar[int]
    """Registers that make one slot."""
    width: ClassVar[int]
    """Bytes of a register."""

    def install(self) -> None:
        """Set hooks, and registers to their state at power-on."""
        engine, fail = self.engine, self.traps.fail
        self.apic = apic.LocalApic(self.system.faults)
        self._state = Registers(engine, self.state_registers)
        self._call = Registers(engine, self.call_registers, halves=self.call_width == 2)
        self._fetched = sum(each is not None for each in self.call_registers) - 1
        self._fetch = self._call.after(1)
        self._cs_at = 7 if self.call_width == 1 else 4
        self._instruction = self.system.platform.offer.instruction
        hypercall = self._hypercall
        calls_by_interrupt = self._instruction is Instruction.INT_1F

        def on_interrupt(_: int, number: int, __: int) -> None:
            try:
                if number == _CALL_INTERRUPT and calls_by_interrupt:
                    hypercall()
                else:
                    self._exception(number)
            except BaseException as error:
                fail(error)

        def on_invalid(_: int, __: int) -> bool:
            try:
                return self._call_instruction()
            except BaseException as error:
                fail(error)
                return True

        def on_cpuid(_: int, __: int) -> int:
            try:
                return self._cpuid()
            except BaseException as error:
                fail(error)
                return 1

        engine.hook(uc.UC_HOOK_INTR, ON_INTERRUPT(on_interrupt))
        engine.hook(uc.UC_HOOK_INSN_INVALID, ON_INVALID(on_invalid))
        engine.hook(uc.UC_HOOK_INSN, ON_CPUID(on_cpuid), 1, 0, x86.UC_X86_INS_CPUID)
