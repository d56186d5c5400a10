# SPDX-License-Identifier: MIT
"""What the suite's tests ask pytest for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from callgate.device import Device
from callgate.testing.conformance.rig import Rig

Test = TypeVar("Test", bound=Callable[..., None])


class MakeRig(Protocol):
    """The fixture `make`: a machine of the test's case with devices, closed after the test."""

    def __call__(self, *devices: Device, **options: Any) -> Rig:
        """Options are those of `Machine`."""


def every_platform(test: Test) -> Test:
    """Run the test on every platform, since who traps hypercalls makes a difference to it.

    Other tests run on each architecture's usual one.
    """
    test.every_platform = True  # type: ignore[attr-defined]
    return test
