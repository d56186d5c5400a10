# SPDX-License-Identifier: MIT
"""`callgate run --on qemu`, with a QEMU that is a shell script; and what does not go with it."""

import re
from pathlib import Path

import pytest

from callgate.cli.app import run_app

MODEL = """
from callgate import Device


class Sample(Device):
    id = 0x1AF4, 0x10F9
"""
QEMU = """\
#!/bin/sh
[ "$1" = --version ] && echo QEMU emulator version 10.1.0 && exit
[ "$1" = -device ] && exit
while [ $# -gt 0 ]; do
    [ "$1" = -initrd ] && token=$(grep -ao -m 1 'callgate-[0-9a-f]*' "$2" | head -n 1)
    shift
done
echo $token ready
echo hello
echo
echo $token exit 41
"""


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The device, and what names a QEMU, a kernel and a busybox."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, text in {"device.py": MODEL, "qemu": QEMU, "kernel": "", "busybox": ""}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "qemu").chmod(0o755)
    words = [str(tmp_path / "device.py"), "--on", "qemu"]
    for name in ("qemu", "kernel", "busybox"):
        words += [f"--{name}", str(tmp_path / name)]
    return words


def test_a_run(options: list[str], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run_app(["run", *options, "--exec", "true", "--timeout", "30"]) == 41
    assert capfdbinary.readouterr().out == b"hello\n\n"


def test_a_dry_run_is_what_one_types(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--dry-run", "--exec", "true", "--qemu-option", "-s -name 'a b'", "--memory", "64"]
    assert run_app(["run", *options, *words]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    folder = tmp_path / "cache" / "callgate" / "dry-run"
    assert first == f"# first:  callgate serve {options[0]} --socket {folder}/0.sock"
    assert lines[0] == f"{tmp_path}/qemu \\"
    shown = [line.strip().removesuffix(" \\") for line in lines]
    assert {"-m 64M", "-s", "-name 'a b'", f"-initrd {folder}/initramfs"} <= set(shown)
    assert (folder / "initramfs").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--guest", "x.elf", "--exec", "true"], "--guest is for a program without an operating"),
        (["--platform", "native"], "--platform and --instructions are not for --on qemu"),
        (["--instructions", "5"], "--platform and --instructions are not for --on qemu"),
        (["--arch", "vax"], "must be one of x86_64, i386, aarch64, riscv64, not 'vax'"),
        (["--file", "nope"], "The file nope must be there to be put into the guest"),
        (["--exec", "it's"], "must be a line for its shell: No closing quotation"),
        (["--module", "nope"], "The module nope must be there: the kernel has no modules' folder"),
        (["--on", "unicorn"], "the options of the panel 'On qemu' must go with --on qemu"),
    ],
)
def test_what_does_not_go(
    options: list[str], capfd: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert run_app(["run", *options, *words]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert re.match(rf"callgate: .*{re.escape(told)}", line)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--on", "unicorn", "--exec", "true"], "the options for Linux must go with --on qemu or"),
        (["--on", "kvm", "--exec", "true", "--instructions", "5"], "not for --on kvm"),
        (["--on", "kvm", "--exec", "true", "--arch", "riscv64"], "must be one for x86_64"),
    ],
)
def test_options_of_linux(
    options: list[str], capfd: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert run_app(["run", options[0], *words]) == 2
    assert told in capfd.readouterr().err


def test_each_device_has_a_slot_to_itself(
    options: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    file, *rest = options
    assert run_app(["run", f"{file},{file}", *rest]) == 2
    told = "On qemu each device must be a FILE of its own: it has a slot to itself"
    assert told in capfd.readouterr().err
