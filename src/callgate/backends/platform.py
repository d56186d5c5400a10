# SPDX-License-Identifier: MIT
"""Platforms: whom the guest takes for its hypervisor, and so what it can call by.

The platform decides the trap instruction that the devices' capabilities name, and on x86 what CPUID
says of a hypervisor. It is apart from the backend: an emulator can be any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from callgate.errors import BackendError
from callgate.gate.abi import Instruction, Transport
from callgate.gate.gate import Offer


@dataclass(frozen=True)
class Platform:
    """Who traps the guest's hypercalls, and by which sign the guest knows."""

    name: str
    architectures: tuple[str, ...]
    offer: Offer
    signature: bytes = b""
    """The 12 bytes of CPUID leaf 0x40000000 on x86; empty: CPUID denies a hypervisor."""


_PLAIN = Transport.PIO | Transport.MMIO | Transport.POLLED
_ALL = _PLAIN | Transport.HYPERCALL
_PC = ("x86_64", "i386")

PLATFORMS = {
    platform.name: platform
    for platform in (
        Platform("kvm-intel", _PC, Offer(_ALL, Instruction.VMCALL), b"KVMKVMKVM\0\0\0"),
        Platform("kvm-amd", _PC, Offer(_ALL, Instruction.VMMCALL), b"KVMKVMKVM\0\0\0"),
        # lguest had no CPUID leaf, since its guests were built for it; here it gives its name.
        Platform("lguest", ("i386",), Offer(_ALL, Instruction.INT_1F), b"lguestlguest"),
        Platform("smccc", ("aarch64",), Offer(_ALL, Instruction.HVC, 0xC600_CA11)),
        Platform("sbi", ("riscv64",), Offer(_ALL, Instruction.ECALL, 0x0800_CA11)),
        # A KVM that answers every hypercall itself.
        Platform("kvm", _PC, Offer(_PLAIN), b"KVMKVMKVM\0\0\0"),
        Platform("native", (*_PC, "aarch64", "riscv64"), Offer(_PLAIN)),
    )
}
"""By name. The first one that knows an architecture is that architecture's default."""


def platforms(arch: str) -> list[str]:
    """The names of those that know an architecture, its default first."""
    return [name for name, each in PLATFORMS.items() if arch in each.architectures]


def platform(name: str | None, arch: str, offered: Sequence[str] | None = None) -> Platform:
    """Return the platform `name`, or the first of `offered` (left out: of all that know `arch`).

    Raises `BackendError` when it is none of these.
    """
    names = platforms(arch) if offered is None else offered
    if name is not None and name not in names:
        raise BackendError(
            f"The platform of an {arch} machine must be one of {', '.join(names)}, not {name!r}"
        )
    return PLATFORMS[name or names[0]]
