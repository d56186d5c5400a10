# SPDX-License-Identifier: MIT
"""The KVM backend: a thread for each processor, and the caller's for everything else.

    run --+-- vCPU 0     KVM_RUN, exit, answer, KVM_RUN, ...
          +-- vCPU 1     the same
          +-- caller     sleeps; timers, deadline, Ctrl-C; ends the others

Memory is the machine's own: RAM and what windows have of plain memory are slots of the VM, so a
call that a watcher answers never leaves the guest.
"""

from __future__ import annotations

import ctypes
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, ClassVar

from callgate.backends.base import Backend, Budget, Linux
from callgate.backends.kvm import cpu, probe
from callgate.backends.kvm.combined import LATEST
from callgate.backends.kvm.doorbells import Doorbells
from callgate.backends.kvm.linux import load_linux
from callgate.backends.kvm.state import set_vcpu_state, set_vm_state, vcpu_state, vm_state
from callgate.backends.kvm.vcpu import Vcpu
from callgate.backends.kvm.vm import Piece, Vm, piece
from callgate.backends.system import System
from callgate.errors import BackendError, BudgetError
from callgate.gate.abi import PAGE, Transport
from callgate.gate.gate import Gate
from callgate.pci.function import Function

_LOOK = 0.5
"""Seconds after which is looked whether the guest halted for good."""
_SWITCH_INTERVAL = 2e-5
"""Seconds that a watcher that spins keeps the interpreter from a processor whose exit waits."""


class Kvm(Backend):
    """This host's own processors."""

    name: ClassVar[str] = "kvm"
    architectures: ClassVar[tuple[str, ...]] = ("x86_64", "i386")
    has_lines: ClassVar[bool] = True

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self._vm: Vm | None = None
        self._vcpus: list[Vcpu] = []
        self._stopping = False
        self._running = False
        self._wake = threading.Event()
        self._failed: BaseException | None = None
        self._halted = False
        self._timing = False
        """Whether a device's timer runs in the thread that is in `run`."""
        self._turn = threading.Lock()
        self._doorbells: Doorbells | None = None
        self._ringing = threading.Lock()
        system.timers.on_change = self._wake.set

    @classmethod
    def lacks(cls) -> str | None:
        """What this host lacks for KVM."""
        return probe.lacks()

    @classmethod
    def platforms(cls, arch: str) -> list[str]:
        """With hypercalls where they come out, by the instruction of the host's processor."""
        host = probe.host()
        calling = "kvm-amd" if host.amd else "kvm-intel"
        return [*([] if host.no_hypercall else [calling]), "kvm", "native"]

    @classmethod
    def most_cpus(cls) -> int:
        """As many as KVM recommends."""
        return probe.host().capabilities["KVM_CAP_NR_VCPUS"]

    # --- Backend ---------------------------------------------------------------------------------

    def reset(self, entry: int) -> None:
        """Put the processors into their state at power-on, the first about to go on at `entry`."""
        with self._made() as first:
            cpu.enter(first.fd, self.system.board.bits, entry)

    def boot(self, linux: Linux) -> None:
        """Load Linux, and be about to execute it."""
        system = self.system
        if system.board.bits != 64:
            raise BackendError("kvm: Linux must be booted with the architecture x86_64")
        with self._made() as first:
            entry = load_linux(system.memory, system.board, len(system.call_slots), linux)
            cpu.enter(first.fd, 64, entry.rip, entry.rsi)

    @contextmanager
    def _made(self) -> Iterator[Vcpu]:
        """Make everything anew, and give the first processor, which is to get its entry."""
        self._give_back()
        system = self.system
        self._stopping = False
        self._failed = None
        offered = system.platform.offer.transports
        vm = self._vm = Vm(hypercalls=bool(offered & Transport.HYPERCALL))
        if vm.host.capabilities["KVM_CAP_IOEVENTFD"]:
            self._doorbells = Doorbells(vm.fd)
        for gate in self._gates():
            gate.on_notifiable = self._follow_doorbells
        cpus = len(system.call_slots)
        try:
            for number, slot in enumerate(system.call_slots):
                vcpu = Vcpu(vm, system, slot, number)
                self._vcpus.append(vcpu)
                cpu.set_cpuid(vcpu.fd, vm.leaves, number, cpus, system.platform)
                cpu.set_msrs(vcpu.fd)
            yield self._vcpus[0]
            self.remap()
        except BaseException:
            self._give_back()
            raise

    def run(self, budget: Budget) -> None:
        """Run the guest until `stop` is called."""
        self._started()
        if budget.instructions is not None:
            raise BackendError("kvm cannot count instructions: give a timeout instead")
        deadline = math.inf if budget.deadline is None else budget.deadline
        threads = [
            threading.Thread(
                target=self._serve, args=(vcpu,), name=f"callgate vCPU {vcpu.number}", daemon=True
            )
            for vcpu in self._vcpus
        ]
        with self._turn:
            for vcpu in self._vcpus:
                vcpu.stopping = self._stopping
            self._running = True
        switch_interval = sys.getswitchinterval()
        sys.setswitchinterval(min(_SWITCH_INTERVAL, switch_interval))
        with self._signals():
            try:
                for thread in threads:
                    thread.start()
                self._supervise(deadline)
            finally:
                sys.setswitchinterval(switch_interval)
                self._halt()
                for thread in threads:
                    if thread.ident is not None:
                        thread.join()
                with self._turn:
                    self._running = False
        stopped, self._stopping = self._stopping, False
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed
        if self._halted:
            self._halted = False
            raise self._vcpus[0].stopped(
                "The guest halted with interrupts off, and nothing can wake it"
            )
        if not stopped:
            place = self.system.place(self._vcpus[0].registers()["rip"])
            raise BudgetError(f"The guest used up its time at {place}")

    def stop(self) -> None:
        """Let `run` return soon, or at once when it is called next."""
        self._stopping = True
        self._wake.set()
        self._halt()

    def remap(self) -> None:
        """Follow the system's mappings, which changed."""
        if self._vm is None:
            return
        pieces: list[Piece] = []
        for slot in self.system.memory.slots:
            if slot.view is not None and not slot.view.readonly:
                pieces += _pages(slot.gpa, slot.view, readonly=slot.readonly)
        for each in self.system.mappings():
            ram = each.window.ram
            if each.kind == "memory" and ram is not None and not ram.readonly:
                pieces += _pages(each.address, ram[each.offset : each.offset + each.length])
        self._vm.place(pieces)
        for vcpu in self._vcpus:
            vcpu.follow()
        if self._vm.combined is not None:
            self._vm.combined.follow(self.system)
            if self._vm.combined.active:
                self._wake.set()  # From now on it has to look for them.
        self._follow_doorbells()

    def _follow_doorbells(self) -> None:
        with self._ringing:
            if self._doorbells is not None:
                self._doorbells.follow(self.system)

    def registers(self) -> dict[str, int]:
        """The first processor's registers, the program counter first."""
        self._started()
        return self._vcpus[0].registers()

    @property
    def uninterrupted(self) -> str | None:
        """Where KVM is emulated in software, its emulator knows no IRET of protected mode."""
        if self.system.board.bits == 64 or probe.host().virtualizes:
            return None
        return "KVM is emulated in software here, and does not return from 32-bit handlers"

    def state(self) -> dict[str, Any]:
        """All that KVM keeps of a stopped machine (`state.py`): the VM's, and each processor's."""
        vm = self._started()
        return {
            "vm": vm_state(vm.fd),
            "vcpus": [vcpu_state(vm.device, vm.fd, vcpu.fd) for vcpu in self._vcpus],
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Set what `state` gave, in a machine with as many processors. Raises BackendError."""
        vm = self._started()
        if len(state["vcpus"]) != len(self._vcpus):
            raise BackendError(
                f"kvm: a state of {len(state['vcpus'])} processors cannot be set in a machine of "
                f"{len(self._vcpus)}"
            )
        set_vm_state(vm.fd, state["vm"])
        for vcpu, each in zip(self._vcpus, state["vcpus"], strict=True):
            set_vcpu_state(vcpu.fd, each)

    def set_line(self, gsi: int, level: bool) -> None:
        """Drive an input of the interrupt chip."""
        if self._vm is not None:
            self._vm.set_line(gsi, level)

    def interrupt(self, address: int, data: int) -> None:
        """Deliver an interrupt message to a local APIC."""
        if self._vm is not None:
            self._vm.send(address, data)

    def close(self) -> None:
        """Give back the VM and all that was mapped."""
        self._give_back()

    # --- inside ----------------------------------------------------------------------------------

    def _started(self) -> Vm:
        if self._vm is None:
            raise BackendError("The machine must be reset to a program before its processor runs")
        return self._vm

    def _gates(self) -> Iterator[Gate]:
        for function in self.system.bus.functions.values():
            if isinstance(function, Function) and function.gate is not None:
                yield function.gate

    def _give_back(self) -> None:
        with self._ringing:
            doorbells, self._doorbells = self._doorbells, None
        if doorbells is not None:
            doorbells.close()
        vm, self._vm = self._vm, None
        for vcpu in self._vcpus:
            vcpu.close()
        self._vcpus.clear()
        if vm is not None:
            vm.close()

    def _serve(self, vcpu: Vcpu) -> None:
        """A processor's thread."""
        try:
            vcpu.run()
        except BaseException as error:
            self._fail(error)
        self._wake.set()

    def _fail(self, error: BaseException) -> None:
        """Take an exception that is to come out of `run`. The first one counts."""
        if self._failed is None:
            self._failed = error
        self._wake.set()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let Ctrl-C raise when all processors stand still; in a timer's code at once, since that
        may be the loop that the user wants to break."""
        usual = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(usual):
            yield
            return

        def on_signal(number: int, frame: FrameType | None) -> None:
            if self._timing:
                usual(number, frame)
                return
            try:
                usual(number, frame)
            except BaseException as error:
                self._fail(error)

        signal.signal(signal.SIGINT, on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, usual)

    def _supervise(self, deadline: float) -> None:
        """Run timers when they are due, until a processor ended or the time is up."""
        timers = self.system.timers
        look, silent = time.monotonic() + _LOOK, 0
        combined = self._started().combined
        assert combined is not None
        while not self._stopping and self._failed is None:
            wait = min(deadline, look) - time.monotonic()
            due = timers.next_due()
            if due is not None:
                wait = min(wait, due - timers.clock())
            if combined.active:
                wait = min(wait, LATEST)
            self._wake.wait(max(0.0, wait))
            self._wake.clear()
            if combined.active:
                combined.carry_out(self.system)
            self._timing = True
            try:
                timers.run_due()
            finally:
                self._timing = False
            now = time.monotonic()
            if now >= deadline:
                return
            if now >= look:
                # Twice in a row: one may start another between being looked at and halting.
                silent = silent + 1 if all(vcpu.asleep for vcpu in self._vcpus) else 0
                if silent == 2:
                    self._halted = True
                    return
                for vcpu in self._vcpus:
                    vcpu.kick()
                look = now + _LOOK

    def _halt(self) -> None:
        """Let every processor's thread end."""
        with self._turn:
            if self._running:
                for vcpu in self._vcpus:
                    vcpu.stopping = True
                    vcpu.kick()


def _pages(gpa: int, view: memoryview, *, readonly: bool = False) -> list[Piece]:
    """The whole pages of `view`, which begins at `gpa`, if it can be a slot."""
    start = -(-gpa // PAGE) * PAGE
    end = (gpa + len(view)) // PAGE * PAGE
    if start >= end:
        return []
    pages = view[start - gpa : end - gpa]
    if ctypes.addressof(ctypes.c_char.from_buffer(pages)) % PAGE:
        return []
    return [piece(start, pages, readonly=readonly)]
