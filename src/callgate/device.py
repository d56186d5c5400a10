# SPDX-License-Identifier: MIT
"""Device: what a user subclasses. The class body is the datasheet; all else derives from it."""

from __future__ import annotations

import copy
import operator
import re
import threading
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar

from callgate.call import Call
from callgate.errors import DeclarationError, DmaError
from callgate.faults import Faults
from callgate.gate.abi import FRAME_SIZE, MIN_FRAME_SIZE, NAME_LENGTH
from callgate.interrupt import Interrupt
from callgate.register import Bar, Field, Register
from callgate.report import Bugs

Declared: TypeAlias = Bar | Register | Field | Interrupt | Call
D = TypeVar("D", Bar, Register)
_ABI_NAMESPACE = uuid.UUID("5a0b2f0e-6f6e-5c0c-9d0a-ca11ca7e0001")
PAGE = 4096
MAX_INTERRUPTS = 2047
"""Of a device's own; the last entry of an MSI-X table is the gate's."""


class Memory(Protocol):
    """Guest memory as a device sees it. Everything raises DmaError where the guest's memory map, or
    bus mastering being off, does not allow the access."""

    def read(self, gpa: int, length: int) -> bytes:
        """A copy of the bytes at `gpa`."""

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy `data` to `gpa`."""

    def map(self, gpa: int, length: int, *, write: bool = False) -> memoryview:
        """The guest's memory itself, without a copy; read-only unless `write`."""

    def scatter(
        self, pieces: Iterable[tuple[int, int]], *, write: bool = False
    ) -> list[memoryview]:
        """One `map` for each (gpa, length)."""

    def check(self, gpa: int, length: int, *, write: bool) -> None:
        """Raise DmaError unless the whole range may be used this way."""


class Timer(Protocol):
    """A timer that was started."""

    def cancel(self) -> None:
        """Stop it; a second time does nothing."""


class TimerQueue(Protocol):
    """Where timers are started."""

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` once."""

    def every(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` again and again."""


class GateControl(Protocol):
    """The host's hand on a device's calls, by name (`device.gate`); see `gate/gate.py`."""

    def bind(self, name: str) -> int:
        """Give the call a (new) vector."""

    def revoke(self, name: str, *, timeout: float | None = None) -> None:
        """Take its vector away; when this returns, no call of it runs or starts."""

    def allow(self, *names: str) -> None:
        """Let the calls through (all of them if none is named)."""

    def deny(self, *names: str, timeout: float | None = None) -> None:
        """Answer DENIED; when this returns, no call of it runs or starts."""

    def limit(
        self, name: str, *, per_second: float | None = None, in_flight: int | None = None
    ) -> None:
        """Set the quota of a call; None lifts it."""


class Plug(Protocol):
    """What a device needs from where it is plugged in."""

    @property
    def memory(self) -> Memory:
        """Guest memory, gated by bus mastering."""

    @property
    def timers(self) -> TimerQueue:
        """The machine's timers."""

    @property
    def gate(self) -> GateControl | None:
        """The device's gate, if it has calls."""

    def bar_memory(self, index: int) -> memoryview:
        """The memory of a BAR that was declared with `ram`."""

    def trigger(self, index: int) -> None:
        """Send interrupt `index`."""

    def set_level(self, index: int, level: bool) -> None:
        """Set the level of interrupt `index`."""


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

    def bar_of(self, register: Register) -> Bar:
        """The BAR in which a register lies."""
        return register.bar or self.bars[0]


class Device:
    """A PCI device in Python.

    Subclass it and declare, in this order: ids, `Bar`, `Register` and `Field`, `Interrupt`, `@call`
    methods, hooks. Mistakes raise DeclarationError when the class is defined.

    Calls, hooks and timers of one device run one at a time, so a model needs no locks; a class that
    sets `parallel = True` takes calls of several vCPUs at once and looks after itself.
    """

    id: ClassVar[tuple[int, int]]
    """PCI vendor and device id, 16 bits each. 0x1AF4, 0x10F0 to 0x10FF are for experiments."""
    subsystem: ClassVar[tuple[int, int]] = (0, 0)
    """Subsystem vendor and device id."""
    class_code: ClassVar[int] = 0xFF0000
    """Base class, sub-class and interface, 24 bits."""
    revision: ClassVar[int] = 0
    """Revision id, 8 bits."""
    name: ClassVar[str]
    """What a driver asks for; the class's name in snake_case if not given."""
    abi: ClassVar[str]
    """UUID of the ABI of the calls; made of ids and name if not given."""
    version: ClassVar[int] = 1
    """Version of that ABI, 32 bits."""
    frames: ClassVar[int] = 16
    """Frames of the gate: how many vCPUs can call at once, 1 to 1024."""
    frame_size: ClassVar[int] = FRAME_SIZE
    """Bytes of a frame, a power of two of at least 256; its payload has 128 less."""
    capabilities: ClassVar[tuple[Any, ...]] = ()
    """Further PCI capabilities (`callgate.pci.capability`)."""
    parallel: ClassVar[bool] = False
    """Whether calls of several vCPUs may run at once."""

    spec: ClassVar[DeviceSpec]
    """What the class declares, verified."""

    _values: dict[str, int]
    faults: Faults
    """What guests did wrong, counted."""
    bugs: Bugs
    """What the model raised, logged."""
    lock: threading.RLock
    """Held while a call, hook or timer of the device runs; calls of a `parallel` one go without."""
    _plug: Plug | None
    _timers: set[_Started]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.spec = _verify(cls)

    def __new__(cls, *args: Any, **kwargs: Any) -> Device:  # noqa: D102
        if not hasattr(cls, "id"):
            raise DeclarationError(f"{cls.__name__}.id must be given: (vendor, device)")
        self = super().__new__(cls)
        # Here and not in __init__, which a model overrides without calling ours.
        self._values = {register.name: register.reset for register in cls.spec.registers}
        self.faults = Faults(cls.spec.name)
        self.bugs = Bugs()
        self.lock = threading.RLock()
        self._plug = None
        self._timers = set()
        return self

    def __str__(self) -> str:
        return self.spec.name

    # --- what a model overrides -----------------------------------------------------------------

    def attach(self) -> None:
        """Called when the device has been plugged in."""

    def reset(self) -> None:
        """Called after a reset: registers hold their reset values, timers have stopped."""

    def detach(self) -> None:
        """Called before the device is unplugged."""

    # --- what a model uses ----------------------------------------------------------------------

    @property
    def plugged(self) -> Plug:
        """Where the device is plugged in. Raises RuntimeError when it is nowhere."""
        if self._plug is None:
            raise RuntimeError(f"{self.spec.name} must be plugged into a machine first")
        return self._plug

    @property
    def memory(self) -> Memory:
        """Guest memory (DMA)."""
        return self.plugged.memory

    @property
    def gate(self) -> GateControl:
        """Bind, revoke, filter, limit this device's calls. Raises RuntimeError if it has none."""
        gate = self.plugged.gate
        if gate is None:
            raise RuntimeError(f"{self.spec.name} must declare a @call to have a gate")
        return gate

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` once, `seconds` from now; a reset or a detach cancels it."""
        return _Started(self, callback, seconds, again=False)

    def every(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` every `seconds`, until cancelled, reset or detached."""
        return _Started(self, callback, seconds, again=True)

    def bar_memory(self, bar: Bar) -> memoryview:
        """The memory of a BAR that was declared with `ram`."""
        return self.plugged.bar_memory(bar.index)

    # --- what the place it is plugged into uses -------------------------------------------------

    def plug_in(self, plug: Plug) -> None:
        """Attach to `plug`; a device is in one place at a time."""
        if self._plug is not None:
            raise RuntimeError(f"{self.spec.name} must be unplugged before it is plugged in again")
        with self.lock:
            self._plug = plug
            try:
                self.attach()
            except BaseException:
                self._stop_timers()
                self._plug = None
                raise

    def unplug(self) -> None:
        """Detach; timers stop."""
        with self.lock:
            try:
                self.detach()
            finally:
                self._stop_timers()
                self._plug = None

    def do_reset(self) -> None:
        """Stop timers, set registers to their reset values, then tell the model."""
        with self.lock:
            self._stop_timers()
            self._values.update((register.name, register.reset) for register in self.spec.registers)
            try:
                self.reset()
            except Exception as error:
                self.bugs.report(f"{self.spec.name}.reset", error)

    def register_read(self, bar: int, offset: int, size: int) -> int:
        """A guest's read of `size` bytes in a declared BAR. Never raises for what the guest did.

        An access inside one register, or over whole registers, aligned to its size, is answered;
        any other reads all ones. A bug in a hook is reported and reads all ones.
        """
        register = self.spec.whole.get((bar, offset, size))
        if register is not None:
            return self._read(register)
        parts = self._parts(bar, offset, size)
        if not parts:
            return self._hook_read(bar, offset, size)
        value = 0
        for part, low, width in parts:
            word = self._read(part) >> low * 8 & ((1 << width * 8) - 1)
            value |= word << (part.offset + low - offset) * 8
        return value

    def register_write(self, bar: int, offset: int, size: int, value: int) -> None:
        """A guest's write of `size` bytes in a declared BAR. Never raises for a guest's fault."""
        register = self.spec.whole.get((bar, offset, size))
        if register is not None:
            self._write(register, value, register.mask)
            return
        parts = self._parts(bar, offset, size)
        if not parts:
            self._hook_write(bar, offset, size, value)
        for part, low, width in parts:
            mask = (1 << width * 8) - 1
            word = value >> (part.offset + low - offset) * 8 & mask
            self._write(part, word << low * 8, mask << low * 8)

    def _read(self, register: Register) -> int:
        try:
            if register.read_hook is None:
                return register.guest_read(self)
            with self.lock:
                return register.guest_read(self)
        except Exception as error:
            self._failed(f"{register.name}, read by the guest", error)
            return register.mask

    def _write(self, register: Register, value: int, mask: int) -> None:
        if register.masks["r"] & mask == mask:
            self.faults.note(
                "read-only register", f"{register.name} is read-only: a write was dropped"
            )
            return
        try:
            with self.lock:
                register.guest_write(self, value, mask)
        except Exception as error:
            self._failed(f"{register.name}, written by the guest", error)

    def _parts(self, bar: int, offset: int, size: int) -> list[tuple[Register, int, int]]:
        """The registers under an access, each with its first byte and count. Empty where one is
        missing, or when it is not an access that hardware would take as one."""
        parts: list[tuple[Register, int, int]] = []
        if size not in (1, 2, 4, 8) or offset % size:
            return parts
        end = offset + size
        while offset < end:
            register = self.spec.bytes_of.get((bar, offset))
            if register is None:
                return []
            low = offset - register.offset
            width = min(end - offset, register.size - low)
            parts.append((register, low, width))
            offset += width
        return parts

    def _hook_read(self, bar: int, offset: int, size: int) -> int:
        ones = (1 << size * 8) - 1
        declared = self.spec.hooks.get(bar)
        if declared is None or declared.read_hook is None:
            self.faults.note(
                "bad read", f"no register answers a read of {size} bytes at BAR {bar} + {offset:#x}"
            )
            return ones
        try:
            with self.lock:
                return operator.index(declared.read_hook(self, offset, size)) & ones
        except Exception as error:
            self._failed(f"{declared.name}, read by the guest", error, f" at {offset:#x}")
            return ones

    def _hook_write(self, bar: int, offset: int, size: int, value: int) -> None:
        declared = self.spec.hooks.get(bar)
        if declared is None or declared.write_hook is None:
            self.faults.note(
                "bad write", f"no register takes a write of {size} bytes at BAR {bar} + {offset:#x}"
            )
            return
        try:
            with self.lock:
                declared.write_hook(self, offset, size, value)
        except Exception as error:
            self._failed(f"{declared.name}, written by the guest", error, f" at {offset:#x}")

    def _failed(self, what: str, error: Exception, at: str = "") -> None:
        """Account for what a hook or a timer raised."""
        if isinstance(error, DmaError):
            # An address that the guest chose, or bus mastering that it took away: not a bug.
            self.faults.note("dma", f"{what}{at}: {error}")
        else:
            self.bugs.report(f"{self.spec.name}.{what}", error, at=at)

    def _stop_timers(self) -> None:
        for timer in list(self._timers):
            timer.cancel()


class _Started:
    """A timer that a device started. The device knows it until it ran for the last time or was
    cancelled; a callback that waits for the device's lock by then does not run any more."""

    __slots__ = ("_again", "_callback", "_device", "_timer")

    def __init__(
        self, device: Device, callback: Callable[[], None], seconds: float, *, again: bool
    ) -> None:
        self._device = device
        self._callback = callback
        self._again = again
        self._timer: Timer | None = None
        timers = device.plugged.timers
        device._timers.add(self)
        try:
            self._timer = (timers.every if again else timers.after)(seconds, self._run)
        except BaseException:
            device._timers.discard(self)
            raise
        if self not in device._timers:  # It ran already, or another thread reset the device.
            self._timer.cancel()

    def cancel(self) -> None:
        """See `Timer`."""
        self._device._timers.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def _run(self) -> None:
        device = self._device
        try:
            with device.lock:
                if self in device._timers:
                    if not self._again:
                        device._timers.discard(self)
                    self._callback()
        except Exception as error:
            device._failed("timer", error)


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _kind(one: Declared) -> str:
    return "call" if isinstance(one, Call) else type(one).__name__


def _declared(cls: type[Device]) -> list[Declared]:
    """What the class and its bases declare, bases first; what overrides takes the place."""
    found: dict[str, Declared] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            where = f"{base.__name__}.{name}"
            if isinstance(value, Declared):
                own = value.attribute if isinstance(value, Call) else value.name
                if (value.owner, own) != (base, name):
                    taken = value.owner.__name__ if value.owner else "?"
                    raise DeclarationError(
                        f"{where} must be a {_kind(value)} of its own: {taken}.{own} is the same"
                    )
                if hasattr(Device, name) or name in Device.__annotations__:
                    other = "; @call(name=...) says what the guest sees"
                    raise DeclarationError(
                        f"{where} must have another name, since every Device has {name!r}"
                        f"{other if isinstance(value, Call) else ''}"
                    )
                found[name] = value
            elif name in found:
                if value is not None:
                    how = ", with @call again," if isinstance(found[name], Call) else ""
                    raise DeclarationError(
                        f"{where} must be a {_kind(found[name])}{how} as it is in its base, "
                        "or None to take it away"
                    )
                del found[name]
    return list(found.values())


def _verify(cls: type[Device]) -> DeviceSpec:
    """Check a class body as a whole; DeclarationError names class, attribute and rule."""
    owner = cls.__name__
    _verify_numbers(cls, owner)
    name = getattr(cls, "name", None) or _snake_case(owner)
    if not isinstance(name, str) or not name.isidentifier() or len(name.encode()) > NAME_LENGTH:
        raise DeclarationError(
            f"{owner}.name must be an identifier of at most {NAME_LENGTH} bytes, not {name!r}"
        )
    declared = _declared(cls)
    bars = [_own(cls, one) for one in declared if isinstance(one, Bar)]
    registers = [_own(cls, one) for one in declared if isinstance(one, Register)]
    for register in registers:
        if register.bar is not None:
            register.bar = _counterpart(cls, register, "bar", register.bar, bars)
    fields = _own_fields(cls, declared, registers)
    for register in registers:
        register.verify(owner)
    if registers and not bars:
        end = max(register.offset + register.size for register in registers)
        implied = Bar(0, max(PAGE, 1 << (end - 1).bit_length()))
        implied.name = "registers"
        bars.append(implied)
    slots: dict[int, Bar] = {}
    for bar in bars:
        bar.verify(owner)
        for index in (bar.index, bar.index + 1) if bar.width == 64 else (bar.index,):
            if index in slots:
                raise DeclarationError(
                    f"{owner}.{bar.name}: BAR {index} must have one owner, and "
                    f"{slots[index].name} has it"
                )
            slots[index] = bar
    bars.sort(key=lambda bar: bar.index)
    whole: dict[tuple[int, int, int], Register] = {}
    bytes_of: dict[tuple[int, int], Register] = {}
    for register in registers:
        bar = register.bar or bars[0]
        if bar.ram:
            raise DeclarationError(
                f"{owner}.{register.name} must not lie in {bar.name}: it is memory"
            )
        if register.offset + register.size > bar.size:
            raise DeclarationError(
                f"{owner}.{register.name} must end inside the {bar.size:#x} bytes of {bar.name}, "
                f"not at {register.offset + register.size:#x}"
            )
        whole[bar.index, register.offset, register.size] = register
        for offset in range(register.offset, register.offset + register.size):
            other = bytes_of.setdefault((bar.index, offset), register)
            if other is not register:
                raise DeclarationError(
                    f"{owner}.{register.name} must not overlap {other.name}: both have byte "
                    f"{offset:#x} of {bar.name}"
                )
    interrupts = [copy.copy(one) for one in declared if isinstance(one, Interrupt)]
    for index, interrupt in enumerate(interrupts):
        interrupt.index = index
    if len(interrupts) > MAX_INTERRUPTS:
        raise DeclarationError(
            f"{owner} must declare at most {MAX_INTERRUPTS} interrupts, not {len(interrupts)}"
        )
    calls = [one for one in declared if isinstance(one, Call)]
    names: dict[str, Call] = {}
    for one in calls:
        one.resolve()
        if one.name in names:
            raise DeclarationError(
                f"{owner}.{one.attribute}: two calls must not have one name, and "
                f"{names[one.name].attribute} is called {one.name!r} too"
            )
        names[one.name] = one
    vendor, device = getattr(cls, "id", (0, 0))
    default = uuid.uuid5(_ABI_NAMESPACE, f"{vendor:04x}:{device:04x} {name}")
    try:
        abi = uuid.UUID(cls.abi) if hasattr(cls, "abi") else default
    except (ValueError, AttributeError, TypeError):
        raise DeclarationError(f"{owner}.abi must be a UUID's text, not {cls.abi!r}") from None
    return DeviceSpec(
        cls=cls,
        name=name,
        doc=(cls.__doc__ or "").strip(),
        uuid=abi,
        bars=tuple(bars),
        registers=tuple(registers),
        fields=fields,
        interrupts=tuple(interrupts),
        calls=tuple(calls),
        whole=whole,
        bytes_of=bytes_of,
        hooks={bar.index: bar for bar in bars},
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


def _counterpart(cls: type[Device], user: Declared, role: str, used: D, own: list[D]) -> D:
    """The class's own copy of what another declaration refers to."""
    for base in cls.__mro__:
        if vars(base).get(used.name) is used:
            for one in own:
                if one.name == used.name:
                    return one
    raise DeclarationError(
        f"{cls.__name__}.{user.name}: its {role} must be declared in the class, as an attribute"
    )


def _own_fields(
    cls: type[Device], declared: list[Declared], registers: list[Register]
) -> tuple[Field, ...]:
    """Copies of the fields for this class; each register gets its own."""
    for register in registers:
        register.fields = []
    fields = [copy.copy(one) for one in declared if isinstance(one, Field)]
    for one in fields:
        one.register = _counterpart(cls, one, "register", one.register, registers)
        one.access = one.given or one.register.access
        one.register.fields.append(one)
    return tuple(fields)


def _verify_numbers(cls: type[Device], owner: str) -> None:
    def need(attribute: str, value: object, bits: int) -> None:
        if not isinstance(value, int) or not 0 <= value < 1 << bits:
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
