# SPDX-License-Identifier: MIT
"""One suite, every backend that is known: the same accesses have the same answers."""

from pathlib import Path
from typing import ClassVar

import pytest

pytest.register_assert_rewrite("callgate.testing.conformance")

from callgate.testing.conformance import ConformanceSuite  # noqa: E402  (what was just registered)

ROOT = Path(__file__).resolve().parents[2]


class TestBackends(ConformanceSuite):
    guests: ClassVar[Path] = ROOT / "build" / "guest"
