# SPDX-License-Identifier: MIT
"""Calls: typed methods of a device that a guest reaches by a vector (docs/abi.md, 4 and 5).

    @call
    def add(self, a: u64, b: u64) -> u64: ...

The annotations are the signature. From them follow the slots a driver fills, the directory's
entry, the C wrapper, and the stub that checks what a guest sent before the method sees it.
"""

from __future__ import annotations

import enum
import hashlib
import inspect
import operator
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar, overload

from callgate.declaration import Declaration, is_ordinary, verify_switches
from callgate.errors import DeclarationError, DmaError, NoView
from callgate.gate.abi import (
    FRAME,
    MAX_REGISTER_VALUES,
    MAX_VALUES,
    NAME_LENGTH,
    PAYLOAD_ALIGN,
    CallFlag,
    Status,
    round_up,
)
from callgate.report import ResultMisfit
from callgate.threads import ENTRY

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    from callgate.device import Device, Memory

MAX_U64 = (1 << 64) - 1
F = TypeVar("F", bound=Callable[..., Any])


# --- types -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scalar:
    """An integer of `bits` bits in one slot, sign- or zero-extended; `values` limits an enum."""

    name: str
    bits: int
    signed: bool
    enum: type[enum.IntEnum] | None = None
    slots = 1

    @property
    def low(self) -> int:
        """Smallest value."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """Largest value."""
        return (1 << (self.bits - self.signed)) - 1


@dataclass(frozen=True)
class Payload:
    """`bytes` in the frame's payload: one slot, offset in the low half, length in the high."""

    name: str = "bytes"
    slots = 1


class Direction(enum.Enum):
    """Who writes a buffer: `IN` the guest, `OUT` the device, `INOUT` both."""

    IN = "in"
    OUT = "out"
    INOUT = "inout"


@dataclass(frozen=True)
class BufferType:
    """A range of guest memory: two slots, GPA and length."""

    direction: Direction
    slots = 2

    @property
    def name(self) -> str:
        """As the signature text writes it."""
        return self.direction.value


Type: TypeAlias = Scalar | Payload | BufferType


class Buffer:
    """A range of guest memory that a call got as an argument; it was checked when the call began.

    `gpa` and `len(buffer)` are the guest's. `view` is the guest's memory itself, without a copy:
    read-only for direction `in`. It is valid while the handler runs. Where the VMM does not share
    its memory, it is a copy, which is written back when the handler returns.
    """

    __slots__ = ("_copy", "_memory", "direction", "gpa", "length")

    def __init__(self, memory: Memory, gpa: int, length: int, direction: Direction) -> None:
        self._memory = memory
        self.gpa = gpa
        self.length = length
        self.direction = direction
        self._copy: bytearray | None = None

    def __len__(self) -> int:
        return self.length

    @property
    def view(self) -> memoryview:
        """The guest's bytes. Raises DmaError when the guest's memory map has changed."""
        write = self.direction is not Direction.IN
        try:
            return self._memory.map(self.gpa, self.length, write=write)
        except NoView:
            if self._copy is None:
                self._copy = bytearray(self._memory.read(self.gpa, self.length))
            view = memoryview(self._copy)
            return view if write else view.toreadonly()

    def put_back(self) -> None:
        """Write a copy back, if there is one: the handler has returned. Raises DmaError."""
        if self._copy is not None:
            self._memory.write(self.gpa, self._copy)

    def array(self, dtype: DTypeLike = "u1") -> NDArray[Any]:
        """The same bytes as a NumPy array of `dtype`, zero-copy (needs the extra `numpy`).

        Raises ModuleNotFoundError without it, else as `view` does.
        """
        try:
            import numpy
        except ModuleNotFoundError as error:
            if error.name != "numpy":
                raise
            raise ModuleNotFoundError(
                'Buffer.array needs NumPy: pip install "callgate[numpy]"', name="numpy"
            ) from None
        return numpy.frombuffer(self.view, dtype)


u8 = Annotated[int, Scalar("u8", 8, False)]
u16 = Annotated[int, Scalar("u16", 16, False)]
u32 = Annotated[int, Scalar("u32", 32, False)]
u64 = Annotated[int, Scalar("u64", 64, False)]
i8 = Annotated[int, Scalar("i8", 8, True)]
i16 = Annotated[int, Scalar("i16", 16, True)]
i32 = Annotated[int, Scalar("i32", 32, True)]
i64 = Annotated[int, Scalar("i64", 64, True)]
BufferIn = Annotated[Buffer, Direction.IN]
BufferOut = Annotated[Buffer, Direction.OUT]
BufferInOut = Annotated[Buffer, Direction.INOUT]

BOOL = Scalar("bool", 1, False)
_U32 = Scalar("u32", 32, False)
_U64 = Scalar("u64", 64, False)


def _type_of(annotation: Any, where: str) -> Type:
    """The wire type that an annotation means; DeclarationError when it has no width."""
    shown = getattr(annotation, "__name__", None) or repr(annotation)
    if typing.get_origin(annotation) is Annotated:
        base, *notes = typing.get_args(annotation)
        for note in notes:
            if typing.get_origin(note) is Annotated:
                note = typing.get_args(note)[1]
            if isinstance(note, Scalar) and note.name != "bool":
                if isinstance(base, type) and issubclass(base, enum.IntEnum):
                    return _enum_type(base, note, where)
                if base is int:
                    return note
            if isinstance(note, Direction) and base is Buffer:
                return BufferType(note)
        annotation = base  # The notes are somebody else's.
    if annotation is bool:
        return BOOL
    if annotation is bytes:
        return Payload()
    if annotation is Buffer:
        return BufferType(Direction.INOUT)
    if isinstance(annotation, type) and issubclass(annotation, enum.IntEnum):
        return _enum_type(annotation, _U32, where)
    raise DeclarationError(
        f"{where} must have a width: one of u8, u16, u32, u64, i8, i16, i32, i64, bool, bytes, "
        f"Buffer or an IntEnum, not {'nothing' if annotation is None else shown}"
    )


def _enum_type(cls: type[enum.IntEnum], scalar: Scalar, where: str) -> Scalar:
    result = Scalar(scalar.name, scalar.bits, scalar.signed, cls)
    for member in cls:
        if not result.low <= member <= result.high:
            other = "i64" if min(cls) < 0 else "u64"
            raise DeclarationError(
                f"{where}: {cls.__name__}.{member.name} must fit {scalar.name}, and {member.value} "
                f"does not; write Annotated[{cls.__name__}, {other}] for another width"
            )
    return result


# --- the declaration ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """One argument of a call."""

    name: str
    type: Type


class Call(Declaration):
    """What `@call` makes of a method. `device.add(2, 40)` in Python still calls the method itself.

    After the class is defined: `parameters`, `results`, `text` (the signature text), `hash`,
    `flags`, `arguments` and `result_slots` (slot counts). `attribute` is the method's name, `name`
    what the guest sees.
    """

    noun = "a call"

    def __init__(self, function: Callable[..., Any], *, one_way: bool, name: str | None) -> None:
        super().__init__()
        self.function = function
        self.attribute = getattr(function, "__name__", "")
        self.name = self.attribute if name is None else name
        self.one_way = one_way
        self.doc = inspect.getdoc(function) or ""
        self.parameters: tuple[Parameter, ...] = ()
        self.results: tuple[Scalar | Payload, ...] = ()
        self.several = False
        """Whether the method returns a tuple, even of one."""

    def __set_name__(self, owner: type, name: str) -> None:
        if self.owner is None:
            self.owner = owner
            self.attribute = name

    @overload
    def __get__(self, instance: None, owner: type) -> Call: ...
    @overload
    def __get__(self, instance: object, owner: type) -> Callable[..., Any]: ...
    def __get__(self, instance: object | None, owner: type) -> Any:
        if instance is None:
            return self
        return self.function.__get__(instance, owner)

    def resolve(self) -> None:
        """Read the annotations. Raises DeclarationError naming class, method and rule."""
        assert self.owner is not None
        where = f"{self.owner.__name__}.{self.attribute}"
        name, function = self.name, self.function
        if not is_ordinary(function):
            raise DeclarationError(
                f"{where} must be an ordinary method to be a call: written with def, neither "
                "async, a generator, static nor a property"
            )
        if not isinstance(name, str) or not name.isidentifier() or len(name.encode()) > NAME_LENGTH:
            raise DeclarationError(
                f"{where}: the call's name must be an identifier of at most {NAME_LENGTH} bytes, "
                f"not {name!r}"
            )
        verify_switches(where, one_way=self.one_way)
        try:
            hints = typing.get_type_hints(
                function, localns=dict(vars(self.owner)), include_extras=True
            )
        except NameError as error:
            raise DeclarationError(
                f"{where}: its annotations must be names of the class or the module, and "
                f"{error.name!r} is none"
            ) from None
        except Exception as error:
            raise DeclarationError(
                f"{where}: its annotations must be types, and evaluating them raised {error!r}"
            ) from error
        parameters = list(inspect.signature(self.function).parameters.values())
        if not parameters:
            raise DeclarationError(f"{where} must be a method: its first parameter is self")
        declared = []
        for parameter in parameters[1:]:
            if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
                raise DeclarationError(f"{where}: {parameter} must be an ordinary parameter")
            if parameter.default is not parameter.empty:
                raise DeclarationError(
                    f"{where}: parameter {parameter.name} must have no default value: a guest "
                    "gives every argument"
                )
            annotation = hints.get(parameter.name)
            spot = f"{where}: parameter {parameter.name}"
            declared.append(Parameter(parameter.name, _type_of(annotation, spot)))
        self.parameters = tuple(declared)
        if "return" not in hints:
            raise DeclarationError(
                f'{where} must say what it returns: write "-> None", or the type of its result'
            )
        self.results = tuple(self._result_types(hints["return"], where))
        self.several = typing.get_origin(hints["return"]) is tuple
        if self.one_way and self.results:
            raise DeclarationError(f"{where} must return None, since it is declared one_way")
        for count, what in ((self.arguments, "argument"), (self.result_slots, "result")):
            if count > MAX_VALUES:
                raise DeclarationError(
                    f"{where} must need at most {MAX_VALUES} {what} slots, not {count} "
                    "(a Buffer takes two): pass bytes or a Buffer instead"
                )

    @staticmethod
    def _result_types(annotation: Any, where: str) -> Iterator[Scalar | Payload]:
        if annotation is None or annotation is type(None):
            return
        several = typing.get_origin(annotation) is tuple
        items = typing.get_args(annotation) if several else (annotation,)
        if not items:
            raise DeclarationError(
                f"{where} must return None, one value or a tuple of some, and tuple[()] is none "
                "of these: write -> None"
            )
        for item in items:
            kind = _type_of(item, f"{where}: its result")
            if isinstance(kind, BufferType):
                raise DeclarationError(
                    f"{where} must return numbers or bytes; a Buffer is an argument with "
                    "direction out"
                )
            yield kind

    @property
    def arguments(self) -> int:
        """Argument slots."""
        return sum(parameter.type.slots for parameter in self.parameters)

    @property
    def result_slots(self) -> int:
        """Result slots."""
        return len(self.results)

    @property
    def flags(self) -> CallFlag:
        """As the directory shows them."""
        flags = CallFlag.ONE_WAY if self.one_way else CallFlag(0)
        kinds = [parameter.type for parameter in self.parameters]
        if any(isinstance(kind, Payload) for kind in kinds):
            flags |= CallFlag.PAYLOAD_IN
        if any(isinstance(kind, Payload) for kind in self.results):
            flags |= CallFlag.PAYLOAD_OUT
        if any(isinstance(kind, BufferType) for kind in kinds):
            flags |= CallFlag.BUFFERS
        payload = flags & (CallFlag.PAYLOAD_IN | CallFlag.PAYLOAD_OUT)
        if not payload and max(self.arguments, self.result_slots) <= MAX_REGISTER_VALUES:
            flags |= CallFlag.REGISTERS
        return flags

    @property
    def text(self) -> str:
        """The signature text (docs/abi.md, section 4)."""
        names = ",".join(parameter.type.name for parameter in self.parameters)
        results = ",".join(kind.name for kind in self.results)
        if len(self.results) != 1:
            results = f"({results})"
        return f"{self.name}({names})->{results}"

    @property
    def hash(self) -> int:
        """The signature's hash, 64 bits."""
        return signature_hash(self.text)


def signature_hash(text: str) -> int:
    """First 8 bytes of SHA-256 of the signature text, as a little-endian number."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


@overload
def call(function: F, /) -> F: ...
@overload
def call(*, one_way: bool = False, name: str | None = None) -> Callable[[F], F]: ...
def call(function: Any = None, /, *, one_way: bool = False, name: str | None = None) -> Any:
    """Make a method callable from the guest.

    `one_way`: it returns nothing and the driver need not wait for it. `name`: what the directory
    says, if not the method's own name. Wrong annotations are told when the class is defined.
    """

    def declare(function: Callable[..., Any]) -> Call:
        return Call(function, one_way=one_way, name=name)

    return declare if function is None else declare(function)


# --- the stub: from slots to the method and back -----------------------------------------------


class CallRefused(Exception):
    """What the guest sent does not fit the signature; `status` is the answer."""

    def __init__(self, status: Status, sentence: str = "") -> None:
        super().__init__(sentence or status.text)
        self.status = status


Stub: TypeAlias = Callable[[tuple[int, ...], "memoryview | None"], tuple[Any, ...]]
"""(argument slots, the frame's payload or None) -> results: numbers as slots, bytes as they are."""
FrameStub: TypeAlias = Callable[[memoryview, "memoryview | None"], None]
"""(the frame as 64-bit words, its payload): reads argument slots and writes result slots there."""
_VALUES = FRAME.offset("values") // 8


def compile_stub(call: Call, device: Device) -> Stub:
    """A function made for this call alone: unpack, check, call the method, check what it returns.

    It is compiled from text, as dataclasses does, because it lies on every call's path: one
    comparison for each argument, no loop and no look-up of types. It raises CallRefused,
    ResultMisfit, DmaError, or whatever the method raises. The caller guarantees the slot count.
    """
    slots, lines, results, scope = _body(call, device)
    if slots:
        lines.insert(0, f"{', '.join(slots)}, = values")
    lines.append(f"return ({''.join(f'{name}, ' for name in results)})")
    stub: Stub = _compiled(call, "values", lines, scope)
    return stub


def compile_frame_stub(call: Call, device: Device) -> FrameStub | None:
    """Like `compile_stub`, straight from a frame and back into it.

    Nothing is written if it raises. None for a call that returns bytes.
    """
    if call.flags & CallFlag.PAYLOAD_OUT:
        return None
    slots, lines, results, scope = _body(call, device)
    scope[ENTRY] = device, call.name
    lines[:0] = [f"{name} = quads[{_VALUES + at}]" for at, name in enumerate(slots)]
    stores = [f"quads[{_VALUES + at}] = {name}" for at, name in enumerate(results)]
    if call.results == (_U64,) and not call.several:
        # The store itself takes no other number, so only what it refuses is looked at.
        checks = len(list(_result_lines("", _U64)))
        last, lines = lines[-checks:], lines[:-checks]
        lines += ["try:", f"    {stores[0]}", "except (TypeError, ValueError):"]
        stores = [f"    {line}" for line in (*last, *stores)]
    lines += stores
    stub: FrameStub = _compiled(call, "quads", lines, scope)
    return stub


def _compiled(call: Call, parameter: str, lines: list[str], scope: dict[str, Any]) -> Any:
    source = f"def stub({parameter}, payload):\n" + "".join(f"    {line}\n" for line in lines)
    exec(compile(source, f"<callgate stub of {call.text}>", "exec"), scope)
    return scope["stub"]


def _body(call: Call, device: Device) -> tuple[list[str], list[str], list[str], dict[str, Any]]:
    """Names of argument slots, lines from these to the results, names of the results, globals."""
    scope: dict[str, Any] = {
        "method": getattr(device, call.attribute),
        "refuse": _refuse_value,
        "take": _take_payload,
        "misfit": _misfit,
        "buffer": lambda name, gpa, n, way: _take_buffer(device.memory, name, gpa, n, way),
        "call": call,
    }
    slots: list[str] = []
    lines: list[str] = []
    arguments: list[str] = []
    for number, parameter in enumerate(call.parameters):
        name, kind = f"a{number}", parameter.type
        slots.append(name)
        arguments.append(name)
        if isinstance(kind, Scalar):
            lines += _scalar_lines(name, kind, parameter.name, scope)
        elif isinstance(kind, Payload):
            lines.append(f"{name} = take(payload, {name}, {parameter.name!r})")
        else:
            slots.append(f"{name}n")
            scope[f"{name}d"] = kind.direction
            lines.append(f"{name} = buffer({parameter.name!r}, {name}, {name}n, {name}d)")
    invocation = f"method({', '.join(arguments)})"
    results = [f"r{number}" for number in range(len(call.results))]
    if not results:
        lines += [f"r = {invocation}", "if r is not None: misfit(call, r)"]
    elif not call.several:
        lines.append(f"r0 = {invocation}")
    else:
        lines += [
            f"r = {invocation}",
            f"if not isinstance(r, tuple) or len(r) != {len(results)}: misfit(call, r)",
            f"{', '.join(results)}, = r",
        ]
    for name, parameter in zip(arguments, call.parameters, strict=True):
        if isinstance(parameter.type, BufferType) and parameter.type.direction is not Direction.IN:
            lines.append(f"{name}.put_back()")
    for name, result in zip(results, call.results, strict=True):
        lines += _result_lines(name, result)
    return slots, lines, results, scope


def _scalar_lines(name: str, kind: Scalar, shown: str, scope: dict[str, Any]) -> Iterator[str]:
    refuse = f"refuse({shown!r}, {kind.name!r}, {name})"
    if kind.signed:
        yield f"if {name} >> 63: {name} -= {1 << 64}"
        if kind.bits < 64:
            yield f"if not {kind.low} <= {name} <= {kind.high}: {refuse}"
    elif kind.bits < 64:
        yield f"if {name} > {kind.high}: {refuse}"
    if kind.enum is not None:
        scope[f"{name}e"] = {int(member): member for member in kind.enum}
        yield f"{name}v, {name} = {name}, {name}e.get({name})"
        yield f"if {name} is None: refuse({shown!r}, {kind.enum.__name__!r}, {name}v)"
    if kind is BOOL:
        yield f"{name} = {name} == 1"


def _result_lines(name: str, kind: Scalar | Payload) -> Iterator[str]:
    if isinstance(kind, Payload):
        yield f"if not isinstance({name}, (bytes, bytearray, memoryview)): misfit(call, {name})"
        return
    yield f"if {name}.__class__ is not int: {name} = misfit(call, {name}, number=True)"
    yield f"if not {kind.low} <= {name} <= {kind.high}: misfit(call, {name})"
    if kind.signed:
        yield f"{name} &= {MAX_U64}"


def _refuse_value(name: str, kind: str, value: int) -> None:
    raise CallRefused(Status.BAD_VALUE, f"{name} must be a {kind}, not {value:#x}")


def _misfit(call: Call, value: Any, number: bool = False) -> int:
    """Refuse a result; an int in disguise (IntEnum, bool, NumPy's) is taken as its number."""
    if number:
        if hasattr(value, "item") and not getattr(value, "ndim", 0):
            value = value.item()  # NumPy's bool is not an integer, but has one.
        if hasattr(value, "__index__"):
            return operator.index(value)
    shown = repr(value)
    raise ResultMisfit(
        f"{call.name} must return what its annotation says, {call.text.partition('->')[2]}, "
        f"not {shown if len(shown) < 100 else shown[:100] + '...'}",
        call.function,
    ) from None


def _take_payload(payload: memoryview | None, slot: int, name: str) -> bytes:
    offset, length = slot & 0xFFFFFFFF, slot >> 32
    if payload is None or offset + length > len(payload):
        room = 0 if payload is None else len(payload)
        raise CallRefused(
            Status.BAD_FRAME,
            f"{name} must lie in the payload's {room} bytes, not at {offset} for {length}",
        )
    return bytes(payload[offset : offset + length])


def _take_buffer(memory: Memory, name: str, gpa: int, length: int, way: Direction) -> Buffer:
    try:
        memory.check(gpa, length, write=way is not Direction.IN)
    except DmaError as error:
        raise CallRefused(Status.BAD_BUFFER, f"{name}: {error}") from None
    return Buffer(memory, gpa, length, way)


def placing(call: Call, stub: Stub) -> Stub:
    """The stub of a call that returns bytes, with slots for all of its results.

    It writes the bytes into the payload, and raises ResultMisfit when they do not fit into it.
    """

    def run(values: tuple[int, ...], payload: memoryview | None) -> tuple[int, ...]:
        slots = []
        end = 0
        room = 0 if payload is None else len(payload)
        for result in stub(values, payload):
            if isinstance(result, int):
                slots.append(result)
                continue
            data = memoryview(result).cast("B")
            if payload is None or end + len(data) > room:
                raise ResultMisfit(
                    f"bytes that are returned must fit the payload's {room} bytes", call.function
                )
            payload[end : end + len(data)] = data
            slots.append(len(data) << 32 | end)
            end = round_up(end + len(data), PAYLOAD_ALIGN)
        return tuple(slots)

    return run
