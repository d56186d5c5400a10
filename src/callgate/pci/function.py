# SPDX-License-Identifier: MIT
"""Function: a device on the PCI bus, with all that PCI asks of it.

    guest ---- configuration ----> ConfigSpace --(watchers)--> decode, bus mastering, MSI-X, power
      |                                                             |
      +------- BAR n, offset ----> Window: registers -> device      |  what a device sees (Plug):
                                   Window: gate, doorbell -> gate   |  memory, trigger, timers, gate
                                   Window: MSI-X table              v

BARs that the class declares keep their index. The function's own take the free ones, in this order:
MSI-X table, gate, the gate's I/O doorbell.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from threading import Lock, RLock
from typing import Literal, ParamSpec, TypeVar

from callgate.device import Device, Memory, TimerQueue
from callgate.errors import DeclarationError, DmaError
from callgate.gate.abi import PIO_SIZE, DoorbellRegister, Transport
from callgate.gate.gate import Gate, Offer
from callgate.gate.vectors import VectorTable
from callgate.memory import anonymous
from callgate.pci import config as space
from callgate.pci.bar import BarState, Kind, Read, Window, Write
from callgate.pci.capability import MSIX, VENDOR_SPECIFIC, Capability, place
from callgate.pci.config import ConfigSpace, define_header
from callgate.pci.msix import ENABLE, FUNCTION_MASK, Msix, MsixCapability
from callgate.pci.names import config_name
from callgate.register import Bar
from callgate.trace import Event, Trace

P = ParamSpec("P")
T = TypeVar("T")
_BARS = 6
_DOORBELLS = {int(register): register.name for register in DoorbellRegister}


class BusMaster:
    """Guest memory as a device reaches it: DmaError while the function may not master the bus.

    A view that `map` gave out stays usable when bus mastering goes off later.
    """

    def __init__(self, memory: Memory, owner: str, aborted: Callable[[], None]) -> None:
        self.enabled = False
        self._memory = memory
        self._owner = owner
        self._aborted = aborted

    def read(self, gpa: int, length: int) -> bytes:
        """See `Memory`."""
        return self._issue(self._memory.read, gpa, length)

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """See `Memory`."""
        self._issue(self._memory.write, gpa, data)

    def map(self, gpa: int, length: int, *, write: bool = False) -> memoryview:
        """See `Memory`."""
        return self._issue(self._memory.map, gpa, length, write=write)

    def scatter(
        self, pieces: Iterable[tuple[int, int]], *, write: bool = False
    ) -> list[memoryview]:
        """See `Memory`."""
        return self._issue(self._memory.scatter, pieces, write=write)

    def check(self, gpa: int, length: int, *, write: bool) -> None:
        """See `Memory`."""
        self._issue(self._memory.check, gpa, length, write=write)

    def _issue(self, access: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if not self.enabled:
            raise DmaError(
                f"{self._owner} must be bus master to reach memory: the driver has to set bit 2 of "
                "the command register, in power state D0"
            )
        try:
            return access(*args, **kwargs)
        except DmaError:
            self._aborted()
            raise


class Function:
    """One function of the PCI bus, made of a device. Implements `callgate.device.Plug` for it.

    `deliver(address, data)` sends an MSI-X message: a write of 32 bits to a GPA. `set_intx(level)`
    is the INTA line. Building one plugs the device in; `close` unplugs it. Raises DeclarationError
    where the declared BARs or capabilities leave no room.

    `config_read`, `config_write` and the BARs never raise for what a guest does.
    """

    def __init__(
        self,
        device: Device,
        *,
        memory: Memory,
        deliver: Callable[[int, int], None],
        set_intx: Callable[[bool], None],
        timers: TimerQueue,
        table: VectorTable,
        offer: Offer | None = None,
        time_limit: float | None = None,
        trace: Trace | None = None,
    ) -> None:
        spec = device.spec
        self.device = device
        self.name = spec.name
        self.faults = device.faults
        self.timers = timers
        self.on_mapping: Callable[[], None] | None = None
        """Called after a BAR moved, or began or ceased to answer."""
        self.awake = True
        self._trace = trace
        self._set_intx = set_intx
        self._memory = BusMaster(memory, spec.name, self._master_abort)
        self._levels: set[int] = set()
        self._line = False
        self._line_lock = RLock()
        self._following = Lock()
        self._mapped: tuple[int | None, ...] = ()
        self._capabilities: dict[int, int] = {}

        vectors = len(spec.interrupts) + bool(spec.calls)
        self.config = ConfigSpace(self.faults)
        define_header(
            self.config,
            id=device.id,
            class_code=device.class_code,
            revision=device.revision,
            subsystem=device.subsystem,
            pin=space.PIN_A if vectors else 0,
        )
        self.msix = Msix(vectors, deliver, self.faults) if vectors else None
        self.gate: Gate | None = None
        if spec.calls:
            self.gate = Gate(
                device,
                table,
                offer or Offer(),
                interrupt=len(spec.interrupts),
                trigger=self.trigger,
                time_limit=time_limit,
                trace=trace,
            )
        try:
            self._ram = {bar.index: memoryview(anonymous(bar.size)) for bar in spec.bars if bar.ram}
            self.bars: tuple[BarState, ...] = ()
            self._place_capabilities(self._place_bars())
            self.config.watch(space.COMMAND, 2, self._follow)
            self.config.watch(space.BAR0, 4 * _BARS, self._follow)
            device.plug_in(self)
        except BaseException:
            if self.gate is not None:
                self.gate.close()
            raise

    def __repr__(self) -> str:
        return f"<Function {self.name} {list(self.bars)}>"

    def close(self) -> None:
        """Revoke the device's vectors, then unplug it."""
        if self.gate is not None:
            self.gate.close()  # First: a call must not find its device unplugged.
        self.device.unplug()

    # --- the guest's side ------------------------------------------------------------------------

    def config_read(self, offset: int, size: int) -> int:
        """A guest's read of configuration space."""
        if self._trace is None:
            return self.config.read(offset, size)
        began = time.perf_counter()
        value = self.config.read(offset, size)
        self._record("config read", self._config_name(offset), (), f"{value:#x}", began)
        return value

    def config_write(self, offset: int, size: int, value: int) -> None:
        """A guest's write to configuration space."""
        if self._trace is None:
            self.config.write(offset, size, value)
            return
        began = time.perf_counter()
        self.config.write(offset, size, value)
        self._record("config write", self._config_name(offset), (value,), "", began)

    def reset(self) -> None:
        """Reset the function: configuration, interrupts, gate, registers, then the model."""
        self.config.reset()
        if self.msix is not None:
            self.msix.reset()
        with self._line_lock:
            self._levels.clear()
        self.awake = True
        self._follow()
        if self.gate is not None:
            self.gate.reset()
        self.device.do_reset()

    # --- the device's side: Plug -----------------------------------------------------------------

    @property
    def memory(self) -> Memory:
        """Guest memory, gated by bus mastering."""
        return self._memory

    def bar_memory(self, index: int) -> memoryview:
        """The memory of a BAR that was declared with `ram`. It survives a reset."""
        return self._ram[index]

    def trigger(self, index: int) -> None:
        """Send the MSI-X message of a vector; without MSI-X, assert INTA until it is deasserted.

        The gate's interrupt is MSI-X only, since the gate has no register to deassert it by.
        """
        began = time.perf_counter() if self._trace is not None else 0.0
        msix = self.msix
        assert msix is not None
        if msix.enabled or msix.signal is not None:
            msix.trigger(index)
        elif index < len(self.device.spec.interrupts):
            self._set_level(index, True)
        if self._trace is not None:
            self._record("interrupt", self._interrupt_name(index), (), "", began)

    def set_level(self, index: int, level: bool) -> None:
        """Assert or deassert INTA for one interrupt; with MSI-X, to assert is to trigger."""
        if level:
            self.trigger(index)
        else:
            self._set_level(index, False)

    @property
    def signal(self) -> Callable[[int], None] | None:
        """Where interrupts go by index when a VMM owns the MSI-X table (vfio-user), else None."""
        return self.msix.signal if self.msix is not None else None

    @signal.setter
    def signal(self, signal: Callable[[int], None] | None) -> None:
        if self.msix is not None:
            self.msix.signal = signal
            self._follow()

    # --- what follows configuration --------------------------------------------------------------

    def set_awake(self, awake: bool) -> None:
        """Enter D0, or D3hot: no decoding, no bus mastering, no interrupts."""
        if awake != self.awake:
            self.awake = awake
            self._follow()

    def _follow(self) -> None:
        """Let everything be what configuration space says now, whatever was written before."""
        msix = self.msix
        # Whoever writes last must see all writes; what is told to others is told without the lock.
        with self._following:
            command = self.config.get(space.COMMAND, 2) if self.awake else 0
            for bar in self.bars:
                bit = space.COMMAND_IO if bar.kind == "io" else space.COMMAND_MEMORY
                bar.decoding = bool(command & bit)
            self._memory.enabled = bool(command & space.COMMAND_MASTER)
            if msix is not None:
                control = self.config.get(self._msix_at + 2, 2)
                msix.enabled = bool(control & ENABLE)
                msix.function_masked = bool(control & FUNCTION_MASK)
                msix.may_send = self._memory.enabled
            mapped = tuple(bar.address if bar.enabled else None for bar in self.bars)
            moved = mapped != self._mapped
            self._mapped = mapped
        if moved and self.on_mapping is not None:
            self.on_mapping()
        if msix is not None:
            msix.flush()
        self._drive_line()

    def _set_level(self, index: int, level: bool) -> None:
        with self._line_lock:
            (self._levels.add if level else self._levels.discard)(index)
            self._drive_line()

    def _drive_line(self) -> None:
        """Let INTA be what levels, MSI-X and command register say (6.2.2, 6.2.3, 6.8.2)."""
        # The lock is held over the call, so that two threads' levels arrive in their order.
        with self._line_lock:
            messages = self.msix is not None and (self.msix.enabled or self.msix.signal is not None)
            wanted = bool(self._levels) and not messages
            bit = space.STATUS_INTERRUPT
            self.config.change(space.STATUS, 2, clear=bit, set=bit if wanted else 0)
            disabled = self.config.get(space.COMMAND, 2) & space.COMMAND_INTX_DISABLE
            line = wanted and self.awake and not disabled
            if line != self._line:
                self._line = line
                self._set_intx(line)

    def _master_abort(self) -> None:
        self.config.change(space.STATUS, 2, set=space.STATUS_MASTER_ABORT)

    # --- building --------------------------------------------------------------------------------

    def _place_bars(self) -> list[Capability]:
        """Make all BARs; returns the capabilities that say where MSI-X table and gate are."""
        spec = self.device.spec
        states = [self._declared(bar) for bar in spec.bars]
        taken = {bar.index + half for bar in spec.bars for half in range(bar.width // 32)}

        def take(what: str, count: int) -> int | None:
            for index in range(_BARS + 1 - count):
                slots = set(range(index, index + count))
                if not slots & taken:
                    taken.update(slots)
                    return index
            if what:
                raise DeclarationError(
                    f"{self.name} must leave a BAR free for its {what}: it declares "
                    f"{', '.join(bar.name for bar in spec.bars)}"
                )
            return None

        def add(
            index: int, size: int, *windows: Window, kind: Kind = "memory", width: int = 32
        ) -> None:
            states.append(self._bar(index, size, windows, kind=kind, width=width))

        found: list[Capability] = []
        if self.msix is not None:
            index = take("MSI-X table", 1)
            assert index is not None
            add(index, self.msix.bar_size, *self.msix.windows())
            found.append(MsixCapability(self.msix.vectors, index, self.msix.pending_at))
        gate = self.gate
        if gate is not None:
            wide = take("", 2)
            index = wide if wide is not None else take("gate", 1)
            assert index is not None
            add(
                index,
                1 << (gate.size - 1).bit_length(),
                Window("gate", 0, gate.ram_size, ram=gate.ram),
                Window(
                    "doorbell",
                    gate.ram_size,
                    gate.doorbell_size,
                    read=gate.mmio_read,
                    write=gate.mmio_write,
                ),
                width=32 if wide is None else 64,
            )
            # The one that a device can do without: its transport is then not offered.
            ports = take("", 1) if gate.offer.transports & Transport.PIO else None
            if ports is not None:
                window = Window(
                    "doorbell ports", 0, PIO_SIZE, read=gate.pio_read, write=gate.pio_write
                )
                add(ports, PIO_SIZE, window, kind="io")
            found.append(Capability(VENDOR_SPECIFIC, gate.capability(index, 0, ports)))
        self.bars = tuple(sorted(states, key=lambda state: state.index))
        if self._trace is not None:
            for bar in self.bars:
                for window in bar.windows:
                    self._trace_window(bar, window)
        self._mapped = (None,) * len(states)
        return found

    def _declared(self, bar: Bar) -> BarState:
        if bar.ram:
            window = Window(bar.name, 0, bar.size, ram=self._ram[bar.index])
        else:
            read: Read = partial(self.device.register_read, bar.index)
            write: Write = partial(self.device.register_write, bar.index)
            window = Window(bar.name, 0, bar.size, read=read, write=write)
        return self._bar(
            bar.index,
            bar.size,
            (window,),
            kind=bar.kind,
            width=bar.width,
            prefetchable=bar.prefetchable,
        )

    def _bar(
        self,
        index: int,
        size: int,
        windows: tuple[Window, ...],
        *,
        kind: Kind,
        width: int,
        prefetchable: bool = False,
    ) -> BarState:
        bits: Literal[32, 64] = 64 if width == 64 else 32
        return BarState(
            index,
            size,
            kind,
            width=bits,
            prefetchable=prefetchable,
            windows=windows,
            config=self.config,
            faults=self.faults,
        )

    def _place_capabilities(self, own: list[Capability]) -> None:
        declared = self.device.capabilities
        seen: set[int] = set()
        for each in declared:
            if not isinstance(each, Capability):
                raise DeclarationError(
                    f"The capabilities of {self.name} must be Capability objects "
                    f"(callgate.pci.capability), not {each!r}"
                )
            if each.id == MSIX:
                raise DeclarationError(
                    f"{self.name} must not declare an MSI-X capability: Interrupt() makes it"
                )
            if each.id in seen and each.id != VENDOR_SPECIFIC:
                raise DeclarationError(
                    f"{self.name} must not declare two capabilities with the id {each.id:#04x}"
                )
            seen.add(each.id)
        placed = place(self, (*declared, *own), self.name)
        self._capabilities = {at: each.id for at, each in placed.items()}
        for at, each in placed.items():
            if each.id == MSIX:
                self._msix_at = at
                self.config.watch(at + 2, 2, self._follow)

    # --- tracing ---------------------------------------------------------------------------------

    def _trace_window(self, bar: BarState, window: Window) -> None:
        if window.ram is not None:
            return  # Plain memory: nobody sees the accesses.
        read, write = window.read, window.write

        def traced_read(offset: int, size: int) -> int:
            began = time.perf_counter()
            value = read(offset, size)
            self._record("read", self._place_name(bar, window, offset), (), f"{value:#x}", began)
            return value

        def traced_write(offset: int, size: int, value: int) -> None:
            began = time.perf_counter()
            write(offset, size, value)
            self._record("write", self._place_name(bar, window, offset), (value,), "", began)

        window.read, window.write = traced_read, traced_write

    def _place_name(self, bar: BarState, window: Window, offset: int) -> str:
        register = self.device.spec.bytes_of.get((bar.index, offset))
        if register is not None:
            inside = offset - register.offset
            return f"{register.name} + {inside}" if inside else register.name
        if window.name.startswith("doorbell") and offset in _DOORBELLS:
            return f"{window.name} {_DOORBELLS[offset]}"
        return f"{window.name} + {offset:#x}"

    def _config_name(self, offset: int) -> str:
        return config_name(offset, self._capabilities)

    def _interrupt_name(self, index: int) -> str:
        declared = self.device.spec.interrupts
        return declared[index].name if index < len(declared) else "gate"

    def _record(
        self, kind: str, name: str, arguments: tuple[object, ...], result: str, began: float
    ) -> None:
        if self._trace is not None:
            self._trace(
                Event(self.name, kind, name, arguments, result, time.perf_counter() - began)
            )
