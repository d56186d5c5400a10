# SPDX-License-Identifier: MIT
"""pytest fixtures, there for every project that has callgate installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
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

        def make(*devices: Device, **options: Any) -> FakeGuest:
            return stack.enter_context(FakeGuest(*devices, **options))

        yield make
