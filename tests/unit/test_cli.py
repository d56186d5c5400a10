# SPDX-License-Identifier: MIT
"""The command line: what it prints, and what it says when it is used wrongly.

Runs of guest programs are in tests/guest/test_examples.py.
"""

import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from callgate import __version__
from callgate.cli.app import run_app

ROOT = Path(__file__).resolve().parents[2]
ADDER = ROOT / "examples" / "01_adder" / "device.py"
MODEL = """
from callgate import Device, Register, call, u32


class Sample(Device):
    id = 0x1AF4, 0x10F9
    value = Register(0x00)

    @call
    def twice(self, number: u32) -> u32:
        return number * 2
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Make a device file of this text."""

    def write(text: str) -> Path:
        file = tmp_path / "device.py"
        file.write_text(textwrap.dedent(text))
        return file

    return write


class Told:
    """What the command line says: exit code, standard output, the error in one sentence."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd = capfd
        self.out = self.err = ""

    def __call__(self, *arguments: str | Path) -> int:
        code = run_app([str(argument) for argument in arguments])
        self.out, self.err = self.capfd.readouterr()
        return code

    def error(self, *arguments: str | Path) -> str:
        """Give wrong arguments; returns the sentence."""
        assert self(*arguments) == 2, self.err
        assert self.out == ""
        (line,) = self.err.splitlines()
        assert line.startswith("callgate: ")
        return line.removeprefix("callgate: ")


@pytest.fixture
def callgate(capfd: pytest.CaptureFixture[str]) -> Told:
    return Told(capfd)


# A guest that spins, with no compiler: EB FE at 1 MiB.


def elf(machine: int = 62, *, code: bytes = b"\xeb\xfe", bits: int = 64) -> bytes:
    """A static executable for x86_64 (62), or of another e_machine."""
    head = struct.pack(
        "<4sBBBB8xHHIQQQIHHHHHH",
        *(b"\x7fELF", bits // 32, 1, 1, 0, 2, machine, 1, 0x100000),
        *(64, 0, 0, 64, 56, 1, 0, 0, 0),
    )
    place = struct.pack("<IIQQQQQQ", 1, 5, 120, 0x100000, 0x100000, len(code), len(code), 1)
    return head + place + code


@pytest.fixture
def spinning(tmp_path: Path) -> Path:
    program = tmp_path / "spin.elf"
    program.write_bytes(elf())
    return program


# --- help -----------------------------------------------------------------------------------------


def test_help_lists_the_commands(callgate: Told) -> None:
    for arguments in ([], ["--help"]):
        assert callgate(*arguments) == 0
        for command in ("run", "show", "header", "bench", "demo"):
            assert re.search(rf"\b{command}\b", callgate.out)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            "run",
            "--on --arch --platform --guest --trace --timeout --instructions --handler-timeout "
            "examples/01_adder/device.py",
        ),
        ("show", "--lspci examples/01_adder/device.py"),
        ("header", "examples/01_adder/device.py"),
        ("bench", "--on --arch --calls --json --plot"),
        ("demo", "--folder"),
    ],
)
def test_each_command_has_help_with_an_example(
    callgate: Told, command: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert callgate(command, "--help") == 0
    assert f"callgate {command}" in callgate.out.partition("For example:")[2]
    for word in words.split():
        assert word in callgate.out


def test_the_version(callgate: Told) -> None:
    assert callgate("--version") == 0
    assert callgate.out == f"callgate {__version__}\n"


# --- show and header ------------------------------------------------------------------------------


def test_show_is_the_datasheet(callgate: Told) -> None:
    assert callgate("show", ADDER) == 0
    shown = " ".join(callgate.out.split())
    for words in (
        "adder 1af4:10f0 class ff0000 rev 00",
        "Adds two numbers, by registers and by a call.",
        "0x0008 start 32 w 0x0 write anything to add a and b",
        "0 done total is valid",
        "add(u64,u64)->u64 b68bd69f011c6117 registers Return the sum, modulo 2**64.",
    ):
        assert words in shown


def test_header_is_c(callgate: Told) -> None:
    assert callgate("header", ADDER) == 0
    assert "#define ADDER_TOTAL 0x0cu" in callgate.out
    assert "static inline int adder_add(struct adder *dev, uint64_t a" in callgate.out


GOLDEN = """
00:01.0 ff00: 1af4:10f0
	Region 0: Memory at c0020000 (32-bit, non-prefetchable)
	Region 1: Memory at c0021000 (32-bit, non-prefetchable)
	Region 2: Memory at c0000000 (64-bit, non-prefetchable)
	Region 4: I/O ports at c000
	Capabilities: [40] MSI-X: Enable- Count=2 Masked-
		Vector table: BAR=1 offset=00000000
		PBA: BAR=1 offset=00000800
	Capabilities: [4c] Vendor Specific Information: Len=28 <?>
"""


def test_lspci_reads_what_show_prints(callgate: Told) -> None:
    if shutil.which("lspci") is None:
        pytest.skip("lspci: not installed (apt-get install pciutils)")
    assert callgate("show", ADDER, "--lspci") == 0
    judged = subprocess.run(
        ["lspci", "-F", "/dev/stdin", "-n", "-vvv"],
        input=callgate.out,
        capture_output=True,
        text=True,
        check=True,
    )
    device = judged.stdout.partition("00:01.0")[1:]
    lines = [
        line
        for line in "".join(device).splitlines()
        if re.match(r"00:01|\t(Region|Cap)|\t\t(Vector|PBA)", line)
    ]
    assert lines == GOLDEN.strip().splitlines()


# --- a device file that is none -------------------------------------------------------------------


def test_a_file_that_is_missing(callgate: Told) -> None:
    for command in ("run", "show", "header"):
        assert callgate.error(command, "nope.py") == "nope.py must be a Python file that exists"


def test_a_file_without_a_device(callgate: Told, write: Write) -> None:
    file = write("value = 1")
    said = callgate.error("show", file)
    assert said == f"{file} must define a subclass of callgate.Device with an id; it has none"


def test_a_file_with_two_devices(callgate: Told, write: Write) -> None:
    file = write(MODEL + MODEL.replace("class Sample", "class Second"))
    assert callgate.error("show", file) == (
        f"{file} defines Sample, Second: say which one, as {file}:Sample"
    )
    assert callgate("show", f"{file}:Second") == 0
    assert "second" in callgate.out
    assert callgate.error("show", f"{file}:Third") == (
        f"{file} must define the Device Third; it defines Sample, Second"
    )


def test_a_file_with_a_syntax_error(callgate: Told, write: Write) -> None:
    file = write("class Sample(:\n    pass")
    assert callgate.error("show", file) == f"{file}, line 1, must be Python: invalid syntax"


def test_a_file_that_is_no_text(callgate: Told, tmp_path: Path) -> None:
    file = tmp_path / "device.py"
    file.write_bytes(b"\xff\xfe\x00")
    assert "must be" in callgate.error("show", file)


def test_a_class_body_that_is_wrong(callgate: Told, write: Write) -> None:
    file = write(MODEL.replace("Register(0x00)", "Register(0x00, width=12)"))
    assert callgate.error("show", file) == (
        "Sample.value: Register width must be 8, 16, 32 or 64 bits, not 12"
    )


def test_a_file_that_ends_the_program(callgate: Told, write: Write) -> None:
    file = write("import sys\nsys.exit(3)")
    assert "must do nothing but define devices" in callgate.error("show", file)


def test_a_file_that_calls_main_when_it_is_imported(callgate: Told, write: Write) -> None:
    file = write(MODEL + "\nfrom callgate import main\nmain(Sample)\n")
    assert callgate("show", file) == 0
    assert "twice(u32)->u32" in callgate.out


# --- bugs of a device model -----------------------------------------------------------------------


def traceback_of(callgate: Told, *arguments: str | Path) -> list[str]:
    """The lines that name a place in a file."""
    assert callgate(*arguments) == 1
    assert callgate.err.startswith("Traceback (most recent call last):\n")
    return [line.strip() for line in callgate.err.splitlines() if line.startswith("  File ")]


def test_a_bug_at_import_shows_its_own_traceback(callgate: Told, write: Write) -> None:
    file = write("def helper():\n    return 1 / 0\n\n\nhelper()")
    assert traceback_of(callgate, "show", file) == [
        f'File "{file}", line 5, in <module>',
        f'File "{file}", line 2, in helper',
    ]
    assert callgate.err.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize("method", ["__init__", "attach"])
def test_a_bug_before_the_guest_runs(
    callgate: Told, write: Write, spinning: Path, method: str
) -> None:
    file = write(f"{MODEL}\n    def {method}(self):\n        self.vlaue += 1\n")
    line = len(file.read_text().splitlines())
    wanted: list[list[str | Path]] = [["show", file, "--lspci"], ["run", file, "--guest", spinning]]
    for arguments in wanted:
        assert traceback_of(callgate, *arguments) == [f'File "{file}", line {line}, in {method}']
        assert "'Sample' object has no attribute 'vlaue'" in callgate.err


# --- a machine that cannot be ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--on", "bochs"], "The backend must be one of loopback, unicorn, not 'bochs'"),
        (["--on", "loopback"], "The backend loopback must have a processor to run"),
        (["--arch", "vax"], "The architecture must be one of x86_64, i386, aarch64, riscv64"),
        (
            ["--platform", "xen", "--guest", "SPIN"],
            "The platform of an x86_64 machine must be one of kvm-intel, kvm-amd, native",
        ),
        (["--guest", "nope.elf"], "The guest program nope.elf cannot be read: No such file"),
        (["--guest", "SPIN", "--arch", "aarch64"], "spin.elf is for x86_64, the machine is"),
        (["--timeout", "0"], "--timeout must be above 0 seconds, not 0"),
        (["--handler-timeout", "-1"], "--handler-timeout must be above 0 seconds, not -1"),
        (["--instructions", "0"], "--instructions must be at least 1, not 0"),
        (["--timeout", "soon"], "'--timeout'"),
        (["--nonsense"], "No such option: --nonsense"),
        (["--guest", "SPIN", "--timeout", "0.05"], "The guest used up its time at 0x100000"),
        (["--guest", "SPIN", "--instructions", "50"], "used up its budget of instructions"),
    ],
)
def test_what_run_cannot_do(
    callgate: Told, write: Write, spinning: Path, arguments: list[str], sentence: str
) -> None:
    chosen = [str(spinning) if argument == "SPIN" else argument for argument in arguments]
    assert sentence in callgate.error("run", write(MODEL), *chosen)


def test_a_device_without_a_guest_is_told_how_to_get_one(callgate: Told, write: Write) -> None:
    file = write(MODEL)
    assert callgate.error("run", file, "--arch", "i386") == (
        f"{file} must have a guest program for i386: build it with `python guest/build.py`, or "
        "name one with --guest"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"MZ, and no ELF file", "must be an ELF executable"),
        (b"", "must be an ELF executable"),
        (elf()[:100], "must be"),
        (elf(20), "must"),
    ],
)
def test_a_guest_that_is_none(
    callgate: Told, write: Write, tmp_path: Path, content: bytes, words: str
) -> None:
    program = tmp_path / "guest.elf"
    program.write_bytes(content)
    said = callgate.error("run", write(MODEL), "--guest", program)
    assert "guest.elf" in said
    assert words in said


def test_a_device_that_is_no_pci_function(callgate: Told, write: Write, spinning: Path) -> None:
    bars = "\n".join(f"    bar{n} = Bar({n}, 4096)" for n in range(6))
    file = write(MODEL.replace("import Device", "import Bar, Device") + bars)
    assert "must leave a BAR free" in callgate.error("run", file, "--guest", spinning)


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["run"], ["show"], ["header", "a.py", "b.py"], ["bench", "--calls", "1"]],
)
def test_other_wrong_arguments(callgate: Told, arguments: list[str]) -> None:
    assert callgate.error(*arguments).endswith(" (--help tells more)")


def test_what_bench_does_not_know(callgate: Told) -> None:
    assert "must be one of loopback, unicorn, not 'kvm'" in callgate.error("bench", "--on", "kvm")
    assert "must be one of x86_64, i386" in callgate.error("bench", "--arch", "vax")
    assert "must end in .png, .svg, .pdf" in callgate.error("bench", "--plot", "figure.txt")


def test_a_demo_without_examples(callgate: Told, tmp_path: Path) -> None:
    assert "must hold examples" in callgate.error("demo", "--folder", tmp_path)


# --- as a process ---------------------------------------------------------------------------------


def process(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_python_m_callgate() -> None:
    out, err = process("-m", "callgate", "--version").communicate()
    assert (out, err) == (f"callgate {__version__}\n", "")


def test_a_device_file_is_its_own_command(write: Write) -> None:
    file = write(MODEL + "\nfrom callgate import main\nmain(Sample)\n")
    for command, words in (("show", "twice(u32)->u32"), ("header", "sample_twice(struct sample")):
        run = process(file, command)
        out, err = run.communicate()
        assert (run.returncode, err) == (0, "")
        assert words in out
    run = process(file, "--arch", "vax")
    assert "The architecture must be one of" in run.communicate()[1]
    assert run.returncode == 2


def test_ctrl_c_ends_a_guest_that_spins(write: Write, spinning: Path) -> None:
    file = write(f"{MODEL}\n    def attach(self):\n        print('here', flush=True)\n")
    run = process("-m", "callgate", "run", file, "--guest", spinning)
    assert run.stdout is not None
    assert run.stdout.readline() == "here\n"
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=20)
    assert (run.returncode, out, err) == (130, "", "callgate: interrupted\n")


def test_a_reader_that_leaves_is_no_error() -> None:
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as out:
        run = subprocess.run(
            [sys.executable, "-m", "callgate", "header", ADDER],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (run.returncode, run.stderr) == (141, "")
