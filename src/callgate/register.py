# SPDX-License-Identifier: MIT
"""Bars, registers and fields: the part of a device that a driver reads and writes.

    control = Register(0x08, access="rw")
    enable = Field(control, 0)
    mode = Field(control, 1, 3)          # bits 1 to 3

    @control.on_write
    def changed(self, value: int) -> None: ...

    @mode.on_write
    def mode_changed(self, mode: int) -> None: ...

Access kinds, for a register and, where a field names its own, for that field's bits:

    r     the guest reads; its writes are dropped
    w     the guest writes; it reads zeros
    rw    both
    w1c   a 1 that the guest writes clears the bit
    w1s   a 1 that the guest writes sets the bit

In Python, `device.control` is the stored value: reading it has no side effect and runs no hook, and
writing it ignores the access kind, as hardware behind a register does.

A subclass inherits all of it. It may declare a register again, add fields to one that it inherits,
and override a hook as any other method; none of this changes its base.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, overload

from callgate.declaration import (
    Declaration,
    is_number,
    is_ordinary,
    takes,
    verify_doc,
    verify_numbers,
    verify_switches,
)
from callgate.errors import DeclarationError
from callgate.gate.abi import PAGE
from callgate.report import ResultMisfit

if TYPE_CHECKING:
    from callgate.device import Device

Access: TypeAlias = Literal["r", "w", "rw", "w1c", "w1s"]
ACCESSES = ("r", "w", "rw", "w1c", "w1s")
WIDTHS = (8, 16, 32, 64)
H = TypeVar("H", bound=Callable[..., Any])


def _as_it_is(hook: Callable[..., Any]) -> Callable[..., Any]:
    return hook


_MISSING: Any = _as_it_is
"""The hook of a decorator that is written with parentheses; told when the class is defined."""


class Hooked(Declaration):
    """What hooks can be given to, in the class body that declares it."""

    _reads: tuple[str, ...] = ("self",)
    """What a read hook is given."""
    _writes: tuple[str, ...] = ("self", "value")

    def __init__(self) -> None:
        super().__init__()
        self.read_hook: Callable[..., Any] | None = None
        self.write_hook: Callable[..., Any] | None = None
        self._wrong = ""

    def _take(self, kind: str, hook: Any, before: Any) -> Any:
        """The hook, unless it would replace another one of the same body or of another class."""
        if self.owner is not None:
            raise DeclarationError(
                f"{self.owner.__name__}.{self.name}: {kind} must be used in the body of "
                f"{self.owner.__name__}; a subclass overrides the method that is the hook"
            )
        if hook is _MISSING:
            self._wrong = f"{kind} must be used without parentheses: they leave it no method"
            return before
        if not callable(hook) or not hasattr(hook, "__name__"):
            self._wrong = f"{kind} must be given a method, not {hook!r}"
            return before
        if before is not None:
            self._wrong = (
                f"{kind} must be used once, and {before.__name__} and {hook.__name__} both have it"
            )
        return hook

    def verify_hooks(self, where: str) -> None:
        """Raise DeclarationError when hooks were given that cannot be."""
        if self._wrong:
            raise DeclarationError(f"{where}: {self._wrong}")
        for kind, hook, given in (
            ("on_read", self.read_hook, self._reads),
            ("on_write", self.write_hook, self._writes),
        ):
            if hook is None:
                continue
            if not is_ordinary(hook):
                raise DeclarationError(
                    f"{where}: {kind} must be given an ordinary method, and {hook.__name__} is "
                    "async, a generator or static"
                )
            if not takes(hook, len(given)):
                raise DeclarationError(
                    f"{where}: {kind} must be given a method of ({', '.join(given)}), not "
                    f"{hook.__name__}{inspect.signature(hook)}"
                )


class Bar(Hooked):
    """A base address register: a window of `size` bytes (PCI Local Bus 3.0, 6.2.5).

    `index` 0 to 5; `kind` "memory" or "io"; `width` 32 or 64 (a 64-bit BAR takes index + 1 too);
    `size` a power of two, at least 16 for memory (at most 2 GiB in 32 bits), 4 to 256 for I/O.
    With `ram` the window is plain memory that both sides share: `device.<name>` is its memoryview.

    With `write_combining` a guest's writes may arrive late and several at once, in their order:
    within some milliseconds, and before any other access of the guest's is answered. It is for
    memory where writes come in streams, such as a frame buffer's; kvm gains by it, other backends
    deliver each write at once.

    Accesses that no register answers go to the hooks `on_read(offset, size) -> int` and
    `on_write(offset, size, value)` where they are given.
    """

    noun = "a Bar"
    _reads = ("self", "offset", "size")
    _writes = ("self", "offset", "size", "value")

    def __init__(
        self,
        index: int,
        size: int,
        kind: Literal["memory", "io"] = "memory",
        *,
        width: Literal[32, 64] = 32,
        prefetchable: bool = False,
        ram: bool = False,
        write_combining: bool = False,
    ) -> None:
        super().__init__()
        self.index = index
        self.size = size
        self.kind = kind
        self.width = width
        self.prefetchable = prefetchable
        self.ram = ram
        self.write_combining = write_combining

    @overload
    def __get__(self, instance: None, owner: type) -> Bar: ...
    @overload
    def __get__(self, instance: Device, owner: type) -> memoryview: ...
    def __get__(self, instance: Device | None, owner: type) -> Bar | memoryview:
        if instance is None:
            return self
        if not self.ram:
            raise AttributeError(f"{owner.__name__}.{self.name} has no memory: declare ram=True")
        return instance.bar_memory(self)

    def on_read(self, hook: H = _MISSING) -> H:
        """Use the method for reads that no register answers: (offset, size in bytes) -> value."""
        self.read_hook = self._take("on_read", hook, self.read_hook)
        return hook

    def on_write(self, hook: H = _MISSING) -> H:
        """Use the method for writes that no register takes: (offset, size in bytes, value)."""
        self.write_hook = self._take("on_write", hook, self.write_hook)
        return hook

    def verify(self, owner: str) -> None:
        """Raise DeclarationError when the BAR cannot exist."""
        where = f"{owner}.{self.name}"
        verify_numbers(where, index=self.index, size=self.size)
        verify_switches(
            where,
            prefetchable=self.prefetchable,
            ram=self.ram,
            write_combining=self.write_combining,
        )
        self.verify_hooks(where)
        if self.kind not in ("memory", "io"):
            raise DeclarationError(f'{where}: kind must be "memory" or "io", not {self.kind!r}')
        if not _is_one_of(self.width, (32, 64)) or (self.kind == "io" and self.width != 32):
            raise DeclarationError(f"{where}: width must be 32 or, for memory, 64")
        last = 4 if self.width == 64 else 5
        if not 0 <= self.index <= last:
            raise DeclarationError(f"{where}: index must be 0 to {last}, not {self.index}")
        if self.size <= 0 or self.size & (self.size - 1):
            raise DeclarationError(f"{where}: size must be a power of two, not {self.size:#x}")
        low, high = (4, 256) if self.kind == "io" else (16, 1 << (31 if self.width == 32 else 40))
        if not low <= self.size <= high:
            raise DeclarationError(
                f"{where}: size must be {low:#x} to {high:#x} bytes, not {self.size:#x}"
            )
        if self.kind == "io" and (self.prefetchable or self.ram or self.write_combining):
            raise DeclarationError(
                f"{where}: an I/O BAR is not prefetchable, no memory, and combines no writes"
            )
        if self.ram and self.size < PAGE:
            raise DeclarationError(
                f"{where}: shared memory must be at least {PAGE} bytes, not {self.size}"
            )
        if self.ram and (self.read_hook or self.write_hook):
            raise DeclarationError(
                f"{where}: shared memory must do without hooks: an access to it traps nowhere"
            )

    def guest_read(self, device: Device, offset: int, size: int) -> int:
        """What a guest reads where no register answers: what the hook says."""
        assert self.read_hook is not None
        answer = self.read_hook(device, offset, size)
        try:
            return operator.index(answer)
        except TypeError:
            raise ResultMisfit(
                f"{type(device).__name__}.{self.name}: its on_read hook must return a number, "
                f"not {answer!r}",
                self.read_hook,
            ) from None


class Register(Hooked):
    """A register of `width` bits at byte `offset` of a BAR (the device's first one if not named).

    `offset` is aligned to the width; `reset` is the value after a reset. Hooks: `on_read` gives the
    value that a guest's read returns (None: the stored one); `on_write` is told the value that the
    guest wrote, after the stored value followed the access kind.
    """

    noun = "a Register"

    def __init__(
        self,
        offset: int,
        *,
        width: int = 32,
        access: Access = "rw",
        reset: int = 0,
        bar: Bar | None = None,
        doc: str = "",
    ) -> None:
        super().__init__()
        self.offset = offset
        self.width = width
        self.access = access
        self.reset = reset
        self.bar = bar
        self.doc = doc
        self.fields: list[Field] = []
        """Its fields, in the `spec` of a class."""
        self.mask = (1 << width) - 1 if _is_one_of(width, WIDTHS) else 0
        self.masks: dict[str, int] = {}
        self.asked: tuple[tuple[Register | Field, int, int], ...] = ()
        """Itself and its fields, as far as they have read hooks, with their bits and the lowest of
        these; in the `spec` of a class."""
        self.told: tuple[tuple[Callable[..., Any], int, int], ...] = ()
        """The same of the write hooks."""

    @property
    def size(self) -> int:
        """Width in bytes."""
        return self.width // 8

    @overload
    def __get__(self, instance: None, owner: type) -> Register: ...
    @overload
    def __get__(self, instance: Device, owner: type) -> int: ...
    def __get__(self, instance: Device | None, owner: type) -> Register | int:
        if instance is None:
            return self
        return instance._register_values[self.name]

    def __set__(self, instance: Device, value: int) -> None:
        number = operator.index(value)
        if not 0 <= number <= self.mask:
            raise ValueError(
                f"{type(instance).__name__}.{self.name} must fit {self.width} bits, "
                f"and {number:#x} does not"
            )
        instance._register_values[self.name] = number

    def on_read(self, hook: H = _MISSING) -> H:
        """Use the method for a guest's reads: () -> value, or None for the stored value."""
        self.read_hook = self._take("on_read", hook, self.read_hook)
        return hook

    def on_write(self, hook: H = _MISSING) -> H:
        """Use the method after a guest's writes: (value that the guest wrote)."""
        self.write_hook = self._take("on_write", hook, self.write_hook)
        return hook

    def verify(self, owner: str) -> None:
        """Raise DeclarationError when the register cannot exist; fixes the masks of its fields."""
        where = f"{owner}.{self.name}"
        if not _is_one_of(self.width, WIDTHS):
            raise DeclarationError(
                f"{where}: Register width must be 8, 16, 32 or 64 bits, not {self.width!r}"
            )
        verify_numbers(where, offset=self.offset, reset=self.reset)
        verify_doc(where, self.doc)
        self.verify_hooks(where)
        if self.access not in ACCESSES:
            raise DeclarationError(
                f"{where}: access must be one of {', '.join(ACCESSES)}, not {self.access!r}"
            )
        if self.offset < 0 or self.offset % self.size:
            raise DeclarationError(
                f"{where}: offset must be a multiple of its {self.size} bytes, not {self.offset:#x}"
            )
        if not 0 <= self.reset <= self.mask:
            raise DeclarationError(
                f"{where}: reset must fit {self.width} bits, and {self.reset:#x} does not"
            )
        self.masks = dict.fromkeys(ACCESSES, 0)
        self.masks[self.access] = self.mask
        taken = 0
        for field in self.fields:
            field.verify(owner)
            if taken & field.mask:
                raise DeclarationError(
                    f"{owner}.{field.name} must not share bits with another field of {self.name}"
                )
            taken |= field.mask
            for access in self.masks:
                self.masks[access] &= ~field.mask
            self.masks[field.access] |= field.mask
            self._compose_reset(owner, field)
        if self.write_hook is not None and self.masks["r"] == self.mask:
            raise DeclarationError(
                f"{where}: a read-only register must do without on_write: the guest's writes are "
                "dropped"
            )
        if self.read_hook is not None and self.masks["w"] == self.mask:
            raise DeclarationError(
                f"{where}: a write-only register must do without on_read: the guest reads zeros"
            )
        places: list[tuple[Register | Field, int, int]] = [(self, self.mask, 0)]
        places += ((field, field.mask, field.low) for field in self.fields)
        self.asked = tuple(place for place in places if place[0].read_hook is not None)
        self.told = tuple(
            (one.write_hook, bits, low) for one, bits, low in places if one.write_hook is not None
        )

    def _compose_reset(self, owner: str, field: Field) -> None:
        """Let the field's bits of `reset` be what the field says, or it what they are."""
        own = (self.reset & field.mask) >> field.low
        if field.reset is None:
            field.reset = own
        elif own not in (0, field.reset):
            raise DeclarationError(
                f"{owner}.{field.name}: reset must be {own:#x} as {self.name}'s reset has it, or "
                f"given once, and it is {field.reset:#x}"
            )
        self.reset |= field.reset << field.low

    # The guest's side. `mask` says which bits of the register the access covers.

    def guest_read(self, device: Device) -> int:
        """What a guest reads; runs the hooks."""
        value = device._register_values[self.name]
        for one, bits, low in self.asked:
            answer = _answer(device, one, bits >> low)
            if answer is not None:
                value = value & ~bits | answer << low
        return value & ~self.masks["w"]

    def guest_write(self, device: Device, value: int, mask: int) -> None:
        """Store by access kind what a guest wrote; runs the hooks."""
        masks = self.masks
        old = device._register_values[self.name]
        plain = (masks["rw"] | masks["w"]) & mask
        new = old & ~plain | value & plain
        new &= ~(value & masks["w1c"] & mask)
        new |= value & masks["w1s"] & mask
        device._register_values[self.name] = new
        if self.told:
            seen = value & mask | old & masks["rw"] & ~mask
            for hook, bits, low in self.told:
                if mask & bits:
                    hook(device, (seen & bits) >> low)


class Field(Hooked):
    """Bits `low` to `high` (both included; one bit if `high` is left out) of a register.

    `access` and `reset` (the bits' own value after a reset) are the register's if not given.
    `device.<name>` reads and writes the bits. Hooks, which run after the register's own: `on_read`
    gives the bits that a guest's read of the register returns (None: what they are without it);
    `on_write` is told the bits that the guest wrote, after a write that covers any of them.
    """

    noun = "a Field"

    def __init__(
        self,
        register: Register,
        low: int,
        high: int | None = None,
        *,
        access: Access | None = None,
        reset: int | None = None,
        doc: str = "",
    ) -> None:
        if not isinstance(register, Register):
            raise DeclarationError(f"A Field must be given its Register first, not {register!r}")
        super().__init__()
        self.register = register
        self.low = low
        self.high = low if high is None else high
        self.given = access
        self.access: Access = register.access if access is None else access
        self.reset = reset
        """In the `spec` of a class: the number, whoever gave it."""
        self.doc = doc
        self.mask = 0
        if is_number(low) and is_number(self.high) and 0 <= low <= self.high < max(WIDTHS):
            self.mask = (1 << self.high + 1) - (1 << low)

    @overload
    def __get__(self, instance: None, owner: type) -> Field: ...
    @overload
    def __get__(self, instance: Device, owner: type) -> int: ...
    def __get__(self, instance: Device | None, owner: type) -> Field | int:
        if instance is None:
            return self
        return (instance._register_values[self.register.name] & self.mask) >> self.low

    def __set__(self, instance: Device, value: int) -> None:
        number = operator.index(value)
        if number < 0 or (number << self.low) & ~self.mask:
            raise ValueError(
                f"{type(instance).__name__}.{self.name} must fit {self.high + 1 - self.low} bits, "
                f"and {number:#x} does not"
            )
        old = instance._register_values[self.register.name]
        instance._register_values[self.register.name] = old & ~self.mask | number << self.low

    def on_read(self, hook: H = _MISSING) -> H:
        """Use the method for a guest's reads of the register: () -> bits, or None."""
        self.read_hook = self._take("on_read", hook, self.read_hook)
        return hook

    def on_write(self, hook: H = _MISSING) -> H:
        """Use the method after a guest's writes: (bits that the guest wrote)."""
        self.write_hook = self._take("on_write", hook, self.write_hook)
        return hook

    def verify(self, owner: str) -> None:
        """Raise DeclarationError when the bits are not inside the register."""
        where = f"{owner}.{self.name}"
        verify_numbers(where, low=self.low, high=self.high)
        verify_doc(where, self.doc)
        self.verify_hooks(where)
        if not 0 <= self.low <= self.high < self.register.width:
            raise DeclarationError(
                f"{where}: bits {self.low} to {self.high} must lie in the "
                f"{self.register.width} bits of {self.register.name}, low first"
            )
        if self.access not in ACCESSES:
            raise DeclarationError(
                f"{where}: access must be one of {', '.join(ACCESSES)}, not {self.access!r}"
            )
        for access, hook, kind, why in (
            ("r", self.write_hook, "on_write", "read-only: a guest's writes are dropped"),
            ("w", self.read_hook, "on_read", "write-only: the guest reads zeros"),
        ):
            if self.access == access and hook is not None:
                raise DeclarationError(f"{where} must do without {kind}, since it is {why}")
        if self.reset is None:
            return
        verify_numbers(where, reset=self.reset)
        if self.reset < 0 or self.reset << self.low & ~self.mask:
            raise DeclarationError(
                f"{where}: reset must fit {self.high + 1 - self.low} bits, and "
                f"{self.reset:#x} does not"
            )


def _answer(device: Device, one: Register | Field, most: int) -> int | None:
    """What a read hook says: a number up to `most`, or None."""
    assert one.read_hook is not None
    answer = one.read_hook(device)
    if answer is None:
        return None
    try:
        value = operator.index(answer)
    except TypeError:
        value = -1
    if not 0 <= value <= most:
        raise ResultMisfit(
            f"{type(device).__name__}.{one.name}: its on_read hook must return "
            f"{most.bit_length()} bits, not {answer!r}",
            one.read_hook,
        )
    return value


def _is_one_of(value: object, numbers: tuple[int, ...]) -> bool:
    return is_number(value) and value in numbers
