# SPDX-License-Identifier: MIT
"""Linux in a machine of our own, whose processor is played: what a console says is a run's end.

With KVM it is tests/kvm.
"""

from __future__ import annotations

import os
import re
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from callgate.backends import base
from callgate.backends.base import Budget, Linux
from callgate.backends.loopback import Loopback
from callgate.backends.system import System
from callgate.cli.kvm import run_linux_on_kvm
from callgate.cli.qemu import Options
from callgate.device import Device
from callgate.errors import BackendError, GuestError, Stopped
from callgate.linux_guest import LinuxGuest


class Plain(Device):
    id = 0x1AF4, 0x10F1


Play = Callable[["Processor"], None]


class Processor(Loopback):
    """Does what the test says a Linux does."""

    has_processor = True
    play: ClassVar[Play]
    linux: Linux

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self.stopped = threading.Event()

    def boot(self, linux: Linux) -> None:
        self.linux = linux
        found = re.search(rb"callgate-[0-9a-f]{16}", linux.initrd)
        assert found is not None
        self.token = found[0]

    def run(self, budget: Budget) -> None:
        self.play()

    def stop(self) -> None:
        self.stopped.set()

    def say(self, line: bytes) -> None:
        for byte in line:
            self.system.console.put(byte)

    def hear(self) -> bytes:
        console = self.system.console
        return bytes(console.get() for _ in range(len(console._input)))


@pytest.fixture
def plays(monkeypatch: pytest.MonkeyPatch) -> Callable[[Play], None]:
    """Let a function be the processor of the backend kvm."""
    module = ModuleType("played")
    module.Processor = Processor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "played", module)
    monkeypatch.setitem(base._BACKENDS, "kvm", "played:Processor")
    return lambda play: monkeypatch.setattr(Processor, "play", play, raising=False)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    for name in ("kernel", "busybox"):
        (tmp_path / name).write_text(f"#!/bin/sh\n# {name}\n")
    return {"memory": 16, "kernel": tmp_path / "kernel", "busybox": tmp_path / "busybox"}


def hello(processor: Processor) -> None:
    processor.say(processor.token + b" ready\nhello\n\n" + processor.token + b" exit 41\n")
    processor.system.end(0)


def test_a_run(plays: Callable[[Play], None], files: dict[str, Any]) -> None:
    plays(hello)
    seen = bytearray()
    with LinuxGuest(Plain(), append="debug", **files) as guest:
        guest.on_byte = seen.append
        assert guest.on_byte is not None
        backend = guest.machine.backend
        assert isinstance(backend, Processor)
        assert backend.linux.image == b"#!/bin/sh\n# kernel\n"
        assert backend.linux.line == "console=ttyS0 quiet panic=-1 reboot=t debug"
        assert guest.exited == 0
        result = guest.run()
        assert (result.exit_code, result.output, guest.text) == (41, "hello\n", "hello\n")
        assert guest.exited > 0
    assert bytes(seen) == b"hello\n\n"


def test_an_end_without_a_word(plays: Callable[[Play], None], files: dict[str, Any]) -> None:
    def panics(processor: Processor) -> None:
        processor.say(b"Kernel panic\n")
        processor.system.end(0)

    plays(panics)
    told = r"^The guest ended without an exit code; it wrote last: 'Kernel panic\\n'$"
    with (
        LinuxGuest(**files) as guest,
        pytest.raises(GuestError, match=told),
    ):
        guest.run()


def test_what_comes_early_waits_for_the_program(
    plays: Callable[[Play], None], files: dict[str, Any]
) -> None:
    heard: list[bytes] = []

    def reads(processor: Processor) -> None:
        heard.append(processor.hear())
        processor.say(processor.token + b" ready\n")
        heard.append(processor.hear())
        guest.feed(b"late")
        heard.append(processor.hear())
        hello(processor)

    plays(reads)
    with LinuxGuest(**files) as guest:
        guest.feed(b"ear")
        guest.feed(b"ly")
        guest.run()
    assert heard == [b"", b"early", b"late"]


# --- callgate run --on kvm ------------------------------------------------------------------------


def run(files: dict[str, Any], execute: str | None = "true", **options: object) -> tuple[int, str]:
    """The exit code, and what was shown."""
    shown = bytearray()
    given: dict[str, Any] = {"arch": None, "guest": None, **options}
    code = run_linux_on_kvm(
        [(Plain,)],
        Options(execute=execute, **files),
        platform=None,
        timeout=None,
        handler_timeout=None,
        trace=None,
        echo=shown.append,
        **given,
    )
    return code, shown.decode()


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The other end of standard input."""
    ours, theirs = os.pipe()
    with os.fdopen(ours) as file:
        monkeypatch.setattr(sys, "stdin", file)
        yield theirs
    os.close(theirs)


def test_the_command_line(plays: Callable[[Play], None], files: dict[str, Any], stdin: int) -> None:
    plays(hello)
    assert run(files) == (41, "hello\n\n")


def test_standard_input_is_the_guests(
    plays: Callable[[Play], None], files: dict[str, Any], stdin: int
) -> None:
    came = threading.Event()

    def echoes(processor: Processor) -> None:
        def echo(data: bytes) -> None:
            processor.say(data)
            if data:
                came.set()

        processor.system.console.on_feed = echo
        processor.say(processor.token + b" ready\n")
        os.write(stdin, b"typed\x01x\n")
        assert came.wait(10)
        hello(processor)

    plays(echoes)
    code, shown = run(files)
    assert code == 41
    assert shown.startswith("typed\x01x\n")  # No keys: nothing ends it.


def test_the_terminal_is_raw_and_has_a_way_out(
    plays: Callable[[Play], None], files: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = os.openpty()  # Who types has the first.
    during: list[int] = []

    def waits(processor: Processor) -> None:
        during.append(termios.tcgetattr(ours)[3])
        processor.say(processor.token + b" ready\n")
        os.write(theirs, b"\x03")
        os.write(theirs, b"\x01")
        os.write(theirs, b"x")
        assert processor.stopped.wait(10)

    plays(waits)
    with os.fdopen(ours) as file:
        monkeypatch.setattr(sys, "stdin", file)
        before = termios.tcgetattr(ours)
        with pytest.raises(Stopped):
            run(files, execute=None)
        assert termios.tcgetattr(ours) == before
    os.close(theirs)
    assert not during[0] & (termios.ICANON | termios.ECHO | termios.ISIG)


def test_what_kvm_does_not_run(files: dict[str, Any], tmp_path: Path) -> None:
    told = r"^Linux on kvm must be one for x86_64, and --guest is for a program without an"
    with pytest.raises(BackendError, match=told):
        run(files, arch="riscv64")
    with pytest.raises(BackendError, match=told):
        run(files, guest=tmp_path)
