# SPDX-License-Identifier: MIT
"""The example in a real Linux: pytest examples/01_adder/test_linux.py."""

from collections.abc import Callable
from pathlib import Path

from callgate.backends.result import Result
from callgate.load import load_device_class

PROGRAM = "build/guest/x86_64/linux/01_adder"  # python guest/build.py --linux x86_64


def test_a_program_calls_the_device(linux_guest: Callable[..., Result]) -> None:
    adder = load_device_class(str(Path(__file__).with_name("device.py")))()
    result = linux_guest(adder, exec=PROGRAM, timeout=60)
    assert "call mmio: 2 + 40 = 42 ok" in result.output
