# SPDX-License-Identifier: MIT
"""Structures from annotations: laid out as C would, and closed to names that are no fields."""

from ctypes import Array, Structure, Union, addressof, c_uint8, c_uint16, sizeof
from typing import Annotated

import pytest

from callgate.linux.layout import flexible, layout, s32, u8, u16, u32, u64


@layout
class Pair(Union):
    """A union of a number and its halves."""

    whole: u32
    halves: Annotated[Array[c_uint16], 2]


@layout
class Head(Structure):
    """One of each kind."""

    _anonymous_ = ("pair",)
    byte: u8
    low: Annotated[int, c_uint8, 3]
    high: Annotated[int, c_uint8, 5]
    pair: Pair
    signed: s32
    table: Annotated[Array[Array[c_uint16]], 2, 3]
    wide: u64


@layout
class Item(Structure):
    """An element."""

    a: u32
    b: u32


@layout
class List(Structure):
    """Ends in a flexible array."""

    n: u16
    items: Annotated[Array[Item], 0]


def test_fields_lie_where_c_puts_them() -> None:
    fields = ("byte", "pair", "signed", "table", "wide")
    assert [getattr(Head, name).offset for name in fields] == [0, 4, 8, 12, 24]
    assert sizeof(Head) == 32
    head = Head(low=0b101, high=0b10001, whole=0x20001, signed=-1)
    assert bytes(head)[:12] == b"\0\x8d\0\0\x01\0\x02\0\xff\xff\xff\xff"
    assert list(head.pair.halves) == [1, 2]


def test_an_array_of_arrays_has_the_shape_of_c() -> None:
    head = Head()
    head.table[1][2] = 7
    assert (len(head.table), len(head.table[0])) == (2, 3)
    assert bytes(head)[12 + 2 * 5] == 7


def test_a_name_that_is_no_field_cannot_be_assigned() -> None:
    with pytest.raises(AttributeError, match="whale"):
        Head().whale = 1
    with pytest.raises(AttributeError, match="whale"):
        Head(whale=1)
    with pytest.raises(AttributeError, match="m"):
        flexible(List, 2)(m=1)


def test_a_flexible_array_has_as_many_elements_as_are_asked_for() -> None:
    two = flexible(List, 2)(n=2, items=((1, 2), (3, 4)))
    assert isinstance(two, List)
    assert (sizeof(List), sizeof(two), addressof(two.items) - addressof(two)) == (4, 20, 4)
    assert [(item.a, item.b) for item in two.items] == [(1, 2), (3, 4)]
    assert sizeof(flexible(List, 0)) == sizeof(List)


def test_a_layout_keeps_the_name_and_docstring() -> None:
    assert (Head.__name__, Head.__module__, Head.__doc__) == (
        "Head",
        __name__,
        "One of each kind.",
    )


def test_memory_can_be_looked_at_as_a_structure() -> None:
    memory = bytearray(20)
    list_ = flexible(List, 2).from_buffer(memory)
    list_.items[1].b = 0x55
    assert memory[16] == 0x55
