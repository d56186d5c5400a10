# SPDX-License-Identifier: MIT
"""A processor as a guest's first instruction finds it: mode, segments, CPUID.

    x86_64   long mode, the first 64 GiB mapped one to one by tables that lie where no RAM is
    i386     protected mode, flat segments, paging off

Segments are what both PVH and Linux' 64-bit boot protocol ask for: code at selector 10h, data at
18h, 0 to the end.
"""

from __future__ import annotations

import struct
from array import array
from functools import cache

from callgate.backends.platform import Platform
from callgate.gate.abi import PAGE
from callgate.linux.kvm import (
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
    KVM_GET_SREGS,
    KVM_GET_SUPPORTED_CPUID,
    KVM_SET_CPUID2,
    KVM_SET_MSRS,
    KVM_SET_REGS,
    KVM_SET_SREGS,
    kvm_cpuid2,
    kvm_cpuid_entry2,
    kvm_msrs,
    kvm_regs,
    kvm_segment,
    kvm_sregs,
)
from callgate.linux.layout import flexible

TABLES = 0xFED0_0000
"""Where page tables and GDT lie: where no RAM is, and no device is put either."""
_DIRECTORIES = 64
TABLES_SIZE = (3 + _DIRECTORIES) * PAGE
_PRESENT, _WRITABLE, _ACCESSED, _DIRTY, _LARGE = 1, 2, 1 << 5, 1 << 6, 1 << 7
_CODE, _DATA = 0x10, 0x18
_GDT = struct.pack("<4Q", 0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)
_CR0_PE, _CR0_ET, _CR0_NE, _CR0_PG = 1 << 0, 1 << 4, 1 << 5, 1 << 31
_CR4_PAE = 1 << 5
_EFER_LME, _EFER_LMA = 1 << 8, 1 << 10
_RFLAGS = 2

_ENTRIES = 256
_HYPERVISOR = 0x4000_0000
_KVM_FEATURES = 0x4000_0001
_BY_HYPERCALL = 1 << 7 | 1 << 11 | 1 << 13 | 1 << 16
"""KVM's PV_UNHALT, PV_SEND_IPI, PV_SCHED_YIELD, MAP_GPA_RANGE: calls of its own, which it does not
see where calls come out."""
_HYPERVISOR_BIT, _TSC_DEADLINE = 1 << 31, 1 << 24
_TOPOLOGY = (0xB, 0x1F)
_MISC_ENABLE, _FAST_STRINGS = 0x1A0, 1
_MTRR_DEF_TYPE, _MTRR_ON_WRITE_BACK = 0x2FF, 1 << 11 | 6


@cache
def tables() -> bytes:
    """What lies at TABLES: page map, pointers, directories of 2 MiB pages, then the GDT.

    Accessed and dirty bits are set, so that the processor has nothing to write there.
    """
    flags = _PRESENT | _WRITABLE | _ACCESSED
    first = flags | _DIRTY | _LARGE
    directories = range(TABLES + 2 * PAGE + flags, TABLES + (2 + _DIRECTORIES) * PAGE, PAGE)
    pages = array("Q", [(TABLES + PAGE) | flags, *[0] * 511])
    pages.extend([*directories, *[0] * (512 - _DIRECTORIES)])
    pages.extend(range(first, first + (512 * _DIRECTORIES << 21), 1 << 21))
    return pages.tobytes() + _GDT.ljust(PAGE, b"\0")


def enter(vcpu: int, bits: int, rip: int, rsi: int = 0) -> None:
    """Let the vCPU be about to execute at `rip`, with interrupts off."""
    sregs = kvm_sregs()
    KVM_GET_SREGS(vcpu, sregs)
    long_mode = bits == 64
    code = kvm_segment(limit=0xFFFF_FFFF, selector=_CODE, type=11, present=1, s=1, g=1)
    code.l, code.db = int(long_mode), int(not long_mode)
    data = kvm_segment(limit=0xFFFF_FFFF, selector=_DATA, type=3, present=1, s=1, g=1, db=1)
    sregs.cs = code
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data
    sregs.gdt.base, sregs.gdt.limit = TABLES + TABLES_SIZE - PAGE, len(_GDT) - 1
    sregs.idt.base, sregs.idt.limit = 0, 0
    sregs.cr0 = _CR0_PE | _CR0_ET | _CR0_NE
    sregs.cr3 = sregs.cr4 = sregs.efer = 0
    if long_mode:
        sregs.cr0 |= _CR0_PG
        sregs.cr3, sregs.cr4, sregs.efer = TABLES, _CR4_PAE, _EFER_LME | _EFER_LMA
    KVM_SET_SREGS(vcpu, sregs)
    KVM_SET_REGS(vcpu, kvm_regs(rip=rip, rsi=rsi, rflags=_RFLAGS))


def set_msrs(vcpu: int) -> None:
    """Let memory be cached, as firmware would. A KVM that has no such registers needs none."""
    for index, value in ((_MISC_ENABLE, _FAST_STRINGS), (_MTRR_DEF_TYPE, _MTRR_ON_WRITE_BACK)):
        msrs = flexible(kvm_msrs, 1)(nmsrs=1)
        msrs.entries[0].index, msrs.entries[0].data = index, value
        KVM_SET_MSRS(vcpu, msrs)


def supported(device: int) -> list[kvm_cpuid_entry2]:
    """What KVM can show a guest, from /dev/kvm."""
    found = flexible(kvm_cpuid2, _ENTRIES)(nent=_ENTRIES)
    KVM_GET_SUPPORTED_CPUID(device, found)
    return list(found.entries[: found.nent])


def set_cpuid(
    vcpu: int, leaves: list[kvm_cpuid_entry2], number: int, cpus: int, platform: Platform
) -> None:
    """Let the guest see these leaves, as processor `number` of `cpus`, and the platform's name."""
    hidden = not platform.signature
    kept = [each for each in leaves if not (hidden and each.function >> 16 == _HYPERVISOR >> 16)]
    cpuid = flexible(kvm_cpuid2, len(kept))(nent=len(kept))
    for at, leaf in enumerate(kept):
        cpuid.entries[at] = leaf
        entry = cpuid.entries[at]
        if entry.function == 1:
            entry.ebx = number << 24 | cpus << 16 | entry.ebx & 0xFFFF
            entry.ecx |= _TSC_DEADLINE
            entry.ecx = entry.ecx & ~_HYPERVISOR_BIT if hidden else entry.ecx | _HYPERVISOR_BIT
        elif entry.function in _TOPOLOGY:
            # One processor a core: no bits for threads, enough for the cores.
            core = entry.index == 1
            entry.eax = (cpus - 1).bit_length() if core else 0
            entry.ebx = (cpus if core else 1) if entry.index < 2 else 0
            entry.ecx = entry.index | (entry.index + 1) << 8 if entry.index < 2 else entry.index
            entry.edx = number
            entry.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX
        elif entry.function == _KVM_FEATURES:
            entry.eax &= ~_BY_HYPERCALL
        elif entry.function == _HYPERVISOR:
            entry.ebx, entry.ecx, entry.edx = struct.unpack("<III", platform.signature)
    KVM_SET_CPUID2(vcpu, cpuid)
