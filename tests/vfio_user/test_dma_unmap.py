# SPDX-License-Identifier: MIT
"""DMA_UNMAP: a map goes as it came; when the reply is there, nobody uses it."""

import errno
import os

import pytest
from tests.vfio_user.rig import Peer, Rig, memory, open_fds

from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.protocol import Command
from callgate.errors import DmaError


def request(address: int, size: int, *, flags: int = 0, argsz: int = p.DMA_UNMAP.size) -> bytes:
    return p.DMA_UNMAP.pack(argsz, flags, address, size)


def test_a_map_of_each_kind_goes(rig: Rig, peer: Peer) -> None:
    sealed, unsealed = memory(0x1000), memory(0x1000, seals=False)
    before = open_fds()
    for _ in range(3):
        peer.map(0x1000, 0x1000, sealed)
        peer.map(0x2000, 0x1000, unsealed)
        peer.map(0x3000, 0x1000)
        for address in (0x3000, 0x1000, 0x2000):
            peer.unmap(address, 0x1000)
    assert rig.server.memory.slots == ()
    assert open_fds() == before
    with pytest.raises(DmaError, match="none at 0x1000"):
        rig.server.memory.read(0x1000, 1)
    os.close(sealed)
    os.close(unsealed)


@pytest.mark.parametrize(
    ("address", "size"),
    [(0, 0x1000), (0x1000, 0), (0x1000, 0x1000), (0x2000, 0x1000), (0x1000, 0x3000), (0, 1 << 63)],
)
def test_what_was_not_mapped_so_is_refused(rig: Rig, peer: Peer, address: int, size: int) -> None:
    peer.map(0x1000, 0x2000)
    assert peer.refused(Command.DMA_UNMAP, request(address, size)) == errno.ENOENT
    assert len(rig.server.memory.slots) == 1
    peer.unmap(0x1000, 0x2000)
    assert peer.refused(Command.DMA_UNMAP, request(0x1000, 0x2000)) == errno.ENOENT
    assert rig.counts == {"message DMA_UNMAP": 2}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        request(0x1000, 0x1000)[:-1],
        request(0x1000, 0x1000, argsz=0),
        request(0x1000, 0x1000, argsz=23),
        request(0x1000, 0x1000, flags=1),
        request(0x1000, 0x1000, flags=2),
        request(0, 0, flags=3),
        request(0x1000, 0x1000, flags=0xFFFF_FFFF),
    ],
)
def test_what_is_no_unmap_is_refused(rig: Rig, peer: Peer, payload: bytes) -> None:
    peer.map(0x1000, 0x1000)
    assert peer.refused(Command.DMA_UNMAP, payload) == errno.EINVAL
    assert len(rig.server.memory.slots) == 1


def test_all_at_once(rig: Rig, peer: Peer) -> None:
    fd = memory(0x1000)
    peer.map(0x1000, 0x1000, fd)
    peer.map(0x3000, 0x1000)
    os.close(fd)
    all_of_them = request(0, 0, flags=2)
    assert peer.get(Command.DMA_UNMAP, all_of_them) == all_of_them
    assert rig.server.memory.slots == ()
    assert peer.get(Command.DMA_UNMAP, all_of_them) == all_of_them


def test_files_that_come_with_it_are_closed(peer: Peer) -> None:
    fd = memory(0x1000)
    peer.map(0x1000, 0x1000)
    before = open_fds()
    peer.get(Command.DMA_UNMAP, request(0x1000, 0x1000), [fd, fd])
    peer.read(0, 0)
    assert open_fds() == before
    os.close(fd)
