# SPDX-License-Identifier: MIT
"""VERSION: 0.0, and the capabilities that both sides know."""

import errno
import json
import os
from typing import Any

import pytest
from tests.vfio_user.rig import Peer, Rig, memory

from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.protocol import Command

HEAD = p.VERSION_HEAD.pack(0, 0)


def said(**capabilities: Any) -> bytes:
    return HEAD + json.dumps({"capabilities": capabilities}).encode() + b"\0"


def agreed(payload: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(payload[4:-1])["capabilities"]
    return found


@pytest.fixture
def fresh(rig: Rig) -> Any:
    with rig.connect(agree=False) as peer:
        yield peer


def test_what_both_know_is_agreed_on(fresh: Peer) -> None:
    payload = fresh.get(
        Command.VERSION,
        said(max_msg_fds=8, max_data_xfer_size=4096, pgsizes=4096, write_multiple=True, tea="hot"),
    )
    assert payload[:4] == HEAD
    assert payload[-1:] == b"\0"
    assert agreed(payload) == {
        "max_msg_fds": 16,
        "max_data_xfer_size": 1 << 20,
        "pgsizes": 4096,
        "write_multiple": True,
    }


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"{}\0", b'{"capabilities": {}}\0', b'{"other": [1]}\0', b"\xef\xbb\xbf{}\0"],
)
def test_a_client_may_propose_nothing(fresh: Peer, data: bytes) -> None:
    assert agreed(fresh.get(Command.VERSION, HEAD + data)) == {}
    fresh.get(Command.DEVICE_GET_INFO, p.DEVICE_INFO.pack(16, 0, 0, 0))


@pytest.mark.parametrize("minor", [0, 1, 3, 0xFFFF])
def test_any_minor_version_is_answered_with_ours(fresh: Peer, minor: int) -> None:
    payload = fresh.get(Command.VERSION, p.VERSION_HEAD.pack(0, minor) + b"{}\0")
    assert p.VERSION_HEAD.unpack_from(payload) == (0, 0)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0\0\0",
        p.VERSION_HEAD.pack(1, 0) + b"{}\0",
        p.VERSION_HEAD.pack(0xFFFF, 0),
        HEAD + b"{}",  # no NUL
        HEAD + b"{\0",
        HEAD + b"[]\0",
        HEAD + b"7\0",
        HEAD + b"null\0",
        HEAD + b'{"capabilities": []}\0',
        HEAD + b'{"capabilities": null}\0',
        HEAD + b'{"capabilities": "max_msg_fds"}\0',
        HEAD + b'{"capabilities": {"max_msg_fds": "16"}}\0',
        HEAD + b'{"capabilities": {"max_msg_fds": true}}\0',
        HEAD + b'{"capabilities": {"max_msg_fds": null}}\0',
        HEAD + b'{"capabilities": {"max_msg_fds": [1]}}\0',
        HEAD + b'{"capabilities": {"max_msg_fds": -1}}\0',
        HEAD + b'{"capabilities": {"max_msg_fds": 1.5}}\0',
        HEAD + b'{"capabilities": {"max_msg_fds": NaN}}\0',
        HEAD + b'{"capabilities": {"max_msg_fds": 1e999}}\0',
        HEAD + b'{"capabilities": {"max_data_xfer_size": 0}}\0',
        HEAD + b'{"capabilities": {"max_data_xfer_size": -4096}}\0',
        HEAD + b'\xff\xfe"\0',
        HEAD + b'{"\xc3\x28": 1}\0',
        HEAD + b"[" * 4000 + b"\0",
        HEAD + b'{"capabilities":' * 250 + b"\0",
        HEAD + b" " * 5000 + b"{}\0",
        HEAD + b'{"capabilities": {}}\0{}\0'[:-1],
    ],
)
def test_what_is_no_proposal_is_refused_and_may_be_said_again(
    rig: Rig, fresh: Peer, payload: bytes
) -> None:
    assert fresh.refused(Command.VERSION, payload) == errno.EINVAL
    assert rig.counts == {"message VERSION": 1}
    fresh.agree()


@pytest.mark.parametrize("number", [b"1" + b"0" * 1000, b"16.0", b"1e300", b"253", b"1000000"])
def test_numbers_may_be_as_large_as_they_like(fresh: Peer, number: bytes) -> None:
    text = b'{"capabilities": {"max_msg_fds": %b, "max_data_xfer_size": %b}}\0' % (number, number)
    assert agreed(fresh.get(Command.VERSION, HEAD + text))["max_msg_fds"] == 16


def test_it_comes_first_and_once(rig: Rig, fresh: Peer) -> None:
    info = p.DEVICE_INFO.pack(16, 0, 0, 0)
    assert fresh.refused(Command.DEVICE_GET_INFO, info) == errno.EINVAL
    assert fresh.refused(Command.REGION_READ, p.REGION_ACCESS.pack(0, 7, 4)) == errno.EINVAL
    assert fresh.refused(99) == errno.EINVAL
    fresh.post(Command.REGION_WRITE, p.REGION_ACCESS.pack(0, 0, 4) + b"\1\0\0\0")
    fresh.agree()
    assert fresh.refused(Command.VERSION, said()) == errno.EINVAL
    assert fresh.read(0, 0) == 5
    assert rig.counts["message VERSION"] == 1


def test_files_that_come_with_it_are_closed(rig: Rig, fresh: Peer) -> None:
    fd = memory(4096)
    try:
        fresh.refused(99)  # The server has accepted us.
        before = len(os.listdir("/proc/self/fd"))
        answer = fresh.ask(Command.VERSION, said(), [fd] * 3)
        assert not answer.flags & p.ERROR
        fresh.read(7, 0)
        assert len(os.listdir("/proc/self/fd")) == before
        assert fresh.refused(Command.VERSION, said(), [fd] * 200) == errno.EINVAL
        fresh.read(7, 0)
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        os.close(fd)


def test_a_twin_socket_is_made_for_who_wants_one(fresh: Peer) -> None:
    with fresh.twin(fresh.agree(twin_socket={"supported": True})) as twin:
        fresh.map(0x1000, 0x1000)
        assert twin.socket.gettimeout() == 20


@pytest.mark.parametrize("twin", [{"supported": False}, {}, [], True, None, {"supported": 1}])
def test_no_twin_socket_without_a_plain_yes(fresh: Peer, twin: object) -> None:
    assert "twin_socket" not in fresh.agree(twin_socket=twin)


def test_a_client_that_takes_no_files_gets_none(fresh: Peer) -> None:
    assert "twin_socket" not in fresh.agree(max_msg_fds=0, twin_socket={"supported": True})
    request = p.REGION_INFO.pack(4096, 0, 1, 0, 0, 0)
    payload = fresh.get(Command.DEVICE_GET_REGION_INFO, request)
    assert p.REGION_INFO.unpack(payload) == (32, 3, 1, 0, 0x2000, 0)
    request = p.IO_FDS.pack(4096, 0, 3, 0)
    assert fresh.get(Command.DEVICE_GET_REGION_IO_FDS, request) == p.IO_FDS.pack(16, 0, 3, 0)


def test_a_command_of_migration_is_not_known(peer: Peer) -> None:
    for command in (0, 14, 16, 17, 18, 19, 0xFFFF):
        assert peer.refused(command, bytes(64)) == errno.ENOTSUP
