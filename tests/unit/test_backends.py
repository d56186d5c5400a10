# SPDX-License-Identifier: MIT
"""How a backend and a platform are found, and what is said when they are not."""

import sys
from importlib.metadata import EntryPoint, EntryPoints
from types import ModuleType
from typing import Any

import pytest

from callgate import BackendError
from callgate.backends import base
from callgate.backends.base import Backend, Budget, backend, backends
from callgate.backends.board import BOARDS
from callgate.backends.platform import PLATFORMS, platform
from callgate.gate.abi import Instruction, Transport


class Fake(Backend):
    name = "fake"
    architectures = ("x86_64",)
    lacking: str | None = None

    @classmethod
    def lacks(cls) -> str | None:
        return cls.lacking

    def reset(self, entry: int) -> None: ...
    def run(self, budget: Budget) -> None: ...
    def stop(self) -> None: ...
    def remap(self) -> None: ...
    def registers(self) -> dict[str, int]:
        return {}


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """Entry points of another package, which the test fills."""
    found: list[EntryPoint] = []

    def entry_points(**wanted: Any) -> EntryPoints:
        return EntryPoints(found).select(**wanted)

    monkeypatch.setattr(base, "entry_points", entry_points)
    module = ModuleType("another_package")
    module.Fake = Fake  # type: ignore[attr-defined]
    module.nothing = 5  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "another_package", module)
    return found


def test_knows_its_own() -> None:
    assert {"kvm", "loopback", "unicorn"} <= set(backends())
    assert backend("loopback").name == "loopback"


def test_an_unknown_name_lists_the_known_ones(points: list[EntryPoint]) -> None:
    with pytest.raises(
        BackendError,
        match=r"^The backend must be one of kvm, loopback, qemu, unicorn, not 'bochs'$",
    ):
        backend("bochs")


def test_finds_those_of_other_packages(points: list[EntryPoint]) -> None:
    points.append(EntryPoint("fake", "another_package:Fake", base.ENTRY_POINTS))
    points.append(EntryPoint("other", "another_package:Fake", "another.group"))
    assert backends() == ["fake", "kvm", "loopback", "unicorn"]
    assert backend("fake") is Fake


def test_says_what_a_backend_lacks(
    points: list[EntryPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    points.append(EntryPoint("fake", "another_package:Fake", base.ENTRY_POINTS))
    monkeypatch.setattr(Fake, "lacking", "/dev/fake: Permission denied")
    with pytest.raises(BackendError, match=r"^fake: /dev/fake: Permission denied$"):
        backend("fake")


def test_refuses_what_is_no_backend(points: list[EntryPoint]) -> None:
    points.append(EntryPoint("fake", "another_package:nothing", base.ENTRY_POINTS))
    with pytest.raises(BackendError, match=r"fake: 5 must be a subclass of"):
        backend("fake")


def test_says_which_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in sys.modules if each.startswith("callgate.backends.unicorn")]:
        monkeypatch.delitem(sys.modules, name)
    # None in sys.modules makes an import fail as if there were no such package.
    for name in [each for each in sys.modules if each.partition(".")[0] == "unicorn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "unicorn", None)
    with pytest.raises(
        BackendError,
        match=r"^unicorn: the package unicorn is not installed: pip install unicorn$",
    ):
        backend("unicorn")


def test_a_missing_module_of_ours_is_a_bug(
    points: list[EntryPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(base._BACKENDS, "broken", "callgate.backends.broken:Broken")
    with pytest.raises(ModuleNotFoundError, match=r"callgate\.backends\.broken"):
        backend("broken")


def test_the_defaults_of_the_architectures() -> None:
    defaults = {arch: platform(None, arch).name for arch in BOARDS}
    assert defaults == {
        "x86_64": "kvm-intel",
        "i386": "kvm-intel",
        "aarch64": "smccc",
        "riscv64": "sbi",
    }


def test_an_unknown_platform_lists_the_fitting_ones() -> None:
    with pytest.raises(
        BackendError,
        match=r"platform of an aarch64 machine must be one of smccc, native, not 'sbi'",
    ):
        platform("sbi", "aarch64")


def test_what_platforms_offer() -> None:
    offers = {
        name: (each.offer.instruction, each.offer.selector) for name, each in PLATFORMS.items()
    }
    assert offers == {
        "kvm-intel": (Instruction.VMCALL, 0),
        "kvm-amd": (Instruction.VMMCALL, 0),
        "lguest": (Instruction.INT_1F, 0),
        "smccc": (Instruction.HVC, 0xC600_CA11),
        "sbi": (Instruction.ECALL, 0x0800_CA11),
        "kvm": (Instruction.NONE, 0),
        "native": (Instruction.NONE, 0),
    }
    for name, each in PLATFORMS.items():
        assert bool(each.offer.transports & Transport.HYPERCALL) == (name not in ("kvm", "native"))
        assert Transport.MMIO | Transport.PIO | Transport.POLLED in each.offer.transports
        assert len(each.signature) in (0, 12)
        assert set(each.architectures) <= set(BOARDS)


def test_a_whole_vmm_is_no_backend_of_a_machine() -> None:
    with pytest.raises(BackendError, match="qemu is a machine of its own, to be used by callgate"):
        backend("qemu")
