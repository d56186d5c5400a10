# SPDX-License-Identifier: MIT
"""Declaration: what registers, interrupts, calls and the like have in common, as attributes of a
class body. Each learns its name there, and none is lost without a word."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from itertools import repeat
from types import FrameType
from typing import Any, ClassVar, TypeGuard

from callgate.errors import DeclarationError

_NOTED = "__callgate_declared__"
"""In a class: what its body made, in order."""


class Declaration:
    """Something that a class body declares by keeping it as an attribute."""

    noun: ClassVar[str]
    """What it is, in sentences, with its article."""

    def __init__(self) -> None:
        self.name = ""
        self.owner: type | None = None
        """The class whose body declares it."""
        self.line = _note(self)
        """Where the body makes it."""

    def __set_name__(self, owner: type, name: str) -> None:
        # The first place counts, for one that is assigned twice; the second is refused there.
        if self.owner is None:
            self.owner = owner
            self.name = name


def lost(cls: type) -> Iterator[Declaration]:
    """What the class's own body made and did not keep: something else took its name."""
    return (one for one in vars(cls).get(_NOTED, ()) if one.owner is None)


def is_ordinary(function: object) -> bool:
    """Whether a method is written with def, and is neither async, nor a generator, nor static."""
    return inspect.isfunction(function) and not (
        inspect.iscoroutinefunction(function)
        or inspect.isgeneratorfunction(function)
        or inspect.isasyncgenfunction(function)
    )


def is_number(value: object) -> TypeGuard[int]:
    """Whether it is an int, or one in disguise. True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def verify_numbers(where: str, **numbers: object) -> None:
    """Raise DeclarationError unless all are numbers."""
    for name, value in numbers.items():
        if not is_number(value):
            raise DeclarationError(f"{where}: {name} must be a number, not {value!r}")


def verify_switches(where: str, **switches: object) -> None:
    """Raise DeclarationError unless all are True or False."""
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise DeclarationError(f"{where}: {name} must be True or False, not {value!r}")


def verify_doc(where: str, doc: object) -> None:
    """Raise DeclarationError unless it is text."""
    if not isinstance(doc, str):
        raise DeclarationError(f"{where}: doc must be a text, not {doc!r}")


def takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be given `count` arguments by position."""
    try:
        inspect.signature(function).bind(*repeat(None, count))
    except TypeError:
        return False
    return True


def _note(one: Declaration) -> int:
    """Write a declaration down in the class body that makes it; the line, 0 if there is none."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        frame = frame.f_back  # A function: a class body's frame is none.
    if frame is None or "__qualname__" not in (body := frame.f_locals):
        return 0
    noted: list[Declaration] = body.setdefault(_NOTED, [])
    if noted and not noted[-1].name:
        # By now it has its name; should it lose it, the name can still be told.
        last = noted[-1]
        last.name = next((name for name, value in reversed(body.items()) if value is last), "")
    noted.append(one)
    return frame.f_lineno
