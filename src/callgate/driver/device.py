# SPDX-License-Identifier: MIT
"""A device with a gate, from its driver's side: find it, call it.

    device = callgate.driver.open("adder", door)
    device.add(2, 40)                       # 42

Arguments and results are Python's: int, bool, bytes; for buffers anything with the buffer protocol
(copied to DMA memory and, for `out` and `inout`, back) or a `DmaMemory` (used as it is). A status
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
from callgate.driver.pci import Interrupt, PciFunction
from callgate.errors import CallError, DeviceError
from callgate.gate.abi import (
    FRAME,
    HEADER,
    MAX_REGISTER_VALUES,
    PAYLOAD_ALIGN,
    VERSION,
    CallFlag,
    DoorbellRegister,
    Feature,
    FrameState,
    Status,
    Transport,
    round_up,
)

MAX_U64 = (1 << 64) - 1
_READY, _DONE = int(FrameState.READY), int(FrameState.DONE)
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


class NoAnswer(errors.CallgateError):
    """A frame did not become DONE in time, or the device has gone."""


class Frame:
    """One frame of the gate. Whoever holds it has it alone."""

    def __init__(self, device: GateDevice, index: int, base: int, size: int) -> None:
        self.index = index
        self.base = base
        self.payload_size = size - FRAME.size
        self._door = device.function.door
        self._quads: memoryview | None = None
        mapped = self._door.map(base, size)
        if mapped is not None:
            self._bytes = mapped
            self._quads = mapped.cast("Q")

    def read_quad(self, number: int) -> int:
        """The 64-bit word at 8 * number."""
        if self._quads is not None:
            return self._quads[number]
        return self._door.read(self.base + 8 * number, 8)

    def write_quad(self, number: int, value: int) -> None:
        """Store a 64-bit word."""
        if self._quads is not None:
            self._quads[number] = value
        else:
            self._door.write(self.base + 8 * number, 8, value)

    def read_payload(self, offset: int, length: int) -> bytes:
        """A copy of payload bytes. Raises BadFrame if they leave the payload."""
        if offset + length > self.payload_size:
            raise errors.BadFrame("the device's answer must lie inside the frame's payload")
        start = FRAME.size + offset
        if self._quads is not None:
            return bytes(self._bytes[start : start + length])
        return bytes(self._door.read(self.base + start + step, 1) for step in range(length))

    def write_payload(self, offset: int, data: bytes) -> None:
        """Store payload bytes."""
        start = FRAME.size + offset
        if self._quads is not None:
            self._bytes[start : start + len(data)] = data
        else:
            for step, byte in enumerate(data):
                self._door.write(self.base + start + step, 1, byte)


Reply = tuple[Status, int, tuple[int, ...]]
"""Status, the device's code, result slots."""


class GateDevice:
    """A device that has a gate. Calls are its methods; `calls` lists them.

    `timeout` is how long a call is waited for, in seconds. Vectors that turn out to be revoked are
    looked up again by name once, if the signature is still the same; `relookup=False` leaves that
    to the caller, who then sees `Revoked` and calls `refresh`.
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
        self.function = function
        self.place = place
        self.timeout = timeout
        self.relookup = relookup
        function.enable()
        self._base = function.bar(place.bar).address + place.offset
        self._doorbell = self._base + place.doorbell
        self.directory = read_directory(function, place)
        self.features = self._negotiate()
        self.transport = transport
        first, count, size = self.directory.frames
        self._frames = [
            Frame(self, index, self._base + first + index * size, size) for index in range(count)
        ]
        self._free = list(reversed(self._frames))
        self._free_lock = Lock()
        self._header = function.door.map(self._base, HEADER.size)

    @property
    def name(self) -> str:
        """The device's name."""
        return self.directory.name

    @property
    def calls(self) -> dict[str, Entry]:
        """The directory's entries by name."""
        return self.directory.entries

    def _negotiate(self) -> Feature:
        door = self.function.door
        door.write(self._doorbell + DoorbellRegister.VERSION, 4, VERSION)
        if door.read(self._doorbell + DoorbellRegister.VERSION, 4) != VERSION:
            raise errors.CallgateError(f"{self.function} must speak version 1.0 of the call ABI")
        door.write(self._doorbell + DoorbellRegister.FEATURES, 4, int(self.directory.features))
        return Feature(door.read(self._doorbell + DoorbellRegister.FEATURES, 4) & 0xF)

    def refresh(self) -> None:
        """Read the directory again: after Revoked, or a reset of the device."""
        self.directory = read_directory(self.function, self.place)
        self._forget_quick()

    def _forget_quick(self) -> None:
        for name in self.directory.entries:
            self.__dict__.pop(name, None)

    @property
    def transport(self) -> Transport | None:
        """The transport to use; None: the cheapest that the platform offers for each call."""
        return self._transport

    @transport.setter
    def transport(self, transport: Transport | None) -> None:
        self._transport = transport
        self._forget_quick()

    def interrupt(self, index: int) -> Interrupt:
        """Interrupt `index` of the device, ready to be waited for."""
        return self.function.interrupt(index)

    def notify(self, name: str) -> None:
        """Run a one-way call without arguments through the NOTIFY doorbell."""
        address = self._doorbell + DoorbellRegister.NOTIFY
        self.function.door.write(address, 4, self.calls[name].vector)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        # Only for names that are not there yet: what is found is kept until `refresh`.
        directory = self.__dict__.get("directory")
        if directory is None or name not in directory.entries:
            names = ", ".join(directory.entries) if directory else "not known yet"
            raise AttributeError(f"The device must have a call {name!r}; its calls are {names}")
        run = self._quick(directory.entries[name]) or partial(self.call, name)
        self.__dict__[name] = run
        return run

    def _quick(self, entry: Entry) -> Callable[..., Any] | None:
        """The call as one function with everything looked up beforehand, where it is numbers only
        and the platform's registers carry it. None: `call` does it."""
        plain = {"u64", "u32", "u16", "u8"}
        if (
            self.choose(entry.flags, False) is not Transport.HYPERCALL
            or not plain.issuperset(entry.result_types)
            or not plain.issuperset(entry.parameter_types)
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
                    raise self._error(entry, status, results[0] if results else 0)
            return self.call(name, *arguments)  # type: ignore[no-any-return]

        return run

    def call(self, name: str, *arguments: Any) -> Any:
        """Make a call by name. Raises the CallError of its status, NoAnswer, or TypeError."""
        entry = self.calls[name]
        while True:
            try:
                return self._call(entry, arguments)
            except errors.Revoked:
                if not self.relookup:
                    raise
                self.refresh()
                fresh = self.calls[name]
                if fresh.vector in (0, entry.vector) or fresh.signature != entry.signature:
                    raise
                entry = fresh

    def _call(self, entry: Entry, arguments: tuple[Any, ...]) -> Any:
        if len(arguments) != len(entry.parameter_types):
            raise TypeError(
                f"{entry.text} takes {len(entry.parameter_types)} arguments, not {len(arguments)}"
            )
        slots: list[int] = []
        payload = bytearray()
        back: list[tuple[DmaMemory, Any]] = []
        for kind, argument in zip(entry.parameter_types, arguments, strict=True):
            if kind == "bytes":
                slots.append(len(argument) << 32 | len(payload))
                payload += argument
                payload += bytes(round_up(len(payload), PAYLOAD_ALIGN) - len(payload))
            elif kind in _BUFFERS:
                buffer = self._buffer(kind, argument, back)
                slots += (buffer.gpa, buffer.length)
            else:
                slots.append(argument & MAX_U64)
        frame = self._take_frame()
        try:
            status, code, results = self.invoke(
                entry.vector, tuple(slots), payload, frame=frame, flags=entry.flags
            )
            if status:
                raise self._error(entry, status, code)
            values = [
                frame.read_payload(slot & 0xFFFFFFFF, slot >> 32) if kind == "bytes"
                else _value(kind, slot)
                for kind, slot in zip(entry.result_types, results, strict=False)
            ]  # fmt: skip
        finally:
            self._give_frame(frame)
        for memory, target in back:
            target[:] = self.function.door.load(memory.gpa, memory.length)
        if len(entry.result_types) == 1 and values:
            return values[0]
        return tuple(values) if entry.result_types else None

    def _buffer(self, kind: str, argument: Any, back: list[tuple[DmaMemory, Any]]) -> DmaMemory:
        if isinstance(argument, DmaMemory):
            return argument
        view = memoryview(argument).cast("B")
        memory = self.function.allocate(len(view))
        if kind != "out":
            self.function.door.store(memory.gpa, bytes(view))
        if kind != "in":
            back.append((memory, view))
        return memory

    def _error(self, entry: Entry, status: int, code: int) -> Exception:
        if status == Status.DEVICE_ERROR:
            return DeviceError(code)
        kind = _ERRORS.get(status)
        if kind is None:
            return errors.CallgateError(f"{entry.text} answered the unknown status {status}")
        return kind(f"{entry.text}: {Status(status).text}")

    def _take_frame(self) -> Frame:
        with self._free_lock:
            if not self._free:
                raise errors.Busy(
                    f"{self.name} has {len(self._frames)} frames, and as many callers at once"
                )
            return self._free.pop()

    def _give_frame(self, frame: Frame) -> None:
        # A frame that the host still has is lost: it may yet be written to.
        state = frame.read_quad(0) & 0xFFFFFFFF
        if state not in (_READY, int(FrameState.RUNNING)):
            with self._free_lock:
                self._free.append(frame)

    # --- one call in the raw, for tests too -------------------------------------------------------

    def choose(self, flags: CallFlag, payload: bool) -> Transport:
        """The cheapest transport that is offered and can carry such a call."""
        offered = self.place.transports
        for transport in (self.transport,) if self.transport else _PREFERENCE:
            if not offered & transport:
                continue
            if transport is Transport.POLLED and not self._watched():
                continue
            if transport is Transport.HYPERCALL and (payload or not flags & CallFlag.REGISTERS):
                continue
            return transport
        return Transport.MMIO

    def _watched(self) -> bool:
        if not self.features & Feature.POLLED:
            return False
        at = HEADER.offset("watching")
        if self._header is not None:
            return self._header[at] == 1
        return self.function.door.read(self._base + at, 4) == 1

    def invoke(
        self,
        vector: int,
        slots: tuple[int, ...],
        payload: bytes | bytearray = b"",
        *,
        frame: Frame | None = None,
        flags: CallFlag = CallFlag(0),
        transport: Transport | None = None,
        frame_flags: int = 0,
        count: int | None = None,
    ) -> Reply:
        """Make one call as it is: (status, device code, result slots). Judges nothing.

        `count` claims another number of arguments than there are slots.
        """
        transport = transport or self.choose(flags, bool(payload))
        if transport is Transport.HYPERCALL and not payload and len(slots) <= MAX_REGISTER_VALUES:
            status, results = self.function.door.hypercall(
                self.place.instruction, self.place.selector, vector, slots
            )
            code = results[0] if status == Status.DEVICE_ERROR else 0
            return status, code, results
        own = frame is None
        frame = frame or self._take_frame()
        try:
            if len(payload) > frame.payload_size:
                raise errors.BadFrame(f"a payload must be at most {frame.payload_size} bytes long")
            if payload:
                frame.write_payload(0, bytes(payload))
            for number, slot in enumerate(slots, 4):
                frame.write_quad(number, slot)
            claimed = len(slots) if count is None else count
            frame.write_quad(1, frame_flags | claimed << 16)
            frame.write_quad(2, 0)
            frame.write_quad(0, _READY | vector << 32)
            self.ring(frame.index, transport)
            self._wait(frame)
            answer = frame.read_quad(1)
            results = tuple(frame.read_quad(4 + n) for n in range(min(answer >> 24 & 0xFF, 12)))
            code = frame.read_quad(2) if answer >> 32 == Status.DEVICE_ERROR else 0
            return Status(answer >> 32), code, results
        finally:
            if own:
                self._give_frame(frame)

    def ring(self, index: int, transport: Transport) -> None:
        """Say "look at frame `index`"."""
        door = self.function.door
        if transport is Transport.POLLED:
            if self._watched():
                return
            transport = Transport.MMIO
        if transport is Transport.MMIO:
            door.write(self._doorbell, 4, index)
        elif transport is Transport.PIO:
            assert self.place.pio_bar is not None
            port = self.function.bar(self.place.pio_bar).address + self.place.pio_offset
            door.io_write(port, 4, index)
        else:
            door.hypercall(
                self.place.instruction,
                self.place.selector,
                self.directory.doorbell_vector,
                (index,),
            )

    def _wait(self, frame: Frame) -> None:
        if frame.read_quad(0) & 0xFFFFFFFF == _DONE:
            return
        end = time.monotonic() + self.timeout
        while frame.read_quad(0) & 0xFFFFFFFF != _DONE:
            if time.monotonic() > end:
                raise NoAnswer(f"{self.name} must answer within {self.timeout:g} s, and did not")
            if self.function.config(0, 4) == 0xFFFFFFFF:
                raise NoAnswer(f"{self.name} has gone: its config space reads all ones")
            self.function.door.pause(0)


def _value(kind: str, slot: int) -> int | bool:
    if kind == "bool":
        return slot == 1
    return slot - (1 << 64) if kind.startswith("i") and slot >> 63 else slot


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
        place = find_gate(function)
        if place is None:
            continue
        function.enable()
        found = read_directory(function, place).name
        if found == name:
            return GateDevice(function, place, **options)
        seen.append(found)
    raise LookupError(
        f"a device named {name!r} must be on the bus; those with a gate are: "
        f"{', '.join(seen) or 'none'}"
    )
