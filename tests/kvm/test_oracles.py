# SPDX-License-Identifier: MIT
"""The guests that tell our devices from QEMU's own, on KVM: they see no difference either."""

import pytest
from tests.guest import oracles

from callgate.backends.kvm import probe
from callgate.machine import Machine

LACKING = probe.lacks()
pytestmark = pytest.mark.skipif(LACKING is not None, reason=f"kvm: {LACKING}")


@pytest.mark.parametrize("arch", ["x86_64", "i386"])
def test_a_guest_sees_what_it_sees_of_qemus_pci_testdev(arch: str) -> None:
    testdev = oracles.ours("pci_testdev", arch)
    guest = oracles.guest("pci_testdev", arch)
    with Machine(testdev, on="kvm", arch=arch, guest=guest, timeout=120) as machine:
        result = machine.run()
    assert (result.exit_code, result.output) == (0, oracles.recorded("pci_testdev", arch))
    assert testdev.faults.counts == {}
