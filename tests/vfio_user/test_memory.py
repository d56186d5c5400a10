# SPDX-License-Identifier: MIT
"""Guest memory of each kind, as a device uses it: no stray access, and never a SIGBUS."""

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from tests.vfio_user.rig import REGISTERS, Peer, Rig, memory, until

from callgate.backends.vfio_user import memory as maps
from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user import server
from callgate.backends.vfio_user.memory import FileSlot, MappedSlot
from callgate.backends.vfio_user.protocol import Command
from callgate.errors import DmaError, NoMemory

SIZE = 0x4000


@pytest.fixture
def fd() -> Iterator[int]:
    fd = memory(SIZE)
    yield fd
    os.close(fd)


@pytest.fixture
def unsealable() -> Iterator[int]:
    fd = memory(SIZE, seals=False)
    yield fd
    os.close(fd)


def unmap(address: int = 0, size: int = SIZE) -> bytes:
    return p.DMA_UNMAP.pack(p.DMA_UNMAP.size, 0, address, size)


def test_memory_that_can_be_sealed_is_sealed_and_cannot_shrink(
    rig: Rig, peer: Peer, fd: int
) -> None:
    peer.map(0, SIZE, fd)
    assert isinstance(rig.server.memory.slots[0], MappedSlot)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    assert rig.server.memory.read(SIZE - 1, 1) == b"\0"
    os.ftruncate(fd, 2 * SIZE)
    assert rig.counts == {}


def test_a_file_that_shrinks_fails_the_access_alone(rig: Rig, peer: Peer, unsealable: int) -> None:
    peer.map(0, SIZE, unsealable)
    guest = rig.server.memory
    guest.write(SIZE - 2, b"ok")
    assert guest.read(SIZE - 2, 2) == b"ok"
    assert os.pread(unsealable, 2, SIZE - 2) == b"ok"
    os.ftruncate(unsealable, 0x1000)
    with pytest.raises(DmaError, match="too short"):
        guest.read(SIZE - 2, 2)
    with pytest.raises(DmaError, match="too short"):
        guest.read(0xFFF, 2)
    assert guest.read(0xFFF, 1) == b"\0"
    with pytest.raises(DmaError, match="not shared with this process"):
        guest.map(0, 1)


def test_a_file_on_a_disk_is_copied(rig: Rig, peer: Peer) -> None:
    file = rig.path.parent / "ram"
    file.write_bytes(bytes(SIZE))
    with file.open("r+b") as opened:
        peer.map(0, SIZE, opened.fileno())
    assert isinstance(rig.server.memory.slots[0], FileSlot)
    rig.server.memory.write(0x10, b"disk")
    assert file.read_bytes()[0x10:0x14] == b"disk"
    file.unlink()


def test_memory_that_must_not_be_written_is_a_file_that_refuses(rig: Rig, peer: Peer) -> None:
    from fcntl import F_ADD_SEALS, F_SEAL_WRITE, fcntl

    fd = memory(SIZE)
    fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE)
    request = p.DMA_MAP.pack(p.DMA_MAP.size, 3, 0, 0, SIZE)
    assert peer.refused(Command.DMA_MAP, request, [fd]) == errno.EINVAL
    os.close(fd)


def test_rom_is_read_and_not_written(rig: Rig, peer: Peer, fd: int, unsealable: int) -> None:
    peer.map(0, SIZE, fd, flags=1)
    peer.map(0x10000, SIZE, unsealable, flags=1)
    for address in (0, 0x10000):
        assert rig.server.memory.read(address, 4) == bytes(4)
        with pytest.raises(DmaError, match="cannot be written"):
            rig.server.memory.write(address, b"x")
    with pytest.raises(DmaError, match="cannot be written"):
        rig.server.memory.map(0, 4, write=True)
    assert rig.server.memory.map(0, 4).readonly


def test_an_unmap_waits_for_a_view(rig: Rig, peer: Peer, fd: int) -> None:
    peer.map(0, SIZE, fd)
    view = rig.server.memory.map(0, 4, write=True)
    peer.raw(peer.message(Command.DMA_UNMAP, unmap()))
    until(lambda: not rig.server.memory.slots)
    view[:] = b"late"  # Still the guest's memory: the reply has not been sent.
    assert os.pread(fd, 4, 0) == b"late"
    view.release()
    assert not peer.receive().flags & p.ERROR
    with pytest.raises(DmaError):
        rig.server.memory.read(0, 1)


@pytest.mark.parametrize("derived", [False, True])
def test_a_view_that_is_kept_fails_the_unmap_and_the_map_stays(
    rig: Rig, peer: Peer, fd: int, monkeypatch: pytest.MonkeyPatch, derived: bool
) -> None:
    monkeypatch.setattr(maps, "GRACE", 0.05)
    peer.map(0, SIZE, fd)
    view = rig.server.memory.map(0, 16, write=True)
    if derived:
        view = view.cast("I")[1:]
    assert peer.refused(Command.DMA_UNMAP, unmap()) == errno.EBUSY
    rig.server.memory.write(4, b"both")
    assert bytes(view[:4].tobytes()[:4]) == (b"both" if derived else b"\0\0\0\0")
    assert rig.server.memory.map(4, 4).tobytes() == b"both"
    view.release()
    if derived:
        del view  # Its base goes with it.
    peer.get(Command.DMA_UNMAP, unmap())
    assert rig.counts["message DMA_UNMAP"] == 1


def test_a_view_of_a_client_that_is_gone_keeps_its_bytes(rig: Rig, fd: int) -> None:
    peer = rig.connect()
    peer.map(0, SIZE, fd)
    os.pwrite(fd, b"mine", 0)
    view = rig.server.memory.map(0, 4, write=True)
    rig.leave(peer)
    assert rig.server.memory.slots == ()
    assert bytes(view) == b"mine"
    view[:] = b"gone"
    assert os.pread(fd, 4, 0) == b"gone"
    with rig.connect() as other:
        second = memory(SIZE)
        other.map(0, SIZE, second)
        view[:] = b"old!"
        assert os.pread(second, 4, 0) == bytes(4)
        os.close(second)
    view.release()


def test_a_copy_that_is_being_made_holds_up_the_unmap(
    rig: Rig, peer: Peer, unsealable: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its descriptor could be another file's by the time that it is used."""
    peer.map(0, SIZE, unsealable)
    entered, leave = threading.Event(), threading.Event()
    pread = os.pread

    def slowly(fd: int, length: int, offset: int) -> bytes:
        entered.set()
        assert leave.wait(20)
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", slowly)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(rig.server.memory.read(0, 4)))
    reader.start()
    assert entered.wait(20)
    peer.raw(peer.message(Command.DMA_UNMAP, unmap()))
    until(lambda: not rig.server.memory.slots)
    leave.set()
    assert not peer.receive().flags & p.ERROR
    reader.join(20)
    assert found == [bytes(4)]


def test_a_copy_that_never_ends_fails_the_unmap(
    rig: Rig, peer: Peer, unsealable: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps, "GRACE", 0.05)
    peer.map(0, SIZE, unsealable)
    (slot,) = rig.server.memory.slots
    assert isinstance(slot, FileSlot)
    with slot._use():
        assert peer.refused(Command.DMA_UNMAP, unmap()) == errno.EBUSY
        assert rig.server.memory.read(0, 1) == b"\0"
    peer.get(Command.DMA_UNMAP, unmap())
    with pytest.raises(DmaError, match="taken away meanwhile"):
        slot.read(0, 1)
    with pytest.raises(DmaError, match="taken away meanwhile"):
        slot.write(0, b"x")


def test_a_copy_outlives_its_client_and_then_gives_back_the_file(rig: Rig, unsealable: int) -> None:
    peer = rig.connect()
    before = len(os.listdir("/proc/self/fd"))
    peer.map(0, SIZE, unsealable)
    (slot,) = rig.server.memory.slots
    assert isinstance(slot, FileSlot)
    with slot._use():
        rig.leave(peer)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_maps_that_come_and_go_under_a_device_that_reads(rig: Rig, peer: Peer, fd: int) -> None:
    """Each access sees the memory, or none; it never sees a stranger's."""
    os.pwrite(fd, b"\xab" * SIZE, 0)
    stop = threading.Event()
    seen: set[bytes] = set()
    errors: list[BaseException] = []

    def use() -> None:
        while not stop.is_set():
            try:
                seen.add(rig.server.memory.read(0x100, 8))
                view = rig.server.memory.map(0x100, 8)
                seen.add(bytes(view))
                view.release()
            except DmaError:
                pass
            except BaseException as error:
                errors.append(error)
                return

    users = [threading.Thread(target=use) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)
    try:
        for user in users:
            user.start()
        for _ in range(100):
            peer.map(0, SIZE, fd)
            peer.unmap(0, SIZE)
    finally:
        stop.set()
        sys.setswitchinterval(interval)
    for user in users:
        user.join(20)
    assert errors == []
    assert seen <= {b"\xab" * 8}


# QEMU changes its map by unmapping what changed, and mapping it anew.


def test_a_gap_in_the_map_is_waited_for(
    rig: Rig, peer: Peer, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CHANGING", 1000.0)
    os.pwrite(fd, b"\xab" * SIZE, 0)
    peer.map(0, SIZE, fd)
    peer.master()
    guest = rig.device.memory

    def check() -> bytes:
        guest.check(0x10, 2, write=True)
        guest.write(0x20, b"xx")
        return b"\xab\xab"

    uses: list[Callable[[], bytes]] = [
        check,
        lambda: guest.read(0x10, 2),
        lambda: bytes(guest.map(0x10, 2)),
        lambda: bytes(guest.scatter([(0x10, 2)], write=True)[0]),
    ]
    with ThreadPoolExecutor(len(uses)) as pool:
        peer.unmap(0, SIZE)
        found = [pool.submit(use) for use in uses]
        assert not wait(found, 0.05).done
        peer.map(0, SIZE, fd)
        assert {future.result(20) for future in found} == {b"\xab\xab"}
    assert os.pread(fd, 2, 0x20) == b"xx"
    assert rig.device.faults.counts == {}


@pytest.mark.parametrize("leave", [False, True])
def test_what_does_not_come_back_is_not_waited_for(
    rig: Rig, peer: Peer, fd: int, monkeypatch: pytest.MonkeyPatch, leave: bool
) -> None:
    monkeypatch.setattr(server, "CHANGING", 1000.0 if leave else 0.1)
    peer.map(0, SIZE, fd)
    with ThreadPoolExecutor(1) as pool:
        peer.unmap(0, SIZE)
        found = pool.submit(rig.server.memory.read, 0x10, 4)
        if leave:
            peer.close()
        with pytest.raises(NoMemory):
            found.result(20)


def test_who_reads_the_clients_messages_does_not_wait_for_them(
    rig: Rig, peer: Peer, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CHANGING", 1000.0)
    rig.device.on_start = lambda gpa: rig.device.memory.read(gpa, 4)
    peer.map(0, SIZE, fd)
    peer.master()
    peer.unmap(0, SIZE)
    peer.write(REGISTERS, 0x10, 0x10)
    assert rig.device.faults.counts == {"dma": 1}
