# SPDX-License-Identifier: MIT
"""Guest memory: what the map allows is done, all else raises DmaError and changes nothing."""

import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate.call import Buffer, Direction
from callgate.errors import DmaError, NoView
from callgate.memory import LIMIT, GuestMemory, Slot, anonymous

TOP = LIMIT - 0x1000


@pytest.fixture
def memory() -> GuestMemory:
    """RAM at 0x1000 and, adjacent, at 0x2000; ROM at 0x8000; RAM in the last page of all."""
    memory = GuestMemory()
    memory.add(0x2000, bytearray(0x1000))
    memory.add(0x1000, anonymous(0x1000))
    memory.add(0x8000, bytes(range(256)) * 16)
    memory.add(TOP, bytearray(0x1000))
    return memory


def test_slots_ascend_and_know_what_they_are(memory: GuestMemory) -> None:
    assert [slot.gpa for slot in memory.slots] == [0x1000, 0x2000, 0x8000, TOP]
    assert [slot.readonly for slot in memory.slots] == [False, False, True, False]
    assert repr(memory.slots[2]) == "<ROM 0x8000..0x8fff>"


def test_reads_give_what_was_written(memory: GuestMemory) -> None:
    memory.write(0x1010, b"callgate")
    assert memory.read(0x1010, 8) == b"callgate"
    assert memory.read(0x8001, 3) == b"\x01\x02\x03"


def test_an_access_may_run_over_the_seam_of_two_slots(memory: GuestMemory) -> None:
    memory.write(0x1FFE, b"seam")
    assert memory.read(0x1FFE, 4) == b"seam"
    assert memory.read(0x2000, 2) == b"am"


def test_a_view_is_the_memory_itself(memory: GuestMemory) -> None:
    view = memory.map(0x2000, 4, write=True)
    view[:] = b"view"
    assert memory.read(0x2000, 4) == b"view"
    assert memory.map(0x2000, 4).readonly


def test_a_view_lies_in_one_slot(memory: GuestMemory) -> None:
    with pytest.raises(DmaError, match="must lie in one memory slot"):
        memory.map(0x1FFE, 4)


def test_scatter_maps_every_piece_or_none(memory: GuestMemory) -> None:
    views = memory.scatter([(0x1000, 4), (0x2000, 8)], write=True)
    assert [len(view) for view in views] == [4, 8]
    with pytest.raises(DmaError):
        memory.scatter([(0x1000, 4), (0x7000, 8)])


_PLACES = st.tuples(st.sampled_from([0, 0x1000, 0x2000, 0x8000, TOP]), st.integers(-8, 0x1008))
_PIECE = st.builds(lambda place, length: (sum(place), length), _PLACES, st.integers(-1, 16))


@given(pieces=st.lists(_PIECE, max_size=6), write=st.booleans())
def test_scatter_is_map_for_each(pieces: list[tuple[int, int]], write: bool) -> None:
    memory = GuestMemory()
    memory.add(0x1000, anonymous(0x1000))
    memory.add(0x2000, bytearray(0x1000))
    memory.add(0x8000, bytes(range(256)) * 16)
    memory.add(TOP, bytearray(0x1000))

    def tried(
        views: Callable[[], list[memoryview]],
    ) -> list[tuple[bool, memoryview]] | type[Exception]:
        try:
            return [(view.readonly or not view, view) for view in views()]
        except DmaError as error:
            return type(error)

    expected = tried(lambda: [memory.map(*piece, write=write) for piece in pieces])
    assert tried(lambda: memory.scatter(pieces, write=write)) == expected


@pytest.mark.parametrize(
    ("gpa", "length", "sentence"),
    [
        (0x0FFF, 2, "none at 0xfff"),
        (0x2FFF, 2, "none at 0x3000"),
        (0x5000, 1, "none at 0x5000"),
        (0x9000, 1, "none at 0x9000"),
        (TOP + 0xFFF, 2, "must lie in 0 to 2\\^64"),
        (LIMIT, 1, "must lie in 0 to 2\\^64"),
        (-1, 1, "must lie in 0 to 2\\^64"),
        (0x1000, -1, "must lie in 0 to 2\\^64"),
    ],
)
def test_what_the_map_does_not_hold_is_refused(
    memory: GuestMemory, gpa: int, length: int, sentence: str
) -> None:
    with pytest.raises(DmaError, match=sentence):
        memory.read(gpa, length)
    with pytest.raises(DmaError, match=sentence):
        memory.map(gpa, length)
    with pytest.raises(DmaError, match=sentence):
        memory.check(gpa, length, write=False)
    if length > 0:
        with pytest.raises(DmaError, match=sentence):
            memory.write(gpa, bytes(length))


def test_the_last_byte_of_the_address_space_is_memory(memory: GuestMemory) -> None:
    memory.write(LIMIT - 1, b"x")
    assert memory.read(LIMIT - 1, 1) == b"x"


def test_rom_is_not_written(memory: GuestMemory) -> None:
    with pytest.raises(DmaError, match="cannot be written"):
        memory.write(0x8000, b"x")
    with pytest.raises(DmaError, match="cannot be written"):
        memory.map(0x8000, 1, write=True)
    with pytest.raises(DmaError, match="cannot be written"):
        memory.check(0x8000, 1, write=True)
    memory.check(0x8000, 0x1000, write=False)
    assert memory.read(0x8000, 1) == b"\0"


def test_writable_memory_can_be_added_as_rom() -> None:
    memory = GuestMemory()
    memory.add(0, bytearray(16), readonly=True)
    with pytest.raises(DmaError, match="cannot be written"):
        memory.write(0, b"x")


def test_a_write_that_is_refused_changes_nothing(memory: GuestMemory) -> None:
    with pytest.raises(DmaError):
        memory.write(0x2FFC, b"12345678")
    assert memory.read(0x2FFC, 4) == bytes(4)


def test_nothing_is_nowhere_refused(memory: GuestMemory) -> None:
    assert memory.read(0x5000, 0) == b""
    assert len(memory.map(0x5000, 0)) == 0
    memory.write(0x8000, b"")
    memory.check(0x5000, 0, write=True)


def test_slots_do_not_overlap(memory: GuestMemory) -> None:
    for gpa in (0x0FFF, 0x1000, 0x2FFF):
        with pytest.raises(DmaError, match="must not overlap"):
            memory.add(gpa, bytearray(2))
    assert len(memory.slots) == 4


@pytest.mark.parametrize(("gpa", "length"), [(0, 0), (-1, 4), (LIMIT - 1, 2)])
def test_a_slot_lies_in_the_address_space(gpa: int, length: int) -> None:
    with pytest.raises(DmaError, match="must have bytes and end at or below"):
        GuestMemory().add(gpa, bytearray(length))


def test_a_slot_that_was_removed_is_a_hole(memory: GuestMemory) -> None:
    view = memory.map(0x2000, 4)
    memory.remove(0x2000)
    with pytest.raises(DmaError):
        memory.read(0x2000, 1)
    assert bytes(view) == bytes(4)
    with pytest.raises(DmaError, match="No memory slot begins at 0x2000"):
        memory.remove(0x2000)


def test_who_watches_learns_of_slots(memory: GuestMemory) -> None:
    seen: list[int] = []
    memory.on_change.append(lambda: seen.append(len(memory.slots)))
    memory.add(0, bytearray(16))
    memory.remove(0)
    assert seen == [5, 4]


def test_overlaps_is_true_for_any_shared_byte(memory: GuestMemory) -> None:
    assert memory.overlaps(0x0FFF, 2)
    assert memory.overlaps(0x2FFF, 0x1000)
    assert not memory.overlaps(0x3000, 0x5000)


def test_memory_that_is_not_shared_is_asked_for_by_message() -> None:
    class Asked(Slot):
        def read(self, offset: int, length: int) -> bytes:
            return b"?" * length

        def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
            written.append((offset, bytes(data)))

    written: list[tuple[int, bytes]] = []
    memory = GuestMemory()
    memory.insert(Asked(0x1000, 0x1000, None))
    memory.add(0x2000, bytearray(16))
    assert memory.read(0x1FFF, 2) == b"?\0"
    memory.write(0x1FFE, b"abc")
    assert written == [(0xFFE, b"ab")]
    with pytest.raises(DmaError, match="not shared"):
        memory.map(0x1000, 4)


@given(
    slots=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 16)), max_size=5),
    gpa=st.integers(0, 80),
    length=st.integers(0, 40),
)
def test_check_says_what_read_and_write_do(
    slots: list[tuple[int, int]], gpa: int, length: int
) -> None:
    memory = GuestMemory()
    flat: dict[int, int] = {}
    for start, size in slots:
        try:
            memory.add(start, bytearray(size))
        except DmaError:
            continue
        flat.update(dict.fromkeys(range(start, start + size), 0))
    data = bytes(range(1, length + 1))
    allowed = all(address in flat for address in range(gpa, gpa + length))
    if allowed:
        memory.check(gpa, length, write=True)
        memory.write(gpa, data)
        assert memory.read(gpa, length) == data
    else:
        with pytest.raises(DmaError):
            memory.check(gpa, length, write=True)
        with pytest.raises(DmaError):
            memory.write(gpa, data)
    for slot in memory.slots:
        expected = bytes(
            data[address - gpa] if allowed and gpa <= address < gpa + length else 0
            for address in range(slot.gpa, slot.end)
        )
        assert memory.read(slot.gpa, slot.length) == expected


def test_a_buffer_without_a_view_is_copied_and_put_back() -> None:
    class Apart(Slot):
        """Memory that a VMM does not share."""

        def __init__(self) -> None:
            super().__init__(0x1000, 64, None)
            self.data = bytearray(64)

        def read(self, offset: int, length: int) -> bytes:
            return bytes(self.data[offset : offset + length])

        def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
            self.data[offset : offset + len(data)] = data

    memory, slot = GuestMemory(), Apart()
    memory.insert(slot)
    slot.data[:4] = b"abcd"
    buffer = Buffer(memory, 0x1000, 4, Direction.INOUT)
    buffer.view[1] = ord("B")
    assert bytes(buffer.view) == b"aBcd"
    assert slot.data[:4] == b"abcd"
    buffer.put_back()
    assert slot.data[:4] == b"aBcd"
    assert Buffer(memory, 0x1000, 4, Direction.IN).view.readonly
    with pytest.raises(NoView):
        memory.map(0x1000, 4)


def test_an_array_needs_numpy(memory: GuestMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = Buffer(memory, 0x1000, 4, Direction.IN)
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(ModuleNotFoundError, match=r'needs NumPy: pip install "callgate\[numpy\]"'):
        buffer.array()
