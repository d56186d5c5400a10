# SPDX-License-Identifier: MIT
"""A function's INTx line through uio_pci_generic: /dev/uioN, which a program can wait for."""

from __future__ import annotations

import os
import select
from pathlib import Path

from callgate.driver.pci import COMMAND, COMMAND_NO_INTX, Interrupt, PciFunction

_COUNT = 4
"""Bytes that a read gives: how many interrupts there were."""


class UioInterrupt(Interrupt):
    """The kernel masks the line when it is taken, until the next look; the device must be told to
    let it go by what its registers want for that."""

    def __init__(self, path: Path, function: PciFunction) -> None:
        self._function = function
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        self.index = 0
        self.mask(False)

    def mask(self, masked: bool) -> None:
        """See `Interrupt`."""
        command = self._function.config(COMMAND, 2) & ~COMMAND_NO_INTX
        self._function.set_config(COMMAND, 2, command | COMMAND_NO_INTX * masked)

    def take(self) -> bool:
        """See `Interrupt`."""
        try:
            os.read(self._file, _COUNT)
        except BlockingIOError:
            return False
        self.mask(False)
        return True

    def wait(self, timeout: float) -> bool:
        """See `Interrupt`: sleep until the kernel has taken one."""
        select.select([self._file], [], [], timeout)
        return self.take()

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
