# SPDX-License-Identifier: MIT
"""The conformance suite on a stock QEMU: x86_64, aarch64 and riscv64, one guest program."""

from pathlib import Path
from typing import ClassVar

import pytest

pytest.register_assert_rewrite("callgate.testing.conformance")

from callgate.testing.conformance.qemu import QemuSuite  # noqa: E402  (what was just registered)

ROOT = Path(__file__).resolve().parents[2]


class TestQemu(QemuSuite):
    guests: ClassVar[Path] = ROOT / "build" / "guest"
