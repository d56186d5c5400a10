# SPDX-License-Identifier: MIT
"""A virtual processor: its run page, its run loop, its exits.

    run page   +0    immediate_exit, exit_reason
               +20h  the exit: io (direction, size, port, count), mmio (address, data, length), ...
               +1000h  data of I/O instructions

An exit's first eight bytes say all of an I/O instruction, so one look-up finds who answers it.
Nothing is allocated for the usual exit but the numbers in it.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack, suppress
from fcntl import ioctl
from threading import get_ident
from typing import TYPE_CHECKING, Literal, TypeAlias

from callgate.backends.kvm.combined import Combined
from callgate.backends.system import report
from callgate.errors import GuestError
from callgate.gate.abi import Status
from callgate.linux.kvm import (
    KVM_CREATE_VCPU,
    KVM_EXIT_FAIL_ENTRY,
    KVM_EXIT_INTERNAL_ERROR,
    KVM_EXIT_IO,
    KVM_EXIT_IO_OUT,
    KVM_EXIT_MMIO,
    KVM_EXIT_SHUTDOWN,
    KVM_EXIT_XEN,
    KVM_GET_MP_STATE,
    KVM_GET_REGS,
    KVM_GET_SREGS,
    KVM_INTERNAL_ERROR_EMULATION,
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_UNINITIALIZED,
    KVM_PIO_PAGE_OFFSET,
    KVM_RUN,
    KVM_SET_SIGNAL_MASK,
    KVM_SYNC_X86_REGS,
    kvm_mp_state,
    kvm_regs,
    kvm_run,
    kvm_signal_mask,
    kvm_sregs,
)
from callgate.linux.layout import flexible, offset
from callgate.pci.bar import Read, Window, Write, ones

if TYPE_CHECKING:
    from callgate.backends.kvm.vm import Vm
    from callgate.backends.system import System
    from callgate.gate.vectors import Slot

KICK = signal.SIGRTMIN + 5
"""Ends a KVM_RUN. It is blocked elsewhere in the thread, so it is never delivered."""
_RUN = KVM_RUN.number
_IO_DATA = KVM_PIO_PAGE_OFFSET * mmap.PAGESIZE
_SIGNALS = 64
_PAGE_SHIFT = 12
_LARGEST = 1 << 20
"""Windows up to this size are found by page; larger ones (ECAM) by the system's own look-up."""
_REASON, _EXIT = offset(kvm_run, "exit_reason"), offset(kvm_run, "u")
_MMIO_DATA = offset(kvm_run, "u.mmio.data")
_MMIO_LENGTH, _MMIO_WRITE = offset(kvm_run, "u.mmio.len"), offset(kvm_run, "u.mmio.is_write")
_HCALL = "u.xen.u.hcall."
_LOW = 0xFFFF_FFFF
_DENIED = 0xFFFF_FFFF
"""What a hypercall from user mode gives: -1, as KVM's -EPERM."""
_IF = 1 << 9
_KVM_CALLS = 64
"""Numbers from 1 to below this are KVM's own calls, which its guests try out."""
_KVM_ENOSYS = (1 << 64) - 1000
_RESULTS_64 = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
_RESULTS_32 = ("rbx", "rcx", "rdx", "rsi", "rdi", "rbp")
"""Where results go (docs/abi.md, 6.3): where Xen's interface has the arguments."""
_SIZES: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}

Port: TypeAlias = tuple[Read | None, Write, int, int, memoryview]
"""Who answers `in` (None: it is an `out`) and `out`, the offset there, the size, and where the
value is."""
Place: TypeAlias = tuple[Read, Write, int]
"""Who answers in a page, and the address of its offset 0."""


class Vcpu:
    """Processor `number` of a VM. It is run by one thread at a time."""

    def __init__(self, vm: Vm, system: System, slot: Slot, number: int) -> None:
        self.vm = vm
        self.system = system
        self.number = number
        self.stopping = False
        """Whether `run` is to return; set before `kick`."""
        self.asleep = False
        """Whether it was halted for good, or not started yet, when it was last kicked."""
        self._slot = slot
        self._thread = 0
        self._closing = ExitStack()
        self.fd = KVM_CREATE_VCPU(vm.fd, number)
        try:
            self._page = mmap.mmap(self.fd, vm.run_size)
            self._bytes = memoryview(self._page)
            self.state = kvm_run.from_buffer(self._page)
            mask = flexible(kvm_signal_mask, _SIGNALS // 8)(len=_SIGNALS // 8)
            open_to = ~(1 << KICK - 1) & (1 << _SIGNALS) - 1
            mask.sigset[:] = list(open_to.to_bytes(_SIGNALS // 8, "little"))
            KVM_SET_SIGNAL_MASK(self.fd, mask)
        except BaseException:
            os.close(self.fd)
            raise
        if vm.combined is None:
            vm.combined = Combined(vm.fd, self._bytes)
            self._closing.callback(vm.combined.close)
        self._views = {size: self._bytes.cast(code) for size, code in _SIZES.items()}
        params = offset(kvm_run, _HCALL + "params")
        self._arguments = self._views[8][params // 8 : params // 8 + len(_RESULTS_64)]
        self._ports: dict[int, Port] = {}
        self._places: dict[int, Place] = {}
        if vm.hypercalls:
            self.state.kvm_valid_regs = KVM_SYNC_X86_REGS

    def close(self) -> None:
        """Give it back; it must not run."""
        # The page holds the vCPU, and what ended the run may hold this object in its traceback.
        ports = [value for *_, value in self._ports.values()]
        self._ports, self.state = {}, kvm_run()
        self._closing.close()
        for view in (*ports, self._arguments, *self._views.values(), self._bytes):
            view.release()
        self._page.close()
        os.close(self.fd)

    # --- who answers -----------------------------------------------------------------------------

    def follow(self) -> None:
        """Make the look-ups what the system's mappings are now. From any thread."""
        ports: dict[int, Port] = {}
        places: dict[int, Place] = {}
        # The board's own devices come first, and win.
        for each in reversed(self.system.mappings()):
            if each.kind == "io":
                for port in range(each.address, each.end):
                    for size in (1, 2, 4):
                        if port + size <= each.end:
                            self._add_port(ports, port, size, each.window, port - each.base)
            elif (
                each.window.ram is None
                and each.length <= _LARGEST
                and not (each.address | each.length) & (1 << _PAGE_SHIFT) - 1
            ):
                for page in range(each.address >> _PAGE_SHIFT, each.end >> _PAGE_SHIFT):
                    places[page] = each.window.read, each.window.write, each.base
        self._ports, self._places = ports, places

    def _add_port(
        self, ports: dict[int, Port], port: int, size: int, window: Window, offset: int
    ) -> None:
        key = size << 8 | port << 16 | 1 << 32
        view = self._views[size][_IO_DATA // size :]
        ports[key] = window.read, window.write, offset, size, view
        ports[key | KVM_EXIT_IO_OUT] = None, window.write, offset, size, view

    # --- running ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until `stopping`. What left a device model, and GuestError, comes out here."""
        self._thread = get_ident()
        signal.pthread_sigmask(signal.SIG_BLOCK, {KICK})
        try:
            self._run()
        finally:
            self._finish()
            self._thread = 0

    def kick(self) -> None:
        """Let the thread that runs it look at `stopping` at once. From any thread."""
        thread = self._thread
        if thread and thread != get_ident():
            self.state.immediate_exit = 1
            signal.pthread_kill(thread, KICK)

    def _run(self) -> None:
        fd, words, quads = self.fd, self._views[4], self._views[8]
        reason, exit = _REASON // 4, _EXIT // 8
        length, writes = _MMIO_LENGTH // 4, _MMIO_WRITE
        data = {size: (view, _MMIO_DATA // size) for size, view in self._views.items()}
        others, octets = self._other_exit, self._bytes
        hypercall = self._make_hypercall() if self.vm.hypercalls else None
        combined, system = self.vm.combined, self.system
        assert combined is not None
        while not self.stopping:
            try:
                ioctl(fd, _RUN, 0)
            except OSError as error:
                self._interrupted(error)
                continue
            if combined.active:
                combined.carry_out(system)
            why = words[reason]
            if why == KVM_EXIT_IO:
                port = self._ports.get(quads[exit])
                if port is None:
                    self._any_port()
                    continue
                read, write, at, size, value = port
                if read is None:
                    write(at, size, value[0])
                else:
                    value[0] = read(at, size)
            elif why == KVM_EXIT_MMIO:
                address = quads[exit]
                size = words[length]
                place = self._places.get(address >> _PAGE_SHIFT)
                if place is None or address & size - 1 or size not in data:
                    self._any_memory(address, size)
                    continue
                view, index = data[size]
                if octets[writes]:
                    place[1](address - place[2], size, view[index])
                else:
                    view[index] = place[0](address - place[2], size)
            elif why == KVM_EXIT_XEN and hypercall is not None:
                hypercall()
            else:
                others(why)

    def _interrupted(self, error: OSError) -> None:
        if error.errno == errno.EINTR:
            self._eat()
            self.asleep = self._sleeps()
        elif error.errno != errno.EAGAIN:  # A processor that waits for its start-up was woken.
            raise self.stopped(f"KVM cannot run the guest: {error.strerror}") from error

    def _sleeps(self) -> bool:
        """Whether no interrupt can wake it: halted with interrupts off, or not started yet."""
        mode = kvm_mp_state()
        KVM_GET_MP_STATE(self.fd, mode)
        if mode.mp_state != KVM_MP_STATE_HALTED:
            return mode.mp_state in (KVM_MP_STATE_UNINITIALIZED, KVM_MP_STATE_INIT_RECEIVED)
        regs = kvm_regs()
        KVM_GET_REGS(self.fd, regs)
        return not regs.rflags & _IF

    def _eat(self) -> None:
        self.state.immediate_exit = 0
        while signal.sigtimedwait({KICK}, 0) is not None:
            pass

    def _finish(self) -> None:
        """Let the instruction whose exit was answered last end, so that registers are whole."""
        self.state.immediate_exit = 1
        with suppress(OSError):
            ioctl(self.fd, _RUN, 0)
        self._eat()

    # --- exits that are not quick ----------------------------------------------------------------

    def _any_port(self) -> None:
        """An I/O instruction whose port nobody has, of several items, or in an odd place."""
        io = self.state.u.io
        at = io.data_offset
        for _ in range(io.count):
            item = self._bytes[at : at + io.size]
            if io.direction == KVM_EXIT_IO_OUT:
                self.system.io_write(io.port, io.size, int.from_bytes(item, "little"))
            else:
                item[:] = self.system.io_read(io.port, io.size).to_bytes(io.size, "little")
            at += io.size

    def _any_memory(self, address: int, size: int) -> None:
        """A load or store that no page's device answers wholly."""
        data = self._bytes[_MMIO_DATA : _MMIO_DATA + size]
        if self.state.u.mmio.is_write:
            self.system.mem_write(address, size, int.from_bytes(data, "little"))
        else:
            value = self.system.mem_read(address, size) & ones(size)
            data[:] = value.to_bytes(size, "little")

    def _make_hypercall(self) -> Callable[[], None]:
        """Serve KVM_EXIT_XEN: the vector and the arguments in Xen's registers, whatever mode."""
        run, quads, words = self.state, self._views[8], self._views[4]
        call, slot = self.system.router.call, self._slot
        arguments = self._arguments
        mode, privilege = (offset(kvm_run, _HCALL + name) // 4 for name in ("longmode", "cpl"))
        number, status_at = (offset(kvm_run, _HCALL + name) // 8 for name in ("input", "result"))
        places_64, places_32 = (
            [offset(kvm_run, f"s.regs.regs.{name}") // 8 for name in names]
            for names in (_RESULTS_64, _RESULTS_32)
        )

        def whole(count: int) -> tuple[int, ...]:
            return tuple(arguments[:count])

        def halves(count: int) -> tuple[int, ...]:
            low = [value & _LOW for value in arguments[: 2 * count]]
            return tuple(low[at] | low[at + 1] << 32 for at in range(0, 2 * count, 2))

        def hypercall() -> None:
            if words[privilege]:  # Vectors are the kernel's to use.
                quads[status_at] = _DENIED
                return
            if words[mode]:
                status, results = call(slot, quads[number] & _LOW, whole)
                places = places_64
            else:
                status, results = call(slot, quads[number] & _LOW, halves)
                results = tuple(half for value in results for half in (value & _LOW, value >> 32))
                places = places_32
            if status is Status.NO_SUCH_VECTOR and 0 < quads[number] < _KVM_CALLS:
                quads[status_at] = _KVM_ENOSYS
                return
            quads[status_at] = status
            if results:
                for place, value in zip(places, results, strict=False):
                    quads[place] = value
                run.kvm_dirty_regs = KVM_SYNC_X86_REGS

        return hypercall

    def _other_exit(self, why: int) -> None:
        if why == KVM_EXIT_SHUTDOWN:
            sentence = "The guest shut down: it could not handle an exception (triple fault)"
        elif why == KVM_EXIT_INTERNAL_ERROR:
            sentence = self._internal_error()
        elif why == KVM_EXIT_FAIL_ENTRY:
            code = self.state.u.fail_entry.hardware_entry_failure_reason
            sentence = f"The host's processor refused to enter the guest (reason {code:#x})"
        else:
            sentence = f"KVM ended the run for a reason that nothing here serves ({why})"
        raise self.stopped(sentence)

    def _internal_error(self) -> str:
        internal = self.state.u.internal
        if internal.suberror == KVM_INTERNAL_ERROR_EMULATION:
            return "The guest executed an instruction that KVM cannot emulate"
        return f"KVM failed inside (KVM_EXIT_INTERNAL_ERROR, suberror {internal.suberror})"

    # --- reports ---------------------------------------------------------------------------------

    def registers(self) -> dict[str, int]:
        """Registers by their names, the program counter first. It must not run."""
        regs, sregs = kvm_regs(), kvm_sregs()
        KVM_GET_REGS(self.fd, regs)
        KVM_GET_SREGS(self.fd, sregs)
        found = {"rip": regs.rip}
        found |= {name: getattr(regs, name) for name, *_ in kvm_regs._fields_ if name != "rip"}
        found |= {name: getattr(sregs, name) for name in ("cr0", "cr2", "cr3", "cr4", "efer")}
        found |= {"cs": sregs.cs.selector, "ss": sregs.ss.selector}
        return found

    def stopped(self, sentence: str) -> GuestError:
        """The error for a guest that cannot go on: the sentence, the place, the registers."""
        return GuestError(report(sentence, self.registers(), self.system, self.system.board.bits))
