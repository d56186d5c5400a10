# SPDX-License-Identifier: MIT
"""Clients that vanish at any moment while a disk of theirs is busy: the next one has it whole."""

import os
import random
import struct
import threading
import time
from pathlib import Path

import pytest
from tests.unit import virtio as v
from tests.vfio_user.rig import Peer, count, event, memory, open_fds, until

from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.server import Server
from callgate.devices.virtio import transport
from callgate.devices.virtio_blk import T_IN, T_OUT, VirtioBlk

CLIENTS = 120
RAM = 1 << 20
ENTRIES = 64
REQUESTS = ENTRIES // 4
DESC, AVAIL, USED, HEADER, STATUS, DATA = 0, 0x1000, 0x2000, 0x3000, 0x3800, 0x4000
SPAN = 8192
ONES = v.ACKNOWLEDGE | v.DRIVER


class Driver:
    """A client with a driver of the disk, which has all requests under way at once."""

    def __init__(self, path: Path, fd: int, *, shared: bool) -> None:
        self.peer = Peer(path)
        self.fd = fd
        self.bell = event()
        self.peer.map(0, RAM, fd if shared else None)
        self.peer.set_irqs(p.DATA_EVENTFD | p.ACTION_TRIGGER, p.Irq.MSIX, 0, 1, fds=[self.bell])
        self.peer.master()
        self.idx = 0
        os.pwrite(fd, bytes(DATA), 0)
        self.set(v.STATUS, ONES, 1)
        for half in range(2):
            self.set(v.DRIVER_FEATURE_SELECT, half)
            self.set(v.DRIVER_FEATURE, v.VERSION_1 >> 32 * half & 0xFFFF_FFFF)
        self.set(v.STATUS, ONES | v.FEATURES_OK, 1)
        self.set(v.SIZE, ENTRIES, 2)
        self.set(v.VECTOR, 0, 2)
        for at, place in ((v.DESC, DESC), (v.AVAIL, AVAIL), (v.USED, USED)):
            self.set(at, place, 8)
        self.set(v.ENABLE, 1, 2)
        self.set(v.STATUS, ONES | v.FEATURES_OK | v.DRIVER_OK, 1)

    def set(self, offset: int, value: int, size: int = 4) -> None:
        self.peer.write(0, transport.COMMON + offset, value, size)

    def fill(self, kind: int) -> None:
        """Make all requests available, each of two pieces of data."""
        flags = v.WRITE if kind == T_IN else 0
        table, heads = bytearray(), bytearray()
        for number in range(REQUESTS):
            head = 4 * number
            at = HEADER + 16 * number
            os.pwrite(self.fd, struct.pack("<IIQ", kind, 0, number * SPAN // 512), at)
            data, half = DATA + number * SPAN, SPAN // 2
            for index, piece in enumerate(
                (
                    (at, 16, v.NEXT),
                    (data, half, flags | v.NEXT),
                    (data + half, half, flags | v.NEXT),
                    (STATUS + number, 1, v.WRITE),
                )
            ):
                table += struct.pack("<QIHH", *piece, head + index + 1)
            heads += struct.pack("<H", head)
        os.pwrite(self.fd, b"\xff" * REQUESTS, STATUS)
        os.pwrite(self.fd, table, DESC)
        for number in range(REQUESTS):
            slot = (self.idx + number) % ENTRIES
            os.pwrite(self.fd, heads[2 * number : 2 * number + 2], AVAIL + 4 + 2 * slot)
        self.idx += REQUESTS
        os.pwrite(self.fd, struct.pack("<H", self.idx), AVAIL + 2)

    def kick(self) -> None:
        self.peer.write_posted(0, transport.NOTIFY, 0, 2)

    def finish(self) -> None:
        """Wait until all are done, and well."""
        until(lambda: os.pread(self.fd, 2, USED + 2) == struct.pack("<H", self.idx))
        assert os.pread(self.fd, REQUESTS, STATUS) == bytes(REQUESTS)

    def close(self) -> None:
        self.peer.close()
        os.close(self.bell)


@pytest.mark.parametrize("how", ["mapped", "copied", "asked for"])
def test_clients_vanish_while_the_disk_is_busy(tmp_path: Path, how: str) -> None:
    """Their memory is mapped, copied from a file, or asked for by messages that nobody answers."""
    chance = random.Random(11)
    fd = memory(RAM, seals=how == "mapped")
    disk = VirtioBlk(size=RAM)
    socket = tmp_path / "s"
    before = leftovers()
    with Server(disk, socket) as server:
        idle = leftovers()
        for number in range(CLIENTS):
            driver = Driver(socket, fd, shared=how != "asked for")
            driver.fill(chance.choice([T_IN, T_OUT]))
            driver.kick()
            if number % 2:
                time.sleep(chance.uniform(0, 0.002))
            driver.close()
        until(lambda: leftovers() == idle and not server.memory.slots)
        assert not disk.bugs._known
        # What was cut short finds no memory, and that is all.
        assert set(disk.faults.counts) <= {"dma"}
        driver = Driver(socket, fd, shared=True)
        content = chance.randbytes(REQUESTS * SPAN)
        for kind, first in ((T_OUT, content), (T_IN, bytes(len(content)))):
            os.pwrite(fd, first, DATA)
            driver.fill(kind)
            driver.kick()
            driver.finish()
        assert os.pread(fd, len(content), DATA) == content
        until(lambda: count(driver.bell))
        driver.close()
    os.close(fd)
    until(lambda: leftovers() == (before[0] - 1, before[1]))


def leftovers() -> tuple[int, int]:
    """Open files, and threads."""
    return open_fds(), threading.active_count()
