# SPDX-License-Identifier: MIT
"""A server with one device, and a client that has agreed on a version."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vfio_user.rig import Peer, Rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with Rig(tmp_path) as rig:
        yield rig


@pytest.fixture
def peer(rig: Rig) -> Iterator[Peer]:
    with rig.connect() as peer:
        yield peer


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [each for each in threading.enumerate() if each not in before]
    for each in left:
        each.join(5)
    assert [each for each in left if each.is_alive()] == []
