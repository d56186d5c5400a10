# SPDX-License-Identifier: MIT
"""One suite for all backends: the same accesses have the same answers.

Here it runs on those that every machine has; tests/kvm and tests/qemu have the others.
"""

from pathlib import Path
from typing import ClassVar

import pytest

pytest.register_assert_rewrite("callgate.testing.conformance")

from callgate.testing.conformance import ConformanceSuite  # noqa: E402  (what was just registered)

ROOT = Path(__file__).resolve().parents[2]


class TestBackends(ConformanceSuite):
    backends: ClassVar[tuple[str, ...]] = ("loopback", "unicorn")
    guests: ClassVar[Path] = ROOT / "build" / "guest"
