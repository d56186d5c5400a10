# SPDX-License-Identifier: MIT
"""Messages over one UNIX socket: framing, file descriptors, and requests in both directions.

Both sides send commands, and replies lie between the peer's commands in the stream. Any thread may
send a request and wait. Whoever waits first reads the socket, for all: replies go to those who
asked, commands into a queue.

    thread A: next_command() --reads--> command       -> A
    thread B: request()      --waits             ^
                                   reply to B ---+    -> B wakes

`_turn` guards all of it but the socket, the buffer and the file descriptors that came with it:
those belong to whoever set `_reading`. He gives that back with `_turn` held and everybody woken, so
the next one reads on; and what he read is in its place before any of them looks.
"""

from __future__ import annotations

import array
import errno
import logging
import math
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Condition, Lock
from typing import Any

from callgate.backends.vfio_user.protocol import (
    COMMAND,
    ERROR,
    HEADER,
    MAX_FDS,
    MAX_MESSAGE,
    NO_REPLY,
    REPLY,
    TYPE,
    command_name,
)

TIMEOUT = 5.0
"""Seconds that a peer has to answer a request, or to take what we send."""
QUEUED = 1 << 24
"""Bytes of commands that wait while one is being carried out, before the peer is a flooder."""
QUEUED_FDS = 256
"""File descriptors that wait with them."""
_OVERHEAD = 256
"""Bytes that a waiting command takes besides its payload."""
_CHUNK = 1 << 16
_KERNEL_FDS = 253
"""SCM_MAX_FD: what the kernel passes with one message at most."""
_ANCILLARY = socket.CMSG_SPACE(_KERNEL_FDS * array.array("i").itemsize)
_PIECE = 1 << 14
_AT_ONCE = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
_WAIT = int(socket.MSG_CMSG_CLOEXEC)
_NO_WAIT = _WAIT | int(socket.MSG_DONTWAIT)
_TRUNCATED = int(socket.MSG_CTRUNC)  # An enum's `&` is a call, of a microsecond.
_LOOK = 1.0
"""Seconds after which a reader looks whether its time is up."""
_SPIN = 100e-6
"""Seconds after an answer in which a reader does not sleep: a guest that reads a register often
does so again within them, and waking somebody up takes longer than all else of an access."""

_log = logging.getLogger("callgate.vfio_user")


class Disconnected(Exception):
    """The peer is gone, or broke the protocol so that the stream cannot be read on."""


class Closed(Disconnected):
    """The peer, or this side, ended the connection between two messages."""


class RequestError(Exception):
    """The peer answered a request with an error reply; `errno` is its number, or 0."""

    def __init__(self, command: int, number: int) -> None:
        name = errno.errorcode.get(number, f"errno {number}") if number else "no errno"
        super().__init__(f"the peer refused {command_name(command)} with {name}")
        self.errno = number


class Message:
    """A message that came. Its file descriptors are closed with it unless they were taken."""

    __slots__ = ("command", "error", "fds", "flags", "id", "payload")

    def __init__(
        self, id: int, command: int, flags: int, error: int, payload: bytes, fds: list[int]
    ) -> None:
        self.id = id
        self.command = command
        self.flags = flags
        self.error = error
        self.payload = payload
        self.fds = fds

    def take_fds(self) -> list[int]:
        """The file descriptors: from now on the caller's to close."""
        fds, self.fds = self.fds, []
        return fds

    def close(self) -> None:
        """Close what was not taken."""
        _close_all(self.take_fds())


class Channel:
    """One connected socket, which it owns. `close` may come from any thread, and wakes all."""

    def __init__(self, connection: socket.socket) -> None:
        self.max_fds = 1
        """What the peer takes with one message (its `max_msg_fds`)."""
        self._socket = connection
        # Not settimeout: with that each call polls first.
        connection.setblocking(True)
        for option, seconds in ((socket.SO_RCVTIMEO, _LOOK), (socket.SO_SNDTIMEO, TIMEOUT)):
            connection.setsockopt(socket.SOL_SOCKET, option, timeval(seconds))
        self._sending = Lock()
        self._turn = Condition(Lock())
        self._reading = False
        self._closed = False
        self._commands: deque[Message] = deque()
        self._queued = 0
        self._queued_fds = 0
        self._replies: dict[int, Message | None] = {}
        self._next_id = 0
        self._answered = -math.inf
        """When a command of the peer was answered last."""
        self._chunk = bytearray(_CHUNK)
        self._view = memoryview(self._chunk)
        self._buffer = bytearray()
        self._fds: deque[tuple[int, list[int]]] = deque()
        """File descriptors that came, with the place in the buffer behind which they came."""

    # --- sending ---------------------------------------------------------------------------------

    def send_command(
        self,
        command: int,
        payload: bytes = b"",
        fds: Sequence[int] = (),
        *,
        id: int = 0,
        reply: bool = False,
    ) -> None:
        """Send a command; without `reply`, one that the peer must not answer."""
        flags = COMMAND if reply else COMMAND | NO_REPLY
        self._send(HEADER.pack(id, command, HEADER.size + len(payload), flags, 0) + payload, fds)

    def send_reply(self, to: Message, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Answer a command."""
        head = HEADER.pack(to.id, to.command, HEADER.size + len(payload), REPLY, 0)
        self._send(head + payload, fds)
        self._answered = time.monotonic()

    def send_error(self, to: Message, number: int) -> None:
        """Answer a command with an errno."""
        self._send(HEADER.pack(to.id, to.command, HEADER.size, REPLY | ERROR, number))

    def request(
        self,
        command: int,
        payload: bytes = b"",
        fds: Sequence[int] = (),
        *,
        meanwhile: Callable[[], bool] | None = None,
    ) -> Message:
        """Send a command and return the reply, whose file descriptors are the caller's.

        `meanwhile` is called when commands of the peer wait, and again if it returns True.

        Raises RequestError for an error reply, TimeoutError when none comes in time (a late one is
        dropped), and Disconnected.
        """
        with self._turn:
            id = self._next_id
            while id in self._replies:
                id = id + 1 & 0xFFFF
            self._next_id = id + 1 & 0xFFFF
            self._replies[id] = None
        try:
            self.send_command(command, payload, fds, id=id, reply=True)
            with self._turn:
                self._pump(lambda: self._replies[id] is not None, TIMEOUT, meanwhile)
        finally:
            with self._turn:
                reply = self._replies.pop(id)
        if reply is None:
            raise TimeoutError(f"the peer did not answer {command_name(command)} in {TIMEOUT:g} s")
        if reply.flags & ERROR:
            reply.close()
            raise RequestError(command, reply.error)
        if reply.command != command:
            reply.close()
            self.close()
            raise Disconnected(
                f"the reply to {command_name(command)} says it is one to "
                f"{command_name(reply.command)}"
            )
        return reply

    def _send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        if len(fds) > self.max_fds:
            raise ValueError(f"The peer takes {self.max_fds} file descriptors, not {len(fds)}")
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else ()
        try:
            with self._sending:
                try:
                    sent = self._socket.sendmsg((data,), ancillary, _AT_ONCE)
                except BlockingIOError:
                    sent = 0
                if sent < len(data):
                    self._send_rest(memoryview(data), ancillary, sent)
        except OSError as error:
            # Part of a message may be on its way: nobody can read this stream on.
            self.close()
            if isinstance(error, BlockingIOError):
                raise Disconnected(f"the peer took nothing for {TIMEOUT:g} s") from error
            raise Disconnected(f"sending failed: {error.strerror or error}") from error

    def _send_rest(self, data: memoryview, ancillary: Any, sent: int) -> None:
        """Send what did not fit. A peer that takes it by drops is given no longer than others."""
        end = time.monotonic() + TIMEOUT
        while sent < len(data):
            if time.monotonic() > end:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            # In pieces, since one system call goes on for as long as a little is taken.
            piece = data[sent : sent + _PIECE]
            sent += self._socket.sendmsg((piece,), () if sent else ancillary, socket.MSG_NOSIGNAL)

    # --- receiving -------------------------------------------------------------------------------

    def next_command(self, timeout: float | None = None) -> Message | None:
        """Wait for the peer's next command; None when `timeout` (seconds) passed.

        Raises Disconnected.
        """
        with self._turn:
            commands = self._commands
            if not commands:
                self._pump(lambda: bool(commands), timeout)
            return self._take()

    def wait_for_command(self) -> None:
        """Wait until a command is there, which another thread may take before this one does.

        Raises Disconnected.
        """
        with self._turn:
            self._pump(lambda: bool(self._commands), None)

    def waiting(self) -> list[Message]:
        """The commands that wait, in order."""
        with self._turn:
            return list(self._commands)

    def take(self) -> Message | None:
        """The first of them, if there is one."""
        with self._turn:
            return self._take()

    def _take(self) -> Message | None:
        if not self._commands:
            return None
        message = self._commands.popleft()
        self._queued -= _OVERHEAD + len(message.payload)
        self._queued_fds -= len(message.fds)
        return message

    def close(self) -> None:
        """End the connection, and let everybody who waits see that."""
        with self._turn:
            if self._closed:
                return
            self._closed = True
            with suppress(OSError):  # The peer was faster.
                self._socket.shutdown(socket.SHUT_RDWR)
            if not self._reading:  # Else the reader does it, whom that wakes.
                self._release()
            self._turn.notify_all()

    @property
    def left(self) -> bool:
        """Whether the peer has closed the connection, though messages of it may be unread."""
        with self._turn:
            if self._closed:
                return True
            poll = select.poll()
            poll.register(self._socket, 0)
            return bool(poll.poll(0))  # Nothing but POLLHUP and POLLERR was asked for.

    def _release(self) -> None:
        """Close all that is open; nobody reads any more."""
        with suppress(OSError):  # Whoever sends is not to hold us up.
            self._socket.shutdown(socket.SHUT_RDWR)
        with self._sending:
            self._socket.close()
        for message in (*self._commands, *self._replies.values()):
            if message is not None:
                message.close()
        self._commands.clear()
        for _, fds in self._fds:
            _close_all(fds)
        self._fds.clear()

    def _pump(
        self,
        done: Callable[[], bool],
        timeout: float | None,
        meanwhile: Callable[[], bool] | None = None,
    ) -> None:
        """Read messages, or wait while another thread does, until `done()` or the time is up.

        To be called with `_turn` held; while this thread reads or waits, others have it.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while not done():
            if self._closed:
                raise Closed("the connection is closed")
            if end is not None and time.monotonic() >= end:
                return
            if meanwhile is not None and self._commands:
                self._turn.release()
                try:
                    again = meanwhile()
                finally:
                    self._turn.acquire()
                if again or done():
                    continue
            if self._reading:
                self._turn.wait(_LOOK if end is None else min(_LOOK, end - time.monotonic()))
                continue
            self._reading = True
            self._turn.release()
            message: Message | None = None
            failure: Disconnected | None = None
            try:
                message = self._receive(end)
            except Disconnected as error:
                failure = error
            finally:
                self._turn.acquire()
                self._reading = False
                self._turn.notify_all()
                if self._closed:
                    self._release()
            if self._closed:
                if message is not None:
                    message.close()
                raise Closed("the connection is closed") from failure
            if failure is not None:
                self._fail()
                raise failure
            if message is not None:
                self._dispatch(message)

    def _fail(self) -> None:
        """End the connection, with `_turn` held and nobody reading."""
        self._closed = True
        self._release()

    def _dispatch(self, message: Message) -> None:
        if message.flags & TYPE == COMMAND:
            self._queued += _OVERHEAD + len(message.payload)
            self._queued_fds += len(message.fds)
            self._commands.append(message)
            if self._queued > QUEUED or self._queued_fds > QUEUED_FDS:
                self._fail()
                raise Disconnected(
                    "the peer sent more commands without waiting for any than can be kept"
                )
        elif self._replies.get(message.id, message) is None:
            self._replies[message.id] = message
        else:
            message.close()
            _log.debug("a reply to nothing came: id %d", message.id)

    def _receive(self, end: float | None) -> Message | None:
        """The next message; None when nothing came for a while, or not all of it until `end`.

        Raises Disconnected.
        """
        buffer = self._buffer
        while True:
            if len(buffer) >= HEADER.size:
                id, command, size, flags, error = HEADER.unpack_from(buffer)
                if not HEADER.size <= size <= MAX_MESSAGE:
                    raise Disconnected(
                        f"a message's size must be {HEADER.size} to {MAX_MESSAGE}, not {size}"
                    )
                if flags & TYPE > REPLY:
                    raise Disconnected(f"a message's type must be 0 or 1, not {flags & TYPE}")
                if len(buffer) >= size:
                    payload = bytes(memoryview(buffer)[HEADER.size : size])
                    del buffer[:size]
                    fds = self._fds_of(size) if self._fds else []
                    return Message(id, command, flags, error, payload, fds)
            spins = time.monotonic() - self._answered < _SPIN
            try:
                count, ancillary, came, _ = self._socket.recvmsg_into(
                    (self._chunk,), _ANCILLARY, _NO_WAIT if spins else _WAIT
                )
            except BlockingIOError:
                if spins:
                    continue
                return None
            except OSError as error:
                raise Disconnected(f"receiving failed: {error.strerror or error}") from error
            buffer += self._view[:count]
            if ancillary:
                self._take_fds(ancillary)
            if came & _TRUNCATED:
                raise Disconnected("file descriptors were lost: this process has too many open")
            if not count:
                if buffer:
                    raise Disconnected("the peer closed the connection in the middle of a message")
                raise Closed("the peer closed the connection")
            if end is not None and time.monotonic() >= end:
                return None  # A peer that sends by drops must not hold up who waits for a reply.

    def _take_fds(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        """Keep what came with the chunk that is now the buffer's end."""
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                self._fds.append((len(self._buffer), fds.tolist()))
        if sum(len(fds) for _, fds in self._fds) > _KERNEL_FDS:
            raise Disconnected(
                f"the peer sent more than {MAX_FDS} file descriptors with one message"
            )

    def _fds_of(self, size: int) -> list[int]:
        """The file descriptors of the message that was the first `size` bytes of the buffer.

        They belong to the message in which the chunk ends that brought them: the kernel ends a read
        behind the data that file descriptors came with.
        """
        mine: list[int] = []
        left: deque[tuple[int, list[int]]] = deque()
        for end, fds in self._fds:
            if end <= size:
                mine += fds
            else:
                left.append((end - size, fds))
        self._fds = left
        return mine


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def timeval(seconds: float) -> bytes:
    """A struct timeval."""
    return struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
