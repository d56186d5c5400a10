# SPDX-License-Identifier: MIT
"""pytest fixtures, there for every project that has callgate installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from callgate.backends.result import Result
    from callgate.device import Device
    from callgate.testing.fake_guest import FakeGuest


@pytest.fixture
def fake_guest() -> Iterator[Callable[..., FakeGuest]]:
    """Make a `FakeGuest` of devices; it is closed after the test.

    def test_sum(fake_guest):
        assert fake_guest(Adder()).open("adder").add(2, 40) == 42
    """
    from callgate.testing.fake_guest import FakeGuest

    with ExitStack() as stack:

        def make(*devices: Device | tuple[Device, ...], **options: Any) -> FakeGuest:
            return stack.enter_context(FakeGuest(*devices, **options))

        yield make


@pytest.fixture
def linux_guest() -> Callable[..., Result]:
    """Boot Linux in QEMU with devices plugged in, run a program there, and give its result.

    def test_my_driver(linux_guest):
        result = linux_guest(Adder(), module="my_driver.ko", exec="./my_test", timeout=60)
        assert result.exit_code == 0, result.output

    `exec` is a line for the guest's shell; where its first word is a file here (a static program or
    a script), that is put into the guest. `module` (a name, a file, or several) is loaded before.
    `file` (several: a list) is put into /root. The other options are those of
    `callgate.backends.qemu.guest.Guest`. The test is skipped where QEMU, a kernel or a busybox is
    missing; the reason says how to get it.
    """
    from callgate.testing.linux import run_linux

    return run_linux
