# SPDX-License-Identifier: MIT
"""The boards: what lies where on the machine around the PCI bus, one layout for each architecture.

The addresses are those of QEMU's machines `q35` and `virt` where these have them, so that one guest
program boots on both.

    x86_64, i386          aarch64                     riscv64
    0         RAM         1000_0000  BAR windows      0010_0000  exit
    B000_0000 ECAM        3EFF_0000  I/O ports        0300_0000  I/O ports
    C000_0000 BARs        3F00_0000  ECAM             1000_0000  console
    FEE0_0000 local APIC  4000_0000  RAM              3000_0000  ECAM
    I/O 3F8 console       0900_0000  console          4000_0000  BAR windows
    I/O F4  exit                                      8000_0000  RAM
    I/O CF8 config
    I/O 600 sleep, reset
"""

from __future__ import annotations

from dataclasses import dataclass

ALL_ONES = (1 << 64) - 1


@dataclass(frozen=True)
class Window:
    """A range of guest physical addresses, or of I/O ports."""

    base: int
    size: int

    @property
    def end(self) -> int:
        """First address behind the range."""
        return self.base + self.size


@dataclass(frozen=True)
class Board:
    """What lies where. Addresses are guest physical; those of `ports` are I/O ports."""

    arch: str
    elf_machine: str
    """The ELF header's e_machine, by its name in the ELF specification."""
    bits: int
    """Width of a register: 32 or 64."""
    ram: int
    console: int
    exit: int | None
    """Where a write ends the run: a port on x86, an address on riscv64, nowhere on aarch64, which
    has a semihosting call for it."""
    ecam: Window
    bars: Window
    """Where memory BARs are assigned."""
    ports: Window
    """Where I/O BARs are assigned: I/O ports."""
    port_window: Window | None
    """Where I/O port 0 and those behind it are in memory; None: the CPU has I/O instructions."""

    @property
    def is_x86(self) -> bool:
        """Whether the CPU has I/O ports and a local APIC."""
        return self.port_window is None


_PORTS = Window(0xC000, 0x4000)

BOARDS = {
    "x86_64": Board(
        arch="x86_64",
        elf_machine="EM_X86_64",
        bits=64,
        ram=0,
        console=0x3F8,
        exit=0xF4,
        ecam=Window(0xB000_0000, 0x1000_0000),
        bars=Window(0xC000_0000, 0x1000_0000),
        ports=_PORTS,
        port_window=None,
    ),
    "i386": Board(
        arch="i386",
        elf_machine="EM_386",
        bits=32,
        ram=0,
        console=0x3F8,
        exit=0xF4,
        ecam=Window(0xB000_0000, 0x1000_0000),
        bars=Window(0xC000_0000, 0x1000_0000),
        ports=_PORTS,
        port_window=None,
    ),
    "aarch64": Board(
        arch="aarch64",
        elf_machine="EM_AARCH64",
        bits=64,
        ram=0x4000_0000,
        console=0x0900_0000,
        exit=None,
        ecam=Window(0x3F00_0000, 0x0100_0000),
        bars=Window(0x1000_0000, 0x2EFF_0000),
        ports=_PORTS,
        port_window=Window(0x3EFF_0000, 0x1_0000),
    ),
    "riscv64": Board(
        arch="riscv64",
        elf_machine="EM_RISCV",
        bits=64,
        ram=0x8000_0000,
        console=0x1000_0000,
        exit=0x0010_0000,
        ecam=Window(0x3000_0000, 0x1000_0000),
        bars=Window(0x4000_0000, 0x4000_0000),
        ports=_PORTS,
        port_window=Window(0x0300_0000, 0x1_0000),
    ),
}
"""By the name of the architecture."""

CONSOLE_IRQ = 4
FIRST_GSI, GSIS = 16, 8
SLEEP_CONTROL, SLEEP_STATUS, RESET = 0x600, 0x601, 0x602
"""The PC's I/O ports to end and to begin anew, one byte each (ACPI 6.5, 4.8.3.7)."""
SOFT_OFF = 5
"""The sleep type that ends the machine."""
SLEEP_ENABLE = 1 << 5
RESET_VALUE = 1


def gsi_of_slot(slot: int) -> int:
    """The PC's interrupt line (global system interrupt) that INTA of a PCI slot leads to."""
    return FIRST_GSI + slot % GSIS
