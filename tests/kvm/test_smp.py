# SPDX-License-Identifier: MIT
"""Two processors call at once on KVM: filter, quota and revocation hold, and nobody waits."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from callgate import Machine
from callgate.backends.kvm import probe
from callgate.load import load_device_class

ROOT = Path(__file__).resolve().parents[2]
LACKING = probe.lacks()
pytestmark = pytest.mark.skipif(LACKING is not None, reason=f"kvm: {LACKING}")
ARCHITECTURES = ("x86_64", "i386")
Smp: Any = load_device_class(str(ROOT / "tests" / "guest" / "smp.py"))
CPUS = 2


@pytest.fixture(params=ARCHITECTURES)
def machine_of(request: pytest.FixtureRequest, guests: Path) -> Iterator[Callable[..., Machine]]:
    made: list[Machine] = []

    def make(device: Any, **options: Any) -> Machine:
        guest = guests / request.param / "smp.elf"
        chosen = {"on": "kvm", "cpus": CPUS, "timeout": 120.0, "guest": guest, **options}
        made.append(Machine(device, **chosen))
        return made[-1]

    yield make
    for each in made:
        each.close()


def counts(output: str) -> list[dict[str, int]]:
    """What each processor counted."""
    return [
        {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", line.partition(":")[2])}
        for line in output.splitlines()
    ]


def test_each_call_is_answered_once(machine_of: Callable[..., Machine]) -> None:
    device = Smp(CPUS, 500)
    result = machine_of(device).run()
    assert result.exit_code == 0, result.output
    found = counts(result.output)
    assert [each["ok"] for each in found] == [500] * CPUS
    assert device.runs[:CPUS] == [500] * CPUS
    assert all(each["wrong"] == each["busy"] == each["denied"] == 0 for each in found)


def test_a_handler_keeps_no_other_processor_from_running(
    machine_of: Callable[..., Machine],
) -> None:
    device = Smp(CPUS, 20, 0.02)
    # By doorbells: a watcher would answer both frames in its own thread.
    began = time.monotonic()
    result = machine_of(device, watch=False).run()
    assert result.exit_code == 0, result.output
    assert device.most == CPUS
    assert time.monotonic() - began < CPUS * 20 * 0.02 + 5


def test_the_filter_the_quota_and_revocation_hold(machine_of: Callable[..., Machine]) -> None:
    """While both call, the host denies, allows, limits, revokes and binds; nothing is lost."""
    device = Smp(CPUS, 1000)
    machine = machine_of(device)
    ended = threading.Event()
    closed: list[bool] = []

    def meddle() -> None:
        gate = device.gate
        while not ended.is_set():
            gate.deny("work")
            before = sum(device.runs)
            time.sleep(0.001)
            closed.append(sum(device.runs) == before and device.inside == 0)
            gate.allow("work")
            time.sleep(0.002)
            gate.revoke("work")
            before = sum(device.runs)
            time.sleep(0.001)
            closed.append(sum(device.runs) == before and device.inside == 0)
            gate.bind("work")
            time.sleep(0.002)
            gate.limit("work", in_flight=1)
            time.sleep(0.002)
            gate.limit("work")

    meddling = threading.Thread(target=meddle)
    meddling.start()
    try:
        result = machine.run()
    finally:
        ended.set()
        meddling.join()
    assert result.exit_code == 0, result.output
    found = counts(result.output)
    assert [each["ok"] for each in found] == [1000] * CPUS
    assert device.runs[:CPUS] == [1000] * CPUS, "a call ran without its answer, or twice"
    assert all(each["wrong"] == 0 for each in found)
    assert len(closed) > 1
    assert all(closed)
    assert sum(each["denied"] for each in found) > 0
    assert sum(each["revoked"] for each in found) > 0


def test_a_processor_that_is_not_there(machine_of: Callable[..., Machine]) -> None:
    device = Smp(3, 1)
    result = machine_of(device).run()
    assert (result.exit_code, result.output) == (3, "processor 2 does not answer\n")
