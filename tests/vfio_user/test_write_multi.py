# SPDX-License-Identifier: MIT
"""REGION_WRITE_MULTI: several writes of up to 8 bytes, in order."""

import errno

import pytest
from tests.vfio_user.rig import RAM, REGISTERS, Peer, Rig

from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.protocol import Command


def one(region: int, offset: int, value: int, count: int = 4) -> bytes:
    return p.WRITE_ONE.pack(offset, region, count, value.to_bytes(8, "little"))


def many(*writes: bytes, count: int | None = None) -> bytes:
    return p.WRITE_COUNT.pack(len(writes) if count is None else count) + b"".join(writes)


def test_they_are_done_in_order(rig: Rig, peer: Peer) -> None:
    payload = many(
        *(one(REGISTERS, 0x10, value) for value in range(100)),
        one(RAM, 1, 0x0102_0304_0506_0708, 8),
        one(RAM, 9, 0xFFFF_FF21, 1),
        one(RAM, 0x10, 0x55_4433, 3),
    )
    assert peer.get(Command.REGION_WRITE_MULTI, payload) == p.WRITE_COUNT.pack(103)
    assert rig.device.seen == list(range(100))
    assert bytes(rig.device.ram[:11]) == b"\0\x08\7\6\5\4\3\2\1\x21\0"
    assert bytes(rig.device.ram[0x10:0x14]) == b"\x33\x44\x55\0"


def test_none_at_all(peer: Peer) -> None:
    assert peer.get(Command.REGION_WRITE_MULTI, many()) == p.WRITE_COUNT.pack(0)


def test_posted(rig: Rig, peer: Peer) -> None:
    peer.post(Command.REGION_WRITE_MULTI, many(one(REGISTERS, 0, 9)))
    assert peer.read(REGISTERS, 0) == 9


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        bytes(7),
        many(one(REGISTERS, 0, 1), count=0),
        many(one(REGISTERS, 0, 1), count=2),
        many(one(REGISTERS, 0, 1), count=(1 << 64) - 1),
        many(one(REGISTERS, 0, 1))[:-1],
        many(one(REGISTERS, 0, 1)) + b"x",
        many(one(REGISTERS, 0, 1, 9)),
        many(one(REGISTERS, 0, 1, 0)),
        many(one(REGISTERS, 0, 1, 0xFFFF_FFFF)),
        many(one(REGISTERS, 0x100, 1)),
        many(one(REGISTERS, (1 << 64) - 4, 1)),
        many(one(9, 0, 1)),
    ],
)
def test_what_is_refused(rig: Rig, peer: Peer, payload: bytes) -> None:
    assert peer.refused(Command.REGION_WRITE_MULTI, payload) == errno.EINVAL
    assert peer.read(REGISTERS, 0) == 5
    assert rig.counts == {"message REGION_WRITE_MULTI": 1}


def test_those_before_a_bad_one_are_done(rig: Rig, peer: Peer) -> None:
    payload = many(one(REGISTERS, 0x10, 1), one(9, 0, 1), one(REGISTERS, 0x10, 2))
    assert peer.refused(Command.REGION_WRITE_MULTI, payload) == errno.EINVAL
    assert rig.device.seen == [1]


def test_as_many_as_a_message_holds(rig: Rig, peer: Peer) -> None:
    writes = (p.MAX_MESSAGE - p.HEADER.size - 8) // p.WRITE_ONE.size
    payload = many(*[one(REGISTERS, 0x10, 3)] * writes)
    assert peer.get(Command.REGION_WRITE_MULTI, payload) == p.WRITE_COUNT.pack(writes)
    assert len(rig.device.seen) == writes
