# SPDX-License-Identifier: MIT
"""`callgate probe --kvm`: what this host offers, and why something is missing."""

import json
from pathlib import Path

import pytest

from callgate.backends.kvm import probe
from callgate.cli.app import run_app
from callgate.linux import kvm

HOSTS = {
    "software": probe.Host(
        dict.fromkeys((*probe.NEEDED, *probe.USED), 7) | {"KVM_CAP_XEN_HVM": 0},
        "GenuineIntel",
        virtualizes=False,
    ),
    "amd": probe.Host(
        dict.fromkeys((*probe.NEEDED, *probe.USED), 7)
        | {"KVM_CAP_XEN_HVM": kvm.KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL},
        "AuthenticAMD",
        virtualizes=True,
    ),
    "old": probe.Host(
        dict.fromkeys((*probe.NEEDED, *probe.USED), 7) | {"KVM_CAP_XEN_HVM": 1},
        "GenuineIntel",
        virtualizes=True,
    ),
}


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    name: str = request.param
    monkeypatch.setattr(probe, "host", lambda: HOSTS[name])
    monkeypatch.setattr(probe, "lacks", lambda: None)
    return name


@pytest.mark.parametrize("on", HOSTS, indirect=True)
def test_what_follows_from_what_is_there(on: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["probe", "--kvm", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["transports"] == {
        "pio": True, "mmio": True, "polled": True, "hypercall": on == "amd",
    }  # fmt: skip
    assert found["platform"] == ("kvm-amd" if on == "amd" else "kvm")
    assert bool(found["no_hypercall"]) == (on != "amd")
    assert run_app(["probe", "--kvm"]) == 0
    shown = capsys.readouterr().out
    assert ("yes, by vmmcall" in shown) == (on == "amd")
    assert ("emulated in software" in shown) == (on == "software")
    assert ("it takes one with" in shown) == (on != "amd")
    assert "KVM_CAP_SYNC_REGS" in shown


@pytest.mark.parametrize(
    "arguments", [[], ["--kvm", "/tmp/socket"], ["--kvm", "--bench"], ["--kvm", "--lspci"]]
)
def test_a_socket_or_kvm(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["probe", *arguments]) == 2
    assert "give a SOCKET, or --kvm" in capsys.readouterr().err


def test_a_host_without_kvm(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probe, "DEVICE", tmp_path / "kvm")
    assert run_app(["probe", "--kvm"]) == 2
    assert "kvm: " in (said := capsys.readouterr().err)
    assert "load the module kvm_intel or kvm_amd" in said
