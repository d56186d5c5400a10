# SPDX-License-Identifier: MIT
"""ConformanceSuite: all tests of the suite, and on which machines they run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import pytest

from callgate.backends.base import backends
from callgate.device import Device
from callgate.errors import BackendError
from callgate.testing.conformance.calls import CallTests
from callgate.testing.conformance.control import ControlTests
from callgate.testing.conformance.decode import DecodeTests
from callgate.testing.conformance.discovery import DiscoveryTests
from callgate.testing.conformance.fixtures import MakeRig
from callgate.testing.conformance.interrupts import InterruptTests
from callgate.testing.conformance.msi import MsiTests
from callgate.testing.conformance.registers import RegisterTests
from callgate.testing.conformance.rig import Case, Rig, cases_of, make_rig


class ConformanceSuite(
    DiscoveryTests, DecodeTests, RegisterTests, CallTests, InterruptTests, MsiTests, ControlTests
):
    """Every backend does the same: subclass it, in a test module, with a name that pytest collects.

        class TestMine(ConformanceSuite):
            backends = ("mine",)

    Each test runs for each architecture of the backend, those that concern hypercalls also for each
    platform. A backend that lacks something on this host is skipped, and the reason told.
    """

    backends: ClassVar[tuple[str, ...] | None] = None
    """Names of the backends; None: all that are known, those of other packages included."""
    guests: ClassVar[Path] = Path("build/guest")
    """Where `guest/build.py` put the agent, one folder for each architecture."""

    def make_rig(self, case: Case, *devices: Device, **options: Any) -> Rig:
        """A machine with these devices and a door into it. Options are those of `Machine`.

        Override it for a backend whose guest is not the agent, or runs elsewhere: a `Rig` takes any
        `Door`.
        """
        try:
            return make_rig(case, self.guests, *devices, **options)
        except FileNotFoundError as error:
            pytest.skip(str(error))

    def cases(self, name: str) -> list[Case]:
        """The machines of a backend. Raises BackendError when it lacks something on this host."""
        return cases_of(name)

    @pytest.fixture
    def make(self, case: Case) -> Iterator[MakeRig]:
        """Make a rig of devices; it is closed after the test."""
        with ExitStack() as stack:

            def make(*devices: Device, **options: Any) -> Rig:
                return stack.enter_context(self.make_rig(case, *devices, **options))

            yield make

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test on each case that makes a difference to it."""
        if "case" not in metafunc.fixturenames:
            return
        parameters = []
        for name in self.backends if self.backends is not None else backends():
            try:
                cases = self.cases(name)
            except BackendError as error:
                skip = pytest.mark.skip(reason=str(error))
                parameters.append(pytest.param(None, id=name, marks=skip))
                continue
            everywhere = hasattr(metafunc.function, "every_platform")
            parameters += [
                pytest.param(case, id=str(case)) for case in cases if everywhere or case.is_default
            ]
        metafunc.parametrize("case", parameters)
