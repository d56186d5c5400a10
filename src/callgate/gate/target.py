# SPDX-License-Identifier: MIT
"""Target: what a vector leads to. It runs one call, from the quota to the answer.

    execute    time limit, if any -> quota -> Slot.run: may it run? -> stub -> the method
    explain    whatever was raised on the way, as a status

`Frame.look` calls `Slot.run` itself for frames that need none of the rest.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias

from callgate.call import Call, CallRefused, FrameStub, Stub
from callgate.deadline import Deadline, HandlerTimeout, Job, NoThread
from callgate.errors import DeviceError, DmaError
from callgate.gate.abi import CallFlag, Status

if TYPE_CHECKING:
    from callgate.gate.gate import Gate
    from callgate.gate.vectors import Binding, Slot, Turn

Answer: TypeAlias = tuple[Status, int, Any]
"""Status, the device's own code, results as the stub returned them."""
# Plain names: a look-up in an enum class costs as much as a call in Python 3.11.
_OK = Status.OK


class Target:
    """One call of one gate, ready to run.

    `usual` is the flags and argument count of a frame that `frame_stub` can serve as it is, -1 if
    it serves none; `done` is such a frame's second quad when it was served. `direct` says that
    `execute` without a quota is `Slot.run` with `stub`.
    """

    __slots__ = (
        "arguments",
        "direct",
        "done",
        "frame_stub",
        "gate",
        "lock",
        "name",
        "one_way",
        "places",
        "registers",
        "stub",
        "usual",
    )

    def __init__(self, gate: Gate, call: Call, stub: Stub, frame_stub: FrameStub | None) -> None:
        self.gate = gate
        self.direct = gate.device.time_limit is None
        self.stub = stub
        self.frame_stub: FrameStub = frame_stub or _no_frame_stub
        self.usual = call.arguments << 16 if frame_stub is not None else -1
        self.done = call.arguments << 16 | call.result_slots << 24
        self.lock = None if gate.device.parallel else gate.device.lock
        self.name = call.name
        self.arguments = call.arguments
        self.one_way = call.one_way
        self.places = bool(call.flags & CallFlag.PAYLOAD_OUT)
        self.registers = sys.maxsize
        if call.flags & CallFlag.REGISTERS:
            self.registers = max(call.arguments, call.result_slots)

    def execute(
        self, slot: Slot, binding: Binding, values: tuple[int, ...], payload: memoryview | None
    ) -> Answer:
        """Run the call on a copy of its argument slots; returns (status, code, result slots).

        `slot` belongs to the caller alone until this returns. Raises only what is no Exception.
        """
        try:
            stub = self.stub if len(values) == self.arguments else self._refuse_count
            if self.gate.device.time_limit is not None:
                results = self._in_time(self.gate.device.time_limit, binding, stub, values, payload)
            elif binding.quota is not None:
                results = _admit(binding, slot, self.lock, stub, values, payload)
            else:
                results = slot.run(binding, self.lock, stub, values, payload)
            return _OK, 0, results
        except Exception as error:
            return *self.explain(binding, error), ()

    def _in_time(
        self,
        deadline: Deadline,
        binding: Binding,
        stub: Stub,
        values: tuple[int, ...],
        payload: memoryview | None,
    ) -> tuple[Any, ...]:
        # A slot and a payload of its own: once it is given up, the frame is free for the next call.
        slot = self.gate.table.slot()
        copy = None if payload is None else memoryview(bytearray(payload))

        def work(job: Job) -> tuple[Any, ...]:
            lock = None if self.lock is None else job
            return _admit(binding, slot, lock, partial(job.run, stub), values, copy)

        results = deadline.run(work)
        if payload is not None and copy is not None and self.places:
            payload[:] = copy
        return results

    def _refuse_count(self, values: tuple[int, ...], payload: memoryview | None) -> NoReturn:
        """What stands in for the stub when it cannot take so many."""
        raise CallRefused(
            Status.BAD_COUNT, f"it takes {self.arguments} argument slots, not {len(values)}"
        )

    def explain(self, binding: Binding, error: Exception) -> tuple[Status, int]:
        """What a call is answered that raised: status and code. Counts it, and tells of it."""
        gate = self.gate
        status, code = Status.DEVICE_FAULT, 0
        match error:
            case CallRefused():
                status = error.status
                gate.faults.note(status.name, f"{binding}: {error}")
            case DmaError():
                status = Status.BAD_BUFFER
                gate.device.bugs.suspect(str(binding), error)
                gate.faults.note(status.name, f"{binding}: {error}")
            case DeviceError():
                try:
                    status, code = Status.DEVICE_ERROR, _code_of(error)
                except TypeError as wrong:
                    gate.device.bugs.report(str(binding), wrong)
            case HandlerTimeout():
                status = Status.TIMED_OUT
                gate.device.bugs.report(str(binding), error)
            case NoThread():
                status = Status.BUSY
                gate.device.bugs.report(str(binding), error)
            case _:
                gate.device.bugs.report(str(binding), error)
        binding.note(status)
        return status, code


class Doorbell:
    """What the doorbell's vector leads to, for a `Router`: it stands where a `Target` does.

    It is no call: it carries none, so it has no filter, quota, lock or time limit of its own, and a
    frame cannot name it.
    """

    arguments = 1
    direct: Literal[False] = False
    registers = 1

    def __init__(self, ring: Callable[[int], bool]) -> None:
        self.gate = None
        self._ring = ring

    def execute(
        self, slot: Slot, binding: Binding, values: tuple[int, ...], payload: memoryview | None
    ) -> Answer:
        """Look at the frame whose index is the argument."""
        return (_OK if self._ring(values[0]) else Status.BAD_VALUE), 0, ()


def _admit(
    binding: Binding,
    slot: Slot,
    lock: Turn | None,
    stub: Stub,
    values: tuple[int, ...],
    payload: memoryview | None,
) -> tuple[Any, ...]:
    """`Slot.run` as the call's quota allows. Who waits for the device's lock counts as in flight,
    so that a guest cannot fill the host with calls that wait."""
    quota = binding.quota
    if quota is None:
        return slot.run(binding, lock, stub, values, payload)
    if binding.refusal is not None:
        raise CallRefused(binding.refusal)  # At no cost to the quota.
    if not quota.take():
        raise CallRefused(Status.BUSY)
    try:
        return slot.run(binding, lock, stub, values, payload)
    finally:
        quota.give()


def _code_of(error: DeviceError) -> int:
    """The code as its 64 bits. Raises TypeError, with the model's traceback, where it has none."""
    given: Any = getattr(error, "code", None)
    try:
        code = operator.index(given)
    except TypeError:
        code = 1 << 64
    if not -(1 << 63) <= code < 1 << 64:
        wrong = TypeError(f"the code of a DeviceError must be a number of 64 bits, not {given!r}")
        raise wrong.with_traceback(error.__traceback__) from None
    return code & (1 << 64) - 1


def _no_frame_stub(quads: memoryview, payload: memoryview | None) -> None:
    raise AssertionError("a target without a frame stub has no usual frames")
