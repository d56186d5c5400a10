# SPDX-License-Identifier: MIT
"""Function: a device on the PCI bus, with all that PCI asks of it.

    guest ---- configuration ----> ConfigSpace --(watchers)--> decode, bus mastering, MSI, power
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
from typing import Literal, cast

from callgate.deadline import Deadline
from callgate.device import Device, Memory, TimerQueue
from callgate.errors import DmaError
from callgate.gate.abi import PIO_SIZE, DoorbellRegister, Transport
from callgate.gate.gate import Gate, Offer
from callgate.gate.tracing import came_by
from callgate.gate.vectors import VectorTable
from callgate.memory import anonymous
from callgate.pci import config as space
from callgate.pci.bar import BarState, Kind, Read, Window, Write
from callgate.pci.capability import MSI, MSIX, VENDOR_SPECIFIC, Capability, place
from callgate.pci.config import ConfigSpace, define_header
from callgate.pci.message import Messages
from callgate.pci.msi import Msi
from callgate.pci.msix import Msix, MsixCapability
from callgate.pci.names import config_name
from callgate.pci.tracing import TracedMemory
from callgate.register import Bar
from callgate.spec import BARS
from callgate.trace import Event, Trace

_WAYS = {"doorbell": "mmio", "doorbell ports": "pio"}
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

    # Written out, since models spend much of their time here.

    def read(self, gpa: int, length: int) -> bytes:
        """See `Memory`."""
        if not self.enabled:
            self._need_master()
        try:
            return self._memory.read(gpa, length)
        except DmaError:
            self._aborted()
            raise

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """See `Memory`."""
        if not self.enabled:
            self._need_master()
        try:
            self._memory.write(gpa, data)
        except DmaError:
            self._aborted()
            raise

    def map(self, gpa: int, length: int, *, write: bool = False) -> memoryview:
        """See `Memory`."""
        self._need_master()
        try:
            return self._memory.map(gpa, length, write=write)
        except DmaError:
            # Memory that the VMM does not share is there all the same: no abort on the bus.
            self.check(gpa, length, write=write)
            raise

    def scatter(
        self, pieces: Iterable[tuple[int, int]], *, write: bool = False
    ) -> list[memoryview]:
        """See `Memory`."""
        self._need_master()
        pieces = list(pieces)
        try:
            return self._memory.scatter(pieces, write=write)
        except DmaError:
            for gpa, length in pieces:
                self.check(gpa, length, write=write)
            raise

    def check(self, gpa: int, length: int, *, write: bool) -> None:
        """See `Memory`."""
        self._need_master()
        try:
            self._memory.check(gpa, length, write=write)
        except DmaError:
            self._aborted()
            raise

    def _need_master(self) -> None:
        if not self.enabled:
            raise DmaError(
                f"{self._owner} must be bus master to reach memory: the driver has to set bit 2 of "
                "the command register, in power state D0"
            )


class Function:
    """One function of the PCI bus, made of a device. Implements `callgate.device.Plug` for it.

    `deliver(address, data)` sends a message: a write of 32 bits to a GPA; None where a VMM makes
    messages (`connect`). `set_intx(level)` is the INTA line. Building one plugs the device in;
    `close` unplugs it. Raises DeclarationError where the declared capabilities leave no room.

    `config_read`, `config_write` and the BARs never raise for what a guest does.
    """

    def __init__(
        self,
        device: Device,
        *,
        memory: Memory,
        deliver: Callable[[int, int], None] | None,
        set_intx: Callable[[bool], None],
        timers: TimerQueue,
        table: VectorTable,
        offer: Offer | None = None,
        time_limit: float | None = None,
        trace: Trace | None = None,
    ) -> None:
        if not isinstance(device, Device):
            hint = f", {device.__name__}()" if isinstance(device, type) else ""
            raise TypeError(f"What is plugged in must be a device{hint}, not {device!r}")
        spec = device.spec
        self.device = device
        device.time_limit = None if time_limit is None else Deadline(device.lock, time_limit)
        self.name = spec.name
        self.faults = device.faults
        self.timers = timers
        self.on_mapping: Callable[[], None] | None = None
        """Called after a BAR moved, or began or ceased to answer."""
        self.awake = True
        self._trace = trace
        self._set_intx = set_intx
        self._memory = BusMaster(memory, spec.name, self._master_abort)
        self.memory: Memory = self._memory
        """Guest memory, gated by bus mastering."""
        if trace is not None:
            self.memory = TracedMemory(self._memory, self._record)
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
            pin=space.PIN_A if spec.interrupts else 0,
        )
        self.msix = Msix(vectors, deliver, self.faults) if vectors and device.msix else None
        masking = device.msi_masking
        self.msi = Msi(vectors, deliver, masking=masking) if vectors and device.msi else None
        # In this order, since MSI may be used only while MSI-X is disabled (6.8.1.3).
        self._messages: tuple[Messages, ...] = tuple(filter(None, (self.msix, self.msi)))
        self._in_use: Messages | None = None
        self.gate: Gate | None = None
        if spec.calls:
            self.gate = Gate(
                device,
                table,
                offer or Offer(),
                interrupt=len(spec.interrupts),
                trigger=self.trigger,
                trace=trace,
            )
        try:
            self._ram = {bar.index: memoryview(anonymous(bar.size)) for bar in spec.bars if bar.ram}
            self.bars: tuple[BarState, ...] = ()
            self._place_capabilities(self._place_bars())
            self.config.watch(space.COMMAND, 2, self._follow)
            self.config.watch(space.BAR0, 4 * BARS, self._follow)
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
        for messages in self._messages:
            messages.reset()
        with self._line_lock:
            self._levels.clear()
        self.awake = True
        self._follow()
        if self.gate is not None:
            self.gate.reset()
        self.device.do_reset()

    # --- the device's side: Plug -----------------------------------------------------------------

    def bar_memory(self, index: int) -> memoryview:
        """The memory of a BAR that was declared with `ram`. It survives a reset."""
        return self._ram[index]

    def trigger(self, index: int) -> None:
        """Send an interrupt's message; without MSI and MSI-X, assert INTA until it is deasserted.

        The gate's interrupt is a message only, since the gate has no register to deassert it by.
        """
        began = time.perf_counter() if self._trace is not None else 0.0
        messages = self._in_use
        if messages is not None:
            messages.trigger(index)
        elif index < len(self.device.spec.interrupts):
            self._set_level(index, True)
        if self._trace is not None:
            self._record("interrupt", self._interrupt_name(index), (), "", began)

    def set_level(self, index: int, level: bool) -> None:
        """Assert or deassert INTA for one interrupt; by messages, trigger or withdraw it."""
        if level:
            self.trigger(index)
            return
        for messages in self._messages:
            messages.withdraw(index)
        self._set_level(index, False)

    @property
    def msix_enabled(self) -> bool:
        """Whether the driver has enabled MSI-X."""
        return self.msix is not None and self._in_use is self.msix

    def connect(self, messages: Messages, signal: Callable[[int], None], vectors: int) -> None:
        """Let a VMM make the first `vectors` messages of MSI or MSI-X; 0: no more.

        That enables them, as the capability's bit does (linux/vfio.h, VFIO_DEVICE_SET_IRQS).
        """
        messages.connect(signal, vectors)
        self._follow()

    # --- what follows configuration --------------------------------------------------------------

    def set_awake(self, awake: bool) -> None:
        """Enter D0, or D3hot: no decoding, no bus mastering, no interrupts."""
        if awake != self.awake:
            self.awake = awake
            self._follow()

    def _follow(self) -> None:
        """Let everything be what configuration space says now, whatever was written before."""
        # Whoever writes last must see all writes; what is told to others is told without the lock.
        with self._following:
            command = self.config.get(space.COMMAND, 2) if self.awake else 0
            for bar in self.bars:
                bit = space.COMMAND_IO if bar.kind == "io" else space.COMMAND_MEMORY
                bar.decoding = bool(command & bit)
            self._memory.enabled = bool(command & space.COMMAND_MASTER)
            for messages in self._messages:
                messages.follow()
            self._in_use = next((each for each in self._messages if each.in_use), None)
            for messages in self._messages:
                messages.may_send = self._memory.enabled and messages is self._in_use
            mapped = tuple(bar.address if bar.enabled else None for bar in self.bars)
            moved = mapped != self._mapped
            self._mapped = mapped
        if moved and self.on_mapping is not None:
            self.on_mapping()
        for messages in self._messages:
            messages.flush()
        self._drive_line()

    def _set_level(self, index: int, level: bool) -> None:
        with self._line_lock:
            (self._levels.add if level else self._levels.discard)(index)
            self._drive_line()

    def _drive_line(self) -> None:
        """Let INTA be what levels, messages and command register say (6.2.2, 6.2.3, 6.8.3.3)."""
        # The lock is held over the call, so that two threads' levels arrive in their order.
        with self._line_lock:
            wanted = bool(self._levels) and self._in_use is None
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
        """Make all BARs; returns the function's own capabilities, which say where things are."""
        spec = self.device.spec
        states = [self._declared(bar) for bar in spec.bars]
        taken = {bar.index + half for bar in spec.bars for half in range(bar.width // 32)}

        def take(count: int) -> int | None:
            for index in range(BARS + 1 - count):
                slots = set(range(index, index + count))
                if not slots & taken:
                    taken.update(slots)
                    return index
            return None

        def add(
            index: int, size: int, *windows: Window, kind: Kind = "memory", width: int = 32
        ) -> None:
            states.append(self._bar(index, size, windows, kind=kind, width=width))

        found: list[Capability] = []
        if self.msi is not None:
            found.append(self.msi.capability())
        if self.msix is not None:
            index = take(1)
            assert index is not None  # `spec.py` sees to it.
            add(index, self.msix.bar_size, *self.msix.windows())
            found.append(MsixCapability(self.msix.vectors, index, self.msix.pending_at))
        gate = self.gate
        if gate is not None:
            wide = take(2)
            index = wide if wide is not None else take(1)
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
            ports = take(1) if gate.offer.transports & Transport.PIO else None
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
            combines = bar.write_combining
            window = Window(bar.name, 0, bar.size, read=read, write=write, combines=combines)
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
        declared = cast("tuple[Capability, ...]", self.device.capabilities)
        placed = place(self, (*declared, *own), self.name)
        self._capabilities = {at: each.id for at, each in placed.items()}
        for id, messages in ((MSIX, self.msix), (MSI, self.msi)):
            if messages is not None:
                at = next(at for at, each in placed.items() if each.id == id)
                messages.placed(self.config, at)
                self.config.watch(at + 2, placed[at].size - 2, self._follow)

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
            with came_by(_WAYS.get(window.name, window.name)):
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
