# SPDX-License-Identifier: MIT
"""What a call's annotations mean on the wire: text, hash, slots, flags (docs/abi.md, section 4)."""

import hashlib
from enum import IntEnum
from typing import Annotated, Any

import pytest

from callgate.call import (
    Buffer,
    BufferIn,
    BufferInOut,
    BufferOut,
    Call,
    call,
    i8,
    i16,
    i32,
    i64,
    signature_hash,
    u8,
    u16,
    u32,
    u64,
)
from callgate.device import Device
from callgate.gate.abi import CallFlag


class Mode(IntEnum):
    SLOW = 0
    FAST = 1


class Signed(IntEnum):
    LESS = -1


SCALARS = {
    "u8": u8, "u16": u16, "u32": u32, "u64": u64,
    "i8": i8, "i16": i16, "i32": i32, "i64": i64, "bool": bool,
}  # fmt: skip


def declared(arguments: tuple[Any, ...] = (), result: Any = None, **options: Any) -> Call:
    """A call `sample` with these annotations."""
    names = "abcdefghijkl"[: len(arguments)]
    scope: dict[str, Any] = {}
    exec(f"def sample(self, {', '.join(names)}): ...", scope)
    function = scope["sample"]
    function.__annotations__ = {**dict(zip(names, arguments, strict=True)), "return": result}
    body = {"id": (1, 1), "sample": call(**options)(function)}
    device: type[Device] = type("Sample", (Device,), body)
    return device.spec.calls[0]


@pytest.mark.parametrize(("name", "annotation"), SCALARS.items())
def test_each_scalar_as_argument_and_result(name: str, annotation: Any) -> None:
    one = declared((annotation,), annotation)
    assert one.text == f"sample({name})->{name}"
    assert (one.arguments, one.result_slots) == (1, 1)
    assert one.flags == CallFlag.REGISTERS


@pytest.mark.parametrize(
    ("annotation", "name"),
    [(BufferIn, "in"), (BufferOut, "out"), (BufferInOut, "inout"), (Buffer, "inout")],
)
def test_each_buffer(annotation: Any, name: str) -> None:
    one = declared((annotation, u8))
    assert one.text == f"sample({name},u8)->()"
    assert (one.arguments, one.result_slots) == (3, 0)
    assert one.flags == CallFlag.BUFFERS | CallFlag.REGISTERS


def test_bytes_need_a_frame() -> None:
    assert declared((bytes,)).flags == CallFlag.PAYLOAD_IN
    assert declared((), bytes).flags == CallFlag.PAYLOAD_OUT
    assert declared((bytes, u8), bytes).text == "sample(bytes,u8)->bytes"


def test_an_enumeration_is_the_integer_under_it() -> None:
    one = declared((Mode, Annotated[Mode, u8], Annotated[Signed, i16]), Mode)
    assert one.text == "sample(u32,u8,i16)->u32"
    plain = declared((u32, u8, i16), u32)
    assert one.hash == plain.hash


def test_notes_of_others_are_skipped() -> None:
    arguments = (Annotated[u32, "a note"], Annotated[bytes, "one"], Annotated[bool, 1])
    assert declared(arguments).text == "sample(u32,bytes,bool)->()"
    assert declared((Annotated[Mode, "a note"], Annotated[Buffer, 5])).text == (
        "sample(u32,inout)->()"
    )


@pytest.mark.parametrize(
    ("result", "text", "several"),
    [
        (None, "()", False),
        (u8, "u8", False),
        (tuple[u8], "u8", True),
        (tuple[u8, bytes, i64], "(u8,bytes,i64)", True),
    ],
    ids=str,
)
def test_results(result: Any, text: str, several: bool) -> None:
    one = declared((), result)
    assert one.text == f"sample()->{text}"
    assert one.several is several


def test_registers_carry_six_slots_each_way() -> None:
    def fits(one: Call) -> bool:
        return bool(one.flags & CallFlag.REGISTERS)

    assert fits(declared((u64,) * 6, tuple[u8, u8, u8, u8, u8, u8]))
    assert not fits(declared((u64,) * 7))
    assert not fits(declared((), tuple[u8, u8, u8, u8, u8, u8, u8]))
    assert fits(declared((BufferIn,) * 3))
    assert not fits(declared((BufferIn, BufferIn, BufferIn, u8)))


def test_one_way() -> None:
    assert declared((u8,), one_way=True).flags == CallFlag.ONE_WAY | CallFlag.REGISTERS
    assert declared((bytes,), one_way=True).flags == CallFlag.ONE_WAY | CallFlag.PAYLOAD_IN


def test_the_name_in_the_text_is_the_guests() -> None:
    one = declared((u8,), name="other")
    assert (one.name, one.attribute, one.text) == ("other", "sample", "other(u8)->()")


def test_the_hash_is_of_the_text() -> None:
    """The example of docs/abi.md, computed here by its words."""
    digest = hashlib.sha256(b"add(u64,u64)->u64").digest()
    assert signature_hash("add(u64,u64)->u64") == sum(
        byte << 8 * place for place, byte in enumerate(digest[:8])
    )
    one = declared((u8,), u8)
    assert one.hash == signature_hash(one.text) < 1 << 64


def test_signatures_that_differ_have_other_hashes() -> None:
    calls = [
        declared((u8,)), declared((i8,)), declared((u8, u8)), declared((), u8),
        declared((u8,), name="other"), declared((BufferIn,)), declared((BufferOut,)),
    ]  # fmt: skip
    assert len({one.hash for one in calls}) == len(calls)
