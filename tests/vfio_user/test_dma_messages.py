# SPDX-License-Identifier: MIT
"""DMA_READ and DMA_WRITE: memory that the client keeps to itself."""

import errno
import os
import threading
from pathlib import Path

import pytest
from tests.vfio_user.rig import GATE, Answer, Peer, Rig, access, until

from callgate.backends.vfio_user import channel as channels
from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user import session
from callgate.backends.vfio_user.protocol import Command
from callgate.errors import DmaError, VmmGone
from callgate.gate.abi import FRAME, FrameState

SIZE = 0x40_0000
BAD = p.REPLY | p.ERROR


class Guest:
    """The client's memory: answers what the server asks for, on a connection."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.bytes = bytearray(SIZE)
        self.asked: list[tuple[int, int, int]] = []

    def answer(self, request: Answer) -> None:
        address, count = p.DMA_ACCESS.unpack_from(request.payload)
        assert request.flags == p.COMMAND
        assert request.fds == []
        self.asked.append((request.command, address, count))
        data = request.payload[p.DMA_ACCESS.size :]
        if request.command == Command.DMA_READ:
            assert data == b""
            found = bytes(self.bytes[address : address + count])
            self.say(request, request.payload[: p.DMA_ACCESS.size] + found)
        else:
            assert request.command == Command.DMA_WRITE
            assert len(data) == count
            self.bytes[address : address + count] = data
            self.say(request, p.DMA_WRITTEN.pack(address, count))

    def say(self, to: Answer, payload: bytes, *, flags: int = p.REPLY, error: int = 0) -> None:
        size = p.HEADER.size + len(payload)
        self.peer.raw(p.HEADER.pack(to.id, to.command, size, flags, error) + payload)

    def until_reply(self) -> Answer:
        """Answer requests until a reply comes."""
        while True:
            message = self.peer.receive()
            if message.flags & p.TYPE == p.REPLY:
                return message
            self.answer(message)


@pytest.fixture
def guest(rig: Rig, peer: Peer) -> Guest:
    peer.map(0, SIZE)
    peer.master()
    return Guest(peer)


def in_thread(run: object) -> tuple[threading.Thread, list[object]]:
    """Run a callable beside; what it returned or raised is in the list."""
    result: list[object] = []

    def guarded() -> None:
        try:
            result.append(run())  # type: ignore[operator]
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    return thread, result


def test_a_read_waits_for_what_its_handler_asks_for(rig: Rig, guest: Guest) -> None:
    guest.bytes[0x1000:0x1004] = b"\1\2\3\4"
    rig.device.on_state = lambda: int.from_bytes(rig.device.memory.read(0x1000, 4), "little")
    head = p.REGION_ACCESS.pack(0x14, 0, 4)
    guest.peer.raw(guest.peer.message(Command.REGION_READ, head))
    assert guest.until_reply().payload == head + b"\1\2\3\4"
    assert guest.asked == [(Command.DMA_READ, 0x1000, 4)]


def test_a_write_is_answered_before_its_handler_asks(rig: Rig, guest: Guest) -> None:
    memory = rig.device.memory

    def act(value: int) -> None:
        memory.write(0x2000, memory.read(0x1000, value)[::-1])

    rig.device.on_start = act
    guest.bytes[0x1000:0x1005] = b"abcde"
    guest.peer.raw(guest.peer.message(Command.REGION_WRITE, access(0, 0x10, 5)))
    assert guest.peer.receive().command == Command.REGION_WRITE  # QEMU answers nothing before.
    for _ in range(2):
        guest.answer(guest.peer.receive())
    assert guest.peer.read(0, 0) == 5
    assert guest.bytes[0x2000:0x2005] == b"edcba"
    assert guest.asked == [(Command.DMA_READ, 0x1000, 5), (Command.DMA_WRITE, 0x2000, 5)]


def test_long_transfers_are_cut_to_what_was_agreed_on(rig: Rig) -> None:
    with rig.connect(agree=False) as peer:
        peer.agree(max_data_xfer_size=0x1000)
        peer.map(0, SIZE)
        guest = Guest(peer)
        guest.bytes[:] = bytes(range(256)) * (SIZE // 256)
        thread, result = in_thread(lambda: rig.server.memory.read(0x801, 0x2801))
        for _ in range(3):
            guest.answer(peer.receive())
        thread.join(20)
        assert result == [bytes(guest.bytes[0x801:0x3002])]
        assert [count for _, _, count in guest.asked] == [0x1000, 0x1000, 0x801]
        thread, result = in_thread(lambda: rig.server.memory.write(0, b"x" * 0x1001))
        for _ in range(2):
            guest.answer(peer.receive())
        thread.join(20)
        assert result == [None]
        assert guest.bytes[:0x1002] == b"x" * 0x1001 + b"\1"


def test_a_reply_is_small_enough_for_qemu(rig: Rig, peer: Peer) -> None:
    """It loses what of a reply a socket of the usual size does not take at once."""
    peer.map(0, 1 << 20)
    guest = Guest(peer)
    guest.bytes = bytearray(os.urandom(1 << 20))
    thread, result = in_thread(lambda: rig.server.memory.read(0, 1 << 20))
    for _ in range(16):
        guest.answer(peer.receive())
    thread.join(20)
    assert result == [bytes(guest.bytes)]
    assert {count for _, _, count in guest.asked} == {1 << 16}


def test_commands_that_come_meanwhile_keep_their_order(rig: Rig, guest: Guest) -> None:
    device = rig.device

    def act(value: int) -> None:
        if value == 0:
            device.memory.read(0, 4)
        device.seen.append(value)

    device.on_start = act
    for value in range(50):
        guest.peer.write_posted(0, 0x10, value)
    guest.answer(guest.peer.receive())
    assert guest.peer.read(0, 0x14) == 50
    assert device.seen == list(range(50))


def test_an_access_is_answered_while_its_handler_waits_for_memory(rig: Rig, guest: Guest) -> None:
    """QEMU gives memory only when its processor, which waits for the answer, has it."""
    device, peer = rig.device, guest.peer

    def act(value: int) -> None:
        if value == 0:
            device.memory.read(0, 4)
        device.seen.append(value)

    device.on_start = act
    peer.write(0, 0x10, 0)
    request = peer.receive()
    peer.write(0, 0x10, 1)  # Answered, and left for later.
    assert device.seen == []
    assert peer.read(0, 0x14) == 1  # This has to come after it.
    assert device.seen == [1]
    assert peer.read(p.Region.CONFIG, 0) == 0x10F1_1AF4
    assert peer.refused(Command.REGION_WRITE, access(0, 0x100, 0)) == errno.EINVAL
    assert peer.refused(Command.REGION_WRITE, access(0, 0, 0)[:-1]) == errno.EINVAL
    guest.answer(request)
    until(lambda: device.seen == [1, 0])
    assert peer.read(0, 0) == 5


def test_an_access_is_answered_while_a_timer_waits_for_memory(rig: Rig, guest: Guest) -> None:
    """The timer's thread has the device's lock: it carries out what the session cannot."""
    device, peer = rig.device, guest.peer
    done: list[bytes] = []
    device.after(0, lambda: done.append(device.memory.read(0, 4)))
    request = peer.receive()
    for number in range(3):
        peer.write(0, 0x10, number)
        assert peer.read(0, 0x14) == number + 1
    assert done == []
    guest.answer(request)
    until(lambda: done)


def test_handlers_that_wait_for_memory_are_not_begun_without_end(
    rig: Rig, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "TIMEOUT", 0.1)
    monkeypatch.setattr(session, "_DEEPEST", 4)
    device, peer = rig.device, guest.peer
    deep, deepest = [0], [0]

    def act(value: int) -> None:
        deep[0] += 1
        deepest[0] = max(deep[0], deepest[0])
        try:
            device.memory.read(0, 4)
        finally:
            deep[0] -= 1

    device.on_start = act
    head = p.REGION_ACCESS.pack(0, 0, 4)
    for _ in range(8):
        peer.write_posted(0, 0x10, 0)
        peer.raw(peer.message(Command.REGION_READ, head))
    answers = 0
    while answers < 8:
        message = peer.receive()
        answers += message.command == Command.REGION_READ
    assert deepest[0] == 1 + 4
    peer.raw(peer.message(Command.DEVICE_GET_INFO, p.DEVICE_INFO.pack(16, 0, 0, 0)))
    while peer.receive().command != Command.DEVICE_GET_INFO:
        pass
    rig.leave(peer)
    rig.is_fine()


def test_a_timer_asks_while_the_session_waits_for_the_client(rig: Rig, guest: Guest) -> None:
    done: list[bytes] = []
    device = rig.device
    guest.bytes[:4] = b"tick"
    device.after(0, lambda: done.append(device.memory.read(0, 4)))
    guest.answer(guest.peer.receive())
    until(lambda: done)
    assert done == [b"tick"]
    assert guest.peer.read(0, 0) == 5


def test_a_timer_asks_while_a_handler_runs(rig: Rig, guest: Guest) -> None:
    """The thread that waits for its reply reads the socket; the session's commands wait."""
    memory = rig.server.memory
    entered, leave = threading.Event(), threading.Event()

    def act(value: int) -> None:
        rig.device.seen.append(value)
        entered.set()
        assert leave.wait(20)

    rig.device.on_start = act
    guest.peer.write_posted(0, 0x10, 1)
    assert entered.wait(20)
    thread, result = in_thread(lambda: memory.read(0x10, 4))
    request = guest.peer.receive()
    guest.peer.write_posted(0, 0, 77)
    guest.answer(request)
    thread.join(20)
    assert result == [bytes(4)]
    leave.set()
    assert guest.peer.read(0, 0) == 77


def test_several_threads_ask_at_once_and_each_gets_its_own(rig: Rig, guest: Guest) -> None:
    for at in range(0, 0x1000, 4):
        guest.bytes[at : at + 4] = at.to_bytes(4, "little")
    memory = rig.server.memory

    def work(seed: int) -> bool:
        for step in range(100):
            at = (seed * 7919 + step * 104729) % 0x400 * 4
            assert memory.read(at, 4) == at.to_bytes(4, "little")
        return True

    threads = [in_thread(lambda seed=seed: work(seed)) for seed in range(4)]
    waiting: list[Answer] = []
    for _ in range(400):
        waiting.append(guest.peer.receive())
        if len(waiting) == 1 and any(thread.is_alive() for thread, _ in threads[1:]):
            guest.peer.write_posted(0, 0x10, 1)  # Commands lie between the replies.
        while waiting:
            guest.answer(waiting.pop())
    for thread, _ in threads:
        thread.join(20)
    assert [result for _, result in threads] == [[True]] * 4
    assert guest.peer.read(0, 0x14) == len(rig.device.seen)


def test_replies_may_come_in_any_order(rig: Rig, guest: Guest) -> None:
    memory = rig.server.memory
    guest.bytes[:8] = b"abcdefgh"
    pairs = [in_thread(lambda at=at: memory.read(at, 1)) for at in range(4)]
    for request in sorted((guest.peer.receive() for _ in range(4)), key=lambda each: -each.id):
        guest.answer(request)
    for thread, _ in pairs:
        thread.join(20)
    assert [result for _, result in pairs] == [[b"a"], [b"b"], [b"c"], [b"d"]]


def test_a_twin_socket_carries_them_instead(rig: Rig) -> None:
    with rig.connect(agree=False) as peer:
        with peer.twin(peer.agree(twin_socket={"supported": True})) as twin:
            peer.map(0, SIZE)
            guest = Guest(twin)
            thread, result = in_thread(lambda: rig.server.memory.read(0, 4))
            guest.answer(twin.receive())
            thread.join(20)
            assert result == [bytes(4)]
            assert peer.read(0, 0) == 5
        with pytest.raises(DmaError):
            rig.server.memory.read(0, 4)
        assert peer.read(0, 0) == 5  # A twin that is gone fails the requests alone.


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (
            lambda guest, request: guest.say(request, b"", flags=BAD, error=14),
            "EFAULT",
        ),
        (lambda guest, request: guest.say(request, b"", flags=BAD), "refused"),
        (
            lambda guest, request: guest.say(request, b"", flags=BAD, error=0xFFFF_FFFF),
            "4294967295",
        ),
        (lambda guest, request: guest.say(request, b""), "does not fit"),
        (lambda guest, request: guest.say(request, request.payload), "does not fit"),
        (lambda guest, request: guest.say(request, request.payload + b"abc"), "does not fit"),
        (lambda guest, request: guest.say(request, request.payload + b"abcde"), "does not fit"),
        (lambda guest, request: guest.say(request, bytes(16) + b"abcd"), "does not fit"),
    ],
)
def test_a_bad_reply_fails_the_access_alone(
    rig: Rig, guest: Guest, answer: object, match: str
) -> None:
    thread, result = in_thread(lambda: rig.server.memory.read(0x40, 4))
    answer(guest, guest.peer.receive())  # type: ignore[operator]
    thread.join(20)
    assert isinstance(result[0], DmaError)
    assert match in str(result[0])
    assert guest.peer.read(0, 0) == 5


@pytest.mark.parametrize("payload", [b"", bytes(12), p.DMA_WRITTEN.pack(0x40, 3)])
def test_a_bad_reply_to_a_write(rig: Rig, guest: Guest, payload: bytes) -> None:
    thread, result = in_thread(lambda: rig.server.memory.write(0x40, b"abcd"))
    guest.say(guest.peer.receive(), payload)
    thread.join(20)
    assert isinstance(result[0], DmaError)
    assert guest.peer.read(0, 0) == 5


def test_a_reply_to_another_command_ends_the_connection(rig: Rig, guest: Guest) -> None:
    thread, result = in_thread(lambda: rig.server.memory.read(0x40, 4))
    request = guest.peer.receive()
    request.command = Command.DMA_WRITE
    guest.say(request, p.DMA_WRITTEN.pack(0x40, 4))
    thread.join(20)
    assert isinstance(result[0], DmaError)
    assert guest.peer.gone()
    rig.is_fine()


def test_replies_that_nobody_asked_for_are_dropped(rig: Rig, guest: Guest) -> None:
    for id in (0, 1, 0xFFFF):
        guest.say(Answer(id, Command.DMA_READ, 0, 0, b"", []), bytes(20))
    guest.peer.read(0, 0)  # They have been read before the next request is made.
    thread, result = in_thread(lambda: rig.server.memory.read(0x40, 4))
    request = guest.peer.receive()
    guest.say(Answer(request.id ^ 1, request.command, 0, 0, b"", []), b"no")
    guest.answer(request)
    guest.answer(request)
    thread.join(20)
    assert result == [bytes(4)]
    assert guest.peer.read(0, 0) == 5


def test_a_client_that_does_not_answer(
    rig: Rig, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "TIMEOUT", 0.2)
    rig.device.on_start = lambda value: rig.device.memory.read(0, 4)
    guest.peer.raw(guest.peer.message(Command.REGION_WRITE, access(0, 0x10, 5)))
    assert guest.peer.receive().command == Command.REGION_WRITE
    request = guest.peer.receive()
    until(lambda: rig.device.faults.counts.get("dma") == 1)  # The handler gave up.
    assert guest.peer.read(0, 0) == 5
    guest.answer(request)  # Too late, and dropped.
    assert guest.peer.read(0, 0) == 5


def test_a_client_that_answers_by_drops_is_as_late(
    rig: Rig, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "TIMEOUT", 0.3)
    thread, result = in_thread(lambda: rig.server.memory.read(0, 0x1000))
    request = guest.peer.receive()
    data = p.HEADER.pack(request.id, request.command, 16 + 16 + 0x1000, p.REPLY, 0)
    data += request.payload + bytes(0x1000)
    sent = 0
    while thread.is_alive():
        guest.peer.raw(data[sent : sent + 1])
        sent += 1
        thread.join(0.02)
    assert sent < len(data)
    assert isinstance(result[0], DmaError)
    assert "did not answer" in str(result[0])
    guest.peer.raw(data[sent:])
    assert guest.peer.read(0, 0) == 5


def test_a_client_that_goes_while_it_is_asked(rig: Rig, guest: Guest) -> None:
    thread, result = in_thread(lambda: rig.server.memory.read(0, 4))
    guest.peer.receive()
    guest.peer.close()
    thread.join(20)
    assert isinstance(result[0], VmmGone)
    rig.device.faults.note_dma("a transfer", result[0])
    assert rig.device.faults.counts == {}
    rig.is_fine()


def test_an_unmap_does_not_wait_for_what_the_client_is_asked_for(rig: Rig, guest: Guest) -> None:
    """QEMU answers nothing before it has the reply."""
    thread, result = in_thread(lambda: rig.server.memory.read(0x40, 4))
    request = guest.peer.receive()
    guest.peer.unmap(0, SIZE)
    guest.answer(request)
    thread.join(20)
    assert result == [bytes(4)]
    assert not rig.server.memory.slots


def test_a_flood_while_a_handler_waits_ends_the_connection(
    rig: Rig, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "QUEUED", 1 << 16)
    thread, result = in_thread(lambda: rig.server.memory.read(0, 4))
    guest.peer.receive()
    entered, leave = threading.Event(), threading.Event()

    def act(_: int) -> None:
        entered.set()
        leave.wait(20)

    rig.device.on_start = act
    guest.peer.write_posted(0, 0x10, 1)
    assert entered.wait(20)
    try:
        for _ in range(2000):
            guest.peer.write_posted(0, 0, 1)
    except OSError:
        pass
    thread.join(20)
    assert isinstance(result[0], DmaError)
    leave.set()
    assert guest.peer.gone()
    rig.is_fine()


def test_a_device_that_may_not_master_the_bus_asks_for_nothing(rig: Rig, peer: Peer) -> None:
    peer.map(0, SIZE)
    rig.device.on_start = lambda value: rig.device.memory.read(0, 4)
    peer.write(0, 0x10, 1)
    assert peer.read(0, 0) == 5  # What was written before is done.
    assert rig.device.faults.counts["dma"] == 1


def test_a_time_limit_where_memory_goes_by_messages(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The session has the device's lock, so the model's code runs in its own thread: it may ask for
    memory, and is ended when its time is up."""
    with Rig(tmp_path, handler_timeout=0.1) as rig, rig.connect() as peer:
        peer.map(0, SIZE)
        peer.master()
        guest = Guest(peer)
        guest.bytes[0x1000:0x1004] = b"\1\2\3\4"
        read = p.REGION_ACCESS.pack(0x14, 0, 4)
        rig.device.on_state = lambda: int.from_bytes(rig.device.memory.read(0x1000, 4), "little")
        peer.raw(peer.message(Command.REGION_READ, read))
        assert guest.until_reply().payload == read + b"\1\2\3\4"
        gate = rig.server.function.gate
        assert gate is not None
        binding = gate.binding("total")
        assert binding is not None
        base = gate.frames_offset
        gate.ram[base : base + FRAME.size] = FRAME.pack(
            state=FrameState.READY,
            vector=binding.vector,
            arguments=2,
            values=(0x1000, 4, *(0,) * 10),
        )
        peer.raw(peer.message(Command.REGION_WRITE, access(GATE, gate.ram_size, 0)))
        assert guest.until_reply().command == Command.REGION_WRITE
        until(lambda: _answer(guest, gate.ram, base))
        assert FRAME.unpack(gate.ram[base : base + FRAME.size])["values"][0] == 10

        def forever() -> int:
            while True:
                pass

        rig.device.on_state = forever
        assert peer.read(0, 0x14) == 0xFFFF_FFFF
        rig.device.on_state = lambda: 6
        assert peer.read(0, 0x14) == 6
    (report,) = (each.getMessage() for each in caplog.records if each.levelname == "ERROR")
    assert report.startswith("board.state, read by the guest: the device model took too long\n")
    assert "in forever" in report


def _answer(guest: Guest, ram: memoryview, base: int) -> bool:
    """Answer what the handler asks for until its frame is DONE."""
    if ram[base] != FrameState.DONE:
        guest.answer(guest.peer.receive())
    return ram[base] == FrameState.DONE
