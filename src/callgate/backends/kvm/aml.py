# SPDX-License-Identifier: MIT
"""ACPI Machine Language, as far as a small DSDT needs it (ACPI 6.5, chapter 20).

Terms are bytes. A term that holds others is: opcode | PkgLength | name or count | terms.
"""

from __future__ import annotations

import struct

ZERO, ONE = b"\x00", b"\x01"
_BUS, _MEMORY, _IO = 2, 0, 1
_FIXED = 0x0C
"""Minimum and maximum are fixed; the device produces the range (6.4.3.5)."""
_ENTIRE_RANGE = 0x03
_WRITABLE, _PREFETCHABLE = 0x01, 0x06


def integer(value: int) -> bytes:
    """A constant of up to 64 bits, in the shortest form."""
    if value < 2:
        return ONE if value else ZERO
    for opcode, width in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if value < 1 << 8 * width:
            return bytes((opcode,)) + value.to_bytes(width, "little")
    raise ValueError(f"An AML integer must have 64 bits at most, not {value.bit_length()}")


def string(text: str) -> bytes:
    """A string of ASCII."""
    return b"\x0d" + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """A compressed EISA id such as PNP0A08 (ASL's EisaId, 19.3.4)."""
    letters = [ord(letter) - 0x40 for letter in text[:3]]
    number = letters[0] << 26 | letters[1] << 21 | letters[2] << 16 | int(text[3:], 16)
    return b"\x0c" + number.to_bytes(4, "big")


def name(path: str, value: bytes) -> bytes:
    """`Name(path, value)`."""
    return b"\x08" + _path(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    """`Scope(path) { terms }`."""
    return b"\x10" + _package_length(_path(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    """`Device(path) { terms }`."""
    return b"\x5b\x82" + _package_length(_path(path) + b"".join(terms))


def package(*elements: bytes) -> bytes:
    """`Package() { elements }`."""
    return b"\x12" + _package_length(bytes((len(elements),)) + b"".join(elements))


def resources(*descriptors: bytes) -> bytes:
    """`ResourceTemplate() { descriptors }`: a buffer that ends with an end tag."""
    data = b"".join(descriptors) + b"\x79\0"
    return b"\x11" + _package_length(integer(len(data)) + data)


# --- resource descriptors (6.4) ------------------------------------------------------------------


def ports(first: int, count: int) -> bytes:
    """I/O ports that the device decodes."""
    return struct.pack("<BBHHBB", 0x47, 1, first, first, 1, count)


def irq(line: int) -> bytes:
    """An edge-triggered, active-high interrupt of the ISA bus."""
    return struct.pack("<BH", 0x22, 1 << line)


def fixed_memory(base: int, length: int) -> bytes:
    """A range of memory below 4 GiB that never moves."""
    return struct.pack("<BHBII", 0x86, 9, _WRITABLE, base, length)


def bus_numbers(first: int, last: int) -> bytes:
    """The buses behind a host bridge."""
    return _word(_BUS, 0, first, last)


def port_window(first: int, last: int) -> bytes:
    """I/O ports that a host bridge passes on."""
    return _word(_IO, _ENTIRE_RANGE, first, last)


def memory_window(first: int, last: int) -> bytes:
    """Memory below 4 GiB that a host bridge passes on."""
    head = struct.pack("<BHBBB", 0x87, 23, _MEMORY, _FIXED, _WRITABLE)
    return head + struct.pack("<5I", 0, first, last, 0, last - first + 1)


def high_memory_window(first: int, last: int) -> bytes:
    """Memory at any address that a host bridge passes on, prefetchable."""
    head = struct.pack("<BHBBB", 0x8A, 43, _MEMORY, _FIXED, _WRITABLE | _PREFETCHABLE)
    return head + struct.pack("<5Q", 0, first, last, 0, last - first + 1)


def _word(kind: int, flags: int, first: int, last: int) -> bytes:
    head = struct.pack("<BHBBB", 0x88, 13, kind, _FIXED, flags)
    return head + struct.pack("<5H", 0, first, last, 0, last - first + 1)


# --- encodings -----------------------------------------------------------------------------------


def _path(path: str) -> bytes:
    """A name of segments that dots part, perhaps from the root (20.2.2)."""
    root = b"\\" if path.startswith("\\") else b""
    segments = [segment.ljust(4, "_").encode("ascii") for segment in path.lstrip("\\").split(".")]
    prefix = b"" if len(segments) == 1 else b"\x2e"
    if len(segments) > 2 or any(len(segment) != 4 for segment in segments):
        raise ValueError(f"An AML path must be one or two names of up to 4 letters, not {path!r}")
    return root + prefix + b"".join(segments)


def _package_length(content: bytes) -> bytes:
    """The content behind its PkgLength, which counts itself (20.2.4)."""
    for extra in range(4):
        total = len(content) + 1 + extra
        if total < (1 << 6 if not extra else 1 << 4 + 8 * extra):
            break
    if not extra:
        return bytes((total,)) + content
    head = extra << 6 | total & 0xF
    return bytes((head,)) + (total >> 4).to_bytes(extra, "little") + content
