# SPDX-License-Identifier: MIT
"""Whatever a client sends: an answer or an end, nothing lost, and the next client is served.

Each test has a fixed seed, so that CI repeats itself, and a fresh one, so that it also finds
things; `make fuzz` gives each CALLGATE_FUZZ examples.
"""

import gc
import os
import random
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis import strategies as st
from tests.vfio_user.rig import Peer, Rig, event, memory, open_fds

from callgate.backends.vfio_user import memory as maps
from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.protocol import Command

pytestmark = pytest.mark.uncovered

EXAMPLES = int(os.environ.get("CALLGATE_FUZZ", "0"))
SEEDS = [0, secrets.randbits(32)]
U32 = st.one_of(
    st.sampled_from([0, 1, 2, 3, 4, 7, 8, 15, 16, 20, 32, 64, 4096, 1 << 31, (1 << 32) - 1]),
    st.integers(0, (1 << 32) - 1),
)
U64 = st.one_of(
    st.sampled_from(
        [0, 4, 0x10, 0x18, 0xFFC, 0x1000, 0x2000, 0x10000, 1 << 32, 1 << 63, (1 << 64) - 0x1000]
    ),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 64).map(lambda page: page << 12),
)
SMALL = st.integers(0, 10)
BYTES = st.binary(max_size=80)


class Files:
    """What a client may send along."""

    def __init__(self) -> None:
        self.all = [
            memory(0x4000),
            memory(0x4000, seals=False),
            event(),
            os.open("/dev/null", os.O_RDWR),
            os.open("/", os.O_RDONLY),
            *os.pipe(),
        ]

    def close(self) -> None:
        for fd in self.all:
            os.close(fd)


def _payload(command: int) -> st.SearchStrategy[bytes]:
    """A payload of the command's shape, with numbers that matter."""

    def of(
        pack: Callable[..., bytes], *members: st.SearchStrategy[Any]
    ) -> st.SearchStrategy[bytes]:
        return st.tuples(*members).map(lambda values: pack(*values))

    argsz = st.one_of(st.sampled_from([16, 20, 24, 32, 64, 4096]), U32)
    pages = st.one_of(st.sampled_from([0x1000, 0x2000, 0x4000, 0x100000]), U64)
    flags = st.one_of(st.integers(0, 63), st.sampled_from([0x21, 0x22, 0x24, 9, 10, 12]), U32)
    count = st.one_of(SMALL, U32)
    shapes: dict[int, st.SearchStrategy[bytes]] = {
        Command.VERSION: st.one_of(
            st.just(bytes(4) + b'{"capabilities": {"max_msg_fds": 8, "twin_socket": {}}}\0'),
            BYTES.map(lambda data: bytes(4) + data + b"\0"),
        ),
        Command.DMA_MAP: of(p.DMA_MAP.pack, argsz, st.one_of(SMALL, U32), U64, U64, pages),
        Command.DMA_UNMAP: of(p.DMA_UNMAP.pack, argsz, st.one_of(SMALL, U32), U64, pages),
        Command.DEVICE_GET_INFO: of(p.DEVICE_INFO.pack, argsz, U32, U32, U32),
        Command.DEVICE_GET_REGION_INFO: of(p.REGION_INFO.pack, argsz, U32, SMALL, U32, U64, U64),
        Command.DEVICE_GET_REGION_IO_FDS: of(p.IO_FDS.pack, argsz, SMALL, SMALL, U32),
        Command.DEVICE_GET_IRQ_INFO: of(p.IRQ_INFO.pack, argsz, U32, SMALL, U32),
        Command.DEVICE_SET_IRQS: of(
            lambda flags, irq, start, count, data: (
                p.IRQ_SET.pack(20 + len(data), flags, irq, start, count) + data
            ),
            flags,
            st.one_of(SMALL, U32),
            count,
            count,
            st.one_of(st.just(b""), st.binary(max_size=4)),
        ),
        Command.REGION_READ: of(p.REGION_ACCESS.pack, U64, SMALL, U32),
        Command.REGION_WRITE: of(
            lambda offset, region, data: p.REGION_ACCESS.pack(offset, region, len(data)) + data,
            U64,
            SMALL,
            BYTES,
        ),
        Command.REGION_WRITE_MULTI: st.lists(
            of(p.WRITE_ONE.pack, U64, SMALL, st.integers(0, 9), st.binary(min_size=8, max_size=8)),
            max_size=5,
        ).map(lambda writes: p.WRITE_COUNT.pack(len(writes)) + b"".join(writes)),
    }
    return st.one_of(shapes.get(command, BYTES), BYTES)


COMMANDS = st.one_of(st.sampled_from(list(Command)), st.sampled_from([0, 14, 16, 17, 18, 0xFFFF]))
MESSAGES = COMMANDS.flatmap(
    lambda command: st.tuples(
        st.just(command),
        _payload(command),
        st.sampled_from([0, 0, 0, p.NO_REPLY, p.NO_REPLY, p.REPLY, p.REPLY | p.ERROR]),
        st.lists(st.integers(0, 6), max_size=4),
    )
)


class Place:
    """A server for many examples; a broken one is seen at the next."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.files = Files()
        self.example(lambda peer: None)
        gc.collect()
        self.fds = open_fds()

    def example(self, act: Callable[[Peer], object]) -> None:
        with self.rig.connect(agree=False) as peer, suppress(ConnectionError, EOFError):
            act(peer)
        assert self.rig.went.acquire(timeout=30)
        assert self.rig.server.memory.slots == ()

    def check(self) -> None:
        self.rig.is_fine()
        assert self.rig.went.acquire(timeout=30)
        assert open_fds() == self.fds


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(maps, "GRACE", 0.01)
    with tempfile.TemporaryDirectory() as folder, Rig(Path(folder)) as rig:
        place = Place(rig)
        yield place
        place.check()
        place.files.close()


def fuzz(number: int, examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`given` whatever the test says, from a seed."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        limited = settings(
            max_examples=EXAMPLES or examples,
            deadline=None,
            derandomize=False,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )(test)
        return seed(number)(limited)

    return decorate


@pytest.mark.timeout(0 if EXAMPLES else 120)
@pytest.mark.parametrize("number", SEEDS, ids=["fixed", "fresh"])
def test_messages_of_the_right_shape(place: Place, number: int) -> None:
    """Each command that wants an answer gets one, in its order, unless the connection ends."""

    @fuzz(number, 150)
    @given(st.lists(MESSAGES, max_size=12), st.booleans())
    def run(messages: list[tuple[int, bytes, int, list[int]]], agree: bool) -> None:
        note(f"seed {number}")

        def act(peer: Peer) -> None:
            if agree:
                peer.agree()
            for command, payload, flags, files in messages:
                data = peer.message(command, payload, flags)
                peer.raw(data, [place.files.all[file] for file in files])
                if not flags:
                    answer = peer.receive()
                    answer.close()
                    assert answer.id == peer._id
                    assert answer.command == command
                    assert answer.flags in (p.REPLY, p.REPLY | p.ERROR)
                    if answer.flags & p.ERROR:
                        assert answer.error
                        assert not answer.payload

        place.example(act)

    run()
    place.check()


@pytest.mark.timeout(0 if EXAMPLES else 120)
@pytest.mark.parametrize("number", SEEDS, ids=["fixed", "fresh"])
def test_bytes_and_files_cut_anyhow(place: Place, number: int) -> None:
    @fuzz(number, 150)
    @given(
        st.lists(st.one_of(MESSAGES, BYTES), max_size=6),
        st.booleans(),
        st.lists(st.integers(1, 90), max_size=12),
        st.integers(0, 1 << 32),
    )
    def run(parts: list[Any], agree: bool, cuts: list[int], flips: int) -> None:
        note(f"seed {number}")
        rng = random.Random(flips)

        def act(peer: Peer) -> None:
            if agree:
                peer.agree()
            stream = bytearray()
            for part in parts:
                if isinstance(part, bytes):
                    stream += part
                else:
                    stream += peer.message(part[0], part[1], part[2])
            for _ in range(rng.randrange(4)):
                if stream:
                    stream[rng.randrange(len(stream))] ^= 1 << rng.randrange(8)
            at = 0
            for cut in [*cuts, len(stream)]:
                piece = bytes(stream[at : at + cut])
                at += cut
                if piece:
                    few = rng.choices(place.files.all, k=rng.randrange(3))
                    peer.raw(piece, few)

        place.example(act)

    run()
    place.check()
