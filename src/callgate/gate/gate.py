# SPDX-License-Identifier: MIT
"""The gate: directory, frames and doorbell of one device (docs/abi.md).

    doorbell write (or a watcher, or a hypercall of the doorbell vector)
        -> Frame.look      claim the frame (RUNNING), copy its head and values once
        -> vector table    which call is it
        -> Slot.run        may it run; the stub: check, call the method
        -> the frame       results, status, then state DONE

    hypercall, register form -> Router.call(vector, registers) -> Target.execute

`Gate` knows nothing of PCI: whoever plugs the device in puts `ram` and the doorbell into a BAR.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from callgate.call import (
    compile_frame_stub,
    compile_stub,
    placing,
)
from callgate.device import Device
from callgate.errors import (
    CallgateError,
    DrainTimeout,
    PlugError,
    VectorError,
    VectorsExhausted,
)
from callgate.faults import Faults
from callgate.gate import abi
from callgate.gate import frame as ways
from callgate.gate.abi import (
    CAPABILITY,
    ENTRY,
    HEADER,
    PAGE,
    CallFlag,
    DoorbellRegister,
    Feature,
    Instruction,
    Status,
    Transport,
    round_up,
)
from callgate.gate.frame import PlainFrame, head
from callgate.gate.target import Doorbell, Target
from callgate.gate.tracing import TracedFrame, TracedTarget, by, refused_event, remember
from callgate.gate.vectors import Binding, Slot, VectorTable
from callgate.memory import anonymous
from callgate.threads import end_all, leave_behind
from callgate.trace import Trace

ONES = 0xFFFF_FFFF
RESET_DRAIN = 1.0
"""Seconds that a reset waits for calls in flight."""

# Plain numbers: an IntFlag's operators cost more than all else on a call's path.
_DOORBELL = int(DoorbellRegister.DOORBELL)
_NOTIFY = int(DoorbellRegister.NOTIFY)
_VERSION = int(DoorbellRegister.VERSION)
_ACCEPTED = int(DoorbellRegister.FEATURES)
_OK, _DEVICE_ERROR = Status.OK, Status.DEVICE_ERROR
_FEATURES = Feature.NOTIFY | Feature.CHANGE_INTERRUPT | Feature.DONE_INTERRUPT


@dataclass(frozen=True)
class Offer:
    """What a platform offers a guest that wants to call: content of the PCI capability."""

    transports: Transport = Transport.MMIO | Transport.PIO | Transport.POLLED
    instruction: Instruction = Instruction.NONE
    selector: int = 0


class Gate:
    """The gate of one device that is plugged in.

    `interrupt` is the index of the gate's interrupt and `trigger` sends it; both are left out where
    there is none. Public methods may be called from any thread.
    """

    doorbell_size = PAGE

    def __init__(
        self,
        device: Device,
        table: VectorTable,
        offer: Offer,
        *,
        interrupt: int | None = None,
        trigger: Callable[[int], None] | None = None,
        trace: Trace | None = None,
    ) -> None:
        if sys.byteorder != "little":  # The frames are read through native views.
            raise CallgateError("The host must be little-endian to run a gate")
        self.device = device
        self.table = table
        self.offer = offer
        self.faults = device.faults
        self.interrupt = abi.NO_INTERRUPT if interrupt is None else interrupt
        self._trigger = trigger
        self.trace = trace
        self._watcher: Callable[[], None] | None = None
        self.on_notifiable: Callable[[], None] = _nothing
        """Called when `notifiable` may have changed."""
        self.version = 0
        self._frames: list[PlainFrame] = []
        self._accept(Feature(0))
        self.offered = _FEATURES
        if offer.transports & Transport.POLLED:
            self.offered |= Feature.POLLED

        self._calls = {call.name: call for call in device.spec.calls}
        self._names = list(self._calls)
        self._bindings: dict[str, Binding] = {}
        self._ready: dict[int, Binding] = {}
        # Held for moments only: never while calls drain, nor while an interrupt is sent.
        self._changing = threading.RLock()
        self._closed = False
        self._lay_out()
        pages = anonymous(self.ram_size)
        self.pages = pages
        self.ram = memoryview(pages)
        self._words = self.ram.cast("I")
        kind, bell, watch = ways.WAYS if trace is None else ways.PLAIN._replace(frame=TracedFrame)
        self._frames = [
            kind(self, self._ready, self.ram[base : base + self.frame_size], table.slot())
            for base in self._bases
        ]
        self.frame_of = {frame.slot: index for index, frame in enumerate(self._frames)}
        """The frame's index by where its call in flight is written down."""
        frames, step = tuple(self._frames), self.frame_size // 4
        states = self._words[self.frames_offset // 4 :][: step * len(frames) : step]
        self.mmio_write = bell(frames, self._doorbell_write)
        """A guest's write in the doorbell page: (offset, size, value)."""
        self.pio_write = bell(frames, self._port_write)
        """A guest's write in the I/O BAR: (offset, size, value)."""
        self.watch = watch(frames, states)
        """Look at all frames so often, and answer what is READY; whether something was."""
        self._notify_slots: list[Slot] = []
        self._generation = 0
        self._watching = False
        self._doorbell: Binding | None = None
        self._write_directory()
        try:
            with self._change():
                self._bind_all()
        except BaseException:
            self.close()
            raise

    # --- layout ----------------------------------------------------------------------------------

    def _lay_out(self) -> None:
        texts = [call.text.encode() for call in self._calls.values()]
        self._directory = HEADER.size
        self._texts = self._directory + len(texts) * ENTRY.size
        self._text_length = sum(map(len, texts))
        self.frame_size = self.device.frame_size
        self.frame_count = self.device.frames
        self.frames_offset = round_up(self._texts + self._text_length, max(PAGE, self.frame_size))
        self._bases = [
            self.frames_offset + index * self.frame_size for index in range(self.frame_count)
        ]
        self.ram_size = round_up(self.frames_offset + self.frame_count * self.frame_size, PAGE)
        self.size = self.ram_size + self.doorbell_size

    def _write_directory(self) -> None:
        """Write header, entries and texts, all without vectors: the guest may have spoilt them."""
        spec = self.device.spec
        self.ram[: HEADER.size] = HEADER.pack(
            signature=abi.HEADER_SIGNATURE,
            version_minor=abi.VERSION_MINOR,
            version_major=abi.VERSION_MAJOR,
            features=int(self.offered),
            generation=self._generation,
            uuid=spec.uuid.bytes,
            device_version=self.device.version,
            directory_offset=self._directory,
            entry_count=len(self._names),
            entry_size=ENTRY.size,
            frames_offset=self.frames_offset,
            frame_count=self.frame_count,
            interrupt=self.interrupt,
            frame_size=self.frame_size,
            doorbell_offset=self.ram_size,
            name=spec.name.encode(),
            text_offset=self._texts,
            text_length=self._text_length,
            watching=int(self._watching),
        )
        text = self._texts
        for number, call in enumerate(self._calls.values()):
            data = call.text.encode()
            base = self._directory + number * ENTRY.size
            self.ram[text : text + len(data)] = data
            self.ram[base : base + ENTRY.size] = ENTRY.pack(
                arguments=call.arguments,
                results=call.result_slots,
                flags=int(call.flags),
                signature=call.hash,
                name=call.name.encode(),
                text_offset=text,
                text_length=len(data),
            )
            text += len(data)

    def capability(self, bar: int, offset: int, pio_bar: int | None, pio_offset: int = 0) -> bytes:
        """The vendor-specific capability (CAPABILITY without its first two bytes) for a gate at
        `offset` of BAR `bar`, with its pio doorbell in `pio_bar`, if there is one."""
        transports = self.offer.transports
        if pio_bar is None:
            transports &= ~Transport.PIO
        return CAPABILITY.pack(
            length=CAPABILITY.size,
            bar=bar,
            signature=abi.CAPABILITY_SIGNATURE,
            version_minor=abi.VERSION_MINOR,
            version_major=abi.VERSION_MAJOR,
            gate_offset=offset,
            gate_length=self.size,
            doorbell_offset=self.ram_size,
            transports=int(transports),
            instruction=int(self.offer.instruction),
            pio_bar=abi.NO_BAR if pio_bar is None else pio_bar,
            pio_offset=pio_offset,
            selector=self.offer.selector,
            frame_count=self.frame_count,
            entry_count=len(self._names),
        )[2:]

    # --- the host's hand: GateControl ------------------------------------------------------------

    def bind(self, name: str) -> int:
        """Give the call a new vector; one that it has is revoked first.

        Raises VectorError for a name that the device does not declare, VectorsExhausted when the
        table is used up, PlugError when the device is not plugged in.
        """
        while True:
            self.revoke(name)
            with self._change():
                if self._closed:
                    raise PlugError(f"{self.device} must be plugged in to bind {name!r}")
                # Else another thread was quicker: its vector is revoked as any other is.
                if name not in self._bindings:
                    return self._bind(name).vector

    def revoke(self, name: str, *, timeout: float | None = None) -> None:
        """Take the call's vector away: when this returns, no call of it runs, and none starts.

        A call that revokes itself does not wait for itself. Raises VectorError as `bind` does, and
        DrainTimeout when calls are still in flight after `timeout` seconds; no new one starts then
        either. A call that has no vector is left as it is.
        """
        binding = self.binding(name)
        if binding is None:
            return
        # Draining holds no lock: the calls in flight may need the gate.
        try:
            self.table.revoke(binding, timeout=timeout)
        finally:
            if self._bindings.get(name) is binding:
                with self._change():
                    if self._bindings.get(name) is binding:
                        self._unbind(name)

    def allow(self, *names: str) -> None:
        """Let the calls through; if none is named, all of the device's."""
        self.table.allow(self.device, [self._known(name) for name in names] or self._names)

    def deny(self, *names: str, timeout: float | None = None) -> None:
        """Answer DENIED; when this returns, no call of them runs, and none starts until `allow`.

        If none is named, all of the device's. It outlives revocations and resets. Raises
        DrainTimeout as `revoke` does, when all of them are denied.
        """
        denied = [self._known(name) for name in names] or self._names
        self.table.deny(self.device, denied, timeout=timeout)

    def limit(
        self, name: str, *, per_second: float | None = None, in_flight: int | None = None
    ) -> None:
        """Answer BUSY to calls beyond `per_second` (a second's worth may come at once) or beyond
        `in_flight` at a time, those included that wait for the device. None lifts that limit.
        Raises VectorError as `bind` does."""
        known = self._known(name)
        self.table.limit(self.device, known, per_second=per_second, in_flight=in_flight)

    def binding(self, name: str) -> Binding | None:
        """The call's binding (its vector and counters), or None while it has no vector."""
        return self._bindings.get(self._known(name))

    def _known(self, name: str) -> str:
        if name not in self._calls:
            known = ", ".join(self._names)
            raise VectorError(f"{self.device} must declare {name!r}; its calls are {known}")
        return name

    def reset(self) -> None:
        """All vectors are revoked and new ones assigned; version and features are forgotten.

        A call that is still in flight after RESET_DRAIN seconds keeps its frame until it ends.
        """
        if not self._revoke_all():
            leave_behind(self.device)
        with self._change():
            self.version = 0
            self._accept(Feature(0))
            for frame in self._frames:
                frame.clear()
            self._write_directory()
            for name, binding in self._bindings.items():
                self._set_vector(name, binding.vector)
            if not self._closed:
                try:
                    self._bind_all()
                except VectorsExhausted as error:  # Which the guest can bring about.
                    self.device.bugs.report(f"{self.device}, reset", error)

    def close(self) -> None:
        """Revoke everything; the device is being unplugged. Harmless when repeated.

        Calls that are still in flight after RESET_DRAIN seconds are ended, or left behind.
        """
        self._closed = True
        if not self._revoke_all():
            end_all(self.device)
            if not self._revoke_all():
                leave_behind(self.device)
        self.table.forget(self.device)
        self.pages.unshare()

    def _revoke_all(self) -> bool:
        """Whether all calls have ended, in time."""
        drained = True
        try:
            self.table.revoke_owner(self.device, timeout=RESET_DRAIN)
        except DrainTimeout:
            drained = False
        with self._change():
            for name, binding in list(self._bindings.items()):
                # What was bound while the others drained is as new as can be.
                if binding.refusal is Status.REVOKED:
                    self._unbind(name)
        return drained

    def _bind_all(self) -> None:
        if self._doorbell is None or self._doorbell.refusal is Status.REVOKED:
            ring = self.ring if self.trace is None else by("hypercall", self.ring)
            self._doorbell = self.table.bind(self.device, "(doorbell)", 0, Doorbell(ring))
        self._words[HEADER.offset("doorbell_vector") // 4] = self._doorbell.vector
        for name in self._names:
            if name not in self._bindings:
                self._bind(name)

    def _bind(self, name: str) -> Binding:
        call = self._calls[name]
        stub = compile_stub(call, self.device)
        if call.flags & CallFlag.PAYLOAD_OUT:
            stub = placing(call, stub)
        if self.trace is not None:
            target: Target = TracedTarget(self, call, stub, self.trace)
        else:
            direct = self.device.time_limit is None
            target = Target(
                self, call, stub, compile_frame_stub(call, self.device) if direct else None
            )
        binding = self.table.bind(self.device, name, call.hash, target)
        self._bindings[name] = binding
        self._ready[head(binding.vector)] = binding
        self._set_vector(name, binding.vector)
        return binding

    def _unbind(self, name: str) -> None:
        binding = self._bindings.pop(name)
        if self.trace is not None:
            remember(self.table, binding)
        del self._ready[head(binding.vector)]
        self._set_vector(name, 0)

    def _set_vector(self, name: str, vector: int) -> None:
        base = self._directory + self._names.index(name) * ENTRY.size
        self._words[base // 4] = vector

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Hold the directory while it is rewritten; its generation is odd meanwhile."""
        with self._changing:
            self._set_generation(self._generation | 1)
            try:
                yield
            finally:
                # All ones is what a driver reads where there is no device any more.
                self._set_generation((self._generation + 1) % (ONES - 1))
        self.on_notifiable()
        if self._tells_changes:
            self._send()

    def tell_done(self) -> None:
        """Send the gate's interrupt, if the driver accepted it, for a frame that asks for it."""
        if self._tells_done:
            self._send()

    def _set_generation(self, generation: int) -> None:
        self._generation = generation
        self._words[HEADER.offset("generation") // 4] = generation

    def _send(self) -> None:
        if self._trigger is not None:
            try:
                self._trigger(self.interrupt)
            except Exception as error:  # Nobody who rings is to suffer for it.
                self.device.bugs.report(f"{self.device}, the gate's interrupt", error)

    # --- the guest's side: doorbells -------------------------------------------------------------

    def watched_by(self, wake: Callable[[], None] | None) -> None:
        """Call `wake` after each doorbell of a driver that accepted `polled`; None: nobody does."""
        self._watcher = wake
        self._accept(self.features)

    def say_watching(self, watching: bool) -> None:
        """Tell drivers whether somebody looks at the frames."""
        with self._changing:  # A reset must not write back what it was before.
            self._watching = watching
            self.ram[HEADER.offset("watching")] = int(watching)

    def _accept(self, features: Feature) -> None:
        self.features = features
        for frame in self._frames:
            frame.woken = self._watcher if self.polled else None
        self._takes_notify = bool(features & Feature.NOTIFY)
        self._tells_changes = bool(features & Feature.CHANGE_INTERRUPT)
        self._tells_done = bool(features & Feature.DONE_INTERRUPT)
        self.on_notifiable()

    @property
    def polled(self) -> bool:
        """Whether the driver accepted the feature `polled`."""
        return bool(self.features & Feature.POLLED)

    def mmio_read(self, offset: int, size: int) -> int:
        """A guest's read in the doorbell page. All ones when the device is unplugged."""
        if size == 4 and not self._closed:
            if offset == _DOORBELL:
                return self._generation
            if offset == _NOTIFY:
                return 0
            if offset == _VERSION:
                return self.version
            if offset == _ACCEPTED:
                return int(self.features)
        self.faults.note("doorbell page", f"no doorbell register has {size} bytes at {offset:#x}")
        return (1 << size * 8) - 1

    def _doorbell_write(self, offset: int, size: int, value: int) -> None:
        """A write in the doorbell page that rings for no frame."""
        if size != 4:
            self._no_register(offset, size)
        elif offset == _DOORBELL:
            self._no_frame(value)
        elif offset == _NOTIFY:
            self.notify(value)
        elif offset == _VERSION:
            major, minor = value >> 16, value & 0xFFFF
            known = major == abi.VERSION_MAJOR and minor <= abi.VERSION_MINOR
            self.version = value if known else 0
        elif offset == _ACCEPTED:
            self._accept(self.offered & value)
        else:
            self._no_register(offset, size)

    def _no_register(self, offset: int, size: int) -> None:
        self.faults.note("doorbell page", f"no doorbell register takes {size} bytes at {offset:#x}")

    def pio_read(self, offset: int, size: int) -> int:
        """A guest's read in the I/O BAR: DOORBELL and NOTIFY, as in the page."""
        if offset < _VERSION:
            return self.mmio_read(offset, size)
        self.faults.note("doorbell port", f"no doorbell port answers at {offset:#x}")
        return (1 << size * 8) - 1

    def _port_write(self, offset: int, size: int, value: int) -> None:
        """A write in the I/O BAR that rings for no frame: DOORBELL and NOTIFY, as in the page."""
        if offset < _VERSION:
            self._doorbell_write(offset, size, value)
        else:
            self.faults.note("doorbell port", f"no doorbell port takes a write at {offset:#x}")

    @property
    def notifiable(self) -> list[int]:
        """The vectors that NOTIFY takes now: one-way calls without arguments."""
        if not self._takes_notify:
            return []
        targets = [(each.vector, each.target) for each in list(self._bindings.values())]
        return [vector for vector, target in targets if target.one_way and not target.arguments]

    def notify(self, vector: int) -> None:
        """Run a one-way call that takes nothing (docs/abi.md, 6.5)."""
        binding = self.table.live.get(vector)
        if not self._takes_notify:
            self.faults.note("notify", "NOTIFY must be accepted as a feature before it is used")
            return
        if binding is None or binding.target.gate is not self:
            self.faults.note("notify", f"NOTIFY got {vector:#x}, which is no vector of this device")
            return
        target: Target = binding.target
        if not target.one_way or target.arguments:
            self.faults.note("notify", f"{target.name} must be one_way without arguments")
            return
        # Several vCPUs may notify at once, and each needs a place where its call is written down.
        try:
            slot = self._notify_slots.pop()
        except IndexError:
            slot = self.table.slot()
        target.execute(slot, binding, (), None)
        self._notify_slots.append(slot)

    def ring(self, index: int, from_watcher: bool = False) -> bool:
        """Look at a frame and answer it if it is READY. False when there is no such frame."""
        try:
            frame = self._frames[index]
        except IndexError:
            self._no_frame(index)
            return False
        frame.look(from_watcher)
        return True

    def look(self) -> None:
        """Answer every frame that is READY: a doorbell rang, and nobody knows for which."""
        for frame in self._frames:
            frame.look()

    def _no_frame(self, index: int) -> None:
        sentence = f"a frame's index must be below {self.frame_count}, not {index}"
        self.faults.note("frame index", sentence)


def _nothing() -> None:
    """Nobody wants to know."""


class Router:
    """Hypercalls of one VM: by the vector to whichever device has it (docs/abi.md, 6.3).

    `slots` is how many slots the platform's registers carry: 6, or 3 in 32-bit code.
    """

    def __init__(self, table: VectorTable, slots: int = abi.MAX_REGISTER_VALUES) -> None:
        self.table = table
        self.slots = slots
        self.faults = Faults("hypercalls")
        """What was called that registers cannot reach; all else is counted with its device."""
        self.trace: Trace | None = None
        """Told of calls that lead to no device."""

    def call(
        self, slot: Slot, vector: int, fetch: Callable[[int], tuple[int, ...]]
    ) -> tuple[Status, tuple[int, ...]]:
        """Make a call in register form. `fetch(n)` reads the first n argument slots.

        Returns the status and what goes into the result registers. `slot` is the vCPU's own.
        """
        binding = self.table.live.get(vector)
        if binding is None:
            status = self.table.judge(vector)
            self.faults.note(status.name, f"vector {vector:#x} leads to no call")
            if self.trace is not None:
                self.trace(refused_event(self.table, "no device", vector, status, "hypercall"))
            return status, ()
        target: Target | Doorbell = binding.target
        if target.registers > self.slots:
            self.faults.note(
                Status.BAD_FRAME.name, f"{binding} must be called by a frame, not by registers"
            )
            return Status.BAD_FRAME, ()
        values = fetch(target.arguments)
        if target.direct and binding.quota is None:
            try:
                return _OK, slot.run(binding, target.lock, target.stub, values, None)
            except Exception as error:
                (status, code), results = target.explain(binding, error), ()
        else:
            status, code, results = target.execute(slot, binding, values, None)
        if status is _DEVICE_ERROR:
            return status, (code,)
        return status, results
