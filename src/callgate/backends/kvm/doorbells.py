# SPDX-License-Identifier: MIT
"""One-way doorbells as ioeventfds: the kernel takes the guest's write to NOTIFY, and goes on with
the guest; a thread here makes the call.

Each vector that NOTIFY takes has an eventfd of its own, matched by the value that is written. What
matches none comes out as any other write.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from callgate.backends.vfio_user.loop import Loop
from callgate.gate.abi import DoorbellRegister
from callgate.gate.gate import Gate
from callgate.linux.kvm import (
    KVM_IOEVENTFD,
    KVM_IOEVENTFD_FLAG_DATAMATCH,
    KVM_IOEVENTFD_FLAG_DEASSIGN,
    KVM_IOEVENTFD_FLAG_PIO,
    kvm_ioeventfd,
)
from callgate.pci.function import Function
from callgate.timers import Timers

if TYPE_CHECKING:
    from callgate.backends.system import System

_WINDOWS = ("doorbell", "doorbell ports")
_NOTIFY = int(DoorbellRegister.NOTIFY)
_WIDTH = 4


class _Bell(NamedTuple):
    """A write that is taken: where, and of which vector."""

    port: bool
    address: int
    vector: int


class Doorbells:
    """The ioeventfds of one VM; `close` takes them back."""

    def __init__(self, vm: int) -> None:
        self._vm = vm
        self._loop: Loop | None = None
        self._files: dict[_Bell, int] = {}

    def follow(self, system: System) -> None:
        """Let there be one for each vector that NOTIFY takes, where the doorbells are now."""
        wanted = dict(_wanted(system))
        for gone in self._files.keys() - wanted.keys():
            self._remove(gone)
        for new in wanted.keys() - self._files.keys():
            self._add(new, wanted[new])

    def close(self) -> None:
        """Take all of them back, when the calls under way are done."""
        for bell in list(self._files):
            self._remove(bell)
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def _add(self, bell: _Bell, gate: Gate) -> None:
        if self._loop is None:
            self._loop = Loop("callgate doorbells", Timers())
        file = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            KVM_IOEVENTFD(self._vm, _request(bell, file))
        except OSError:  # No room: the write comes out instead.
            os.close(file)
            return
        self._files[bell] = file
        self._loop.watch(file, partial(_ring, file, gate, bell.vector))

    def _remove(self, bell: _Bell) -> None:
        file = self._files.pop(bell)
        with suppress(OSError):
            KVM_IOEVENTFD(self._vm, _request(bell, file, KVM_IOEVENTFD_FLAG_DEASSIGN))
        assert self._loop is not None
        self._loop.forget(file)
        os.close(file)


def _request(bell: _Bell, file: int, flags: int = 0) -> kvm_ioeventfd:
    flags |= KVM_IOEVENTFD_FLAG_DATAMATCH | KVM_IOEVENTFD_FLAG_PIO * bell.port
    return kvm_ioeventfd(datamatch=bell.vector, addr=bell.address, len=_WIDTH, fd=file, flags=flags)


def _wanted(system: System) -> Iterator[tuple[_Bell, Gate]]:
    gates = {
        id(window): function.gate
        for function in system.bus.functions.values()
        if isinstance(function, Function) and function.gate is not None
        for bar in function.bars
        for window in bar.windows
        if window.name in _WINDOWS
    }
    for each in system.mappings():
        gate = gates.get(id(each.window))
        if gate is not None and each.offset <= _NOTIFY <= each.offset + each.length - _WIDTH:
            for vector in gate.notifiable:
                yield _Bell(each.kind == "io", each.base + _NOTIFY, vector), gate


def _ring(file: int, gate: Gate, vector: int) -> None:
    """Make the calls that were asked for since the last time."""
    try:
        count = os.eventfd_read(file)
    except (BlockingIOError, OSError):  # Nothing new, or it was taken back meanwhile.
        return
    for _ in range(count):
        gate.notify(vector)
