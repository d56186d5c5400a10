# SPDX-License-Identifier: MIT
"""DEVICE_GET_REGION_INFO: sizes, and what can be mapped."""

import errno
import mmap
import os
from pathlib import Path

import pytest
from tests.vfio_user.rig import GATE, PORTS, RAM, REGISTERS, TABLE, Peer, Rig, open_fds

from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.protocol import Command, Region
from callgate.backends.vfio_user.server import Server
from callgate.call import call, u64
from callgate.device import Device
from callgate.register import Bar


def ask(peer: Peer, index: int, argsz: int = 4096) -> tuple[tuple[int, ...], bytes, list[int]]:
    """The fixed part, the rest, files."""
    answer = peer.ask(Command.DEVICE_GET_REGION_INFO, p.REGION_INFO.pack(argsz, 0, index, 0, 0, 0))
    assert not answer.flags & p.ERROR
    head = p.REGION_INFO.unpack_from(answer.payload)
    return head, answer.payload[p.REGION_INFO.size :], answer.fds


@pytest.mark.parametrize(
    ("index", "size"),
    [(REGISTERS, 0x100), (PORTS, 16), (Region.CONFIG, 4096)],
)
def test_regions_that_are_read_and_written(peer: Peer, index: int, size: int) -> None:
    assert ask(peer, index) == ((32, 3, index, 0, size, 0), b"", [])


@pytest.mark.parametrize("index", [4, Region.ROM, Region.VGA])
def test_regions_that_are_not_there_have_no_size(peer: Peer, index: int) -> None:
    assert ask(peer, index) == ((32, 0, index, 0, 0, 0), b"", [])


def test_a_table_is_not_mapped(peer: Peer) -> None:
    head, rest, fds = ask(peer, TABLE)
    assert (head[1], head[3], rest, fds) == (3, 0, b"", [])


@pytest.mark.parametrize("index", [RAM, GATE])
def test_memory_can_be_mapped(rig: Rig, peer: Peer, index: int) -> None:
    head, rest, fds = ask(peer, index)
    bar = next(bar for bar in rig.server.function.bars if bar.index == index)
    window = bar.windows[0]
    assert head == (32 + 16 + 16, 15, index, 32, bar.size, 0)
    assert p.CAP_HEADER.unpack_from(rest) == (p.CAP_SPARSE_MMAP, 1, 0)
    assert p.SPARSE_HEAD.unpack_from(rest, 8) == (1, 0)
    assert p.SPARSE_AREA.unpack_from(rest, 16) == (0, window.size)
    assert len(rest) == 32
    (fd,) = fds
    with mmap.mmap(fd, window.size) as pages:
        assert window.ram is not None
        assert pages[:] == bytes(window.ram)
        pages[0x18:0x1C] = b"here"
        assert bytes(window.ram[0x18:0x1C]) == b"here"
        assert peer.read(index, 0x18).to_bytes(4, "little") == b"here"
    with pytest.raises(PermissionError):  # The host's accesses must not become fatal.
        os.ftruncate(fd, 0)
    os.close(fd)


@pytest.mark.parametrize("argsz", [32, 40, 63])
def test_a_reply_that_has_no_room_says_how_much_it_needs(peer: Peer, argsz: int) -> None:
    before = open_fds()
    assert ask(peer, RAM, argsz) == ((64, 15, RAM, 32, 0x2000, 0), b"", [])
    assert open_fds() == before
    assert ask(peer, REGISTERS, argsz)[0][0] == 32


@pytest.mark.parametrize("argsz", [0, 31])
def test_no_room_for_the_fixed_part(peer: Peer, argsz: int) -> None:
    request = p.REGION_INFO.pack(argsz, 0, 0, 0, 0, 0)
    assert peer.refused(Command.DEVICE_GET_REGION_INFO, request) == errno.EINVAL
    assert peer.refused(Command.DEVICE_GET_REGION_INFO, request[:-1]) == errno.EINVAL
    assert peer.refused(Command.DEVICE_GET_REGION_INFO) == errno.EINVAL


@pytest.mark.parametrize("index", [9, 10, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_no_such_region(rig: Rig, peer: Peer, index: int) -> None:
    request = p.REGION_INFO.pack(4096, 0, index, 0, 0, 0)
    assert peer.refused(Command.DEVICE_GET_REGION_INFO, request) == errno.EINVAL
    assert rig.counts == {"message DEVICE_GET_REGION_INFO": 1}


class Wide(Device):
    """Memory of one page, behind a BAR of 64 bits."""

    id = 0x1AF4, 0x10F2
    page = Bar(0, 0x1000, ram=True, width=64, prefetchable=True)


class Calls(Device):
    """A gate and nothing else."""

    id = 0x1AF4, 0x10F3

    @call
    def one(self) -> u64:
        return 1


def test_a_bar_of_64_bits_is_one_region(tmp_path: Path) -> None:
    with Server(Wide(), tmp_path / "s"), Peer(tmp_path / "s") as peer:
        head, _, (fd,) = ask(peer, 0)
        assert head == (64, 15, 0, 32, 0x1000, 0)
        os.close(fd)
        assert ask(peer, 1) == ((32, 0, 1, 0, 0, 0), b"", [])


def test_a_device_with_calls_alone_shares_its_gate(tmp_path: Path) -> None:
    server = Server(Calls(), tmp_path / "s")
    with server, Peer(tmp_path / "s") as peer:
        found = [index for index in range(9) if ask(peer, index)[0][1] & 4]
        assert len(found) == 1
        assert server.function.gate is not None
        _, _, (fd,) = ask(peer, found[0])
        assert os.fstat(fd).st_size == server.function.gate.ram_size
        os.close(fd)
