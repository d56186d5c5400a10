# SPDX-License-Identifier: MIT
"""Connections, of which most go wrong: no file and no memory is lost.

`make leaks` makes 10,000 of them, without the line coverage, which keeps something of each thread.
"""

import gc
import itertools
import os
import socket
import struct
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from tests.vfio_user.rig import GATE, Peer, Rig, access, event, irq_set, memory, open_fds, until

from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.protocol import Command

pytestmark = pytest.mark.uncovered  # Coverage keeps something of every thread.

CONNECTIONS = int(os.environ.get("CALLGATE_CONNECTIONS", "2500"))
_LINGER = struct.pack("ii", 1, 0)


def ways(bells: list[int], files: list[int]) -> list[Callable[[Peer], object]]:
    """How a client ends: what it sends last."""
    events = p.DATA_EVENTFD | p.ACTION_TRIGGER
    irqs, multi = Command.DEVICE_SET_IRQS, irq_set(events, 2, 0, 3)
    io_fds = p.IO_FDS.pack(4096, 0, GATE, 0)
    info = p.REGION_INFO.pack(4096, 0, GATE, 0, 0, 0)
    maps = p.DMA_MAP.pack(32, 3, 0, 0, 0x1000)
    write = access(0, 0, 1)

    def agreed(*acts: Callable[[Peer], object]) -> Callable[[Peer], object]:
        def run(peer: Peer) -> None:
            peer.agree()
            for act in acts:
                act(peer)

        return run

    return [
        lambda peer: None,
        lambda peer: peer.raw(bytes(7)),
        lambda peer: peer.raw(bytes(64)),
        lambda peer: peer.raw(peer.message(1, bytes(4))[:19], bells),
        lambda peer: peer.agree(twin_socket={"supported": True}),
        agreed(),
        agreed(lambda peer: peer.map(0, 0x1000, files[0])),
        agreed(lambda peer: peer.map(0, 0x1000, files[1])),
        agreed(lambda peer: peer.map(0, 0x1000)),
        agreed(lambda peer: peer.refused(Command.DMA_MAP, maps, files)),
        agreed(lambda peer: peer.set_irqs(events, 2, 0, 3, fds=bells)),
        agreed(lambda peer: peer.post(irqs, bytes(20), bells)),
        agreed(lambda peer: peer.post(99, b"", bells * 80)),
        agreed(lambda peer: peer.write_posted(0, 0x10, 1)),
        agreed(
            lambda peer: peer.post(irqs, multi, bells),
            lambda peer: peer.raw(peer.message(Command.REGION_WRITE, write)[:20], files),
        ),
        agreed(lambda peer: peer.ask(Command.DEVICE_GET_REGION_IO_FDS, io_fds).close()),
        agreed(lambda peer: peer.ask(Command.DEVICE_GET_REGION_INFO, info).close()),
    ]


def test_nothing_is_left_of_connections(tmp_path: Path) -> None:
    bells = [event() for _ in range(3)]
    files = [memory(0x1000), memory(0x1000, seals=False)]
    with Rig(tmp_path) as rig:
        rig.device.on_start = lambda value: None
        ended = itertools.cycle(ways(bells, files))

        def connect(times: int) -> None:
            for _ in range(times):
                with rig.connect(agree=False) as peer, suppress(ConnectionError):
                    next(ended)(peer)
                assert rig.went.acquire(timeout=20)
            until(lambda: threading.active_count() == threads)
            gc.collect()

        threads = threading.active_count()
        connect(500)
        fds = open_fds()
        tracemalloc.start()
        try:
            connect(500)
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            connect(CONNECTIONS - 1500)
            assert open_fds() == fds
            tracemalloc.start()
            connect(500)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert open_fds() == fds
        # What the last 500 left behind, beside what the first did: the same, or it grows.
        assert after < before + 20_000
        assert resident() < 400_000_000
        rig.is_fine()
    for fd in bells + files:
        os.close(fd)


def test_memory_of_the_process_does_not_grow(tmp_path: Path) -> None:
    """Of the kernel's, too: what is mapped is unmapped."""
    file = memory(0x40_0000)
    with Rig(tmp_path) as rig:

        def connect(times: int) -> None:
            for _ in range(times):
                with rig.connect() as peer:
                    peer.map(0, 0x40_0000, file)
                    rig.server.memory.write(0, b"touched")
                assert rig.went.acquire(timeout=20)

        connect(50)
        maps, size = mappings(), resident()
        connect(500)
        until(lambda: mappings() <= maps + 8)
        assert resident() < size + 20_000_000
    os.close(file)


def test_a_client_that_resets_its_connection_leaves_nothing(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        fds = open_fds()
        for _ in range(100):
            peer = rig.connect()
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
            peer.raw(peer.message(Command.REGION_READ, p.REGION_ACCESS.pack(0, 7, 4096)) * 20)
            peer.close()  # With answers unread: the server sees a reset.
            assert rig.went.acquire(timeout=20)
        assert open_fds() == fds
        rig.is_fine()


def resident() -> int:
    """Bytes of this process's memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def mappings() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())
