# SPDX-License-Identifier: MIT
"""The conformance suite: written once against a driver's `Door`, run on every backend.

Whoever writes a backend, in this package or another one, puts into a test module

    import pytest

    pytest.register_assert_rewrite("callgate.testing.conformance")

    from callgate.testing.conformance import ConformanceSuite

    class TestMine(ConformanceSuite):
        backends = ("mine",)

and builds the agent once (`python guest/build.py agent`), a guest program that executes single
accesses as real instructions: so a test is Python, and what it tests is the backend's handling of a
load, a store, an `in` or a hypercall. A backend whose guest is something else overrides `make_rig`
and gives a `Rig` with a door of its own. (The first line lets pytest show the values in a failed
assertion. It is not needed where callgate is installed.)

Each test's docstring is what it promises. Together they ask of a backend

    discovery    config space by the board's mechanism, all sizes; BARs, capabilities, directory
    decode       a BAR that moved, or ceased to decode, does so for the very next access
    registers    every width, as the instruction made it, exactly once
    calls        every transport that the platform offers, every type, every status
    interrupts   messages to RAM and to the processor, each once
    control      what the host does to a call holds from the guest's next call on
"""

from callgate.testing.conformance.fixtures import MakeRig, every_platform
from callgate.testing.conformance.rig import Case, InterruptedDoor, Rig, Way
from callgate.testing.conformance.suite import ConformanceSuite

__all__ = [
    "Case",
    "ConformanceSuite",
    "InterruptedDoor",
    "MakeRig",
    "Rig",
    "Way",
    "every_platform",
]
