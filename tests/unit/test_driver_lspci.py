# SPDX-License-Identifier: MIT
"""`callgate lspci` on files like those of callgate_pci.ko, and without what callgate needs."""

import json
import sys
from pathlib import Path

import pytest

from callgate import cli
from callgate.driver import lspci, sysfs

SHOWN = """\
0000:00:01.0 sums (version 3)
\tABI: 12345678-1234-5678-1234-567812345678
\tTransports: polled mmio; 4 frames
\tFeatures: none
\tKernel driver in use: callgate_pci, /dev/callgate0
\tCall: add(u64,u64)->u64
\tCall: sub(u64,u64)->u64
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a PCI bus in sysfs, and the module with no device."""
    monkeypatch.setattr(lspci, "CLASS", tmp_path / "class")
    monkeypatch.setattr(sysfs, "DEVICES", tmp_path / "devices")
    (tmp_path / "class").mkdir()
    return tmp_path


@pytest.fixture
def device(host: Path) -> Path:
    """A device that the module has."""
    place = host / "0000:00:01.0"
    place.mkdir()
    (host / "callgate_pci").mkdir()
    (place / "driver").symlink_to(host / "callgate_pci")
    folder = host / "class" / "callgate0"
    (folder / "calls").mkdir(parents=True)
    (folder / "device").symlink_to(place)
    for name, text in {
        "name": "sums",
        "version": "3",
        "uuid": "12345678-1234-5678-1234-567812345678",
        "transports": "polled mmio",
        "features": "",
        "frames": "4",
        "dev": "240:0",
        "calls/add": "add(u64,u64)->u64",
        "calls/sub": "sub(u64,u64)->u64",
    }.items():
        (folder / name).write_text(f"{text}\n")
    return folder


def test_what_the_module_has(device: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lspci.main([]) == 0
    assert capsys.readouterr().out == SHOWN


def test_a_device_without_file_and_calls(device: Path) -> None:
    (device / "dev").unlink()
    for each in (device / "calls").iterdir():
        each.unlink()
    (device / "calls").rmdir()
    (found,) = lspci.survey()
    assert (found["file"], found["calls"]) == (None, [])
    assert lspci.show(found).endswith("\tKernel driver in use: callgate_pci")


def test_for_programs(device: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lspci.main(["--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["place"] == "0000:00:01.0"
    assert (found["driver"], found["file"]) == ("callgate_pci", "/dev/callgate0")
    assert found["calls"][0] == {"signature": "add(u64,u64)->u64", "bound": None}


def test_a_call_that_is_not_bound(device: Path) -> None:
    (found,) = lspci.survey()
    found["calls"][0]["bound"] = False
    assert "\tCall: add(u64,u64)->u64 (not bound)\n" in lspci.show(found)


def test_what_cannot_be_looked_at(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        lspci.main([])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("devices must be there: this kernel has no PCI bus\n")


def test_nothing_is_here(
    host: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (host / "devices").mkdir()
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert lspci.main([]) == 0
    assert capsys.readouterr().out == "No device with a gate is here.\n"
    assert lspci.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_it_runs_where_nothing_else_is_installed(
    device: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "callgate.cli.app", raising=False)
    for name in [each for each in sys.modules if each.partition(".")[0] == "typer"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.setattr(sys, "argv", ["callgate", "lspci"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert capsys.readouterr().out == SHOWN
    monkeypatch.setattr(sys, "argv", ["callgate", "demo"])
    with pytest.raises(SystemExit, match="typer must be installed for all commands but lspci: pip"):
        cli.main()
