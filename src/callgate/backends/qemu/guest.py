# SPDX-License-Identifier: MIT
"""Guest: devices, their servers and a QEMU, run together.

with Guest(Adder(), guest="adder.elf", arch="aarch64") as guest:
    result = guest.run()
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from callgate.backends.qemu.command import Command
from callgate.backends.qemu.find import ARCHITECTURES, find_qemu
from callgate.backends.qemu.initramfs import Init, build, new_token
from callgate.backends.qemu.kernel import (
    find_busybox,
    find_kernel,
    is_static,
    load_order,
)
from callgate.backends.qemu.qmp import Monitor
from callgate.backends.result import Result
from callgate.backends.vfio_user.server import Server
from callgate.device import Device
from callgate.elf import read_program
from callgate.errors import BackendError, BudgetError, GuestError
from callgate.gate.vectors import VectorTable
from callgate.gate.watcher import LINGER
from callgate.trace import Trace

EXCHANGE = 10.0
"""Seconds that a guest has for an answer, if it was given no time-out."""
_LEAVE = 2.0
"""Seconds from the guest's last word until its QEMU is ended."""


class Guest:
    """A guest in QEMU with `devices`, each on a server of its own; a `with` block ends it all.

    Either `guest` is an ELF program that needs no operating system, or Linux is booted: then
    `program` is a line for its shell, `modules` are loaded before, and `files` (path in the guest:
    file here) are there. `kernel`, `modules_folder`, `busybox` and `qemu` are found if they are
    left out. `memory` is in MiB; with `shared` off the devices get none of it. `timeout` (seconds)
    bounds each run. `append` goes to the kernel's command line and `extra` to QEMU's. With `stdin`
    the console reads this process's standard input; `interactive` then gives the guest Ctrl-C too.
    With `hotplug` the devices are plugged in by `plug`. What QEMU reads is written into `folder`, a
    temporary one if left out. `table` is where all devices bind their calls; `linger` is as for
    `Server`.

    Raises BackendError when something is missing, LoadError for a wrong ELF file.
    """

    def __init__(
        self,
        *devices: Device,
        arch: str | None = None,
        guest: Path | str | None = None,
        program: str = "sh",
        modules: Sequence[str] = (),
        files: Mapping[str, Path] | None = None,
        kernel: Path | None = None,
        modules_folder: Path | None = None,
        busybox: Path | None = None,
        qemu: Path | str | None = None,
        memory: int = 256,
        cpus: int = 1,
        shared: bool = True,
        hotplug: bool = False,
        accelerator: str | None = None,
        append: str = "",
        extra: Sequence[str] = (),
        timeout: float | None = None,
        handler_timeout: float | None = None,
        trace: Trace | None = None,
        stdin: bool = False,
        interactive: bool = False,
        folder: Path | None = None,
        table: VectorTable | None = None,
        linger: float = LINGER,
    ) -> None:
        self.timeout = timeout
        self.output = bytearray()
        """All that came over the console, as it came."""
        self.on_byte: Callable[[int], None] | None = None
        """Called with each byte of the guest's own output, but not with what /init says."""
        # One machine has one table: a vector of another device is known, and none of this one's.
        table = table if table is not None else VectorTable()
        self._init = Init(new_token())
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._said = threading.Condition()
        self._ended = False
        self._broken: BaseException | None = None
        """What `on_byte` raised; nobody has read the console since."""
        self._connected: Monitor | None = None
        self._exit_code: int | None = None
        self.exited = 0.0
        """When the program ended, by `time.monotonic`."""
        self._stdin = stdin
        self._closing = ExitStack()
        with ExitStack() as undo:
            if folder is None:
                made = undo.enter_context(tempfile.TemporaryDirectory(prefix="callgate-"))
                folder = Path(made)
            self._errors = folder / "errors"
            self.bare = guest is not None
            initrd = None
            if guest is not None:
                elf = read_program(guest, arch)
                arch, image = elf.arch, elf.path
            else:
                arch = arch or ARCHITECTURES[0]
                found = find_kernel(arch, kernel, modules_folder)
                image = found.image
                initrd = folder / "initramfs"
                initrd.write_bytes(
                    build(
                        busybox=find_busybox(arch, busybox).read_bytes(),
                        program=program,
                        token=self._init.token,
                        modules=load_order(list(modules), found.modules),
                        files=read_files(files or {}),
                        wait=hotplug,
                    )
                )
            self.arch = arch
            self.command = Command(
                qemu=find_qemu(arch, qemu),
                arch=arch,
                kernel=image,
                initrd=initrd,
                append=append,
                memory=memory,
                cpus=cpus,
                sockets=[folder / f"{index}.sock" for index in range(len(devices))],
                hotplug=hotplug,
                shared=shared,
                accelerator=accelerator,
                qmp=folder / "qmp.sock" if hotplug else None,
                extra=extra,
                interactive=interactive,
            )
            self.servers = [
                undo.enter_context(
                    Server(
                        device,
                        socket,
                        handler_timeout=handler_timeout,
                        trace=trace,
                        table=table,
                        linger=linger,
                    )
                )
                for device, socket in zip(devices, self.command.sockets, strict=True)
            ]
            undo.callback(self._end)
            self._closing = undo.pop_all()

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
        """End QEMU and the servers, remove every file. Harmless when repeated."""
        self._closing.close()

    @property
    def text(self) -> str:
        """What the guest wrote to its console, without what /init said."""
        return self._init.without(bytes(self.output))

    def start(self) -> None:
        """Start QEMU, if it does not run. Raises GuestError when the guest has ended."""
        if self._process is not None:
            return
        if self._ended:
            raise GuestError("The guest has ended: make a new one to run it again")
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                self.command.line(),
                stdin=None if self._stdin else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=not self._stdin,  # Ctrl-C is for us, and then we end QEMU.
            )
        out = self._process.stdout
        assert out is not None
        self._reader = threading.Thread(target=self._read, args=(out,), daemon=True)
        self._reader.start()

    def run(self) -> Result:
        """Run the guest until it ends.

        Raises BudgetError when the time is up, GuestError when QEMU ends without the guest having
        said how it went, with what QEMU said, or had ended before; and what `on_byte` raises.
        """
        began = time.monotonic()
        self.start()
        self._wait(lambda: self._exit_code is not None or self._ended, self.timeout)
        self._leave()
        if self._exit_code is None:
            raise GuestError(f"The guest ended without an exit code{self._complaint()}")
        return Result(self._exit_code, self.text, None, time.monotonic() - began)

    def exchange(self, line: bytes) -> bytes:
        """Give the guest a line to read, and wait until it has written one, or ended."""
        self.start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        begin = len(self.output)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(line.rstrip(b"\n") + b"\n")
            process.stdin.flush()
        self._wait(lambda: b"\n" in self.output[begin:] or self._ended, self.timeout or EXCHANGE)
        if self._ended:
            self._leave()
        return bytes(self.output[begin:]).partition(b"\n")[0].rstrip(b"\r")

    def wait_for(self, text: str, timeout: float) -> None:
        """Wait until the guest has written `text`. Raises BudgetError and GuestError."""
        wanted = text.encode()
        self._wait(lambda: wanted in self.output or self._ended, timeout)
        if wanted not in self.output:
            raise GuestError(f"The guest ended before it wrote {text!r}{self._complaint()}")

    def plug(self, index: int) -> None:
        """Plug a device in while the guest runs. Raises BackendError with QEMU's words."""
        self._monitor().plug(self.command.sockets[index], f"device{index}", f"port{index}")

    def unplug(self, index: int) -> None:
        """Unplug it, and wait until the guest has let go of it. Raises BackendError.

        Not a device with MSI-X: QEMU (10.1 to 11.1 at least) then fails an assertion of its own.
        """
        function = self.servers[index].function
        if function.msix is not None:
            raise BackendError(
                f"{function.name} must stay plugged in: QEMU ends with a failed assertion when it "
                "unplugs a vfio-user device that has MSI-X"
            )
        self._monitor().unplug(f"device{index}")

    def run_hotplugged(self) -> Result:
        """`run`, with all devices plugged in when the program starts and unplugged at its end.

        Those that `unplug` refuses stay until QEMU ends.
        """
        began = time.monotonic()
        self.start()
        self._wait(lambda: self._init.ready or self._ended, self.timeout)
        for index in range(len(self.servers)):
            self.plug(index)
        self._wait(lambda: self._exit_code is not None or self._ended, self.timeout)
        for index, server in enumerate(self.servers):
            if server.function.msix is None and not self._ended:
                self.unplug(index)
        self._end()
        if self._exit_code is None:
            raise GuestError(f"The guest ended without an exit code{self._complaint()}")
        return Result(self._exit_code, self.text, None, time.monotonic() - began)

    # --- inside ----------------------------------------------------------------------------------

    def _wait(self, done: Callable[[], bool], timeout: float | None) -> None:
        with self._said:
            in_time = self._said.wait_for(done, timeout)
        if self._broken is not None:
            self._end()
            raise self._broken
        if not in_time:
            self._end()  # Without the lock: the thread that reads the console takes it.
            raise BudgetError(
                f"The guest's {timeout:g} s are used up; it wrote last: {self.text[-500:]!r}"
            )

    def _read(self, out: IO[bytes]) -> None:
        """Take what comes over the console, until QEMU ends."""
        try:
            self._take(out)
        except BaseException as error:  # Of `on_byte`: for who waits for the guest.
            self._broken = error
        with self._said:
            self._ended = True
            self._said.notify_all()

    def _take(self, out: IO[bytes]) -> None:
        init = self._init
        while chunk := os.read(out.fileno(), 4096):
            init.on_byte = self.on_byte
            with self._said:
                self.output += chunk
                self._said.notify_all()
            init.hear(chunk)
            with self._said:
                if init.exit_code is not None and self._exit_code is None:
                    self.exited = time.monotonic()
                    self._exit_code = init.exit_code
                self._said.notify_all()

    def _monitor(self) -> Monitor:
        if self._connected is None:
            if self.command.qmp is None:
                raise BackendError("A guest must be made with hotplug=True to plug devices in")
            self._connected = Monitor(self.command.qmp)
        return self._connected

    def _leave(self) -> None:
        """Let QEMU end by itself, as it is about to; else end it."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LEAVE)
        code = process.returncode
        if self.bare and code is not None and code >= 0 and not self._complaint():
            if self.arch not in ("x86_64", "i386"):
                self._exit_code = code
            elif code & 1:  # isa-debug-exit ends QEMU with twice the code, and one.
                self._exit_code = code >> 1
        self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if self._connected is not None:
            self._connected.close()
            self._connected = None
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_LEAVE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._reader is not None:
            self._reader.join()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _complaint(self) -> str:
        """What QEMU complained of, after a colon."""
        lines = self._errors.read_text(errors="replace").splitlines()
        said = [line.strip() for line in lines if line.strip() and "warning:" not in line]
        return f": {' '.join(said)}" if said else ""


def what_to_run(command: str | None, given: Sequence[str]) -> tuple[str, dict[str, Path]]:
    """The line for a guest's shell, and the files that it takes: path in the guest, file here.

    `command` may begin with a program that is a file here; without a command it is a shell. `given`
    are FILE or FILE:PATH. Raises BackendError for a program that is not static.
    """
    files: dict[str, Path] = {}
    for each in given:
        here, _, there = each.partition(":")
        files[there or Path(here).name] = Path(here)
    if command is None:
        return "sh", files
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise BackendError(
            f"The command to run in the guest must be a line for its shell: {error}"
        ) from error
    if not words:
        raise BackendError("The command to run in the guest must name a program")
    path = Path(words[0])
    if not path.is_file():
        return command, files  # The shell's, busybox's, or one of the files.
    if not is_static(path):
        raise BackendError(
            f"{path} must be linked statically: the guest has no loader and no libraries"
        )
    files[path.name] = path
    first = shlex.quote(f"./{path.name}")
    given_as = command.lstrip()
    if given_as.startswith(words[0]):  # All behind it is the shell's: `./test > log && cat log`.
        return first + given_as.removeprefix(words[0]), files
    return shlex.join([f"./{path.name}", *words[1:]]), files


def read_files(files: Mapping[str, Path]) -> dict[str, bytes]:
    """What is to be put where in the guest. Raises BackendError for a file that is not there."""
    found = {}
    for name, path in files.items():
        if not path.is_file():
            raise BackendError(f"The file {path} must be there to be put into the guest")
        found[name if name.startswith("/") else f"/root/{name}"] = path.read_bytes()
    return found
