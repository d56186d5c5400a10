# SPDX-License-Identifier: MIT
"""DEVICE_GET_INFO: a PCI device that can be reset."""

import errno

import pytest
from tests.vfio_user.rig import Peer

from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.protocol import Command


@pytest.mark.parametrize("argsz", [16, 20, 4096, 0xFFFF_FFFF])
def test_what_it_says(peer: Peer, argsz: int) -> None:
    request = p.DEVICE_INFO.pack(argsz, 0, 0, 0)
    payload = peer.get(Command.DEVICE_GET_INFO, request)
    assert p.DEVICE_INFO.unpack(payload) == (16, 3, 9, 5)
    assert peer.get(Command.DEVICE_GET_INFO, request + b"more") == payload


@pytest.mark.parametrize("payload", [b"", bytes(15), bytes(16), p.DEVICE_INFO.pack(15, 0, 0, 0)])
def test_a_request_without_room_for_the_reply(peer: Peer, payload: bytes) -> None:
    assert peer.refused(Command.DEVICE_GET_INFO, payload) == errno.EINVAL
