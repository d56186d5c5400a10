# SPDX-License-Identifier: MIT
"""DEVICE_RESET: all that a reset of a function does; the client's own arrangements stay."""

import errno
import os

import pytest
from tests.vfio_user.rig import Peer, Rig, count, event, memory

from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.protocol import Command, Irq, Region
from callgate.pci import config as space

EVENTS = p.DATA_EVENTFD | p.ACTION_TRIGGER


def test_registers_and_configuration_are_as_after_power_on(rig: Rig, peer: Peer) -> None:
    reset: list[int] = []
    rig.device.on_reset = lambda: reset.append(1)
    peer.write(0, 0, 99)
    peer.write(Region.CONFIG, space.COMMAND, 6, 2)
    peer.write(1, 0, 0x1234)
    assert peer.get(Command.DEVICE_RESET) == b""
    assert reset == [1]
    assert peer.read(0, 0) == 5
    assert peer.read(Region.CONFIG, space.COMMAND, 2) == 0
    assert peer.read(1, 0) == 0x1234  # Memory survives.


def test_vectors_are_new(rig: Rig, peer: Peer) -> None:
    gate = rig.server.function.gate
    assert gate is not None
    before = gate.binding("add")
    peer.get(Command.DEVICE_RESET)
    after = gate.binding("add")
    assert before is not None
    assert after is not None
    assert before.vector != after.vector


def test_maps_and_eventfds_stay(rig: Rig, peer: Peer) -> None:
    fd, bell = memory(0x1000), event()
    peer.map(0, 0x1000, fd)
    peer.set_irqs(EVENTS, Irq.MSIX, 0, 1, fds=[bell])
    peer.get(Command.DEVICE_RESET)
    peer.master()
    rig.device.on_start = lambda value: rig.device.done.trigger()
    peer.write(0, 0x10, 1)
    assert count(bell) == 1
    rig.device.memory.write(0, b"dma")
    assert os.pread(fd, 3, 0) == b"dma"
    os.close(fd)
    os.close(bell)


def test_what_was_pending_is_forgotten(rig: Rig, peer: Peer) -> None:
    peer.master()
    rig.device.done.trigger()
    peer.get(Command.DEVICE_RESET)
    bell = event()
    peer.set_irqs(EVENTS, Irq.INTX, 0, 1, fds=[bell])
    assert count(bell) == 0
    peer.master()
    rig.device.done.trigger()
    assert count(bell) == 1
    os.close(bell)


def test_a_payload_does_no_harm(peer: Peer) -> None:
    assert peer.get(Command.DEVICE_RESET, b"what") == b""


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_a_model_that_fails_to_reset(
    rig: Rig, peer: Peer, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    def fail() -> None:
        raise error("no reset today")

    rig.device.on_reset = fail
    answer = peer.ask(Command.DEVICE_RESET)
    assert answer.error == (0 if issubclass(error, Exception) else errno.EIO)
    assert peer.read(0, 0) == 5
    rig.device.on_reset = lambda: None
    assert "no reset today" in caplog.text
    assert "test_reset.py" in caplog.text


def test_a_hundred_times(rig: Rig, peer: Peer) -> None:
    for turn in range(100):
        peer.write(0, 0, turn)
        peer.get(Command.DEVICE_RESET)
    assert peer.read(0, 0) == 5
