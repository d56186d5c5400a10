# SPDX-License-Identifier: MIT
"""The entropy device: buffers are filled from its source."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from tests.unit import virtio as v
from tests.unit.virtio import Driver

from callgate.devices.virtio_rng import VirtioRng
from callgate.testing import FakeGuest

NOWHERE = 0x7FFF_0000_0000


def seeded() -> Callable[[int], bytes]:
    return random.Random(7).randbytes


@contextmanager
def plugged(device: VirtioRng, features: int | None = None) -> Iterator[v.Ring]:
    with FakeGuest(device) as guest:
        yield Driver(guest, device.id).start(features)
        assert not device.bugs._known


def ask(ring: v.Ring, *rooms: int) -> v.Done:
    ring.add([], rooms)
    ring.kick()
    ring.driver.guest.advance(0)
    (done,) = ring.take()
    return done


@pytest.mark.parametrize("features", [v.VERSION_1, None])
def test_buffers_are_filled_in_order(features: int | None) -> None:
    source = seeded()
    with plugged(VirtioRng(seeded()), features) as ring:
        for size in (1, 64, 4096, 7):
            done = ask(ring, size)
            assert (done.length, done.data) == (size, [source(size)])


def test_a_buffer_may_be_in_pieces() -> None:
    source = seeded()
    with plugged(VirtioRng(seeded())) as ring:
        done = ask(ring, 3, 5, 8)
        assert (done.length, done.data) == (16, [source(3), source(5), source(8)])


def test_a_large_buffer_is_filled_in_part() -> None:
    """5.4.6.2: the device may use less of it than there is."""
    asked: list[int] = []

    def source(count: int) -> bytes:
        asked.append(count)
        return b"r" * count

    with plugged(VirtioRng(source)) as ring:
        done = ask(ring, 4000, 1000, 1000)
        assert done.length == VirtioRng.MOST == 4096
        assert b"".join(done.data) == b"r" * 4096 + bytes(6000 - 4096)
        assert sum(asked) == 4096


def test_no_buffer_takes_nothing() -> None:
    with plugged(VirtioRng(seeded())) as ring:
        ring.add([b"for the device"], [])
        ring.kick()
        assert [each.length for each in ring.take()] == [0]


def test_this_host_is_the_source() -> None:
    with plugged(VirtioRng()) as ring:
        assert ask(ring, 32).data != ask(ring, 32).data


def test_a_buffer_must_be_in_memory() -> None:
    device = VirtioRng(seeded())
    with plugged(device) as ring:
        ring.add_pieces([(NOWHERE, 16, v.WRITE)])
        ring.kick()
        assert ring.driver.status & v.NEEDS_RESET
        assert device.faults.counts == {"dma": 1}


def test_a_source_that_fails_is_a_bug_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    def source(count: int) -> bytes:
        raise OSError("no entropy")

    device = VirtioRng(source)
    with FakeGuest(device) as guest:
        ring = Driver(guest, device.id).start()
        ring.add([], [16])
        ring.kick()
        assert ring.driver.status & v.NEEDS_RESET
        assert "OSError: no entropy" in caplog.text


@pytest.mark.parametrize("given", [15, 17])
def test_a_source_must_give_what_it_is_asked_for(
    given: int, caplog: pytest.LogCaptureFixture
) -> None:
    device = VirtioRng(lambda count: b"r" * given)
    with FakeGuest(device) as guest:
        ring = Driver(guest, device.id).start()
        room = ring.driver.allocate(64)
        ring.add_pieces([(room, 16, v.WRITE)])
        ring.kick()
        assert ring.driver.status & v.NEEDS_RESET
        assert f"The source must give the 16 bytes that it is asked for, not {given}" in caplog.text
        assert ring.memory.read(room, 64) == bytes(64)
