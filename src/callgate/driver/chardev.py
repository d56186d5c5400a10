# SPDX-License-Identifier: MIT
"""A device behind /dev/callgateN: the kernel's module makes the calls (docs/linux.md).

The module looks calls up anew by itself, copies buffers, waits, and lets nobody give the device an
address, so this needs no more than the permission to open the file.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
from collections.abc import Callable, Iterator
from fcntl import ioctl
from pathlib import Path
from threading import local
from typing import Any, NoReturn
from uuid import UUID

from callgate import errors
from callgate.driver.calls import Calls
from callgate.driver.directory import Entry, entry_of
from callgate.driver.values import error_of, is_plain, marshal, unmarshal
from callgate.errors import BackendError, BadFrame, Busy, CallgateError, NoAnswer, NotFound, Revoked
from callgate.gate.abi import Feature, Status, Transport
from callgate.linux.callgate import (
    CALLGATE_BUFFER_IN,
    CALLGATE_BUFFER_OUT,
    CALLGATE_IOC_CALL,
    CALLGATE_IOC_INFO,
    CALLGATE_IOC_LIST,
    CALLGATE_IOC_NOTIFY,
    CALLGATE_IOC_OPEN,
    callgate_buffer,
    callgate_handle,
    callgate_info,
    callgate_listing,
    callgate_transfer,
)
from callgate.linux.ioctl import Ioctl
from callgate.linux.layout import offset

CLASS = Path("/sys/class/callgate")
DEVICES = Path("/dev")
_FLAGS = {
    "in": CALLGATE_BUFFER_IN,
    "out": CALLGATE_BUFFER_OUT,
    "inout": CALLGATE_BUFFER_IN | CALLGATE_BUFFER_OUT,
}
_MOST_TEXT = 1 << 16
_MILLISECONDS = 1000
_UNBOUND = errno.ESTALE, errno.ENOTCONN
_VALUES = offset(callgate_transfer, "values") // 8
_LOW = 0xFFFF_FFFF
_ARGUMENTS, _RESULTS = 32, 40
"""Where a transfer's counts begin in the 64 bits that begin with its status."""
_REVOKED = int(Status.REVOKED)


class _Thread(local):
    """What each thread has of its own, so that a call allocates none."""

    def __init__(self) -> None:
        self.transfer = callgate_transfer()


class CharDevice(Calls):
    """A device that the kernel's module has, by its open file `path`.

    `timeout` is how long a call is waited for, in seconds; None leaves it to the module. `uuid`,
    `version`, `features` and `transports` are the device's. From any thread.

    Raises OSError when the file cannot be opened.
    """

    def __init__(
        self, path: Path, *, transport: Transport | None = None, timeout: float | None = None
    ) -> None:
        super().__init__()
        self.path = path
        self._timeout = timeout
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._handles: dict[tuple[str, int], callgate_handle] = {}
        self._mine = _Thread()
        try:
            self.refresh()
            if transport is not None:
                self.transport = transport
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """See `Calls`: close the file. Calls of other threads end first."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._forget()  # What was looked up knows the file by its number.
            os.close(fd)

    @property
    def timeout(self) -> float | None:
        """How long a call is waited for, in seconds; None leaves it to the module."""
        return self._timeout

    @timeout.setter
    def timeout(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._forget()

    @property
    def _milliseconds(self) -> int:
        """As the module takes it: 0 leaves it to the module, so the shortest time is 1."""
        if self._timeout is None:
            return 0
        return max(1, math.ceil(min(self._timeout * _MILLISECONDS, _LOW)))

    def refresh(self) -> None:
        """See `Calls`."""
        info = callgate_info()
        self._ask(CALLGATE_IOC_INFO, info)
        self.name = info.name.decode(errors="replace")
        self.uuid = UUID(bytes=bytes(info.uuid))
        self.version = info.device_version
        self.features = Feature(info.features & 0xF)
        self.transports = Transport(info.transports & 0xF)
        self._payload_size = info.payload_size
        self.calls = {entry.name: entry for entry in self._list()}
        self._forget()

    def _list(self) -> Iterator[Entry]:
        text = ctypes.create_string_buffer(_MOST_TEXT)
        listing = callgate_listing(text=ctypes.addressof(text))
        for index in range(1 << 16):
            listing.index, listing.text_length = index, _MOST_TEXT
            try:
                self._ask(CALLGATE_IOC_LIST, listing)
            except NotFound:
                return
            if listing.name:
                yield entry_of(
                    listing.name.decode(errors="replace"),
                    text.raw[: listing.text_length].decode(errors="replace"),
                    vector=listing.bound,
                    arguments=listing.arguments,
                    results=listing.results,
                    flags=listing.flags,
                    signature=listing.signature,
                )

    @property
    def transport(self) -> Transport | None:
        """See `Calls`. It is the module's attribute, for all that call this device."""
        name = self._attribute("transport").read_text().strip()
        return None if name == "auto" else Transport[name.upper()]

    @transport.setter
    def transport(self, transport: Transport | None) -> None:
        name = "auto" if transport is None else str(transport.name).lower()
        try:
            self._attribute("transport").write_text(name)
        except OSError as error:
            raise BackendError(
                f"{self.name}: the transport cannot be {name}: {error.strerror}"
            ) from error

    def _attribute(self, name: str) -> Path:
        return CLASS / self.path.name / name

    # --- calls -----------------------------------------------------------------------------------

    def call(self, name: str, *arguments: Any) -> Any:
        """See `Calls`. Buffers are copied by the kernel. Raises Busy when all frames are in use."""
        entry = self._entry(name)
        try:
            return self._call(entry, arguments)
        except Revoked:
            self.refresh()
            again = self._entry(name)
            if again.signature != entry.signature:
                raise Revoked(f"{entry.text} was bound anew, as {again.text}") from None
            raise

    def _call(self, entry: Entry, arguments: tuple[Any, ...]) -> Any:
        buffers: list[callgate_buffer] = []
        held: list[Any] = []

        def place(kind: str, slot: int, argument: Any) -> tuple[int, int]:
            view = memoryview(argument).cast("B")
            if kind == "in" and view.readonly:
                owned: Any = ctypes.create_string_buffer(bytes(view), len(view))
            elif view.readonly:
                raise TypeError("What a call writes to must be writable: a bytearray, not bytes")
            else:
                owned = (ctypes.c_char * len(view)).from_buffer(view)
            held.append(owned)
            address = ctypes.addressof(owned)
            buffers.append(callgate_buffer(address, len(view), slot, _FLAGS[kind]))
            return 0, len(view)

        slots, payload = marshal(entry, arguments, place)
        transfer = self._mine.transfer
        transfer.handle = self._handle(entry)
        transfer.timeout_ms = self._milliseconds
        transfer.arguments = len(slots)
        transfer.values[: len(slots)] = list(slots)
        array = (callgate_buffer * len(buffers))(*buffers) if buffers else None
        transfer.buffer_count = len(buffers)
        transfer.buffers = ctypes.addressof(array) if array else 0
        transfer.in_length = len(payload)
        source = ctypes.create_string_buffer(payload, len(payload)) if payload else None
        transfer.in_ = ctypes.addressof(source) if source else 0
        answer = None
        if "bytes" in entry.result_types:
            answer = ctypes.create_string_buffer(self._payload_size)
        transfer.out_length = self._payload_size if answer else 0
        transfer.out = ctypes.addressof(answer) if answer else 0
        self._ask(CALLGATE_IOC_CALL, transfer, entry)
        if transfer.status:
            raise error_of(entry, transfer.status, transfer.code)

        def read(offset: int, length: int) -> bytes:
            if answer is None or offset + length > len(answer):
                raise BadFrame("the device's answer must lie inside the frame's payload")
            return answer.raw[offset : offset + length]

        return unmarshal(entry, tuple(transfer.values[: transfer.results]), read)

    def _quick(self, entry: Entry) -> Callable[..., Any] | None:
        """See `Calls`: for numbers alone. What is not in order is left to `call`."""
        if not is_plain(entry) or self._fd < 0:
            return None
        name, call, fd, request = entry.name, self.call, self._fd, CALLGATE_IOC_CALL.number
        count, answers = len(entry.parameter_types), bool(entry.result_types)
        first = self._handle(entry)
        second = self._milliseconds
        third, end = count << _ARGUMENTS, _VALUES + count
        good = third | answers << _RESULTS
        spare: list[memoryview[int]] = []

        def run(*arguments: int) -> Any:
            try:
                quads = spare.pop()
            except IndexError:
                quads = memoryview(bytearray(ctypes.sizeof(callgate_transfer))).cast("Q")
            quads[0], quads[1], quads[2] = first, second, third
            at = _VALUES
            try:
                for argument in arguments:
                    quads[at] = argument
                    at += 1
            except (TypeError, ValueError, IndexError):
                return call(name, *arguments)
            if at != end:
                return call(name, *arguments)
            try:
                ioctl(fd, request, quads, True)
            except OSError as error:
                if error.errno in _UNBOUND:
                    return call(name, *arguments)  # Which looks anew what the device is.
                _fail(error, entry.text)
            if quads[2] != good:
                status = quads[2] & _LOW
                if status == _REVOKED:
                    return call(name, *arguments)
                if status:
                    raise error_of(entry, status, quads[3])
                results = quads[2] >> _RESULTS & 0xFF
                return unmarshal(entry, tuple(quads[_VALUES : _VALUES + results]), _no_payload)
            value = quads[_VALUES] if answers else None
            spare.append(quads)
            return value

        return run

    def notify(self, name: str) -> None:
        """See `Calls`."""
        entry = self._entry(name)
        self._ask(CALLGATE_IOC_NOTIFY, self._handle(entry), entry)

    def _handle(self, entry: Entry) -> int:
        key = entry.name, entry.signature
        known = self._handles.get(key)
        if known is None:
            known = callgate_handle(name=entry.name.encode(), signature=entry.signature)
            self._ask(CALLGATE_IOC_OPEN, known, entry)
            self._handles[key] = known
        return known.handle

    def _ask(self, request: Ioctl, argument: Any, entry: Entry | None = None) -> None:
        """Make a request; what goes wrong is raised as the other doors do."""
        try:
            request(self._fd, argument)
        except OSError as error:
            _fail(error, entry.text if entry is not None else str(self.path))


def _no_payload(offset: int, length: int) -> bytes:
    raise AssertionError


def _fail(error: OSError, what: str) -> NoReturn:
    """Raise what an error of the module means; its own where that is a matter of the program's."""
    found = _error(error, what)
    if found is error:
        raise error
    raise found from error


def _error(error: OSError, what: str) -> Exception:
    match error.errno:
        case errno.ENODEV:
            return NoAnswer(f"{what}: the device has gone")
        case errno.ETIMEDOUT:
            return NoAnswer(f"{what}: the device must answer in time, and did not")
        case errno.EIO:
            return NoAnswer(f"{what}: the device was reset during the call, or its answer is wrong")
        case errno.ENOENT:
            return NotFound(f"{what}: there is no such call")
        case errno.ESTALE | errno.ENOTCONN:
            return Revoked(f"{what}: the host has not bound it, or bound it anew")
        case errno.EAGAIN | errno.EDQUOT:
            return Busy(f"{what}: as many calls are on their way as may be")
        case errno.EINVAL:
            return errors.BadCount(f"{what}: the module does not take these arguments")
        case errno.EMSGSIZE:
            return BadFrame(f"{what}: a payload or a buffer is too long")
        case errno.EPERM | errno.EBADF | errno.EFAULT | errno.ENOMEM:
            return error
        case _:
            return CallgateError(f"{what}: {error.strerror}")


def char_devices() -> Iterator[tuple[Path, str]]:
    """Files of /dev that the module has made, each with its device's name."""
    if not CLASS.is_dir():
        return
    for each in sorted(CLASS.iterdir(), key=lambda each: (len(each.name), each.name)):
        path = DEVICES / each.name
        if path.exists():
            yield path, (each / "name").read_text().strip()
