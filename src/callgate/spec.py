# SPDX-License-Identifier: MIT
"""DeviceSpec: what a Device class declares, verified when the class is defined.

Every mistake is told in a sentence that names class, attribute and what must hold.
"""

from __future__ import annotations

import copy
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from callgate.call import Call
from callgate.declaration import Declaration, is_number, is_ordinary, lost, takes, verify_doc
from callgate.errors import DeclarationError
from callgate.gate.abi import MIN_FRAME_SIZE, NAME_LENGTH, PAGE
from callgate.interrupt import Interrupt, Interrupts
from callgate.register import Bar, Field, Register

if TYPE_CHECKING:
    from callgate.device import Device

D = TypeVar("D", Bar, Register, Field)
MAX_INTERRUPTS = 2047
"""Of a device's own, in an MSI-X table of 2048: the gate has the entry behind them."""
BARS = 6
MAX_IMPLIED = 1 << 31
"""Of the BAR that is made for registers where none is declared."""
_ABI_NAMESPACE = uuid.UUID("5a0b2f0e-6f6e-5c0c-9d0a-ca11ca7e0001")
_LIFE_CYCLE = ("attach", "reset", "detach")
_OVERRIDABLE = {*_LIFE_CYCLE, "register_read", "register_write"}
"""Methods of every Device that a subclass may replace."""
_OWN_CAPABILITIES = {5: "MSI capability: msi = True", 17: "MSI-X capability: Interrupt()"}
_VENDOR_SPECIFIC = 9


@runtime_checkable
class PciCapability(Protocol):
    """A further PCI capability of a device; `callgate.pci.capability` has some."""

    id: int

    @property
    def size(self) -> int:
        """Bytes in configuration space."""


@dataclass(frozen=True)
class DeviceSpec:
    """What a Device class declares, verified; everything else derives from this.

    BARs, registers, fields and interrupts are the class's own copies of what its body and its bases
    declare, since a subclass may give them other hooks, fields and indices than its base has.
    """

    cls: type[Device]
    name: str
    doc: str
    uuid: uuid.UUID
    bars: tuple[Bar, ...]
    registers: tuple[Register, ...]
    fields: tuple[Field, ...]
    interrupts: tuple[Interrupt, ...]
    calls: tuple[Call, ...]
    whole: dict[tuple[int, int, int], Register] = field(repr=False)
    """Registers by (BAR index, offset, size in bytes)."""
    bytes_of: dict[tuple[int, int], Register] = field(repr=False)
    """The register that covers a byte, by (BAR index, offset)."""
    hooks: dict[int, Bar] = field(repr=False)
    """Declared BARs by index."""

    @property
    def interrupts_by(self) -> str:
        """How interrupts can reach a driver; what stands further left goes before."""
        ways = ("MSI-X", self.cls.msix), ("MSI", self.cls.msi), ("INTx", True)
        return ", ".join(name for name, has in ways if has)

    def bar_of(self, register: Register) -> Bar:
        """The BAR in which a register lies."""
        return register.bar or self.bars[0]


def verify(cls: type[Device], root: type[Device]) -> DeviceSpec:
    """The spec of a class whose body is sound, else DeclarationError. `root` is Device itself."""
    owner = cls.__name__
    _verify_settings(cls)
    declared = _declared(cls, root)
    for name in _LIFE_CYCLE:
        method = getattr(cls, name)
        if not is_ordinary(method) or not takes(method, 1):
            raise DeclarationError(f"{owner}.{name} must be a method of (self), as Device has it")
    bars, registers, fields = _own_registers(cls, declared)
    bytes_of = _place(owner, registers, bars)
    interrupts = _interrupts(owner, declared)
    calls = _calls(owner, declared)
    _leave_room(cls, bars, interrupts, calls)
    name = _device_name(cls)
    return DeviceSpec(
        cls=cls,
        name=name,
        doc=(cls.__doc__ or "").strip(),
        uuid=_abi(cls, name),
        bars=tuple(bars),
        registers=tuple(registers),
        fields=fields,
        interrupts=tuple(interrupts),
        calls=tuple(calls),
        whole={((one.bar or bars[0]).index, one.offset, one.size): one for one in registers},
        bytes_of=bytes_of,
        hooks={bar.index: bar for bar in bars},
    )


def snake(name: str) -> str:
    """`FrameState` as `frame_state`, `NVMeDisk` as `nv_me_disk`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


# --- the class's own settings ---------------------------------------------------------------------


def _verify_settings(cls: type[Device]) -> None:
    owner = cls.__name__

    def need(attribute: str, value: object, bits: int) -> None:
        if not is_number(value) or not 0 <= value < 1 << bits:
            raise DeclarationError(
                f"{owner}.{attribute} must be a number of {bits} bits, not {value!r}"
            )

    for attribute in ("id", "subsystem"):
        pair = getattr(cls, attribute, (0, 0))
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise DeclarationError(f"{owner}.{attribute} must be (vendor, device), not {pair!r}")
        for number in pair:
            need(attribute, number, 16)
    if getattr(cls, "id", (0, 0))[0] == 0xFFFF:
        raise DeclarationError(f"{owner}.id must not have the vendor 0xffff: it means no device")
    for attribute in ("msix", "msi", "msi_masking", "parallel"):
        if not isinstance(getattr(cls, attribute), bool):
            given = getattr(cls, attribute)
            raise DeclarationError(f"{owner}.{attribute} must be True or False, not {given!r}")
    need("class_code", cls.class_code, 24)
    need("revision", cls.revision, 8)
    need("version", cls.version, 32)
    need("frames", cls.frames, 16)
    need("frame_size", cls.frame_size, 32)
    if not 1 <= cls.frames <= 1024:
        raise DeclarationError(f"{owner}.frames must be 1 to 1024, not {cls.frames!r}")
    size = cls.frame_size
    if size < MIN_FRAME_SIZE or size & (size - 1) or size > 1 << 20:
        raise DeclarationError(
            f"{owner}.frame_size must be a power of two, {MIN_FRAME_SIZE} to 1 MiB, not {size!r}"
        )
    _verify_capabilities(cls)


def _verify_capabilities(cls: type[Device]) -> None:
    where = f"{cls.__name__}.capabilities"
    if not isinstance(cls.capabilities, tuple):
        raise DeclarationError(f"{where} must be a tuple, not {cls.capabilities!r}")
    seen: set[int] = set()
    for each in cls.capabilities:
        if not isinstance(each, PciCapability):
            raise DeclarationError(
                f"{where} must hold Capability objects (callgate.pci.capability), not {each!r}"
            )
        if each.id in _OWN_CAPABILITIES:
            raise DeclarationError(
                f"{where} must leave out the {_OWN_CAPABILITIES[each.id]} makes it"
            )
        if each.id in seen and each.id != _VENDOR_SPECIFIC:
            raise DeclarationError(f"{where} must not hold two with the id {each.id:#04x}")
        seen.add(each.id)


def _device_name(cls: type[Device]) -> str:
    name = getattr(cls, "name", None) or snake(cls.__name__)
    if not isinstance(name, str) or not name.isidentifier() or len(name.encode()) > NAME_LENGTH:
        raise DeclarationError(
            f"{cls.__name__}.name must be an identifier of at most {NAME_LENGTH} bytes, "
            f"not {name!r}"
        )
    return name


def _abi(cls: type[Device], name: str) -> uuid.UUID:
    if not hasattr(cls, "abi"):
        vendor, device = getattr(cls, "id", (0, 0))
        return uuid.uuid5(_ABI_NAMESPACE, f"{vendor:04x}:{device:04x} {name}")
    try:
        return uuid.UUID(cls.abi)
    except (ValueError, AttributeError, TypeError):
        raise DeclarationError(
            f"{cls.__name__}.abi must be a UUID's text, not {cls.abi!r}"
        ) from None


# --- who declares what ----------------------------------------------------------------------------


def _attribute(one: Declaration) -> str:
    return one.attribute if isinstance(one, Call) else one.name


def _declared(cls: type[Device], root: type[Device]) -> list[Declaration]:
    """What the class and its bases declare, bases first; what overrides takes the place."""
    found: dict[str, Declaration] = {}
    settings = {name for name, kind in root.__annotations__.items() if "ClassVar" in kind}
    allowed = settings - {"spec"} | _OVERRIDABLE
    shadowing = cls.__mro__[: cls.__mro__.index(root)]
    for base in reversed(cls.__mro__):
        for one in lost(base):
            raise DeclarationError(_how_lost(base, one))
        for name, value in vars(base).items():
            where = f"{base.__name__}.{name}"
            taken = hasattr(root, name) or name in root.__annotations__
            if isinstance(value, Declaration):
                own = _attribute(value)
                if (value.owner, own) != (base, name):
                    other = value.owner.__name__ if value.owner else "?"
                    raise DeclarationError(
                        f"{where} must be {value.noun} of its own: {other}.{own} is the same"
                    )
                if taken:
                    hint = "; @call(name=...) says what the guest sees"
                    raise DeclarationError(
                        f"{where} must have another name, since every Device has {name!r}"
                        f"{hint if isinstance(value, Call) else ''}"
                    )
                found[name] = value
            elif name in found:
                if value is not None:
                    how = ", with @call again," if isinstance(found[name], Call) else ""
                    raise DeclarationError(
                        f"{where} must be {found[name].noun}{how} as it is in its base, "
                        "or None to take it away"
                    )
                del found[name]
            elif (
                taken
                and base in shadowing
                and not (name in allowed or _is_magic(name) or isinstance(value, DeviceSpec))
            ):
                raise DeclarationError(
                    f"{where} must have another name, since every Device has {name!r} for itself"
                )
    return list(found.values())


def _is_magic(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _how_lost(base: type, one: Declaration) -> str:
    name = _attribute(one)
    if not name:
        return (
            f"{base.__name__}: what line {one.line} declares, {one.noun}, must be an attribute of "
            "the class, and nothing keeps it: has something else its name?"
        )
    return (
        f"{base.__name__}.{name} must be declared once: line {one.line} makes it {one.noun}, and "
        "what comes later hides that"
    )


def _own(cls: type[Device], one: D) -> D:
    """A copy for this class, with the hooks as this class has them."""
    mine = copy.copy(one)
    mine.read_hook = _overridden(cls, one.read_hook)
    mine.write_hook = _overridden(cls, one.write_hook)
    return mine


def _overridden(cls: type[Device], hook: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """The hook, or the method that overrides it in a subclass of where it was given."""
    if hook is None:
        return None

    def method(place: object) -> object:
        return place.function if isinstance(place, Call) else place

    for base in cls.__mro__:
        if method(vars(base).get(hook.__name__)) is hook:
            found = method(getattr(cls, hook.__name__))
            if not callable(found):
                raise DeclarationError(
                    f"{cls.__name__}.{hook.__name__} must be a method: it is a hook in "
                    f"{base.__name__}"
                )
            return found
    return hook


def _counterpart(cls: type[Device], user: Declaration, role: str, used: D, own: list[D]) -> D:
    """The class's own copy of what another declaration refers to."""
    for base in cls.__mro__:
        if vars(base).get(used.name) is used:
            for one in own:
                if one.name == used.name:
                    return one
    raise DeclarationError(
        f"{cls.__name__}.{user.name}: its {role} must be declared in the class, as an attribute"
    )


# --- BARs and registers ---------------------------------------------------------------------------


def _own_registers(
    cls: type[Device], declared: list[Declaration]
) -> tuple[list[Bar], list[Register], tuple[Field, ...]]:
    """The class's own BARs by index, registers and fields, each by itself as it must be."""
    owner = cls.__name__
    bars = [_own(cls, one) for one in declared if isinstance(one, Bar)]
    registers = [_own(cls, one) for one in declared if isinstance(one, Register)]
    for register in registers:
        register.fields = []
        if register.bar is not None:
            if not isinstance(register.bar, Bar):
                raise DeclarationError(
                    f"{owner}.{register.name}: bar must be a Bar of the class, not {register.bar!r}"
                )
            register.bar = _counterpart(cls, register, "bar", register.bar, bars)
    fields = tuple(_own(cls, one) for one in declared if isinstance(one, Field))
    for one in fields:
        one.register = _counterpart(cls, one, "register", one.register, registers)
        one.access = one.register.access if one.given is None else one.given
        one.register.fields.append(one)
    for register in registers:
        register.verify(owner)
    if registers and not bars:
        last = max(registers, key=lambda one: one.offset + one.size)
        end = last.offset + last.size
        if end > MAX_IMPLIED:
            raise DeclarationError(
                f"{owner}.{last.name} must end inside the {MAX_IMPLIED:#x} bytes of a BAR of 32 "
                f"bits, not at {end:#x}, or lie in a Bar that is declared with width=64"
            )
        implied = Bar(0, max(PAGE, 1 << (end - 1).bit_length()))
        implied.owner, implied.name = cls, "registers"
        bars.append(implied)
    _verify_bars(owner, bars)
    return sorted(bars, key=lambda bar: bar.index), registers, fields


def _verify_bars(owner: str, bars: list[Bar]) -> None:
    taken: dict[int, Bar] = {}
    for bar in bars:
        bar.verify(owner)
        for index in range(bar.index, bar.index + bar.width // 32):
            if index in taken:
                raise DeclarationError(
                    f"{owner}.{bar.name}: BAR {index} must have one owner, and "
                    f"{taken[index].name} has it"
                )
            taken[index] = bar


def _place(
    owner: str, registers: list[Register], bars: list[Bar]
) -> dict[tuple[int, int], Register]:
    """The register at each byte; no two at one, and each inside its BAR."""
    found: dict[tuple[int, int], Register] = {}
    for register in registers:
        bar = register.bar or bars[0]
        end = register.offset + register.size
        if bar.ram:
            raise DeclarationError(
                f"{owner}.{register.name} must not lie in {bar.name}: it is memory"
            )
        if end > bar.size:
            raise DeclarationError(
                f"{owner}.{register.name} must end inside the {bar.size:#x} bytes of {bar.name}, "
                f"not at {end:#x}"
            )
        for offset in range(register.offset, end):
            other = found.setdefault((bar.index, offset), register)
            if other is not register:
                raise DeclarationError(
                    f"{owner}.{register.name} must not overlap {other.name}: both have byte "
                    f"{offset:#x} of {bar.name}"
                )
    return found


def _leave_room(
    cls: type[Device], bars: list[Bar], interrupts: list[Interrupt], calls: list[Call]
) -> None:
    """See that the BARs which `pci/function.py` adds have a place."""
    added = ["MSI-X table"] if cls.msix and (interrupts or calls) else []
    added += ["gate"] if calls else []
    taken = sum(bar.width // 32 for bar in bars)
    if taken + len(added) > BARS:
        raise DeclarationError(
            f"{cls.__name__} must leave {len(added)} of the {BARS} BARs free for its "
            f"{' and '.join(added)}, and {', '.join(bar.name for bar in bars)} take {taken}"
        )


# --- interrupts and calls -------------------------------------------------------------------------


def _interrupts(owner: str, declared: list[Declaration]) -> list[Interrupt]:
    found: dict[str, Interrupt] = {}
    for one in declared:
        if not isinstance(one, Interrupt | Interrupts):
            continue
        verify_doc(f"{owner}.{one.name}", one.doc)
        for interrupt in one.entries():
            interrupt.index = len(found)
            if found.setdefault(interrupt.name, interrupt) is not interrupt:
                raise DeclarationError(
                    f"{owner}: two interrupts must not have one name, and {interrupt.name} is "
                    "there twice: each of several is called by their name and its number"
                )
    if len(found) > MAX_INTERRUPTS:
        raise DeclarationError(
            f"{owner} must declare at most {MAX_INTERRUPTS} interrupts, not {len(found)}"
        )
    return list(found.values())


def _calls(owner: str, declared: list[Declaration]) -> list[Call]:
    found: dict[str, Call] = {}
    for one in declared:
        if not isinstance(one, Call):
            continue
        one.resolve()
        other = found.setdefault(one.name, one)
        if other is not one:
            raise DeclarationError(
                f"{owner}.{one.attribute}: two calls must not have one name, and "
                f"{other.attribute} is called {one.name!r} too"
            )
    return list(found.values())
