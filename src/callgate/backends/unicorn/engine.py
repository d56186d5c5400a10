# SPDX-License-Identifier: MIT
"""The Unicorn library by its C interface.

The Python binding costs more than the work it wraps: a hook passes two Python frames before it
reaches its function (0.43 us instead of 0.18 us), a register read takes 2 us instead of 0.2 us. So
hooks are plain ctypes callbacks here, and registers are read and written in batches whose arrays
are made once. The binding still opens and closes the library and holds its constants.

A callback must not raise, since ctypes would only print it: each ends in `except BaseException`,
which hands the exception to the run loop.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from ctypes import CFUNCTYPE, PYFUNCTYPE, c_bool, c_int, c_int32, c_uint32, c_uint64, c_void_p
from functools import partial
from typing import Any, TypeAlias

from unicorn import unicorn_const
from unicorn.unicorn_py3 import unicorn as _binding

# The binding's types are half declared, so they are looked at as what they are: untyped.
_Uc: Any = _binding.Uc
_library: Any = _binding.uclib

Callback: TypeAlias = Any
"""A ctypes function object, or one of _tap.c's, to be kept alive as long as the library may call
it."""

# The callbacks of unicorn.h. Each first takes the engine's handle, and last the user's pointer, and
# some take more that nobody here looks at. Those are declared as truth values, since True and False
# need not be made anew for each call; in a register, their first byte is as good as any.
_unused = c_bool
ON_ACCESS: Callable[[Callable[[bool, bool, int, int, int, bool], bool]], Callback] = CFUNCTYPE(
    c_bool, _unused, _unused, c_uint64, c_int, c_uint64, _unused
)
"""(address, size, value), after the handle and the kind -> whether the access may go on"""
ON_MMIO_READ: Callable[[Callable[[bool, int, int, bool], int]], Callback] = CFUNCTYPE(
    c_uint64, _unused, c_uint64, c_uint32, _unused
)
"""(offset, size) -> value"""
ON_MMIO_WRITE: Callable[[Callable[[bool, int, int, int, bool], None]], Callback] = CFUNCTYPE(
    None, _unused, c_uint64, c_uint32, c_uint64, _unused
)
"""(offset, size, value)"""
ON_INTERRUPT: Callable[[Callable[[bool, int, bool], None]], Callback] = CFUNCTYPE(
    None, _unused, c_uint32, _unused
)
"""(number)"""
ON_INVALID: Callable[[Callable[[bool, bool], bool]], Callback] = CFUNCTYPE(c_bool, _unused, _unused)
"""() -> whether the instruction was handled"""
ON_CODE: Callable[[Callable[[bool, int, int, bool], None] | int], Callback] = CFUNCTYPE(
    None, _unused, c_uint64, c_uint32, _unused
)
"""(address, size). An address is taken for that of host code."""
ON_IN: Callable[[Callable[[bool, int, int, bool], int]], Callback] = CFUNCTYPE(
    c_uint32, _unused, c_uint32, c_int, _unused
)
"""(port, size) -> value"""
ON_OUT: Callable[[Callable[[bool, int, int, int, bool], None]], Callback] = CFUNCTYPE(
    None, _unused, c_uint32, c_int, c_uint32, _unused
)
"""(port, size, value)"""
ON_CPUID: Callable[[Callable[[bool, bool], int]], Callback] = CFUNCTYPE(c_int, _unused, _unused)
"""() -> whether the instruction is done with"""

# The batch functions take four pointers' worth of arguments that are made once. Without argument
# types, ctypes passes them on without a conversion; PYFUNCTYPE keeps the GIL, which is held anyway.
_PROTOTYPE = PYFUNCTYPE(c_int)


def _raw(name: str) -> Any:
    return _PROTOTYPE(ctypes.cast(getattr(_library, name), c_void_p).value or 0)


STOP: int = ctypes.cast(_library.uc_emu_stop, c_void_p).value or 0
"""Where the library's `uc_emu_stop` is."""
_read_batch = _raw("uc_reg_read_batch")
_write_batch = _raw("uc_reg_write_batch")
_COUNTS = tuple(c_int(count) for count in range(64))
_UNPACK = tuple(struct.Struct(f"<{count}Q").unpack_from for count in range(8))


def _declare(name: str, *argument_types: Any) -> Any:
    function = getattr(_library, name)
    function.restype = c_int
    function.argtypes = argument_types
    return function


_vmem_read = _declare("uc_vmem_read", c_void_p, c_uint64, c_uint32, c_void_p, ctypes.c_size_t)
_vmem_write = _declare("uc_vmem_write", c_void_p, c_uint64, c_uint32, c_void_p, ctypes.c_size_t)


class EngineError(Exception):
    """The library refused; `status` is its code."""

    def __init__(self, status: int) -> None:
        super().__init__(_library.uc_strerror(status).decode())
        self.status = status


class Engine:
    """One emulated processor of the library; `close` gives it back."""

    def __init__(self, arch: int, mode: int) -> None:
        self._uc = _Uc(arch, mode)
        self.handle: c_void_p = self.uc._uch
        self._callbacks: dict[int, Callback] = {}
        self._deleted: list[Callback] = []
        self._mmio: dict[int, tuple[Callback, Callback]] = {}
        # Without it, an address would have to be named at which the emulator stops.
        self.uc.ctl_exits_enabled(True)
        self._emu_start = _library.uc_emu_start
        self._emu_stop = _library.uc_emu_stop

    @property
    def uc(self) -> Any:
        """The binding's object, for what need not be quick."""
        assert self._uc is not None, "the engine is closed"
        return self._uc

    def close(self) -> None:
        """Give the processor back. Nothing may be called afterwards but this."""
        # The binding closes the library's object when nobody holds its own.
        self._uc = None
        self._callbacks.clear()
        self._deleted.clear()
        self._mmio.clear()

    # --- running ---------------------------------------------------------------------------------

    def run(self, pc: int) -> int:
        """Execute from `pc` on; returns the library's error code.

        Other threads run meanwhile. No callback of a hook that was deleted is needed afterwards.
        """
        error: int = self._emu_start(self.handle, pc, 0, 0, 0)
        self._deleted.clear()
        return error

    def stop(self) -> None:
        """Let `run` return. Only from a hook at an instruction's start: see hostcode.py."""
        self._emu_stop(self.handle)

    # --- hooks -----------------------------------------------------------------------------------

    def hook(
        self,
        kind: int,
        callback: Callback,
        begin: int = 1,
        end: int = 0,
        *extra: int,
        pointer: int | c_void_p | None = None,
    ) -> int:
        """Call `callback` for each event of the kind, between two addresses unless begin > end.

        The first hook added is called first; `pointer` is passed to it last. Returns what `unhook`
        takes.
        """
        handle = ctypes.c_size_t()
        function = callback
        if hasattr(callback, "function"):  # A compiled one.
            function, pointer = c_void_p(callback.function), c_void_p(callback.pointer)
        status = _library.uc_hook_add(
            self.handle,
            ctypes.byref(handle),
            kind,
            function,
            pointer,
            c_uint64(begin),
            c_uint64(end),
            *(c_int(each) for each in extra),
        )
        _check(status)
        self._callbacks[handle.value] = callback
        return handle.value

    def unhook(self, handle: int) -> None:
        """Call the hook's callback no more."""
        _check(_library.uc_hook_del(self.handle, ctypes.c_size_t(handle)))
        # The library may be inside it at this moment.
        self._deleted.append(self._callbacks.pop(handle))

    # --- memory ----------------------------------------------------------------------------------

    def map_ram(self, address: int, view: memoryview) -> None:
        """Let `view`, which is writable, be the guest's memory at `address`, without a copy."""
        # The address outlives this: who maps keeps the view until it is unmapped.
        first = ctypes.c_char.from_buffer(view)
        self.uc.mem_map_ptr(address, len(view), unicorn_const.UC_PROT_ALL, ctypes.addressof(first))

    def map_mmio(self, address: int, size: int, read: Callback, write: Callback) -> None:
        """Call `read` and `write` for accesses to the range; None reads 0 and drops writes."""
        _check(_library.uc_mmio_map(self.handle, address, size, read, None, write, None))
        self._mmio[address] = read, write

    def protect(self, address: int, size: int) -> None:
        """Take all permissions from a mapped range, so that the hooks for that see each access."""
        _check(_library.uc_mem_protect(self.handle, address, size, unicorn_const.UC_PROT_NONE))

    def unmap(self, address: int, size: int) -> None:
        """Map nothing there any more."""
        _check(_library.uc_mem_unmap(self.handle, address, size))
        self._mmio.pop(address, None)

    def read(self, address: int, size: int) -> bytes:
        """Read memory as the processor does, by virtual address. Raises EngineError."""
        buffer = ctypes.create_string_buffer(size)
        _check(_vmem_read(self.handle, address, unicorn_const.UC_PROT_READ, buffer, size))
        return buffer.raw

    def write(self, address: int, data: bytes) -> None:
        """Write memory as the processor does, by virtual address. Raises EngineError."""
        _check(_vmem_write(self.handle, address, unicorn_const.UC_PROT_WRITE, data, len(data)))


class Registers:
    """Some of a processor's registers, read and written together.

    `values` holds them, 64 bits each and in the order that was given; `fetch` and `store` move the
    first of them from and to the processor. With `halves`, two registers of 32 bits make one value,
    low half first; None in `names` leaves a half out.
    """

    def __init__(self, engine: Engine, names: Sequence[int | None], *, halves: bool = False):
        width = 4 if halves else 8
        self._cells = (c_uint64 * (-(-len(names) * width // 8)))()
        self.values = memoryview(self._cells).cast("B").cast("Q")
        base = ctypes.addressof(self._cells)
        placed = [(name, base + width * at) for at, name in enumerate(names) if name is not None]
        self._halves = halves
        self._all = len(placed)
        numbers = (c_int32 * len(placed))(*(name for name, _ in placed))
        places = (c_void_p * len(placed))(*(place for _, place in placed))
        # Arrays, not their addresses: what is made below lives longer than this object.
        self._read = partial(_read_batch, engine.handle, numbers, places)
        self._write = partial(_write_batch, engine.handle, numbers, places)

    def fetch(self, count: int) -> None:
        """Read the first `count` registers into `values`."""
        self._read(_COUNTS[count])

    def store(self, count: int) -> None:
        """Write the first `count` registers from `values`."""
        self._write(_COUNTS[count])

    # What a hypercall does, made once: each costs one call of C and little around it.

    def fetcher(self) -> Callable[[], object]:
        """Make a function that reads all registers into `values`."""
        return partial(self._read, _COUNTS[self._all])

    def slots(self, first: int) -> Callable[[int], tuple[int, ...]]:
        """Make a function that gives the first n of `values` from index `first` on."""
        cells, start = self._cells, 8 * first

        def slots(count: int) -> tuple[int, ...]:
            return _UNPACK[count](cells, start)

        return slots

    def answerer(self) -> Callable[[int, tuple[int, ...]], None]:
        """Make a function that writes a status and the results to the registers."""
        values = self.values
        step = 2 if self._halves else 1
        writes = [partial(self._write, count) for count in _COUNTS[1 : self._all + 1 : step]]

        def answer(status: int, results: tuple[int, ...]) -> None:
            values[0] = status
            count = 0
            for result in results:
                count += 1
                values[count] = result
            writes[count]()

        return answer


def _check(status: int) -> None:
    if status != unicorn_const.UC_ERR_OK:
        raise EngineError(status)
