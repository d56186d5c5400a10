# SPDX-License-Identifier: MIT
"""The conformance suite from its user's side: which cases there are, and what a skip says."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest

from callgate.backends.loopback import Loopback
from callgate.call import call, u64
from callgate.device import Device
from callgate.gate.abi import Transport
from callgate.testing.conformance import Case, ConformanceSuite, InterruptedDoor, Way
from callgate.testing.conformance.rig import make_rig

LOOPBACK = Case("loopback", "i386", "lguest")


class Sample(Device):
    id = 0x1AF4, 0x10F0

    @call
    def add(self, a: u64, b: u64) -> u64:
        return a + b


def parameters(suite: ConformanceSuite, test: Callable[..., None]) -> list[Any]:
    """What a test of the suite is run with."""
    found: list[Any] = []
    metafunc = SimpleNamespace(
        fixturenames=["case", "make"],
        function=test,
        parametrize=lambda name, values: found.extend(values),
    )
    suite.pytest_generate_tests(cast(pytest.Metafunc, metafunc))
    return found


class OnLoopback(ConformanceSuite):
    backends: ClassVar[tuple[str, ...]] = ("loopback",)


def test_each_test_runs_on_each_architecture() -> None:
    found = parameters(OnLoopback(), OnLoopback.test_access_kinds)
    assert [each.id for each in found] == [
        "loopback-x86_64-kvm-intel",
        "loopback-i386-kvm-intel",
        "loopback-aarch64-smccc",
        "loopback-riscv64-sbi",
    ]


def test_what_concerns_hypercalls_runs_on_each_platform() -> None:
    found = parameters(OnLoopback(), OnLoopback.test_each_transport_carries_a_call)
    assert len(found) == 13
    assert "loopback-i386-lguest" in [each.id for each in found]


def test_all_backends_unless_some_are_named() -> None:
    found = parameters(ConformanceSuite(), ConformanceSuite.test_access_kinds)
    assert {each.id.partition("-")[0] for each in found} >= {"loopback", "unicorn"}


def test_a_test_without_a_machine_is_left_alone() -> None:
    metafunc = SimpleNamespace(fixturenames=["tmp_path"])
    OnLoopback().pytest_generate_tests(cast(pytest.Metafunc, metafunc))


def skips(suite: ConformanceSuite) -> list[str]:
    return [
        mark.kwargs["reason"]
        for each in parameters(suite, ConformanceSuite.test_access_kinds)
        for mark in each.marks
    ]


def test_a_backend_that_lacks_something_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "/dev/luck: Permission denied: add yourself to the group luck"
    monkeypatch.setattr(Loopback, "lacks", classmethod(lambda cls: reason))
    assert skips(OnLoopback()) == [f"loopback: {reason}"]


def test_a_backend_that_nobody_knows_is_skipped() -> None:
    class OnNothing(ConformanceSuite):
        backends: ClassVar[tuple[str, ...]] = ("nothing",)

    (reason,) = skips(OnNothing())
    assert "The backend must be one of kvm, loopback, qemu, unicorn" in reason


def test_an_agent_that_was_not_built_is_told(tmp_path: Path) -> None:
    class OnUnicorn(ConformanceSuite):
        guests: ClassVar[Path] = tmp_path

    with pytest.raises(pytest.skip.Exception, match=r"must be built first: python guest/build.py"):
        OnUnicorn().make_rig(Case("unicorn", "aarch64", "smccc"), Sample())


def test_a_rig_is_a_machine_of_its_case(tmp_path: Path) -> None:
    sample = Sample()
    with make_rig(LOOPBACK, tmp_path, sample, Sample()) as rig:
        assert rig.machine.board.arch == "i386"
        assert rig.machine.platform.name == "lguest"
        assert (rig.slots, rig.widths) == (3, (1, 2, 4))
        assert rig.function(rig.devices[1]).address == 0x10
        assert not isinstance(rig.door, InterruptedDoor)
        device = rig.open(sample)
        assert [str(way) for way in rig.ways(device)] == [
            "hypercall (registers)",
            "hypercall (frame)",
            "pio",
            "mmio",
            "polled",
        ]
        for way in rig.ways(device):
            assert way.invoke(device, device.calls["add"].vector, (2, 40))[2][0] == 42
        old = device.calls["add"].vector
        rig.reset()
        assert Way(Transport.HYPERCALL, False).invoke(rig.open(sample), old, (2, 40))[0] == 2
    assert sample._plugged_into is None


def test_a_function_can_be_added(tmp_path: Path) -> None:
    with make_rig(LOOPBACK, tmp_path, Sample()) as rig:
        function = rig.plug(Sample(), 1, 3)
        assert function.id == Sample.id
        assert list(rig.door.functions()) == [0x00, 0x08, 0x0B]
