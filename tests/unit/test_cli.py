# SPDX-License-Identifier: MIT
"""The command line: what it prints, and what it says when it is used wrongly.

Runs of guest programs are in tests/guest/test_examples.py.
"""

import os
import re
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
        for command in ("run", "show", "header", "reference", "bench", "demo"):
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
        ("reference", "examples/01_adder/device.py"),
        ("bench", "--on --arch --calls --json --plot --modules"),
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
        "Interrupts by MSI-X, INTx index name 0 done total is valid",
        "add(u64,u64)->u64 b68bd69f011c6117 registers Return the sum, modulo 2**64.",
    ):
        assert words in shown


def test_header_is_c(callgate: Told) -> None:
    assert callgate("header", ADDER) == 0
    assert "#define ADDER_TOTAL 0x0cu" in callgate.out
    assert "static inline int adder_add(struct adder *dev, uint64_t a" in callgate.out


def test_reference_is_markdown(callgate: Told) -> None:
    assert callgate("reference", ADDER) == 0
    assert callgate.out.startswith("# Adder\n\nAdds two numbers, by registers and by a call.\n")
    assert "| 0 | 0x0c | `total` | 32 | r | 0x0 | a + b, modulo 2**32 |" in callgate.out
    assert "### `add(a: u64, b: u64) -> u64`" in callgate.out


def test_show_takes_several_devices(callgate: Told, write: Write) -> None:
    file = write(MODEL + MODEL.replace("class Sample", "class Second"))
    assert callgate("show", f"{file}:Sample,{file}:Second", ADDER) == 0
    assert re.findall(r"^(\w+)  1af4:10f", callgate.out, re.MULTILINE) == [
        *("sample", "second", "adder")
    ]


# --- a device file that is none -------------------------------------------------------------------


def test_a_file_that_is_missing(callgate: Told) -> None:
    for command in ("run", "show", "header", "reference"):
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


def test_a_model_that_needs_arguments(callgate: Told, write: Write, spinning: Path) -> None:
    file = write(f"{MODEL}\n    def __init__(self, disk):\n        self.disk = disk\n")
    wanted: list[list[str | Path]] = [
        ["show", file, "--lspci"],
        ["run", file, "--guest", spinning],
        ["serve", file, "--socket", file.with_name("socket")],
    ]
    for arguments in wanted:
        assert callgate.error(*arguments) == (
            "Sample must be made without arguments, as Sample(), and its __init__ is (self, disk): "
            "give them default values"
        )


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


def test_a_bug_after_the_guest_ran(callgate: Told, write: Write, tmp_path: Path) -> None:
    program = tmp_path / "end.elf"
    program.write_bytes(elf(code=b"\x31\xc0\x66\xba\xf4\x00\xef"))  # 0 to the exit port
    file = write(f"{MODEL}\n    def detach(self):\n        raise RuntimeError('not yet')\n")
    line = len(file.read_text().splitlines())
    assert traceback_of(callgate, "run", file, "--guest", program) == [
        f'File "{file}", line {line}, in detach'
    ]
    assert traceback_of(callgate, "show", file, "--lspci") == [
        f'File "{file}", line {line}, in detach'
    ]
    assert callgate.err.endswith("RuntimeError: not yet\n")


def test_a_file_that_a_model_misses_is_the_models_bug(
    callgate: Told, write: Write, spinning: Path
) -> None:
    file = write(f"{MODEL}\n    def attach(self):\n        open('/no/such/image')\n")
    line = len(file.read_text().splitlines())
    assert traceback_of(callgate, "run", file, "--guest", spinning) == [
        f'File "{file}", line {line}, in attach'
    ]
    assert "FileNotFoundError" in callgate.err


def test_a_device_file_has_neighbours(
    callgate: Told, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "callgate_test_numbers", raising=False)
    (tmp_path / "callgate_test_numbers.py").write_text("ID = 0x1AF4, 0x10F6\n")
    text = MODEL.replace("0x1AF4, 0x10F9", "callgate_test_numbers.ID")
    file = write(f"import callgate_test_numbers\n{text}")
    assert callgate("show", file) == 0
    assert "1af4:10f6" in callgate.out


# --- a machine that cannot be ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--on", "bochs"], "The backend must be one of kvm, loopback, qemu, unicorn, not 'bochs'"),
        (["--on", "loopback"], "The backend loopback must have a processor to run"),
        (["--arch", "vax"], "The architecture must be one of x86_64, i386, aarch64, riscv64"),
        (["--arch", "mips"], "The architecture must be one of x86_64, i386, aarch64, riscv64"),
        (
            ["--platform", "xen", "--guest", "SPIN"],
            "The platform of an x86_64 machine must be one of kvm-intel, kvm-amd, kvm, native",
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


def test_a_run_ends_in_time_whatever_the_model_does(
    callgate: Told, write: Write, spinning: Path
) -> None:
    text = f"""{MODEL}
    def attach(self):
        self.after(0, self.spin)

    def spin(self):
        while True:
            pass
"""
    said = callgate.error("run", write(text), "--guest", spinning, "--timeout", "0.1")
    assert re.search(r"used up its time, and sample\.timer \(device\.py, line \d+\) had not", said)
    options = "--guest", spinning, "--timeout", "0.3", "--handler-timeout", "0.02"
    assert "The guest used up its time at 0x100000" in callgate.error("run", write(text), *options)


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
    told = "Sample must leave 2 of the 6 BARs free for its MSI-X table and gate, and bar0, bar1, "
    assert callgate.error("run", file, "--guest", spinning).startswith(told)


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["run"], ["show"], ["header", "a.py", "b.py"], ["bench", "--calls", "1"]],
)
def test_other_wrong_arguments(callgate: Told, arguments: list[str]) -> None:
    assert callgate.error(*arguments).endswith(" (--help tells more)")


def test_what_bench_does_not_know(callgate: Told) -> None:
    known = "must be one of loopback, unicorn, kvm, qemu, not 'bochs'"
    assert known in callgate.error("bench", "--on", "bochs")
    assert "--json and --markdown must not go" in callgate.error("bench", "--json", "--markdown")
    assert "must be one of x86_64, i386" in callgate.error("bench", "--arch", "vax")
    assert "must end in .png, .svg, .pdf" in callgate.error("bench", "--plot", "figure.txt")
    assert "--modules must go with --on qemu" in callgate.error("bench", "--modules", "build")


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
    for command, words in (
        ("show", "twice(u32)->u32"),
        ("header", "sample_twice(struct sample"),
        ("reference", "### `twice(number: u32) -> u32`"),
    ):
        run = process(file, command)
        out, err = run.communicate()
        assert (run.returncode, err) == (0, "")
        assert words in out
    run = process(file, "--arch", "vax")
    assert "The architecture must be one of" in run.communicate()[1]
    assert run.returncode == 2


@pytest.mark.parametrize("word", ["bench", "shwo"])
def test_a_command_that_a_device_file_does_not_have(write: Write, word: str) -> None:
    file = write(MODEL + "\nfrom callgate import main\nmain(Sample)\n")
    run = process(file, word, "--json")
    assert run.communicate()[1] == (
        "callgate: A device file's command must be one of run, serve, show, header, reference, not "
        f"{word}: `callgate` itself has others (--help)\n"
    )
    assert run.returncode == 2


@pytest.mark.parametrize(
    "blocks",
    [
        "time.sleep(1000)",
        "threading.Lock().acquire() and threading.Event().wait()",
        "os.read(os.pipe()[0], 1)",
        "select.select([], [], [])",
    ],
)
def test_a_run_ends_in_time_where_a_model_is_blocked(
    write: Write, spinning: Path, blocks: str
) -> None:
    file = write(f"""\
import os, select, threading, time
{MODEL}
    def attach(self):
        self.after(0, self.block)

    def block(self):
        {blocks}
""")
    run = process("-m", "callgate", "run", file, "--guest", spinning, "--timeout", "0.5")
    try:
        err = run.communicate(timeout=20)[1]
    finally:
        run.kill()
    assert run.returncode == 2
    assert err.startswith("callgate: sample.timer: the device model was ended\n")
    assert "callgate: The guest used up its time, and sample.timer (device.py, line 18)" in err
    assert "has not ended yet" not in err


@pytest.mark.uncovered  # Ctrl-C in the middle of coverage itself would not be seen.
def test_ctrl_c_ends_a_guest_that_spins(write: Write, spinning: Path) -> None:
    file = write(f"{MODEL}\n    def attach(self):\n        print('here', flush=True)\n")
    run = process("-m", "callgate", "run", file, "--guest", spinning)
    assert run.stdout is not None
    assert run.stdout.readline() == "here\n"
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=20)
    assert (run.returncode, out, err) == (130, "", "callgate: interrupted\n")


@pytest.mark.parametrize("command", ["header", "show"])
def test_a_reader_that_leaves_is_no_error(command: str) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as out:
        run = subprocess.run(
            [sys.executable, "-m", "callgate", command, ADDER],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (run.returncode, run.stderr) == (141, "")
