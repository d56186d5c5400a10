# SPDX-License-Identifier: MIT
"""QEMU has some of the stock devices in C: the same guest program, run in QEMU against its device
and against ours, prints the same."""

from typing import Any

import pytest
from tests.guest import oracles

from callgate.backends.qemu.find import ARCHITECTURES, find_qemu
from callgate.backends.qemu.guest import Guest
from callgate.backends.result import Result
from callgate.device import Device
from callgate.errors import BackendError
from callgate.pci.config import CAPABILITY_END

TIMEOUT = 60.0


def needs_qemu(arch: str) -> None:
    try:
        find_qemu(arch)
    except BackendError as error:
        pytest.skip(str(error))


def run(name: str, arch: str, *devices: Device, **options: Any) -> Result:
    needs_qemu(arch)
    guest = oracles.guest(name, arch)
    with Guest(*devices, guest=guest, timeout=TIMEOUT, **options) as qemu:
        return qemu.run()


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", oracles.NAMES)
def test_a_guest_cannot_tell_ours_from_qemus(name: str, arch: str) -> None:
    theirs = run(name, arch, extra=["-device", oracles.qemus(name, arch)])
    ours = run(name, arch, oracles.ours(name, arch))
    assert (ours.exit_code, ours.output) == (theirs.exit_code, theirs.output)
    # What the tests without QEMU go by.
    assert (theirs.exit_code, theirs.output) == (0, oracles.recorded(name, arch))


def config_space(arch: str, *devices: Device, **options: Any) -> bytes:
    """What a guest reads of the function in slot 1."""
    agent = oracles.guest("agent", arch)
    with Guest(*devices, guest=agent, timeout=TIMEOUT, **options) as qemu:
        words = (qemu.exchange(f"c 8 {at:x} 4".encode()) for at in range(0, CAPABILITY_END, 4))
        return b"".join(int(word[1:], 16).to_bytes(4, "little") for word in words)


@pytest.mark.parametrize("name", oracles.NAMES)
def test_configuration_space_is_the_same(name: str) -> None:
    arch = ARCHITECTURES[0]
    needs_qemu(arch)
    theirs = config_space(arch, extra=["-device", oracles.qemus(name, arch)])
    assert config_space(arch, oracles.ours(name, arch)) == theirs


def test_dma_by_messages_is_the_same() -> None:
    arch = ARCHITECTURES[0]
    ours = run("edu", arch, oracles.ours("edu", arch), shared=False)
    assert (ours.exit_code, ours.output) == (0, oracles.recorded("edu", arch))
