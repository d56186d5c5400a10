# SPDX-License-Identifier: MIT
"""I/O instructions of x86: a hook for `in` and one for `out`, and a look-up by port."""

from __future__ import annotations

from unicorn import unicorn_const as uc
from unicorn.x86_const import UC_X86_INS_IN, UC_X86_INS_OUT

from callgate.backends.system import System
from callgate.backends.unicorn.engine import ON_IN, Engine
from callgate.backends.unicorn.memory import AddressSpace
from callgate.backends.unicorn.processor import Traps
from callgate.backends.unicorn.taps import on_out
from callgate.pci.bar import Read, Write, ones
from callgate.pci.bus import CONFIG_PORTS

_SIZES = (1, 2, 4)


class Ports:
    """The emulator's I/O space, for as long as `engine` lives."""

    def __init__(self, engine: Engine, system: System, space: AddressSpace, traps: Traps) -> None:
        self._system = system
        self._space = space
        # By port << 3 | size: who answers, and the offset there. These stay the same objects, and
        # what is missing in them is found by the system.
        self._reads: dict[int, tuple[Read, int]] = {}
        self._writes: dict[int, tuple[Write, int]] = {}
        self.follow()
        read_any, fail, find_read = system.io_read, traps.fail, self._reads.get

        @ON_IN
        def on_in(_: bool, port: int, size: int, __: bool) -> int:
            try:
                found = find_read(port << 3 | size)
                if found is None:
                    return read_any(port, size)
                read, offset = found
                return read(offset, size)
            except BaseException as error:
                fail(error)
                return ones(size)

        engine.hook(uc.UC_HOOK_INSN, on_in, 1, 0, UC_X86_INS_IN)
        out = on_out(self._writes, system.io_write, traps.fail)
        engine.hook(uc.UC_HOOK_INSN, out, 1, 0, UC_X86_INS_OUT)

    def follow(self) -> None:
        """Make the look-up what the system's mappings are now."""
        reads: dict[int, tuple[Read, int]] = {}
        writes: dict[int, tuple[Write, int]] = {}
        # The board's own devices come first, and win.
        for each in reversed(self._system.mappings()):
            if each.kind == "io":
                write = each.window.write
                if each.address == CONFIG_PORTS:
                    write = self._configuring(write)
                for port in range(each.address, each.end):
                    for size in _SIZES:
                        if port + size <= each.end:
                            reads[port << 3 | size] = each.window.read, port - each.base
                            writes[port << 3 | size] = write, port - each.base
        self._reads.clear()
        self._writes.clear()
        self._reads.update(reads)
        self._writes.update(writes)

    def _configuring(self, write: Write) -> Write:
        def configure(offset: int, size: int, value: int) -> None:
            self._space.safe = True
            try:
                write(offset, size, value)
            finally:
                self._space.safe = False

        return configure
