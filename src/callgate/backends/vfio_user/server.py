# SPDX-License-Identifier: MIT
"""Server: a device on a UNIX socket, for a VMM to plug in. One client at a time, one after another.

    acceptor --> Session (its own thread): messages     Loop: timers, eventfds     Watcher: frames

All four meet in the `Function`, which is the same as on any other bus.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import stat
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from callgate.backends.vfio_user.loop import Loop
from callgate.backends.vfio_user.session import Session, connect_interrupts
from callgate.device import Device
from callgate.errors import BackendError
from callgate.faults import Faults
from callgate.gate.vectors import VectorTable
from callgate.gate.watcher import LINGER, Watcher
from callgate.memory import GuestMemory
from callgate.pci.function import Function
from callgate.threads import join
from callgate.timers import Timers
from callgate.trace import Trace

LEAVING = 1.0
"""Seconds that a new client waits for one that is there, lest it is about to go."""
LEFT = 10.0
"""Seconds that it waits for the handlers of one that has gone, and that `close` waits for them."""
CHANGING = 1.0
"""Seconds after a change of its memory map for which another one is waited for."""
_STEP = 0.001
_AGAIN = 0.1
"""Seconds after which a server that has no files left tries again to take a client."""
_LONGEST = 107
"""Bytes of a UNIX socket's path (unix(7))."""

_log = logging.getLogger("callgate.vfio_user")


class Server:
    """Serves `device` on a UNIX socket at `path`, from threads of its own; a `with` block ends it.

    After a client has gone, the device is reset, unless `keep_state`. The frames are watched for
    `linger` seconds after the last call. `handler_timeout` and `trace` are as for `Machine`;
    `on_client` is called with True when a client came and with False when it has gone.

    `start` raises BackendError when somebody listens at `path` or what lies there is no socket.
    """

    def __init__(
        self,
        device: Device,
        path: Path | str,
        *,
        keep_state: bool = False,
        linger: float = LINGER,
        handler_timeout: float | None = None,
        trace: Trace | None = None,
        table: VectorTable | None = None,
        on_client: Callable[[bool], None] | None = None,
    ) -> None:
        self.path = Path(path)
        self.keep_state = keep_state
        self.memory = GuestMemory()
        self.memory.may_come = self._may_come
        self.memory.on_change.append(self._changed)
        self._change = -math.inf
        """When the client's map changed last."""
        self.timers = Timers()
        self.faults = Faults(f"{device.spec.name} at {self.path}")
        self._on_client = on_client
        self._session: Session | None = None
        self._serving: threading.Thread | None = None
        self._listener: socket.socket | None = None
        self._stopping = threading.Event()
        self._left = False
        """Whether the client's thread was left behind."""
        self._closing = ExitStack()
        with ExitStack() as undo:
            self._loop = Loop(f"callgate events of {device.spec.name}", self.timers)
            undo.callback(self._loop.close)
            self.function = Function(
                device,
                memory=self.memory,
                deliver=None,
                set_intx=self._set_line,
                timers=self.timers,
                table=table if table is not None else VectorTable(),
                time_limit=handler_timeout,
                trace=trace,
            )
            undo.callback(self.function.close)
            self._interrupts = connect_interrupts(self.function, self._loop)
            if self.function.gate is not None:
                undo.enter_context(Watcher(self.function.gate, linger=linger))
            self._closing = undo.pop_all()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Listen; clients can connect when this returns."""
        listener = _listen(self.path)
        self._listener = listener
        inode = self.path.stat().st_ino
        acceptor = threading.Thread(
            target=self._accept, args=(listener,), name=f"callgate {self.path.name}", daemon=True
        )
        acceptor.start()

        def stop() -> None:
            self._stopping.set()
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            listener.close()
            with suppress(OSError):
                if self.path.stat().st_ino == inode:
                    self.path.unlink()

        self._closing.callback(stop)

    def close(self) -> None:
        """Disconnect the client, remove the socket, unplug the device. Harmless when repeated.

        A handler that is still running is ended after half of LEFT, or then left behind in its
        thread, and named in the log.
        """
        self._closing.close()

    # --- clients ---------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if self._stopping.is_set():
                    break
                # No files left, or a client that has gone already.
                self.faults.note("accept", f"a client was turned away: {error.strerror}")
                self._stopping.wait(_AGAIN)
                continue
            try:
                self._take(connection)
            except Exception:
                _log.exception("%s: a client was turned away", self.path)
                connection.close()
        if self._session is not None and self._serving is not None:
            self._session.close()
            self._left = not join(self._serving, LEFT)

    def _take(self, connection: socket.socket) -> None:
        if not self._free():
            self.faults.note("second client", "a second client must wait for the first")
            connection.close()
            return
        self._session = Session(
            self.function, self.memory, self._interrupts, self._loop, connection, self.faults
        )
        self._serving = threading.Thread(
            target=self._serve,
            args=(self._session,),
            name=f"callgate client of {self.function.name}",
            daemon=True,
        )
        self._serving.start()

    def _free(self) -> bool:
        """Whether the client before has gone, or goes in time."""
        session, serving = self._session, self._serving
        if session is None or serving is None:
            return True
        began = time.monotonic()
        while serving.is_alive() and not self._stopping.is_set():
            serving.join(_AGAIN)
            limit = LEFT if session.left else LEAVING
            if time.monotonic() - began > limit:
                break
        return not serving.is_alive()

    def _serve(self, session: Session) -> None:
        try:
            self._tell(True)
            session.run()
        except Exception:
            _log.exception("%s: the client's session failed", self.path)
        finally:
            session.close()
            if not self.keep_state and not self._left:
                self._interrupts.reset()
                self.function.reset()
            self._tell(False)

    def _tell(self, came: bool) -> None:
        if self._on_client is not None:
            try:
                self._on_client(came)
            except Exception:
                _log.exception("%s: on_client raised", self.path)

    def _changed(self) -> None:
        self._change = time.monotonic()

    def _may_come(self) -> bool:
        """Wait a moment for memory that the client may be about to map.

        QEMU changes its map by unmapping what changed, and mapping it anew; SeaBIOS makes it do so
        while it reads from a disk. A device's own threads, whose accesses have no place in the
        order of the client's messages, must not find the gap. The client's thread cannot.
        """
        session = self._session
        if session is None or session.left or threading.current_thread() is self._serving:
            return False
        if time.monotonic() - self._change > CHANGING:
            return False
        time.sleep(_STEP)
        return True

    def _set_line(self, level: bool) -> None:
        self._interrupts.set_level(level)


def _listen(path: Path) -> socket.socket:
    """A listening socket that only its owner may connect to. Replaces one that nobody serves."""
    name = os.fsencode(path)
    if not 0 < len(name) <= _LONGEST:
        raise BackendError(f"A socket's path must be 1 to {_LONGEST} bytes, not {len(name)}")
    try:
        if _is_dead(path):
            path.unlink()
        listener = socket.socket(socket.AF_UNIX)
        try:
            os.fchmod(listener.fileno(), 0o600)  # Before it has a name: nobody else comes first.
            listener.bind(name)
            listener.listen(8)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise BackendError(f"A socket must be made at {path}: {error.strerror or error}") from error
    return listener


def _is_dead(path: Path) -> bool:
    """Whether a socket lies there that nobody listens on; False when nothing does.

    Raises BackendError for a socket that is in use, and for anything else.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise BackendError(f"{path} must be free, or a socket that nobody serves")
        with socket.socket(socket.AF_UNIX) as other:
            other.setblocking(False)  # Whoever takes no more clients at the moment is alive, too.
            with suppress(BlockingIOError):
                other.connect(os.fsencode(path))
    except FileNotFoundError:
        return False
    except ConnectionRefusedError:
        return True
    raise BackendError(f"Somebody serves {path} already")
