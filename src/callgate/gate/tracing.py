# SPDX-License-Identifier: MIT
"""Calls as events: which call, by which way it came, arguments and results as their types say.

    came_by("mmio")     around a doorbell's write, by whoever heard it
      TracedFrame       knows when the watcher came by itself, and what it turns away
        TracedTarget    tells of the call

The frames and targets of a gate that nobody traces know nothing of this.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from callgate.call import BOOL, BufferType, Call, Payload, Scalar, Stub
from callgate.gate.abi import Status
from callgate.gate.frame import PlainFrame
from callgate.gate.target import Answer, Target
from callgate.trace import Event, Trace, shown

if TYPE_CHECKING:
    from callgate.gate.gate import Gate
    from callgate.gate.vectors import Binding, Slot, VectorTable

_REMEMBERED = 4096
_here = threading.local()


@contextmanager
def came_by(way: str) -> Iterator[None]:
    """What this thread is told of meanwhile came by `way`."""
    before = getattr(_here, "way", None)
    _here.way = way
    try:
        yield
    finally:
        _here.way = before


def by(way: str, ring: Callable[[int], bool]) -> Callable[[int], bool]:
    """The doorbell `ring`, of which is told that it came by `way`."""

    def rung(index: int) -> bool:
        with came_by(way):
            return ring(index)

    return rung


def remember(table: VectorTable, binding: Binding) -> None:
    """Keep the name of a call whose vector is taken away, for those that still use it."""
    former = table.former
    former[binding.vector] = binding.target.gate.device.spec.name, binding.name
    while len(former) > _REMEMBERED:
        del former[next(iter(former))]


def refused_event(table: VectorTable, device: str, vector: int, status: Status, via: str) -> Event:
    """A call that was turned away by its vector; `device` is whose it is if nobody knows better."""
    owner, name = table.former.get(vector, (device, f"vector {vector:#010x}"))
    return Event(owner, "call", name, (), status.name, 0.0, via)


class TracedFrame(PlainFrame):
    """A frame that says when the watcher found it, and what of it was turned away."""

    __slots__ = ()

    def look(self, from_watcher: bool = False) -> None:
        """See `PlainFrame`."""
        if not from_watcher:
            super().look()
            return
        with came_by("polling"):
            super().look(True)

    def _refuse(self, flags: int, vector: int, status: Status, sentence: str) -> int:
        gate = self.gate
        if gate.trace is not None:
            name, via = gate.device.spec.name, _via(gate, self.slot)
            gate.trace(refused_event(gate.table, name, vector, status, via))
        return super()._refuse(flags, vector, status, sentence)


class TracedTarget(Target):
    """A call that tells `trace` of each time that it is made."""

    __slots__ = ("call", "trace")

    def __init__(self, gate: Gate, call: Call, stub: Stub, trace: Trace) -> None:
        super().__init__(gate, call, stub, None)
        self.direct = False
        self.call = call
        self.trace = trace

    def execute(
        self,
        slot: Slot,
        binding: Binding,
        values: tuple[int, ...],
        payload: memoryview | None,
    ) -> Answer:
        """See `Target`."""
        arguments = tuple(_arguments(self.call, values, payload))
        began = time.perf_counter()
        status, code, results = answer = super().execute(slot, binding, values, payload)
        seconds = time.perf_counter() - began
        said = status.name
        if status == Status.OK:
            said = ", ".join(_results(self.call, results)) or "ok"
        elif status == Status.DEVICE_ERROR:
            said += f" {shown(code)}"
        device, via = self.gate.device.spec.name, _via(self.gate, slot)
        self.trace(Event(device, "call", self.name, arguments, said, seconds, via))
        return answer


class _Place:
    """A buffer, as a trace shows it."""

    def __init__(self, gpa: int, length: int) -> None:
        self._shown = f"{length} bytes at {gpa:#x}"

    def __repr__(self) -> str:
        return self._shown


def _via(gate: Gate, slot: Slot) -> str:
    """Which way a call came, by where it is written down."""
    way = getattr(_here, "way", None)
    index = gate.frame_of.get(slot)
    if index is not None:
        return f"frame {index} by {way or 'doorbell'}"
    return "hypercall" if way is None else f"NOTIFY by {way}"


def _arguments(call: Call, values: tuple[int, ...], payload: memoryview | None) -> Iterator[object]:
    if len(values) != call.arguments:
        yield from values
        return
    slots = iter(values)
    for parameter in call.parameters:
        kind, slot = parameter.type, next(slots)
        if isinstance(kind, Payload):
            start, length = slot & 0xFFFF_FFFF, slot >> 32
            yield bytes(payload[start : start + length]) if payload is not None else b""
        elif isinstance(kind, BufferType):
            yield _Place(slot, next(slots))
        else:
            yield _number(kind, slot)


def _results(call: Call, results: tuple[Any, ...]) -> Iterator[str]:
    for kind, result in zip(call.results, results, strict=True):
        if isinstance(kind, Scalar):
            yield shown(_number(kind, result))
        else:
            yield f"{result >> 32} bytes"


def _number(kind: Scalar, slot: int) -> object:
    if kind.bits == BOOL.bits:
        return slot == 1
    if kind.signed and slot >> 63:
        return slot - (1 << 64)
    return slot
