# SPDX-License-Identifier: MIT
"""REGION_READ: BARs and configuration space, inside their bounds."""

import errno

import pytest
from tests.vfio_user.rig import GATE, RAM, REGISTERS, TABLE, Peer, Rig

from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.protocol import Command, Region

MIB = 1 << 20


def request(region: int, offset: int, count: int) -> bytes:
    return p.REGION_ACCESS.pack(offset, region, count)


def test_each_size_of_access(rig: Rig, peer: Peer) -> None:
    assert peer.read(REGISTERS, 0) == 5
    rig.device.wide = 0x1122_3344_5566_7788
    assert peer.read(REGISTERS, 8, 8) == 0x1122_3344_5566_7788
    assert peer.read(REGISTERS, 12) == 0x1122_3344
    assert peer.read(REGISTERS, 14, 2) == 0x1122
    assert peer.read(REGISTERS, 15, 1) == 0x11


def test_configuration_space_at_any_offset_and_length(peer: Peer) -> None:
    assert peer.read(Region.CONFIG, 0) == 0x10F1_1AF4
    assert peer.read(Region.CONFIG, 1, 2) == 0xF11A
    whole = peer.read(Region.CONFIG, 0, 4096).to_bytes(4096, "little")
    assert whole[:4] == b"\xf4\x1a\xf1\x10"
    assert peer.read(Region.CONFIG, 4095, 1) == 0
    for count in (3, 5, 8, 16, 255):
        assert peer.read(Region.CONFIG, 1, count).to_bytes(count, "little") == whole[1 : 1 + count]


def test_memory_in_one_piece(rig: Rig, peer: Peer) -> None:
    rig.device.ram[:] = bytes(range(256)) * 32
    assert peer.read(RAM, 0, 0x2000).to_bytes(0x2000, "little") == bytes(rig.device.ram)
    assert peer.read(RAM, 0x101, 7) == int.from_bytes(bytes(range(1, 8)), "little")
    assert peer.read(RAM, 0x1FFF, 1) == 0xFF


def test_registers_in_one_piece_are_read_one_after_another(rig: Rig, peer: Peer) -> None:
    rig.device.on_state = lambda: 0xABCD
    rig.device.wide = 7
    data = peer.read(REGISTERS, 0, 0x18).to_bytes(0x18, "little")
    assert data[:4] == b"\5\0\0\0"
    assert data[8:16] == b"\7" + bytes(7)
    assert data[0x14:] == b"\xcd\xab\0\0"


def test_a_piece_over_the_seam_of_memory_and_doorbell(rig: Rig, peer: Peer) -> None:
    gate = rig.server.function.gate
    assert gate is not None
    seam = peer.read(GATE, gate.ram_size - 8, 16).to_bytes(16, "little")
    assert seam[:8] == bytes(gate.ram[-8:])


def test_holes_read_all_ones(peer: Peer) -> None:
    assert peer.read(REGISTERS, 0x80) == 0xFFFF_FFFF
    assert peer.read(REGISTERS, 0xFC, 4) == 0xFFFF_FFFF
    assert peer.read(REGISTERS, 2) == 0xFFFF_FFFF  # not aligned
    assert peer.read(TABLE, 0x7F0, 8) == 0xFFFF_FFFF_FFFF_FFFF


@pytest.mark.parametrize(
    ("region", "offset", "count"),
    [
        (REGISTERS, 0, 0),
        (REGISTERS, 0x100, 0),
        (REGISTERS, 0x100, 1),
        (REGISTERS, 0xFD, 4),
        (REGISTERS, 0, 0x101),
        (REGISTERS, (1 << 64) - 4, 4),
        (REGISTERS, (1 << 64) - 1, 0xFFFF_FFFF),
        (REGISTERS, 1 << 63, 8),
        (REGISTERS, 0, 0xFFFF_FFFF),
        (RAM, 0x1FFD, 4),
        (RAM, 0, MIB + 1),
        (RAM, 0x2000, 1),
        (4, 0, 4),
        (Region.ROM, 0, 4),
        (Region.VGA, 0xA0000, 1),
        (Region.CONFIG, 4096, 1),
        (Region.CONFIG, 4093, 4),
        (Region.CONFIG, 0, 4097),
        (9, 0, 4),
        (0xFFFF_FFFF, 0, 4),
        (0x8000_0000, 0, 4),
    ],
)
def test_what_lies_outside_is_refused(
    rig: Rig, peer: Peer, region: int, offset: int, count: int
) -> None:
    assert peer.refused(Command.REGION_READ, request(region, offset, count)) == errno.EINVAL
    assert rig.counts == {"message REGION_READ": 1}


@pytest.mark.parametrize("payload", [b"", bytes(15)])
def test_what_is_too_short_is_refused(peer: Peer, payload: bytes) -> None:
    assert peer.refused(Command.REGION_READ, payload) == errno.EINVAL


def test_a_read_that_is_posted_is_carried_out_and_not_answered(rig: Rig, peer: Peer) -> None:
    reads: list[int] = []

    def state() -> int:
        reads.append(1)
        return 0

    rig.device.on_state = state
    peer.post(Command.REGION_READ, request(REGISTERS, 0x14, 4))
    assert peer.read(REGISTERS, 0) == 5
    assert reads == [1]


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, KeyboardInterrupt, MemoryError])
def test_a_hook_that_raises(
    rig: Rig, peer: Peer, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    def state() -> int:
        raise error("in the model")

    rig.device.on_state = state
    answer = peer.ask(Command.REGION_READ, request(REGISTERS, 0x14, 4))
    if issubclass(error, Exception):
        assert answer.payload[16:] == b"\xff" * 4
    else:
        assert answer.error == errno.EIO
    assert peer.read(REGISTERS, 0) == 5
    assert "test_region_read.py" in caplog.text
    assert "in the model" in caplog.text
    assert "session.py" not in caplog.text
