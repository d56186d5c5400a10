# SPDX-License-Identifier: MIT
"""The gate: directory, frames and doorbell of one device (docs/abi.md).

    doorbell write (or a watcher, or a hypercall of the doorbell vector)
        -> Gate.ring(frame index)        claim the frame (RUNNING), copy its head and values once
        -> vector table                  which call is it, and may it run
        -> execute                       the stub: check, call the method
        -> the frame                     results, status, then state DONE

    hypercall, register form -> Router.call(vector, registers) -> the same execute

`Gate` knows nothing of PCI: whoever plugs the device in puts `ram` and the doorbell into a BAR.
"""

from __future__ import annotations

import operator
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

from callgate.call import Call, CallRefused, Stub, compile_stub, place_results
from callgate.device import Device
from callgate.errors import (
    CallgateError,
    DeviceError,
    DmaError,
    DrainTimeout,
    VectorsExhausted,
)
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
from callgate.gate.deadline import Deadline, Job
from callgate.gate.tracing import refused_event, traced
from callgate.gate.vectors import Binding, Slot, VectorTable
from callgate.memory import anonymous
from callgate.trace import Event, Trace

ONES = 0xFFFF_FFFF
RESET_DRAIN = 1.0
"""Seconds that a reset waits for calls in flight."""

# Plain names and numbers: a look-up in an enum class costs as much as a call in Python 3.11, and an
# IntFlag's operators cost more than all else on a call's path.
_READY = int(FrameState.READY)
_RUNNING = int(FrameState.RUNNING)
_DONE = int(FrameState.DONE)
_ONE_WAY = int(FrameFlag.ONE_WAY)
_INTERRUPT = int(FrameFlag.INTERRUPT)
_UNKNOWN_FLAGS = 0xFFFF & ~(_ONE_WAY | _INTERRUPT)
_DOORBELL = int(DoorbellRegister.DOORBELL)
_NOTIFY = int(DoorbellRegister.NOTIFY)
_VERSION = int(DoorbellRegister.VERSION)
_ACCEPTED = int(DoorbellRegister.FEATURES)
_OK = Status.OK
_FAULT = Status.DEVICE_FAULT
_DEVICE_ERROR = Status.DEVICE_ERROR
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

    def __init__(self, gate: Gate, call: Call, stub: Stub, lock: Any) -> None:
        self.gate = gate
        self.stub = stub
        self.lock = lock
        self.name = call.name
        self.arguments = call.arguments
        self.one_way = call.one_way
        self.places = bool(call.flags & CallFlag.PAYLOAD_OUT)
        self.registers = sys.maxsize
        if call.flags & CallFlag.REGISTERS:
            self.registers = max(call.arguments, call.result_slots)


class Doorbell:
    """What the doorbell's vector leads to, for a `Router`: it stands where a `Target` and its gate do.

    It is no call: it carries none, so it has no filter, quota, lock or time limit of its own, and a
    frame cannot name it.
    """

    arguments = 1
    registers = 1

    def __init__(self, gate: Gate) -> None:
        self.gate = self
        self._ring = gate.ring

    def execute(
        self, slot: Slot, binding: Binding, values: tuple[int, ...], payload: memoryview | None
    ) -> Answer:
        """Look at the frame whose index is the argument."""
        return (_OK if self._ring(values[0]) else Status.BAD_VALUE), 0, ()


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
        self.version = 0
        self._accept(Feature(0))
        self.offered = _FEATURES
        if offer.transports & Transport.POLLED:
            self.offered |= Feature.POLLED

        self._calls = {call.name: call for call in device.spec.calls}
        self._names = list(self._calls)
        self._bindings: dict[str, Binding] = {}
        # Held for moments only: never while calls drain, nor while an interrupt is sent.
        self._changing = threading.RLock()
        self._closed = False
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
        """Give the call a new vector; one that it has is revoked first. Raises KeyError for a name
        that the device does not declare, VectorsExhausted when the table is used up."""
        while True:
            self.revoke(name)
            with self._change():
                if self._closed:
                    raise RuntimeError(f"{self.device} must be plugged in to bind {name!r}")
                # Else another thread was quicker: its vector is revoked as any other is.
                if name not in self._bindings:
                    return self._bind(name).vector

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
            if self._bindings.get(name) is binding:
                with self._change():
                    if self._bindings.get(name) is binding:
                        del self._bindings[name]
                        self._set_vector(name, 0)

    def allow(self, *names: str) -> None:
        """Let the calls through; if none is named, all of the device's."""
        for name in [self._known(name) for name in names] or self._names:
            self.table.allow(self.device, name)

    def deny(self, *names: str, timeout: float | None = None) -> None:
        """Answer DENIED; when this returns, no call of them runs, and none starts until `allow`.

        If none is named, all of the device's. It outlives revocations and resets. Raises
        DrainTimeout as `revoke` does, when all of them are denied.
        """
        denied = [self._known(name) for name in names] or self._names
        for name in denied:
            self.table.deny(self.device, name, drain=False)
        end = None if timeout is None else time.monotonic() + timeout
        for name in denied:
            left = None if end is None else max(0.0, end - time.monotonic())
            self.table.deny(self.device, name, timeout=left)

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
        """All vectors are revoked and new ones assigned; version and features are forgotten.

        A call that is still in flight after RESET_DRAIN seconds keeps its frame until it ends.
        """
        self._revoke_all("reset")
        with self._change():
            self.version = 0
            self._accept(Feature(0))
            for base, slot in zip(self._bases, self._slots, strict=True):
                if slot.lock.acquire(False):
                    self.ram[base : base + FRAME.size] = bytes(FRAME.size)
                    slot.lock.release()
            self._write_directory()
            for name, binding in self._bindings.items():
                self._set_vector(name, binding.vector)
            if not self._closed:
                try:
                    self._bind_all()
                except VectorsExhausted as error:  # Which the guest can bring about.
                    self.device.bugs.report(f"{self.device}, reset", error)

    def close(self) -> None:
        """Revoke everything; the device is being unplugged. Harmless when repeated."""
        self._closed = True
        self._revoke_all("unplug")
        self.table.forget(self.device)

    def _revoke_all(self, why: str) -> None:
        try:
            self.table.revoke_owner(self.device, timeout=RESET_DRAIN)
        except DrainTimeout as error:
            self.device.bugs.report(f"{self.device}, {why}", error)
        with self._change():
            for name, binding in list(self._bindings.items()):
                # What was bound while the others drained is as new as can be.
                if binding.refusal is Status.REVOKED:
                    del self._bindings[name]
                    self._set_vector(name, 0)

    def _bind_all(self) -> None:
        if self._doorbell is None or self._doorbell.refusal is Status.REVOKED:
            self._doorbell = self.table.bind(self.device, "(doorbell)", 0, Doorbell(self))
        self._words[HEADER.offset("doorbell_vector") // 4] = self._doorbell.vector
        for name in self._names:
            if name not in self._bindings:
                self._bind(name)

    def _bind(self, name: str) -> Binding:
        call = self._calls[name]
        stub = compile_stub(call, self.device)
        if self._trace is not None:
            stub = traced(stub, call, self.device.spec.name, self._trace)
        lock = None if self.device.parallel else self.device.lock
        target = Target(self, call, stub, lock)
        binding = self.table.bind(self.device, name, call.hash, target)
        self._bindings[name] = binding
        self._set_vector(name, binding.vector)
        return binding

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
                self._set_generation(self._generation + 1 & ONES)
        if self._tells_changes:
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
        """Call `wake` after each doorbell of a driver that accepted `polled`; None: nobody watches."""
        self._watcher = wake
        self._accept(self.features)

    def say_watching(self, watching: bool) -> None:
        """Tell drivers whether somebody looks at the frames."""
        self._watching = watching
        self.ram[HEADER.offset("watching")] = int(watching)

    def _accept(self, features: Feature) -> None:
        self.features = features
        self._woken = self._watcher if self.polled else None
        self._takes_notify = bool(features & Feature.NOTIFY)
        self._tells_changes = bool(features & Feature.CHANGE_INTERRUPT)
        self._tells_done = bool(features & Feature.DONE_INTERRUPT)

    @property
    def polled(self) -> bool:
        """Whether the driver accepted the feature `polled`."""
        return bool(self.features & Feature.POLLED)

    def mmio_read(self, offset: int, size: int) -> int:
        """A guest's read in the doorbell page. All ones when the device is not plugged in any more."""
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

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """A guest's write in the doorbell page."""
        if size == 4:
            if offset == _DOORBELL:
                self.ring(value)
                return
            if offset == _NOTIFY:
                self.notify(value)
                return
            if offset == _VERSION:
                major, minor = value >> 16, value & 0xFFFF
                known = major == abi.VERSION_MAJOR and minor <= abi.VERSION_MINOR
                self.version = value if known else 0
                return
            if offset == _ACCEPTED:
                self._accept(self.offered & value)
                return
        self.faults.note("doorbell page", f"no doorbell register takes {size} bytes at {offset:#x}")

    def pio_read(self, offset: int, size: int) -> int:
        """A guest's read in the I/O BAR: DOORBELL and NOTIFY, as in the page."""
        if offset < _VERSION:
            return self.mmio_read(offset, size)
        self.faults.note("doorbell port", f"no doorbell port answers at {offset:#x}")
        return (1 << size * 8) - 1

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """A guest's write in the I/O BAR."""
        if offset < _VERSION:
            self.mmio_write(offset, size, value)
        else:
            self.faults.note("doorbell port", f"no doorbell port takes a write at {offset:#x}")

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
        base = self._bases[index]
        quad = base >> 3
        quads = self._quads
        # A frame is answered by one thread at a time, whoever else rings for it.
        while slot.lock.acquire(False):
            head = quads[quad]
            if head & ONES == _READY:
                break
            slot.lock.release()
            # Who stored READY just now may have found the lock taken, and counts on us.
            if quads[quad] & ONES != _READY:
                return True
        else:
            return True
        # Who rings from now on sees a frame that is being answered.
        self._words[base >> 2] = _RUNNING
        status = _FAULT
        results: tuple[int, ...] = ()
        flags = 0
        try:
            # From here on only the copy is judged.
            flags = quads[quad + 1] & 0xFF_FFFF
            count = flags >> 16
            binding = self.table.live.get(head >> 32)
            if flags & _UNKNOWN_FLAGS:
                status = self._refuse(head >> 32, Status.BAD_FRAME, f"frame {index} has unknown flags")
            elif binding is None or binding.target.gate is not self:
                status = self._stale(head >> 32, binding)
            elif count > MAX_VALUES:
                status = self._refuse(head >> 32, Status.BAD_COUNT, f"frame {index} claims {count} slots")
            else:
                values = _VALUES[count](self.ram, base + 0x20)
                payload = self._payloads[index]
                if flags & _ONE_WAY:  # No result is written, not into the payload either.
                    payload = memoryview(bytearray(payload))
                status, code, results = self.execute(slot, binding, values, payload)
                if flags & _ONE_WAY:
                    results = ()
                if code:
                    quads[quad + 2] = code
        finally:
            # Results, then status, then the state: whoever sees DONE sees all of them. The lock goes
            # before the state: who sees DONE may ring again at once, and is not to find it taken.
            at = quad + 4
            for result in results:
                quads[at] = result
                at += 1
            quads[quad + 1] = flags | len(results) << 24 | status << 32
            slot.lock.release()
            self._words[base >> 2] = _DONE
        if flags & _INTERRUPT and self._tells_done:
            self._send()
        if self._woken is not None and not from_watcher:
            self._woken()
        return True

    def _stale(self, vector: int, binding: Binding | None) -> Status:
        """The answer to a vector that is not a live one of this device."""
        # A live vector of another device is none of this one's.
        status = self.table.judge(vector) if binding is None else Status.NO_SUCH_VECTOR
        return self._refuse(vector, status, f"vector {vector:#x} leads to no call of this device")

    def _refuse(self, vector: int, status: Status, sentence: str) -> Status:
        self.faults.note(status.name, sentence)
        if self._trace is not None:
            self._trace(refused_event(self.device.spec.name, vector, status))
        return status

    def execute(
        self,
        slot: Slot,
        binding: Binding,
        values: tuple[int, ...],
        payload: memoryview | None,
        job: Job | None = None,
    ) -> Answer:
        """Run one call and return (status, code, result slots). Raises only what is not an Exception.

        `slot` belongs to the caller alone until this returns. `job` is for `deadline.py`.
        """
        if self.deadline is not None and job is None:
            return self.deadline.run(self, binding, values, payload)
        target: Target = binding.target
        lock = target.lock
        # The device's lock comes before the slot: who waits for it is not in flight, so a handler
        # can revoke a call while another vCPU waits to make it.
        if lock is not None:
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
                return self._turn_away(binding, refusal, refusal.text)
            if len(values) != target.arguments:
                sentence = f"it takes {target.arguments} argument slots, not {len(values)}"
                return self._turn_away(binding, Status.BAD_COUNT, sentence)
            next(binding.calls)
            if job is None:
                results = target.stub(values, payload)
            else:
                results = job.run(target.stub, values, payload)
            if target.places:
                results = place_results(results, payload)
            return _OK, 0, results
        except CallRefused as error:
            return self._decline(binding, error.status, str(error))
        except DeviceError as error:
            return self._refused_by_device(binding, error)
        except DmaError as error:
            return self._decline(binding, Status.BAD_BUFFER, str(error))
        except Exception as error:
            return self._fault(binding, error)
        finally:
            if slot.quota is not None:
                slot.quota.give()
                slot.quota = None
            slot.binding = None
            if self.table.drains:
                self.table.wake()
            if lock is not None:
                lock.release()

    def _refused_by_device(self, binding: Binding, error: DeviceError) -> Answer:
        try:
            code = operator.index(error.code)
        except (TypeError, AttributeError):
            wrong = TypeError(f"the code of a DeviceError must be a number, not {error!r}")
            return self._fault(binding, wrong.with_traceback(error.__traceback__))
        binding.note(_DEVICE_ERROR)
        return _DEVICE_ERROR, code & (1 << 64) - 1, ()

    def _fault(self, binding: Binding, error: Exception) -> Answer:
        binding.note(_FAULT)
        self.device.bugs.report(str(binding), error)
        return _FAULT, 0, ()

    def _turn_away(self, binding: Binding, status: Status, sentence: str) -> Answer:
        """Decline a call before its stub saw it."""
        if self._trace is not None:
            self._trace(Event(self.device.spec.name, "call", binding.name, (), status.name, 0.0))
        return self._decline(binding, status, sentence)

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
            if self.trace is not None:
                self.trace(refused_event("no device", vector, status))
            return status, ()
        target: Target | Doorbell = binding.target
        if target.registers > self.slots:
            return Status.BAD_FRAME, ()
        status, code, results = target.gate.execute(slot, binding, fetch(target.arguments), None)
        if status is _DEVICE_ERROR:
            return status, (code,)
        return status, results
