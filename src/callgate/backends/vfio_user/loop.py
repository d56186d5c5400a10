# SPDX-License-Identifier: MIT
"""The thread beside a server's session: it runs timers, and what eventfds ask for."""

from __future__ import annotations

import logging
import select
import threading
from collections.abc import Callable
from os import EFD_CLOEXEC, EFD_NONBLOCK, close, eventfd, eventfd_write

from callgate.device import PATIENCE
from callgate.report import user_traceback
from callgate.threads import join
from callgate.timers import Timers

_log = logging.getLogger("callgate.vfio_user")


class Loop:
    """Runs `timers` when they are due, and a callback for each event of a watched eventfd.

    Eventfds are watched for their edges and never read: they may be somebody else's to read.
    """

    def __init__(self, name: str, timers: Timers) -> None:
        self._timers = timers
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN | select.EPOLLET)
        self._closed = False
        self._waking = threading.Lock()
        timers.on_change = self._interrupt
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call `callback` after each event of `fd`, until `forget`."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)

    def forget(self, fd: int) -> None:
        """Watch `fd` no longer; to be called before it is closed."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def close(self) -> None:
        """End the thread, after the callback that runs. Not from inside a callback.

        Code of a device's that does not end is ended, or left behind.
        """
        if self._closed:
            return
        with self._waking:
            self._closed = True
            eventfd_write(self._wake, 1)
        if join(self._thread, 2 * PATIENCE):  # Else it still uses both files.
            self._epoll.close()
            close(self._wake)

    def _interrupt(self) -> None:
        # A timer that is started later than this must not write into a file that is none of ours.
        with self._waking:
            if not self._closed:
                eventfd_write(self._wake, 1)

    def _run(self) -> None:
        while not self._closed:
            due = self._timers.next_due()
            wait = None if due is None else max(0.0, due - self._timers.clock())
            for fd, _ in self._epoll.poll(wait):
                callback = self._callbacks.get(fd)
                if callback is not None:
                    self._guard(callback)
            self._guard(self._timers.run_due)

    def _guard(self, run: Callable[[], object]) -> None:
        try:
            run()
        except BaseException as error:
            # `sys.exit` in a timer, say: it must not end the thread on which all others count.
            name = self._thread.name
            _log.error("%s: a timer or event raised\n%s", name, user_traceback(error))
