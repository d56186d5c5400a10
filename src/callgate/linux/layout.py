# SPDX-License-Identifier: MIT
"""C structures and unions, written as C writes them: each field and its type, in order.

    @layout
    class kvm_msrs(Structure):
        nmsrs: u32
        pad: u32
        entries: Annotated[Array[kvm_msr_entry], 0]

A number is one of the names below, or `Annotated[int, its C type]`, with a third argument that is
the width of a bit-field. An array is `Annotated[Array[element], length]`; what else stands as a
type is a structure or a union. Type checkers see int, Array and the structure.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from ctypes import (
    Array,
    Structure,
    Union,
    c_int32,
    c_int64,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
)
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin

u8 = Annotated[int, c_uint8]
u16 = Annotated[int, c_uint16]
u32 = Annotated[int, c_uint32]
u64 = Annotated[int, c_uint64]
s32 = Annotated[int, c_int32]
s64 = Annotated[int, c_int64]

T = TypeVar("T", bound=Structure | Union)


def layout(struct: type[T]) -> type[T]:
    """Lay a structure or union out as its annotations say. A name that is no field of it cannot be
    assigned."""
    # Created anew, as dataclasses does, since __slots__ of a class that exists change nothing.
    body = {k: v for k, v in vars(struct).items() if k not in ("__dict__", "__weakref__")}
    body["_fields_"] = list(_fields(struct))
    return _new(struct, struct.__bases__, body)


def _fields(struct: type) -> Iterator[tuple[Any, ...]]:
    for name, hint in inspect.get_annotations(struct, eval_str=True).items():
        kind, *rest = get_args(hint) or [hint]
        if get_origin(kind) is not Array:
            yield name, *(rest or [kind])
            continue
        while get_origin(kind) is Array:
            (kind,) = get_args(kind)
        for length in reversed(rest):
            kind *= length
        yield name, kind


def _new(struct: type[T], bases: tuple[type, ...], body: dict[str, Any]) -> type[T]:
    metaclass: Any = type(struct)
    return cast("type[T]", metaclass(struct.__name__, bases, body | {"__slots__": ()}))


def flexible(struct: type[T], length: int) -> type[T]:
    """`struct` with `length` elements in the flexible array member that ends it.

    What counts them is a field as any other: `flexible(kvm_msrs, 2)(nmsrs=2)`.
    """
    name, array = cast(Any, struct)._fields_[-1]
    return _new(struct, (struct,), {"_fields_": [(name, array._type_ * length)]})


def offset(struct: type[Structure | Union], path: str) -> int:
    """Bytes from the start of a structure to a member of it: `offset(kvm_run, "u.mmio.len")`."""
    at, kind = 0, cast(Any, struct)
    for name in path.split("."):
        at += getattr(kind, name).offset
        kind = dict(each[:2] for each in kind._fields_)[name]
    return at
