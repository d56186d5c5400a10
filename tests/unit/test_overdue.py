# SPDX-License-Identifier: MIT
"""Models whose code does not end: with a limit, when a run's time is up, and when all is closed.

Nobody waits for it longer than was said, and the log names it.
"""

import logging
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from callgate import device as device_module
from callgate.call import call, u64
from callgate.device import Device
from callgate.driver.pci import PciFunction
from callgate.errors import BudgetError, TimedOut
from callgate.gate import gate as gate_module
from callgate.gate.abi import FRAME, HEADER, Feature, FrameState, Status
from callgate.gate.watcher import Watcher
from callgate.machine import Machine
from callgate.overrun import Overrun
from callgate.register import Bar, Register
from callgate.testing import FakeGuest
from callgate.threads import Ended

LIMIT = 0.03
LATE = 2.0
"""Seconds after which something took too long."""
ONES = 0xFFFF_FFFF


class Model(Device):
    """Does what the test says, wherever its code runs."""

    id = 0x1AF4, 0x10F0
    area = Bar(0, 4096)
    plain = Register(0x00, reset=7)
    hooked = Register(0x04, reset=9)

    def __init__(self) -> None:
        self.act: dict[str, Callable[[], Any]] = {}
        self.done: list[str] = []

    def do(self, what: str) -> None:
        self.act.get(what, lambda: None)()
        self.done.append(what)

    @call
    def run(self) -> u64:
        self.do("run")
        return 1

    @hooked.on_read
    def reading(self) -> int:
        self.do("read")
        return self.hooked

    @hooked.on_write
    def writing(self, value: int) -> None:
        self.do("write")

    @area.on_read
    def reading_area(self, offset: int, size: int) -> int:
        self.do("area read")
        return 5

    @area.on_write
    def writing_area(self, offset: int, size: int, value: int) -> None:
        self.do("area write")

    def tick(self) -> None:
        self.do("timer")

    def reset(self) -> None:
        self.do("reset")

    def detach(self) -> None:
        self.do("detach")


def forever() -> None:
    while True:
        pass


class Blocked:
    """Blocks in C, where no exception reaches it."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.leave = threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        self.leave.wait()


@pytest.fixture
def blocked() -> Iterator[Blocked]:
    blocked = Blocked()
    yield blocked
    blocked.leave.set()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "RESET_DRAIN", 0.1)
    monkeypatch.setattr(device_module, "PATIENCE", 0.1)
    monkeypatch.setattr("callgate.gate.watcher.PATIENCE", 0.1)


@contextmanager
def in_time() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < LATE


@contextmanager
def limited(model: Model) -> Iterator[tuple[FakeGuest, PciFunction]]:
    with FakeGuest(model, handler_timeout=LIMIT) as guest:
        yield guest, guest.function(*Model.id)


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def at_rest() -> bool:
    return not any(each.name == "callgate handler" for each in threading.enumerate())


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


# --- with a limit ---------------------------------------------------------------------------------


HOOKS: dict[str, tuple[str, Callable[[PciFunction], Any]]] = {
    "read": ("model.hooked, read by the guest", lambda function: function.read(0, 4, 4)),
    "write": ("model.hooked, written by the guest", lambda function: function.write(0, 4, 4, 3)),
    "area read": ("model.area, read by the guest", lambda function: function.read(0, 0x80, 4)),
    "area write": (
        "model.area, written by the guest",
        lambda function: function.write(0, 0x80, 4, 3),
    ),
}


@pytest.mark.parametrize("what", HOOKS)
@pytest.mark.parametrize("how", ["loops", "is blocked"])
def test_a_hook_that_does_not_end(
    what: str, how: str, blocked: Blocked, caplog: pytest.LogCaptureFixture
) -> None:
    """The guest goes on; so does the device, as soon as its code has ended."""
    model = Model()
    where, access = HOOKS[what]
    with limited(model) as (_, function):
        before = access(function)
        model.act[what] = forever if how == "loops" else blocked
        with in_time():
            assert access(function) in (ONES, None)
        (report,) = errors(caplog)
        assert report.startswith(f"{where}")
        assert ": the device model took too long\n" in report
        assert "test_overdue.py" in report
        assert report.endswith("HandlerTimeout: it must end within 0.03 s")
        assert model.bugs.counts == {where: 1}
        blocked.leave.set()
        until(at_rest)
        model.act.clear()
        assert access(function) == before


def test_accesses_in_time_are_as_without_a_limit(caplog: pytest.LogCaptureFixture) -> None:
    model = Model()
    with limited(model) as (guest, function):
        assert [function.read(0, offset, 4) for offset in (0, 4, 0x80)] == [7, 9, 5]
        function.write(0, 4, 4, 11)
        assert function.read(0, 4, 4) == 11
        model.act["write"] = lambda: 1 / 0
        function.write(0, 4, 4, 12)
        model.after(1, model.tick)
        guest.advance(1)
        assert guest.open("model").run() == 1
    assert model.done[-3:] == ["timer", "run", "detach"]
    assert [each.splitlines()[-1] for each in errors(caplog)] == [
        "ZeroDivisionError: division by zero"
    ]


def test_accesses_while_a_handler_is_blocked(
    blocked: Blocked, caplog: pytest.LogCaptureFixture
) -> None:
    """TIMED_OUT; then the device is busy, and says so in time, and drops what it cannot take."""
    model = Model()
    model.act["run"] = blocked
    with limited(model) as (guest, function):
        driver = guest.open("model")
        with in_time(), pytest.raises(TimedOut):
            driver.run()
        with in_time():
            assert function.read(0, 0, 4) == 7  # It needs no turn of the model's.
            assert function.read(0, 4, 4) == ONES
            function.write(0, 4, 4, 5)
            function.write(0, 0, 4, 5)
        assert model.done == []
        assert all(
            "HandlerTimeout: it must begin within 0.03 s, and other code of the device kept it"
            in report
            and "File" not in report
            for report in errors(caplog)[1:]
        )
        assert sum(model.bugs.counts.values()) == 4
        blocked.leave.set()
        until(at_rest)
        assert model.done == []  # What was dropped never runs.
        assert (model.plain, model.hooked) == (7, 9)
        model.act.clear()
        assert driver.run() == 1


def test_timers_that_do_not_end(blocked: Blocked, caplog: pytest.LogCaptureFixture) -> None:
    model, other = Model(), Other()
    with FakeGuest(model, other, handler_timeout=LIMIT) as guest:
        for act in (forever, blocked):
            model.act["timer"] = act
            once, again = model.after(1, model.tick), other.every(0.4, other.tick)
            with in_time():
                guest.advance(1.1)
            assert other.ticks == 2
            other.ticks = 0
            once.cancel()
            again.cancel()
        assert model._started_timers == set()
        model.act["timer"] = lambda: None
        model.every(1, model.tick)
        with in_time():
            guest.advance(1)  # Dropped: the device is busy still.
        blocked.leave.set()
        until(at_rest)
        model.done.clear()
        guest.advance(2)
        assert model.done == ["timer"] * 2
    assert [each.partition(":")[0] for each in errors(caplog)] == ["model.timer"] * 3


class Other(Device):
    """Whoever is not concerned."""

    id = 0x1AF4, 0x10F1

    def __init__(self) -> None:
        self.ticks = 0

    def tick(self) -> None:
        self.ticks += 1


@pytest.mark.parametrize("what", ["run", "write", "reset"])
def test_a_reset_while_the_model_does_not_end(
    what: str, blocked: Blocked, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model()
    with limited(model) as (guest, function):
        driver = guest.open("model")
        function.write(0, 0, 4, 5)
        model.every(1, model.tick)
        model.act[what] = blocked
        with in_time():
            if what == "run":
                with pytest.raises(TimedOut):
                    driver.run()
            elif what == "write":
                function.write(0, 4, 4, 1)
            guest.machine.reset()
        assert (model.plain, model.hooked) == (7, 9)
        assert model._started_timers == set()
        if what == "run":
            (left,) = (each for each in errors(caplog) if "is left behind" in each)
            assert re.fullmatch(
                r"model\.run \(test_overdue\.py, line \d+\) does not end, and is left behind in "
                "thread callgate handler",
                left,
            )
        blocked.leave.set()
        until(at_rest)
        model.act.clear()
        function.enable()
        assert guest.open("model").run() == 1


@pytest.mark.parametrize("what", ["run", "write", "detach"])
@pytest.mark.parametrize("how", ["loops", "is blocked"])
def test_a_machine_that_is_closed_while_the_model_does_not_end(
    what: str, how: str, blocked: Blocked, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model()
    with in_time(), limited(model) as (guest, function):
        driver = guest.open("model")
        model.act[what] = forever if how == "loops" else blocked
        if what == "run":
            with pytest.raises(TimedOut):
                driver.run()
        elif what == "write":
            function.write(0, 4, 4, 1)
        if how == "loops":
            until(at_rest)
    assert model._plugged_into is None
    left = [each for each in errors(caplog) if "is left behind" in each]
    assert len(left) == (how == "is blocked" and what != "detach")
    assert ("detach" in model.done) == (how == "loops" and what != "detach")


# --- without one ----------------------------------------------------------------------------------


def post(machine: Machine) -> memoryview:
    """Fill the first frame for `run`, without ringing; returns its words."""
    gate = machine.functions[0].gate
    assert gate is not None
    binding = gate.binding("run")
    assert binding is not None
    base = gate.frames_offset
    gate.ram[base : base + FRAME.size] = FRAME.pack(vector=binding.vector, state=FrameState.READY)
    return gate.ram[base : base + FRAME.size].cast("I")


@pytest.mark.parametrize("how", ["loops", "is blocked"])
def test_a_machine_that_is_closed_while_a_polled_handler_does_not_end(
    how: str, blocked: Blocked, caplog: pytest.LogCaptureFixture
) -> None:
    """A loop is ended; what is blocked is left behind, in a thread that keeps nothing alive."""
    model = Model()
    with in_time(), Machine(model, on="loopback", linger=10) as machine:
        gate = machine.functions[0].gate
        assert gate is not None
        gate.mmio_write(0x0C, 4, int(Feature.POLLED))
        words = post(machine)
        gate.ring(0)
        until(lambda: gate.ram[HEADER.offset("watching")])
        entered = threading.Event()

        def loop() -> None:
            entered.set()
            forever()

        model.act["run"] = loop if how == "loops" else blocked
        words = post(machine)
        assert (entered if how == "loops" else blocked.entered).wait(5)
    watcher = next(
        (each for each in threading.enumerate() if each.name == "callgate watcher of model"), None
    )
    if how == "loops":
        assert watcher is None
        (report,) = errors(caplog)
        assert report.startswith("model, watched: the device model was ended\n")
        assert "in forever" in report
        assert words[3] == Status.DEVICE_FAULT
        assert model.done == ["run", "detach"]
    else:
        assert watcher is not None
        assert watcher.daemon
        (report,) = errors(caplog)
        assert report.startswith("model.run (test_overdue.py, line ")
        assert report.endswith(
            ") does not end, and is left behind in thread callgate watcher of model"
        )
        assert model.done == ["run"]
        blocked.leave.set()
        watcher.join(5)
        assert not watcher.is_alive()


def test_close_waits_for_a_handler_that_does_end(caplog: pytest.LogCaptureFixture) -> None:
    model = Model()
    entered = threading.Event()

    def act() -> None:
        entered.set()
        time.sleep(0.05)

    model.act["run"] = act
    with FakeGuest(model) as guest:
        driver = guest.open("model")
        caller = threading.Thread(target=driver.run)
        caller.start()
        assert entered.wait(5)
    caller.join(5)
    assert model.done == ["run", "detach"]
    assert errors(caplog) == []


# --- when the time of a run is up -----------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"handler_timeout": 5}, {"handler_timeout": LIMIT}])
def test_a_timer_that_does_not_end_does_not_keep_a_run_from_ending(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = Model()
    model.act["timer"] = forever
    with Machine(model, on="loopback", timeout=0.1, watch=False, **options) as machine:
        model.after(0, model.tick)
        with in_time(), pytest.raises(BudgetError) as caught:
            machine.run()
        if options != {"handler_timeout": LIMIT}:
            assert re.fullmatch(
                r"The guest used up its time, and model\.timer \(test_overdue\.py, line \d+\) had "
                "not ended",
                str(caught.value),
            )
            assert any("model.timer: the device model was ended\n" in e for e in errors(caplog))
        until(at_rest)
        with pytest.raises(BudgetError, match="time budget is used up"):
            machine.run()  # It goes on with a new budget.


def program(what: str) -> bytes:
    """A guest for x86-64 that reads or writes `hooked`, or calls `run`, and then spins."""
    with Machine(Model(), on="loopback", seed=1, watch=False) as machine:
        function = machine.functions[0]
        assert function.gate is not None
        binding = function.gate.binding("run")
        assert binding is not None
        (address,) = (bar.address for bar in function.bars if bar.index == 0)
    code = {
        "read": struct.pack("<BQ", 0xA1, address + 4),  # mov eax, [address]
        "write": struct.pack("<BQ", 0xA3, address + 4),  # mov [address], eax
        "run": struct.pack("<BI3s", 0xB8, binding.vector, b"\x0f\x01\xc1"),  # vmcall
        "timer": b"",
    }[what] + b"\xeb\xfe"
    head = struct.pack(
        "<4sBBBB8xHHIQQQIHHHHHH",
        *(b"\x7fELF", 2, 1, 1, 0, 2, 62, 1, 0x100000),
        *(64, 0, 0, 64, 56, 1, 0, 0, 0),
    )
    return (
        head
        + struct.pack("<IIQQQQQQ", 1, 5, 120, 0x100000, 0x100000, len(code), len(code), 1)
        + code
    )


@pytest.mark.parametrize("limit", [None, 5.0, LIMIT])
@pytest.mark.parametrize(
    ("what", "where"),
    [
        ("read", "model.hooked, read by the guest"),
        ("write", "model.hooked, written by the guest"),
        ("run", "model.run"),
        ("timer", "model.timer"),
    ],
)
def test_a_guest_whose_device_does_not_end(
    what: str,
    where: str,
    limit: float | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The run ends in time, and says because of whom; with a shorter limit the guest goes on."""
    guest = tmp_path / "guest.elf"
    guest.write_bytes(program(what))
    model = Model()
    model.act[what] = forever
    options: dict[str, Any] = {"guest": guest, "seed": 1, "timeout": 0.3, "watch": False}
    with Machine(model, handler_timeout=limit, **options) as machine:
        if what == "timer":
            model.after(0, model.tick)
        with in_time(), pytest.raises(BudgetError) as caught:
            machine.run()
        if limit == LIMIT:
            assert str(caught.value).startswith("The guest used up its time at 0x1000")
            assert errors(caplog)[0].startswith(f"{where}: the device model took too long\n")
        else:
            assert str(caught.value).startswith(f"The guest used up its time, and {where} (test_o")
            assert errors(caplog)[0].startswith(f"{where}: the device model was ended\n")
        assert "in forever" in errors(caplog)[0]
        until(at_rest)
        model.act.clear()
        with pytest.raises(BudgetError, match=r"The guest used up its time at 0x1000"):
            machine.run()


@pytest.mark.parametrize("what", ["read", "write", "run", "timer"])
def test_a_run_in_the_main_thread_wakes_what_is_blocked(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert threading.current_thread() is threading.main_thread()
    guest = tmp_path / "guest.elf"
    guest.write_bytes(program(what))
    model = Model()
    model.act[what] = lambda: time.sleep(1000)
    with Machine(model, guest=guest, seed=1, timeout=0.3, watch=False) as machine:
        if what == "timer":
            model.after(0, model.tick)
        with in_time(), pytest.raises(BudgetError, match=r"\(test_overdue\.py, line"):
            machine.run()
        assert len(errors(caplog)) == 1
        model.act.clear()
        with pytest.raises(BudgetError, match=r"The guest used up its time at 0x1000"):
            machine.run()


def test_what_is_blocked_in_another_thread_is_told(
    blocked: Blocked, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model()
    model.act["timer"] = blocked
    caught: list[BaseException] = []
    with Machine(model, on="loopback", timeout=0.1, watch=False) as machine:
        model.after(0, model.tick)

        def run() -> None:
            try:
                machine.run()
            except BudgetError as error:
                caught.append(error)

        runner = threading.Thread(target=run)
        runner.start()
        until(lambda: len(errors(caplog)) == 2)
        blocked.leave.set()
        runner.join(10)
    assert len(caught) == 1
    assert errors(caplog)[0].startswith("model.timer: the device model was ended\n")
    assert re.fullmatch(
        r"model\.timer \(test_overdue\.py, line \d+\) has not ended yet: what is blocked in C ends "
        r"when it comes back; a handler_timeout \(--handler-timeout\) does not wait for that",
        errors(caplog)[1],
    )


def test_who_waits_for_the_device_goes_on_too(caplog: pytest.LogCaptureFixture) -> None:
    """A handler loops in another thread, and the run's own waits for the device's lock."""
    model = Model()
    entered = threading.Event()

    def act() -> None:
        entered.set()
        forever()

    model.act["run"] = act
    with Machine(model, on="loopback", timeout=0.3, watch=False) as machine:
        post(machine)
        gate = machine.functions[0].gate
        assert gate is not None

        def ring() -> None:
            with suppress(Ended):
                gate.ring(0)

        caller = threading.Thread(target=ring)
        caller.start()
        assert entered.wait(5)
        model.after(0, model.tick)
        with in_time(), pytest.raises(BudgetError, match=r"model\.run \(test_overdue\.py, line"):
            machine.run()
        caller.join(5)
        assert model.done == ["timer"]


def test_what_ends_in_time_is_left_alone() -> None:
    model = Model()
    model.act["timer"] = lambda: time.sleep(0.02)
    with Machine(model, on="loopback", timeout=0.05, watch=False) as machine:
        model.every(0.001, model.tick)
        with pytest.raises(BudgetError, match="time budget is used up"):
            machine.run()
    assert model.bugs.counts == {}


def test_without_a_deadline_an_overrun_does_nothing() -> None:
    with Overrun([Model()]).until(None):
        assert not any(each.name == "callgate overrun" for each in threading.enumerate())


def test_a_watcher_leaves_nothing_behind() -> None:
    with Machine(Model(), on="loopback") as machine:
        assert machine.functions[0].gate is not None
    assert not any(each.name.startswith("callgate watcher") for each in threading.enumerate())
    assert Watcher.__doc__
