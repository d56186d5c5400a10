# SPDX-License-Identifier: MIT
"""AArch64: HVC by the SMC Calling Convention (ARM DEN 0028), and semihosting to end.

The processor starts at EL1, MMU off, interrupts masked; there is no interrupt controller.
"""

from __future__ import annotations

from typing import ClassVar

from unicorn import arm64_const as arm
from unicorn import unicorn_const as uc

from callgate.backends.unicorn.engine import ON_INTERRUPT, Registers
from callgate.backends.unicorn.processor import Processor
from callgate.gate.abi import Instruction

_UNDEFINED, _HVC, _SMC = 1, 11, 13
_EXCEPTIONS = {
    1: "an undefined instruction",
    2: "an SVC instruction",
    3: "an instruction abort",
    4: "a data abort",
    7: "a BRK instruction",
}
_NOT_SUPPORTED = 0xFFFF_FFFF_FFFF_FFFF
"""SMCCC's NOT_SUPPORTED, -1."""
_HLT_SEMIHOSTING = 0xD45E_0000
_SYS_EXIT, _SYS_EXIT_EXTENDED = 0x18, 0x20
_APPLICATION_EXIT = 0x20026
# SCR_EL3: op0 3, op1 6, CRn 1, CRm 1, op2 0. Without HCE, the emulator takes HVC for undefined.
_SCR_EL3 = (1, 1, 3, 6, 0)
_SCR_HCE_RW_NS = 1 << 8 | 1 << 10 | 1 << 0


class AArch64(Processor):
    """A Cortex-A of 64 bits."""

    library = uc.UC_ARCH_ARM64, uc.UC_MODE_ARM
    shown: ClassVar = {
        "pc": arm.UC_ARM64_REG_PC,
        "sp": arm.UC_ARM64_REG_SP,
        "pstate": arm.UC_ARM64_REG_PSTATE,
        "elr": arm.UC_ARM64_REG_ELR_EL1,
        **{f"x{n}": getattr(arm, f"UC_ARM64_REG_X{n}") for n in range(31)},
    }

    def install(self) -> None:
        """Set hooks, and registers to their state at power-on."""
        self.engine.uc.reg_write(arm.UC_ARM64_REG_CP_REG, (*_SCR_EL3, _SCR_HCE_RW_NS))
        x = [getattr(arm, f"UC_ARM64_REG_X{n}") for n in range(8)]
        self._arguments = Registers(self.engine, x)
        self._results = Registers(self.engine, x[:7])
        offer = self.system.platform.offer
        selector = offer.selector if offer.instruction is Instruction.HVC else None
        fail, exception = self.traps.fail, self._exception
        call, slot = self.system.router.call, self.system.call_slots[0]
        # W0 selector, W1 vector, X2 to X7 arguments -> X0 status, X1 to X6 results
        fetch, values = self._arguments.fetcher(), self._arguments.values
        slots, answer = self._arguments.slots(2), self._results.answerer()

        def on_interrupt(_: bool, number: int, __: bool) -> None:
            try:
                if number != _HVC:
                    exception(number)
                    return
                fetch()
                if values[0] & 0xFFFF_FFFF == selector:
                    answer(*call(slot, values[1] & 0xFFFF_FFFF, slots))
                else:
                    answer(_NOT_SUPPORTED, ())
            except BaseException as error:
                fail(error)

        self.engine.hook(uc.UC_HOOK_INTR, ON_INTERRUPT(on_interrupt))

    def _exception(self, number: int) -> None:
        pc = self.pc
        if number == _UNDEFINED and self._semihosting(pc):
            return
        if number == _SMC:
            self._results.values[0] = _NOT_SUPPORTED
            self._results.store(1)
            return
        name = _EXCEPTIONS.get(number, f"exception {number}")
        raise self.stopped(f"The guest raised {name}, which this backend does not deliver")

    def _semihosting(self, pc: int) -> bool:
        """Serve HLT 0xF000 (Semihosting for AArch32 and AArch64, 2.0); False if it is none."""
        if int.from_bytes(self.engine.read(pc, 4), "little") != _HLT_SEMIHOSTING:
            return False
        self._arguments.fetch(2)
        operation, block = self._arguments.values[0], self._arguments.values[1]
        if operation in (_SYS_EXIT, _SYS_EXIT_EXTENDED):
            reason = int.from_bytes(self.engine.read(block, 8), "little")
            code = int.from_bytes(self.engine.read(block + 8, 8), "little")
            self.system.end(code & 0xFFFF_FFFF if reason == _APPLICATION_EXIT else 1)
        else:
            self._results.values[0] = _NOT_SUPPORTED
            self._results.store(1)
            self.system.faults.note(
                "semihosting", f"The semihosting operation must be an exit, not {operation:#x}"
            )
        self.pc = pc + 4
        return True
