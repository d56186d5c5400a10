# SPDX-License-Identifier: MIT
"""guest/build.py, and what holds for the sources that it builds."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = ROOT / "guest" / "include" / "callgate"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    specification = importlib.util.spec_from_file_location("guest_build", ROOT / "guest/build.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["guest_build"] = module
    specification.loader.exec_module(module)
    return module


def run(*names: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "guest" / "build.py"), *names]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_is_current_is_left_alone() -> None:
    assert run("01_adder").returncode == 0
    again = run("01_adder")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_an_unknown_name_is_told_the_known_ones() -> None:
    wrong = run("01_addre")
    assert wrong.returncode == 1
    assert re.fullmatch(r"The guest must be one of .*01_adder.*, not 01_addre\.\n", wrong.stderr)


def test_older_than_a_source_is_not_current(build: ModuleType, tmp_path: Path) -> None:
    source, result = tmp_path / "a.c", tmp_path / "a.elf"
    source.touch()
    assert not build.is_current(result, [source])
    result.touch()
    os.utime(source, ns=(0, result.stat().st_mtime_ns - 1))
    assert build.is_current(result, [source])
    os.utime(source, ns=(0, result.stat().st_mtime_ns + 1))
    assert not build.is_current(result, [source])


def test_an_error_shows_what_the_compiler_said(build: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "broken.c"
    source.write_text("int main(void) { return nothing; }\n", "utf-8")
    result = tmp_path / "broken.elf"
    with pytest.raises(build.BuildError) as caught:
        build.compile_guest(build.ARCHITECTURES[0], build.Guest("broken", source), result)
    assert "broken.elf was not built:" in str(caught.value)
    assert "broken.c:1:25: error: use of undeclared identifier 'nothing'" in str(caught.value)
    assert list(tmp_path.iterdir()) == [source]


def test_a_device_file_without_a_device_is_named(build: ModuleType, tmp_path: Path) -> None:
    device = tmp_path / "device.py"
    device.write_text("", "utf-8")
    with pytest.raises(build.BuildError, match=r"gave no C header: .*must define a subclass"):
        build.write_header(device)


@pytest.mark.parametrize(
    "source",
    [
        *ROOT.glob("examples/*/guest.c"),
        *ROOT.glob("tests/guest/*.c"),
        *(path for path in INCLUDE.glob("*.h") if path.name not in {"arch.h", "abi.h"}),
    ],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_a_source_is_the_same_everywhere(source: Path) -> None:
    """Only arch.h asks for the processor (and abi.h whether it is in Linux)."""
    guard = f"CALLGATE_{source.stem.upper()}_H"
    for number, line in enumerate(source.read_text("utf-8").splitlines(), 1):
        if re.match(r"\s*#\s*(if|elif)", line):
            assert line == f"#ifndef {guard}", f"{source.name}:{number}: {line}"
