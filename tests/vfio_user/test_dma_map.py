# SPDX-License-Identifier: MIT
"""DMA_MAP: guest memory by file or by messages, each range once."""

import errno
import os
import socket
from collections.abc import Iterator
from mmap import mmap

import pytest
from tests.vfio_user.rig import Peer, Rig, memory, open_fds

from callgate.backends.vfio_user import memory as maps
from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.memory import FileSlot, MappedSlot, MessageSlot
from callgate.backends.vfio_user.protocol import Command

MIB = 1 << 20


@pytest.fixture
def fd() -> Iterator[int]:
    fd = memory(MIB)
    yield fd
    os.close(fd)


def request(
    address: int, size: int, *, flags: int = 3, offset: int = 0, argsz: int = p.DMA_MAP.size
) -> bytes:
    return p.DMA_MAP.pack(argsz, flags, offset, address, size)


def test_a_file_is_mapped(rig: Rig, peer: Peer, fd: int) -> None:
    os.pwrite(fd, b"from the guest", 0x2000)
    before = open_fds()
    peer.map(0x10_0000, 0x3000, fd, offset=0x1000)
    peer.read(0, 0)  # Files are closed after the reply, but before the next message.
    assert open_fds() <= before + 1  # mmap keeps one.
    (slot,) = rig.server.memory.slots
    assert isinstance(slot, MappedSlot)
    assert (slot.gpa, slot.length, slot.readonly) == (0x10_0000, 0x3000, False)
    assert rig.server.memory.read(0x10_1000, 14) == b"from the guest"
    rig.server.memory.write(0x10_2FFF, b"!")
    assert os.pread(fd, 1, 0x3FFF) == b"!"
    view = rig.server.memory.map(0x10_0000, 4, write=True)
    view[:] = b"view"
    assert os.pread(fd, 4, 0x1000) == b"view"


def test_memory_without_a_file_is_asked_for_by_messages(rig: Rig, peer: Peer) -> None:
    peer.map(0, 0xA0000)
    assert isinstance(rig.server.memory.slots[0], MessageSlot)


def test_rom_is_not_written(rig: Rig, peer: Peer, fd: int) -> None:
    peer.map(0xFFFC_0000, 0x40000, fd, flags=1)
    peer.map(0, 0x1000, flags=1)
    assert [slot.readonly for slot in rig.server.memory.slots] == [True, True]


def test_many_maps_side_by_side(rig: Rig, peer: Peer, fd: int) -> None:
    for page in range(64):
        peer.map(page * 0x2000, 0x1000, fd, offset=page * 0x1000)
    peer.map(0x1000, 0x1000)
    peer.map((1 << 64) - 0x1000, 0x1000, fd)
    assert len(rig.server.memory.slots) == 66


@pytest.mark.parametrize(
    ("address", "size"),
    [
        (0x10000, 0x4000),
        (0x10000, 0x1000),
        (0x11000, 0x1000),
        (0x13000, 0x4000),
        (0xF000, 0x2000),
        (0, 1 << 32),
        (0, 0x11000),
    ],
)
def test_maps_must_not_overlap(rig: Rig, peer: Peer, fd: int, address: int, size: int) -> None:
    peer.map(0x10000, 0x4000, fd)
    assert peer.refused(Command.DMA_MAP, request(address, size)) == errno.EEXIST
    if size <= MIB:
        assert peer.refused(Command.DMA_MAP, request(address, size), [fd]) == errno.EEXIST
    assert len(rig.server.memory.slots) == 1
    assert rig.counts == {"message DMA_MAP": 1 + (size <= MIB)}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        request(0, 0x1000)[:-1],
        request(0, 0x1000, argsz=0),
        request(0, 0x1000, argsz=31),
        request(0, 0),
        request(0x1000, 1),
        request(0x800, 0x1000),
        request(0, 0x1800),
        request(0, 0x1000, offset=0x10),
        request(0, 0x1000, flags=0),
        request(0, 0x1000, flags=2),
        request(0, 0x1000, flags=4 | 3),
        request(0, 0x1000, flags=0xFFFF_FFFF),
        request((1 << 64) - 0x1000, 0x2000),
        request(0, (1 << 64) - 1),
        request(0x1000, (1 << 64) - 0x800),
        request((1 << 64) - 1, (1 << 64) - 1),
        request(0, 0x1000, offset=(1 << 64) - 0x800),
    ],
)
@pytest.mark.parametrize("with_file", [False, True])
def test_what_is_no_range_is_refused(
    rig: Rig, peer: Peer, fd: int, payload: bytes, with_file: bool
) -> None:
    before = open_fds()
    assert peer.refused(Command.DMA_MAP, payload, [fd] if with_file else []) == errno.EINVAL
    assert peer.read(0, 0) == 5
    assert open_fds() == before
    assert rig.server.memory.slots == ()
    assert rig.counts == {"message DMA_MAP": 1}


@pytest.mark.parametrize(
    ("size", "offset"),
    [(MIB + 0x1000, 0), (0x1000, MIB), (1 << 40, 0), (1 << 63, 0), (0x1000, (1 << 64) - 0x1000)],
)
def test_a_file_must_hold_the_range(peer: Peer, fd: int, size: int, offset: int) -> None:
    assert peer.refused(Command.DMA_MAP, request(0, size, offset=offset), [fd]) in (
        errno.EINVAL,
        errno.ENOSPC,
    )
    peer.map(0, MIB, fd)


def test_files_that_are_no_memory(rig: Rig, peer: Peer) -> None:
    near, far = socket.socketpair()
    read, write = os.pipe()
    event = os.eventfd(0)
    folder = os.open("/", os.O_RDONLY)
    null = os.open("/dev/zero", os.O_RDWR)
    fds = [near.fileno(), read, event, folder, null]
    try:
        before = open_fds()
        for fd in fds:
            assert peer.refused(Command.DMA_MAP, request(0, 0x1000), [fd]) == errno.EINVAL
        peer.read(0, 0)
        assert open_fds() == before
    finally:
        near.close()
        far.close()
        for fd in (read, write, event, folder, null):
            os.close(fd)
    assert rig.server.memory.slots == ()


def test_more_than_one_file_is_refused(rig: Rig, peer: Peer, fd: int) -> None:
    before = open_fds()
    for many in (2, 16, 17, 253):
        assert peer.refused(Command.DMA_MAP, request(0, 0x1000), [fd] * many) == errno.EINVAL
    peer.read(0, 0)
    assert open_fds() == before


def test_how_the_file_is_open_must_fit(rig: Rig, peer: Peer, fd: int) -> None:
    for mode, number in ((os.O_RDONLY, errno.EACCES), (os.O_WRONLY, errno.EACCES)):
        other = os.open(f"/proc/self/fd/{fd}", mode)
        assert peer.refused(Command.DMA_MAP, request(0, 0x1000), [other]) == number
        os.close(other)
    readable = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    peer.map(0, 0x1000, readable, flags=1)
    os.close(readable)
    assert rig.server.memory.read(0, 4) == bytes(4)


def test_no_more_maps_than_were_agreed_on(
    rig: Rig, peer: Peer, monkeypatch: pytest.MonkeyPatch, fd: int
) -> None:
    monkeypatch.setattr(maps, "MAX_MAPS", 4)
    for page in range(4):
        peer.map(page * 0x1000, 0x1000)
    assert peer.refused(Command.DMA_MAP, request(0x10000, 0x1000)) == errno.ENOSPC
    peer.unmap(0, 0x1000)
    peer.map(0x10000, 0x1000)
    monkeypatch.setattr(maps, "MAPPED", 0x3000)
    peer.unmap(0x1000, 0x1000)
    assert peer.refused(Command.DMA_MAP, request(0, 0x4000), [fd]) == errno.ENOSPC
    peer.map(0, 0x1000, fd)


def test_files_of_huge_pages_are_mapped_by_their_pages(
    rig: Rig, peer: Peer, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file says how large its pages are; maps begin and end anywhere in them."""

    class Huge:
        f_bsize = 0x40000

    asked = []

    def mapped(fd: int, length: int, **how: int) -> object:
        asked.append((how["offset"], length))
        return mmap(fd, length, **how)

    monkeypatch.setattr(os, "fstatvfs", lambda _: Huge)
    monkeypatch.setattr(maps, "mmap", mapped)
    os.pwrite(fd, b"low", 0x1000)
    os.pwrite(fd, b"high", 0xC1000)
    peer.map(0x1000, 0x9F000, fd, offset=0x1000)
    peer.map(0x10_0000, 0x2000, fd, offset=0xC0000)
    assert asked == [(0, 0xC0000), (0xC0000, 0x40000)]
    assert rig.server.memory.read(0x1000, 3) == b"low"
    assert rig.server.memory.read(0x10_1000, 4) == b"high"


def test_a_file_that_may_shrink_is_used_without_a_mapping(rig: Rig, peer: Peer) -> None:
    fd = memory(0x2000, seals=False)
    peer.map(0, 0x2000, fd)
    os.close(fd)
    assert isinstance(rig.server.memory.slots[0], FileSlot)
    assert rig.counts == {"unsealed memory": 1}
