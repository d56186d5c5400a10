# SPDX-License-Identifier: MIT
"""`callgate serve`: devices on UNIX sockets, until somebody ends it.

Ctrl-C is an interruption, so it ends with 130 as every command does. SIGTERM is how a service is
asked to stop: it ends with 0. Either way clients are disconnected and sockets removed before.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

from callgate.backends.vfio_user.server import Server
from callgate.device import Device
from callgate.errors import BackendError
from callgate.load import make_devices
from callgate.trace import Trace

MEMORY = "-object memory-backend-memfd,id=ram,size=1G,share=on -machine memory-backend=ram"
"""The guest's memory as a file that QEMU passes on; of any size."""


def run_serve(
    classes: Sequence[type[Device]],
    sockets: Sequence[Path],
    *,
    keep_state: bool,
    handler_timeout: float | None,
    linger: float,
    trace: Trace | None,
) -> int:
    """Serve until SIGINT or SIGTERM; the signal's number.

    Raises BackendError when a socket cannot be made.
    """
    if len(sockets) != len(classes):
        raise BackendError(
            f"There must be one --socket for each FILE, in order: {len(classes)}, "
            f"not {len(sockets)}"
        )
    places = [Path(os.path.abspath(socket)) for socket in sockets]
    if len(set(places)) != len(places):
        raise BackendError("Each device must have a --socket of its own")
    with _until_signalled() as wait, ExitStack() as serving:
        served = []
        for device, place in zip(make_devices(classes), places, strict=True):
            name = f"{device} at {place}"
            server = Server(
                device,
                place,
                keep_state=keep_state,
                linger=linger,
                handler_timeout=handler_timeout,
                trace=trace,
                on_client=_teller(name),
            )
            served.append((server, name))
            serving.enter_context(server)
        _introduce(served)
        return wait()


def qemu_option(socket: Path) -> str:
    """The option that plugs a served device into QEMU, for a shell."""
    device = {"driver": "vfio-user-pci", "socket": {"type": "unix", "path": str(socket)}}
    return f"-device {shlex.quote(json.dumps(device, separators=(',', ':')))}"


def _introduce(served: Sequence[tuple[Server, str]]) -> None:
    for server, name in served:
        vendor, device = server.function.device.id
        _say(f"serving {vendor:04x}:{device:04x} {name}")
    _say("QEMU 10.1 or later takes:")
    for server, _ in served:
        _say(f"    {qemu_option(server.path)}")
    _say(f"Without a copy or a message for each DMA, add: {MEMORY}")


def _teller(name: str) -> Callable[[bool], None]:
    def tell(came: bool) -> None:
        _say(f"{name}: a client {'connected' if came else 'has gone'}")

    return tell


def _say(line: str) -> None:
    """Print a line, in one write: they come from several threads."""
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # Nobody reads any more, which is no reason to stop serving: go on without words.
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), sys.stdout.fileno())
    except (OSError, ValueError):
        pass


@contextmanager
def _until_signalled() -> Iterator[Callable[[], int]]:
    """Gives a function that waits for SIGINT or SIGTERM, and returns which one it was.

    A handler only notes the signal, so that none comes into the middle of something. It is the
    first one's alone: the second Ctrl-C interrupts a clean-up that takes too long.
    """
    near, far = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    old: dict[int, signal._HANDLER] = {}

    def note(number: int, frame: FrameType | None) -> None:
        restore()
        with suppress(OSError):
            os.write(far, bytes((number,)))

    def restore() -> None:
        while old:
            signal.signal(*old.popitem())

    def wait() -> int:
        poll = select.poll()
        poll.register(near, select.POLLIN)
        poll.poll()
        return os.read(near, 1)[0]

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            old[number] = signal.signal(number, note)
        yield wait
    finally:
        restore()
        os.close(near)
        os.close(far)
