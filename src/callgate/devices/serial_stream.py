# SPDX-License-Identifier: MIT
"""SerialStream: file descriptors as the far end of a `Serial`'s line.

    source --read--> feed ----> guest          a thread sleeps in poll for both, and for
    sink <--write-- on_output <- guest         `on_room` and `close`

    with SerialStream.terminal(uart) as stream:
        print(f"screen {stream.path}")
        machine.run()

A device file connects itself:

    class Console(Serial):
        def attach(self) -> None:
            super().attach()
            self.stream = SerialStream(self, sys.stdin, sys.stdout)

        def detach(self) -> None:
            self.stream.close()
            super().detach()

Both directions hold back who is too fast: the source is left unread while the guest has `AHEAD`
bytes to receive, and the guest's transmitter stays full while the sink takes nothing.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import tty
from types import TracebackType
from typing import Protocol, Self, TypeAlias

from callgate.devices.serial import Serial

AHEAD = 4096
"""Bytes that are read from the source before the guest received them."""
_PATIENCE = 0.1
"""Seconds until `close` is seen by a thread that waits for the device's lock."""
_log = logging.getLogger("callgate.device")


class HasFileno(Protocol):
    """A socket, or an open file."""

    def fileno(self) -> int:
        """Its file descriptor."""


File: TypeAlias = int | HasFileno


class SerialStream:
    """Joins a port to file descriptors: what is read from `source` goes to the guest, and what the
    guest sends to `sink`, which is the source too if none is given.

    They stay the caller's, and do not block until `close`. At the source's end nothing more is fed;
    when the sink is gone, that is logged and what the guest sends is lost, as on an open line.
    Raises ValueError where the port has a far end already.
    """

    path: str | None = None
    """Of the terminal that `terminal` made."""

    def __init__(self, serial: Serial, source: File, sink: File | None = None) -> None:
        if serial.on_output is not None or serial.on_room is not None:
            raise ValueError(f"The line of {serial} must have one far end, and it has one")
        self._serial = serial
        self._source = _number(source)
        self._sink = self._source if sink is None else _number(sink)
        self._owned: list[int] = []
        self._reading = True
        self._writing = True
        self._full = False
        """Whether the sink took less than it was given, since it was last asked."""
        self._closing = False
        self._blocked = {
            file: os.get_blocking(file) for file in dict.fromkeys((self._source, self._sink))
        }
        for file in self._blocked:
            os.set_blocking(file, False)
        self._wake = os.eventfd(0)
        with serial.lock:
            serial.on_output = self._write
            serial.on_room = self._awake
            serial.resume()
        self._thread = threading.Thread(target=self._run, name=f"{serial} stream", daemon=True)
        self._thread.start()

    @classmethod
    def terminal(cls, serial: Serial) -> Self:
        """A new terminal in raw mode, at `path`, for a program such as screen to open. While nobody
        reads it, it takes some thousands of bytes, and then the guest waits."""
        master, slave = os.openpty()
        try:
            tty.setraw(slave)
            stream = cls(serial, master)
        except BaseException:
            os.close(master)
            os.close(slave)
            raise
        # Held open: without it the first program that leaves would end the terminal.
        stream._owned = [master, slave]
        stream.path = os.ttyname(slave)
        return stream

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
        """Open the line. Harmless when repeated; from any thread, with or without the device's
        lock."""
        with self._serial.lock:
            if self._closing:
                return
            self._closing = True
            self._serial.on_output = None
            self._serial.on_room = None
            self._serial.resume()
        self._awake()
        self._thread.join()
        os.close(self._wake)
        for file, blocked in self._blocked.items():
            os.set_blocking(file, blocked)
        for file in self._owned:
            os.close(file)

    # --- called by the port, which holds the device's lock ---------------------------------------

    def _write(self, data: bytes) -> int:
        if not self._writing:
            return len(data)
        try:
            count = os.write(self._sink, data)
        except BlockingIOError:
            count = 0
        except OSError as error:
            self._writing = False
            _log.warning(
                "%s: the far end of the line is gone (%s): what the guest sends is lost",
                self._serial,
                error.strerror,
            )
            return len(data)
        if count < len(data):
            self._full = True
            self._awake()
        return count

    def _awake(self) -> None:
        os.eventfd_write(self._wake, 1)

    # --- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            ready = self._wait()
            if self._wake in ready:
                os.eventfd_read(self._wake)
            data = b""
            if self._reading and self._source in ready and ready[self._source] & ~select.POLLOUT:
                data = self._read()
            resume = self._full and self._sink in ready and ready[self._sink] & ~select.POLLIN
            if (data or resume) and self._lock():
                try:
                    if data:
                        self._serial.feed(data)
                    if resume:
                        self._full = False
                        self._serial.resume()
                finally:
                    self._serial.lock.release()

    def _wait(self) -> dict[int, int]:
        """Sleep until something can be done."""
        events = {self._wake: select.POLLIN}
        if self._reading and self._serial.waiting < AHEAD:
            events[self._source] = select.POLLIN
        if self._full:
            events[self._sink] = events.get(self._sink, 0) | select.POLLOUT
        poll = select.poll()
        for file, mask in events.items():
            poll.register(file, mask)
        return dict(poll.poll())

    def _read(self) -> bytes:
        try:
            data = os.read(self._source, AHEAD)
        except BlockingIOError:
            return b""
        except OSError:  # A terminal whose other side is closed says EIO.
            data = b""
        self._reading = bool(data)
        return data

    def _lock(self) -> bool:
        """Take the device's lock; False: `close` was called, whose caller may hold it."""
        while not self._serial.lock.acquire(timeout=_PATIENCE):
            if self._closing:
                return False
        return True


def _number(file: File) -> int:
    return file if isinstance(file, int) else file.fileno()
