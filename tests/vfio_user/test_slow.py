# SPDX-License-Identifier: MIT
"""Slow handlers: reported, and a matter of their own device alone."""

import os
import threading
from pathlib import Path

import pytest
from tests.vfio_user.rig import Peer, Rig, access

from callgate.backends.vfio_user import session as sessions
from callgate.backends.vfio_user.protocol import Command


def test_a_handler_above_the_limit_is_reported_once(
    rig: Rig, peer: Peer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    peer.write(0, 0x10, 1)
    assert "slow" not in rig.counts
    monkeypatch.setattr(sessions, "SLOW", -1.0)
    peer.write(0, 0x10, 1)
    peer.write_posted(0, 0x10, 1)
    peer.read(0, 0x14)
    peer.write(0, 0x10, 1)
    assert rig.counts["slow"] >= 3
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
    assert "REGION_WRITE took" in caplog.text


def test_what_is_no_handler_is_not_reported(
    rig: Rig, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "SLOW", -1.0)
    peer.map(0, 0x1000)
    peer.unmap(0, 0x1000)
    assert rig.counts == {}


@pytest.mark.parametrize("way", ["answered", "posted"])
def test_one_device_does_not_hold_up_another(tmp_path: Path, way: str) -> None:
    entered, leave = threading.Event(), threading.Event()

    def act(value: int) -> None:
        entered.set()
        assert leave.wait(20)

    (tmp_path / "other").mkdir()
    with Rig(tmp_path) as slow, Rig(tmp_path / "other") as quick:
        slow.device.on_start = act
        with slow.connect() as first, quick.connect() as second:
            if way == "posted":
                first.write_posted(0, 0x10, 1)
            else:
                first.raw(first.message(Command.REGION_WRITE, access(0, 0x10, 1)))
            assert entered.wait(20)
            for value in range(100):
                second.write(0, 0, value)
                assert second.read(0, 0) == value
            ticks: list[int] = []
            quick.device.after(0, lambda: ticks.append(1))
            second.write(0, 0x10, 3)
            assert quick.device.seen == [3]
            leave.set()
            if way == "answered":
                first.receive()
            assert first.read(0, 0) == 5


def test_a_handler_that_waits_does_not_hold_up_its_own_interrupts(rig: Rig, peer: Peer) -> None:
    """Timers of the device wait for its lock; eventfds that the client writes do not."""
    entered, leave = threading.Event(), threading.Event()

    def act(value: int) -> None:
        entered.set()
        assert leave.wait(20)

    rig.device.on_start = act
    heard = threading.Event()
    peer.write_posted(0, 0x10, 1)
    assert entered.wait(20)
    bell = os.eventfd(0)
    rig.server._loop.watch(bell, heard.set)
    os.eventfd_write(bell, 1)
    assert heard.wait(20)
    rig.server._loop.forget(bell)
    os.close(bell)
    leave.set()
