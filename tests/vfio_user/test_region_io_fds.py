# SPDX-License-Identifier: MIT
"""DEVICE_GET_REGION_IO_FDS: the doorbell as an ioeventfd."""

import errno
import os
from functools import partial

import pytest
from tests.vfio_user.rig import GATE, PORTS, Peer, Rig, open_fds, until

from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.protocol import Command
from callgate.gate.abi import FrameState


def ask(peer: Peer, index: int = GATE, argsz: int = 4096) -> tuple[bytes, list[int]]:
    answer = peer.ask(Command.DEVICE_GET_REGION_IO_FDS, p.IO_FDS.pack(argsz, 0, index, 0))
    assert not answer.flags & p.ERROR
    return answer.payload, answer.fds


def is_done(words: memoryview, at: int) -> bool:
    return int(words[at]) == FrameState.DONE


def test_the_doorbell_is_an_eventfd(rig: Rig, peer: Peer) -> None:
    gate = rig.server.function.gate
    assert gate is not None
    payload, (fd,) = ask(peer)
    assert p.IO_FDS.unpack_from(payload) == (16 + 40, 0, GATE, 1)
    assert p.IO_FD.unpack_from(payload, 16) == (gate.ram_size, 4, 0, 0, 0, 0, 0)
    words = gate.ram.cast("I")
    binding = gate.binding("add")
    assert binding is not None
    for index in (0, 3):
        at = (gate.frames_offset + index * gate.frame_size) // 4
        words[at + 8 : at + 12] = memoryview(bytes((2, 0, 0, 0) * 4)).cast("I")
        words[at + 1], words[at + 2] = binding.vector, 2 << 16
        words[at] = FrameState.READY
    os.eventfd_write(fd, 1)
    for index in (0, 3):
        at = (gate.frames_offset + index * gate.frame_size) // 4
        until(partial(is_done, words, at))
    os.close(fd)


def test_it_is_the_same_each_time_and_goes_with_the_client(rig: Rig) -> None:
    before = open_fds()
    peer = rig.connect()
    files = []
    for _ in range(5):
        _, fds = ask(peer)
        files += fds
    held = open_fds()
    for fd in files:
        os.close(fd)
    assert held - open_fds() == 5
    rig.leave(peer)
    assert open_fds() == before


@pytest.mark.parametrize("index", [0, 1, 2, 4, PORTS, 6, 7, 8])
def test_regions_without(peer: Peer, index: int) -> None:
    assert ask(peer, index) == (p.IO_FDS.pack(16, 0, index, 0), [])


@pytest.mark.parametrize("argsz", [16, 55])
def test_a_reply_that_has_no_room_says_how_much_it_needs(peer: Peer, argsz: int) -> None:
    assert ask(peer, argsz=argsz) == (p.IO_FDS.pack(56, 0, GATE, 1), [])


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        bytes(15),
        p.IO_FDS.pack(0, 0, GATE, 0),
        p.IO_FDS.pack(15, 0, GATE, 0),
        p.IO_FDS.pack(4096, 1, GATE, 0),
        p.IO_FDS.pack(4096, 0, 9, 0),
        p.IO_FDS.pack(4096, 0, 0xFFFF_FFFF, 0),
    ],
)
def test_what_is_refused(peer: Peer, payload: bytes) -> None:
    assert peer.refused(Command.DEVICE_GET_REGION_IO_FDS, payload) == errno.EINVAL
