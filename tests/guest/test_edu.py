# SPDX-License-Identifier: MIT
"""edu.c drives the educational device and prints what it does: on every architecture the same as
with QEMU's own edu (tests/qemu/test_oracles.py)."""

import pytest
from tests.guest import oracles

from callgate.backends.board import BOARDS
from callgate.machine import Machine


@pytest.mark.parametrize("arch", BOARDS)
def test_a_guest_sees_what_it_sees_of_qemus(arch: str) -> None:
    edu = oracles.ours("edu", arch)
    with Machine(edu, arch=arch, guest=oracles.guest("edu", arch), timeout=60) as machine:
        result = machine.run()
    assert (result.exit_code, result.output) == (0, oracles.recorded("edu", arch))
    # What it does on purpose: each is counted.
    wide = 0 if arch == "i386" else 4
    assert edu.faults.counts == {
        "read-only register": 2,
        "bad read": 9 + wide,
        "bad write": 7 + wide,
        "busy": 3,
        "dma": 4,
    }
