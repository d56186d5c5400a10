# SPDX-License-Identifier: MIT
"""`callgate run --on kvm --kernel ...`: Linux in a machine of our own."""

from __future__ import annotations

import os
import select
import sys
import threading
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from callgate.backends.qemu.guest import what_to_run
from callgate.cli.qemu import Options, terminal_as_it_was
from callgate.device import Device
from callgate.errors import BackendError
from callgate.linux_guest import LinuxGuest
from callgate.load import make_devices
from callgate.trace import Trace

_LEAVE = b"\x01x"
"""Ctrl-A x, which ends the guest where Ctrl-C is for its own shell; as QEMU has it."""


def run_linux_on_kvm(
    slots: Sequence[Sequence[type[Device]]],
    options: Options,
    *,
    arch: str | None,
    platform: str | None,
    guest: Path | None,
    timeout: float | None,
    handler_timeout: float | None,
    trace: Trace | None,
    echo: Callable[[int], None],
) -> int:
    """Run the guest; its exit code."""
    if arch not in (None, "x86_64") or guest is not None:
        raise BackendError(
            "Linux on kvm must be one for x86_64, and --guest is for a program without an "
            "operating system"
        )
    program, files = what_to_run(options.execute, options.file)
    with LinuxGuest(
        *(make_devices(slot) for slot in slots),
        program=program,
        modules=options.module,
        files=files,
        kernel=options.kernel,
        modules_folder=options.modules_folder,
        busybox=options.busybox,
        memory=options.memory,
        append=options.append,
        cpus=options.cpus,
        platform=platform,
        timeout=timeout,
        handler_timeout=handler_timeout,
        trace=trace,
    ) as machine:
        machine.on_byte = echo
        interactive = options.execute is None and sys.stdin.isatty()
        with terminal_as_it_was(), _typed(machine, raw=interactive):
            return machine.run().exit_code


@contextmanager
def _typed(guest: LinuxGuest, *, raw: bool) -> Iterator[None]:
    """Let the guest's console read standard input; `raw`: each key, Ctrl-C among them."""
    if raw:
        tty.setraw(sys.stdin)
    over, end = os.pipe()
    thread = threading.Thread(
        target=_read, args=(guest, over, raw), name="callgate console", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        os.close(end)
        thread.join()
        os.close(over)


def _read(guest: LinuxGuest, over: int, raw: bool) -> None:
    poll = select.poll()
    poll.register(over, select.POLLIN)
    poll.register(sys.stdin, select.POLLIN)
    before = b""
    while all(file != over for file, _ in poll.poll()):
        data = os.read(sys.stdin.fileno(), 4096)
        if not data:
            return
        if raw and _LEAVE in before + data:
            guest.machine.stop()
            return
        before = data[-1:]
        guest.feed(data)
