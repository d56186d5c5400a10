# SPDX-License-Identifier: MIT
"""Base address registers and what lies behind them (PCI Local Bus 3.0, 6.2.5).

    memory   | address, from the size's bit up |  0 ... 0  | prefetchable | 0 or 2 (64-bit) | 0 |
    I/O      | address, from the size's bit up |  0 ... 0                            |  0 | 1     |

Sizing needs no code: the address bits below the size are read-only zeros, so all ones that a driver
writes read back as the mask.

    BAR      0 ............................................. size
    windows  | ram: plain memory     | doorbell: traps |  hole |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from callgate.faults import Faults
from callgate.pci.config import BAR0, ConfigSpace

Kind: TypeAlias = Literal["memory", "io"]
Read: TypeAlias = Callable[[int, int], int]
"""(offset, size in bytes) -> value"""
Write: TypeAlias = Callable[[int, int, int], None]
"""(offset, size in bytes, value)"""

SIZES = (1, 2, 4, 8)
"""Bytes of an access."""
PORTS = 1 << 16
"""Size of the I/O space."""


def ones(size: int) -> int:
    """What a read of `size` bytes gives where nothing answers."""
    return (1 << 8 * max(size, 0)) - 1


class Window:
    """A stretch of a BAR, `size` bytes at `offset`, with one way of answering.

    With `ram` it is plain memory, which a backend maps into the guest. All else traps: `read` and
    `write` take offsets from the window's start, and are made from `ram` where they are not given.
    With `combines` writes may come late and several at once: see `callgate.Bar`.
    """

    __slots__ = ("combines", "name", "offset", "ram", "read", "size", "write")

    def __init__(
        self,
        name: str,
        offset: int,
        size: int,
        *,
        ram: memoryview | None = None,
        read: Read | None = None,
        write: Write | None = None,
        combines: bool = False,
    ) -> None:
        self.name = name
        self.offset = offset
        self.size = size
        self.ram = ram
        self.combines = combines
        self.read: Read = read or self._read_ram
        self.write: Write = write or self._write_ram

    def _read_ram(self, offset: int, size: int) -> int:
        assert self.ram is not None
        return int.from_bytes(self.ram[offset : offset + size], "little")

    def _write_ram(self, offset: int, size: int, value: int) -> None:
        assert self.ram is not None
        self.ram[offset : offset + size] = value.to_bytes(size, "little")

    def __repr__(self) -> str:
        return f"<Window {self.name} {self.offset:#x}..{self.offset + self.size - 1:#x}>"


class BarState:
    """A BAR of a function: where it is now, and its windows, ascending.

    `size` is a power of two: at least 16 for memory, 4 for I/O. `decoding` follows the command
    register. `read` and `write` do not ask whether the BAR is enabled: who routes accesses knows.
    """

    def __init__(
        self,
        index: int,
        size: int,
        kind: Kind = "memory",
        *,
        width: Literal[32, 64] = 32,
        prefetchable: bool = False,
        windows: tuple[Window, ...],
        config: ConfigSpace,
        faults: Faults,
    ) -> None:
        self.index = index
        self.size = size
        self.kind = kind
        self.width = width
        self.prefetchable = prefetchable
        self.windows = windows
        self.decoding = False
        self._config = config
        self._faults = faults
        self._register = BAR0 + 4 * index
        self._bytes = width // 8
        type_bits = 1 if kind == "io" else (width == 64) << 2 | prefetchable << 3
        self._mask = (1 << width) - size
        config.define(
            self._register,
            type_bits.to_bytes(self._bytes, "little"),
            writable=self._mask.to_bytes(self._bytes, "little"),
        )

    @property
    def address(self) -> int:
        """The address in the register: guest physical, or an I/O port."""
        return self._config.get(self._register, self._bytes) & self._mask

    @property
    def enabled(self) -> bool:
        """Whether the function answers at `address`.

        Not while decoding is off, nor at address 0 (never assigned), nor with all address bits set:
        drivers that size a BAR with decoding on do not mean to move it over what lies there.
        """
        if not self.decoding:
            return False
        address = self.address
        limit = PORTS if self.kind == "io" else self._mask
        return 0 < address < limit

    def place(self, address: int) -> None:
        """Write the address register as firmware does: the low dword, then the high one."""
        for part in range(0, self._bytes, 4):
            self._config.write(self._register + part, 4, address >> 8 * part & 0xFFFF_FFFF)

    def read(self, offset: int, size: int) -> int:
        """A guest's read of 1, 2, 4 or 8 bytes. All ones where no single window holds them."""
        if size in SIZES:
            for window in self.windows:
                start = offset - window.offset
                if 0 <= start <= window.size - size:
                    return window.read(start, size)
        self._bad("read", offset, size)
        return ones(size)

    def write(self, offset: int, size: int, value: int) -> None:
        """A guest's write of 1, 2, 4 or 8 bytes. Dropped where no single window holds them."""
        if size in SIZES:
            for window in self.windows:
                start = offset - window.offset
                if 0 <= start <= window.size - size:
                    window.write(start, size, value & ones(size))
                    return
        self._bad("write", offset, size)

    def _bad(self, access: str, offset: int, size: int) -> None:
        self._faults.note(
            f"BAR {access}",
            f"a {access} of {size} bytes at BAR {self.index} + {offset:#x} must be 1, 2, 4 or 8 "
            f"bytes inside one of {list(self.windows)}",
        )

    def __repr__(self) -> str:
        state = "at" if self.enabled else "off, at"
        return f"<BAR {self.index} {self.kind} {self.size:#x} {state} {self.address:#x}>"
