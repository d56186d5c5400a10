# SPDX-License-Identifier: MIT
"""Target: what a vector leads to. It runs one call, from the filter to the answer.

execute, run      may it run (filter, quota, count)? written down meanwhile; the stub
CallRefused ...   what was raised, as a status
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from callgate.call import Call, CallRefused, FrameStub, Stub
from callgate.errors import DeviceError, DmaError
from callgate.gate.abi import CallFlag, Status
from callgate.trace import Event

if TYPE_CHECKING:
    from callgate.gate.deadline import Job
    from callgate.gate.gate import Gate
    from callgate.gate.quota import Quota
    from callgate.gate.vectors import Binding, Slot

Answer: TypeAlias = tuple[Status, int, Any]
"""Status, the device's own code, results as the stub returned them."""
# Plain names: a look-up in an enum class costs as much as a call in Python 3.11.
_OK = Status.OK
_FAULT = Status.DEVICE_FAULT
_DEVICE_ERROR = Status.DEVICE_ERROR


class Target:
    """One call of one gate, ready to run.

    `usual` is the flags and argument count of a frame that `frame_stub` can serve as it is, -1 if
    it serves none; `done` is such a frame's second quad when it was served. `direct` says that
    `run` with `stub` is the same as `execute`.
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
        "table",
        "usual",
    )

    def __init__(self, gate: Gate, call: Call, stub: Stub, frame_stub: FrameStub | None) -> None:
        self.gate = gate
        self.table = gate.table
        self.direct = gate.deadline is None
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
        self,
        slot: Slot,
        binding: Binding,
        values: tuple[int, ...],
        payload: memoryview | None,
        job: Job | None = None,
    ) -> Answer:
        """Run the call on a copy of its argument slots; returns (status, code, result slots).

        `slot` belongs to the caller alone until this returns. `job` is for `deadline.py`. Raises
        only what is no Exception.
        """
        deadline = self.gate.deadline
        if deadline is None:
            return self.run(slot, binding, self.stub, values, payload, len(values))
        if job is None:
            return deadline.run(self.gate, binding, values, payload)
        return self.run(slot, binding, partial(job.run, self.stub), values, payload, len(values))

    def run(
        self,
        slot: Slot,
        binding: Binding,
        stub: Callable[[Any, memoryview | None], Any],
        values: Any,
        payload: memoryview | None,
        count: int,
    ) -> Answer:
        """Run it by a stub that takes `count` argument slots out of `values`; see `execute`."""
        lock = self.lock
        # The device's lock comes before the slot: who waits for it is not in flight, so a handler
        # can revoke a call while another vCPU waits to make it.
        if lock is not None:
            lock.acquire()
        slot.thread = get_ident()
        slot.binding = binding  # Stored before `refusal` is read: vectors.py argues why.
        quota = None
        try:
            if binding.refusal is not None or binding.quota is not None:
                refusal, quota = _admit(binding)
                if refusal is not None:
                    return self._turn_away(binding, refusal, refusal.text)
            if count != self.arguments:
                sentence = f"it takes {self.arguments} argument slots, not {count}"
                return self._turn_away(binding, Status.BAD_COUNT, sentence)
            next(binding.calls)
            return _OK, 0, stub(values, payload)
        except CallRefused as error:
            return self._decline(binding, error.status, str(error))
        except DeviceError as error:
            return self._refused_by_device(binding, error)
        except DmaError as error:
            return self._decline(binding, Status.BAD_BUFFER, str(error))
        except Exception as error:
            return self._fault(binding, error)
        finally:
            if quota is not None:
                quota.give()
            slot.binding = None
            if self.table.drains:
                self.table.wake()
            if lock is not None:
                lock.release()

    def _turn_away(self, binding: Binding, status: Status, sentence: str) -> Answer:
        """Decline a call before its stub saw it."""
        trace = self.gate.trace
        if trace is not None:
            trace(Event(self.gate.device.spec.name, "call", self.name, (), status.name, 0.0))
        return self._decline(binding, status, sentence)

    def _decline(self, binding: Binding, status: Status, sentence: str) -> Answer:
        binding.note(status)
        self.gate.faults.note(status.name, f"{binding}: {sentence}")
        return status, 0, ()

    def _refused_by_device(self, binding: Binding, error: DeviceError) -> Answer:
        try:
            code = operator.index(error.code)
        except (TypeError, AttributeError):
            wrong = TypeError(f"the code of a DeviceError must be a number, not {error!r}")
            return self._fault(binding, wrong.with_traceback(error.__traceback__))
        binding.note(_DEVICE_ERROR)
        return _DEVICE_ERROR, code & (1 << 64) - 1, ()

    def _fault(self, binding: Binding, error: Exception) -> Answer:
        binding.note(_FAULT)
        self.gate.device.bugs.report(str(binding), error)
        return _FAULT, 0, ()


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


def _no_frame_stub(quads: memoryview, payload: memoryview | None) -> None:
    raise AssertionError("a target without a frame stub has no usual frames")


def _admit(binding: Binding) -> tuple[Status | None, Quota | None]:
    """What filter and quota answer, None if the call may run; and the quota that was taken of."""
    quota = binding.quota
    if binding.refusal is not None or quota is None:
        return binding.refusal, None
    return (None, quota) if quota.take() else (Status.BUSY, None)
