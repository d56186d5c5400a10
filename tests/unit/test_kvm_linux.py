# SPDX-License-Identifier: MIT
"""Linux' 64-bit boot protocol, from the loader's side: what lies where, and what is refused."""

import struct
from typing import Any

import pytest

from callgate.backends.base import Linux
from callgate.backends.board import BOARDS
from callgate.backends.kvm import acpi
from callgate.backends.kvm.linux import BOOT_PARAMS, COMMAND_LINE, load_linux
from callgate.errors import BackendError, LoadError
from callgate.machine import Machine
from callgate.memory import GuestMemory

PC = BOARDS["x86_64"]
MIB = 1 << 20


def bzimage(
    code: bytes = b"kernel" * 100,
    *,
    sectors: int = 1,
    version: int = 0x20F,
    flags: int = 1,
    at: int = 16 * MIB,
    need: int = MIB,
    initrd_max: int = 0x7FFF_FFFF,
    line: int = 255,
) -> bytes:
    """An image whose setup header says this (Documentation/arch/x86/boot.rst)."""
    head = bytearray(512 * (sectors + 1))
    head[0x1F1] = sectors
    struct.pack_into("<H", head, 0x1FE, 0xAA55)
    head[0x200:0x202] = b"\xeb\x66"
    struct.pack_into("<4sH", head, 0x202, b"HdrS", version)
    struct.pack_into("<I", head, 0x22C, initrd_max)
    struct.pack_into("<H", head, 0x236, flags)
    struct.pack_into("<I", head, 0x238, line)
    struct.pack_into("<QI", head, 0x258, at, need)
    return bytes(head) + code


def load(ram: int = 64 * MIB, **options: Any) -> tuple[GuestMemory, Any]:
    memory = GuestMemory()
    memory.add(0, bytearray(ram))
    return memory, load_linux(memory, PC, 2, Linux(**{"image": bzimage(), **options}))


@pytest.mark.parametrize("sectors", [1, 31])
def test_everything_is_where_the_protocol_says(sectors: int) -> None:
    initrd = b"070701" * 1000
    memory, entry = load(image=bzimage(sectors=sectors), initrd=initrd, line="console=ttyS0 quiet")
    assert (entry.rip, entry.rsi) == (16 * MIB + 0x200, BOOT_PARAMS)
    assert memory.read(16 * MIB, 12) == b"kernelkernel"
    params = memory.read(BOOT_PARAMS, 4096)
    assert params[0x202:0x206] == b"HdrS"
    assert params[0x210] == 0xFF
    at, size = struct.unpack_from("<II", params, 0x218)
    assert (at % 4096, size, at + size <= 64 * MIB) == (0, len(initrd), True)
    assert memory.read(at, size) == initrd
    assert struct.unpack_from("<I", params, 0x228) == (COMMAND_LINE,)
    assert memory.read(COMMAND_LINE, 20) == b"console=ttyS0 quiet\0"
    assert struct.unpack_from("<Q", params, 0x70) == (acpi.BASE,)
    assert memory.read(acpi.BASE, 8) == b"RSD PTR "


def test_the_memory_map_holds_all_of_ram_and_no_tables() -> None:
    memory, _ = load(ram=128 * MIB)
    params = memory.read(BOOT_PARAMS, 4096)
    found = [struct.unpack_from("<QQI", params, 0x2D0 + 20 * n) for n in range(params[0x1E8])]
    usable = [(start, start + size) for start, size, kind in found if kind == 1]
    assert usable == [(0, 0x9FC00), (MIB, 128 * MIB)]
    for start, size, kind in found:
        if kind != 1:
            assert all(start >= end or start + size <= begin for begin, end in usable)
    assert (PC.ecam.base, PC.ecam.size, 2) in found


def test_without_an_initramfs() -> None:
    memory, _ = load()
    assert struct.unpack_from("<II", memory.read(BOOT_PARAMS, 4096), 0x218) == (0, 0)


def test_the_initramfs_stays_below_what_the_kernel_reaches() -> None:
    memory, _ = load(image=bzimage(initrd_max=32 * MIB - 1), initrd=bytes(5000))
    at, size = struct.unpack_from("<II", memory.read(BOOT_PARAMS, 4096), 0x218)
    assert at + size <= 32 * MIB


@pytest.mark.parametrize("image", [b"", b"\x7fELF" + bytes(5000), bytes(5000), b"text" * 2000])
def test_what_is_no_kernel(image: bytes) -> None:
    with pytest.raises(LoadError, match="must be a bzImage"):
        load(image=image)


@pytest.mark.parametrize("image", [bzimage(version=0x20B), bzimage(flags=0)])
def test_a_kernel_without_a_64_bit_entry(image: bytes) -> None:
    with pytest.raises(LoadError, match=r"64-bit entry point \(boot protocol 2.12\)"):
        load(image=image)


def test_a_kernel_or_an_initramfs_larger_than_memory() -> None:
    with pytest.raises(LoadError, match=r"needs 1 MiB at 16 MiB .* has 16 MiB of memory"):
        load(ram=16 * MIB)
    with pytest.raises(LoadError, match="the initramfs 60 MiB behind it"):
        load(initrd=bytes(60 * MIB))
    with pytest.raises(LoadError, match="the initramfs 100 MiB behind it"):
        load(initrd=bytes(100 * MIB))


def test_a_command_line_that_is_too_long() -> None:
    load(line="x" * 255)
    with pytest.raises(LoadError, match="must have 255 bytes at most, not 256"):
        load(line="x" * 256)


@pytest.mark.parametrize("name", ["loopback", "unicorn"])
def test_other_backends_say_so(name: str) -> None:
    with pytest.raises(BackendError, match=f"{name} has no board that Linux could boot on"):
        Machine(on=name, linux=Linux(bzimage()))
