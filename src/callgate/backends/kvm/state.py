# SPDX-License-Identifier: MIT
"""All of a stopped VM's state that KVM keeps: read as bytes by the kernel's names, and set again.

    vm      irqchip_0 irqchip_1 irqchip_2 pit2 clock
    vcpu    sregs2 xcrs xsave msrs lapic mp_state vcpu_events debugregs regs

Each is the kernel's own structure, so a state belongs to a KVM that has the same. Memory, devices
and routes are not part of it: they are the machine's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from callgate.errors import BackendError
from callgate.linux import kvm
from callgate.linux.ioctl import Ioctl
from callgate.linux.kvm import (
    KVM_CHECK_EXTENSION,
    KVM_GET_IRQCHIP,
    KVM_GET_MSR_INDEX_LIST,
    KVM_GET_MSRS,
    KVM_GET_XSAVE2,
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_SET_IRQCHIP,
    KVM_SET_MSRS,
    KVM_SET_XSAVE,
    kvm_irqchip,
    kvm_msr_entry,
    kvm_msr_list,
    kvm_msrs,
    kvm_xsave,
)
from callgate.linux.layout import flexible

State: TypeAlias = dict[str, bytes]

_CHIPS = (KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC)
_MOST_MSRS = 1024
_TSC_DEADLINE = 0x6E0
"""Its timer counts by the local APIC's state, so it is set after that."""
# Segments first, since they say in which mode the rest is read; general registers last.
_BEFORE_MSRS = ("sregs2", "xcrs")
_AFTER_MSRS = ("lapic", "mp_state", "vcpu_events", "debugregs", "regs")


def vm_state(vm: int) -> State:
    """What the VM itself has; no vCPU may run."""
    found = {}
    for number in _CHIPS:
        chip = kvm_irqchip(chip_id=number)
        KVM_GET_IRQCHIP(vm, chip)
        found[f"irqchip_{number}"] = bytes(chip)
    found["pit2"] = _get(vm, kvm.KVM_GET_PIT2, kvm.kvm_pit_state2)
    found["clock"] = _get(vm, kvm.KVM_GET_CLOCK, kvm.kvm_clock_data)
    return found


def set_vm_state(vm: int, state: Mapping[str, bytes]) -> None:
    """Set what `vm_state` gave. Raises BackendError for a state of another KVM."""
    for number in _CHIPS:
        KVM_SET_IRQCHIP(vm, _load(kvm_irqchip, state, f"irqchip_{number}"))
    kvm.KVM_SET_PIT2(vm, _load(kvm.kvm_pit_state2, state, "pit2"))
    clock = _load(kvm.kvm_clock_data, state, "clock")
    clock.flags = 0  # It goes on from there, whatever time passed on the host.
    kvm.KVM_SET_CLOCK(vm, clock)


def vcpu_state(device: int, vm: int, vcpu: int) -> State:
    """What a vCPU has that does not run; `device` is /dev/kvm."""
    found = {}
    for name in (*_BEFORE_MSRS, *_AFTER_MSRS):
        get, _, layout = _plain(name)
        found[name] = _get(vcpu, get, layout)
    size = KVM_CHECK_EXTENSION(vm, kvm.KVM_CAP_XSAVE2)
    xsave = bytearray(max(size, ctypes.sizeof(kvm_xsave)))
    (KVM_GET_XSAVE2 if size else kvm.KVM_GET_XSAVE)(vcpu, xsave)
    found["xsave"] = bytes(xsave)
    found["msrs"] = b"".join(bytes(each) for each in _msrs(vcpu, _indices(device)))
    return found


def set_vcpu_state(vcpu: int, state: Mapping[str, bytes]) -> None:
    """Set what `vcpu_state` gave. Raises BackendError for a state of another KVM."""
    for name in _BEFORE_MSRS:
        _set(vcpu, name, state)
    KVM_SET_XSAVE(vcpu, bytearray(_taken(state, "xsave")))
    entries = [
        kvm_msr_entry.from_buffer_copy(_taken(state, "msrs"), at)
        for at in range(0, len(_taken(state, "msrs")), ctypes.sizeof(kvm_msr_entry))
    ]
    late = [each for each in entries if each.index == _TSC_DEADLINE]
    _set_msrs(vcpu, [each for each in entries if each.index != _TSC_DEADLINE])
    for name in _AFTER_MSRS:
        _set(vcpu, name, state)
    _set_msrs(vcpu, late)


def _plain(name: str) -> tuple[Ioctl, Ioctl, Any]:
    """The requests to get and set a structure, and that."""
    upper = name.upper()
    layout = "lapic_state" if name == "lapic" else name
    return (
        getattr(kvm, f"KVM_GET_{upper}"),
        getattr(kvm, f"KVM_SET_{upper}"),
        getattr(kvm, f"kvm_{layout}"),
    )


def _get(fd: int, request: Ioctl, layout: Any) -> bytes:
    found = layout()
    request(fd, found)
    return bytes(found)


def _set(vcpu: int, name: str, state: Mapping[str, bytes]) -> None:
    _, request, layout = _plain(name)
    request(vcpu, _load(layout, state, name))


def _load(layout: Any, state: Mapping[str, bytes], name: str) -> Any:
    data = _taken(state, name)
    if len(data) != ctypes.sizeof(layout):
        raise BackendError(
            f"kvm: the state's {name} must have {ctypes.sizeof(layout)} bytes, as this KVM's has, "
            f"not {len(data)}"
        )
    return layout.from_buffer_copy(data)


def _taken(state: Mapping[str, bytes], name: str) -> bytes:
    try:
        return state[name]
    except KeyError:
        raise BackendError(f"kvm: a state must have {name}, and this one has not") from None


def _indices(device: int) -> list[int]:
    found = flexible(kvm_msr_list, _MOST_MSRS)(nmsrs=_MOST_MSRS)
    KVM_GET_MSR_INDEX_LIST(device, found)
    return list(found.indices[: found.nmsrs])


def _msrs(vcpu: int, indices: list[int]) -> Iterator[kvm_msr_entry]:
    """Those of the registers that this vCPU really has."""
    while indices:
        msrs = flexible(kvm_msrs, len(indices))(nmsrs=len(indices))
        for entry, index in zip(msrs.entries, indices, strict=True):
            entry.index = index
        # It ends before the first that this guest has not.
        count = KVM_GET_MSRS(vcpu, msrs)
        yield from msrs.entries[:count]
        indices = indices[count + 1 :]


def _set_msrs(vcpu: int, entries: list[kvm_msr_entry]) -> None:
    """Set registers; those that may only be read, as some are, keep what they have."""
    while entries:
        msrs = flexible(kvm_msrs, len(entries))(nmsrs=len(entries))
        for place, entry in zip(msrs.entries, entries, strict=True):
            place.index, place.data = entry.index, entry.data
        count = KVM_SET_MSRS(vcpu, msrs)
        entries = entries[count + 1 :]
