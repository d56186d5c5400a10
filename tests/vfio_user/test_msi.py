# SPDX-License-Identifier: MIT
"""MSI: a client emulates the capability as QEMU does, passes on what is written to it, and makes
the messages of the vectors that it has connected. The masks are the device's."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vfio_user.rig import Board, Peer, Rig, count, event

from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.protocol import Irq, Region
from callgate.interrupt import Interrupts
from callgate.pci import config as space

NONE, EVENTFD = p.DATA_NONE, p.DATA_EVENTFD
UNMASK, TRIGGER = p.ACTION_UNMASK, p.ACTION_TRIGGER
AT = 0x40
CONTROL, MASK, PENDING = AT + 0x02, AT + 0x10, AT + 0x14
ENABLE = 1


class Messages(Board):
    """Many interrupts, by MSI alone."""

    msi, msix = True, False
    queues = Interrupts(20)


@pytest.fixture
def device() -> Messages:
    return Messages()


@pytest.fixture
def rig(tmp_path: Path, device: Messages) -> Iterator[Rig]:
    with Rig(tmp_path, device=device) as rig:
        yield rig


@pytest.fixture
def bells() -> Iterator[list[int]]:
    bells = [event() for _ in range(32)]
    yield bells
    for bell in bells:
        os.close(bell)


def rung(bells: list[int]) -> list[int]:
    """Which of them were signalled, once for each time."""
    return [index for index, bell in enumerate(bells) for _ in range(count(bell))]


def control(peer: Peer, granted: int) -> None:
    """Enable MSI with 2 ** granted vectors."""
    peer.write(Region.CONFIG, CONTROL, granted << 4 | ENABLE, 2)


def connect(peer: Peer, bells: list[int], start: int = 0) -> None:
    peer.set_irqs(EVENTFD | TRIGGER, Irq.MSI, start, len(bells), fds=bells)


def test_the_capability(peer: Peer) -> None:
    assert peer.read(Region.CONFIG, AT, 1) == 0x05
    assert peer.read(Region.CONFIG, CONTROL, 2) == 0x180 | 5 << 1  # 23 interrupts: 32 vectors


@pytest.mark.parametrize("granted", [0, 1, 3])
def test_as_qemu_does_it(peer: Peer, device: Messages, bells: list[int], granted: int) -> None:
    vectors = 1 << granted
    peer.master()
    control(peer, granted)
    device.queues[4].trigger()
    assert peer.read(Region.CONFIG, PENDING) == 1 << 6 % vectors  # Until it is connected.
    connect(peer, bells[:vectors])
    assert rung(bells) == [6 % vectors]
    device.failed.trigger()
    device.queues[9].trigger()
    assert rung(bells) == sorted((1 % vectors, 11 % vectors))
    peer.write(Region.CONFIG, CONTROL, granted << 4, 2)
    peer.set_irqs(NONE | TRIGGER, Irq.MSI, 0, 0)
    device.done.trigger()
    assert rung(bells) == []
    assert peer.read(Region.CONFIG, space.STATUS, 2) & space.STATUS_INTERRUPT


def test_a_client_may_leave_the_capability_alone(
    peer: Peer, device: Messages, bells: list[int]
) -> None:
    """As one does that knows of VFIO alone: there, to connect is to enable and to grant."""
    peer.master()
    connect(peer, bells[:2])
    device.failed.trigger()
    device.queues[0].trigger()
    assert rung(bells) == [0, 1]


def test_vectors_in_parts(peer: Peer, device: Messages, bells: list[int]) -> None:
    """QEMU connects 32 in two messages of 16 files. What comes in between must not go astray."""
    peer.master()
    control(peer, 5)
    connect(peer, bells[:16])
    device.queues[18].trigger()
    device.queues[0].trigger()
    assert rung(bells) == [2]
    connect(peer, bells[16:], 16)
    assert rung(bells) == [20]


def test_masks_are_the_devices(peer: Peer, device: Messages, bells: list[int]) -> None:
    peer.master()
    control(peer, 1)
    connect(peer, bells[:2])
    peer.write(Region.CONFIG, MASK, 0b01)
    device.done.trigger()
    device.failed.trigger()
    assert rung(bells) == [1]
    assert peer.read(Region.CONFIG, PENDING) == 0b01
    device.done.deassert()
    assert peer.read(Region.CONFIG, PENDING) == 0
    device.done.trigger()
    peer.write(Region.CONFIG, MASK, 0)
    assert rung(bells) == [0]


def test_inta_is_silent(peer: Peer, device: Messages, bells: list[int]) -> None:
    peer.set_irqs(EVENTFD | TRIGGER, Irq.INTX, 0, 1, fds=bells[:1])
    device.done.trigger()
    assert rung(bells) == [0]
    control(peer, 0)
    peer.set_irqs(NONE | UNMASK, Irq.INTX, 0, 1)
    assert rung(bells) == []
    connect(peer, bells[1:2])
    peer.write(Region.CONFIG, CONTROL, 0, 2)
    assert rung(bells) == []  # Connected still.
    peer.set_irqs(NONE | TRIGGER, Irq.MSI, 0, 0)
    assert rung(bells) == [0]


def test_messages_wait_for_bus_mastering(peer: Peer, device: Messages, bells: list[int]) -> None:
    connect(peer, bells[:1])
    device.done.trigger()
    assert rung(bells) == []
    peer.master()
    assert rung(bells) == [0]


def test_what_the_next_client_finds(rig: Rig, device: Messages, bells: list[int]) -> None:
    peer = rig.connect()
    control(peer, 5)
    connect(peer, bells[:16])
    peer.write(Region.CONFIG, MASK, 0xFFFF_FFFF)
    device.done.trigger()
    rig.leave(peer)
    with rig.connect() as other:
        assert other.read(Region.CONFIG, CONTROL, 2) == 0x180 | 5 << 1
        assert [other.read(Region.CONFIG, at) for at in (MASK, PENDING)] == [0, 0]
        other.master()
        connect(other, bells[16:17])
        device.queues[18].trigger()
        assert rung(bells) == [16]
