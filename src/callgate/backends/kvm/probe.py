# SPDX-License-Identifier: MIT
"""What this host's KVM offers, asked and never assumed, and which transports follow."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from callgate.linux import kvm
from callgate.linux.kvm import (
    KVM_API_VERSION,
    KVM_CHECK_EXTENSION,
    KVM_GET_API_VERSION,
    KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL,
)

DEVICE = Path("/dev/kvm")
NEEDED = {
    "KVM_CAP_USER_MEMORY": "guest memory",
    "KVM_CAP_IRQCHIP": "the in-kernel interrupt chip",
    "KVM_CAP_SIGNAL_MSI": "interrupt messages",
    "KVM_CAP_IRQ_ROUTING": "interrupt routes",
    "KVM_CAP_IMMEDIATE_EXIT": "stopping a vCPU at once",
    "KVM_CAP_EXT_CPUID": "CPUID",
    "KVM_CAP_MP_STATE": "several vCPUs",
    "KVM_CAP_NR_VCPUS": "vCPUs",
}
"""Without these there is no backend `kvm`."""
USED = {
    "KVM_CAP_SYNC_REGS": "registers in the run page: hypercalls without further ioctls",
    "KVM_CAP_XEN_HVM": "hypercalls that come out to user space",
    "KVM_CAP_IRQFD": "interrupts by eventfd",
    "KVM_CAP_IOEVENTFD": "one-way doorbells by eventfd",
    "KVM_CAP_COALESCED_MMIO": "write-combined regions",
    "KVM_CAP_READONLY_MEM": "ROM",
    "KVM_CAP_TSC_DEADLINE_TIMER": "the local APIC's TSC deadline timer",
    "KVM_CAP_XSAVE2": "the whole extended state in snapshots",
}
"""What is used where it is there."""


@dataclass(frozen=True)
class Host:
    """What was found out."""

    capabilities: dict[str, int]
    """Of NEEDED and USED: what KVM_CHECK_EXTENSION says, 0 where it is missing."""
    vendor: str
    """The processor's maker, as CPUID gives it."""
    virtualizes: bool
    """Whether the processor itself does: where KVM is emulated in software it does not."""

    @property
    def amd(self) -> bool:
        """Whether guests call by VMMCALL."""
        return self.vendor in ("AuthenticAMD", "HygonGenuine")

    @property
    def no_hypercall(self) -> str | None:
        """Why there are no hypercalls; None when there are."""
        if not self.capabilities["KVM_CAP_XEN_HVM"] & KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL:
            return (
                "this kernel's KVM answers every hypercall itself: it takes one with "
                "CONFIG_KVM_XEN, whose KVM_CAP_XEN_HVM says INTERCEPT_HCALL"
            )
        if not self.capabilities["KVM_CAP_SYNC_REGS"] & kvm.KVM_SYNC_X86_REGS:
            return "this kernel's KVM shares no registers with user space (KVM_CAP_SYNC_REGS)"
        if not self.virtualizes:
            return "KVM itself is emulated in software here, and a guest's vmcall would hang"
        return None


def lacks() -> str | None:
    """What this host lacks for the backend, with the remedy; None when it lacks nothing."""
    if os.uname().machine != "x86_64":
        return f"the host must be an x86-64 one, not {os.uname().machine}"
    try:
        with opened() as device:
            version = KVM_GET_API_VERSION(device)
            if version != KVM_API_VERSION:
                return f"KVM's API must have version {KVM_API_VERSION}, not {version}"
            found = _capabilities(device)
    except OSError as error:
        return _why_not(error)
    missing = [f"{name} ({use})" for name, use in NEEDED.items() if not found[name]]
    return f"this kernel's KVM lacks {', '.join(missing)}" if missing else None


def _why_not(error: OSError) -> str:
    reason = f"{DEVICE}: {error.strerror}"
    match error.errno:
        case errno.ENOENT:
            return f"{reason}: load the module kvm_intel or kvm_amd, on a host that virtualizes"
        case errno.EACCES | errno.EPERM:
            return f"{reason}: add yourself to the group that owns it (usually kvm)"
        case errno.ENODEV | errno.ENXIO:
            return f"{reason}: the processor, or its firmware, has virtualization off"
    return reason


@contextmanager
def opened() -> Iterator[int]:
    """/dev/kvm, open. Raises OSError."""
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield device
    finally:
        os.close(device)


@cache
def host() -> Host:
    """What this host offers. Raises OSError where there is no KVM."""
    with opened() as device:
        found = _capabilities(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = {key.strip(): value for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    return Host(found, facts.get("vendor_id", "").strip(), bool({"vmx", "svm"} & set(flags)))


def _capabilities(device: int) -> dict[str, int]:
    return {name: KVM_CHECK_EXTENSION(device, getattr(kvm, name)) for name in (*NEEDED, *USED)}
