# SPDX-License-Identifier: MIT
"""REGION_WRITE: answered, or posted; all of it inside the region, or nothing."""

import errno

import pytest
from tests.vfio_user.rig import RAM, REGISTERS, Peer, Rig, access

from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.protocol import Command, Region
from callgate.pci import config as space


def test_each_size_of_access(rig: Rig, peer: Peer) -> None:
    peer.write(REGISTERS, 0, 0x1234_5678)
    assert rig.device.value == 0x1234_5678
    peer.write(REGISTERS, 8, 0x1122_3344_5566_7788, 8)
    peer.write(REGISTERS, 8, 0xAA, 1)
    peer.write(REGISTERS, 10, 0xBBCC, 2)
    assert rig.device.wide == 0x1122_3344_BBCC_77AA


def test_configuration_space(peer: Peer) -> None:
    peer.write(Region.CONFIG, space.COMMAND, 0x406, 2)
    assert peer.read(Region.CONFIG, space.COMMAND, 2) == 0x406
    peer.write(Region.CONFIG, space.BAR0, 0xFFFF_FFFF)
    assert peer.read(Region.CONFIG, space.BAR0) == 0xFFFF_FF00
    peer.write(Region.CONFIG, 0, 0)
    assert peer.read(Region.CONFIG, 0) == 0x10F1_1AF4
    peer.write(Region.CONFIG, space.BAR0 + 3, 0xFE_FFFF_FFFF, 5)  # in aligned pieces
    assert peer.read(Region.CONFIG, space.BAR0) == 0xFFFF_FF00


def test_memory_in_one_piece(rig: Rig, peer: Peer) -> None:
    data = bytes(range(1, 201))
    peer.write(RAM, 0x123, int.from_bytes(data, "little"), len(data))
    assert bytes(rig.device.ram[0x123 : 0x123 + 200]) == data
    peer.write(RAM, 0, 0, 0x2000)
    assert bytes(rig.device.ram) == bytes(0x2000)


def test_registers_in_one_piece_are_written_one_after_another(rig: Rig, peer: Peer) -> None:
    peer.write(REGISTERS, 0, int.from_bytes(bytes(range(20)), "little"), 20)
    assert rig.device.value == 0x0302_0100
    assert rig.device.wide == 0x0F0E_0D0C_0B0A_0908
    assert rig.device.seen == [0x1312_1110]


def test_posted_writes_are_not_answered_and_keep_their_order(rig: Rig, peer: Peer) -> None:
    for value in range(2000):
        peer.write_posted(REGISTERS, 0x10, value)
    assert peer.read(REGISTERS, 0x14) == 2000
    assert rig.device.seen == list(range(2000))


@pytest.mark.parametrize("posted", [False, True])
@pytest.mark.parametrize(
    "payload",
    [
        b"",
        bytes(15),
        access(REGISTERS, 0, 0, 0),
        access(REGISTERS, 0, 0, 4)[:-1],
        access(REGISTERS, 0, 0, 4) + b"x",
        p.REGION_ACCESS.pack(0, REGISTERS, 0xFFFF_FFFF) + bytes(4),
        access(REGISTERS, 0xFD, 0, 4),
        access(REGISTERS, 0x100, 0, 1),
        access(REGISTERS, (1 << 64) - 4, 0, 4),
        access(REGISTERS, (1 << 64) - 1, 0, 8),
        access(RAM, 0x1000, 0, 0x1001),
        access(Region.CONFIG, 4094, 0, 4),
        access(Region.ROM, 0, 0, 4),
        access(4, 0, 0, 4),
        access(9, 0, 0, 4),
        access(0xFFFF_FFFF, 0, 0, 4),
    ],
)
def test_what_lies_outside_is_refused(rig: Rig, peer: Peer, payload: bytes, posted: bool) -> None:
    if posted:
        peer.post(Command.REGION_WRITE, payload)
    else:
        assert peer.refused(Command.REGION_WRITE, payload) == errno.EINVAL
    assert peer.read(REGISTERS, 0) == 5
    assert rig.counts == {"message REGION_WRITE": 1}


def test_a_guest_that_writes_nonsense_is_not_answered_with_errors(rig: Rig, peer: Peer) -> None:
    """What lies inside the region but where nothing is: dropped, and counted with the device."""
    peer.write(REGISTERS, 0x80, 1)
    peer.write(REGISTERS, 2, 1)
    peer.write(REGISTERS, 0x14, 1)
    assert rig.counts == {}
    assert rig.device.faults.counts == {"bad write": 2, "read-only register": 1}


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
@pytest.mark.parametrize("posted", [False, True])
def test_a_hook_that_raises(
    rig: Rig,
    peer: Peer,
    caplog: pytest.LogCaptureFixture,
    error: type[BaseException],
    posted: bool,
) -> None:
    def act(value: int) -> None:
        raise error("in the model")

    rig.device.on_start = act
    if posted:
        peer.write_posted(REGISTERS, 0x10, 1)
    else:
        answer = peer.ask(Command.REGION_WRITE, access(REGISTERS, 0x10, 1))
        assert answer.error == (0 if issubclass(error, Exception) else errno.EIO)
    assert peer.read(REGISTERS, 0) == 5
    assert "test_region_write.py" in caplog.text
    assert "in the model" in caplog.text
    assert "session.py" not in caplog.text
