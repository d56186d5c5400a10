# SPDX-License-Identifier: MIT
"""Calls as events: arguments and results as their types say, not as slots."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from callgate.call import BOOL, BufferType, Call, CallRefused, Payload, Scalar, Stub
from callgate.errors import DeviceError
from callgate.gate.abi import Status
from callgate.trace import Event, Trace


def traced(stub: Stub, call: Call, device: str, trace: Trace) -> Stub:
    """The stub, telling `trace` of each call of it."""

    def run(values: tuple[int, ...], payload: memoryview | None) -> tuple[Any, ...]:
        arguments = tuple(_arguments(call, values, payload))
        began = time.perf_counter()
        answer = "raised"
        try:
            results = stub(values, payload)
            answer = ", ".join(_results(call, results)) or "ok"
            return results
        except DeviceError as error:
            answer = f"DEVICE_ERROR {error.code}"
            raise
        except CallRefused as error:
            answer = error.status.name
            raise
        finally:
            seconds = time.perf_counter() - began
            trace(Event(device, "call", call.name, arguments, answer, seconds))

    return run


def refused_event(device: str, vector: int, status: Status) -> Event:
    """A call that was turned away by its vector."""
    return Event(device, "call", f"vector {vector:#010x}", (), status.name, 0.0)


class _Place:
    """A buffer, as a trace shows it."""

    def __init__(self, gpa: int, length: int) -> None:
        self._shown = f"{length} bytes at {gpa:#x}"

    def __repr__(self) -> str:
        return self._shown


def _arguments(call: Call, values: tuple[int, ...], payload: memoryview | None) -> Iterator[object]:
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
            yield str(_number(kind, result))
        else:
            yield f"{len(memoryview(result))} bytes"


def _number(kind: Scalar, slot: int) -> object:
    if kind.bits == BOOL.bits:
        return slot == 1
    if kind.signed and slot >> 63:
        return slot - (1 << 64)
    return slot
