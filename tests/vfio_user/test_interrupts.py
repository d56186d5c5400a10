# SPDX-License-Identifier: MIT
"""Interrupts as the device makes them and the client hears them."""

import os
import threading
from collections.abc import Iterator
from typing import cast

import pytest
from tests.vfio_user.rig import Peer, Rig, count, event, until

from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.interrupts import Interrupts
from callgate.backends.vfio_user.loop import Loop
from callgate.backends.vfio_user.protocol import Irq, Region
from callgate.pci import config as space
from callgate.timers import Timers

NONE, EVENTFD = p.DATA_NONE, p.DATA_EVENTFD
MASK, UNMASK, TRIGGER = p.ACTION_MASK, p.ACTION_UNMASK, p.ACTION_TRIGGER


@pytest.fixture
def bell() -> Iterator[int]:
    bell = event()
    yield bell
    os.close(bell)


@pytest.fixture
def inta(peer: Peer, bell: int) -> int:
    peer.set_irqs(EVENTFD | TRIGGER, Irq.INTX, 0, 1, fds=[bell])
    return bell


def status(peer: Peer) -> bool:
    return bool(peer.read(Region.CONFIG, space.STATUS, 2) & space.STATUS_INTERRUPT)


def test_inta_masks_itself_and_an_unmask_signals_it_again(rig: Rig, peer: Peer, inta: int) -> None:
    peer.write(0, 0x18, 1)
    assert count(inta) == 1
    peer.write(0, 0x18, 0)
    peer.write(0, 0x18, 1)
    assert count(inta) == 0  # Masked since it was signalled.
    for _ in range(3):
        peer.set_irqs(NONE | UNMASK, Irq.INTX, 0, 1)
        assert count(inta) == 1  # Asserted still.
    peer.write(0, 0x18, 0)
    peer.set_irqs(NONE | UNMASK, Irq.INTX, 0, 1)
    assert count(inta) == 0
    assert not status(peer)
    peer.write(0, 0x18, 1)
    assert count(inta) == 1
    assert status(peer)


def test_inta_without_an_eventfd_waits_for_one(rig: Rig, peer: Peer, bell: int) -> None:
    rig.device.done.trigger()
    peer.set_irqs(EVENTFD | TRIGGER, Irq.INTX, 0, 1, fds=[bell])
    assert count(bell) == 1
    peer.set_irqs(NONE | TRIGGER, Irq.INTX, 0, 0)
    rig.device.done.deassert()
    peer.set_irqs(EVENTFD | TRIGGER, Irq.INTX, 0, 1, fds=[bell])
    assert count(bell) == 0  # It went before anybody heard.


def test_inta_is_the_or_of_the_interrupts(rig: Rig, peer: Peer, inta: int) -> None:
    rig.device.done.trigger()
    rig.device.failed.trigger()
    rig.device.done.deassert()
    assert count(inta) == 1
    peer.set_irqs(NONE | UNMASK, Irq.INTX, 0, 1)
    assert count(inta) == 1
    rig.device.failed.deassert()
    peer.set_irqs(NONE | UNMASK, Irq.INTX, 0, 1)
    assert count(inta) == 0


def test_the_command_register_disables_inta(rig: Rig, peer: Peer, inta: int) -> None:
    peer.write(Region.CONFIG, space.COMMAND, space.COMMAND_INTX_DISABLE, 2)
    rig.device.done.trigger()
    assert count(inta) == 0
    assert status(peer)
    peer.write(Region.CONFIG, space.COMMAND, 0, 2)
    assert count(inta) == 1


def test_with_vectors_connected_inta_is_silent(rig: Rig, peer: Peer, inta: int) -> None:
    vector = event()
    peer.master()
    peer.set_irqs(EVENTFD | TRIGGER, Irq.MSIX, 0, 1, fds=[vector])
    rig.device.done.trigger()
    assert (count(inta), count(vector)) == (0, 1)
    peer.set_irqs(NONE | TRIGGER, Irq.MSIX, 0, 0)
    rig.device.done.trigger()
    assert (count(inta), count(vector)) == (1, 0)
    os.close(vector)


def test_vectors_wait_for_bus_mastering(rig: Rig, peer: Peer, bell: int) -> None:
    peer.set_irqs(EVENTFD | TRIGGER, Irq.MSIX, 0, 1, fds=[bell])
    rig.device.done.trigger()
    assert count(bell) == 0
    peer.master()
    assert count(bell) == 1


def test_a_full_counter_blocks_nobody(rig: Rig, peer: Peer, bell: int) -> None:
    peer.master()
    os.eventfd_write(bell, (1 << 64) - 2)
    peer.set_irqs(EVENTFD | TRIGGER, Irq.MSIX, 0, 1, fds=[bell])
    for _ in range(3):
        rig.device.done.trigger()
    peer.set_irqs(NONE | TRIGGER, Irq.MSIX, 0, 1)
    assert count(bell) == (1 << 64) - 2
    rig.device.done.trigger()
    assert count(bell) == 1


def test_a_full_counter_of_an_eventfd_that_was_made_to_block(rig: Rig, peer: Peer) -> None:
    bell = os.eventfd(0, os.EFD_CLOEXEC)
    peer.master()
    os.eventfd_write(bell, (1 << 64) - 2)
    peer.set_irqs(EVENTFD | TRIGGER, Irq.MSIX, 0, 1, fds=[bell])
    rig.device.done.trigger()
    assert peer.read(0, 0) == 5
    os.close(bell)


def test_interrupts_of_a_client_that_is_gone_are_for_nobody(rig: Rig, bell: int) -> None:
    peer = rig.connect()
    peer.master()
    peer.set_irqs(EVENTFD | TRIGGER, Irq.MSIX, 0, 1, fds=[bell])
    rig.leave(peer)
    rig.device.done.trigger()
    assert count(bell) == 0
    with rig.connect() as other:
        other.master()
        mine = event()
        other.set_irqs(EVENTFD | TRIGGER, Irq.MSIX, 0, 1, fds=[mine])
        rig.device.done.trigger()
        assert (count(bell), count(mine)) == (0, 1)
        os.close(mine)


def test_levels_that_move_while_vectors_come_and_go(rig: Rig, peer: Peer, inta: int) -> None:
    """The device's thread has the function's locks and wants ours; the session's must not have
    ours while it wants the function's."""
    stop = threading.Event()
    vector = event()

    def move() -> None:
        while not stop.is_set():
            rig.device.done.trigger()
            rig.device.done.deassert()

    movers = [threading.Thread(target=move, daemon=True) for _ in range(2)]
    for mover in movers:
        mover.start()
    try:
        for _ in range(100):
            peer.set_irqs(EVENTFD | TRIGGER, Irq.MSIX, 0, 1, fds=[vector])
            peer.set_irqs(NONE | TRIGGER, Irq.MSIX, 0, 0)
            peer.set_irqs(NONE | UNMASK, Irq.INTX, 0, 1)
    finally:
        stop.set()
        for mover in movers:
            mover.join(20)
    assert not any(mover.is_alive() for mover in movers)
    os.close(vector)


class Places:
    """A loop that hears nothing: where an eventfd would be watched is written down."""

    def __init__(self) -> None:
        self.watched: dict[int, object] = {}

    def watch(self, fd: int, callback: object) -> None:
        self.watched[fd] = callback

    def forget(self, fd: int) -> None:
        self.watched.pop(fd, None)


def test_locks_are_not_held_when_the_function_is_told() -> None:
    free: list[bool] = []

    def look() -> None:
        free.append(interrupts._lock.acquire(blocking=False))
        if free[-1]:
            interrupts._lock.release()

    def told(irq: int, count: int) -> None:
        other = threading.Thread(target=look)
        other.start()
        other.join()

    interrupts = Interrupts({Irq.MSIX: 1}, told, cast(Loop, Places()))
    bell = event()
    interrupts.set(EVENTFD | TRIGGER, Irq.MSIX, 0, 1, b"", [bell])
    interrupts.close()
    assert free == [True, True]
    os.close(bell)


def test_what_was_unmasked_by_a_write_is_not_written_again() -> None:
    """Else we would hear it, unmask, and signal a level for ever, whatever the guest does."""
    loop = Loop("test", Timers())
    interrupts = Interrupts({Irq.INTX: 1}, lambda *told: None, loop)
    bell, unmask = event(), event()
    try:
        interrupts.set(EVENTFD | TRIGGER, Irq.INTX, 0, 1, b"", [bell])
        interrupts.set(EVENTFD | UNMASK, Irq.INTX, 0, 1, b"", [unmask])
        interrupts.set_level(True)
        assert count(bell) == 1
        os.eventfd_write(unmask, 1)
        until(lambda: count(bell) == 1)
        barrier = event()
        heard = threading.Event()
        loop.watch(barrier, heard.set)
        os.eventfd_write(barrier, 1)
        assert heard.wait(20)  # All events before it have been heard.
        assert count(bell) == 0
        assert count(unmask) == 1
        loop.forget(barrier)
        os.close(barrier)
        interrupts.close()
    finally:
        loop.close()
        os.close(bell)
        os.close(unmask)
