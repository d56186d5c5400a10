# SPDX-License-Identifier: MIT
"""Platforms: whom the guest takes for its hypervisor, and so what it can call by.

The platform decides the trap instruction that the devices' capabilities name, and on x86 what CPUID
says of a hypervisor. It is apart from the backend: an emulator can be any of them.
"""

from __future__ import annotations

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
        Platform("native", (*_PC, "aarch64", "riscv64"), Offer(_PLAIN)),
    )
}
"""By name. The first one that knows an architecture is that architecture's default."""


def platform(name: str | None, arch: str) -> Platform:
    """Return the platform `name`, or the default of `arch`. Raises `BackendError`."""
    fitting = [each for each in PLATFORMS.values() if arch in each.architectures]
    if name is None:
        return fitting[0]
    for each in fitting:
        if each.name == name:
            return each
    names = ", ".join(each.name for each in fitting)
    raise BackendError(f"The platform of an {arch} machine must be one of {names}, not {name!r}")
