# SPDX-License-Identifier: MIT
"""RISC-V, 64 bits: ECALL by the Supervisor Binary Interface's convention.

The hart starts in M-mode with paging off; there is no interrupt controller. The library reports
cause 8 for each ECALL, so the privilege comes from its register.
"""

from __future__ import annotations

from typing import ClassVar

from unicorn import riscv_const as riscv
from unicorn import unicorn_const as uc

from callgate.backends.unicorn.engine import ON_INTERRUPT, Registers
from callgate.backends.unicorn.processor import Processor
from callgate.gate.abi import Instruction

_ECALLS = (8, 9, 11)
_CAUSES = {
    0: "an unaligned instruction fetch",
    1: "an instruction access fault",
    2: "an illegal instruction",
    3: "a breakpoint",
    4: "an unaligned load",
    5: "a load access fault",
    6: "an unaligned store",
    7: "a store access fault",
    12: "an instruction page fault",
    13: "a load page fault",
    15: "a store page fault",
}
_NOT_SUPPORTED = (1 << 64) - 2
"""SBI_ERR_NOT_SUPPORTED, -2."""
_NAMES = ["zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1"]
_NAMES += [f"a{n}" for n in range(8)] + [f"s{n}" for n in range(2, 12)]
_NAMES += [f"t{n}" for n in range(3, 7)]


class RiscV64(Processor):
    """A hart with RV64GC."""

    library = uc.UC_ARCH_RISCV, uc.UC_MODE_RISCV64
    shown: ClassVar = {
        "pc": riscv.UC_RISCV_REG_PC,
        **{name: riscv.UC_RISCV_REG_X0 + n for n, name in enumerate(_NAMES) if n},
        "mode": riscv.UC_RISCV_REG_PRIV,
    }

    def install(self) -> None:
        """Set hooks, and registers to their state at power-on."""
        a = [riscv.UC_RISCV_REG_A0 + n for n in range(8)]
        arguments = Registers(self.engine, [a[7], a[6], *a[:6], riscv.UC_RISCV_REG_PRIV])
        offer = self.system.platform.offer
        selector = offer.selector if offer.instruction is Instruction.ECALL else None
        fail, exception = self.traps.fail, self._exception
        call, slot = self.system.router.call, self.system.call_slots[0]
        # a7 selector, a6 vector, a0 to a5 arguments -> a0 status, a1 to a6 results
        fetch, values, slots = arguments.fetcher(), arguments.values, arguments.slots(2)
        answer = Registers(self.engine, a[:7]).answerer()

        def on_interrupt(_: bool, number: int, __: bool) -> None:
            try:
                if number not in _ECALLS:
                    exception(number)
                    return
                fetch()
                if not values[8]:
                    # It is for the guest's own kernel, by a trap that the library does not make.
                    raise self.stopped("The guest made an ECALL in user mode")
                if values[0] == selector:
                    answer(*call(slot, values[1] & 0xFFFF_FFFF, slots))
                else:
                    answer(_NOT_SUPPORTED, (0,))
            except BaseException as error:
                fail(error)

        self.engine.hook(uc.UC_HOOK_INTR, ON_INTERRUPT(on_interrupt))

    def _exception(self, number: int) -> None:
        # The emulator has gone on by the length of an ECALL, whatever the instruction was.
        self.pc -= 4
        name = _CAUSES.get(number, f"exception {number}")
        raise self.stopped(f"The guest raised {name}, which this backend does not deliver")
