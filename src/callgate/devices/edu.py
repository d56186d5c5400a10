# SPDX-License-Identifier: MIT
"""Edu: QEMU's educational device (its docs/specs/edu.rst), on which one learns to write drivers.

    BAR 0     0x00  identification       0x20  status              0x80  DMA source
              0x04  liveness             0x24  interrupt status    0x88  DMA destination
              0x08  factorial            0x60  interrupt raise     0x90  DMA count
                                         0x64  interrupt ack       0x98  DMA command
    inside    0x40000 to 0x40fff: the buffer, which DMA reaches and the guest does not

Where the specification is silent the model does what QEMU 11.1 was seen to do, and a comment says
so. Two things differ: a reset of the machine resets the device, while QEMU's keeps all that it
holds; an access of 1 or 2 bytes reads all ones, while QEMU's leaves the answer to the machine (q35:
zero).
"""

from __future__ import annotations

import math

from callgate import Bar, Device, DmaError, Field, Interrupt, Register
from callgate.gate.abi import PAGE

BUFFER = 0x40000
"""Where the device's own bus has the buffer."""
BUFFER_SIZE = 4096
COMPUTED = 0x001
"""Interrupt status: a factorial was computed."""
TRANSFERRED = 0x100
"""Interrupt status: a DMA has ended."""

_DMA = 0x80  # from here on registers have 64 bits
_ONES = 0xFFFF_FFFF


class Edu(Device):
    """QEMU's educational device.

    An access begins at a register and has 4 bytes, or 8 where the register has 64 bits; any other
    reads all ones or is dropped, and counts as a fault.
    """

    id = 0x1234, 0x11E8
    subsystem = 0x1AF4, 0x1100
    class_code = 0x00FF00
    revision = 0x10
    msi, msix, msi_masking = True, False, False

    dma_mask: int = (1 << 28) - 1
    """The address bits that DMA has; others that the guest sets are cleared. The boards of aarch64
    and riscv64 have all their RAM above these 28: there, a driver needs a wider mask."""
    dma_time: float = 0.1
    """Seconds that a DMA takes."""
    multiplication_time: float = 2e-9
    """Seconds that each of the n multiplications of a factorial takes."""

    registers = Bar(0, 1 << 20)

    identification = Register(0x00, access="r", reset=0x0100_00ED, doc="0xRRrr00ed: version RR.rr")
    liveness = Register(0x04, doc="reads as the inverse of what was written")
    factorial = Register(0x08, doc="n when written; n! modulo 2**32 once computing is 0")

    status = Register(0x20, access="r")
    computing = Field(status, 0, doc="factorial is being computed, and takes no other n")
    computed_interrupt = Field(status, 7, access="rw", doc="raise 0x001 when it is computed")

    interrupt_status = Register(0x24, access="r", doc="what was raised and not acknowledged")
    interrupt_raise = Register(0x60, access="w", doc="set bits of interrupt_status")
    interrupt_ack = Register(0x64, access="w", doc="clear bits of interrupt_status")

    dma_source = Register(0x80, width=64, doc="address in RAM, or in the buffer")
    dma_destination = Register(0x88, width=64, doc="address in the buffer, or in RAM")
    dma_count = Register(0x90, width=64, doc="bytes")
    dma_command = Register(0x98, width=64)
    dma_start = Field(dma_command, 0, doc="start; 1 until done: then DMA registers take nothing")
    dma_to_ram = Field(dma_command, 1, doc="0: RAM to buffer; 1: buffer to RAM")
    dma_interrupt = Field(dma_command, 2, doc="raise 0x100 when done")

    intr = Interrupt("interrupt_status is not zero")

    def __init__(self) -> None:
        self.buffer = bytearray(BUFFER_SIZE)

    def reset(self) -> None:
        """Clear the buffer."""
        self.buffer[:] = bytes(BUFFER_SIZE)

    # --- which accesses there are ----------------------------------------------------------------

    def register_read(self, bar: int, offset: int, size: int) -> int:
        """See `Device`. All ones where no register is, or one that is only to be written."""
        register = self._at(bar, offset, size)
        if register is None or register.access == "w":
            self.faults.note("bad read", f"a read of {size} bytes at {offset:#x} has no register")
            return (1 << 8 * size) - 1
        return super().register_read(bar, offset, size)

    def register_write(self, bar: int, offset: int, size: int, value: int) -> None:
        """See `Device`. 4 bytes that are written to 64 bits clear the other 4, as in QEMU."""
        with self.lock:
            register = self._at(bar, offset, size)
            if register is None:
                self.faults.note(
                    "bad write", f"a write of {size} bytes at {offset:#x} has no register"
                )
            elif self._uses(register):
                self.faults.note("busy", f"{register.name} was written while the device uses it")
            elif register.name != "dma_command" or value & 1:  # Without start it is forgotten.
                super().register_write(bar, offset, register.size, value)

    def _at(self, bar: int, offset: int, size: int) -> Register | None:
        """The register that an access is for."""
        register = self.spec.bytes_of.get((bar, offset))
        if register is None or register.offset != offset or size not in (4, register.size):
            return None
        return register

    def _uses(self, register: Register) -> bool:
        """Whether the device is at work with a register, so that it stays as it is."""
        if register.offset >= _DMA:
            return bool(self.dma_start)
        return register.name == "factorial" and bool(self.computing)

    # --- factorial -------------------------------------------------------------------------------

    @liveness.on_write
    def _invert(self, value: int) -> None:
        self.liveness = value ^ _ONES

    @factorial.on_write
    def _compute(self, value: int) -> None:
        self.computing = 1
        self.after(value * self.multiplication_time, self._computed)

    def _computed(self) -> None:
        n = self.factorial
        self.factorial = math.factorial(n) & _ONES if n < 34 else 0  # 2**32 divides 34!
        self.computing = 0
        if self.computed_interrupt:
            self._raise(COMPUTED)

    # --- interrupts ------------------------------------------------------------------------------

    @interrupt_raise.on_write
    def _raise(self, value: int) -> None:
        self.interrupt_status |= value
        # Another message for each write, whether or not the last one was acknowledged, as in QEMU.
        if self.interrupt_status:
            self.intr.trigger()

    @interrupt_ack.on_write
    def _acknowledge(self, value: int) -> None:
        self.interrupt_status &= ~value
        if not self.interrupt_status:
            self.intr.deassert()

    # --- DMA -------------------------------------------------------------------------------------

    @dma_command.on_write
    def _start(self, value: int) -> None:
        self.after(self.dma_time, self._transferred)

    def _transferred(self) -> None:
        self._transfer()
        self.dma_start = 0
        if self.dma_interrupt:
            self._raise(TRANSFERRED)

    def _transfer(self) -> None:
        """Move the bytes, all at the end of the transfer's time. One that is not possible ends like
        any other, as in QEMU."""
        source, destination, count = self.dma_source, self.dma_destination, self.dma_count
        inside, outside = (source, destination) if self.dma_to_ram else (destination, source)
        begin = inside - BUFFER
        end = begin + count
        if begin < 0 or end > BUFFER_SIZE:
            self.faults.note(
                "dma",
                f"{count} bytes at {inside:#x} are not all in the buffer, {BUFFER:#x} to "
                f"{BUFFER + BUFFER_SIZE - 1:#x}",
            )
            return
        outside &= self.dma_mask
        while begin < end:
            length = min(end - begin, PAGE - outside % PAGE)
            self._burst(begin, outside, length)
            begin += length
            outside += length

    def _burst(self, begin: int, outside: int, length: int) -> None:
        """One access to memory, which must not cross a page (PCI Express 2.0, 2.2.7). Refused, it
        leaves RAM as it is, or the bytes in the buffer zero, as in QEMU."""
        here = slice(begin, begin + length)
        try:
            if self.dma_to_ram:
                self.memory.write(outside, self.buffer[here])
            else:
                self.buffer[here] = bytes(length)
                self.buffer[here] = self.memory.read(outside, length)
        except DmaError as error:
            self.faults.note_dma(f"{length} bytes at {outside:#x}", error)
