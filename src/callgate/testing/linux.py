# SPDX-License-Identifier: MIT
"""Running a program in Linux in QEMU, for tests: what is behind the fixture `linux_guest`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from callgate.backends.qemu.find import find_qemu
from callgate.backends.qemu.guest import Guest, what_to_run
from callgate.backends.qemu.kernel import find_busybox, find_kernel
from callgate.backends.result import Result
from callgate.device import Device
from callgate.errors import BackendError

TIMEOUT = 120.0
"""Seconds that a guest has, if the test does not say."""


def run_linux(
    *devices: Device,
    exec: str,
    module: str | Path | Iterable[str | Path] = (),
    file: str | Path | Iterable[str | Path] = (),
    arch: str = "x86_64",
    timeout: float = TIMEOUT,
    **options: Any,
) -> Result:
    """See the fixture `linux_guest` in plugin.py. Raises BudgetError and GuestError."""
    needs_linux(arch, **options)
    program, files = what_to_run(exec, [str(each) for each in _several(file)])
    with Guest(
        *devices,
        arch=arch,
        program=program,
        files=files,
        modules=[str(each) for each in _several(module)],
        timeout=timeout,
        **options,
    ) as guest:
        return guest.run()


def needs_linux(arch: str = "x86_64", **options: Any) -> None:
    """Skip the test unless QEMU, a kernel and a busybox for `arch` are here."""
    try:
        find_qemu(arch, options.get("qemu"))
        find_kernel(arch, options.get("kernel"))
        find_busybox(arch, options.get("busybox"))
    except BackendError as error:
        pytest.skip(str(error))


def _several(given: str | Path | Iterable[str | Path]) -> list[str | Path]:
    return [given] if isinstance(given, str | Path) else list(given)
