# SPDX-License-Identifier: MIT
"""Calls of plain numbers, with everything looked up beforehand: one function for each.

What is out of the ordinary (an argument that is no number of 64 bits, a status, no free frame, no
answer at once) is left to the device's own way.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct, error
from typing import TYPE_CHECKING, Any

from callgate.driver.frame import make_ready
from callgate.driver.values import error_of
from callgate.errors import Revoked
from callgate.gate.abi import FRAME, Feature, FrameState, Status, Transport
from callgate.gate.fence import WEAK, fence

if TYPE_CHECKING:
    from callgate.driver.device import GateDevice
    from callgate.driver.directory import Entry

_DONE, _READY = int(FrameState.DONE), int(FrameState.READY)
_REVOKED = int(Status.REVOKED)
_VALUES = FRAME.offset("values") // 8
_SPINS = 500
"""Looks at a frame's state before the caller sleeps between looks."""


def by_registers(device: GateDevice, entry: Entry) -> Callable[..., int | None]:
    """A call by hypercall, with all in registers."""
    hypercall = device.function.door.hypercall
    instruction, selector = device.place.instruction, device.place.selector
    vector, name, call = entry.vector, entry.name, device.call
    answers = bool(entry.result_types)
    slots = Struct(f"={len(entry.parameter_types)}Q")
    pack, unpack = slots.pack, slots.unpack

    def run(*arguments: int) -> int | None:
        try:
            values = unpack(pack(*arguments))  # The shortest way to see that all are as they must.
        except error:
            return call(name, *arguments)  # type: ignore[no-any-return]
        status, results = hypercall(instruction, selector, vector, values)
        if not status:
            return results[0] if answers else None
        if status != _REVOKED:
            raise error_of(entry, status, results[0] if results else 0)
        return call(name, *arguments)  # type: ignore[no-any-return]

    return run


def by_frame(device: GateDevice, entry: Entry) -> Callable[..., Any]:
    """A call by a frame that is mapped, of a device that is in another process."""
    watching, free, weak = device.watching, device.free, WEAK
    assert watching is not None
    vector, name, call, settle = entry.vector, entry.name, device.call, device.settle
    count, answers = len(entry.parameter_types), bool(entry.result_types)
    head, end = count << 16, _VALUES + count
    ready, good = _READY | vector << 32, head | answers << 24
    wanted = device.transport
    polled = wanted in (None, Transport.POLLED) and bool(device.features & Feature.POLLED)
    ring = device.ring
    doorbell = Transport.PIO if device.transports & Transport.PIO else Transport.MMIO
    if wanted is Transport.MMIO:
        doorbell = wanted

    def run(*arguments: int) -> Any:
        try:
            frame = free.pop()
        except IndexError:
            return call(name, *arguments)
        quads = frame.quads
        at = _VALUES
        try:
            for argument in arguments:
                quads[at] = argument
                at += 1
        except (TypeError, ValueError, IndexError):
            at = 0
        if at != end:
            free.append(frame)
            return call(name, *arguments)
        quads[1] = head
        quads[2] = 0
        if weak:
            make_ready(quads, frame.words, vector)
        else:
            quads[0] = ready
        # Without a barrier in between: `settle` looks again.
        if not polled or not watching[0]:
            ring(frame.index, doorbell)
        words, spins = frame.words, _SPINS
        while words[0] != _DONE:
            spins -= 1
            if not spins:
                break
        else:
            if weak:
                fence()
            if quads[1] == good:
                value = quads[_VALUES] if answers else None
                free.append(frame)
                return value
        try:
            return settle(frame, entry)
        except Revoked:
            return call(name, *arguments)

    return run
