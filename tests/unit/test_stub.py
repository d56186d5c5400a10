# SPDX-License-Identifier: MIT
"""The stub between slots and method: what it lets in, and what it lets out."""

from collections.abc import Callable
from enum import IntEnum
from typing import Annotated, Any, NamedTuple

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate.call import (
    Buffer,
    BufferIn,
    BufferInOut,
    BufferOut,
    Call,
    CallRefused,
    call,
    compile_frame_stub,
    compile_stub,
    i8,
    i16,
    i32,
    i64,
    placing,
    u8,
    u16,
    u32,
    u64,
)
from callgate.device import Device
from callgate.errors import DmaError
from callgate.gate.abi import Status
from callgate.memory import GuestMemory
from callgate.report import ResultMisfit

M64 = 1 << 64


class Mode(IntEnum):
    SLOW = 0
    FAST = 7


class Signed(IntEnum):
    LESS = -3
    MORE = 3


class Pair(NamedTuple):
    low: int
    high: int


class Plug:
    """As much of a place as a stub needs."""

    gate = None
    timers: Any = None

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory

    def bar_memory(self, index: int) -> memoryview:
        raise AssertionError

    @property
    def msix_enabled(self) -> bool:
        return True

    def trigger(self, index: int) -> None:
        raise AssertionError

    def set_level(self, index: int, level: bool) -> None:
        raise AssertionError


@pytest.fixture(params=["values", "frame"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each test twice: by the stub that takes slots, and by the one that works in the frame."""
    way: str = request.param
    monkeypatch.setattr(Sample, "way", way)
    return way


class Sample:
    """A call with these annotations; `seen` is what its method got, `answer` what it returns."""

    way = "values"

    def __init__(self, *arguments: Any, result: Any = None) -> None:
        self.seen: list[Any] = []
        self.answer: Any = None
        self.act: Callable[..., object] = lambda *_: None
        names = "abcdefghijkl"[: len(arguments)]
        scope: dict[str, Any] = {"sample": self}
        exec(
            f"def method(self, {', '.join(names)}):\n"
            f"    sample.seen.append(({''.join(name + ',' for name in names)}))\n"
            f"    sample.act({', '.join(names)})\n"
            f"    return sample.answer\n",
            scope,
        )
        method = scope["method"]
        method.__annotations__ = {**dict(zip(names, arguments, strict=True)), "return": result}
        kind: type[Device] = type("Model", (Device,), {"id": (1, 1), "method": call(method)})
        self.memory = GuestMemory()
        self.ram = bytearray(range(256))
        self.memory.add(0x1000, self.ram)
        self.memory.add(0x1100, bytearray(256))
        self.memory.add(0x2000, bytes(256))
        device = kind()
        device.plug_in(Plug(self.memory))
        self.call = kind.spec.calls[0]
        self.stub = compile_stub(self.call, device)
        self.frame_stub = compile_frame_stub(self.call, device)

    def __call__(self, *slots: int, payload: bytearray | None = None) -> tuple[Any, ...]:
        view = None if payload is None else memoryview(payload)
        if self.way == "values" or self.frame_stub is None:
            return self.stub(slots, view)
        before = (0xEE, 0xEE, 0xEE, 0xEE, *slots, *(0xEE,) * (12 - len(slots)))
        quads = memoryview(bytearray(128)).cast("Q")
        for at, slot in enumerate(before):
            quads[at] = slot
        try:
            self.frame_stub(quads, view)
        except Exception:
            assert tuple(quads) == before
            raise
        count = self.call.result_slots
        assert tuple(quads[:4]) == before[:4]
        assert tuple(quads[4 + count :]) == before[4 + count :]
        return tuple(quads[4 : 4 + count])

    def refuses(self, status: Status, *slots: int, payload: bytearray | None = None) -> str:
        before = len(self.seen)
        with pytest.raises(CallRefused) as caught:
            self(*slots, payload=payload)
        assert caught.value.status is status
        assert len(self.seen) == before  # The method has not run.
        return str(caught.value)


# --- arguments ------------------------------------------------------------------------------------

RANGES = [
    (u8, "u8", 0, 0xFF),
    (u16, "u16", 0, 0xFFFF),
    (u32, "u32", 0, 0xFFFF_FFFF),
    (u64, "u64", 0, M64 - 1),
    (i8, "i8", -0x80, 0x7F),
    (i16, "i16", -0x8000, 0x7FFF),
    (i32, "i32", -(1 << 31), (1 << 31) - 1),
    (i64, "i64", -(1 << 63), (1 << 63) - 1),
]


@pytest.mark.parametrize(("kind", "name", "low", "high"), RANGES, ids=[row[1] for row in RANGES])
def test_every_value_of_an_integer_and_no_other(kind: Any, name: str, low: int, high: int) -> None:
    sample = Sample(kind)

    @given(slot=st.integers(0, M64 - 1) | st.integers(low - 2, high + 2).map(lambda n: n % M64))
    def check(slot: int) -> None:
        value = slot - M64 if low < 0 and slot >> 63 else slot
        if low <= value <= high:
            sample(slot)
            assert sample.seen[-1] == (value,)
        else:
            assert f"a must be a {name}, not" in sample.refuses(Status.BAD_VALUE, slot)

    check()
    for value in (low, high, 0):
        sample(value % M64)
        assert sample.seen[-1] == (value,)


def test_a_bool_is_0_or_1() -> None:
    sample = Sample(bool)
    sample(0)
    sample(1)
    assert sample.seen == [(False,), (True,)]
    assert all(type(value) is bool for (value,) in sample.seen)
    for slot in (2, 255, M64 - 1):
        assert sample.refuses(Status.BAD_VALUE, slot) == f"a must be a bool, not {slot:#x}"


def test_an_enumeration_is_one_of_its_members() -> None:
    sample = Sample(Mode, Annotated[Mode, u8], Annotated[Signed, i8])
    sample(7, 0, M64 - 3)
    assert sample.seen == [(Mode.FAST, Mode.SLOW, Signed.LESS)]
    assert [type(value) for value in sample.seen[0]] == [Mode, Mode, Signed]
    assert sample.refuses(Status.BAD_VALUE, 1, 0, 3) == "a must be a Mode, not 0x1"
    assert sample.refuses(Status.BAD_VALUE, 0, 0x107, 3) == "b must be a u8, not 0x107"
    assert sample.refuses(Status.BAD_VALUE, 0, 7, 0) == "c must be a Signed, not 0x0"
    assert sample.refuses(Status.BAD_VALUE, 0, 7, 0xFD).startswith("c must be a i8")


def test_the_name_of_an_enumeration_is_data() -> None:
    odd = IntEnum("odd'}\n{x", {"ONE": 1})  # type: ignore[misc]
    assert "{x" in Sample(odd).refuses(Status.BAD_VALUE, 2)


def test_bytes_are_copied_from_the_payload() -> None:
    sample = Sample(bytes, u8, bytes)
    payload = bytearray(b"hello world.")
    sample(5 << 32 | 0, 7, 5 << 32 | 6, payload=payload)
    payload[:] = bytes(12)
    assert sample.seen == [(b"hello", 7, b"world")]


@pytest.mark.parametrize(
    ("offset", "length", "good"),
    [
        (0, 0, True),
        (0, 12, True),
        (12, 0, True),
        (11, 1, True),
        (0, 13, False),
        (12, 1, False),
        (13, 0, False),
        (0xFFFF_FFFF, 1, False),
        (1, 0xFFFF_FFFF, False),
        (0xFFFF_FFFF, 0xFFFF_FFFF, False),
    ],
)
def test_bytes_must_lie_in_the_payload(offset: int, length: int, good: bool) -> None:
    sample = Sample(bytes)
    payload = bytearray(b"hello world.")
    slot = length << 32 | offset
    if good:
        sample(slot, payload=payload)
        assert sample.seen == [(b"hello world."[offset : offset + length],)]
    else:
        sentence = sample.refuses(Status.BAD_FRAME, slot, payload=payload)
        assert sentence == f"a must lie in the payload's 12 bytes, not at {offset} for {length}"


def test_bytes_without_a_payload() -> None:
    assert "the payload's 0 bytes" in Sample(bytes).refuses(Status.BAD_FRAME, 1 << 32)


def test_buffers_are_the_guests_memory_itself() -> None:
    sample = Sample(BufferIn, BufferOut, BufferInOut)

    def act(a: Buffer, b: Buffer, c: Buffer) -> None:
        assert [(len(one), one.gpa) for one in (a, b, c)] == [(4, 0x1010), (2, 0x1020), (3, 0x1030)]
        assert bytes(a.view) == bytes(range(0x10, 0x14))
        assert a.view.readonly
        assert not a.array().flags.writeable
        with pytest.raises(TypeError):
            a.view[0] = 1
        b.view[:] = b"ab"
        c.array()[1] = 0
        c.view[0] = c.view[2]
        sample.ram[0x10] = 0xEE  # The guest can change it at any time.
        assert a.view[0] == 0xEE

    sample.act = act
    sample(0x1010, 4, 0x1020, 2, 0x1030, 3)
    assert sample.ram[0x20:0x22] == b"ab"
    assert sample.ram[0x30:0x33] == bytes([0x32, 0, 0x32])


def test_a_buffer_as_an_array_of_numbers() -> None:
    sample = Sample(BufferIn)
    shown: list[Any] = []
    sample.act = lambda data: shown.append(data.array("<u4").tolist())
    sample(0x1000, 8)
    sample(0x1000, 0)
    assert shown == [[0x0302_0100, 0x0706_0504], []]


@pytest.mark.parametrize("kind", [BufferIn, BufferOut, BufferInOut], ids=["in", "out", "inout"])
@pytest.mark.parametrize(
    ("gpa", "length", "reads", "writes"),
    [
        (0x1000, 256, True, True),
        (0x10F0, 32, True, True),  # over the seam of two slots
        (0x1000, 0, True, True),
        (M64 - 1, 0, True, True),
        (0x2000, 256, True, False),  # ROM
        (0x0FFF, 2, False, False),
        (0x11FF, 2, False, False),
        (0x2000, 257, False, False),
        (M64 - 1, 1, False, False),
        (M64 - 1, 2, False, False),  # wraps
        (0x1000, M64 - 1, False, False),
        (0x1000, M64 - 0x1000, False, False),
    ],
)
def test_a_buffer_lies_in_memory_that_the_device_may_use(
    kind: Any, gpa: int, length: int, reads: bool, writes: bool
) -> None:
    sample = Sample(kind, u8)
    if reads if kind is BufferIn else writes:
        sample(gpa, length, 5)
        assert sample.seen[0][1] == 5
    else:
        assert sample.refuses(Status.BAD_BUFFER, gpa, length, 5).startswith("a: The range of")


def test_memory_that_goes_while_the_call_runs() -> None:
    sample = Sample(BufferIn)

    def act(data: Buffer) -> None:
        sample.memory.remove(0x1000)
        _ = data.view

    sample.act = act
    with pytest.raises(DmaError):
        sample(0x1000, 4)


def test_values_are_judged_in_the_order_of_the_arguments_before_the_method_runs() -> None:
    sample = Sample(u8, BufferIn, bytes)
    assert sample.refuses(Status.BAD_VALUE, 256, 0, 1, 99).startswith("a ")
    assert sample.refuses(Status.BAD_BUFFER, 1, 0, 1, 99 << 32).startswith("b:")
    assert sample.refuses(Status.BAD_FRAME, 1, 0x1000, 1, 99 << 32).startswith("c ")


# --- results --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name", "low", "high"), RANGES, ids=[row[1] for row in RANGES])
def test_every_result_of_an_integer_and_no_other(kind: Any, name: str, low: int, high: int) -> None:
    sample = Sample(result=kind)
    for value in (low, low + 1, 0, 1, high):
        sample.answer = value
        (slot,) = sample()
        assert type(slot) is int
        assert slot == value % M64
    for value in (low - 1, high + 1, 1 << 70):
        sample.answer = value
        with pytest.raises(ResultMisfit, match=f"method must return .* {name}, not {value}"):
            sample()


@pytest.mark.parametrize(
    ("answer", "slot"),
    [
        (Mode.FAST, 7),
        (Signed.LESS, M64 - 3),
        (True, 1),
        (numpy.int8(-5), M64 - 5),
        (numpy.uint16(9), 9),
        (numpy.int64(-(1 << 63)), 1 << 63),
        (numpy.array(4), 4),
    ],
    ids=repr,
)
def test_numbers_in_disguise(answer: Any, slot: int) -> None:
    sample = Sample(result=i64)
    sample.answer = answer
    (got,) = sample()
    assert type(got) is int
    assert got == slot


def test_a_disguised_number_must_fit_too() -> None:
    sample = Sample(result=u8)
    for answer in (numpy.int16(256), numpy.int8(-1), Signed.LESS):
        sample.answer = answer
        with pytest.raises(ResultMisfit):
            sample()


def test_a_bool_result() -> None:
    sample = Sample(result=bool)
    for answer, slot in ((True, 1), (False, 0), (1, 1), (numpy.bool_(True), 1)):
        sample.answer = answer
        (got,) = sample()
        assert type(got) is int
        assert got == slot
    for wrong in (2, None, numpy.float64(1.0)):
        sample.answer = wrong
        with pytest.raises(ResultMisfit):
            sample()


@pytest.mark.parametrize("answer", [None, 1.0, "1", b"1", [1], (1,)], ids=repr)
def test_what_is_no_number(answer: Any) -> None:
    sample = Sample(result=u8)
    sample.answer = answer
    with pytest.raises(ResultMisfit, match="must return what its annotation says, u8, not"):
        sample()


@pytest.mark.parametrize("answer", [b"abc", bytearray(b"abc"), memoryview(b"abc")])
def test_bytes_of_any_kind(answer: Any) -> None:
    sample = Sample(result=bytes)
    sample.answer = answer
    assert [bytes(one) for one in sample()] == [b"abc"]


@pytest.mark.parametrize("answer", [None, 5, "abc", [1, 2]], ids=repr)
def test_what_is_no_bytes(answer: Any) -> None:
    sample = Sample(result=bytes)
    sample.answer = answer
    with pytest.raises(ResultMisfit, match="annotation says, bytes, not"):
        sample()


def test_several_results() -> None:
    sample = Sample(result=tuple[u8, i8, bytes])
    sample.answer = (1, -1, b"x")
    assert sample() == (1, M64 - 1, b"x")
    for answer in ((1, -1), (1, -1, b"x", 0), [1, -1, b"x"], None, 1):
        sample.answer = answer
        with pytest.raises(ResultMisfit, match=r"\(u8,i8,bytes\), not"):
            sample()
    for wrong in ((256, 0, b""), (0, 200, b""), (0, 0, 0)):
        sample.answer = wrong
        with pytest.raises(ResultMisfit):
            sample()


def test_a_named_tuple_is_a_tuple() -> None:
    sample = Sample(result=tuple[u8, u8])
    sample.answer = Pair(1, 2)
    assert sample() == (1, 2)


def test_a_tuple_of_one() -> None:
    sample = Sample(result=tuple[u8])
    sample.answer = (5,)
    assert sample() == (5,)
    sample.answer = 5
    with pytest.raises(ResultMisfit):
        sample()


def test_no_result() -> None:
    sample = Sample(result=None)
    assert sample() == ()
    sample.answer = 0
    with pytest.raises(ResultMisfit, match=r"annotation says, \(\), not 0"):
        sample()


def test_a_long_result_is_not_shown_in_full() -> None:
    sample = Sample(result=u8)
    sample.answer = "x" * 10_000
    with pytest.raises(ResultMisfit) as caught:
        sample()
    assert len(str(caught.value)) < 250


# --- results in the payload -----------------------------------------------------------------------


def placed(results: tuple[Any, ...], payload: memoryview | None) -> tuple[Any, ...]:
    """The slots of a call that returns these."""
    return placing(Call(placed, one_way=False, name=None), lambda *_: results)((), payload)


def test_bytes_are_placed_one_after_another_at_multiples_of_8() -> None:
    payload = bytearray(b"." * 32)
    slots = placed((b"abc", 7, b"", b"defgh"), memoryview(payload))
    assert slots == (3 << 32 | 0, 7, 0 << 32 | 8, 5 << 32 | 8)
    assert payload == b"abc.....defgh" + b"." * 19


@pytest.mark.parametrize("length", [0, 1, 15, 16])
def test_bytes_may_fill_the_payload(length: int) -> None:
    payload = bytearray(16)
    assert placed((b"x" * length,), memoryview(payload)) == (length << 32,)
    assert payload == (b"x" * length).ljust(16, b"\0")


@pytest.mark.parametrize("results", [(b"x" * 17,), (b"x", b"y" * 9), (b"x" * 9, b"y")])
def test_bytes_that_do_not_fit(results: tuple[bytes, ...]) -> None:
    with pytest.raises(ResultMisfit, match="must fit the payload's 16 bytes"):
        placed(results, memoryview(bytearray(16)))
    with pytest.raises(ResultMisfit, match="must fit the payload's 0 bytes"):
        placed((b"x",), None)


def test_arrays_are_placed_as_their_bytes() -> None:
    payload = bytearray(8)
    words = memoryview(numpy.array([1, 2], "<u2").data)
    assert placed((words,), memoryview(payload)) == (4 << 32,)
    assert payload == b"\1\0\2\0\0\0\0\0"
