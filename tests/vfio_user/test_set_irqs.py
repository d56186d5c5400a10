# SPDX-License-Identifier: MIT
"""DEVICE_SET_IRQS: every form, and whatever is none."""

import errno
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vfio_user.rig import Board, Peer, Rig, count, event, irq_set, memory, open_fds, until

from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.protocol import Command, Irq

NONE, BOOL, EVENTFD = p.DATA_NONE, p.DATA_BOOL, p.DATA_EVENTFD
MASK, UNMASK, TRIGGER = p.ACTION_MASK, p.ACTION_UNMASK, p.ACTION_TRIGGER


class Both(Board):
    """Its interrupts by MSI-X and by MSI."""

    msi = True


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with Rig(tmp_path, device=Both()) as rig:
        yield rig


@pytest.fixture(params=[Irq.MSIX, Irq.MSI], ids=lambda irq: irq.name)
def irq(request: pytest.FixtureRequest) -> Irq:
    found: Irq = request.param
    return found


@pytest.fixture
def bells() -> Iterator[list[int]]:
    bells = [event() for _ in range(3)]
    yield bells
    for bell in bells:
        os.close(bell)


def rung(bells: list[int]) -> list[int]:
    return [count(bell) for bell in bells]


def test_vectors_get_eventfds_in_one_message_or_in_parts(
    rig: Rig, peer: Peer, irq: Irq, bells: list[int]
) -> None:
    peer.master()
    peer.set_irqs(EVENTFD | TRIGGER, irq, 0, 3, fds=bells)
    rig.device.failed.trigger()
    assert rung(bells) == [0, 1, 0]
    peer.set_irqs(EVENTFD | TRIGGER, irq, 0, 2)
    rig.device.failed.trigger()
    assert rung(bells) == [0, 0, 0]
    peer.set_irqs(EVENTFD | TRIGGER, irq, 1, 1, fds=bells[2:])
    assert rung(bells) == [0, 0, 1]  # It was pending.
    peer.set_irqs(EVENTFD | TRIGGER, irq, 0, 1, fds=bells[:1])
    rig.device.done.trigger()
    rig.device.failed.trigger()
    assert rung(bells) == [1, 0, 1]


def test_an_eventfd_is_replaced(rig: Rig, peer: Peer, irq: Irq, bells: list[int]) -> None:
    peer.master()
    before = open_fds()
    for bell in bells * 3:
        peer.set_irqs(EVENTFD | TRIGGER, irq, 0, 1, fds=[bell])
    until(lambda: open_fds() == before + 1)
    rig.device.done.trigger()
    assert rung(bells) == [0, 0, 1]


def test_the_client_triggers(peer: Peer, irq: Irq, bells: list[int]) -> None:
    peer.set_irqs(EVENTFD | TRIGGER, irq, 0, 3, fds=bells)
    peer.set_irqs(NONE | TRIGGER, irq, 1, 2)
    assert rung(bells) == [0, 1, 1]
    peer.set_irqs(BOOL | TRIGGER, irq, 0, 3, b"\1\0\x80")
    assert rung(bells) == [1, 0, 1]
    peer.set_irqs(EVENTFD | TRIGGER, irq, 1, 1)
    peer.set_irqs(NONE | TRIGGER, irq, 0, 3)
    assert rung(bells) == [1, 0, 1]


def test_masks_of_vectors(rig: Rig, peer: Peer, irq: Irq, bells: list[int]) -> None:
    peer.master()
    peer.set_irqs(EVENTFD | TRIGGER, irq, 0, 3, fds=bells)
    peer.set_irqs(NONE | MASK, irq, 0, 2)
    for _ in range(5):
        rig.device.done.trigger()
    rig.device.failed.trigger()
    assert rung(bells) == [0, 0, 0]
    peer.set_irqs(BOOL | UNMASK, irq, 0, 2, b"\1\0")
    assert rung(bells) == [1, 0, 0]  # One bit is pending, however often it was set.
    peer.set_irqs(NONE | UNMASK, irq, 0, 2)
    assert rung(bells) == [0, 1, 0]
    peer.set_irqs(BOOL | MASK, irq, 0, 3, b"\0\1\0")
    rig.device.done.trigger()
    rig.device.failed.trigger()
    assert rung(bells) == [1, 0, 0]


def test_eventfds_that_tell_of_masks(peer: Peer, irq: Irq, bells: list[int]) -> None:
    peer.set_irqs(EVENTFD | MASK, irq, 0, 1, fds=bells[:1])
    peer.set_irqs(EVENTFD | UNMASK, irq, 0, 1, fds=bells[1:2])
    peer.set_irqs(NONE | MASK, irq, 0, 1)
    peer.set_irqs(NONE | MASK, irq, 0, 1)
    assert rung(bells) == [1, 0, 0]
    peer.set_irqs(NONE | UNMASK, irq, 0, 1)
    peer.set_irqs(NONE | UNMASK, irq, 0, 1)
    assert rung(bells) == [0, 1, 0]
    peer.set_irqs(EVENTFD | MASK, irq, 0, 1)
    peer.set_irqs(NONE | MASK, irq, 0, 1)
    assert rung(bells) == [0, 0, 0]


def test_a_type_is_disabled_by_a_count_of_0(
    rig: Rig, peer: Peer, irq: Irq, bells: list[int]
) -> None:
    before = open_fds()
    peer.master()
    peer.set_irqs(EVENTFD | TRIGGER, irq, 0, 3, fds=bells)
    peer.set_irqs(EVENTFD | UNMASK, irq, 0, 3, fds=bells)
    peer.set_irqs(NONE | TRIGGER, irq, 0, 0)
    assert open_fds() == before
    rig.device.done.trigger()
    assert rung(bells) == [0, 0, 0]
    for each in Irq:
        peer.set_irqs(NONE | TRIGGER, each, 0, 0)


@pytest.mark.parametrize(
    ("flags", "irq", "start", "number"),
    [
        (0, 2, 0, 1),
        (NONE, 2, 0, 1),
        (TRIGGER, 2, 0, 1),
        (NONE | BOOL | TRIGGER, 2, 0, 1),
        (NONE | EVENTFD | TRIGGER, 2, 0, 1),
        (NONE | MASK | UNMASK, 2, 0, 1),
        (NONE | MASK | TRIGGER, 2, 0, 1),
        (NONE | TRIGGER | 1 << 6, 2, 0, 1),
        (0xFFFF_FFFF, 2, 0, 1),
        (NONE | TRIGGER, 2, 3, 1),
        (NONE | TRIGGER, 2, 2, 2),
        (NONE | TRIGGER, 2, 0, 4),
        (NONE | TRIGGER, 2, 0, 0xFFFF_FFFF),
        (NONE | TRIGGER, 2, 0xFFFF_FFFF, 1),
        (NONE | TRIGGER, 2, 0xFFFF_FFFF, 0xFFFF_FFFF),
        (NONE | TRIGGER, 2, 1, 0),
        (NONE | MASK, 2, 0, 0),
        (NONE | UNMASK, 2, 0, 0),
        (BOOL | TRIGGER, 2, 0, 0),
        (EVENTFD | TRIGGER, 2, 0, 0),
        (NONE | TRIGGER, 0, 0, 2),
        (NONE | TRIGGER, 1, 4, 1),
        (NONE | TRIGGER, 1, 3, 2),
        (NONE | TRIGGER, 3, 0, 2),
        (NONE | MASK, 3, 0, 1),
        (NONE | UNMASK, 3, 0, 1),
        (NONE | TRIGGER, 4, 0, 1),
        (NONE | TRIGGER, 5, 0, 0),
        (NONE | TRIGGER, 0xFFFF_FFFF, 0, 1),
    ],
)
def test_what_is_refused(
    rig: Rig, peer: Peer, flags: int, irq: int, start: int, number: int
) -> None:
    payload = irq_set(flags, irq, start, number)
    assert peer.refused(Command.DEVICE_SET_IRQS, payload) == errno.EINVAL
    assert rig.counts == {"message DEVICE_SET_IRQS": 1}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        bytes(19),
        p.IRQ_SET.pack(0, NONE | TRIGGER, 2, 0, 1),
        p.IRQ_SET.pack(21, NONE | TRIGGER, 2, 0, 1),
        p.IRQ_SET.pack(20, NONE | TRIGGER, 2, 0, 1) + b"x",
        irq_set(NONE | TRIGGER, 2, 0, 1, b"\1"),
        irq_set(EVENTFD | TRIGGER, 2, 0, 1, bytes(4)),
        irq_set(BOOL | TRIGGER, 2, 0, 2, b"\1"),
        irq_set(BOOL | TRIGGER, 2, 0, 2, b"\1\1\1"),
        irq_set(BOOL | TRIGGER, 2, 0, 2),
    ],
)
def test_sizes_must_fit(peer: Peer, payload: bytes) -> None:
    assert peer.refused(Command.DEVICE_SET_IRQS, payload) == errno.EINVAL


@pytest.mark.parametrize(
    ("flags", "number", "files"),
    [
        (EVENTFD | TRIGGER, 3, 2),
        (EVENTFD | TRIGGER, 2, 3),
        (EVENTFD | TRIGGER, 1, 16),
        (EVENTFD | TRIGGER, 1, 17),
        (EVENTFD | TRIGGER, 1, 253),
        (NONE | TRIGGER, 1, 1),
        (BOOL | TRIGGER, 1, 1),
        (NONE | TRIGGER, 0, 1),
    ],
)
def test_as_many_files_as_the_count_says(
    peer: Peer, bells: list[int], flags: int, number: int, files: int
) -> None:
    before = open_fds()
    data = b"\1" if flags & BOOL else b""
    payload = irq_set(flags, 2, 0, number, data)
    assert peer.refused(Command.DEVICE_SET_IRQS, payload, bells[:1] * files) == errno.EINVAL
    peer.read(0, 0)
    assert open_fds() == before


def test_other_files_are_no_eventfds(peer: Peer, bells: list[int]) -> None:
    near, far = socket.socketpair()
    read, write = os.pipe()
    poll = select.epoll()
    ram = memory(4096)
    before = open_fds()
    for fd in (near.fileno(), read, write, poll.fileno(), ram):
        payload = irq_set(EVENTFD | TRIGGER, Irq.MSIX, 0, 3)
        files = [bells[0], bells[1], fd]
        assert peer.refused(Command.DEVICE_SET_IRQS, payload, files) == errno.EINVAL
    peer.set_irqs(NONE | TRIGGER, Irq.MSIX, 0, 3)
    assert rung(bells) == [0, 0, 0]  # Nothing was connected.
    assert open_fds() == before
    for close in (near, far, poll):
        close.close()
    for fd in (read, write, ram):
        os.close(fd)


def test_no_files_left(
    rig: Rig, peer: Peer, bells: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_fds()
    made: list[int] = []
    dup = os.dup

    def failing(fd: int) -> int:
        if len(made) == 2:
            raise OSError(errno.EMFILE, "Too many open files")
        made.append(fd)
        return dup(fd)

    monkeypatch.setattr(os, "dup", failing)
    payload = irq_set(EVENTFD | TRIGGER, Irq.MSIX, 0, 3)
    assert peer.refused(Command.DEVICE_SET_IRQS, payload, bells) == errno.EMFILE
    peer.read(0, 0)
    assert open_fds() == before
    assert rig.counts == {"message DEVICE_SET_IRQS": 1}


def test_an_unmask_eventfd_is_heard(rig: Rig, peer: Peer, bells: list[int]) -> None:
    """QEMU with KVM has the kernel write it, when the guest has handled INTA."""
    peer.set_irqs(EVENTFD | TRIGGER, Irq.INTX, 0, 1, fds=bells[:1])
    peer.set_irqs(EVENTFD | UNMASK, Irq.INTX, 0, 1, fds=bells[1:2])
    rig.device.done.trigger()
    assert count(bells[0]) == 1
    for _ in range(5):
        os.eventfd_write(bells[1], 1)
        until(lambda: count(bells[0]) == 1)  # The level is still there.
    rig.device.done.deassert()
    os.eventfd_write(bells[1], 1)
    rig.device.done.trigger()
    until(lambda: count(bells[0]) == 1)
