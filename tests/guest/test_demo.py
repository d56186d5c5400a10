# SPDX-License-Identifier: MIT
"""`callgate demo`: what it runs, what it makes of it, and that it says so."""

import io
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from callgate.cli.demo import judge, run_demo
from callgate.errors import LoadError
from callgate.faults import LOGGER
from callgate.gate.abi import Transport

ROOT = Path(__file__).resolve().parents[2]
NATIVE = Transport.PIO | Transport.MMIO


def demo(folder: Path) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=120)
    code = run_demo(folder, console)
    assert isinstance(console.file, io.StringIO)
    return code, console.file.getvalue()


def copy(example: str, folder: Path, guests: Path) -> Path:
    """An example of its own, with its guests; returns the folder of examples."""
    shutil.copytree(ROOT / "examples" / example, folder / "examples" / example)
    for program in guests.glob(f"*/{example}.elf"):
        place = folder / "build" / "guest" / program.parent.name
        place.mkdir(parents=True)
        shutil.copy(program, place)
    return folder / "examples"


def test_all_is_as_it_should_be(guests: Path) -> None:
    level = LOGGER.level
    code, said = demo(ROOT / "examples")
    assert code == 0, said
    lines = [line.split() for line in said.splitlines()]
    examples = list((ROOT / "examples").glob("*/device.py"))
    assert sum("..." in line for line in lines) == len(examples) * 13 + 1
    for words in (
        ["01_adder", "on", "i386,", "lguest", "...", "ok,"],
        ["01_adder", "none", "loopback", "hypercall", "2", "+", "40", "=", "42", "ok"],
        ["aarch64", "smccc", "cheapest", "100", "calls,", "9", "look-ups", "ok"],
        ["native", "registers", "stopped", "ok"],
        ["hypercall-frame", "2", "+", "40", "=", "42", "ok"],
    ):
        assert any(line[: len(words)] == words for line in lines), words
    assert said.splitlines()[-1].endswith("all as they should be")
    assert LOGGER.level == level


def test_a_guest_that_finds_a_mistake_is_told_and_the_code_is_1(
    guests: Path, tmp_path: Path
) -> None:
    examples = copy("01_adder", tmp_path, guests)
    model = examples / "01_adder" / "device.py"
    model.write_text(model.read_text().replace("return (a + b)", "return (a + b + 1)"))
    code, said = demo(examples)
    assert code == 1
    assert "01_adder on x86_64, kvm-intel ... 7 wrong" in said
    assert "2 + 40 = 43 wrong" in said
    assert "exit code 1" in said
    assert "of them wrong" in said.splitlines()[-1]


def test_a_missing_guest_is_told_before_anything_runs(guests: Path, tmp_path: Path) -> None:
    examples = copy("02_timer", tmp_path, guests)
    (tmp_path / "build/guest/riscv64/02_timer.elf").unlink()
    with pytest.raises(LoadError, match=r"for riscv64: build it with `python guest/build\.py`"):
        demo(examples)


def test_a_folder_without_examples(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="must hold examples"):
        demo(tmp_path)


@pytest.mark.parametrize(
    ("output", "fault", "rows"),
    [
        ("fine ok\n", "", [("registers", "fine ok", True)]),
        ("tick 1\nstopped ok\n", "", [("registers", "stopped ok", True)]),
        ("fine ok\n", "exit code 3", [("registers", "fine ok", True), ("", "exit code 3", False)]),
        ("", "it hung", [("", "it hung", False)]),
        ("nothing\n", "", [("", "the guest ended with the line 'nothing'", False)]),
        (
            "call pio: 1 ok\ncall mmio: 2 wrong\n",
            "",
            [
                ("pio", "1 ok", True),
                ("mmio", "2 wrong", False),
                ("", "the guest ended with the line 'call mmio: 2 wrong'", False),
            ],
        ),
        (
            "registers: 1 ok\ncall mmio: 2 ok\n",
            "",
            [
                ("registers", "1 ok", True),
                ("mmio", "2 ok", True),
                ("pio", "the guest did not try it", False),
            ],
        ),
    ],
)
def test_a_row_is_what_the_guest_said(
    output: str, fault: str, rows: list[tuple[str, str, bool]]
) -> None:
    assert list(judge(output, fault, NATIVE, "registers")) == rows
