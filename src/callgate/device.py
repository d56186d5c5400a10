# SPDX-License-Identifier: MIT
"""Device: what a user subclasses. The class body is the datasheet; all else derives from it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar, Protocol, TypeVar

from callgate.deadline import Deadline, HandlerTimeout, Job
from callgate.errors import DeclarationError, DmaError, PlugError, VectorError
from callgate.faults import Faults
from callgate.gate.abi import FRAME_SIZE
from callgate.register import Bar, Register
from callgate.report import Bugs
from callgate.spec import DeviceSpec, PciCapability, verify
from callgate.threads import end_all, entry, leave_behind

T = TypeVar("T")
PATIENCE = 1.0
"""Seconds that the end of a device waits for code of its model that runs still."""


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

    @property
    def msix_enabled(self) -> bool:
        """Whether the driver has enabled MSI-X, so that interrupts go neither to MSI nor INTx."""

    def trigger(self, index: int) -> None:
        """Send interrupt `index`."""

    def set_level(self, index: int, level: bool) -> None:
        """Set the level of interrupt `index`; a message of it that is pending still is withdrawn
        with the level."""


def _read_by_guest(place: Register | Bar) -> str:
    return f"{place.name}, read by the guest"


def _written_by_guest(place: Register | Bar) -> str:
    return f"{place.name}, written by the guest"


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
    msix: ClassVar[bool] = True
    """Whether it has MSI-X: a message for each interrupt, by a table in a BAR of its own."""
    msi: ClassVar[bool] = False
    """Whether it has MSI: up to 32 messages, which interrupts share where the driver grants fewer.
    MSI-X goes before MSI where both are enabled, and either before INTx, which every device has."""
    msi_masking: ClassVar[bool] = True
    """Whether MSI has mask and pending bits (per-vector masking)."""
    capabilities: ClassVar[tuple[PciCapability, ...]] = ()
    """Further PCI capabilities (`callgate.pci.capability`)."""
    parallel: ClassVar[bool] = False
    """Whether calls of several vCPUs may run at once."""

    spec: ClassVar[DeviceSpec]
    """What the class declares, verified."""

    _register_values: dict[str, int]
    faults: Faults
    """What guests did wrong, counted."""
    bugs: Bugs
    """What the model raised, logged."""
    lock: threading.RLock
    """Held while a call, hook or timer of the device runs; calls of a `parallel` one go without."""
    time_limit: Deadline | None
    """What bounds each piece of the model's code; None: nothing does."""
    _plugged_into: Plug | None
    _started_timers: set[_Started]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.spec = verify(cls, Device)

    def __new__(cls, *args: Any, **kwargs: Any) -> Device:  # noqa: D102
        if not hasattr(cls, "id"):
            raise DeclarationError(f"{cls.__name__}.id must be given: (vendor, device)")
        self = super().__new__(cls)
        # Here and not in __init__, which a model overrides without calling ours. The names are such
        # as no model is likely to choose for its own.
        self._register_values = {register.name: register.reset for register in cls.spec.registers}
        self.faults = Faults(cls.spec.name)
        self.bugs = Bugs()
        self.lock = threading.RLock()
        self.time_limit = None
        self._plugged_into = None
        self._started_timers = set()
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
        """Where the device is plugged in. Raises PlugError when it is nowhere."""
        if self._plugged_into is None:
            raise PlugError(f"{self.spec.name} must be plugged into a machine first")
        return self._plugged_into

    @property
    def memory(self) -> Memory:
        """Guest memory (DMA)."""
        return self.plugged.memory

    @property
    def gate(self) -> GateControl:
        """Bind, revoke, filter, limit this device's calls. Raises VectorError if it has none."""
        gate = self.plugged.gate
        if gate is None:
            raise VectorError(f"{self.spec.name} must declare a @call to have a gate")
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
        """Attach to `plug`. Raises PlugError: a device is in one place at a time."""
        if self._plugged_into is not None:
            raise PlugError(f"{self.spec.name} must be unplugged before it is plugged in again")
        with self.lock:
            self._plugged_into = plug
            try:
                self.attach()
            except BaseException:
                self._stop_timers()
                self._plugged_into = None
                raise

    @entry(lambda scope: (scope["self"], "detach"))
    def unplug(self) -> None:
        """Detach; timers stop. A model whose code does not end is left behind without `detach`."""
        try:
            if self.time_limit is not None:
                _in_time(self, "detach", _detach)
            elif _take(self):
                try:
                    self.detach()
                finally:
                    self.lock.release()
            else:
                leave_behind(self)
        except HandlerTimeout as error:
            self._failed("detach", error)
            if not error.begun:
                leave_behind(self)
        finally:
            self._stop_timers()
            self._plugged_into = None

    @entry(lambda scope: (scope["self"], "reset"))
    def do_reset(self) -> None:
        """Stop timers, set registers to their reset values, then tell the model."""
        try:
            if self.time_limit is not None:
                _in_time(self, "reset", _reset)
                return
            with self.lock:
                _reset(self)
        except Exception as error:
            _clear(self)  # The model's own part did not begin, or not end.
            self._failed("reset", error)

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

    @entry(lambda scope: (scope["self"], _read_by_guest(scope["register"])))
    def _read(self, register: Register) -> int:
        try:
            if not register.asked:
                return register.guest_read(self)
            if self.time_limit is not None:
                return _in_time(self, _read_by_guest(register), register.guest_read)
            with self.lock:
                return register.guest_read(self)
        except Exception as error:
            self._failed(_read_by_guest(register), error)
            return register.mask

    @entry(lambda scope: (scope["self"], _written_by_guest(scope["register"])))
    def _write(self, register: Register, value: int, mask: int) -> None:
        if register.masks["r"] & mask == mask:
            self.faults.note(
                "read-only register", f"{register.name} is read-only: a write was dropped"
            )
            return
        try:
            if self.time_limit is not None:
                write = register.guest_write
                _in_time(self, _written_by_guest(register), write, value, mask)
                return
            with self.lock:
                register.guest_write(self, value, mask)
        except Exception as error:
            self._failed(_written_by_guest(register), error)

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
            if self.time_limit is not None:
                read = declared.guest_read
                return _in_time(self, _read_by_guest(declared), read, offset, size) & ones
            with self.lock:
                return declared.guest_read(self, offset, size) & ones
        except Exception as error:
            self._failed(_read_by_guest(declared), error, f" at {offset:#x}")
            return ones

    def _hook_write(self, bar: int, offset: int, size: int, value: int) -> None:
        declared = self.spec.hooks.get(bar)
        if declared is None or declared.write_hook is None:
            self.faults.note(
                "bad write", f"no register takes a write of {size} bytes at BAR {bar} + {offset:#x}"
            )
            return
        try:
            write = declared.write_hook
            if self.time_limit is not None:
                _in_time(self, _written_by_guest(declared), write, offset, size, value)
                return
            with self.lock:
                write(self, offset, size, value)
        except Exception as error:
            self._failed(_written_by_guest(declared), error, f" at {offset:#x}")

    def _failed(self, what: str, error: Exception, at: str = "") -> None:
        """Account for what a hook or a timer raised."""
        if isinstance(error, DmaError):
            # An address that the guest chose, or bus mastering that it took away.
            self.faults.note_dma(f"{what}{at}", error)
            self.bugs.suspect(f"{self.spec.name}.{what}", error, at=at)
        else:
            self.bugs.report(f"{self.spec.name}.{what}", error, at=at)

    def _stop_timers(self) -> None:
        for timer in list(self._started_timers):
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
        device._started_timers.add(self)
        try:
            self._timer = (timers.every if again else timers.after)(seconds, self._run)
        except BaseException:
            device._started_timers.discard(self)
            raise
        # It ran already, or another thread reset the device.
        if self not in device._started_timers:
            self._timer.cancel()

    def cancel(self) -> None:
        """See `Timer`."""
        self._device._started_timers.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    @entry(lambda scope: (scope["self"]._device, "timer"))
    def _run(self) -> None:
        device = self._device
        try:
            if device.time_limit is not None:
                _in_time(device, "timer", self._fire)
            else:
                with device.lock:
                    self._fire(device)
        except Exception as error:
            if not self._again:
                device._started_timers.discard(self)
            device._failed("timer", error)

    def _fire(self, device: Device) -> None:
        if self in device._started_timers:
            if not self._again:
                device._started_timers.discard(self)
            self._callback()


def _in_time(device: Device, what: str, work: Callable[..., T], *arguments: Any) -> T:
    """Run `work(device, *arguments)`, code of the model, in its turn and its time."""
    assert device.time_limit is not None
    return device.time_limit.run(partial(_in_turn, device, what, work, arguments))


@entry(lambda scope: (scope["device"], scope["what"]))
def _in_turn(
    device: Device, what: str, work: Callable[..., T], arguments: tuple[Any, ...], job: Job
) -> T:
    job.acquire()
    try:
        return job.run(work, device, *arguments)
    finally:
        job.release()


def _take(device: Device) -> bool:
    """Take the lock; code of the model's that keeps it for long is ended, if it can be."""
    if device.lock.acquire(timeout=PATIENCE):
        return True
    end_all(device)
    return device.lock.acquire(timeout=PATIENCE)


def _clear(device: Device) -> None:
    device._stop_timers()
    device._register_values.update((each.name, each.reset) for each in device.spec.registers)


def _reset(device: Device) -> None:
    _clear(device)
    device.reset()


def _detach(device: Device) -> None:
    device.detach()
