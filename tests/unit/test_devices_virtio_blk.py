# SPDX-License-Identifier: MIT
"""The block device: each request, what of it may be wrong, the file behind it."""

import errno
import gc
import os
import random
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit import virtio as v
from tests.unit.virtio import Driver

from callgate import LoadError
from callgate.devices import virtio_blk as blk
from callgate.devices.virtio_blk import SECTOR, VirtioBlk
from callgate.memory import Slot
from callgate.testing import FakeGuest

SIZE = 1 << 20
SECTORS = SIZE // SECTOR
CONTENT = random.Random(5).randbytes(SIZE)
NOWHERE = 0x7FFF_0000_0000
PLAIN = v.VERSION_1
WRITABLE = blk.F_FLUSH | blk.F_CONFIG_WCE | blk.F_DISCARD | blk.F_WRITE_ZEROES


class Answer(NamedTuple):
    """Status, what the pieces for data hold, and the used ring's length."""

    status: int
    data: bytes
    length: int


class Client:
    """The driver of a disk, with one queue."""

    def __init__(self, device: VirtioBlk, guest: FakeGuest, features: int | None = None) -> None:
        self.device = device
        self.driver = Driver(guest, device.id)
        self.ring = self.driver.start(features)
        self.indirect = bool(self.driver.features & v.INDIRECT_DESC)

    def ask(
        self, kind: int, sector: int = 0, out: bytes = b"", room: int | Sequence[int] = ()
    ) -> Answer:
        """Make one request, of a header, data that the driver gives, and room for data."""
        rooms = [room] if isinstance(room, int) else list(room)
        readable = [struct.pack("<IIQ", kind, 0, sector)] + [out] * bool(out)
        return self.send(readable, [*rooms, 1])

    def send(self, readable: Sequence[bytes], writable: Sequence[int]) -> Answer:
        """Make one request of these pieces."""
        self.ring.add(readable, writable, self.indirect)
        return self.finish()

    def send_pieces(self, kind: int, *data: tuple[int, int, int]) -> int:
        """Make one whose data lie where they lie: (address, length, flags); its status."""
        allocate = self.driver.allocate
        header, status = allocate(struct.pack("<IIQ", kind, 0, 0)), allocate(b"\xff")
        pieces = [(header, 16, 0), *data, (status, 1, v.WRITE)]
        head = self.ring.add_pieces(pieces, self.indirect)
        self.ring.held[head] = self.ring.held[head][0], [(status, 1)]
        return self.finish().status

    def finish(self) -> Answer:
        self.ring.kick()
        self.settle()
        ((_, length, parts),) = self.ring.take()
        data = b"".join(parts)
        return Answer(data[-1], data[:-1], length)

    def settle(self) -> None:
        self.driver.guest.advance(0)
        self.device.settle()

    def read(self, sector: int, count: int) -> bytes:
        answer = self.ask(blk.T_IN, sector, room=count * SECTOR)
        assert (answer.status, answer.length) == (blk.S_OK, count * SECTOR + 1)
        return answer.data

    def write(self, sector: int, data: bytes) -> None:
        assert self.ask(blk.T_OUT, sector, data) == (blk.S_OK, b"", 1)

    def faults(self) -> dict[str, int]:
        return self.device.faults.counts


class Private(Slot):
    """Memory of which the VMM shows no view."""

    def __init__(self, whole: Slot) -> None:
        super().__init__(whole.gpa, whole.length, None)
        self._whole = whole

    def read(self, offset: int, length: int) -> bytes:
        return self._whole.read(offset, length)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._whole.write(offset, data)


def hide(guest: FakeGuest) -> None:
    """Let the guest keep its memory to itself."""
    (slot,) = guest.memory.slots
    guest.memory.remove(slot.gpa)
    guest.memory.insert(Private(slot))


@contextmanager
def client(
    device: VirtioBlk, features: int | None = None, *, private: bool = False
) -> Iterator[Client]:
    with FakeGuest(device) as guest:
        if private:
            hide(guest)
        found = Client(device, guest, features)
        yield found
        found.settle()
        assert not device.bugs._known


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "disk.img"
    file.write_bytes(CONTENT)
    return file


@pytest.fixture(autouse=True)
def _files_are_closed() -> Iterator[None]:
    gc.collect()  # What waits for the collector is not this test's.
    before = open_files()
    yield
    gc.collect()  # Guest memory of which the test has a view still.
    assert open_files() == before


def open_files() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


@pytest.fixture(
    params=[
        (PLAIN | WRITABLE, False),
        (PLAIN | WRITABLE | v.INDIRECT_DESC, False),
        (None, False),
        (None, True),
    ],
    ids=["plain", "indirect", "all", "private"],
)
def disk(request: pytest.FixtureRequest, path: Path) -> Iterator[Client]:
    features, private = request.param
    with client(VirtioBlk(path), features, private=private) as found:
        yield found


# --- what each request does ----------------------------------------------------------------------


def test_reads_give_what_the_file_has(disk: Client) -> None:
    assert disk.read(0, 1) == CONTENT[:SECTOR]
    assert disk.read(SECTORS - 1, 1) == CONTENT[-SECTOR:]
    answer = disk.ask(blk.T_IN, 3, room=(512, 4096, 1024, 1, 511))
    assert answer == (blk.S_OK, CONTENT[3 * SECTOR : 3 * SECTOR + 6144], 6145)
    assert disk.faults() == {}


def test_writes_are_in_the_file(disk: Client, path: Path) -> None:
    disk.write(1, b"w" * 1024)
    disk.write(SECTORS - 1, b"e" * SECTOR)
    content = CONTENT[:SECTOR] + b"w" * 1024 + CONTENT[SECTOR + 1024 : -SECTOR] + b"e" * SECTOR
    assert path.read_bytes() == content
    assert disk.faults() == {}


def test_a_request_may_have_no_data(disk: Client) -> None:
    assert disk.ask(blk.T_IN, SECTORS) == (blk.S_OK, b"", 1)
    assert disk.ask(blk.T_OUT, SECTORS) == (blk.S_OK, b"", 1)


def test_a_flush_is_on_the_disk(disk: Client, syncs: list[int]) -> None:
    disk.write(0, bytes(SECTOR))
    assert syncs == []
    assert disk.ask(blk.T_FLUSH) == (blk.S_OK, b"", 1)
    assert len(syncs) == 1


def test_the_serial_is_told(disk: Client) -> None:
    serial = b"callgate".ljust(20, b"\0")
    assert disk.ask(blk.T_GET_ID, room=20) == (blk.S_OK, serial, 21)
    assert disk.ask(blk.T_GET_ID, room=(3, 30)) == (blk.S_OK, serial + bytes(13), 20)
    assert disk.ask(blk.T_GET_ID, room=19).status == blk.S_IOERR
    assert disk.faults() == {"request": 1}


def test_a_discard_gives_room_back(disk: Client, path: Path) -> None:
    before = path.stat().st_blocks
    ranges = struct.pack("<QIIQIIQII", 0, 512, 0, 1024, 8, 0, 9, 0, 0)
    assert disk.ask(blk.T_DISCARD, out=ranges).status == blk.S_OK
    assert path.stat().st_blocks < before
    assert path.stat().st_size == SIZE
    assert disk.read(520, 400) == CONTENT[520 * SECTOR : 920 * SECTOR]


@pytest.mark.parametrize("flags", [0, blk.UNMAP])
def test_zeroes_are_written(disk: Client, path: Path, flags: int) -> None:
    before = path.stat().st_blocks
    ranges = struct.pack("<QIIQII", 1, 1023, flags, SECTORS - 1, 1, flags)
    assert disk.ask(blk.T_WRITE_ZEROES, out=ranges).status == blk.S_OK
    zeros = bytes(1023 * SECTOR)
    content = CONTENT[:SECTOR] + zeros + CONTENT[1024 * SECTOR : -SECTOR] + bytes(SECTOR)
    assert path.read_bytes() == content
    assert not flags or path.stat().st_blocks < before


def test_an_unknown_request_is_not_supported(disk: Client) -> None:
    for kind in (2, 3, 5, 7, 10, 12, 14, 0x8000_0000, 0xFFFF_FFFF):
        assert disk.ask(kind, out=bytes(SECTOR), room=SECTOR) == (
            blk.S_UNSUPP,
            bytes(SECTOR),
            0,
        )
    assert disk.faults() == {"request": 9}


@settings(max_examples=60)
@given(data=st.data(), private=st.booleans())
def test_a_request_may_be_cut_in_any_way(data: st.DataObject, private: bool) -> None:
    """A write and a read of the same sectors, with header, data and status in any pieces."""
    count = data.draw(st.integers(1, 4)) * SECTOR
    content = random.Random(count).randbytes(count)
    with client(VirtioBlk(size=16 * SECTOR), private=private) as disk:
        out = struct.pack("<IIQ", blk.T_OUT, 0, 7) + content
        assert disk.send(_cut(data, out), [1]).status == blk.S_OK
        sizes = [len(part) for part in _cut(data, bytes(count + 1))]
        answer = disk.send(_cut(data, struct.pack("<IIQ", blk.T_IN, 0, 7)), sizes)
        assert answer == (blk.S_OK, content, count + 1)
        assert disk.faults() == {}


def _cut(data: st.DataObject, whole: bytes) -> list[bytes]:
    places = data.draw(st.sets(st.integers(0, len(whole)), max_size=12))
    edges = [0, *sorted(places), len(whole)]
    return [whole[begin:end] for begin, end in pairwise(edges)]


_SECTORS = 64
_PLACE = st.tuples(st.integers(0, _SECTORS - 1), st.integers(1, 12))
_STEP = st.tuples(st.sampled_from(["read", "write", "zero", "unmap", "flush"]), _PLACE)


@settings(max_examples=40)
@given(steps=st.lists(_STEP, max_size=25))
def test_it_is_a_disk(steps: list[tuple[str, tuple[int, int]]]) -> None:
    """Any requests, beside the bytes that a disk should have then."""
    model = bytearray(_SECTORS * SECTOR)
    with client(VirtioBlk(size=len(model))) as disk:
        for number, (step, (sector, count)) in enumerate(steps):
            count = min(count, _SECTORS - sector)
            part = slice(sector * SECTOR, (sector + count) * SECTOR)
            if step == "read":
                assert disk.read(sector, count) == model[part]
            elif step == "write":
                model[part] = bytes([number + 1]) * (count * SECTOR)
                disk.write(sector, bytes(model[part]))
            elif step == "flush":
                assert disk.ask(blk.T_FLUSH).status == blk.S_OK
            else:
                model[part] = bytes(count * SECTOR)
                asked = struct.pack("<QII", sector, count, step == "unmap")
                assert disk.ask(blk.T_WRITE_ZEROES, out=asked).status == blk.S_OK
        assert disk.read(0, _SECTORS) == model
        assert disk.faults() == {}


# --- several at once -----------------------------------------------------------------------------


def test_requests_of_a_batch_are_each_answered(disk: Client) -> None:
    for sector in range(60):
        header = struct.pack("<IIQ", blk.T_IN, 0, sector)
        disk.ring.add([header], [SECTOR, 1], disk.indirect)
    disk.ring.kick()
    disk.settle()
    done = disk.ring.take()
    expected = {CONTENT[at * SECTOR : (at + 1) * SECTOR] for at in range(60)}
    assert {each.data[0] for each in done} == expected
    assert {each.data[1] for each in done} == {b"\0"}


@pytest.mark.parametrize("features", [None, PLAIN | blk.F_MQ])
def test_each_queue_reaches_the_disk(path: Path, features: int | None) -> None:
    device = VirtioBlk(path, queues=4)
    with FakeGuest(device) as guest:
        driver = Driver(guest, device.id)
        driver.negotiate(features)
        assert driver.read(v.DEVICE, 0x22, 2) == driver.common(v.NUM_QUEUES, 2) == 4
        interrupts = [driver.function.interrupt(index) for index in range(4)]
        rings = [driver.queue(index, vector=index) for index in range(4)]
        driver.ready()
        for sector, ring in enumerate(rings):
            ring.add([struct.pack("<IIQ", blk.T_IN, 0, sector)], [SECTOR, 1])
        for ring in rings:
            ring.kick()
        device.settle()
        for sector, ring in enumerate(rings):
            (done,) = ring.take()
            assert done.data == [CONTENT[sector * SECTOR : (sector + 1) * SECTOR], b"\0"]
        assert all(interrupt.take() for interrupt in interrupts)


def test_one_queue_has_no_feature_for_several(path: Path) -> None:
    with client(VirtioBlk(path)) as disk:
        assert not disk.driver.offered & blk.F_MQ
        assert disk.driver.read(v.DEVICE, 0x22, 2) == 1


# --- what the driver finds -----------------------------------------------------------------------


@pytest.mark.parametrize("block", [512, 1024, 2048, 4096])
def test_configuration_says_what_the_disk_is(path: Path, block: int) -> None:
    class Blocks(VirtioBlk):
        block_size = block

    with client(Blocks(path)) as disk:
        read = disk.driver.read
        assert read(v.DEVICE, 0x00, 8) == SECTORS
        assert read(v.DEVICE, 0x08, 4) == 1 << 20
        assert read(v.DEVICE, 0x0C, 4) == 254
        assert read(v.DEVICE, 0x14, 4) == block
        # By both, the guest's partitions and file systems keep to the host's pages.
        assert block << read(v.DEVICE, 0x18, 1) == 4096
        assert block * read(v.DEVICE, 0x1A, 2) == 4096
        assert disk.read(5, 1) == CONTENT[5 * SECTOR : 6 * SECTOR]


def test_a_disk_without_a_file_is_zeros() -> None:
    with client(VirtioBlk(size=3 * SECTOR)) as disk:
        assert disk.driver.read(v.DEVICE, 0, 8) == 3
        assert disk.read(0, 3) == bytes(3 * SECTOR)


def test_the_driver_learns_a_new_size(path: Path) -> None:
    with client(VirtioBlk(path)) as disk:
        interrupt = disk.driver.function.interrupt(0)
        disk.driver.set_common(v.CONFIG_VECTOR, 2, 0)
        os.truncate(path, 2 * SIZE)
        disk.device.resize()
        assert interrupt.take()
        assert disk.driver.read(v.DEVICE, 0, 8) == 2 * SECTORS
        assert disk.read(2 * SECTORS - 1, 1) == bytes(SECTOR)
        os.truncate(path, SIZE + 1)
        with pytest.raises(LoadError, match="must have whole blocks of 512 bytes, and has 1048577"):
            disk.device.resize()
        assert disk.driver.read(v.DEVICE, 0, 8) == 2 * SECTORS


# --- write-through and write-back ----------------------------------------------------------------


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The files that were asked to be on the disk."""
    found: list[int] = []
    monkeypatch.setattr(os, "fdatasync", found.append)
    return found


@pytest.mark.parametrize(
    ("features", "set_to", "reads", "through"),
    [
        (0, None, 0, True),
        (blk.F_FLUSH, None, 1, False),
        (blk.F_FLUSH | blk.F_CONFIG_WCE, None, 1, False),
        (blk.F_FLUSH | blk.F_CONFIG_WCE, 0, 0, True),
        (blk.F_FLUSH | blk.F_CONFIG_WCE, 1, 1, False),
        (blk.F_CONFIG_WCE, None, 0, True),  # 5.2.5.2: without a flush it must begin so.
        (blk.F_CONFIG_WCE, 1, 1, False),
    ],
)
def test_a_write_is_stable_as_agreed(
    path: Path, syncs: list[int], features: int, set_to: int | None, reads: int, through: bool
) -> None:
    """5.2.6.2: written through unless the driver can flush, and as it says where it can say it."""
    features |= PLAIN | blk.F_DISCARD | blk.F_WRITE_ZEROES
    with client(VirtioBlk(path), features) as disk:
        if set_to is not None:
            disk.driver.write(v.DEVICE, 0x20, 1, set_to)
        assert disk.driver.read(v.DEVICE, 0x20, 1) == reads
        disk.write(0, bytes(SECTOR))
        for kind in (blk.T_DISCARD, blk.T_WRITE_ZEROES):
            disk.ask(kind, out=struct.pack("<QII", 0, 8, 0))
        assert len(syncs) == 3 * through
        disk.read(0, 1)
        assert len(syncs) == 3 * through
        assert disk.faults() == {}


@pytest.mark.parametrize(("features", "value"), [(blk.F_CONFIG_WCE, 2), (blk.F_FLUSH, 0)])
def test_the_mode_is_changed_as_it_may_be(path: Path, features: int, value: int) -> None:
    with client(VirtioBlk(path), PLAIN | features) as disk:
        before = disk.driver.read(v.DEVICE, 0x20, 1)
        disk.driver.write(v.DEVICE, 0x20, 1, value)
        assert disk.driver.read(v.DEVICE, 0x20, 1) == before
        assert disk.faults() == {"virtio": 1}


def test_a_reset_begins_with_write_back(path: Path) -> None:
    with client(VirtioBlk(path)) as disk:
        disk.driver.write(v.DEVICE, 0x20, 1, 0)
        disk.driver.start()
        assert disk.driver.read(v.DEVICE, 0x20, 1) == 1


# --- read-only -----------------------------------------------------------------------------------


def test_a_read_only_disk_is_read_alone(path: Path) -> None:
    path.chmod(0o400)
    with client(VirtioBlk(path, readonly=True)) as disk:
        assert disk.driver.offered & blk.F_RO
        assert not disk.driver.offered & (blk.F_DISCARD | blk.F_WRITE_ZEROES | blk.F_CONFIG_WCE)
        assert disk.read(2, 2) == CONTENT[2 * SECTOR : 4 * SECTOR]
        assert disk.ask(blk.T_FLUSH).status == blk.S_OK
        assert disk.ask(blk.T_OUT, 0, bytes(SECTOR)).status == blk.S_IOERR
        for kind in (blk.T_DISCARD, blk.T_WRITE_ZEROES):
            ranges = struct.pack("<QII", 0, 8, 0)
            assert disk.ask(kind, out=ranges).status == blk.S_UNSUPP
        assert disk.faults() == {"request": 3}
    assert path.read_bytes() == CONTENT


def test_what_is_not_agreed_is_not_done(path: Path) -> None:
    with client(VirtioBlk(path), PLAIN | blk.F_FLUSH) as disk:
        for kind in (blk.T_DISCARD, blk.T_WRITE_ZEROES):
            ranges = struct.pack("<QII", 0, 8, 0)
            assert disk.ask(kind, out=ranges).status == blk.S_UNSUPP
    assert path.read_bytes() == CONTENT


# --- what may be wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sector", "size"),
    [
        (SECTORS, SECTOR),
        (SECTORS - 1, 2 * SECTOR),
        (1 << 55, SECTOR),
        ((1 << 64) - 1, SECTOR),
        (0, 1),
        (0, SECTOR - 1),
        (0, SECTOR + 1),
    ],
)
def test_a_transfer_must_be_sectors_of_the_disk(
    disk: Client, path: Path, sector: int, size: int
) -> None:
    assert disk.ask(blk.T_IN, sector, room=size) == (blk.S_IOERR, bytes(size), 0)
    assert disk.ask(blk.T_OUT, sector, bytes(size)).status == blk.S_IOERR
    assert disk.faults() == {"request": 2}
    assert path.read_bytes() == CONTENT


def test_a_transfer_must_be_cut_as_it_may_be(path: Path) -> None:
    with client(VirtioBlk(path)) as disk:
        buffer = disk.driver.allocate(1 << 20)
        os.truncate(path, 4 * SIZE)
        disk.device.resize()

        def read(*lengths: int) -> int:
            return disk.send_pieces(blk.T_IN, *[(buffer, each, v.WRITE) for each in lengths])

        assert read(*[SECTOR] * 254) == blk.S_OK
        assert read(*[SECTOR] * 255) == blk.S_IOERR
        assert read(1 << 20, SECTOR) == blk.S_OK
        assert read((1 << 20) + SECTOR) == blk.S_IOERR
        assert disk.faults() == {"request": 2}


_BAD_RANGES = {
    "none": (b"", blk.S_IOERR),
    "a part of one": (bytes(15), blk.S_IOERR),
    "one and a part": (bytes(17), blk.S_IOERR),
    "too many": (bytes(17 * 16), blk.S_IOERR),
    "behind the end": (struct.pack("<QII", SECTORS, 1, 0), blk.S_IOERR),
    "over the end": (struct.pack("<QII", SECTORS - 1, 2, 0), blk.S_IOERR),
    "around": (struct.pack("<QII", (1 << 64) - 1, 1, 0), blk.S_IOERR),
    "too long": (struct.pack("<QII", 0, 0xFFFF_FFFF, 0), blk.S_IOERR),
    "flags": (struct.pack("<QII", 0, 8, 2), blk.S_UNSUPP),
    "the second": (struct.pack("<QIIQII", 0, 8, 0, SECTORS, 1, 0), blk.S_IOERR),
}


@pytest.mark.parametrize("kind", [blk.T_DISCARD, blk.T_WRITE_ZEROES])
@pytest.mark.parametrize("name", _BAD_RANGES)
def test_ranges_must_be_of_the_disk(disk: Client, path: Path, name: str, kind: int) -> None:
    ranges, status = _BAD_RANGES[name]
    assert disk.ask(kind, out=ranges).status == status
    assert disk.faults() == {"request": 1}
    assert path.read_bytes() == CONTENT


def test_a_discard_has_no_flags(disk: Client, path: Path) -> None:
    """5.2.6.2: UNMAP is of write zeroes."""
    ranges = struct.pack("<QIIQII", 0, 8, 0, 8, 8, blk.UNMAP)
    assert disk.ask(blk.T_DISCARD, out=ranges).status == blk.S_UNSUPP
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("readable", "writable"),
    [([], [1]), ([bytes(15)], [1]), ([bytes(8), bytes(7)], [1]), ([bytes(16)], []), ([], [17])],
)
def test_a_request_without_header_or_status_breaks_the_queue(
    disk: Client, readable: list[bytes], writable: list[int]
) -> None:
    disk.ring.add(readable, writable, disk.indirect)
    disk.ring.kick()
    disk.settle()
    assert disk.driver.status & v.NEEDS_RESET
    assert disk.faults() == {"broken queue": 1}
    disk.ring = disk.driver.start(disk.driver.features)
    assert disk.read(0, 1) == CONTENT[:SECTOR]


@pytest.mark.parametrize("nowhere", [NOWHERE, (1 << 64) - 8])
def test_data_must_be_in_memory(disk: Client, path: Path, nowhere: int) -> None:
    there = disk.driver.allocate(b"x" * SECTOR)
    for kind, flags in ((blk.T_IN, v.WRITE), (blk.T_OUT, 0)):
        status = disk.send_pieces(kind, (there, SECTOR, flags), (nowhere, SECTOR, flags))
        assert status == blk.S_IOERR
        # All of it is judged before any of it is used.
        assert disk.ring.memory.read(there, SECTOR) == b"x" * SECTOR
    for kind in (blk.T_DISCARD, blk.T_WRITE_ZEROES):
        assert disk.send_pieces(kind, (nowhere, 16, 0)) == blk.S_IOERR
    assert disk.send_pieces(blk.T_GET_ID, (nowhere, 20, v.WRITE)) == blk.S_IOERR
    assert disk.faults() == {"dma": 5}
    assert path.read_bytes() == CONTENT
    assert disk.read(0, 1) == CONTENT[:SECTOR]


def test_data_may_run_over_the_seam_of_two_slots(path: Path) -> None:
    with client(VirtioBlk(path)) as disk:
        memory = disk.ring.memory
        (slot,) = memory.slots
        memory.add(slot.end, bytearray(SIZE))
        at = slot.end - 100
        assert disk.send_pieces(blk.T_IN, (at, SECTOR, v.WRITE)) == blk.S_OK
        assert memory.read(at, SECTOR) == CONTENT[:SECTOR]
        memory.write(at, b"s" * SECTOR)
        assert disk.send_pieces(blk.T_OUT, (at, SECTOR, 0)) == blk.S_OK
        assert disk.read(0, 1) == b"s" * SECTOR


@pytest.mark.parametrize("which", ["header", "status"])
def test_header_and_status_must_be_in_memory(disk: Client, which: str) -> None:
    """Without them nothing can be answered."""
    header = disk.driver.allocate(struct.pack("<IIQ", blk.T_FLUSH, 0, 0))
    status = disk.driver.allocate(1)
    pieces = [(header, 16, 0), (status, 1, v.WRITE)]
    pieces[which == "status"] = NOWHERE, *pieces[which == "status"][1:]
    disk.ring.add_pieces(pieces, disk.indirect)
    disk.ring.kick()
    disk.settle()
    assert disk.driver.status & v.NEEDS_RESET
    assert disk.faults() == {"dma": 1}


# --- what the host's disk does -------------------------------------------------------------------


def fail(number: int) -> Callable[..., Any]:
    """A system call that fails."""

    def call(*arguments: object) -> Any:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize(
    ("calls", "kind", "out", "room"),
    [
        (("preadv", "pread"), blk.T_IN, b"", SECTOR),
        (("pwritev", "pwrite"), blk.T_OUT, bytes(SECTOR), ()),
        (("fdatasync",), blk.T_FLUSH, b"", ()),
    ],
)
def test_an_error_of_the_disk_is_the_guests(
    disk: Client,
    monkeypatch: pytest.MonkeyPatch,
    calls: tuple[str, ...],
    kind: int,
    out: bytes,
    room: int | tuple[()],
) -> None:
    for number in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
        with monkeypatch.context() as patch:
            for call in calls:
                patch.setattr(os, call, fail(number))
            assert disk.ask(kind, 0, out, room).status == blk.S_IOERR
    assert disk.faults() == {"disk": 3}
    assert disk.ask(kind, 0, out, room).status == blk.S_OK


@pytest.mark.parametrize("kind", [blk.T_DISCARD, blk.T_WRITE_ZEROES])
def test_a_file_system_may_be_unable(
    disk: Client, path: Path, monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    """A discard is advice; zeros are then written."""
    ranges = struct.pack("<QII", 1, 1025, 0)
    monkeypatch.setattr(blk, "fallocate", fail(errno.EOPNOTSUPP))
    assert disk.ask(kind, out=ranges).status == blk.S_OK
    zeroed = CONTENT[:SECTOR] + bytes(1025 * SECTOR) + CONTENT[1026 * SECTOR :]
    assert path.read_bytes() == (CONTENT if kind == blk.T_DISCARD else zeroed)
    monkeypatch.setattr(blk, "fallocate", fail(errno.EIO))
    assert disk.ask(kind, out=ranges).status == blk.S_IOERR
    assert disk.faults() == {"disk": 1}


def test_a_file_may_become_short(disk: Client, path: Path) -> None:
    os.truncate(path, SIZE // 2)
    assert disk.ask(blk.T_IN, SECTORS // 2 - 1, room=(SECTOR, SECTOR)).status == blk.S_IOERR
    assert disk.read(SECTORS // 2 - 1, 1) == CONTENT[SIZE // 2 - SECTOR : SIZE // 2]
    assert disk.faults() == {"disk": 1}
    disk.write(SECTORS - 1, bytes(SECTOR))
    assert disk.read(SECTORS // 2, 1) == bytes(SECTOR)


def test_the_kernel_may_do_less_than_asked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv, pwritev = os.preadv, os.pwritev

    def some(views: list[memoryview]) -> list[memoryview]:
        """What a signal, or the cache's end, leaves of it: not all, and not whole pieces."""
        first = views[0]
        return [first[: len(first) // 2]] if len(first) > 1 else [first]

    monkeypatch.setattr(os, "preadv", lambda fd, views, *rest: preadv(fd, some(views), *rest))
    monkeypatch.setattr(os, "pwritev", lambda fd, views, *rest: pwritev(fd, some(views), *rest))
    with client(VirtioBlk(path)) as disk:
        answer = disk.ask(blk.T_IN, 0, room=(512, 1024, 512))
        assert answer == (blk.S_OK, CONTENT[:2048], 2049)
        header = struct.pack("<IIQ", blk.T_OUT, 0, 8)
        assert disk.send([header, b"a" * 700, b"b" * 836], [1]).status == blk.S_OK
        assert disk.read(8, 3) == b"a" * 700 + b"b" * 836


def test_who_has_to_wait_for_the_disk_comes_last(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in the page cache is read first; the kernel is told of the rest before."""
    cold = {0, 2}
    calls: list[tuple[str, int]] = []
    preadv = os.preadv

    def read(fd: int, views: list[memoryview], offset: int, flags: int = 0) -> int:
        sector = offset // SECTOR
        if flags and sector in cold:
            raise BlockingIOError(errno.EAGAIN, "not in the cache")
        calls.append(("read", sector))
        return preadv(fd, views, offset, flags)

    monkeypatch.setattr(os, "preadv", read)
    monkeypatch.setattr(
        os,
        "posix_fadvise",
        lambda fd, offset, length, advice: calls.append(("advise", offset // SECTOR)),
    )
    with client(VirtioBlk(path)) as disk:
        for sector in range(4):
            disk.ring.add([struct.pack("<IIQ", blk.T_IN, 0, sector)], [SECTOR, 1])
        disk.ring.kick()
        disk.settle()
        expected = [("advise", 0), ("read", 1), ("advise", 2), ("read", 3), ("read", 0)]
        assert calls == [*expected, ("read", 2)]
        for sector, done in zip((1, 3, 0, 2), disk.ring.take(), strict=True):
            assert done.data == [CONTENT[sector * SECTOR : (sector + 1) * SECTOR], b"\0"]


def test_a_file_system_may_not_know_what_is_cached(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv = os.preadv

    def read(fd: int, views: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            raise OSError(errno.EOPNOTSUPP, "RWF_NOWAIT")
        return preadv(fd, views, offset)

    monkeypatch.setattr(os, "preadv", read)
    with client(VirtioBlk(path)) as disk:
        assert disk.read(0, 2) == CONTENT[: 2 * SECTOR]
        assert disk.faults() == {}


# --- while a request is under way ----------------------------------------------------------------


class Held:
    """A disk that is as slow as the test wants."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self._preadv = os.preadv
        monkeypatch.setattr(os, "preadv", self._read)

    def _read(self, fd: int, views: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError(errno.EAGAIN, "not in the cache")
        self.reached.release()
        assert self.go.acquire(timeout=30)
        return self._preadv(fd, views, offset)


def reads(disk: Client, count: int) -> None:
    for sector in range(count):
        disk.ring.add([struct.pack("<IIQ", blk.T_IN, 0, sector)], [SECTOR, 1])
    disk.ring.kick()


def test_the_guest_goes_on_while_the_disk_is_slow(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    with client(VirtioBlk(path)) as disk:
        reads(disk, 1)
        assert held.reached.acquire(timeout=30)
        assert disk.driver.read(v.DEVICE, 0, 8) == SECTORS
        assert disk.ring.used_idx == 0
        held.go.release()
        disk.settle()
        assert disk.ring.take()[0].data[1] == b"\0"


def test_a_reset_by_the_driver_waits_for_the_request(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4.1.4.3.1: device_status reads 0 when it is done. Those behind it are dropped."""
    held = Held(monkeypatch)
    with client(VirtioBlk(path)) as disk:
        reads(disk, 3)
        assert held.reached.acquire(timeout=30)
        disk.driver.status = 0
        assert disk.driver.status != 0
        held.go.release()
        disk.driver.reset()
        assert not held.reached.acquire(blocking=False)
        disk.ring = disk.driver.start()
        reads(disk, 1)
        held.go.release()
        disk.settle()
        assert len(disk.ring.take()) == 1


@pytest.mark.parametrize("end", ["reset", "close"])
def test_the_machine_waits_for_one_request(
    path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    held = Held(monkeypatch)
    with FakeGuest(VirtioBlk(path)) as guest:
        device = guest.machine.functions[0].device
        assert isinstance(device, VirtioBlk)
        disk = Client(device, guest)
        reads(disk, 3)
        assert held.reached.acquire(timeout=30)
        ending = guest.machine.functions[0].reset if end == "reset" else guest.machine.close
        thread = threading.Thread(target=ending)
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
        held.go.release()
        thread.join(30)
        assert not thread.is_alive()
        assert not held.reached.acquire(blocking=False)
        assert device.faults.counts == {}


# --- the file ------------------------------------------------------------------------------------


def refused(device: VirtioBlk) -> str:
    """Why a disk cannot be plugged in."""
    with pytest.raises(LoadError) as caught:
        FakeGuest(device)
    return str(caught.value)


def test_a_file_has_one_writer(path: Path) -> None:
    sentence = f"The disk {path} must be this device's alone: another one has it open"
    with client(VirtioBlk(path)):
        assert refused(VirtioBlk(path)) == sentence
        assert refused(VirtioBlk(path, readonly=True)) == sentence
    with client(VirtioBlk(path, readonly=True)), client(VirtioBlk(path, readonly=True)):
        assert refused(VirtioBlk(path)) == sentence
    with client(VirtioBlk(path)):
        pass


def test_a_file_must_be_there(tmp_path: Path) -> None:
    for readonly in (False, True):
        assert refused(VirtioBlk(tmp_path / "none", readonly=readonly)) == (
            f"The disk {tmp_path}/none cannot be opened: No such file or directory"
        )


@pytest.mark.parametrize("readonly", [False, True])
def test_a_file_must_be_one(tmp_path: Path, readonly: bool) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    must = "must be a file or a block device"
    assert refused(VirtioBlk(pipe, readonly=readonly)) == f"The disk {pipe} {must}"
    assert refused(VirtioBlk(Path("/dev/null"), readonly=readonly)) == f"The disk /dev/null {must}"
    said = "cannot be opened: Is a directory" if not readonly else must
    assert refused(VirtioBlk(tmp_path, readonly=readonly)) == f"The disk {tmp_path} {said}"


@pytest.mark.parametrize(("size", "block"), [(0, 512), (511, 512), (SIZE + 512, 4096)])
def test_a_disk_must_have_whole_blocks(tmp_path: Path, size: int, block: int) -> None:
    class Blocks(VirtioBlk):
        block_size = block

    file = tmp_path / "odd.img"
    file.write_bytes(bytes(size))
    must = f"must have whole blocks of {block} bytes"
    assert refused(Blocks(file)) == f"The disk {file} {must}, and has {size} bytes"
    assert refused(Blocks(size=size)) == f"A disk {must}, not {size}"


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        ({"queues": 0}, "A disk must have 1 to 16 queues, not 0"),
        ({"queues": 17}, "A disk must have 1 to 16 queues, not 17"),
        ({"block_size": 513}, "The block size must be 512, 1024, 2048 or 4096, not 513"),
        ({"serial": "x" * 21}, f"The serial must be up to 20 ASCII bytes, not '{'x' * 21}'"),
        ({"serial": "\u00e9"}, "The serial must be up to 20 ASCII bytes, not '\u00e9'"),
    ],
)
def test_a_disk_that_cannot_be_is_refused(attributes: dict[str, object], sentence: str) -> None:
    wrong = type("Wrong", (VirtioBlk,), attributes)
    with pytest.raises(LoadError) as caught:
        wrong()
    assert str(caught.value) == sentence


def test_a_subclass_says_what_arguments_say(path: Path) -> None:
    file = path

    class Mine(VirtioBlk):
        path = file
        queues = 2
        readonly = True
        serial = "mine"

    with client(Mine()) as disk:
        assert disk.ask(blk.T_GET_ID, room=20).data == b"mine".ljust(20, b"\0")
        assert disk.driver.offered & blk.F_RO
        assert disk.driver.common(v.NUM_QUEUES, 2) == 2
    with client(Mine(readonly=False, queues=1)) as disk:
        assert not disk.driver.offered & (blk.F_RO | blk.F_MQ)
