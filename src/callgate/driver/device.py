# SPDX-License-Identifier: MIT
"""A device with a gate, from its driver's side: find it, call it.

device = callgate.driver.open("adder", door)
device.add(2, 40)                       # 42
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock
from typing import Any

from callgate import errors
from callgate.driver.calls import Calls
from callgate.driver.directory import Directory, Entry, GatePlace, read_directory
from callgate.driver.door import DmaMemory
from callgate.driver.frame import Frame, Reply
from callgate.driver.pci import Interrupt, PciFunction
from callgate.driver.quick import by_frame, by_registers
from callgate.driver.values import error_of, is_plain, marshal, unmarshal
from callgate.errors import CallError, NoAnswer, NotFound
from callgate.gate.abi import (
    HEADER,
    VERSION,
    CallFlag,
    DoorbellRegister,
    Feature,
    FrameState,
    Status,
    Transport,
)
from callgate.gate.fence import fence

ONES = 0xFFFF_FFFF
_FREE, _READY, _RUNNING, _DONE = (int(state) for state in FrameState)
_WATCHING = HEADER.offset("watching")
_PREFERENCE = (Transport.POLLED, Transport.HYPERCALL, Transport.PIO, Transport.MMIO)
_REGISTERS = int(CallFlag.REGISTERS)
_LOOKUPS = 8
"""Times that a call is looked up anew: a host that rebinds without end must not hold its caller."""


class GateDevice(Calls):
    """A device that has a gate, driven from here through a door.

    A buffer argument may also be a `DmaMemory`, which is used as it is. `timeout` is how long a
    call is waited for, in seconds. Vectors that turn out to be revoked are looked up again by name,
    as long as the signature is still the same; `relookup=False` leaves that to the caller, who then
    sees `Revoked` and calls `refresh`. From any thread, where the door is.

    `function` and `place` are where it was found, `directory` what it offers, `features` what was
    agreed on, `transports` what platform and door can do; `base` and `doorbell` are the addresses
    of the gate and its doorbell page, `frames` its frames and `free` those that nobody uses,
    `watching` the header's word of that name, where it is mapped.
    """

    def __init__(
        self,
        function: PciFunction,
        place: GatePlace,
        *,
        transport: Transport | None = None,
        timeout: float = 10.0,
        relookup: bool = True,
    ) -> None:
        super().__init__()
        self.base = 0
        self._lock = Lock()
        self._spare: dict[int, list[int]] = {}
        self.function = function
        self.place = place
        self.transports = place.transports & function.door.transports
        self.timeout = timeout
        self.relookup = relookup
        self.transport = transport
        function.enable()
        self.refresh()

    def refresh(self) -> None:
        """Look anew where the gate is and what it offers.

        To be called after Revoked, after a reset of the device, and after its BARs moved.
        """
        base = self.function.bar(self.place.bar).address + self.place.offset
        self.doorbell = base + self.place.doorbell
        self._port = self._find_port()
        self.directory: Directory = read_directory(self.function, self.place)
        self.name, self.calls = self.directory.name, self.directory.entries
        self.features = self._negotiate()
        if base != self.base:
            self._take_place(base)
        self._forget()

    def _take_place(self, base: int) -> None:
        door = self.function.door
        first, count, size = self.directory.frames
        with self._lock:
            self.base = base
            self.frames = [
                Frame(door, index, base + first + index * size, size) for index in range(count)
            ]
            self.free = list(reversed(self.frames))
            self._lost: list[Frame] = []
        header = door.map(base, HEADER.size)
        self.watching = None if header is None else header[_WATCHING:][:4].cast("I")

    def _find_port(self) -> int | None:
        if self.place.pio_bar is None:
            return None
        try:
            return self.function.bar(self.place.pio_bar).address + self.place.pio_offset
        except NotFound:  # No address: the doorbell page does the same.
            return None

    def _negotiate(self) -> Feature:
        door = self.function.door
        door.write(self.doorbell + DoorbellRegister.VERSION, 4, VERSION)
        if door.read(self.doorbell + DoorbellRegister.VERSION, 4) != VERSION:
            raise errors.CallgateError(f"{self.function} must speak version 1.0 of the call ABI")
        door.write(self.doorbell + DoorbellRegister.FEATURES, 4, int(self.directory.features))
        return Feature(door.read(self.doorbell + DoorbellRegister.FEATURES, 4) & 0xF)

    @property
    def transport(self) -> Transport | None:
        """The transport to use; None: the cheapest that the platform offers for each call.

        `hypercall` takes a frame for calls that do not fit its registers. Setting one that the
        platform does not offer raises BackendError.
        """
        return self._transport

    @transport.setter
    def transport(self, transport: Transport | None) -> None:
        if transport is not None and not transport & self.transports:
            raise errors.BackendError(
                f"The transport must be one that the platform offers, "
                f"{_names(self.transports)}, not {_names(transport)}"
            )
        self._transport = transport
        self._forget()

    def interrupt(self, index: int) -> Interrupt:
        """Interrupt `index` of the device, ready to be waited for."""
        return self.function.interrupt(index)

    def notify(self, name: str) -> None:
        """Run a one-way call without arguments through the NOTIFY doorbell. Raises NotFound."""
        address = self.doorbell + DoorbellRegister.NOTIFY
        self.function.door.write(address, 4, self._entry(name).vector)

    # --- calls by name ---------------------------------------------------------------------------

    def _quick(self, entry: Entry) -> Callable[..., Any] | None:
        """See `Calls`: for numbers, which registers carry, or a frame that is mapped."""
        if not entry.vector or not is_plain(entry):
            return None
        if self.choose(self.in_registers(entry)) is Transport.HYPERCALL:
            return by_registers(self, entry) if self.in_registers(entry) else None
        if self.function.door.apart and self.watching is not None and self.frames[0].is_mapped:
            return by_frame(self, entry)
        return None

    def settle(self, frame: Frame, entry: Entry) -> Any:
        """Wait for the answer in a frame that was submitted, and give the frame back.

        Raises as `call` does.
        """
        try:
            fence()  # The host may have stopped watching just before it could see the frame.
            if frame.state == _READY and not self.watched:
                self.ring(frame.index, self.choose(False))
            self.wait(frame)
            status, code, results = frame.reply()
            if status:
                raise error_of(entry, status, code)
            return unmarshal(entry, results, frame.read_payload)
        finally:
            self._give_frame(frame)

    def call(self, name: str, *arguments: Any) -> Any:
        """Make a call by name.

        Raises the CallError of its status, `Revoked` also while the call has no vector; NoAnswer;
        NotFound where the device has no such call; TypeError and ValueError for arguments that
        cannot be.
        """
        entry = self._entry(name)
        for _ in range(_LOOKUPS):
            if entry.vector:
                try:
                    return self._call(entry, arguments)
                except errors.Revoked:
                    if not self.relookup:
                        raise
            if not self.relookup:
                break
            self.refresh()
            stale, entry = entry, self._entry(name)
            if not entry.vector:
                break
            if entry.signature != stale.signature:
                raise errors.Revoked(f"{stale.text} was bound anew, as {entry.text}")
        raise errors.Revoked(f"{entry.text}: the host has not bound it, or keeps binding it anew")

    def _call(self, entry: Entry, arguments: tuple[Any, ...]) -> Any:
        copies: list[tuple[DmaMemory, memoryview, str]] = []

        def place(kind: str, slot: int, argument: Any) -> tuple[int, int]:
            if not isinstance(argument, DmaMemory):
                argument = self._copy(kind, memoryview(argument).cast("B"), copies)
            return argument.gpa, argument.length

        frame = None
        try:
            slots, payload = marshal(entry, arguments, place)
            registers = self.in_registers(entry)
            transport = self.choose(registers)
            if transport is not Transport.HYPERCALL or not registers:
                frame = self._take_frame()
            status, code, results = self.invoke(
                entry.vector, slots, payload, frame=frame, transport=transport
            )
            if status:
                raise error_of(entry, status, code)
            value = unmarshal(entry, results, frame.read_payload if frame else _no_payload)
            for memory, view, kind in copies:
                if kind != "in":
                    view[:] = self.function.door.load(memory.gpa, memory.length)
            return value
        except BaseException as error:
            if not isinstance(error, CallError) or isinstance(error, errors.TimedOut):
                copies.clear()  # The device may still write to them.
            raise
        finally:
            if frame is not None:
                self._give_frame(frame)
            self._give_buffers(copies)

    # --- buffers ---------------------------------------------------------------------------------

    def _copy(
        self, kind: str, view: memoryview, copies: list[tuple[DmaMemory, memoryview, str]]
    ) -> DmaMemory:
        if kind != "in" and view.readonly:
            raise TypeError("What a call writes to must be writable: a bytearray, not bytes")
        size = 1 << max(len(view) - 1, 63).bit_length()
        with self._lock:
            spare = self._spare.get(size)
            gpa = spare.pop() if spare else None
        if gpa is None:
            gpa = self.function.allocate(size).gpa
        memory = DmaMemory(gpa, len(view))
        copies.append((memory, view, kind))
        self.function.door.store(gpa, bytes(len(view)) if kind == "out" else bytes(view))
        return memory

    def _give_buffers(self, copies: list[tuple[DmaMemory, memoryview, str]]) -> None:
        with self._lock:
            for memory, _, _ in copies:
                size = 1 << max(memory.length - 1, 63).bit_length()
                self._spare.setdefault(size, []).append(memory.gpa)

    # --- frames ----------------------------------------------------------------------------------

    def _take_frame(self) -> Frame:
        with self._lock:
            if not self.free:
                # Those that the host still had when their caller gave up.
                self.free += [each for each in self._lost if each.state in (_FREE, _DONE)]
                self._lost = [each for each in self._lost if each not in self.free]
            if not self.free:
                raise errors.Busy(
                    f"{self.name} has {len(self.frames)} frames, and as many callers at once"
                )
            return self.free.pop()

    def _give_frame(self, frame: Frame) -> None:
        # A frame that the host still has may yet be written to.
        settled = frame.state not in (_READY, _RUNNING)
        with self._lock:
            if self.frames[frame.index] is frame:
                (self.free if settled else self._lost).append(frame)

    # --- one call in the raw, for tests too -------------------------------------------------------

    def in_registers(self, entry: Entry) -> bool:
        """Whether a hypercall's registers can carry this call."""
        room = self.function.door.register_slots
        fits = entry.arguments <= room and entry.results <= room
        return fits and bool(int(entry.flags) & _REGISTERS)

    def choose(self, registers: bool) -> Transport:
        """The cheapest transport that is offered for a call that fits `registers`, or does not."""
        if self._transport is not None:
            return self._transport
        offered = self.transports
        for transport in _PREFERENCE:
            if not offered & transport:
                continue
            if transport is Transport.POLLED and not self.watched:
                continue
            if transport is Transport.HYPERCALL and not registers:
                continue
            return transport
        return Transport.MMIO

    @property
    def watched(self) -> bool:
        """Whether the host looks at the frames by itself at this moment (docs/abi.md, 6.4)."""
        if not self.features & Feature.POLLED:
            return False
        if self.watching is not None:
            return self.watching[0] == 1
        return self.function.door.read(self.base + _WATCHING, 4) == 1

    def invoke(
        self,
        vector: int,
        slots: tuple[int, ...],
        payload: bytes = b"",
        *,
        frame: Frame | None = None,
        transport: Transport | None = None,
        frame_flags: int = 0,
        count: int | None = None,
    ) -> Reply:
        """Make one call as it is and judge nothing.

        With the transport `hypercall`, the slots travel in registers unless there is a `frame`, a
        payload, frame flags, or a `count`, which claims another number of slots than there are.
        """
        plain = frame is None and not payload and not frame_flags and count is None
        plain = plain and len(slots) <= self.function.door.register_slots
        transport = transport or self.choose(plain)
        if transport is Transport.HYPERCALL and plain:
            status, results = self.function.door.hypercall(
                self.place.instruction, self.place.selector, vector, slots
            )
            return status, results[0] if status == Status.DEVICE_ERROR else 0, results
        if frame is None:
            frame = self._take_frame()
            try:
                return self.invoke(
                    vector,
                    slots,
                    payload,
                    frame=frame,
                    transport=transport,
                    frame_flags=frame_flags,
                    count=count,
                )
            finally:
                self._give_frame(frame)
        if payload:
            frame.write_payload(payload)
        claimed = len(slots) if count is None else count
        frame.submit(vector, frame_flags | claimed << 16, slots)
        status = self.ring(frame.index, transport)
        if status and not self.watched:
            frame.state = _FREE  # The host has not looked, and will not.
            return status, 0, ()
        self.wait(frame)
        return frame.reply()

    def ring(self, index: int, transport: Transport) -> int:
        """Say "look at frame `index`". The status is OK but for a hypercall that went wrong."""
        door = self.function.door
        if transport is Transport.POLLED:
            if self.watched:
                return Status.OK
            transport = Transport.MMIO
        if transport is Transport.PIO and self._port is not None:
            door.io_write(self._port, 4, index)
        elif transport is Transport.HYPERCALL:
            vector = self.directory.doorbell_vector
            place = self.place
            return door.hypercall(place.instruction, place.selector, vector, (index,))[0]
        else:
            door.write(self.doorbell, 4, index)
        return Status.OK

    def wait(self, frame: Frame) -> None:
        """Wait until the frame is DONE. Raises NoAnswer."""
        state = frame.state
        if state == _DONE:
            return
        door = self.function.door
        end = time.monotonic() + self.timeout
        while state != _DONE:
            if state == _FREE:
                raise NoAnswer(f"{self.name} was reset during the call")
            if door.read(self.doorbell, 4) == ONES:
                raise NoAnswer(f"{self.name} has gone: its doorbell page reads all ones")
            if time.monotonic() > end:
                raise NoAnswer(f"{self.name} must answer within {self.timeout:g} s, and did not")
            door.pause(0)
            state = frame.state


def _no_payload(offset: int, length: int) -> bytes:
    raise AssertionError  # What has a payload travels in a frame.


def _names(transports: Transport) -> str:
    return ", ".join(str(each.name).lower() for each in Transport if each & transports)
