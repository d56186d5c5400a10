# SPDX-License-Identifier: MIT
"""The conformance suite on this host's KVM."""

from pathlib import Path
from typing import ClassVar

import pytest

pytest.register_assert_rewrite("callgate.testing.conformance")

from callgate.testing.conformance import ConformanceSuite  # noqa: E402  (what was just registered)

ROOT = Path(__file__).resolve().parents[2]


class TestKvm(ConformanceSuite):
    backends: ClassVar[tuple[str, ...]] = ("kvm",)
    guests: ClassVar[Path] = ROOT / "build" / "guest"
