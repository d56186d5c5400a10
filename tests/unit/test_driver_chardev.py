# SPDX-License-Identifier: MIT
"""A device behind /dev/callgateN: what is asked of the kernel's module, and what is made of its
answers. The module here is Python that keeps to docs/linux.md; the real one is in tests/qemu.
"""

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from callgate import errors
from callgate.call import signature_hash
from callgate.driver import chardev
from callgate.driver.chardev import CharDevice, char_devices
from callgate.errors import (
    BackendError,
    BadFrame,
    Busy,
    CallgateError,
    DeviceError,
    NoAnswer,
    NotFound,
    Revoked,
)
from callgate.gate.abi import Feature, Status, Transport
from callgate.linux import callgate as abi
from callgate.linux import ioctl

UUID_ = UUID("12345678-1234-5678-1234-567812345678")
PAYLOAD = 64
MINUS_ONE = (1 << 64) - 1


@dataclass
class Asked:
    """What a call has in it."""

    slots: list[int]
    payload: bytes
    buffers: list[Any]
    timeout: int
    out: bytearray


Handler = Callable[[Asked], "list[int] | Status | int"]
"""Returns result slots, or a status, or an errno that is made negative."""


class Module:
    """What the module does with a request. `calls` has signature text and handler by name."""

    def __init__(self) -> None:
        self.calls: dict[str, tuple[str, Handler]] = {}
        self.handles: list[tuple[str, int]] = []
        self.fail: dict[int, int] = {}
        self.asked: list[Asked] = []
        self.notified: list[str] = []
        self.code = 0

    def __call__(self, fd: int, number: int, address: int) -> int:
        """As ioctl(2) of C."""
        result = self._do(fd, number, address)
        if result >= 0:
            return result
        ctypes.set_errno(-result)
        return -1

    def fcntl(self, fd: int, number: int, argument: Any, mutate: bool) -> int:
        """As `fcntl.ioctl` of Python."""
        assert mutate
        whole = (ctypes.c_char * argument.nbytes).from_buffer(argument)
        result = self._do(fd, number, ctypes.addressof(whole))
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result

    def _do(self, fd: int, number: int, address: int) -> int:
        try:
            os.fstat(fd)
        except OSError:
            return -errno.EBADF
        if number in self.fail:
            return -self.fail[number]
        if number == abi.CALLGATE_IOC_INFO.number:
            info = abi.callgate_info.from_address(address)
            ctypes.memmove(address, UUID_.bytes, 16)
            info.name, info.device_version = b"sums", 7
            info.features, info.transports = 0x2, 0x105
            info.payload_size = PAYLOAD
            return 0
        if number == abi.CALLGATE_IOC_LIST.number:
            return self._list(abi.callgate_listing.from_address(address))
        if number == abi.CALLGATE_IOC_OPEN.number:
            return self._open(abi.callgate_handle.from_address(address))
        if number == abi.CALLGATE_IOC_CALL.number:
            return self._call(abi.callgate_transfer.from_address(address))
        if number == abi.CALLGATE_IOC_NOTIFY.number:
            self.notified.append(self.handles[address][0])
            return 0
        return -errno.ENOTTY

    def _list(self, listing: abi.callgate_listing) -> int:
        if listing.index > len(self.calls):
            return -errno.ENOENT
        if listing.index == 0:  # A free entry.
            listing.name, listing.text_length = b"", 0
            return 0
        name = list(self.calls)[listing.index - 1]
        text = self.calls[name][0].encode()
        ctypes.memmove(listing.text, text, len(text))
        listing.text_length = len(text)
        listing.name, listing.signature = name.encode(), signature_hash(text.decode())
        listing.arguments, listing.results, listing.flags, listing.bound = 2, 1, 0, 1
        return 0

    def _open(self, handle: abi.callgate_handle) -> int:
        name = handle.name.decode()
        if name not in self.calls:
            return -errno.ENOENT
        if handle.signature != signature_hash(self.calls[name][0]):
            return -errno.ESTALE
        handle.handle = len(self.handles)
        self.handles.append((name, handle.signature))
        return 0

    def _call(self, transfer: abi.callgate_transfer) -> int:
        name, signature = self.handles[transfer.handle]
        if name not in self.calls or signature != signature_hash(self.calls[name][0]):
            return -errno.ESTALE
        payload = ctypes.string_at(transfer.in_, transfer.in_length) if transfer.in_length else b""
        if transfer.in_length > PAYLOAD:
            return -errno.EMSGSIZE
        array = (abi.callgate_buffer * transfer.buffer_count).from_address(transfer.buffers or 1)
        buffers = list(array) if transfer.buffer_count else []
        slots = list(transfer.values[: transfer.arguments])
        asked = Asked(slots, payload, buffers, transfer.timeout_ms, bytearray(PAYLOAD))
        self.asked.append(asked)
        answer = self.calls[name][1](asked)
        transfer.status = transfer.results = 0
        if isinstance(answer, Status):
            transfer.status, transfer.code = answer, self.code
        elif isinstance(answer, int):
            return -answer
        else:
            transfer.results = len(answer)
            for index, value in enumerate(answer):
                transfer.values[index] = value
            if transfer.out_length:
                assert transfer.out_length == PAYLOAD
                ctypes.memmove(transfer.out, bytes(asked.out), PAYLOAD)
        return 0


def add(asked: Asked) -> list[int]:
    return [(asked.slots[0] + asked.slots[1]) & MINUS_ONE]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    module = Module()
    module.calls["add"] = "add(u64,u64)->u64", add
    monkeypatch.setattr(ioctl, "_ioctl", module)
    monkeypatch.setattr(chardev, "ioctl", module.fcntl)
    monkeypatch.setattr(chardev, "CLASS", tmp_path / "class")
    monkeypatch.setattr(chardev, "DEVICES", tmp_path / "dev")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "callgate0").touch()
    folder = tmp_path / "class" / "callgate0"
    folder.mkdir(parents=True)
    (folder / "name").write_text("sums\n")
    (folder / "transport").write_text("auto\n")
    return module


@pytest.fixture
def device(module: Module, tmp_path: Path) -> Iterator[CharDevice]:
    with CharDevice(tmp_path / "dev" / "callgate0") as device:
        yield device


def by(device: CharDevice, way: str) -> Callable[..., Any]:
    """The call `add`, the short way or the long one."""
    return partial(device.call, "add") if way == "call" else getattr(device, way)


# --- what the device is ---------------------------------------------------------------------------


def test_what_it_is(device: CharDevice) -> None:
    assert (device.name, device.uuid, device.version) == ("sums", UUID_, 7)
    assert device.features == Feature(0x2)
    assert device.transports == Transport(0x5)
    (entry,) = device.calls.values()
    assert (entry.name, entry.text, entry.vector) == ("add", "add(u64,u64)->u64", 1)
    assert (entry.parameter_types, entry.result_types) == (("u64", "u64"), ("u64",))


def test_files_of_the_module_have_names(module: Module, tmp_path: Path) -> None:
    for index, name in ((10, "third"), (2, "second"), (3, "of no file")):
        folder = tmp_path / "class" / f"callgate{index}"
        folder.mkdir()
        (folder / "name").write_text(f"{name}\n")
        if index != 3:
            (tmp_path / "dev" / folder.name).touch()
    assert [(path.name, name) for path, name in char_devices()] == [
        *(("callgate0", "sums"), ("callgate2", "second"), ("callgate10", "third"))
    ]


def test_without_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chardev, "CLASS", tmp_path / "nothing")
    assert list(char_devices()) == []
    with pytest.raises(FileNotFoundError):
        CharDevice(tmp_path / "nope")


def test_a_file_that_is_another_drivers(module: Module, tmp_path: Path) -> None:
    """It is closed again."""
    module.fail[abi.CALLGATE_IOC_INFO.number] = errno.ENOTTY
    path = tmp_path / "dev" / "callgate0"
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CallgateError, match=r"^/.*/callgate0: .*Inappropriate ioctl for device"):
        CharDevice(path)
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_the_transport_is_the_modules(device: CharDevice, tmp_path: Path) -> None:
    attribute = tmp_path / "class" / "callgate0" / "transport"
    assert device.transport is None
    device.transport = Transport.MMIO
    assert attribute.read_text() == "mmio"
    assert device.transport is Transport.MMIO
    device.transport = None
    assert attribute.read_text() == "auto"
    with CharDevice(device.path, transport=Transport.POLLED):
        assert attribute.read_text() == "polled"
    attribute.unlink()
    attribute.mkdir()
    with pytest.raises(BackendError, match=r"^sums: the transport cannot be pio: Is a directory$"):
        device.transport = Transport.PIO


# --- calls of numbers -----------------------------------------------------------------------------


def test_a_call(device: CharDevice, module: Module) -> None:
    assert device.add(2, 40) == device.call("add", 2, 40) == 42
    assert device.add(MINUS_ONE, 3) == 2
    assert len(module.handles) == 1  # opened once
    assert [each.slots for each in module.asked] == [[2, 40], [2, 40], [MINUS_ONE, 3]]


def test_numbers_are_taken_modulo(device: CharDevice, module: Module) -> None:
    assert device.add(-1, MINUS_ONE) == MINUS_ONE - 1
    with pytest.raises(ValueError, match=r"add\(u64,u64\)->u64: argument 2, u64, must be -2\*\*63"):
        device.add(1, 1 << 64)
    with pytest.raises(TypeError, match=r"add\(u64,u64\)->u64 takes 2 arguments, not 1"):
        device.add(1)
    with pytest.raises(TypeError, match="takes 2 arguments, not 20"):
        device.add(*range(20))
    with pytest.raises(TypeError, match="argument 1, u64, must be a number, not 'a'"):
        device.add("a", "b")


def test_types_are_the_signatures(device: CharDevice, module: Module) -> None:
    module.calls["neg"] = "neg(i32)->i32", lambda asked: [-asked.slots[0] & MINUS_ONE]
    module.calls["both"] = "both(u8)->(bool,u16)", lambda asked: [1, asked.slots[0]]
    module.calls["go"] = "go()->()", lambda asked: []
    device.refresh()
    assert device.neg(5) == -5
    assert device.both(7) == (True, 7)
    assert device.go() is None
    assert device.call("go") is None


def test_no_such_call(device: CharDevice, module: Module) -> None:
    with pytest.raises(AttributeError, match="must have a call 'sub'; its calls are add"):
        device.sub(1)
    with pytest.raises(NotFound, match=r"^sums must have a call 'sub'; its calls are add"):
        device.call("sub")
    module.calls.clear()
    with pytest.raises(NotFound, match="there is no such call"):
        device.add(1, 2)


@pytest.mark.parametrize("way", ["add", "call"])
@pytest.mark.parametrize(
    ("status", "kind", "told"),
    [
        (Status.BAD_VALUE, errors.BadValue, r"^add\(u64,u64\)->u64: "),
        (Status.DENIED, errors.Denied, r"^add\(u64,u64\)->u64: "),
        (Status.REVOKED, errors.Revoked, r"^add\(u64,u64\)->u64: "),
        (Status.TIMED_OUT, errors.TimedOut, r"^add\(u64,u64\)->u64: "),
        (Status.DEVICE_ERROR, DeviceError, "77"),
    ],
)
def test_a_status_is_an_error(
    device: CharDevice,
    module: Module,
    way: str,
    status: Status,
    kind: type[Exception],
    told: str,
) -> None:
    module.code = 77
    module.calls["add"] = "add(u64,u64)->u64", lambda asked: status
    run = by(device, way)
    with pytest.raises(kind, match=told):
        run(1, 2)
    module.calls["add"] = "add(u64,u64)->u64", add
    assert run(1, 2) == 3


@pytest.mark.parametrize("way", ["add", "call"])
@pytest.mark.parametrize(
    ("number", "kind", "told"),
    [
        (errno.ENODEV, NoAnswer, "the device has gone"),
        (errno.ETIMEDOUT, NoAnswer, "the device must answer in time, and did not"),
        (errno.EIO, NoAnswer, "the device was reset during the call, or its answer is wrong"),
        (errno.ENOENT, NotFound, "there is no such call"),
        (errno.ESTALE, Revoked, "the host has not bound it, or bound it anew"),
        (errno.ENOTCONN, Revoked, "the host has not bound it, or bound it anew"),
        (errno.EAGAIN, Busy, "as many calls are on their way as may be"),
        (errno.EDQUOT, Busy, "as many calls are on their way as may be"),
        (errno.EINVAL, errors.BadCount, "the module does not take these arguments"),
        (errno.EMSGSIZE, BadFrame, "a payload or a buffer is too long"),
        (errno.EOPNOTSUPP, CallgateError, "Operation not supported"),
    ],
)
def test_an_errno_is_an_error(
    device: CharDevice, module: Module, way: str, number: int, kind: type[Exception], told: str
) -> None:
    module.calls["add"] = "add(u64,u64)->u64", lambda asked: number
    run = by(device, way)
    with pytest.raises(kind, match=rf"^add\(u64,u64\)->u64: .*{told}$") as caught:
        run(1, 2)
    assert isinstance(caught.value.__cause__ or caught.value.__context__, OSError)


@pytest.mark.parametrize("way", ["add", "call"])
def test_what_is_the_programs_own_is_the_systems_error(
    device: CharDevice, module: Module, way: str
) -> None:
    module.calls["add"] = "add(u64,u64)->u64", lambda asked: errno.EPERM
    with pytest.raises(PermissionError) as caught:
        by(device, way)(1, 2)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("way", ["add", "call"])
def test_fewer_results_than_there_must_be(device: CharDevice, module: Module, way: str) -> None:
    module.calls["add"] = "add(u64,u64)->u64", lambda asked: []
    with pytest.raises(CallgateError, match="must answer 1 result slots, not 0"):
        by(device, way)(1, 2)
    module.calls["add"] = "add(u64,u64)->u64", lambda asked: [5, 6]
    assert by(device, way)(1, 2) == 5


@pytest.mark.parametrize("way", ["add", "call"])
def test_a_call_that_was_bound_anew(device: CharDevice, module: Module, way: str) -> None:
    """The signature is another: what the caller knows does not hold any more."""
    assert by(device, way)(1, 2) == 3
    module.calls["add"] = "add(u64,u64,u64)->u64", lambda asked: [sum(asked.slots)]
    told = r"^add\(u64,u64\)->u64 was bound anew, as add\(u64,u64,u64\)->u64$"
    with pytest.raises(Revoked, match=told):
        by(device, way)(1, 2)
    assert by(device, way)(1, 2, 3) == 6


# --- how long is waited ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "milliseconds"),
    [(None, 0), (1.5, 1500), (0.0001, 1), (0, 1), (float("inf"), 0xFFFF_FFFF), (1e9, 0xFFFF_FFFF)],
)
def test_the_time_that_a_call_may_take(
    module: Module, tmp_path: Path, seconds: float | None, milliseconds: int
) -> None:
    """0 leaves it to the module, so no time that was asked for may become 0."""
    with CharDevice(tmp_path / "dev" / "callgate0", timeout=seconds) as device:
        device.add(1, 2)
        device.call("add", 1, 2)
    assert [each.timeout for each in module.asked] == [milliseconds] * 2


def test_the_time_may_be_changed(device: CharDevice, module: Module) -> None:
    device.add(1, 2)
    device.timeout = 2
    device.add(1, 2)
    assert device.timeout == 2
    assert [each.timeout for each in module.asked] == [0, 2000]


# --- bytes and buffers ----------------------------------------------------------------------------


def test_bytes_travel_in_the_payload(device: CharDevice, module: Module) -> None:
    def upper(asked: Asked) -> list[int]:
        offset, length = asked.slots[1] & 0xFFFF_FFFF, asked.slots[1] >> 32
        asked.out[8:16] = asked.payload[offset : offset + length].upper()[:8].ljust(8)
        return [8 | length << 32]

    module.calls["upper"] = "upper(bytes,bytes)->bytes", upper
    device.refresh()
    assert device.upper(b"x", b"hello") == b"HELLO"
    assert module.asked[-1].payload.startswith(b"x\0\0\0\0\0\0\0hello")
    assert device.upper(b"", b"") == b""
    with pytest.raises(BadFrame, match="a payload or a buffer is too long"):
        device.upper(b"", bytes(PAYLOAD + 1))


def test_an_answer_outside_of_the_payload(device: CharDevice, module: Module) -> None:
    module.calls["read"] = "read()->bytes", lambda asked: [PAYLOAD - 1 | 2 << 32]
    device.refresh()
    with pytest.raises(BadFrame, match="must lie inside the frame's payload"):
        device.read()


def test_buffers_are_the_programs_memory(device: CharDevice, module: Module) -> None:
    def copy(asked: Asked) -> list[int]:
        source, target = asked.buffers
        data = ctypes.string_at(source.address, source.length)
        ctypes.memmove(target.address, data[::-1], min(source.length, target.length))
        return [source.length]

    module.calls["copy"] = "copy(u8,in,out)->u32", copy
    device.refresh()
    target = bytearray(4)
    assert device.copy(9, b"abcd", target) == 4
    assert target == b"dcba"
    assert device.copy(9, bytearray(b"ABCD"), memoryview(target)) == 4
    assert target == b"DCBA"
    target += b"!"  # The call holds it no more.
    asked = module.asked[-1]
    assert asked.slots == [9, 0, 4, 0, 4]
    assert [(each.slot, each.length, each.flags) for each in asked.buffers] == [
        (1, 4, abi.CALLGATE_BUFFER_IN),
        (3, 4, abi.CALLGATE_BUFFER_OUT),
    ]
    with pytest.raises(TypeError, match="must be writable: a bytearray, not bytes"):
        device.copy(9, b"abcd", b"1234")


def test_a_buffer_for_both_directions(device: CharDevice, module: Module) -> None:
    module.calls["mark"] = "mark(inout)->()", lambda asked: []
    device.refresh()
    assert device.mark(bytearray(3)) is None
    (buffer,) = module.asked[-1].buffers
    assert buffer.flags == abi.CALLGATE_BUFFER_IN | abi.CALLGATE_BUFFER_OUT


# --- the end --------------------------------------------------------------------------------------


def test_ringing(device: CharDevice, module: Module) -> None:
    device.notify("add")
    assert module.notified == ["add"]
    with pytest.raises(NotFound):
        device.notify("sub")
    module.fail[abi.CALLGATE_IOC_NOTIFY.number] = errno.EINVAL
    with pytest.raises(errors.BadCount, match="does not take these arguments"):
        device.notify("add")


def test_nothing_is_asked_of_a_closed_file(
    device: CharDevice, module: Module, tmp_path: Path
) -> None:
    """Its number may be another file's by then."""
    device.add(1, 2)
    device.close()
    device.close()
    other = os.open(tmp_path / "dev" / "callgate0", os.O_RDWR)
    for run in (lambda: device.add(1, 2), lambda: device.call("add", 1, 2), device.refresh):
        with pytest.raises(OSError, match="Bad file descriptor"):
            run()
    os.close(other)
    assert len(module.asked) == 1
