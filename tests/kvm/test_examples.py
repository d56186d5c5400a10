# SPDX-License-Identifier: MIT
"""The examples' guests on KVM, unchanged."""

from pathlib import Path

import pytest
from tests.guest.test_examples import EXAMPLES, device, said_by

from callgate.backends.kvm import probe
from callgate.backends.platform import PLATFORMS
from callgate.machine import Machine

LACKING = probe.lacks()
pytestmark = pytest.mark.skipif(LACKING is not None, reason=f"kvm: {LACKING}")
INTERRUPTED = {"01_adder", "02_timer", "05_console"}


@pytest.mark.parametrize("arch", ["x86_64", "i386"])
@pytest.mark.parametrize("example", EXAMPLES)
def test_as_machine_code(example: str, arch: str, guests: Path) -> None:
    if arch == "i386" and example in INTERRUPTED and not probe.host().virtualizes:
        pytest.skip(
            "kvm: KVM is emulated in software here, and does not return from 32-bit handlers"
        )
    model = device(example)
    program = guests / arch / f"{example}.elf"
    with Machine(model, on="kvm", arch=arch, guest=program, timeout=120) as machine:
        assert machine.platform in PLATFORMS.values()
        result = machine.run()
        said = said_by(example, machine.platform.name)
    assert result.output.splitlines() == said
    assert result.exit_code == 0
    assert set(model.faults.counts) <= {"REVOKED"}
