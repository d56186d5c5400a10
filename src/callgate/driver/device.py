# SPDX-License-Identifier: MIT
"""A device with a gate, from its driver's side: find it, call it.

    device = callgate.driver.open("adder", door)
    device.add(2, 40)                       # 42

Arguments and results are Python's: int, bool, bytes; for buffers anything with the buffer protocol
(copied to DMA memory and, for `out` and `inout`, back) or a `DmaMemory` (used as it is). Integers
are taken modulo 2^64, as C does; the host refuses what does not fit the argument's type. A status
other than OK raises the `CallError` of that name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from threading import Lock
from typing import Any

from callgate import errors
from callgate.driver.directory import Directory, Entry, GatePlace, find_gate, read_directory
from callgate.driver.door import DmaMemory, Door
from callgate.driver.frame import Frame, Reply
from callgate.driver.pci import Interrupt, PciFunction
from callgate.errors import CallError, DeviceError
from callgate.gate.abi import (
    HEADER,
    PAYLOAD_ALIGN,
    VERSION,
    CallFlag,
    DoorbellRegister,
    Feature,
    FrameState,
    Status,
    Transport,
)

MAX_U64 = (1 << 64) - 1
ONES = 0xFFFF_FFFF
_FREE, _READY, _RUNNING, _DONE = (int(state) for state in FrameState)
_ERRORS: dict[int, type[CallError]] = {
    kind.status: kind
    for kind in (
        errors.NoSuchVector,
        errors.Revoked,
        errors.BadCount,
        errors.BadValue,
        errors.BadBuffer,
        errors.BadFrame,
        errors.Denied,
        errors.Busy,
        errors.DeviceFault,
        errors.TimedOut,
    )
}
_REVOKED = int(Status.REVOKED)
_PREFERENCE = (Transport.POLLED, Transport.HYPERCALL, Transport.PIO, Transport.MMIO)
_BUFFERS = ("in", "out", "inout")
_REGISTERS = int(CallFlag.REGISTERS)
_PLAIN = {"u64", "u32", "u16", "u8"}
_LOOKUPS = 8
"""Times that a call is looked up anew: a host that rebinds without end must not hold its caller."""


class NoAnswer(errors.CallgateError):
    """A frame did not become DONE in time, or the device was reset or has gone.

    The call may have run or not.
    """


class GateDevice:
    """A device that has a gate. Calls are its methods; `calls` lists them.

    A call whose name is also a name of this class is reached by `call(name, ...)`. `transport` is
    the one to use; None leaves the choice. `timeout` is how long a call is waited for, in seconds.
    Vectors that turn out to be revoked are looked up again by name, as long as the signature is
    still the same; `relookup=False` leaves that to the caller, who then sees `Revoked` and calls
    `refresh`. From any thread, where the door is.

    `function` and `place` are where it was found, `directory` what it offers, `features` what was
    agreed on; `base` and `doorbell` are the addresses of the gate and its doorbell page, `frames`
    its frames.
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
        self._kept: set[str] = set()
        self.base = 0
        self._lock = Lock()
        self._spare: dict[int, list[int]] = {}
        self.function = function
        self.place = place
        self.timeout = timeout
        self.relookup = relookup
        self.transport = transport
        function.enable()
        self.refresh()

    @property
    def name(self) -> str:
        """The device's name."""
        return self.directory.name

    @property
    def calls(self) -> dict[str, Entry]:
        """The directory's entries by name."""
        return self.directory.entries

    def refresh(self) -> None:
        """Look anew where the gate is and what it offers.

        To be called after Revoked, after a reset of the device, and after its BARs moved.
        """
        base = self.function.bar(self.place.bar).address + self.place.offset
        self.doorbell = base + self.place.doorbell
        self._port = self._find_port()
        self.directory: Directory = read_directory(self.function, self.place)
        self.features = self._negotiate()
        if base != self.base:
            self._take_place(base)
        self._forget_quick()

    def _take_place(self, base: int) -> None:
        door = self.function.door
        first, count, size = self.directory.frames
        with self._lock:
            self.base = base
            self.frames = [
                Frame(door, index, base + first + index * size, size) for index in range(count)
            ]
            self._free = list(reversed(self.frames))
            self._lost: list[Frame] = []
        self._header = door.map(base, HEADER.size)

    def _find_port(self) -> int | None:
        if self.place.pio_bar is None:
            return None
        try:
            return self.function.bar(self.place.pio_bar).address + self.place.pio_offset
        except LookupError:  # No address: the doorbell page does the same.
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
        if transport is not None and not transport & self.place.transports:
            raise errors.BackendError(
                f"The transport must be one that the platform offers, "
                f"{_names(self.place.transports)}, not {_names(transport)}"
            )
        self._transport = transport
        self._forget_quick()

    def interrupt(self, index: int) -> Interrupt:
        """Interrupt `index` of the device, ready to be waited for."""
        return self.function.interrupt(index)

    def notify(self, name: str) -> None:
        """Run a one-way call without arguments through the NOTIFY doorbell."""
        address = self.doorbell + DoorbellRegister.NOTIFY
        self.function.door.write(address, 4, self.calls[name].vector)

    # --- calls by name ---------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Callable[..., Any]:
        # Only for names that are not there yet: what is found is kept until `refresh`.
        directory = self.__dict__.get("directory")
        if directory is None or name not in directory.entries:
            names = ", ".join(directory.entries) if directory else "not known yet"
            raise AttributeError(f"The device must have a call {name!r}; its calls are {names}")
        run = self._quick(directory.entries[name]) or partial(self.call, name)
        self._kept.add(name)
        self.__dict__[name] = run
        return run

    def _forget_quick(self) -> None:
        while self._kept:
            self.__dict__.pop(self._kept.pop(), None)

    def _quick(self, entry: Entry) -> Callable[..., Any] | None:
        """The call as one function with everything looked up beforehand.

        That is for numbers that the platform's registers carry. None: `call` does it.
        """
        if (
            not entry.vector
            or not self.in_registers(entry)
            or self.choose(True) is not Transport.HYPERCALL
            or not _PLAIN.issuperset(entry.result_types)
            or not _PLAIN.issuperset(entry.parameter_types)
            or len(entry.result_types) > 1
        ):
            return None
        hypercall = self.function.door.hypercall
        instruction, selector, vector = self.place.instruction, self.place.selector, entry.vector
        name, count, answers = entry.name, len(entry.parameter_types), bool(entry.result_types)

        def run(*arguments: int) -> int | None:
            if len(arguments) == count:
                slots = tuple([argument & MAX_U64 for argument in arguments])
                status, results = hypercall(instruction, selector, vector, slots)
                if not status:
                    return results[0] if answers else None
                if status != _REVOKED:
                    raise _error(entry, status, results[0] if results else 0)
            return self.call(name, *arguments)  # type: ignore[no-any-return]

        return run

    def call(self, name: str, *arguments: Any) -> Any:
        """Make a call by name.

        Raises the CallError of its status, `Revoked` also while the call has no vector; NoAnswer;
        KeyError where the device has no such call; TypeError.
        """
        entry = self.calls[name]
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
            stale, entry = entry, self.calls[name]
            if not entry.vector:
                break
            if entry.signature != stale.signature:
                raise errors.Revoked(f"{stale.text} was bound anew, as {entry.text}")
        raise errors.Revoked(f"{entry.text}: the host has not bound it, or keeps binding it anew")

    def _call(self, entry: Entry, arguments: tuple[Any, ...]) -> Any:
        if len(arguments) != len(entry.parameter_types):
            raise TypeError(
                f"{entry.text} takes {len(entry.parameter_types)} arguments, not {len(arguments)}"
            )
        copies: list[tuple[DmaMemory, memoryview, str]] = []
        frame = None
        try:
            slots, payload = self._marshal(entry, arguments, copies)
            registers = self.in_registers(entry)
            transport = self.choose(registers)
            if transport is not Transport.HYPERCALL or not registers:
                frame = self._take_frame()
            reply = self.invoke(entry.vector, slots, payload, frame=frame, transport=transport)
            values = _values(entry, reply, frame)
            for memory, view, kind in copies:
                if kind != "in":
                    view[:] = self.function.door.load(memory.gpa, memory.length)
        except BaseException as error:
            if not isinstance(error, CallError) or isinstance(error, errors.TimedOut):
                copies.clear()  # The device may still write to them.
            raise
        finally:
            if frame is not None:
                self._give_frame(frame)
            self._give_buffers(copies)
        if len(entry.result_types) == 1:
            return values[0]
        return values if entry.result_types else None

    def _marshal(
        self,
        entry: Entry,
        arguments: tuple[Any, ...],
        copies: list[tuple[DmaMemory, memoryview, str]],
    ) -> tuple[tuple[int, ...], bytes]:
        """Slots and payload; what was copied to DMA memory is added to `copies`."""
        slots: list[int] = []
        payload = bytearray()
        for kind, argument in zip(entry.parameter_types, arguments, strict=True):
            if kind == "bytes":
                payload += bytes(-len(payload) % PAYLOAD_ALIGN)
                slots.append(len(argument) << 32 | len(payload))
                payload += argument
            elif kind in _BUFFERS:
                buffer = argument
                if not isinstance(argument, DmaMemory):
                    buffer = self._copy(kind, memoryview(argument).cast("B"), copies)
                slots += (buffer.gpa, buffer.length)
            else:
                slots.append(argument & MAX_U64)
        return tuple(slots), bytes(payload)

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
            if not self._free:
                # Those that the host still had when their caller gave up.
                self._free = [each for each in self._lost if each.state in (_FREE, _DONE)]
                self._lost = [each for each in self._lost if each not in self._free]
            if not self._free:
                raise errors.Busy(
                    f"{self.name} has {len(self.frames)} frames, and as many callers at once"
                )
            return self._free.pop()

    def _give_frame(self, frame: Frame) -> None:
        # A frame that the host still has may yet be written to.
        settled = frame.state not in (_READY, _RUNNING)
        with self._lock:
            if self.frames[frame.index] is frame:
                (self._free if settled else self._lost).append(frame)

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
        offered = self.place.transports
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
        at = HEADER.offset("watching")
        if self._header is not None:
            return self._header[at] == 1
        return self.function.door.read(self.base + at, 4) == 1

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


def _values(entry: Entry, reply: Reply, frame: Frame | None) -> tuple[Any, ...]:
    """What the call returned. Raises the error of its status."""
    status, code, results = reply
    if status:
        raise _error(entry, status, code)
    if len(results) < len(entry.result_types):
        raise errors.CallgateError(
            f"{entry.text} must answer {len(entry.result_types)} result slots, not {len(results)}"
        )
    return tuple(
        _value(kind, slot, frame) for kind, slot in zip(entry.result_types, results, strict=False)
    )


def _value(kind: str, slot: int, frame: Frame | None) -> int | bool | bytes:
    if kind == "bytes":
        assert frame is not None
        return frame.read_payload(slot & ONES, slot >> 32)
    if kind == "bool":
        return slot == 1
    return slot - (1 << 64) if kind.startswith("i") and slot >> 63 else slot


def _error(entry: Entry, status: int, code: int) -> Exception:
    if status == Status.DEVICE_ERROR:
        return DeviceError(code)
    kind = _ERRORS.get(status)
    if kind is None:
        return errors.CallgateError(f"{entry.text} answered the unknown status {status}")
    return kind(f"{entry.text}: {Status(status).text}")


def _names(transports: Transport) -> str:
    return ", ".join(str(each.name).lower() for each in Transport if each & transports)


def devices(door: Door) -> Iterator[PciFunction]:
    """All PCI functions that answer."""
    for address in door.functions():
        yield PciFunction(door, address)


def open_device(name: str, door: Door, **options: Any) -> GateDevice:
    """The first device with a gate whose name is `name`; options as for GateDevice.

    Raises LookupError, naming what there is.
    """
    seen = []
    for function in devices(door):
        try:
            place = find_gate(function)
            if place is None:
                continue
            function.enable(master=False)
            found = read_directory(function, place).name
        except LookupError as error:  # The next one may be sound.
            seen.append(str(error))
            continue
        if found == name:
            return GateDevice(function, place, **options)
        seen.append(found)
    raise LookupError(
        f"a device named {name!r} must be on the bus; those with a gate are: "
        f"{', '.join(seen) or 'none'}"
    )
