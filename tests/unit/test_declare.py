# SPDX-License-Identifier: MIT
"""A wrong class body is told when the class is defined: class, attribute, rule, in a sentence."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from enum import IntEnum
from typing import Annotated, Any, ClassVar

import pytest

from callgate.call import Call, call, u8, u32, u64
from callgate.device import Device
from callgate.errors import DeclarationError
from callgate.interrupt import Interrupt, Interrupts
from callgate.pci.capability import Capability, PowerManagement, VendorCapability
from callgate.register import Bar, Field, Register
from callgate.spec import MAX_INTERRUPTS

ID = 0x1AF4, 0x10F0


def refused(*words: str) -> Any:
    """Expect a DeclarationError whose sentence has all the words, in this order."""
    return pytest.raises(DeclarationError, match=".*".join(map(re.escape, words)))


def body(name: str = "Bad", /, **attributes: object) -> type[Device]:
    """A class with this body."""
    made: type[Device] = type(name, (Device,), {"id": ID, **attributes})
    return made


# --- BARs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bar", "rule"),
    [
        (lambda: Bar(0, 0x1001), "size must be a power of two, not 0x1001"),
        (lambda: Bar(0, 0), "size must be a power of two, not 0x0"),
        (lambda: Bar(0, -16), "size must be a power of two"),
        (lambda: Bar(0, 8), "size must be 0x10 to 0x80000000 bytes, not 0x8"),
        (lambda: Bar(0, 1 << 32), "size must be 0x10 to 0x80000000 bytes"),
        (lambda: Bar(0, 1 << 41, width=64), "size must be 0x10 to 0x10000000000 bytes"),
        (lambda: Bar(0, 512, "io"), "size must be 0x4 to 0x100 bytes, not 0x200"),
        (lambda: Bar(0, 2, "io"), "size must be 0x4 to 0x100 bytes, not 0x2"),
        (lambda: Bar(6, 4096), "index must be 0 to 5, not 6"),
        (lambda: Bar(-1, 4096), "index must be 0 to 5, not -1"),
        (lambda: Bar(5, 4096, width=64), "index must be 0 to 4, not 5"),
        (lambda: Bar(0, 256, "io", width=64), "width must be 32 or, for memory, 64"),
        (lambda: Bar(0, 4096, width=16), "width must be 32 or, for memory, 64"),  # type: ignore[arg-type]
        (lambda: Bar(0, 4096, "rom"), 'kind must be "memory" or "io", not \'rom\''),  # type: ignore[arg-type]
        (lambda: Bar(0, 256, "io", prefetchable=True), "combines no writes"),
        (lambda: Bar(0, 256, "io", ram=True), "combines no writes"),
        (lambda: Bar(0, 2048, ram=True), "shared memory must be at least 4096 bytes, not 2048"),
        (lambda: Bar("0", 4096), "index must be a number, not '0'"),  # type: ignore[arg-type]
        (lambda: Bar(0, 4096.0), "size must be a number, not 4096.0"),  # type: ignore[arg-type]
        (lambda: Bar(True, 4096), "index must be a number, not True"),
        (lambda: Bar(0, 4096, width=32.0), "width must be 32 or, for memory, 64"),  # type: ignore[arg-type]
        (lambda: Bar(0, 4096, prefetchable="yes"), "prefetchable must be True or False, not 'yes'"),  # type: ignore[arg-type]
        (lambda: Bar(0, 4096, ram=1), "ram must be True or False, not 1"),  # type: ignore[arg-type]
        (lambda: Bar(0, 4096, write_combining=None), "write_combining must be True or False"),  # type: ignore[arg-type]
    ],
)
def test_a_bar_that_cannot_be(bar: Callable[[], Bar], rule: str) -> None:
    with refused("Bad.window", rule):
        body(window=bar())


@pytest.mark.parametrize(
    "bar",
    [
        Bar(0, 16),
        Bar(5, 1 << 31),
        Bar(4, 1 << 40, width=64),
        Bar(0, 4, "io"),
        Bar(0, 256, "io"),
        Bar(0, 4096, ram=True, prefetchable=True),
    ],
    ids=["smallest", "largest 32", "largest 64", "smallest io", "largest io", "ram"],
)
def test_a_bar_at_the_limit_of_a_rule(bar: Bar) -> None:
    assert [one.size for one in body(window=bar).spec.bars] == [bar.size]


def test_two_bars_of_one_index() -> None:
    with refused("Bad.second", "BAR 2 must have one owner, and first has it"):
        body(first=Bar(2, 4096), second=Bar(2, 256, "io"))


def test_a_64_bit_bar_takes_the_next_index_too() -> None:
    with refused("Bad.second", "BAR 3 must have one owner, and first has it"):
        body(first=Bar(2, 4096, width=64), second=Bar(3, 4096))
    with refused("Bad.second", "BAR 3 must have one owner, and first has it"):
        body(first=Bar(3, 4096), second=Bar(2, 4096, width=64))


def test_shared_memory_takes_no_hooks_and_holds_no_registers() -> None:
    with refused("Bad.pixels", "shared memory must do without hooks"):

        class Bad(Device):
            id = ID
            pixels = Bar(0, 4096, ram=True)

            @pixels.on_read
            def look(self, offset: int, size: int) -> int:
                return 0

    with refused("Bad.mode", "must not lie in pixels: it is memory"):
        pixels = Bar(0, 4096, ram=True)
        body(pixels=pixels, mode=Register(0, bar=pixels))


# --- registers and fields -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("register", "rule"),
    [
        (lambda: Register(0, width=12), "Register width must be 8, 16, 32 or 64 bits, not 12"),
        (lambda: Register(0, width="32"), "must be 8, 16, 32 or 64 bits, not '32'"),  # type: ignore[arg-type]
        (lambda: Register(0, access="wo"), "access must be one of r, w, rw, w1c, w1s, not 'wo'"),  # type: ignore[arg-type]
        (lambda: Register(2), "offset must be a multiple of its 4 bytes, not 0x2"),
        (lambda: Register(4, width=64), "offset must be a multiple of its 8 bytes, not 0x4"),
        (lambda: Register(-4), "offset must be a multiple of its 4 bytes, not -0x4"),
        (lambda: Register("0"), "offset must be a number, not '0'"),  # type: ignore[arg-type]
        (lambda: Register(0, reset=1 << 32), "reset must fit 32 bits, and 0x100000000 does not"),
        (lambda: Register(0, width=8, reset=256), "reset must fit 8 bits, and 0x100 does not"),
        (lambda: Register(0, reset=-1), "reset must fit 32 bits, and -0x1 does not"),
        (lambda: Register(0, reset=None), "reset must be a number, not None"),  # type: ignore[arg-type]
        (lambda: Register(0, reset=True), "reset must be a number, not True"),
        (lambda: Register(0, width=32.0), "must be 8, 16, 32 or 64 bits, not 32.0"),  # type: ignore[arg-type]
        (lambda: Register(0, bar=3), "bar must be a Bar of the class, not 3"),  # type: ignore[arg-type]
        (lambda: Register(0, doc=5), "doc must be a text, not 5"),  # type: ignore[arg-type]
        (
            lambda: Register(1 << 40),
            "must end inside the 0x80000000 bytes of a BAR of 32 bits, not at 0x10000000004, or "
            "lie in a Bar that is declared with width=64",
        ),
    ],
)
def test_a_register_that_cannot_be(register: Callable[[], Register], rule: str) -> None:
    with refused("Bad.control", rule):
        body(control=register())


def test_registers_must_not_overlap() -> None:
    with refused("Bad.high must not overlap low: both have byte 0x4 of registers"):
        body(low=Register(0, width=64), high=Register(4))
    with refused("Bad.byte must not overlap word: both have byte 0x3"):
        body(word=Register(0), byte=Register(3, width=8))


def test_the_same_offset_in_two_bars_is_no_overlap() -> None:
    one, two = Bar(0, 4096), Bar(1, 4096)
    spec = body(one=one, two=two, a=Register(0, bar=one), b=Register(0, bar=two)).spec
    assert [spec.bar_of(register).name for register in spec.registers] == ["one", "two"]


def test_a_register_ends_inside_its_bar() -> None:
    window = Bar(0, 16)
    with refused("Bad.last must end inside the 0x10 bytes of window, not at 0x14"):
        body(window=window, last=Register(0x10))


def test_without_a_bar_there_is_one_for_the_registers() -> None:
    small = body(a=Register(0)).spec.bars
    assert [(bar.index, bar.size, bar.name) for bar in small] == [(0, 4096, "registers")]
    assert body(a=Register(0x1FFC)).spec.bars[0].size == 0x2000
    assert body(a=Register(0x2000, width=8)).spec.bars[0].size == 0x4000
    assert body().spec.bars == ()


def test_a_bar_that_the_class_does_not_declare() -> None:
    with refused("Bad.control", "its bar must be declared in the class, as an attribute"):
        body(control=Register(0, bar=Bar(0, 4096)))


@pytest.mark.parametrize(
    ("low", "high"), [(32, None), (-1, None), (0, 32), (5, 4), (-1, 3)], ids=repr
)
def test_a_field_lies_in_its_register(low: int, high: int | None) -> None:
    control = Register(0)
    with refused("Bad.mode", f"bits {low} to", "must lie in the 32 bits of control, low first"):
        body(control=control, mode=Field(control, low, high))


def test_a_field_that_cannot_be() -> None:
    control = Register(0)
    with refused("Bad.mode", "access must be one of", "not 'x'"):
        body(control=control, mode=Field(control, 0, access="x"))  # type: ignore[arg-type]
    with refused("Bad.mode", "its register must be declared in the class"):
        body(mode=Field(Register(0), 0))
    with refused("A Field must be given its Register first, not 3"):
        Field(3, 0)  # type: ignore[arg-type]


def test_what_is_no_fields_bits() -> None:
    def made(*bits: Any, **others: Any) -> None:
        control = Register(0)
        body(control=control, mode=Field(control, *bits, **others))

    for bits, rule in (
        (("0",), "low must be a number, not '0'"),
        ((0.5,), "low must be a number, not 0.5"),
        ((False,), "low must be a number, not False"),
        ((0, "3"), "high must be a number, not '3'"),
        ((0, 1 << 80), "must lie in the 32 bits of control"),
    ):
        with refused("Bad.mode:", rule):
            made(*bits)
    with refused("Bad.mode: doc must be a text, not 5"):
        made(0, doc=5)
    with refused("Bad.mode: access must be one of", "not ''"):
        made(0, access="")


def test_fields_must_not_share_bits() -> None:
    control = Register(0)
    with refused("Bad.second must not share bits with another field of control"):
        body(control=control, first=Field(control, 0, 3), second=Field(control, 3, 4))


def test_a_hook_on_a_read_only_register_would_never_run() -> None:
    with refused("Bad.status", "a read-only register must do without on_write"):

        class Bad(Device):
            id = ID
            status = Register(0, access="r")

            @status.on_write
            def changed(self, value: int) -> None: ...

    class Good(Device):
        id = ID
        status = Register(0, access="r")
        error = Field(status, 0, access="w1c")

        @status.on_write
        def changed(self, value: int) -> None: ...


def test_one_hook_of_a_kind() -> None:
    with refused("Bad.control", "on_write must be used once, and first and second both have it"):

        class Bad(Device):
            id = ID
            control = Register(0)

            @control.on_write
            def first(self, value: int) -> None: ...

            @control.on_write
            def second(self, value: int) -> None: ...


def test_a_decorator_has_no_parentheses() -> None:
    for make in (lambda: Register(0), lambda: Bar(0, 4096), lambda: Field(Register(0), 0)):
        for kind in ("on_read", "on_write"):
            place: Any = make()
            getattr(place, kind)()(lambda self: 0)
            several = {"control": place.register} if isinstance(place, Field) else {}
            with refused(f"Bad.mode: {kind} must be used without parentheses"):
                body(**several, mode=place)


def test_a_fields_hook_that_would_never_run() -> None:
    def changed(self: Any, value: int) -> None: ...

    def look(self: Any) -> int:
        return 0

    control = Register(0)
    still = Field(control, 0, access="r")
    still.on_write(changed)
    with refused("Bad.still must do without on_write, since it is read-only"):
        body(control=control, still=still, changed=changed)
    control = Register(0, access="w")
    start = Field(control, 0)
    start.on_read(look)
    with refused("Bad.start must do without on_read, since it is write-only"):
        body(control=control, start=start, look=look)
    mode = Field(control := Register(0), 0)
    mode.on_read(changed)
    with refused("Bad.mode: on_read must be given a method of (self), not changed("):
        body(control=control, mode=mode)


def test_a_hook_is_a_method() -> None:
    control = Register(0)
    control.on_read(5)  # type: ignore[type-var]
    with refused("Bad.control", "on_read must be given a method, not 5"):
        body(control=control)
    with refused("Bad.control", "on_write must be given a method, not <callgate.call.Call"):

        class Bad(Device):
            id = ID
            control = Register(0)

            @control.on_write
            @call
            def changed(self, value: u32) -> None: ...


def test_a_hook_takes_what_it_is_given() -> None:
    def wrong(method: Any, *, read: bool, bar: bool = False) -> dict[str, Any]:
        place = Bar(0, 4096) if bar else Register(0)
        (place.on_read if read else place.on_write)(method)
        return {"control": place}

    def alone(self: Any) -> int:
        return 0

    def value(self: Any, value: int) -> None: ...

    def three(self: Any, offset: int, size: int) -> int:
        return 0

    def several(self: Any, *, more: int) -> None: ...

    async def later(self: Any, value: int) -> None: ...

    with refused("Bad.control: on_write must be given a method of (self, value), not alone(self"):
        body(**wrong(alone, read=False))
    with refused("Bad.control: on_read must be given a method of (self), not value(self", "value"):
        body(**wrong(value, read=True))
    with refused("on_read must be given a method of (self, offset, size), not alone"):
        body(**wrong(alone, read=True, bar=True))
    with refused("on_write must be given a method of (self, offset, size, value), not three"):
        body(**wrong(three, read=False, bar=True))
    with refused("on_write must be given a method of (self, value), not several"):
        body(**wrong(several, read=False))
    for method in (later, staticmethod(value)):
        with refused("Bad.control: on_write must be given an ordinary method", "is async, a gen"):
            body(**wrong(method, read=False))
    with refused("Sub.control: on_write must be given a method of (self, value), not switch(self"):

        class Sub(Base):
            def switch(self) -> None: ...  # type: ignore[override]


def test_a_read_hook_on_a_write_only_register_would_be_in_vain() -> None:
    with refused("Bad.start: a write-only register must do without on_read: the guest reads zeros"):

        class Bad(Device):
            id = ID
            start = Register(0, access="w")

            @start.on_read
            def look(self) -> int:
                return 1

    class Good(Device):
        id = ID
        start = Register(0, access="w")
        busy = Field(start, 0, access="r")

        @start.on_read
        def look(self) -> int:
            return 3

    assert Good().register_read(0, 0, 4) == 1


def test_a_field_has_a_reset_of_its_own() -> None:
    class Control(Device):
        id = ID
        control = Register(0, reset=0x80)
        enable = Field(control, 0, reset=1)
        mode = Field(control, 4, 6, reset=5)
        speed = Field(control, 7)
        rest = Field(control, 8, 15)

    device = Control()
    assert device.control == 0xD1
    assert (device.enable, device.mode, device.speed) == (1, 5, 1)
    assert [field.reset for field in Control.spec.fields] == [1, 5, 1, 0]
    assert (Control.control.reset, Control.speed.reset) == (0x80, None)  # As they were declared.

    class Other(Control):
        control = Register(0)
        enable = Field(Control.control, 0, reset=0)

    assert Other().control == 0x50
    assert Control().control == 0xD1
    device.register_write(0, 0, 4, 0)
    device.do_reset()
    assert device.control == 0xD1


def test_a_fields_reset_that_cannot_be() -> None:
    def made(reset: Any) -> type[Device]:
        control = Register(0, reset=0x30)
        return body(control=control, mode=Field(control, 4, 6, reset=reset))

    with refused("Bad.mode: reset must fit 3 bits, and 0x8 does not"):
        made(8)
    with refused("Bad.mode: reset must fit 3 bits, and -0x1 does not"):
        made(-1)
    with refused("Bad.mode: reset must be a number, not '1'"):
        made("1")
    with refused("Bad.mode: reset must be 0x3 as control's reset has it, or given once, and it is"):
        made(1)
    assert made(3)().register_read(0, 0, 4) == 0x30


def test_a_method_may_be_hook_and_call() -> None:
    class Both(Device):
        id = ID
        control = Register(0)

        @call
        @control.on_write
        def changed(self, value: u32) -> None: ...

    assert [one.name for one in Both.spec.calls] == ["changed"]
    assert Both.spec.registers[0].write_hook is not None


def test_hooks_belong_to_the_class_body() -> None:
    device = body(control=Register(0), window=Bar(0, 4096))
    for name in ("control", "window"):
        with refused(f"Bad.{name}", "on_write must be used in the body of Bad", "overrides"):
            getattr(device, name).on_write(print)


# --- calls --------------------------------------------------------------------------------------


def test_an_argument_must_have_a_width() -> None:
    with refused("Bad.add: parameter a must have a width: one of u8, u16", "not int"):

        class Bad(Device):
            id = ID

            @call
            def add(self, a: int) -> None: ...


@pytest.mark.parametrize(
    ("annotation", "shown"),
    [
        (int, "int"),
        (float, "float"),
        (str, "str"),
        (bytearray, "bytearray"),
        (list[int], "list"),
        (u32 | None, "Optional"),
        (Annotated[int, "32 bits"], "Annotated"),
        (Annotated[float, u32], "Annotated"),
        (Any, "Any"),
    ],
)
def test_other_types_than_the_abi_has(annotation: Any, shown: str) -> None:
    def take(self, a): ...  # type: ignore[no-untyped-def]

    def give(self): ...  # type: ignore[no-untyped-def]

    take.__annotations__ = {"a": annotation}
    give.__annotations__ = {"return": annotation}
    with refused("Bad.take: parameter a must have a width", f"not {shown}"):
        body(take=call(take))
    with refused("Bad.give: its result must have a width", f"not {shown}"):
        body(give=call(give))


def test_an_argument_without_annotation() -> None:
    def take(self, a): ...  # type: ignore[no-untyped-def]

    with refused("Bad.take: parameter a must have a width", "or an IntEnum, not nothing"):
        body(take=call(take))


def test_annotations_that_cannot_be_evaluated() -> None:
    with refused("Bad.take", "its annotations must be names of", "'u128' is none"):

        class Bad(Device):
            id = ID

            @call
            def take(self, a: u128) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    def broken(self, a: 1 / 0) -> None: ...  # type: ignore[no-untyped-def, valid-type]

    with refused("Bad.broken", "its annotations must be types", "ZeroDivisionError"):
        body(broken=call(broken))


def test_names_of_the_class_body_are_found() -> None:
    class Modal(Device):
        id = ID

        class Mode(IntEnum):
            FAST = 1

        @call
        def switch(self, mode: Mode) -> Mode:
            return mode

    class Sub(Modal):
        """Its body does not have the name, but its base's does."""

    assert Sub.spec.calls[0].text == "switch(u32)->u32"


def test_parameters_are_ordinary_ones() -> None:
    def many(self, *a: u8) -> None: ...  # type: ignore[no-untyped-def]

    def named(self, *, a: u8) -> None: ...  # type: ignore[no-untyped-def]

    def rest(self, **a: u8) -> None: ...  # type: ignore[no-untyped-def]

    def nothing() -> None: ...

    for function in (many, named, rest):
        with refused(f"Bad.{function.__name__}", "a", "must be an ordinary parameter"):
            body(**{function.__name__: call(function)})
    with refused("Bad.nothing must be a method: its first parameter is self"):
        body(nothing=call(nothing))


def test_a_parameter_has_no_default() -> None:
    with refused("Bad.add: parameter b must have no default value: a guest gives every argument"):

        class Bad(Device):
            id = ID

            @call
            def add(self, a: u8, b: u8 = 3) -> u8:
                return a + b


def test_a_call_that_returns_nothing_says_none() -> None:
    with refused("Bad.add must return None, one value or a tuple of some", "write -> None"):

        class Bad(Device):
            id = ID

            @call
            def add(self) -> tuple[()]:
                return ()


def test_a_call_is_an_ordinary_method() -> None:
    async def later(self) -> u8: ...  # type: ignore[no-untyped-def, empty-body]

    def several(self) -> u8:  # type: ignore[no-untyped-def, misc]
        yield 1

    for function in (later, several, staticmethod(several), len):
        name = function.__name__
        with refused(f"Bad.{name} must be an ordinary method to be a call"):
            body(**{name: call(function)})
    with refused("Bad.value must be an ordinary method to be a call", "nor a property"):

        class Bad(Device):
            id = ID

            @call  # type: ignore[prop-decorator]
            @property
            def value(self) -> u8:
                return 1


def test_two_calls_of_one_name_in_a_body() -> None:
    with refused("Bad.add must be declared once: line", "makes it a call, and what comes later"):

        class Bad(Device):
            id = ID

            @call
            def add(self, a: u8) -> u8:
                return a

            @call  # type: ignore[no-redef]
            def add(self, a: u64) -> u64:  # noqa: F811
                return a


def test_a_declaration_is_not_lost_by_accident() -> None:
    with refused("Bad.f must be declared once: line", "makes it a Register, and what comes later"):

        class Bad(Device):
            id = ID
            f = Register(0)

            @call  # type: ignore[no-redef]
            def f(self) -> None: ...  # noqa: F811

    with refused("Bad2.f must be declared once: line", "makes it a call, and what comes later"):

        class Bad2(Device):
            id = ID

            @call
            def f(self) -> None: ...

            def f(self) -> None: ...  # type: ignore[no-redef]  # noqa: F811

    with refused("Bad3: what line", "declares, a Register, must be an attribute of the class"):

        class Bad3(Device):
            id = ID
            f = Register(0)

            def f(self) -> None: ...  # type: ignore[no-redef]  # noqa: F811

    with refused("Bad4: what line", "declares, a Bar, must be an attribute", "nothing keeps it"):

        class Bad4(Device):
            id = ID
            windows = (Bar(0, 4096), Bar(1, 4096))

    with refused("Mixin.done must be declared once: line", "makes it an Interrupt"):

        class Mixin:
            done = Interrupt()
            other = Interrupt()
            done = 5  # type: ignore[assignment]  # noqa: PIE794

        class Bad5(Mixin, Device):
            id = ID


def test_what_functions_make_for_a_class_body_counts_as_its_own() -> None:
    def bank(number: int) -> Register:
        return Register(4 * number)

    class Banks(Device):
        id = ID
        a, b = bank(0), bank(1)
        for number in range(2, 4):
            locals()[f"r{number}"] = bank(number)

        class Inner(Device):
            id = ID
            c = Register(0)
            several = Interrupts(2)

    assert [one.name for one in Banks.spec.registers] == ["a", "b", "r2", "r3"]


def test_two_calls_of_one_name_by_the_parameter() -> None:
    with refused("Bad.", "add", "must be declared once"):

        class Bad(Device):
            id = ID

            @call(one_way=True)
            def add(self) -> None: ...

            @call(name="other")  # type: ignore[no-redef]
            def add(self) -> None: ...  # noqa: F811

    with refused("Bad2.plus: two calls must not have one name", "add is called 'add' too"):

        class Bad2(Device):
            id = ID

            @call
            def add(self, a: u8) -> u8:
                return a

            @call(name="add")
            def plus(self, a: u64) -> u64:
                return a


@pytest.mark.parametrize("name", ["", "a b", "1st", "a" * 40, "ä" * 20, 5])
def test_a_calls_name_fits_the_directory(name: Any) -> None:
    def add(self) -> None: ...  # type: ignore[no-untyped-def]

    with refused("Bad.add: the call's name must be an identifier of at most 39 bytes, not"):
        body(add=call(name=name)(add))


def test_too_many_slots() -> None:
    def thirteen(  # type: ignore[no-untyped-def]
        self,
        a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8,
        h: u8, i: u8, j: u8, k: u8, m: u8, n: u8,
    ) -> None: ...  # fmt: skip

    with refused("Bad.thirteen must need at most 12 argument slots, not 13"):
        body(thirteen=call(thirteen))

    results: Any = tuple[(u8,) * 13]  # type: ignore[misc]

    def give(self): ...  # type: ignore[no-untyped-def]

    give.__annotations__ = {"return": results}
    with refused("Bad.give must need at most 12 result slots, not 13"):
        body(give=call(give))

    give.__annotations__ = {"return": tuple[(u8,) * 12]}  # type: ignore[misc]
    assert body(give=call(give)).spec.calls[0].result_slots == 12


def test_a_buffer_takes_two_slots_and_is_no_result() -> None:
    from callgate.call import Buffer, BufferIn

    def take(self, a, b, c, d, e, f, g): ...  # type: ignore[no-untyped-def]

    take.__annotations__ = dict.fromkeys("abcdefg", BufferIn) | {"return": None}
    with refused("Bad.take must need at most 12 argument slots, not 14 (a Buffer takes two)"):
        body(take=call(take))

    def give(self): ...  # type: ignore[no-untyped-def]

    for annotation in (Buffer, tuple[u8, BufferIn]):
        give.__annotations__ = {"return": annotation}
        with refused("Bad.give must return numbers or bytes"):
            body(give=call(give))


def test_a_call_says_what_it_returns() -> None:
    with refused('Bad.half must say what it returns: write "-> None", or the type of its result'):

        class Bad(Device):
            id = ID

            @call
            def half(self, a: u8):  # type: ignore[no-untyped-def]
                return a // 2


def test_one_way_is_true_or_false() -> None:
    def shout(self: Any) -> None: ...

    with refused("Bad.shout: one_way must be True or False, not 'x'"):
        body(shout=call(one_way="x")(shout))  # type: ignore[call-overload]


def test_one_way_returns_nothing() -> None:
    with refused("Bad.shout must return None, since it is declared one_way"):

        class Bad(Device):
            id = ID

            @call(one_way=True)
            def shout(self) -> u8:
                return 1


def test_an_enumeration_fits_its_width() -> None:
    class Wide(IntEnum):
        SMALL = 1
        BIG = 1 << 32

    class Signed(IntEnum):
        LESS = -1

    def take(self, a): ...  # type: ignore[no-untyped-def]

    for kind, wider in ((Wide, "u64"), (Signed, "i64")):
        take.__annotations__ = {"a": kind}
        with refused(
            "Bad.take: parameter a:", "must fit u32", f"Annotated[{kind.__name__}, {wider}]"
        ):
            body(take=call(take))
    take.__annotations__ = {"a": Annotated[Wide, u8]}
    with refused("Wide.BIG must fit u8"):
        body(take=call(take))
    take.__annotations__ = {"a": Annotated[Wide, u64], "return": None}
    assert body(take=call(take)).spec.calls[0].text == "take(u64)->()"


# --- the class's own numbers ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attribute", "value", "rule"),
    [
        ("id", 0x1AF4, "must be (vendor, device), not 6900"),
        ("id", (0x1AF4,), "must be (vendor, device)"),
        ("id", [0x1AF4, 1], "must be (vendor, device)"),
        ("id", (0x1AF4, 0x10000), "must be a number of 16 bits, not 65536"),
        ("id", (-1, 1), "must be a number of 16 bits, not -1"),
        ("id", ("1af4", 1), "must be a number of 16 bits, not '1af4'"),
        ("id", (0xFFFF, 1), "must not have the vendor 0xffff: it means no device"),
        ("subsystem", (0, 1 << 16), "must be a number of 16 bits"),
        ("class_code", 1 << 24, "must be a number of 24 bits"),
        ("revision", 256, "must be a number of 8 bits"),
        ("version", 1 << 32, "must be a number of 32 bits"),
        ("version", "1.0", "must be a number of 32 bits, not '1.0'"),
        ("frames", 0, "must be 1 to 1024, not 0"),
        ("frames", 1025, "must be 1 to 1024, not 1025"),
        ("msi", 4, "must be True or False, not 4"),
        ("msix", None, "must be True or False, not None"),
        ("msi_masking", "yes", "must be True or False, not 'yes'"),
        ("frame_size", 128, "must be a power of two, 256 to 1 MiB, not 128"),
        ("frame_size", 3000, "must be a power of two, 256 to 1 MiB, not 3000"),
        ("frame_size", 1 << 21, "must be a power of two, 256 to 1 MiB"),
        ("name", "two words", "must be an identifier of at most 39 bytes, not 'two words'"),
        ("name", "a" * 40, "must be an identifier of at most 39 bytes"),
        ("name", 5, "must be an identifier of at most 39 bytes, not 5"),
        ("frames", True, "must be a number of 16 bits, not True"),
        ("id", (True, 2), "must be a number of 16 bits, not True"),
        ("revision", 1.0, "must be a number of 8 bits, not 1.0"),
        ("abi", "not a uuid", "must be a UUID's text, not 'not a uuid'"),
        ("abi", 5, "must be a UUID's text, not 5"),
    ],
)
def test_the_numbers_of_a_class(attribute: str, value: object, rule: str) -> None:
    with refused(f"Bad.{attribute}", rule):
        body(**{attribute: value})


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (3, "must be a tuple, not 3"),
        ([PowerManagement()], "must be a tuple, not [<"),
        ((3,), "must hold Capability objects (callgate.pci.capability), not 3"),
        ((PowerManagement,), "must hold Capability objects (callgate.pci.capability), not <class"),
        ((Capability(0x11, bytes(10)),), "must leave out the MSI-X capability: Interrupt() makes"),
        ((Capability(0x05, bytes(12)),), "must leave out the MSI capability: msi = True makes it"),
        ((PowerManagement(), PowerManagement()), "must not hold two with the id 0x01"),
    ],
)
def test_capabilities_that_cannot_be(given: object, rule: str) -> None:
    with refused("Bad.capabilities", rule):
        body(capabilities=given)


def test_two_capabilities_of_the_vendors_own() -> None:
    body(capabilities=(VendorCapability(b"a"), VendorCapability(b"b")))


def test_the_functions_own_bars_have_room() -> None:
    six = {f"bar{index}": Bar(index, 4096) for index in range(6)}

    def ping(self) -> None: ...  # type: ignore[no-untyped-def]

    assert len(body(**six).spec.bars) == 6
    with refused("Bad must leave 1 of the 6 BARs free for its MSI-X table, and bar0, bar1"):
        body(**{name: Bar(bar.index, 4096) for name, bar in six.items()}, done=Interrupt())
    with refused("must leave 2 of the 6 BARs free for its MSI-X table and gate", "take 5"):
        wide = {f"wide{index}": Bar(index, 4096, width=64) for index in (0, 2)}
        body(**wide, last=Bar(4, 4096), ping=call(ping))
    few = {f"bar{index}": Bar(index, 4096) for index in range(5)}
    with refused("must leave 2 of the 6 BARs free"):
        body(**few, ping=call(ping))
    few = {f"bar{index}": Bar(index, 4096) for index in range(5)}
    body(**few, ping=call(ping), msix=False)
    six = {f"bar{index}": Bar(index, 4096) for index in range(6)}
    body(**six, done=Interrupt(), msix=False)


@pytest.mark.parametrize(
    "name",
    ["_read", "_write", "_register_values", "plug_in", "memory", "gate", "lock", "after", "spec"],
)
def test_what_every_device_has_for_itself(name: str) -> None:
    with refused(f"Bad.{name} must have another name, since every Device has '{name}' for itself"):
        body(**{name: lambda self: None})


def test_what_a_model_may_override() -> None:
    class Mixin:
        def _read(self) -> None: ...

    class Good(Device, Mixin):  # type: ignore[misc]  # What comes last hides nothing of Device.
        id = ID

        def register_read(self, bar: int, offset: int, size: int) -> int:
            return 0

    assert Good().register_read(0, 0, 4) == 0
    with refused("Mixin._read must have another name"):
        type("Bad", (Mixin, Device), {"id": ID})


@pytest.mark.parametrize("name", ["attach", "reset", "detach"])
def test_the_life_cycle_takes_no_arguments(name: str) -> None:
    async def later(self: Any) -> None: ...

    for method in (lambda self, hard: None, lambda: None, later, 5):
        with refused(f"Bad.{name} must be a method of (self), as Device has it"):
            body(**{name: method})


def test_a_device_must_have_an_id() -> None:
    class Mixin(Device):
        """May be declared, to be inherited."""

    with refused("Mixin.id must be given"):
        Mixin()


def test_names_and_uuid_follow_from_the_class() -> None:
    names = {"Adder": "adder", "NVMeDisk": "nv_me_disk", "Port2Hub": "port2_hub", "UART": "uart"}
    for name, expected in names.items():
        assert body(name).spec.name == expected
    assert body().spec.uuid == body().spec.uuid
    assert body().spec.uuid != body(id=(0x1AF4, 0x10F1)).spec.uuid
    assert body().spec.uuid != body(name="other").spec.uuid
    text = "00112233-4455-6677-8899-aabbccddeeff"
    assert body(abi=text).spec.uuid == uuid.UUID(text)


def test_the_doc_of_an_interrupt_is_text() -> None:
    with refused("Bad.done: doc must be a text, not 5"):
        body(done=Interrupt(doc=5))  # type: ignore[arg-type]
    with refused("Bad.queues: doc must be a text, not None"):
        body(queues=Interrupts(2, None))  # type: ignore[arg-type]
    with refused("Interrupts must be 1 or more, not True"):
        Interrupts(True)


def test_too_many_interrupts() -> None:
    with refused("Bad must declare at most 2047 interrupts, not 2048"):
        body(**{f"i{number}": Interrupt() for number in range(MAX_INTERRUPTS + 1)})
    spec = body(**{f"i{number}": Interrupt() for number in range(MAX_INTERRUPTS)}).spec
    assert [one.index for one in spec.interrupts] == list(range(MAX_INTERRUPTS))


@pytest.mark.parametrize(
    "name", ["reset", "memory", "lock", "version", "id", "spec", "_register_values"]
)
def test_a_name_that_every_device_has(name: str) -> None:
    for one in (Register(0), Interrupt()):
        attributes: dict[str, Any] = {"id": ID, name: one}
        with pytest.raises(DeclarationError, match=rf"Bad\.{name}"):
            type("Bad", (Device,), attributes)


def test_a_call_of_such_a_name_is_given_it_for_the_guest_alone() -> None:
    with refused("Bad.reset must have another name", "@call(name=...) says what the guest sees"):

        class Bad(Device):
            id = ID

            @call
            def reset(self) -> None: ...

    class Good(Device):
        id = ID

        @call(name="reset")
        def restart(self) -> None: ...

    assert [one.name for one in Good.spec.calls] == ["reset"]


def test_one_object_is_one_declaration() -> None:
    shared = Register(0)
    with refused("Bad.b must be a Register of its own: Bad.a is the same"):
        body(a=shared, b=shared)
    interrupt = Interrupt()
    first = body("First", done=interrupt)
    with refused("Bad.ready must be an Interrupt of its own: First.done is the same"):
        body(ready=interrupt)
    assert first.spec.interrupts[0].name == "done"


# --- inheritance ----------------------------------------------------------------------------------


class Base(Device):
    id = ID
    control = Register(0x00, reset=7)
    enable = Field(control, 0)
    mode = Field(control, 1, 3)
    data = Register(0x04, access="r")
    done = Interrupt()

    log: ClassVar[list[str]] = []

    @control.on_write
    def switch(self, value: int) -> None:
        self.log.append(f"base {value}")

    @call
    def add(self, a: u8, b: u8) -> u8:
        return a + b

    @call
    def half(self, a: u8) -> u8:
        return a // 2


def names(device: type[Device]) -> list[list[str]]:
    spec = device.spec
    return [
        [one.name for one in kind]
        for kind in (spec.registers, spec.fields, spec.interrupts, spec.calls)
    ]


BASE_NAMES = [["control", "data"], ["enable", "mode"], ["done"], ["add", "half"]]


def test_a_subclass_inherits_and_adds() -> None:
    class Sub(Base):
        status = Register(0x08)
        busy = Field(Base.control, 4, access="r")
        failed = Interrupt()

        @call
        def double(self, a: u8) -> u8:
            return a * 2

    assert names(Sub) == [
        ["control", "data", "status"],
        ["enable", "mode", "busy"],
        ["done", "failed"],
        ["add", "half", "double"],
    ]
    assert [one.index for one in Sub.spec.interrupts] == [0, 1]
    sub = Sub()
    sub.register_write(0, 0, 4, 0x1F)
    assert sub.control == 0xF  # `busy` is read-only for the guest here ...
    base = Base()
    base.register_write(0, 0, 4, 0x1F)
    assert base.control == 0x1F  # ... and does not exist there.
    assert names(Base) == BASE_NAMES


def test_a_register_may_be_declared_again() -> None:
    class Sub(Base):
        control = Register(0x10, width=8, reset=3, access="w1c")

    sub = Sub()
    assert (sub.control, sub.enable, sub.mode) == (3, 1, 1)
    sub.register_write(0, 0x10, 1, 1)  # The base's fields take the access kind of this register.
    assert sub.control == 2
    assert names(Sub) == BASE_NAMES
    assert (Base().control, Base.spec.registers[0].offset) == (7, 0)


def test_fields_of_the_base_must_fit_a_register_that_is_declared_again() -> None:
    with refused("Sub.far: bits 9 to 9 must lie in the 8 bits of control"):

        class Wide(Base):
            far = Field(Base.control, 9)

        class Sub(Wide):
            control = Register(0x00, width=8)


def test_a_field_may_be_declared_again() -> None:
    class Sub(Base):
        enable = Field(Base.control, 0, access="w1c")

    sub = Sub()
    sub.register_write(0, 0, 4, 1)
    assert (sub.control, Base().control) == (0, 7)
    base = Base()
    base.register_write(0, 0, 4, 1)
    assert base.control == 1


def test_a_bar_may_be_declared_again() -> None:
    class Small(Device):
        id = ID
        window = Bar(0, 16)
        a = Register(0, bar=window)

    class Big(Small):
        window = Bar(2, 4096)
        b = Register(0x20, bar=window)
        c = Register(0x40, bar=Small.window)

    assert [(bar.index, bar.size) for bar in Big.spec.bars] == [(2, 4096)]
    big = Big()
    for name, offset in (("a", 0), ("b", 0x20), ("c", 0x40)):
        big.register_write(2, offset, 4, offset + 1)
        assert getattr(big, name) == offset + 1
    assert Small.spec.bars[0].size == 16


def test_a_hook_is_overridden_as_any_method() -> None:
    class Sub(Base):
        def switch(self, value: int) -> None:
            super().switch(value)
            self.log.append(f"sub {value}")

    Base.log.clear()
    Sub().register_write(0, 0, 4, 1)
    Base().register_write(0, 0, 4, 2)
    assert Base.log == ["base 1", "sub 1", "base 2"]
    with refused("Bad.switch must be a method: it is a hook in Base"):
        type("Bad", (Base,), {"switch": 5})


def test_hooks_of_one_name_stay_apart() -> None:
    class Sloppy(Device):
        id = ID
        a = Register(0)
        b = Register(4)
        log: ClassVar[list[str]] = []

        @a.on_write
        def _(self, value: int) -> None:
            self.log.append("a")

        @b.on_write
        def _(self, value: int) -> None:
            self.log.append("b")

    Sloppy().register_write(0, 0, 8, 0)
    assert Sloppy.log == ["a", "b"]


def test_a_call_may_be_declared_again_with_another_signature() -> None:
    class Sub(Base):
        @call
        def add(self, a: u64, b: u64) -> u64:
            return a + b

    assert [one.text for one in Sub.spec.calls] == ["add(u64,u64)->u64", "half(u8)->u8"]
    assert [one.text for one in Base.spec.calls] == ["add(u8,u8)->u8", "half(u8)->u8"]


def test_a_call_is_not_lost_by_accident() -> None:
    with refused("Sub.add must be a call, with @call again, as it is in its base, or None"):

        class Sub(Base):
            def add(self, a: int, b: int) -> int:
                return 0

    with refused("Sub2.data must be a Register as it is in its base, or None to take it away"):

        class Sub2(Base):
            data = 5


def test_none_takes_a_declaration_away() -> None:
    class Sub(Base):
        add = None  # type: ignore[assignment]
        data = None  # type: ignore[assignment]
        done = None  # type: ignore[assignment]

    assert names(Sub) == [["control"], ["enable", "mode"], [], ["half"]]
    assert Sub().register_read(0, 4, 4) == 0xFFFF_FFFF
    assert names(Base) == BASE_NAMES
    with refused("Bad.enable", "its register must be declared in the class"):
        type("Bad", (Base,), {"control": None})


def test_interrupts_of_several_bases_have_indices_of_their_own() -> None:
    class Ticks(Device):
        tick = Interrupt()

    class Alarms(Device):
        alarm = Interrupt()

    class Clock(Ticks, Alarms):
        id = ID

    assert [(one.name, one.index) for one in Clock.spec.interrupts] == [("alarm", 0), ("tick", 1)]
    assert Ticks.spec.interrupts[0].index == 0
    clock = Clock()
    assert (clock.alarm.index, clock.tick.index) == (0, 1)


def test_python_resolves_what_several_bases_declare() -> None:
    class Left(Base):
        """Overrides nothing."""

    class Right(Base):
        data = Register(0x20)

    class Both(Left, Right):
        pass

    assert Both.data is Right.data
    assert [register.offset for register in Both.spec.registers] == [0, 0x20]


def test_a_class_shows_its_declarations_and_an_object_its_values() -> None:
    assert isinstance(Base.control, Register)
    assert isinstance(Base.enable, Field)
    assert isinstance(Base.done, Interrupt)
    assert isinstance(Base.__dict__["add"], Call)
    base = Base()
    assert (base.control, base.enable, base.mode) == (7, 1, 3)
    assert base.add(2, 3) == 5
    assert str(base) == "base"
