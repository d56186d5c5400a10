# SPDX-License-Identifier: MIT
"""LinuxGuest: Linux in a machine of our own, with one program to run.

with LinuxGuest(Adder(), program="./test", files={"test": Path("test")}) as guest:
    result = guest.run()

What `backends/qemu/guest.py` is for QEMU; kernel, modules and initramfs are found and made alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

from callgate.backends.base import Linux
from callgate.backends.qemu.guest import read_files
from callgate.backends.qemu.initramfs import Init, build, new_token
from callgate.backends.qemu.kernel import find_busybox, find_kernel, load_order
from callgate.backends.result import Result
from callgate.device import Device
from callgate.errors import GuestError
from callgate.machine import Machine

_KERNEL = "console=ttyS0 quiet panic=-1 reboot=t"


class LinuxGuest:
    """Linux with `devices`, on the backend `on`; a `with` block ends it all.

    `program` is a line for its shell, `modules` are loaded before, and `files` (path in the guest:
    file here) are there. `kernel`, `modules_folder` and `busybox` are found if they are left out.
    `memory` is in MiB. `append` goes to the kernel's command line. All else is as for `Machine`.

    Raises BackendError when something is missing, LoadError for a kernel that cannot be booted.
    """

    def __init__(
        self,
        *devices: Device | tuple[Device, ...],
        on: str = "kvm",
        program: str = "sh",
        modules: Sequence[str] = (),
        files: Mapping[str, Path] | None = None,
        kernel: Path | None = None,
        modules_folder: Path | None = None,
        busybox: Path | None = None,
        memory: int = 256,
        append: str = "",
        **options: Any,
    ) -> None:
        found = find_kernel("x86_64", kernel, modules_folder)
        self._init = Init(new_token())
        self._early = bytearray()
        self._feeding = Lock()
        self.exited = 0.0
        """When the program ended, by `time.monotonic`."""
        initrd = build(
            busybox=find_busybox("x86_64", busybox).read_bytes(),
            program=program,
            token=self._init.token,
            modules=load_order(list(modules), found.modules),
            files=read_files(files or {}),
        )
        line = f"{_KERNEL} {append}".rstrip()
        self.machine = Machine(
            *devices,
            on=on,
            arch="x86_64",
            ram=memory << 20,
            linux=Linux(found.image.read_bytes(), initrd, line),
            reboot=False,
            **options,
        )
        self.machine.console.on_byte = self._hear

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give everything back. Harmless when repeated."""
        self.machine.close()

    @property
    def on_byte(self) -> Callable[[int], None] | None:
        """Called with each byte of the guest's own output, but not with what /init says."""
        return self._init.on_byte

    @on_byte.setter
    def on_byte(self, callback: Callable[[int], None] | None) -> None:
        self._init.on_byte = callback

    @property
    def text(self) -> str:
        """What the guest wrote to its console, without what /init said."""
        return self._init.without(bytes(self.machine.console.output))

    def feed(self, data: bytes) -> None:
        """Let the guest read `data` from its console, once its program starts: what came before
        would be lost, as on any line that nobody listens to yet."""
        with self._feeding:
            if self._init.ready:
                self.machine.console.feed(data)
            else:
                self._early += data

    def run(self) -> Result:
        """Run the guest until it ends.

        Raises BudgetError when the time is up, GuestError when it ends without having said how it
        went.
        """
        began = time.monotonic()
        self.machine.run()
        if self._init.exit_code is None:
            raise GuestError(
                f"The guest ended without an exit code; it wrote last: {self.text[-500:]!r}"
            )
        return Result(self._init.exit_code, self.text, None, time.monotonic() - began)

    def _hear(self, byte: int) -> None:
        ready = self._init.ready
        self._init.hear(bytes((byte,)))
        if self._init.ready and not ready:
            with self._feeding:
                self.machine.console.feed(bytes(self._early))
        if self._init.exit_code is not None and not self.exited:
            self.exited = time.monotonic()
