# SPDX-License-Identifier: MIT
"""I/O instructions of x86: a hook for `in` and one for `out`, and a look-up by port."""

from __future__ import annotations

from unicorn import unicorn_const as uc
from unicorn.x86_const import UC_X86_INS_IN, UC_X86_INS_OUT

from callgate.backends.system import System
from callgate.backends.unicorn.engine import ON_IN, ON_OUT, Engine
from callgate.backends.unicorn.memory import AddressSpace
from callgate.backends.unicorn.processor import Traps
from callgate.pci.bar import Read, Write, ones
from callgate.pci.bus import CONFIG_PORTS


class Ports:
    """The emulator's I/O space, for as long as `engine` lives."""

    def __init__(
        self,
        engine: Engine,
        system: System,
        space: AddressSpace,
        traps: Traps,
    ) -> None:
        self._system = system
        self._space = space
        self._reads: dict[int, tuple[int, int, Read]] = {}
        self._writes: dict[int, tuple[int, int, Write]] = {}
        self.follow()
        read_any, write_any, fail = system.io_read, system.io_write, traps.fail

        @ON_IN
        def on_in(_: int, port: int, size: int, __: int) -> int:
            try:
                found = self._reads.get(port)
                if found is not None and port + size <= found[1]:
                    return found[2](port - found[0], size)
                return read_any(port, size)
            except BaseException as error:
                fail(error)
                return ones(size)

        @ON_OUT
        def on_out(_: int, port: int, size: int, value: int, __: int) -> None:
            try:
                found = self._writes.get(port)
                if found is not None and port + size <= found[1]:
                    found[2](port - found[0], size, value)
                else:
                    write_any(port, size, value)
            except BaseException as error:
                fail(error)

        engine.hook(uc.UC_HOOK_INSN, on_in, 1, 0, UC_X86_INS_IN)
        engine.hook(uc.UC_HOOK_INSN, on_out, 1, 0, UC_X86_INS_OUT)

    def follow(self) -> None:
        """Make the look-up what the system's mappings are now."""
        reads: dict[int, tuple[int, int, Read]] = {}
        writes: dict[int, tuple[int, int, Write]] = {}
        # The board's own devices come first, and win.
        for each in reversed(self._system.mappings()):
            if each.kind == "io":
                write = each.window.write
                if each.address == CONFIG_PORTS:
                    write = self._configuring(write)
                for port in range(each.address, each.end):
                    reads[port] = each.base, each.end, each.window.read
                    writes[port] = each.base, each.end, write
        self._reads, self._writes = reads, writes

    def _configuring(self, write: Write) -> Write:
        def configure(offset: int, size: int, value: int) -> None:
            self._space.safe = True
            try:
                write(offset, size, value)
            finally:
                self._space.safe = False

        return configure
