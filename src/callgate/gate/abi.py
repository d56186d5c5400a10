# SPDX-License-Identifier: MIT
"""The call ABI's layouts and codes: the one source.

`docs/abi.md` is the same in prose; the C header's structs and constants are generated from here
(`callgate.generate`), and golden tests hold every offset. All numbers are little-endian, widths
are explicit, and reserved fields are zero when written and ignored when read.

    config space                    gate (in one memory BAR)                 frame
    +----------------------+        +------------------------+ 0            +--------------+ 0x00
    | vendor capability    |------->| header                 |              | head         |
    |  signature, version, |        | directory (entries)    |              +--------------+ 0x20
    |  bar, offset, length,|        | signature texts        |      +------>| 12 values    |
    |  transports          |        +------------------------+      |       +--------------+ 0x80
    +----------------------+        | frame 0 .. frame n-1   |------+       | payload      |
                                    +------------------------+ doorbell     |              |
                                    | doorbell page (traps)  | offset       +--------------+ size
                                    +------------------------+
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Any

VERSION_MAJOR = 1
VERSION_MINOR = 0
VERSION = VERSION_MAJOR << 16 | VERSION_MINOR

CAPABILITY_SIGNATURE = int.from_bytes(b"CGAT", "little")
HEADER_SIGNATURE = int.from_bytes(b"CGHD", "little")

MAX_VALUES = 12
"""Argument slots, and result slots, that a frame holds."""
MAX_REGISTER_VALUES = 6
"""Argument slots, and result slots, that a hypercall carries in 64-bit registers (3 in 32-bit)."""
NO_BAR = 0xFF
NO_INTERRUPT = 0xFFFF
VECTOR_BITS = 31
"""Vectors are 32-bit fields whose bit 31 is clear: with it set, KVM hands a hypercall to Hyper-V's
emulation first."""
FRAME_SIZE = 4096
PAGE = 4096


class Status(enum.IntEnum):
    """What a call answers."""

    OK = 0, "the call ran; its results are valid"
    NO_SUCH_VECTOR = 1, "this vector was never assigned to a call of this device"
    REVOKED = 2, "this vector was assigned once and never will be again: look the name up anew"
    BAD_COUNT = 3, "the number of argument slots is not the one that the directory gives"
    BAD_VALUE = 4, "an argument lies outside its type"
    BAD_BUFFER = 5, "a buffer is not wholly inside memory that the device may use this way"
    BAD_FRAME = 6, "the frame is malformed: unknown flags, or a payload that leaves the frame"
    DENIED = 7, "the host's filter forbids this call"
    BUSY = 8, "a quota is used up or the call is draining: try again later"
    DEVICE_ERROR = 9, "the device refused; its own code is in the code field"
    DEVICE_FAULT = 10, "the device model failed; the host has the report"
    TIMED_OUT = 11, "the handler took longer than the host allows"

    text: str

    def __new__(cls, value: int, text: str = "") -> Status:  # noqa: D102
        self = int.__new__(cls, value)
        self._value_ = value
        self.text = text
        return self


class FrameState(enum.IntEnum):
    """Who owns a frame. The driver writes READY, the host RUNNING and DONE."""

    FREE = 0
    READY = 1
    RUNNING = 2
    DONE = 3


class FrameFlag(enum.IntFlag):
    """What the driver asks for in a frame's `flags`."""

    ONE_WAY = 1
    INTERRUPT = 2


class CallFlag(enum.IntFlag):
    """What the directory says of a call."""

    ONE_WAY = 1
    PAYLOAD_IN = 2
    PAYLOAD_OUT = 4
    BUFFERS = 8
    REGISTERS = 16


class Transport(enum.IntFlag):
    """How a guest can say "now"; bits of the capability's `transports`."""

    HYPERCALL = 1
    PIO = 2
    MMIO = 4
    POLLED = 8


class Instruction(enum.IntEnum):
    """The trap instruction of the `hypercall` transport."""

    NONE = 0
    VMCALL = 1
    VMMCALL = 2
    INT_1F = 3
    HVC = 4
    ECALL = 5


class Feature(enum.IntFlag):
    """Feature bits: offered in the header, accepted through the doorbell page."""

    POLLED = 1
    NOTIFY = 2
    CHANGE_INTERRUPT = 4
    DONE_INTERRUPT = 8


class DoorbellRegister(enum.IntEnum):
    """Offsets in the doorbell page. Reads have no side effect."""

    DOORBELL = 0x00
    NOTIFY = 0x04
    VERSION = 0x08
    FEATURES = 0x0C


PIO_DOORBELL = 0x00
PIO_NOTIFY = 0x04
PIO_SIZE = 0x10

_FORMATS = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q"}


@dataclass(frozen=True)
class Member:
    """One member of a layout: `count` elements of `type` (`u8` to `u64`, or `char`)."""

    offset: int
    type: str
    name: str
    doc: str
    count: int = 1

    @property
    def format(self) -> str:
        """The `struct` code of this member."""
        if self.type == "char" or (self.type == "u8" and self.count > 1):
            return f"{self.count}s"
        return f"{self.count if self.count > 1 else ''}{_FORMATS[self.type]}"

    @property
    def size(self) -> int:
        """Width in bytes."""
        return struct.calcsize("<" + self.format)


@dataclass(frozen=True)
class Layout:
    """A C struct without padding; building one checks that no offset leaves a gap."""

    name: str
    doc: str
    members: tuple[Member, ...]
    size: int

    def __post_init__(self) -> None:
        end = 0
        for member in self.members:
            if member.offset != end:
                raise AssertionError(f"{self.name}.{member.name} must lie at {end:#x}")
            end += member.size
        if end != self.size:
            raise AssertionError(f"{self.name} must be {end:#x} bytes long")

    def offset(self, name: str) -> int:
        """Byte offset of the member `name`."""
        return next(member.offset for member in self.members if member.name == name)

    def pack(self, **values: int | bytes | tuple[int, ...]) -> bytes:
        """Bytes of the layout; members that are not named are zero."""
        packed = bytearray(self.size)
        for member in self.members:
            if member.name in values:
                value = values.pop(member.name)
                items = value if isinstance(value, tuple) else (value,)
                struct.pack_into("<" + member.format, packed, member.offset, *items)
        if values:
            raise KeyError(f"{self.name} has no member {', '.join(values)}")
        return bytes(packed)

    def unpack(self, data: bytes | bytearray | memoryview) -> dict[str, Any]:
        """Members by name, from the first `size` bytes of `data`; arrays as tuples."""
        members: dict[str, Any] = {}
        for member in self.members:
            items = struct.unpack_from("<" + member.format, data, member.offset)
            members[member.name] = items[0] if len(items) == 1 else items
        return members


CAPABILITY = Layout(
    "callgate_capability",
    "Vendor-specific capability (PCI Local Bus 3.0, 6.7, appendix H): where the gate is.",
    (
        Member(0x00, "u8", "id", "0x09, vendor specific"),
        Member(0x01, "u8", "next", "offset of the next capability, or 0"),
        Member(0x02, "u8", "length", "bytes of this capability, these three included"),
        Member(0x03, "u8", "bar", "index of the BAR that holds the gate, 0 to 5"),
        Member(0x04, "u32", "signature", '"CGAT"'),
        Member(0x08, "u16", "version_minor", "highest ABI version offered: minor"),
        Member(0x0A, "u16", "version_major", "and major"),
        Member(0x0C, "u32", "gate_offset", "where the gate's header begins in that BAR, bytes"),
        Member(0x10, "u32", "gate_length", "bytes from the header to the doorbell page's end"),
        Member(0x14, "u32", "doorbell_offset", "of the doorbell page, from the gate's header"),
        Member(0x18, "u8", "transports", "enum callgate_transport bits that this platform offers"),
        Member(0x19, "u8", "instruction", "enum callgate_instruction, for hypercall"),
        Member(0x1A, "u8", "pio_bar", "index of the I/O BAR of the pio doorbell, or 0xff"),
        Member(0x1B, "u8", "reserved", "0"),
        Member(0x1C, "u32", "pio_offset", "of the pio doorbell in that BAR, bytes"),
        Member(
            0x20, "u32", "selector", "what a hypercall puts in the platform's function register"
        ),
        Member(0x24, "u16", "frame_count", "frames of the gate"),
        Member(0x26, "u16", "entry_count", "directory entries, free ones included"),
    ),
    0x28,
)

HEADER = Layout(
    "callgate_header",
    "The gate's header, at its offset 0. Readable without an exit; the host alone writes it.",
    (
        Member(0x00, "u32", "signature", '"CGHD"'),
        Member(0x04, "u16", "version_minor", "highest ABI version offered: minor"),
        Member(0x06, "u16", "version_major", "and major"),
        Member(0x08, "u32", "features", "enum callgate_feature bits offered"),
        Member(
            0x0C, "u32", "generation", "changes with every binding; odd while the host rewrites"
        ),
        Member(0x10, "u8", "uuid", "the device's ABI, a UUID in RFC 9562 byte order", 16),
        Member(0x20, "u32", "device_version", "of that ABI"),
        Member(0x24, "u32", "directory_offset", "from the header's start"),
        Member(0x28, "u16", "entry_count", "entries in the directory"),
        Member(0x2A, "u16", "entry_size", "bytes of one entry"),
        Member(0x2C, "u32", "frames_offset", "from the header's start"),
        Member(0x30, "u16", "frame_count", "frames"),
        Member(0x32, "u16", "interrupt", "index of the gate's interrupt, or 0xffff: none"),
        Member(0x34, "u32", "frame_size", "bytes of one frame"),
        Member(0x38, "u32", "doorbell_offset", "of the doorbell page, from the header's start"),
        Member(0x3C, "u32", "doorbell_vector", "a hypercall with it and a frame's index rings it"),
        Member(0x40, "char", "name", "the device's name, padded with NUL", 40),
        Member(0x68, "u32", "text_offset", "of the signature texts, from the header's start"),
        Member(0x6C, "u32", "text_length", "bytes of them"),
        Member(0x70, "u8", "reserved", "0", 16),
        Member(0x80, "u32", "watching", "1 while the host watches the frames' states, else 0"),
        Member(0x84, "u8", "reserved2", "0", 60),
    ),
    0xC0,
)

ENTRY = Layout(
    "callgate_entry",
    "One call in the directory.",
    (
        Member(0x00, "u32", "vector", "what addresses the call, or 0 while it has none"),
        Member(0x04, "u8", "arguments", "argument slots"),
        Member(0x05, "u8", "results", "result slots"),
        Member(0x06, "u16", "flags", "enum callgate_call_flag bits"),
        Member(0x08, "u64", "signature", "hash of the signature text"),
        Member(0x10, "char", "name", "padded with NUL", 40),
        Member(0x38, "u32", "text_offset", "of the signature text, from the header's start"),
        Member(0x3C, "u32", "text_length", "bytes of it, no NUL"),
    ),
    0x40,
)

FRAME = Layout(
    "callgate_frame",
    "One call on its way: the driver fills it, the host answers in place. The payload follows.",
    (
        Member(0x00, "u32", "state", "enum callgate_frame_state"),
        Member(0x04, "u32", "vector", "driver: the call"),
        Member(0x08, "u16", "flags", "driver: enum callgate_frame_flag bits"),
        Member(0x0A, "u8", "arguments", "driver: argument slots filled"),
        Member(0x0B, "u8", "results", "host: result slots filled"),
        Member(0x0C, "u32", "status", "host: enum callgate_status"),
        Member(0x10, "u64", "code", "host: the device's own code, with DEVICE_ERROR"),
        Member(0x18, "u64", "cookie", "the driver's own; the host leaves it alone"),
        Member(0x20, "u64", "values", "arguments in, results out", MAX_VALUES),
    ),
    0x80,
)
PAYLOAD_OFFSET = FRAME.size
PAYLOAD_ALIGN = 8
MIN_FRAME_SIZE = 256

LAYOUTS = (CAPABILITY, HEADER, ENTRY, FRAME)
NAME_LENGTH = 39
"""Longest name of a device or call, bytes of UTF-8 (a NUL follows)."""


def round_up(value: int, step: int) -> int:
    """`value` rounded up to a multiple of `step`."""
    return -(-value // step) * step
