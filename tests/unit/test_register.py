# SPDX-License-Identifier: MIT
"""What a guest reads and writes, by access kind, size and place; what Python sees beside it."""

import logging
from collections.abc import Callable
from enum import IntEnum
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate.device import Device
from callgate.register import Access, Bar, Field, Register

ID = 0x1AF4, 0x10F0
ONES = 0xFFFF_FFFF


class Kinds(Device):
    """One register of each kind."""

    id = ID
    r = Register(0x00, access="r", reset=0x1234_5678)
    w = Register(0x04, access="w", reset=0x1234_5678)
    rw = Register(0x08, access="rw", reset=0x1234_5678)
    w1c = Register(0x0C, access="w1c", reset=0x1234_5678)
    w1s = Register(0x10, access="w1s", reset=0x1234_5678)


class Widths(Device):
    """Neighbours of all widths, and a hole at 0x14."""

    id = ID
    window = Bar(2, 256)
    quad = Register(0x00, width=64, reset=0x8877_6655_4433_2211)
    word = Register(0x08, reset=0xCCBB_AA99)
    half = Register(0x0C, width=16, reset=0xEEDD)
    low = Register(0x0E, width=8, reset=0xFF)
    high = Register(0x0F, width=8, reset=0x00)
    last = Register(0x10, reset=0x1314_1516)


CONTENT = bytes.fromhex("11 22 33 44 55 66 77 88 99 aa bb cc dd ee ff 00 16 15 14 13")


def read(device: Device, offset: int, size: int = 4, bar: int = 0) -> int:
    return device.register_read(bar, offset, size)


def write(device: Device, offset: int, value: int, size: int = 4, bar: int = 0) -> None:
    device.register_write(bar, offset, size, value)


# --- access kinds ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "seen", "after"),
    [
        ("r", 0x1234_5678, 0x1234_5678),
        ("w", 0, 0xFF00_FF00),
        ("rw", 0x1234_5678, 0xFF00_FF00),
        ("w1c", 0x1234_5678, 0x0034_0078),
        ("w1s", 0x1234_5678, 0xFF34_FF78),
    ],
)
def test_kinds_by_register(name: str, seen: int, after: int) -> None:
    device = Kinds()
    offset = getattr(Kinds, name).offset
    assert read(device, offset) == seen
    write(device, offset, 0xFF00_FF00)
    assert getattr(device, name) == after
    assert read(device, offset) == (0 if name == "w" else after)


def test_a_write_to_a_read_only_register_is_a_fault(caplog: pytest.LogCaptureFixture) -> None:
    device = Kinds()
    write(device, 0x00, 1)
    write(device, 0x00, 2, size=1)
    assert device.faults.counts == {"read-only register": 2}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "kinds: r is read-only" in caplog.text


def test_a_write_to_read_only_bits_beside_others_is_none() -> None:
    class Mixed(Device):
        id = ID
        status = Register(0x00, access="r")
        error = Field(status, 0, access="w1c")

    device = Mixed()
    write(device, 0, ONES)
    assert device.faults.counts == {}
    write(device, 1, 0xFF, size=1)  # No bit of this byte can be written.
    assert device.faults.counts == {"read-only register": 1}


def test_kinds_by_field() -> None:
    class Mixed(Device):
        id = ID
        control = Register(0x00, reset=0x0F0F_0F0F)
        r = Field(control, 0, 7, access="r")
        w = Field(control, 8, 15, access="w")
        w1c = Field(control, 16, 23, access="w1c")
        w1s = Field(control, 24, 31, access="w1s")

    device = Mixed()
    assert read(device, 0) == 0x0F0F_000F
    write(device, 0, 0x3333_3333)
    assert (device.r, device.w, device.w1c, device.w1s) == (0x0F, 0x33, 0x0C, 0x3F)
    assert device.control == 0x3F0C_330F
    assert read(device, 0) == 0x3F0C_000F


def bit(kind: Access, old: int, value: int) -> tuple[int, int]:
    """What one bit holds after a write, and what the guest then reads of it."""
    stored = {"r": old, "w": value, "rw": value, "w1c": old & ~value, "w1s": old | value}[kind]
    return stored, 0 if kind == "w" else stored


KINDS: tuple[Access, ...] = get_args(Access)


@given(
    base=st.sampled_from(KINDS),
    cuts=st.lists(st.integers(0, 32), min_size=1, max_size=6, unique=True),
    kinds=st.lists(st.sampled_from((None, *KINDS)), min_size=5, max_size=5),
    reset=st.integers(0, ONES),
    writes=st.lists(
        st.tuples(st.sampled_from([(0, 4), (0, 2), (2, 2), (0, 1), (1, 1), (2, 1), (3, 1)]),
                  st.integers(0, ONES)),
        max_size=4,
    ),
)  # fmt: skip
def test_every_bit_follows_its_kind(
    base: Access,
    cuts: list[int],
    kinds: list[Access | None],
    reset: int,
    writes: list[tuple[tuple[int, int], int]],
) -> None:
    """Any layout of fields, any sequence of writes: each bit as if it were alone."""
    control = Register(0, access=base, reset=reset)
    body: dict[str, Any] = {"id": ID, "control": control}
    bits: list[Access] = [base] * 32
    cuts.sort()
    for number, (low, end) in enumerate(pairwise(cuts)):
        kind = kinds[number]
        if kind is not None:
            body[f"f{number}"] = Field(control, low, end - 1, access=kind)
            bits[low:end] = [kind] * (end - low)
    device = type("Some", (Device,), body)()
    expected = reset
    for (offset, size), value in writes:
        value &= (1 << 8 * size) - 1
        write(device, offset, value, size)
        for place in range(8 * offset, 8 * (offset + size)):
            new, _ = bit(bits[place], expected >> place & 1, value >> (place - 8 * offset) & 1)
            expected = expected & ~(1 << place) | new << place
    assert device.control == expected
    seen = sum(1 << place for place in range(32) if bits[place] != "w" and expected >> place & 1)
    assert read(device, 0) == seen


# --- sizes and places -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_every_aligned_read_inside_or_over_whole_registers(size: int) -> None:
    device = Widths()
    for offset in range(0, len(CONTENT) - size + 1, size):
        assert read(device, offset, size, bar=2) == int.from_bytes(
            CONTENT[offset : offset + size], "little"
        )
    assert device.faults.counts == {}


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_every_aligned_write_inside_or_over_whole_registers(size: int) -> None:
    for offset in range(0, len(CONTENT) - size + 1, size):
        device = Widths()
        expected = bytearray(CONTENT)
        expected[offset : offset + size] = bytes(range(0xA0, 0xA0 + size))
        write(device, offset, int.from_bytes(bytes(range(0xA0, 0xA0 + size)), "little"), size, 2)
        seen = b"".join(
            getattr(device, one.name).to_bytes(one.size, "little") for one in device.spec.registers
        )
        assert seen == expected
        assert device.faults.counts == {}


@pytest.mark.parametrize(
    ("bar", "offset", "size"),
    [
        (2, 1, 2),  # misaligned
        (2, 2, 4),
        (2, 4, 8),
        (2, 0, 3),  # no size of an access
        (2, 0, 16),
        (2, 0x14, 4),  # a hole
        (2, 0x10, 8),  # a register and a hole
        (2, 0xFC, 4),
        (0, 0, 4),  # no such BAR
    ],
)
def test_any_other_access_reads_all_ones_and_writes_nothing(
    bar: int, offset: int, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    device = Widths()
    for _ in range(2):
        assert read(device, offset, size, bar) == (1 << 8 * size) - 1
        write(device, offset, 0, size, bar)
    values = [getattr(device, one.name) for one in device.spec.registers]
    assert values == [one.reset for one in device.spec.registers]
    assert device.faults.counts == {"bad read": 2, "bad write": 2}
    assert [one.levelno for one in caplog.records] == [logging.WARNING] * 2
    assert f"{size} bytes at BAR {bar} + {offset:#x}" in caplog.text


def test_a_value_wider_than_the_access_is_cut() -> None:
    device = Kinds()
    write(device, 0x08, 0x1_0000_0001)
    assert device.rw == 1
    write(device, 0x09, 0x1FF, size=1)
    assert device.rw == 0xFF01


# --- hooks ----------------------------------------------------------------------------------------


class Hooks(Device):
    """Its hooks write down what they are told, and answer what the test sets."""

    id = ID
    window = Bar(0, 64)
    plain = Register(0x00, bar=window, reset=5)
    value = Register(0x04, bar=window, reset=0x0403_0201)
    flags = Register(0x08, bar=window, access="w1c", reset=0xFF)
    wide = Register(0x10, width=64, bar=window)

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.answer: Any = None
        self.act: Callable[[], object] = lambda: None

    @value.on_read
    def reading(self) -> int | None:
        self.log.append("read")
        self.act()
        answer: int | None = self.answer
        return answer

    @value.on_write
    def written(self, value: int) -> None:
        self.log.append((value, self.value))
        self.act()

    @flags.on_write
    def cleared(self, value: int) -> None:
        self.log.append((value, self.flags))

    @window.on_read
    def other_read(self, offset: int, size: int) -> int:
        self.log.append(("read", offset, size))
        self.act()
        answer: int = self.answer
        return answer

    @window.on_write
    def other_write(self, offset: int, size: int, value: int) -> None:
        self.log.append(("write", offset, size, value))
        self.act()


@pytest.fixture
def hooks() -> Hooks:
    return Hooks()


def test_on_read_gives_the_value_or_leaves_the_stored_one(hooks: Hooks) -> None:
    assert read(hooks, 4) == 0x0403_0201
    hooks.answer = 0xAABB_CCDD
    assert read(hooks, 4) == 0xAABB_CCDD
    assert read(hooks, 6, size=1) == 0xBB
    assert hooks.value == 0x0403_0201
    assert hooks.log == ["read"] * 3


def test_on_read_may_change_the_register_for_the_next_time(hooks: Hooks) -> None:
    def clear() -> None:
        hooks.answer = hooks.value
        hooks.value = 0

    hooks.act = clear
    assert [read(hooks, 4), read(hooks, 4)] == [0x0403_0201, 0]


def test_each_register_under_a_wide_read_is_asked_once(hooks: Hooks) -> None:
    hooks.answer = 7
    assert read(hooks, 0, size=8) == 7 << 32 | 5
    assert hooks.log == ["read"]


def test_a_read_that_is_refused_asks_no_register() -> None:
    class Last(Device):
        id = ID
        window = Bar(0, 16)
        edge = Register(0x08, bar=window)
        asked = 0

        @edge.on_read
        def reading(self) -> None:
            self.asked += 1

    device = Last()
    assert read(device, 8, size=8) == (1 << 64) - 1
    assert device.asked == 0


def test_on_write_comes_after_the_value_is_stored(hooks: Hooks) -> None:
    write(hooks, 4, 9)
    assert hooks.log == [(9, 9)]


def test_on_write_is_told_the_whole_register_for_a_partial_write(hooks: Hooks) -> None:
    write(hooks, 5, 0xEE, size=1)
    assert hooks.log == [(0x0403_EE01, 0x0403_EE01)]
    hooks.log.clear()
    write(hooks, 8, 0x0F, size=1)  # Of bits that clear themselves only those that were written.
    assert hooks.log == [(0x0F, 0xF0)]


def test_a_write_over_two_registers_runs_both_hooks_in_order() -> None:
    class Two(Device):
        id = ID
        a = Register(0)
        b = Register(4)

        def __init__(self) -> None:
            self.log: list[tuple[str, int]] = []

        @a.on_write
        def first(self, value: int) -> None:
            self.log.append(("a", value))

        @b.on_write
        def second(self, value: int) -> None:
            self.log.append(("b", value))

    device = Two()
    write(device, 0, 0x2_0000_0001, size=8)
    assert device.log == [("a", 1), ("b", 2)]


def test_what_no_register_answers_goes_to_the_hooks_of_the_bar(hooks: Hooks) -> None:
    hooks.answer = 0x1FF
    assert read(hooks, 0x20, size=1) == 0xFF
    assert read(hooks, 0x05, size=2) == 0x1FF  # misaligned
    write(hooks, 0x21, 3, size=2)
    assert hooks.log == [("read", 0x20, 1), ("read", 0x05, 2), ("write", 0x21, 2, 3)]
    assert hooks.faults.counts == {}
    assert read(hooks, 0, bar=1) == ONES  # another BAR's are not asked
    assert hooks.faults.counts == {"bad read": 1}


class Level(IntEnum):
    HIGH = 3


@pytest.mark.parametrize("answer", [3, Level.HIGH, numpy.uint8(3), numpy.int64(3)], ids=repr)
def test_what_is_a_number_is_taken_as_one(hooks: Hooks, answer: Any) -> None:
    hooks.answer = answer
    assert read(hooks, 4) == 3
    assert read(hooks, 0x20) == 3
    hooks.plain = answer
    assert type(hooks.plain) is int
    assert read(hooks, 0) == 3


@pytest.mark.parametrize("answer", [1 << 32, -1, "three", 3.0], ids=repr)
def test_a_read_hook_that_answers_nonsense(
    hooks: Hooks, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    hooks.answer = answer
    assert read(hooks, 4) == ONES
    assert "hooks.value, read by the guest: the device model raised" in caplog.text
    assert f"Hooks.value: its on_read hook must return 32 bits, not {answer!r}" in caplog.text
    assert "in reading" in caplog.text  # Where it is defined.


def test_a_bug_in_a_hook_is_told_loudly_once(
    hooks: Hooks, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("deliberately")

    hooks.act = fail
    for _ in range(3):
        assert read(hooks, 4) == ONES
        assert read(hooks, 5, size=1) == 0xFF
        write(hooks, 4, 1)
        assert read(hooks, 0x20) == ONES
        write(hooks, 0x24, 1)
    loud = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [message.partition(": ")[0] for message in loud] == [
        "hooks.value, read by the guest",
        "hooks.value, written by the guest",
        "hooks.window, read by the guest at 0x20",
        "hooks.window, written by the guest at 0x24",
    ]
    assert all("in fail\n" in message and "deliberately" in message for message in loud)
    assert all("/callgate/" not in message for message in loud)
    assert hooks.faults.counts == {}  # It is not the guest's fault.


def test_a_failing_register_spoils_only_its_part_of_a_wide_read(hooks: Hooks) -> None:
    hooks.answer = -1
    assert read(hooks, 0, size=8) == ONES << 32 | 5


def test_offsets_that_the_guest_chooses_do_not_multiply_reports(
    hooks: Hooks, caplog: pytest.LogCaptureFixture
) -> None:
    hooks.answer = None
    for offset in range(0x20, 0x40, 4):
        assert read(hooks, offset) == ONES
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


# --- hooks of fields ------------------------------------------------------------------------------


class FieldHooks(Device):
    """Fields with hooks, beside a register's own."""

    id = ID
    control = Register(0, reset=0x1234_5601)
    enable = Field(control, 0)
    speed = Field(control, 8, 15)
    failed = Field(control, 16, 19, access="w1c")

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.answer: Any = None

    @control.on_read
    def all_of_it(self) -> int:
        return self.control | 0x8000_0000

    @control.on_write
    def changed(self, value: int) -> None:
        self.log.append(("control", value))

    @speed.on_read
    def measured(self) -> int | None:
        self.log.append("measured")
        answer: int | None = self.answer
        return answer

    @speed.on_write
    def set_speed(self, value: int) -> None:
        self.log.append(("speed", value, self.speed))

    @failed.on_write
    def cleared(self, value: int) -> None:
        self.log.append(("failed", value, self.failed))


def test_a_fields_read_hook_gives_its_bits_alone() -> None:
    device = FieldHooks()
    assert read(device, 0) == 0x9234_5601  # None: as they are
    device.answer = 0xEE
    assert read(device, 0) == 0x9234_EE01
    assert read(device, 1, size=1) == 0xEE
    assert device.speed == 0x56
    assert device.log == ["measured"] * 3


def test_a_fields_write_hook_is_told_its_bits_where_a_write_covers_any() -> None:
    device = FieldHooks()
    write(device, 0, 0x0005_AB00)
    assert device.log == [("control", 0x0005_AB00), ("speed", 0xAB, 0xAB), ("failed", 5, 0)]
    device.log.clear()
    write(device, 1, 0x77, size=1)
    assert device.log[1:] == [("speed", 0x77, 0x77)]
    write(device, 0, 1, size=1)
    assert device.log[2:] == [("control", 0x7701)]


def test_a_field_alone_may_have_hooks() -> None:
    class Alone(Device):
        id = ID
        status = Register(0, access="r")
        busy = Field(status, 4)
        start = Field(status, 0, access="w")

        @busy.on_read
        def is_busy(self) -> int:
            return True

        @start.on_write
        def go(self, value: int) -> None:
            self.busy = value

    device = Alone()
    assert read(device, 0) == 0x10
    write(device, 0, 1)
    assert device.busy == 1


@pytest.mark.parametrize("answer", [0x100, -1, "three"], ids=repr)
def test_a_fields_read_hook_that_answers_nonsense(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    device = FieldHooks()
    device.answer = answer
    assert read(device, 0) == ONES
    assert f"FieldHooks.speed: its on_read hook must return 8 bits, not {answer!r}" in caplog.text
    assert "in measured" in caplog.text


def test_a_subclass_overrides_a_fields_hook() -> None:
    class Faster(FieldHooks):
        def measured(self) -> int:
            return 0xFF

    assert read(Faster(), 0) == 0x9234_FF01
    assert read(FieldHooks(), 0) == 0x9234_5601


# --- Python's side --------------------------------------------------------------------------------


def test_python_sees_the_stored_value_and_runs_no_hook(hooks: Hooks) -> None:
    hooks.answer = 7
    assert hooks.value == 0x0403_0201
    hooks.value = 9
    hooks.flags = 0x10  # not "write 1 to clear"
    assert (hooks.value, hooks.flags) == (9, 0x10)
    assert hooks.log == []


def test_python_writes_whatever_the_access_kind() -> None:
    device = Kinds()
    for name in ("r", "w", "rw", "w1c", "w1s"):
        setattr(device, name, 0xA5)
        assert getattr(device, name) == 0xA5


@pytest.mark.parametrize("value", [1 << 32, -1])
def test_a_value_must_fit_its_register(value: int) -> None:
    device = Kinds()
    with pytest.raises(ValueError, match=r"Kinds\.rw must fit 32 bits, and .* does not"):
        device.rw = value
    assert device.rw == 0x1234_5678


@pytest.mark.parametrize("value", [1.0, "1", None])
def test_a_value_must_be_a_number(value: Any) -> None:
    class Some(Device):
        id = ID
        control = Register(0)
        mode = Field(control, 0, 3)

    device = Some()
    with pytest.raises(TypeError):
        device.control = value
    with pytest.raises(TypeError):
        device.mode = value


def test_a_field_is_its_bits() -> None:
    class Some(Device):
        id = ID
        control = Register(0, reset=0xF0)
        low = Field(control, 0, 3)
        high = Field(control, 4, 7)
        top = Field(control, 31)

    device = Some()
    assert (device.low, device.high, device.top) == (0, 15, 0)
    device.low = 5
    device.top = numpy.uint8(1)  # type: ignore[assignment]
    assert device.control == 0x8000_00F5
    for value in (16, -1):
        with pytest.raises(ValueError, match=r"Some\.low must fit 4 bits, and .* does not"):
            device.low = value
    assert device.control == 0x8000_00F5


def test_devices_of_a_class_share_nothing() -> None:
    one, other = Kinds(), Kinds()
    one.rw = 1
    write(one, 0x00, 0)
    assert other.rw == 0x1234_5678
    assert other.faults.counts == {}


def test_a_reset_gives_the_reset_values() -> None:
    device = Kinds()
    write(device, 0x08, 1)
    device.r = 2
    device.do_reset()
    assert (device.rw, device.r) == (0x1234_5678, 0x1234_5678)


def test_a_bar_without_memory_has_no_memory(hooks: Hooks) -> None:
    with pytest.raises(AttributeError, match=r"Hooks\.window has no memory: declare ram=True"):
        _ = hooks.window


@given(
    offset=st.integers(0, 80),
    size=st.sampled_from([0, 1, 2, 3, 4, 5, 8, 16]),
    value=st.integers(0, 1 << 128),
    do=st.sampled_from(["read", "write"]),
)
def test_no_access_raises(offset: int, size: int, value: int, do: Literal["read", "write"]) -> None:
    for device in (Hooks(), Widths(), Kinds()):
        for bar in range(-1, 7):
            if do == "read":
                assert 0 <= read(device, offset, size, bar) < 1 << 8 * size
            else:
                write(device, offset, value, size, bar)
