# SPDX-License-Identifier: MIT
"""`callgate run --on qemu`: a stock QEMU with a stock Linux, or a program without one."""

from __future__ import annotations

import contextlib
import shlex
import sys
import termios
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from callgate.backends.qemu.find import cache_folder
from callgate.backends.qemu.guest import Guest, what_to_run
from callgate.device import Device
from callgate.errors import BackendError
from callgate.trace import Trace

_FOR_QEMU = ("qemu", "accelerator", "qemu_option", "private", "hotplug", "dry_run")


@dataclass(frozen=True)
class Options:
    """What `run` takes for Linux, on QEMU and on kvm; names and meaning are its options'."""

    kernel: Path | None = None
    modules_folder: Path | None = None
    module: Sequence[str] = ()
    file: Sequence[str] = ()
    execute: str | None = None
    busybox: Path | None = None
    qemu: Path | None = None
    memory: int = 256
    cpus: int = 1
    accelerator: str | None = None
    append: str = ""
    qemu_option: Sequence[str] = ()
    private: bool = False
    hotplug: bool = False
    dry_run: bool = False

    def given(self) -> bool:
        """Whether any differs from what it is when left out."""
        return self != Options()

    def given_for_qemu(self) -> bool:
        """Whether any does that is for QEMU alone."""
        left = Options()
        return any(getattr(self, name) != getattr(left, name) for name in _FOR_QEMU)


def run_on_qemu(
    devices: Sequence[Device],
    sources: Sequence[str],
    options: Options,
    *,
    arch: str | None,
    guest: Path | None,
    timeout: float | None,
    handler_timeout: float | None,
    trace: Trace | None,
    echo: Callable[[int], None],
) -> int:
    """Run the guest; its exit code. For a dry run, print instead what one would type.

    `sources` name the devices on a command line.
    """
    program, files = what_to_run(options.execute, options.file)
    if guest is not None and (options.execute or options.kernel or options.module or files):
        raise BackendError(
            "--guest is for a program without an operating system: leave --kernel, --module, "
            "--file and --exec out, or leave --guest out to boot Linux"
        )
    folder = None
    if options.dry_run:
        folder = cache_folder() / "dry-run"
        folder.mkdir(parents=True, exist_ok=True)
    interactive = guest is None and options.execute is None and sys.stdin.isatty()
    with (
        terminal_as_it_was(),
        Guest(
            *devices,
            arch=arch,
            guest=guest,
            program=program,
            modules=options.module,
            files=files,
            kernel=options.kernel,
            modules_folder=options.modules_folder,
            busybox=options.busybox,
            qemu=options.qemu,
            memory=options.memory,
            cpus=options.cpus,
            shared=not options.private,
            hotplug=options.hotplug,
            accelerator=options.accelerator,
            append=options.append,
            extra=[word for option in options.qemu_option for word in shlex.split(option)],
            timeout=timeout,
            handler_timeout=handler_timeout,
            trace=trace,
            stdin=True,
            interactive=interactive,
            folder=folder,
        ) as machine,
    ):
        if options.dry_run:
            sockets = " ".join(f"--socket {shlex.quote(str(s))}" for s in machine.command.sockets)
            print(f"# first:  callgate serve {shlex.join(sources)} {sockets}")
            print(machine.command.text())
            return 0
        machine.on_byte = echo
        result = machine.run_hotplugged() if options.hotplug else machine.run()
        return result.exit_code


@contextlib.contextmanager
def terminal_as_it_was() -> Iterator[None]:
    """QEMU makes the terminal raw, and cannot undo that when it is killed."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
