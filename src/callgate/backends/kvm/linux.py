# SPDX-License-Identifier: MIT
"""Loading Linux as its 64-bit boot protocol wants it (Documentation/arch/x86/boot.rst).

00_7000   boot_params: the kernel's own setup header, memory map, where the initramfs is
02_0000   command line
0E_0000   ACPI tables
10_0000   where RAM goes on; the kernel is put where it prefers to be, its initramfs at the end
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from callgate.backends.base import Linux
from callgate.backends.board import Board
from callgate.backends.kvm import acpi
from callgate.errors import LoadError
from callgate.gate.abi import PAGE
from callgate.memory import GuestMemory

BOOT_PARAMS = 0x7000
COMMAND_LINE = 0x2_0000
_LOW_END = 0x9_FC00
"""Where the PC's BIOS keeps its own data behind usable memory."""
_HIGH = 0x10_0000
_SECTOR = 512
_ENTRY_64 = 0x200
"""Of the 64-bit entry point, from where the kernel is loaded."""

_SETUP = 0x1F1
"""Where the setup header begins, both in the image and in boot_params."""
_SETUP_SECTS, _BOOT_FLAG, _JUMP, _MAGIC, _VERSION = 0x1F1, 0x1FE, 0x201, 0x202, 0x206
_LOADER, _RAMDISK, _RAMDISK_SIZE, _CMD_LINE = 0x210, 0x218, 0x21C, 0x228
_INITRD_MAX, _ALIGNMENT, _RELOCATABLE, _XLOADFLAGS = 0x22C, 0x230, 0x234, 0x236
_CMDLINE_SIZE, _PREFERRED, _INIT_SIZE = 0x238, 0x258, 0x260
_ACPI_RSDP, _E820_ENTRIES, _E820_TABLE = 0x70, 0x1E8, 0x2D0
_OLDEST = 0x020C
"""Boot protocol 2.12 (Linux 3.8): the first with a 64-bit entry point."""
_KERNEL_64 = 1
_UNREGISTERED_LOADER = 0xFF
_USABLE, _RESERVED, _ACPI = 1, 2, 3


@dataclass(frozen=True)
class Entry:
    """Where the processor begins, in 64-bit mode, and what RSI holds."""

    rip: int
    rsi: int


def load_linux(memory: GuestMemory, board: Board, cpus: int, linux: Linux) -> Entry:
    """Put kernel, initramfs, command line and tables into the RAM that begins at 0.

    Raises LoadError, which says what must hold, for what is no such kernel or does not fit.
    """
    image, initrd = linux.image, linux.initrd
    ram = memory.slots[0].end

    def field(offset: int, width: int) -> int:
        return int.from_bytes(image[offset : offset + width], "little")

    if (
        len(image) < _E820_TABLE
        or field(_BOOT_FLAG, 2) != 0xAA55
        or image[_MAGIC:_VERSION] != b"HdrS"
    ):
        raise LoadError("The kernel must be a bzImage (arch/x86/boot/bzImage, or a vmlinuz)")
    version = field(_VERSION, 2)
    if version < _OLDEST or not field(_XLOADFLAGS, 2) & _KERNEL_64:
        raise LoadError(
            "The kernel must have a 64-bit entry point (boot protocol 2.12), not protocol "
            f"{version >> 8}.{version & 0xFF}"
        )
    code = image[((field(_SETUP_SECTS, 1) or 4) + 1) * _SECTOR :]
    at = field(_PREFERRED, 8)
    need = max(field(_INIT_SIZE, 4), len(code))
    initrd_at = (min(ram, field(_INITRD_MAX, 4) + 1) - len(initrd)) // PAGE * PAGE
    if at + need > (initrd_at if initrd else ram):
        raise LoadError(
            f"The kernel needs {need >> 20} MiB at {at >> 20} MiB and the initramfs "
            f"{len(initrd) >> 20} MiB behind it, and the guest has {ram >> 20} MiB of memory"
        )
    text = linux.line.encode()
    if len(text) > field(_CMDLINE_SIZE, 4):
        raise LoadError(
            f"The kernel's command line must have {field(_CMDLINE_SIZE, 4)} bytes at most, not "
            f"{len(text)}"
        )
    params = bytearray(PAGE)
    end = _MAGIC + field(_JUMP, 1)
    params[_SETUP:end] = image[_SETUP:end]
    params[_LOADER] = _UNREGISTERED_LOADER
    struct.pack_into("<II", params, _RAMDISK, initrd_at if initrd else 0, len(initrd))
    struct.pack_into("<I", params, _CMD_LINE, COMMAND_LINE)
    struct.pack_into("<Q", params, _ACPI_RSDP, acpi.BASE)
    regions = [
        (0, _LOW_END, _USABLE),
        (_LOW_END, 0xA_0000, _RESERVED),
        (acpi.BASE, acpi.END, _ACPI),
        (_HIGH, ram, _USABLE),
        (board.ecam.base, board.ecam.end, _RESERVED),
    ]
    params[_E820_ENTRIES] = len(regions)
    for number, (start, stop, kind) in enumerate(regions):
        struct.pack_into("<QQI", params, _E820_TABLE + 20 * number, start, stop - start, kind)
    memory.write(BOOT_PARAMS, bytes(params))
    memory.write(COMMAND_LINE, text + b"\0")
    memory.write(acpi.BASE, acpi.tables(board, cpus, 1 << 32))
    memory.write(at, code)
    if initrd:
        memory.write(initrd_at, initrd)
    return Entry(at + _ENTRY_64, BOOT_PARAMS)
