# SPDX-License-Identifier: MIT
"""A time limit for handlers: the guest is answered in time, and nothing of the host is lost."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from callgate.call import call, u64
from callgate.deadline import Deadline
from callgate.device import Device
from callgate.errors import BackendError, DeviceError, DrainTimeout
from callgate.gate.abi import FRAME, FrameState, Status
from callgate.gate.gate import Gate, Offer, Router
from callgate.gate.vectors import VectorTable

LIMIT = 0.03
LONG = 5.0
"""A limit that a test is not to reach."""


class Work(Device):
    """`run` does what the test says."""

    id = 0x1AF4, 0x10F0
    frames = 4

    def __init__(self, act: Callable[[], Any] = lambda: 1) -> None:
        self.act = act
        self.ran = 0

    @call
    def run(self) -> u64:
        self.ran += 1
        result: int = self.act()
        return result

    @call
    def other(self) -> u64:
        self.ran += 1
        return 5

    @call
    def shout(self, text: bytes) -> bytes:
        self.act()
        return text.upper()


class ParallelWork(Work):
    """The same, without a lock."""

    name = "work"
    parallel = True


class Rig:
    """A gate alone."""

    def __init__(self, device: Work, limit: float = LIMIT) -> None:
        self.device = device
        self.table = VectorTable()
        device.time_limit = Deadline(device.lock, limit)
        self.gate = Gate(device, self.table, Offer())

    def base(self, index: int) -> int:
        return self.gate.frames_offset + index * self.gate.frame_size

    def vector(self, name: str) -> int:
        binding = self.gate.binding(name)
        assert binding is not None
        return binding.vector

    def call(self, name: str, *slots: int, index: int = 0, payload: bytes = b"") -> Any:
        base = self.base(index)
        start = base + FRAME.size
        self.gate.ram[start : start + len(payload)] = payload
        self.gate.ram[base:start] = FRAME.pack(
            vector=self.vector(name),
            arguments=len(slots),
            values=(*slots, *(0,) * (12 - len(slots))),
            state=FrameState.READY,
        )
        self.gate.ring(index)
        frame = FRAME.unpack(self.gate.ram[base:start])
        assert frame["state"] == FrameState.DONE
        return Status(frame["status"]), frame["values"][: frame["results"]]

    def frame(self, index: int = 0) -> bytes:
        base = self.base(index)
        return bytes(self.gate.ram[base : base + self.gate.frame_size])


def handlers() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "callgate handler"]


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    until(lambda: not handlers())


@contextmanager
def blocked(work: Work) -> Iterator[threading.Event]:
    """`run` blocks in C, where no exception reaches it, until the event is set."""
    event = threading.Event()

    def wait() -> int:
        event.wait()  # One call into C, without a time-out.
        return 7

    work.act = wait
    try:
        yield event
    finally:
        event.set()


def forever() -> int:
    while True:
        pass


# --- in time --------------------------------------------------------------------------------------


def test_a_call_in_time_is_answered_as_without_a_limit() -> None:
    rig = Rig(Work(), LONG)
    assert rig.call("run") == (Status.OK, (1,))
    assert rig.call("run", 1) == (Status.BAD_COUNT, ())
    status, (slot,) = rig.call("shout", 5 << 32, payload=b"hello...")
    assert (status, slot) == (Status.OK, 5 << 32)
    assert rig.frame()[FRAME.size : FRAME.size + 8] == b"HELLO..."
    assert rig.call("shout", 1 << 62) == (Status.BAD_FRAME, ())
    rig.gate.deny("run")
    assert rig.call("run") == (Status.DENIED, ())
    rig.gate.allow("run")
    rig.gate.limit("run", per_second=0.001)
    assert [rig.call("run")[0] for _ in range(2)] == [Status.OK, Status.BUSY]


def test_what_a_handler_raises_is_judged_as_without_a_limit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse() -> int:
        raise DeviceError(5)

    def fail() -> int:
        raise ZeroDivisionError("deliberately")

    work = Work(refuse)
    rig = Rig(work, LONG)
    assert rig.call("run") == (Status.DEVICE_ERROR, ())
    assert FRAME.unpack(rig.frame())["code"] == 5
    work.act = fail
    assert rig.call("run") == (Status.DEVICE_FAULT, ())
    assert "work.run: the device model raised" in caplog.text
    assert "in fail" in caplog.text


def test_what_is_not_an_exception_comes_out() -> None:
    def leave() -> int:
        raise SystemExit(3)

    rig = Rig(Work(leave), LONG)
    with pytest.raises(SystemExit):
        rig.call("run")
    assert FRAME.unpack(rig.frame())["status"] == Status.DEVICE_FAULT


def test_calls_still_take_turns() -> None:
    inside: list[int] = []
    most: list[int] = []

    def act() -> int:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.002)
        inside.pop()
        return 1

    rig = Rig(Work(act), LONG)
    threads = [
        threading.Thread(target=lambda index=index: [rig.call("run", index=index) for _ in "123"])
        for index in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most == [1] * 12


def test_the_limit_must_be_above_0() -> None:
    for seconds in (0, -1, float("nan")):
        with pytest.raises(BackendError, match="time limit must be more than 0 seconds"):
            Deadline(threading.RLock(), seconds)


# --- out of time ----------------------------------------------------------------------------------


def test_an_endless_loop_is_answered_in_time_and_ended(caplog: pytest.LogCaptureFixture) -> None:
    work = Work(forever)
    rig = Rig(work)
    began = time.monotonic()
    assert rig.call("run") == (Status.TIMED_OUT, ())
    assert LIMIT <= time.monotonic() - began < LIMIT + 1
    until(lambda: not handlers())
    work.act = lambda: 1
    assert rig.call("run") == (Status.OK, (1,))  # The device's lock is free again.
    loud = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(loud) == 1
    assert loud[0].startswith("work.run: the device model took too long\n")
    assert "in forever" in loud[0]
    assert loud[0].endswith("HandlerTimeout: it must end within 0.03 s")
    binding = rig.gate.binding("run")
    assert binding is not None
    assert binding.errors == {Status.TIMED_OUT: 1}


def test_a_model_that_catches_exceptions_is_ended_too() -> None:
    def stubborn() -> int:
        while True:
            with suppress(Exception):
                forever()

    assert Rig(Work(stubborn)).call("run") == (Status.TIMED_OUT, ())
    until(lambda: not handlers())


def test_what_a_handler_does_late_does_not_reach_the_frame() -> None:
    work = ParallelWork()
    rig = Rig(work)
    with blocked(work) as event:
        assert rig.call("shout", 5 << 32, payload=b"hello") == (Status.TIMED_OUT, ())
        rig.gate.ram[rig.base(0) + FRAME.size :][:5] = b"other"
        before = bytes(rig.gate.ram)
        event.set()
        until(lambda: not handlers())
    assert bytes(rig.gate.ram) == before


def test_the_frame_can_be_used_at_once() -> None:
    work = ParallelWork()
    rig = Rig(work)
    with blocked(work):
        assert rig.call("run") == (Status.TIMED_OUT, ())
        assert rig.call("other") == (Status.OK, (5,))


def test_until_it_ends_the_call_is_in_flight() -> None:
    work = ParallelWork()
    rig = Rig(work)
    rig.gate.limit("run", in_flight=1)
    with blocked(work) as event:
        assert rig.call("run") == (Status.TIMED_OUT, ())
        assert rig.call("run") == (Status.BUSY, ())
        with pytest.raises(DrainTimeout) as caught:
            rig.gate.deny("run", timeout=0.01)
        assert caught.value.calls == ("work.run in thread callgate handler",)
        rig.gate.allow("run")
        revoking = threading.Thread(target=rig.gate.revoke, args=("run",))
        revoking.start()
        revoking.join(0.02)
        assert revoking.is_alive()
        event.set()
        revoking.join(5)
        assert not revoking.is_alive()


def test_behind_a_stuck_handler_calls_time_out_and_never_run() -> None:
    """And their threads end: else a guest could fill the host with them."""
    work = Work()
    rig = Rig(work)
    with blocked(work) as event:
        for _ in range(6):
            assert rig.call("run") == (Status.TIMED_OUT, ())
        assert rig.call("other") == (Status.TIMED_OUT, ())
        until(lambda: len(handlers()) == 1)
        rig.gate.revoke("other", timeout=0)  # A call that never began is not in flight.
        event.set()
        until(lambda: not handlers())
    assert work.ran == 1
    assert rig.call("run") == (Status.OK, (7,))


def test_no_lock_is_lost_however_close_it_is() -> None:
    """Handlers that end just when their time is up, again and again."""
    limit = 0.002
    work = Work(lambda: time.sleep(limit) or 1)  # type: ignore[func-returns-value]
    rig = Rig(work, limit)
    rig.gate.limit("run", in_flight=1)
    seen = {rig.call("run")[0] for _ in range(150)}
    assert seen <= {Status.OK, Status.TIMED_OUT, Status.BUSY}
    work.act = lambda: sum(range(2_000)) and 1
    seen = {rig.call("run")[0] for _ in range(50)}
    assert seen <= {Status.OK, Status.TIMED_OUT, Status.BUSY}
    until(lambda: not handlers())
    rig.gate.deny(timeout=0)  # Nothing is in flight.
    rig.gate.allow()
    assert work.lock.acquire(timeout=1)
    work.lock.release()
    work.time_limit = Deadline(work.lock, LONG)
    assert rig.call("run") == (Status.OK, (1,))


def test_a_host_without_threads_is_busy(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    rig = Rig(Work())
    monkeypatch.setattr(threading.Thread, "start", start)
    assert rig.call("run") == (Status.BUSY, ())
    monkeypatch.undo()
    assert rig.call("run") == (Status.OK, (1,))
    assert "can't start new thread" in caplog.text


# --- handlers that revoke -------------------------------------------------------------------------


def test_a_handler_revokes_its_own_call() -> None:
    """It runs in another thread than the call came in by, and is not to wait for itself."""
    work = Work()
    rig = Rig(work, LONG)

    def renew() -> int:
        rig.gate.revoke("run")
        return rig.gate.bind("run")

    work.act = renew
    began = time.monotonic()
    for _ in range(50):
        status, (vector,) = rig.call("run")
        assert status == Status.OK
        assert vector == rig.vector("run")
    assert time.monotonic() - began < LONG


def test_a_handler_revokes_a_call_that_waits_for_the_device() -> None:
    """Who waits for the device's lock is not in flight, with a limit as without."""
    work = Work()
    rig = Rig(work, LONG)
    begun = threading.Event()

    def renew() -> int:
        begun.set()
        time.sleep(0.05)
        rig.gate.revoke("other", timeout=LONG / 2)
        return 1

    work.act = renew
    seen: list[Any] = []
    runner = threading.Thread(target=lambda: seen.append(rig.call("run")))
    runner.start()
    assert begun.wait(5)
    assert rig.call("other", index=1)[0] in (Status.REVOKED, Status.BUSY)
    runner.join(LONG)
    assert seen == [(Status.OK, (1,))]


# --- the hypercall's way --------------------------------------------------------------------------


def test_a_hypercall_has_the_limit_too() -> None:
    rig = Rig(Work(forever))
    router = Router(rig.table)
    slot = rig.table.slot()
    assert router.call(slot, rig.vector("run"), lambda count: ()) == (Status.TIMED_OUT, ())
    assert router.call(slot, rig.vector("other"), lambda count: ())[0] in (
        Status.OK,
        Status.TIMED_OUT,
    )


def test_the_doorbell_itself_has_none() -> None:
    """The frame's call does, and the doorbell is rung until it is answered."""
    rig = Rig(Work(forever))
    base = rig.base(0)
    rig.gate.ram[base : base + FRAME.size] = FRAME.pack(
        vector=rig.vector("run"), state=FrameState.READY
    )
    doorbell = int.from_bytes(rig.gate.ram[0x3C:0x40], "little")
    router = Router(rig.table)
    slot = rig.table.slot()
    for _ in range(3):
        assert router.call(slot, doorbell, lambda count: (0,)) == (Status.OK, ())
        frame = FRAME.unpack(rig.frame())
        assert (frame["state"], frame["status"]) == (FrameState.DONE, Status.TIMED_OUT)
        rig.gate.ram[base] = FrameState.READY
    rig.gate._frames[0].clear()  # Nobody has it any more.
    assert FRAME.unpack(rig.frame())["state"] == FrameState.FREE


TRACED = """
import sys, threading

def trace(frame, event, argument):
    return None

threading.settrace(trace)
sys.settrace(trace)

from callgate import Device, call
from callgate.testing import FakeGuest
from callgate.errors import TimedOut

event = threading.Event()

class Blocked(Device):
    id = 0x1AF4, 0x10F0

    @call
    def linger(self) -> None:
        event.wait()

with FakeGuest(Blocked(), handler_timeout=0.05) as guest:
    try:
        guest.open("blocked").linger()
    except TimedOut:
        print("answered")
    event.set()
"""


def test_a_handler_that_is_blocked_does_not_stop_traced_threads() -> None:
    # As under a debugger. In a process of its own: where it goes wrong, nothing in it goes on.
    done = subprocess.run(
        [sys.executable, "-c", TRACED], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "answered\n"
