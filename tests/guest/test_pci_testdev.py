# SPDX-License-Identifier: MIT
"""pci_testdev.c runs each test of the PCI test device and prints what is counted: on every
architecture the same as with QEMU's own pci-testdev (tests/qemu/test_oracles.py)."""

import pytest
from tests.guest import oracles

from callgate.backends.board import BOARDS
from callgate.machine import Machine


@pytest.mark.parametrize("arch", BOARDS)
def test_a_guest_sees_what_it_sees_of_qemus(arch: str) -> None:
    testdev = oracles.ours("pci_testdev", arch)
    guest = oracles.guest("pci_testdev", arch)
    with Machine(testdev, arch=arch, guest=guest, timeout=60) as machine:
        result = machine.run()
    assert (result.exit_code, result.output) == (0, oracles.recorded("pci_testdev", arch))
    assert testdev.faults.counts == {}
