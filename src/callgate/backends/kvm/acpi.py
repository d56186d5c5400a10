# SPDX-License-Identifier: MIT
"""The ACPI tables of the machine: how Linux finds processors, interrupts, PCI and the way out.

    RSDP -> XSDT -> FADT -> DSDT      hardware-reduced ACPI (ACPI 6.5, 4.1): no SCI, no PM timer;
                 -> MADT              sleep and reset are registers in I/O space
                 -> MCFG              ECAM

They lie in the PC's BIOS area, E0000h to FFFFFh, where software also looks without being told.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from callgate.backends.board import (
    CONSOLE_IRQ,
    RESET,
    RESET_VALUE,
    SLEEP_CONTROL,
    SLEEP_STATUS,
    SOFT_OFF,
    Board,
    gsi_of_slot,
)
from callgate.backends.kvm import aml

BASE, END = 0xE_0000, 0x10_0000
IOAPIC = 0xFEC0_0000
LOCAL_APIC = 0xFEE0_0000
_OEM = b"CALLGT", b"CALLGATE", b"CGAT"
_HARDWARE_REDUCED, _RESET_SUPPORTED, _WBINVD = 1 << 20, 1 << 10, 1 << 0
_NO_VGA, _NO_CMOS_RTC = 1 << 2, 1 << 5
"""What of a PC is not there (IAPC_BOOT_ARCH, table 5.11); nor is a keyboard controller."""
_SYSTEM_IO = 1
_PCI_SLOTS = 32


def tables(board: Board, cpus: int, memory_end: int) -> bytes:
    """All tables, to be put at BASE: the RSDP first. `memory_end` is where RAM ends at the latest,
    behind which 64-bit BARs may be put."""
    rsdp_size = 36
    at = BASE + rsdp_size + -rsdp_size % 16
    placed = bytearray(at - BASE)

    def place(table: bytes) -> int:
        nonlocal placed
        address = BASE + len(placed)
        placed += table + bytes(-len(table) % 16)
        return address

    dsdt = place(_table(b"DSDT", 2, _dsdt(board, memory_end)))
    listed = [
        place(_table(b"FACP", 6, _fadt(dsdt))),
        place(_table(b"APIC", 5, _madt(cpus))),
        place(_table(b"MCFG", 1, _mcfg(board))),
    ]
    xsdt = place(_table(b"XSDT", 1, struct.pack(f"<{len(listed)}Q", *listed)))
    placed[:rsdp_size] = _rsdp(xsdt)
    assert len(placed) <= END - BASE
    return bytes(placed)


def _checksum(data: bytes | bytearray) -> int:
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A system description table with its header (5.2.6)."""
    maker, model, creator = _OEM
    length = 36 + len(body)
    head = struct.pack(
        "<4sIBB6s8sI4sI", signature, length, revision, 0, maker, model, 1, creator, 1
    )
    table = bytearray(head + body)
    table[9] = _checksum(table)
    return bytes(table)


def _rsdp(xsdt: int) -> bytes:
    """The root pointer (5.2.5.3)."""
    first = bytearray(struct.pack("<8sB6sBI", b"RSD PTR ", 0, _OEM[0], 2, 0))
    first[8] = _checksum(first)
    whole = first + struct.pack("<IQB3x", 36, xsdt, 0)
    whole[32] = _checksum(whole)
    return bytes(whole)


def _register(port: int) -> bytes:
    """A register of one byte in I/O space: a generic address structure (5.2.3.2)."""
    return struct.pack("<BBBBQ", _SYSTEM_IO, 8, 0, 1, port)


def _fadt(dsdt: int) -> bytes:
    """The fixed description table (5.2.9), body from byte 36 on."""
    body = bytearray(276 - 36)

    def put(offset: int, data: bytes) -> None:
        body[offset - 36 : offset - 36 + len(data)] = data

    put(109, struct.pack("<H", _NO_VGA | _NO_CMOS_RTC))
    put(112, struct.pack("<I", _HARDWARE_REDUCED | _RESET_SUPPORTED | _WBINVD))
    put(116, _register(RESET))
    put(128, bytes((RESET_VALUE,)))
    put(131, bytes((5,)))  # minor version: 6.5
    put(140, struct.pack("<Q", dsdt))
    put(244, _register(SLEEP_CONTROL))
    put(256, _register(SLEEP_STATUS))
    put(268, b"CALLGATE")
    return bytes(body)


def _madt(cpus: int) -> bytes:
    """Processors and interrupt controllers (5.2.12): local APICs, one I/O APIC for all GSIs."""
    body = struct.pack("<II", LOCAL_APIC, 0)
    for cpu in range(cpus):
        body += struct.pack("<BBBBI", 0, 8, cpu, cpu, 1)
    body += struct.pack("<BBBBII", 1, 12, cpus, 0, IOAPIC, 0)
    return body


def _mcfg(board: Board) -> bytes:
    """Where configuration space is in memory (PCI Firmware Specification 3.3, 4.1.2)."""
    buses = board.ecam.size >> 20
    return bytes(8) + struct.pack("<QHBB4x", board.ecam.base, 0, 0, buses - 1)


def _dsdt(board: Board, memory_end: int) -> bytes:
    """Host bridge, console, and what soft-off is called."""
    routes: Sequence[bytes] = [
        aml.package(
            aml.integer(slot << 16 | 0xFFFF), aml.ZERO, aml.ZERO, aml.integer(gsi_of_slot(slot))
        )
        for slot in range(1, _PCI_SLOTS)
    ]
    windows = [
        aml.bus_numbers(0, 0),
        aml.ports(0xCF8, 8),
        aml.port_window(board.ports.base, board.ports.end - 1),
        aml.memory_window(board.bars.base, board.bars.end - 1),
        aml.high_memory_window(memory_end, memory_end + (1 << 36) - 1),
    ]
    return aml.scope(
        "\\_SB",
        aml.device(
            "PCI0",
            aml.name("_HID", aml.eisa_id("PNP0A08")),
            aml.name("_CID", aml.eisa_id("PNP0A03")),
            aml.name("_SEG", aml.ZERO),
            aml.name("_BBN", aml.ZERO),
            aml.name("_UID", aml.ZERO),
            aml.name("_CRS", aml.resources(*windows)),
            aml.name("_PRT", aml.package(*routes)),
        ),
        aml.device(
            "ECAM",
            aml.name("_HID", aml.eisa_id("PNP0C02")),
            aml.name("_UID", aml.ZERO),
            aml.name("_CRS", aml.resources(aml.fixed_memory(board.ecam.base, board.ecam.size))),
        ),
        aml.device(
            "COM1",
            aml.name("_HID", aml.eisa_id("PNP0501")),
            aml.name("_UID", aml.ONE),
            aml.name("_CRS", aml.resources(aml.ports(board.console, 8), aml.irq(CONSOLE_IRQ))),
        ),
    ) + aml.name("\\_S5", aml.package(aml.integer(SOFT_OFF), aml.ZERO, aml.ZERO, aml.ZERO))
