# SPDX-License-Identifier: MIT
"""KVM's VM: memory slots, interrupt chip, interrupts, eventfds. Any thread may call it."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Lock

from callgate.backends.kvm import cpu
from callgate.backends.kvm.combined import Combined
from callgate.backends.kvm.probe import DEVICE, Host, host
from callgate.errors import BackendError
from callgate.linux.kvm import (
    KVM_CREATE_IRQCHIP,
    KVM_CREATE_PIT2,
    KVM_CREATE_VM,
    KVM_GET_VCPU_MMAP_SIZE,
    KVM_IRQ_LINE,
    KVM_IRQ_ROUTING_IRQCHIP,
    KVM_IRQ_ROUTING_MSI,
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQFD,
    KVM_MEM_READONLY,
    KVM_SET_GSI_ROUTING,
    KVM_SET_IDENTITY_MAP_ADDR,
    KVM_SET_TSS_ADDR,
    KVM_SET_USER_MEMORY_REGION,
    KVM_SIGNAL_MSI,
    KVM_XEN_HVM_CONFIG,
    KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL,
    kvm_irq_level,
    kvm_irq_routing,
    kvm_irqfd,
    kvm_msi,
    kvm_pit_config,
    kvm_userspace_memory_region,
    kvm_xen_hvm_config,
)
from callgate.linux.layout import flexible
from callgate.memory import anonymous

_IDENTITY_MAP = 0xFEFF_C000
_TSS = 0xFEFF_D000
"""4 pages that VMX needs in the guest's address space, above the local APIC."""
_XEN_HYPERCALL_MSR = 0x4000_0000
"""Where a Xen guest would ask for its hypercall page; ours does not."""
_IOAPIC_PINS = 24
_PIC_PINS = 8
_ROUTES = 256
"""Interrupt messages that get a route, and so an eventfd; further ones are sent by ioctl."""


@dataclass(frozen=True)
class Piece:
    """Host memory that the guest is to see at `gpa`; the same when all but `keep` is equal."""

    gpa: int
    size: int
    host: int
    readonly: bool = False
    keep: memoryview | None = field(default=None, compare=False)
    """What must live as long."""


class Vm:
    """A VM with an in-kernel interrupt chip; `close` gives it back when its vCPUs are closed.

    Raises BackendError where KVM refuses.
    """

    def __init__(self, *, hypercalls: bool) -> None:
        self._closing = ExitStack()
        self._changing = Lock()
        self._placed: dict[Piece, int] = {}
        self._free: list[int] = []
        self._next = 0
        self._routes: dict[tuple[int, int], int] = {}
        """The eventfd of each interrupt message that has a route."""
        self._routing: list[tuple[int, int]] = []
        self.host: Host = host()
        self.hypercalls = hypercalls
        """Whether a guest's hypercalls come out."""
        self.combined: Combined | None = None
        """Writes that KVM collects; the first vCPU makes it, in whose page they are."""
        try:
            self.device = self._own(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
            self.fd = self._own(KVM_CREATE_VM(self.device, 0))
            self.run_size = KVM_GET_VCPU_MMAP_SIZE(self.device)
            self.leaves = cpu.supported(self.device)
            KVM_SET_IDENTITY_MAP_ADDR(self.fd, ctypes.c_uint64(_IDENTITY_MAP))
            KVM_SET_TSS_ADDR(self.fd, _TSS)
            KVM_CREATE_IRQCHIP(self.fd)
            KVM_CREATE_PIT2(self.fd, kvm_pit_config())
            if hypercalls:
                # Without an MSR KVM takes the VM for none of Xen's, and answers by itself.
                KVM_XEN_HVM_CONFIG(
                    self.fd,
                    kvm_xen_hvm_config(
                        flags=KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL, msr=_XEN_HYPERCALL_MSR
                    ),
                )
            tables = self._closing.enter_context(anonymous(cpu.TABLES_SIZE))
            tables[:] = cpu.tables()
            view = self._closing.enter_context(memoryview(tables))
            self._boot = piece(cpu.TABLES, view)
            self.place(())
        except OSError as error:
            self.close()
            raise BackendError(f"kvm: a VM could not be made: {error.strerror}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give it back. Harmless when repeated."""
        self._placed.clear()
        self._closing.close()

    def _own(self, fd: int) -> int:
        self._closing.callback(os.close, fd)
        return fd

    # --- memory ----------------------------------------------------------------------------------

    def place(self, pieces: Iterable[Piece]) -> None:
        """Let the guest's memory be these pieces, which do not overlap, and nothing else.

        Raises BackendError when KVM has no slot left.
        """
        with self._changing:
            wanted = {*pieces, self._boot}
            for gone in self._placed.keys() - wanted:
                slot = self._placed.pop(gone)
                self._set(slot, gone, 0)
                self._free.append(slot)
            for new in wanted - self._placed.keys():
                slot = self._free.pop() if self._free else self._next
                try:
                    self._set(slot, new, new.size)
                except OSError as error:
                    if slot < self._next:
                        self._free.append(slot)
                    raise BackendError(
                        f"kvm: {new.size:#x} bytes of memory cannot be put at {new.gpa:#x}: "
                        f"{error.strerror} (KVM has room for a limited number of pieces)"
                    ) from error
                self._next = max(self._next, slot + 1)
                self._placed[new] = slot

    def _set(self, slot: int, place: Piece, size: int) -> None:
        KVM_SET_USER_MEMORY_REGION(
            self.fd,
            kvm_userspace_memory_region(
                slot=slot,
                flags=KVM_MEM_READONLY if place.readonly and size else 0,
                guest_phys_addr=place.gpa,
                memory_size=size,
                userspace_addr=place.host,
            ),
        )

    # --- interrupts ------------------------------------------------------------------------------

    def set_line(self, gsi: int, level: bool) -> None:
        """Drive an input of the interrupt chip."""
        line = kvm_irq_level(level=level)
        line.u.irq = gsi
        KVM_IRQ_LINE(self.fd, line)

    def send(self, address: int, data: int) -> None:
        """Send an interrupt message: by the eventfd of its route, or without one."""
        event = self._routes.get((address, data))
        if event is None:
            event = self._route(address, data)
        if event is not None:
            os.eventfd_write(event, 1)
            return
        KVM_SIGNAL_MSI(
            self.fd,
            kvm_msi(address_lo=address & 0xFFFF_FFFF, address_hi=address >> 32, data=data),
        )

    def _route(self, address: int, data: int) -> int | None:
        """Give an interrupt message a route and an eventfd; None when there are too many."""
        with self._changing:
            key = address, data
            if key in self._routes:
                return self._routes[key]
            if len(self._routing) == _ROUTES or not self.host.capabilities["KVM_CAP_IRQFD"]:
                return None
            self._routing.append(key)
            gsi = _IOAPIC_PINS + len(self._routing) - 1
            try:
                self._set_routing()
                event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                try:
                    KVM_IRQFD(self.fd, kvm_irqfd(fd=event, gsi=gsi))
                except BaseException:
                    os.close(event)
                    raise
            except OSError as error:
                self._routing.pop()
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    return None
                raise
            self._own(event)
            self._routes[key] = event
            return event

    def _set_routing(self) -> None:
        """Tell KVM all routes: those of the chips' pins, and the messages'."""
        count = 2 * _PIC_PINS + _IOAPIC_PINS + len(self._routing)
        routing = flexible(kvm_irq_routing, count)(nr=count)
        entries = iter(routing.entries)
        for pin in range(_IOAPIC_PINS):
            if pin < 2 * _PIC_PINS:
                entry = next(entries)
                entry.gsi, entry.type = pin, KVM_IRQ_ROUTING_IRQCHIP
                master = pin < _PIC_PINS
                entry.u.irqchip.irqchip = (
                    KVM_IRQCHIP_PIC_MASTER if master else KVM_IRQCHIP_PIC_SLAVE
                )
                entry.u.irqchip.pin = pin % _PIC_PINS
            entry = next(entries)
            entry.gsi, entry.type = pin, KVM_IRQ_ROUTING_IRQCHIP
            entry.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC
            entry.u.irqchip.pin = pin
        for number, (address, data) in enumerate(self._routing):
            entry = next(entries)
            entry.gsi, entry.type = _IOAPIC_PINS + number, KVM_IRQ_ROUTING_MSI
            entry.u.msi.address_lo, entry.u.msi.address_hi = address & 0xFFFF_FFFF, address >> 32
            entry.u.msi.data = data
        KVM_SET_GSI_ROUTING(self.fd, routing)


def piece(gpa: int, view: memoryview, *, readonly: bool = False) -> Piece:
    """The whole of a writable view, at `gpa`."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    return Piece(gpa, len(view), address, readonly, view)
