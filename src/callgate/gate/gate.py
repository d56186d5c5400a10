# SPDX-License-Identifier: MIT
"""The gate: directory, frames and doorbell of one device (docs/abi.md).

    doorbell write (or a watcher, or a hypercall of the doorbell vector)
        -> Gate.ring(frame index)        claim the frame, copy its head and values once
        -> vector table                  which call is it, and may it run
        -> execute                       the stub: check, call the method
        -> the frame                     results, status, then state DONE

    hypercall, register form -> Router.call(vector, registers) -> the same execute

`Gate` knows nothing of PCI: whoever plugs the device in puts `ram` and the doorbell into a BAR.
"""

from __future__ import annotations

import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import get_ident
from typing import Any

from callgate.call import Call, CallRefused, Stub, compile_stub, place_results
from callgate.device import Device
from callgate.errors import CallgateError, DeviceError, DmaError, DrainTimeout
from callgate.gate import abi
from callgate.gate.abi import (
    CAPABILITY,
    ENTRY,
    FRAME,
    HEADER,
    MAX_VALUES,
    PAGE,
    CallFlag,
    DoorbellRegister,
    Feature,
    FrameFlag,
    FrameState,
    Instruction,
    Status,
    Transport,
    round_up,
)
from callgate.gate.deadline import Deadline, HandlerTimeout
from callgate.gate.vectors import Binding, Slot, VectorTable
from callgate.memory import anonymous
from callgate.report import report_bug
from callgate.trace import Event, Trace

ONES = 0xFFFF_FFFF
RESET_DRAIN = 1.0
"""Seconds that a reset waits for calls in flight."""

_READY = int(FrameState.READY)
_DONE = int(FrameState.DONE)
# Plain numbers: an IntFlag's operators cost more than all else on a call's path.
_ONE_WAY = int(FrameFlag.ONE_WAY)
_INTERRUPT = int(FrameFlag.INTERRUPT)
_UNKNOWN_FLAGS = 0xFFFF & ~(_ONE_WAY | _INTERRUPT)
_OK = Status.OK  # A look-up in an enum class costs as much as a call in Python 3.11.
_FAULT = Status.DEVICE_FAULT
_VALUES = tuple(struct.Struct(f"<{count}Q").unpack_from for count in range(MAX_VALUES + 1))
_FEATURES = Feature.NOTIFY | Feature.CHANGE_INTERRUPT | Feature.DONE_INTERRUPT
Answer = tuple[Status, int, tuple[Any, ...]]
"""Status, the device's own code, results as the stub returned them."""


@dataclass(frozen=True)
class Offer:
    """What a platform offers a guest that wants to call: content of the PCI capability."""

    transports: Transport = Transport.MMIO | Transport.PIO | Transport.POLLED
    instruction: Instruction = Instruction.NONE
    selector: int = 0


class Target:
    """What a vector leads to: one call of one gate, ready to run."""

    __slots__ = ("arguments", "gate", "lock", "name", "one_way", "places", "registers", "stub")

    def __init__(self, gate: Gate, call: Call | None, stub: Stub, lock: Any) -> None:
        self.gate = gate
        self.stub = stub
        self.lock = lock
        self.name = call.name if call else "doorbell"
        self.arguments = call.arguments if call else 1
        self.one_way = call.one_way if call else False
        self.places = bool(call and call.flags & CallFlag.PAYLOAD_OUT)
        self.registers = max(call.arguments, call.result_slots) if call else 1
        if call and not call.flags & CallFlag.REGISTERS:
            self.registers = sys.maxsize


class Gate:
    """The gate of one device that is plugged in.

    `interrupt` is the MSI-X table index of the gate's interrupt and `trigger` sends it; both are
    left out where there is none. `time_limit` (seconds) ends the wait for a handler: its call
    answers TIMED_OUT. Public methods may be called from any thread.
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
        time_limit: float | None = None,
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
        self._trace = trace
        self.deadline = Deadline(time_limit) if time_limit is not None else None
        self._watcher: Callable[[], None] | None = None
        self._woken: Callable[[], None] | None = None
        self.version = 0
        self.features = Feature(0)
        self.offered = _FEATURES
        if offer.transports & Transport.POLLED:
            self.offered |= Feature.POLLED

        self._calls = {call.name: call for call in device.spec.calls}
        self._names = list(self._calls)
        self._bindings: dict[str, Binding] = {}
        self._changing = threading.RLock()
        self._lay_out()
        pages = anonymous(self.ram_size)
        self.pages = pages
        self.ram = memoryview(pages)
        self._words = self.ram.cast("I")
        self._quads = self.ram.cast("Q")
        self._payloads = [
            self.ram[base + FRAME.size : base + self.frame_size] for base in self._bases
        ]
        self._slots = [table.slot() for _ in self._bases]
        self._notify_slots: list[Slot] = []
        self._generation = 0
        self._doorbell: Binding | None = None
        self._write_header()
        with self._changing:
            self._begin_change()
            self._bind_doorbell()
            for name in self._names:
                self._bind(name)
            self._end_change()

    # --- layout ----------------------------------------------------------------------------------

    def _lay_out(self) -> None:
        texts = [call.text.encode() for call in self._calls.values()]
        self._directory = HEADER.size
        self._texts = self._directory + len(texts) * ENTRY.size
        self._text_length = sum(map(len, texts))
        self.frame_size = self.device.frame_size
        self.frame_count = self.device.frames
        self.frames_offset = round_up(self._texts + self._text_length, max(PAGE, self.frame_size))
        self._bases = [self.frames_offset + index * self.frame_size for index in range(self.frame_count)]
        self.ram_size = round_up(self.frames_offset + self.frame_count * self.frame_size, PAGE)
        self.size = self.ram_size + self.doorbell_size

    def _write_header(self) -> None:
        spec = self.device.spec
        self.ram[: HEADER.size] = HEADER.pack(
            signature=abi.HEADER_SIGNATURE,
            version_minor=abi.VERSION_MINOR,
            version_major=abi.VERSION_MAJOR,
            features=int(self.offered),
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
        """Give the call a new vector; one that it has is revoked first. Raises KeyError for a name
        that the device does not declare, VectorsExhausted when the table is used up."""
        with self._changing:
            if self.binding(name) is not None:
                self.revoke(name)
            self._begin_change()
            try:
                return self._bind(name).vector
            finally:
                self._end_change()

    def revoke(self, name: str, *, timeout: float | None = None) -> None:
        """Take the call's vector away: when this returns, no call of it runs, and none starts.

        A call that revokes itself does not wait for itself. Raises KeyError as `bind` does, and
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
            with self._changing:
                if self._bindings.get(name) is binding:
                    self._begin_change()
                    del self._bindings[name]
                    self._set_vector(name, 0)
                    self._end_change()

    def allow(self, *names: str) -> None:
        """Let the calls through; if none is named, all of the device's."""
        if not names:
            self.table.allow(self.device)
        for name in names or self._names:
            self.table.allow(self.device, self._known(name))

    def deny(self, *names: str, timeout: float | None = None) -> None:
        """Answer DENIED; when this returns, no call of them runs, and none starts until `allow`.

        If none is named, all of the device's. It outlives revocations and resets. Raises
        DrainTimeout as `revoke` does.
        """
        if not names:
            self.table.deny(self.device, timeout=timeout)
        for name in names:
            self.table.deny(self.device, self._known(name), timeout=timeout)

    def limit(
        self, name: str, *, per_second: float | None = None, in_flight: int | None = None
    ) -> None:
        """Answer BUSY to calls beyond `per_second` (a second's worth may come at once) or beyond
        `in_flight` at a time. None lifts that limit. Raises KeyError as `bind` does."""
        known = self._known(name)
        self.table.limit(self.device, known, per_second=per_second, in_flight=in_flight)

    def binding(self, name: str) -> Binding | None:
        """The call's binding (its vector and counters), or None while it has no vector."""
        return self._bindings.get(self._known(name))

    def _known(self, name: str) -> str:
        if name not in self._calls:
            known = ", ".join(self._names)
            raise KeyError(f"{self.device} must declare {name!r}; its calls are {known}")
        return name

    def reset(self) -> None:
        """All vectors are revoked and new ones assigned; version and features are forgotten."""
        with self._changing:
            self._begin_change()
            self.version = 0
            self._accept(Feature(0))
            self._revoke_all("reset")
            for base in self._bases:
                self.ram[base : base + FRAME.size] = bytes(FRAME.size)
            self._bind_doorbell()
            for name in self._names:
                self._bind(name)
            self._end_change()

    def close(self) -> None:
        """Revoke everything; the device is being unplugged."""
        self._revoke_all("unplug")
        self.table.forget(self.device)

    def _revoke_all(self, why: str) -> None:
        try:
            self.table.revoke_owner(self.device, timeout=RESET_DRAIN)
        except DrainTimeout as error:
            report_bug(f"{self.device}: {why}", error)
        self._bindings.clear()

    def _bind(self, name: str) -> Binding:
        call = self._calls[name]
        stub = compile_stub(call, self.device)
        if self._trace is not None:
            stub = _traced(stub, call, self.device.spec.name, self._trace)
        lock = None if self.device.parallel else self.device.lock
        target = Target(self, call, stub, lock)
        binding = self.table.bind(self.device, name, call.hash, target)
        self._bindings[name] = binding
        self._set_vector(name, binding.vector)
        return binding

    def _bind_doorbell(self) -> None:
        def stub(values: tuple[int, ...], payload: memoryview | None) -> tuple[int, ...]:
            if not self.ring(values[0]):
                raise CallRefused(
                    Status.BAD_VALUE, f"a frame's index must be below {self.frame_count}"
                )
            return ()

        target = Target(self, None, stub, None)
        self._doorbell = self.table.bind(self.device, "doorbell", 0, target)
        self._words[HEADER.offset("doorbell_vector") // 4] = self._doorbell.vector

    def _set_vector(self, name: str, vector: int) -> None:
        base = self._directory + self._names.index(name) * ENTRY.size
        self._words[base // 4] = vector

    def _begin_change(self) -> None:
        self._set_generation(self._generation | 1)

    def _end_change(self) -> None:
        self._set_generation((self._generation | 1) + 1 & ONES)
        self._send(Feature.CHANGE_INTERRUPT)

    def _set_generation(self, generation: int) -> None:
        self._generation = generation
        self._words[HEADER.offset("generation") // 4] = generation

    def _send(self, feature: Feature) -> None:
        if self.features & feature and self._trigger is not None:
            self._trigger(self.interrupt)

    # --- the guest's side: doorbells -------------------------------------------------------------

    def watched_by(self, wake: Callable[[], None] | None) -> None:
        """Call `wake` after each doorbell of a driver that accepted `polled`; None: nobody watches."""
        self._watcher = wake
        self._accept(self.features)

    def _accept(self, features: Feature) -> None:
        self.features = features
        self._woken = self._watcher if self.polled else None

    @property
    def polled(self) -> bool:
        """Whether the driver accepted the feature `polled`."""
        return bool(self.features & Feature.POLLED)

    def mmio_read(self, offset: int, size: int) -> int:
        """A guest's read in the doorbell page."""
        if size == 4:
            if offset == DoorbellRegister.DOORBELL:
                return self._generation
            if offset == DoorbellRegister.NOTIFY:
                return 0
            if offset == DoorbellRegister.VERSION:
                return self.version
            if offset == DoorbellRegister.FEATURES:
                return int(self.features)
        self.faults.note("doorbell page", f"no doorbell register has {size} bytes at {offset:#x}")
        return (1 << size * 8) - 1

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """A guest's write in the doorbell page."""
        if size == 4:
            if offset == 0:
                self.ring(value)
            elif offset == DoorbellRegister.NOTIFY:
                self.notify(value)
            elif offset == DoorbellRegister.VERSION:
                major, minor = value >> 16, value & 0xFFFF
                known = major == abi.VERSION_MAJOR and minor <= abi.VERSION_MINOR
                self.version = value if known else 0
            elif offset == DoorbellRegister.FEATURES:
                self._accept(Feature(value & self.offered))
            else:
                size = 0
        if size != 4:
            self.faults.note("doorbell page", f"no doorbell register takes a write at {offset:#x}")

    def pio_read(self, offset: int, size: int) -> int:
        """A guest's read in the I/O BAR: DOORBELL and NOTIFY, as in the page."""
        if offset < DoorbellRegister.VERSION:
            return self.mmio_read(offset, size)
        self.faults.note("doorbell port", f"no doorbell port answers at {offset:#x}")
        return (1 << size * 8) - 1

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """A guest's write in the I/O BAR."""
        if offset < DoorbellRegister.VERSION:
            self.mmio_write(offset, size, value)
        else:
            self.faults.note("doorbell port", f"no doorbell port takes a write at {offset:#x}")

    def notify(self, vector: int) -> None:
        """Run a one-way call that takes nothing (docs/abi.md, 6.5)."""
        binding = self.table.live.get(vector)
        if not self.features & Feature.NOTIFY or binding is None:
            self.faults.note("notify", f"NOTIFY got {vector:#x}, which is no vector of this device")
            return
        target: Target = binding.target
        if target.gate is not self or not target.one_way or target.arguments:
            self.faults.note("notify", f"{target.name} must be one_way without arguments")
            return
        # Several vCPUs may notify at once, and each needs a place where its call is written down.
        try:
            slot = self._notify_slots.pop()
        except IndexError:
            slot = self.table.slot()
        self.execute(slot, binding, (), None)
        self._notify_slots.append(slot)

    def ring(self, index: int, from_watcher: bool = False) -> bool:
        """Look at a frame and answer it if it is READY. False when there is no such frame."""
        if index >= self.frame_count:
            self.faults.note(
                "frame index", f"a frame's index must be below {self.frame_count}, not {index}"
            )
            return False
        slot = self._slots[index]
        # A frame is answered by one thread at a time, whoever else rings for it.
        if not slot.lock.acquire(False):
            return True
        try:
            base = self._bases[index]
            quad = base >> 3
            quads = self._quads
            head = quads[quad]
            if head & ONES != _READY:
                return True
            flags = quads[quad + 1] & 0xFF_FFFF
            count = flags >> 16
            binding = self.table.live.get(head >> 32)
            status = _FAULT
            results: tuple[int, ...] = ()
            try:
                # From here on only the copy is judged.
                if flags & _UNKNOWN_FLAGS:
                    status = self._refuse(Status.BAD_FRAME, f"frame {index} has unknown flags")
                elif binding is None or binding.target.gate is not self:
                    status = self._stale(head >> 32, binding)
                elif count > MAX_VALUES:
                    status = self._refuse(Status.BAD_COUNT, f"frame {index} claims {count} slots")
                else:
                    values = _VALUES[count](self.ram, base + 0x20)
                    status, code, results = self.execute(
                        slot, binding, values, self._payloads[index]
                    )
                    if flags & _ONE_WAY:
                        results = ()
                    if code:
                        quads[quad + 2] = code
            finally:
                # Results, then status, then the state: whoever sees DONE sees all of them.
                at = quad + 4
                for result in results:
                    quads[at] = result
                    at += 1
                quads[quad + 1] = flags | len(results) << 24 | status << 32
                self._words[base >> 2] = _DONE
        finally:
            slot.lock.release()
        if flags & _INTERRUPT:
            self._send(Feature.DONE_INTERRUPT)
        if self._woken is not None and not from_watcher:
            self._woken()
        return True

    def _stale(self, vector: int, binding: Binding | None) -> Status:
        """The answer to a vector that is not a live one of this device."""
        # A live vector of another device is none of this one's.
        status = self.table.judge(vector) if binding is None else Status.NO_SUCH_VECTOR
        return self._refuse(status, f"vector {vector:#x} leads to no call of this device")

    def _refuse(self, status: Status, sentence: str) -> Status:
        self.faults.note(status.name, sentence)
        return status

    def execute(
        self, slot: Slot, binding: Binding, values: tuple[int, ...], payload: memoryview | None
    ) -> Answer:
        """Run one call and return (status, code, result slots). Raises only what is not an Exception.

        `slot` belongs to the caller alone until this returns.
        """
        target: Target = binding.target
        lock = target.lock
        deadline = self.deadline
        # The device's lock comes before the slot: who waits for it is not in flight, so a handler
        # can revoke a call while another vCPU waits to make it.
        if lock is not None and deadline is None:
            lock.acquire()
        slot.thread = get_ident()
        slot.binding = binding  # Stored before `refusal` is read: vectors.py argues why.
        try:
            refusal = binding.refusal
            quota = binding.quota
            if quota is not None and refusal is None:
                if quota.take():
                    slot.quota = quota
                else:
                    refusal = Status.BUSY
            if refusal is not None:
                return self._decline(binding, refusal, refusal.text)
            if len(values) != target.arguments:
                sentence = f"it takes {target.arguments} argument slots, not {len(values)}"
                return self._decline(binding, Status.BAD_COUNT, sentence)
            next(binding.calls)
            if deadline is None:
                results = target.stub(values, payload)
            else:
                results = deadline.run(self.table, slot, target, values, payload)
            if target.places:
                results = place_results(results, payload)
            return _OK, 0, results
        except CallRefused as error:
            return self._decline(binding, error.status, str(error))
        except DeviceError as error:
            binding.note(Status.DEVICE_ERROR)
            return Status.DEVICE_ERROR, error.code & (1 << 64) - 1, ()
        except HandlerTimeout as error:
            binding.note(Status.TIMED_OUT)
            report_bug(str(binding), error)
            return Status.TIMED_OUT, 0, ()
        except DmaError as error:
            return self._decline(binding, Status.BAD_BUFFER, str(error))
        except Exception as error:
            binding.note(Status.DEVICE_FAULT)
            report_bug(str(binding), error)
            return Status.DEVICE_FAULT, 0, ()
        finally:
            if slot.quota is not None:
                slot.quota.give()
                slot.quota = None
            slot.binding = None
            if self.table.drains:
                self.table.wake()
            if lock is not None and deadline is None:
                lock.release()

    def _decline(self, binding: Binding, status: Status, sentence: str) -> Answer:
        binding.note(status)
        self.faults.note(status.name, f"{binding}: {sentence}")
        return status, 0, ()


class Router:
    """Hypercalls of one VM: by the vector to whichever device has it (docs/abi.md, 6.3).

    `slots` is how many slots the platform's registers carry: 6, or 3 in 32-bit code.
    """

    def __init__(self, table: VectorTable, slots: int = abi.MAX_REGISTER_VALUES) -> None:
        self.table = table
        self.slots = slots

    def call(
        self, slot: Slot, vector: int, fetch: Callable[[int], tuple[int, ...]]
    ) -> tuple[Status, tuple[int, ...]]:
        """Make a call in register form. `fetch(n)` reads the first n argument slots.

        Returns the status and what goes into the result registers. `slot` is the vCPU's own.
        """
        binding = self.table.live.get(vector)
        if binding is None:
            return self.table.judge(vector), ()
        target: Target = binding.target
        if target.registers > self.slots:
            return Status.BAD_FRAME, ()
        status, code, results = target.gate.execute(slot, binding, fetch(target.arguments), None)
        if status is Status.DEVICE_ERROR:
            return status, (code,)
        return status, results


def _traced(stub: Stub, call: Call, device: str, trace: Trace) -> Stub:
    def run(values: tuple[int, ...], payload: memoryview | None) -> tuple[Any, ...]:
        began = time.perf_counter()
        shown = "raised"
        try:
            results = stub(values, payload)
            shown = ", ".join(str(result) for result in results) or "ok"
            return results
        except DeviceError as error:
            shown = f"device error {error.code}"
            raise
        except CallRefused as error:
            shown = error.status.name
            raise
        finally:
            trace(Event(device, "call", call.name, values, shown, time.perf_counter() - began))

    return run
