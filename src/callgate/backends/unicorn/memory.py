# SPDX-License-Identifier: MIT
"""Who answers at which guest physical address, told to the emulator.

    plain      RAM, and windows of BARs that are memory: mapped as they are, no trap
    ECAM       callbacks for I/O memory, since a configuration access may change all of this
    the rest   trapped: a hook for each window, and one for where nothing is

A trapped stretch is mapped when it is first touched, as I/O memory without permissions. Then the
hooks for "not permitted" see each access first, with address, size and value as the guest made it.
(The library's own callbacks for I/O memory see 8 bytes as 4 and 4, and what is not aligned in yet
smaller pieces.) The library makes the access all the same afterwards, piece by piece: a read takes
its pieces from what the hook left for it; the pieces of a write come through the hook again, if it
was not aligned, and are dropped there.

The map must not change inside these hooks: the library is in the middle of an access then and holds
on to the old map. It may in a configuration access, whose callback is the last thing that the
library does for it, in the hook for an address that is not mapped, and between runs. Elsewhere a
change of plain memory waits for the end of the block of instructions that is being executed, which
is asked to end. Trapped windows come and go at once everywhere: for them only hooks change.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import get_ident

from unicorn import unicorn_const as uc

from callgate.backends.system import System
from callgate.backends.unicorn.engine import (
    ON_ACCESS,
    ON_MMIO_READ,
    ON_MMIO_WRITE,
    Callback,
    Engine,
)
from callgate.backends.unicorn.processor import Traps
from callgate.backends.unicorn.taps import on_write
from callgate.gate.abi import PAGE
from callgate.pci.bar import ones
from callgate.pci.bus import Mapping

_CHUNK = 1 << 21
"""Most bytes that are mapped at once to be trapped."""
_CHUNKS = 64
"""Most trapped stretches at a time; a guest that touches more has the old ones mapped anew."""
_ALIGNED = 8
"""Windows that begin and end on such bytes hold every aligned access wholly, or not at all."""
_LAST_PAGE = (1 << 64) - PAGE
"""The library finds nothing in a range that ends at 2^64."""
_LAST_PHYSICAL = (1 << 52) - 1
_NEAR = 16
"""How far from an access's address a piece of it may lie."""
_FULL = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class _Plain:
    """Memory that is mapped as it is; the same when it is the same bytes at the same address."""

    start: int
    end: int
    host: int
    view: memoryview = field(compare=False)


class AddressSpace:
    """The emulator's memory map, for as long as `engine` lives; `extra` is the processor's own."""

    def __init__(
        self,
        engine: Engine,
        system: System,
        extra: tuple[Mapping, ...],
        traps: Traps,
    ) -> None:
        self.owner = get_ident()
        """The thread that may change the map."""
        self.safe = True
        """Whether the map may change: no access is under way that holds on to it."""
        self.stale = False
        """Whether `follow` must be called again when `safe`."""
        self._engine = engine
        self._system = system
        self._extra = extra
        self._fail = traps.fail
        self._break_off = traps.break_off
        self._plain: list[_Plain] = []
        self._planned: list[_Plain] = []
        self._chunks: dict[int, int] = {}
        self._hooks: dict[Mapping, tuple[int, int]] = {}
        self._left = [0, 0]
        """Address and value of the read whose pieces the library takes."""
        self._dropped: list[int] = []
        """Where pieces of a write that was not aligned are still to come, the last one first."""
        self._map_ecam()
        engine.hook(
            uc.UC_HOOK_MEM_READ_UNMAPPED | uc.UC_HOOK_MEM_WRITE_UNMAPPED,
            ON_ACCESS(self._on_unmapped),
        )
        if system.board.arch == "x86_64":
            # Addresses are 52 bits wide, so the last page is not that of 2^64; yet the library does
            # not find it by its virtual address if it is mapped only in the middle of an access.
            self._map_chunk(_LAST_PHYSICAL)
            self._chunks.clear()
        self._rest = self._trap(self._system.mem_read, self._system.mem_write, 0, range(0))
        self.follow()

    # --- following the system --------------------------------------------------------------------

    def follow(self) -> None:
        """Make the map what the system's mappings and RAM are now, or be `stale` if it cannot."""
        if get_ident() != self.owner:
            self.stale = True
            self._break_off()
            return
        self.stale = False
        mappings = [
            each for each in (*self._extra, *self._system.mappings()) if each.kind == "memory"
        ]
        self._planned = [*self._plain_ram(), *self._plain_windows(mappings)]
        self._trap_windows(mappings)
        if self._planned == self._plain:
            return
        if self.safe:
            self._map_plain()
        else:
            self.stale = True
            self._break_off()

    def _plain_ram(self) -> Iterator[_Plain]:
        for slot in self._system.memory.slots:
            # ROM is not: the library has no memory that drops writes, so it is trapped.
            if slot.view is not None and not slot.readonly:
                yield from _pages(slot.gpa, slot.view)

    def _plain_windows(self, mappings: list[Mapping]) -> Iterator[_Plain]:
        for each in mappings:
            if each.window.ram is not None:
                yield from _pages(
                    each.address, each.window.ram[each.offset : each.offset + each.length]
                )

    def _map_plain(self) -> None:
        for plain in [each for each in self._plain if each not in self._planned]:
            self._engine.unmap(plain.start, plain.end - plain.start)
            self._plain.remove(plain)
        for plain in [each for each in self._planned if each not in self._plain]:
            for start, end in list(self._chunks.items()):
                if start < plain.end and plain.start < end:
                    self._drop_chunk(start)
            self._engine.map_ram(plain.start, plain.view)
            self._plain.append(plain)
        self._plain = self._planned

    # --- ECAM ------------------------------------------------------------------------------------

    def _map_ecam(self) -> None:
        place = self._system.board.ecam
        read, write, fail = self._system.mem_read, self._system.mem_write, self._fail
        base = place.base

        @ON_MMIO_READ
        def on_read(_: bool, offset: int, size: int, __: bool) -> int:
            try:
                return read(base + offset, size)
            except BaseException as error:
                fail(error)
                return 0

        @ON_MMIO_WRITE
        def on_configure(_: bool, offset: int, size: int, value: int, __: bool) -> None:
            try:
                self.safe = True
                write(base + offset, size, value)
            except BaseException as error:
                fail(error)
            finally:
                self.safe = False

        self._engine.map_mmio(base, place.size, on_read, on_configure)

    # --- trapped windows -------------------------------------------------------------------------

    def _trap_windows(self, mappings: list[Mapping]) -> None:
        wanted = {
            each
            for each in mappings
            if not (each.address | each.length) % _ALIGNED
            and each.address != self._system.board.ecam.base
        }
        if wanted == self._hooks.keys():
            return
        for gone in self._hooks.keys() - wanted:
            self._untrap(self._hooks.pop(gone))
        for new in wanted - self._hooks.keys():
            place = range(new.address, new.end)
            self._hooks[new] = self._trap(new.window.read, new.window.write, new.base, place)
        # The library asks the first hook that was added, so this has to be the last.
        self._untrap(self._rest)
        self._rest = self._trap(self._system.mem_read, self._system.mem_write, 0, range(0))

    def _trap(
        self,
        read: Callable[[int, int], int],
        write: Callable[[int, int, int], None],
        base: int,
        place: range,
    ) -> tuple[int, int]:
        """Let `read` and `write` answer at `place`, by their offsets from `base`."""
        left, fail, read_any = self._left, self._fail, self._system.mem_read

        @ON_ACCESS
        def on_read(_: bool, __: bool, address: int, size: int, ___: int, ____: bool) -> bool:
            try:
                left[0] = address
                if address & size - 1:
                    left[1] = read_any(address, size)
                else:
                    left[1] = read(address - base, size)
            except BaseException as error:
                left[1] = ones(size)
                fail(error)
            return True

        begin, end = (place.start, place.stop - 1) if place else (1, 0)
        return (
            self._engine.hook(uc.UC_HOOK_MEM_READ_PROT, on_read, begin, end),
            self._engine.hook(
                uc.UC_HOOK_MEM_WRITE_PROT,
                on_write(write, base, self._write_any, self._dropped, fail),
                begin,
                end,
            ),
        )

    def _untrap(self, hooks: tuple[int, int]) -> None:
        for hook in hooks:
            self._engine.unhook(hook)

    def _write_any(self, address: int, size: int, value: int) -> None:
        """A write that is not aligned, or follows one that was not: maybe a piece of that."""
        dropped = self._dropped
        if size == 1 and dropped and dropped[-1] == address:
            dropped.pop()
            return
        dropped.clear()
        if address & size - 1:
            dropped.extend(reversed(range(address, address + size)))
        self._system.mem_write(address, size, value)

    # --- mapping on demand -----------------------------------------------------------------------

    def _on_unmapped(
        self, _: bool, __: bool, address: int, size: int, ___: int, ____: bool
    ) -> bool:
        try:
            if address >= _LAST_PAGE:
                return False
            self._map_chunk(address)
        except BaseException as error:
            self._fail(error)
            return False
        return True

    def _map_chunk(self, address: int) -> None:
        """Map a stretch around `address`, where nothing is mapped, to be trapped."""
        if len(self._chunks) >= _CHUNKS:
            for start in list(self._chunks):
                self._drop_chunk(start)
        start = address & -_CHUNK
        end = min(start + _CHUNK, _LAST_PAGE)
        ecam = self._system.board.ecam
        taken = [(each.start, each.end) for each in (*self._plain, *self._planned)]
        for low, high in (*taken, *self._chunks.items(), (ecam.base, ecam.end)):
            if high <= address:
                start = max(start, high)
            elif low > address:
                end = min(end, low)
        self._engine.map_mmio(start, end - start, self._pieces(start), None)
        self._engine.protect(start, end - start)
        self._chunks[start] = end

    def _drop_chunk(self, start: int) -> None:
        self._engine.unmap(start, self._chunks.pop(start) - start)

    def _pieces(self, base: int) -> Callback:
        """What gives the library the pieces of a read that a hook has answered."""
        left, fail, read_any = self._left, self._fail, self._system.mem_read

        @ON_MMIO_READ
        def piece(_: bool, offset: int, size: int, __: bool) -> int:
            try:
                address, value = left
                ahead = base + offset - address
                if not ahead:
                    return value
                if 0 < ahead < _NEAR:
                    return value >> 8 * ahead
                if -_NEAR < ahead < 0:
                    return value << -8 * ahead & _FULL
                # The access began in plain memory, so no hook saw it.
                return read_any(base + offset, size)
            except BaseException as error:
                fail(error)
                return ones(size)

        return piece


def _pages(address: int, view: memoryview) -> Iterator[_Plain]:
    """The whole pages of `view`, which begins at `address`, if it can be mapped."""
    start = -(-address // PAGE) * PAGE
    end = (address + len(view)) // PAGE * PAGE
    if start < end and not view.readonly:
        pages = view[start - address : end - address]
        host = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        if host % PAGE == 0:
            yield _Plain(start, end, host, pages)
