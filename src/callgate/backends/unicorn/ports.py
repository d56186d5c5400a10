# SPDX-License-Identifier: MIT
"""I/O instructions of x86: a hook for `in` and one for `out`, and a look-up by port."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from unicorn import unicorn_const as uc
from unicorn.x86_const import UC_X86_INS_IN, UC_X86_INS_OUT

from callgate.backends.system import System
from callgate.backends.unicorn.engine import ON_IN, ON_OUT, Engine
from callgate.backends.unicorn.memory import AddressSpace
from callgate.backends.unicorn.processor import Traps
from callgate.pci.bar import Write, ones
from callgate.pci.bus import CONFIG_PORTS


_SIZES = (1, 2, 4)


class Ports:
    """The emulator's I/O space, for as long as `engine` lives."""

    def __init__(self, engine: Engine, system: System, space: AddressSpace, traps: Traps) -> None:
        self._system = system
        self._space = space
        # By port << 3 | size: what answers (size) or takes (size, value).
        self._reads: dict[int, Callable[[int], int]] = {}
        self._writes: dict[int, Callable[[int, int], None]] = {}
        self.follow()
        read_any, write_any, fail = system.io_read, system.io_write, traps.fail

        @ON_IN
        def on_in(_: bool, port: int, size: int, __: bool) -> int:
            try:
                read = self._reads.get(port << 3 | size)
                return read_any(port, size) if read is None else read(size)
            except BaseException as error:
                fail(error)
                return ones(size)

        @ON_OUT
        def on_out(_: bool, port: int, size: int, value: int, __: bool) -> None:
            try:
                write = self._writes.get(port << 3 | size)
                if write is None:
                    write_any(port, size, value)
                else:
                    write(size, value)
            except BaseException as error:
                fail(error)

        engine.hook(uc.UC_HOOK_INSN, on_in, 1, 0, UC_X86_INS_IN)
        engine.hook(uc.UC_HOOK_INSN, on_out, 1, 0, UC_X86_INS_OUT)

    def follow(self) -> None:
        """Make the look-up what the system's mappings are now."""
        reads: dict[int, Callable[[int], int]] = {}
        writes: dict[int, Callable[[int, int], None]] = {}
        # The board's own devices come first, and win.
        for each in reversed(self._system.mappings()):
            if each.kind == "io":
                write = each.window.write
                if each.address == CONFIG_PORTS:
                    write = self._configuring(write)
                for port in range(each.address, each.end):
                    for size in _SIZES:
                        if port + size <= each.end:
                            reads[port << 3 | size] = partial(each.window.read, port - each.base)
                            writes[port << 3 | size] = partial(write, port - each.base)
        self._reads, self._writes = reads, writes

    def _configuring(self, write: Write) -> Write:
        def configure(offset: int, size: int, value: int) -> None:
            self._space.safe = True
            try:
                write(offset, size, value)
            finally:
                self._space.safe = False

        return configure
