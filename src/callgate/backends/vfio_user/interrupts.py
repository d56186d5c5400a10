# SPDX-License-Identifier: MIT
"""Interrupts towards the client: eventfds, masks, pending bits (vfio-user, DEVICE_SET_IRQS).

    device --trigger--> Line --eventfd--> client          no eventfd or masked: pending
    client --SET_IRQS--> mask, unmask, trigger, new eventfds

INTx is a level: it masks itself when it is signalled, and an unmask signals it again while the
device still asserts it. MSI and MSI-X are edges.

The eventfd that comes with DATA_EVENTFD and ACTION_UNMASK serves two readings. The specification
has the server write to it after an unmask; linux/vfio.h has the client write to it in order to
unmask, and QEMU with KVM counts on that. Here both happen: an UNMASK message writes it, and each
write is heard. What was unmasked by a write is not written again, or we would hear ourselves for
ever.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from threading import RLock

from callgate.backends.vfio_user.loop import Loop
from callgate.backends.vfio_user.protocol import (
    ACTION_MASK,
    ACTION_TRIGGER,
    ACTION_UNMASK,
    DATA_BOOL,
    DATA_EVENTFD,
    DATA_NONE,
    Irq,
    IrqInfo,
)
from callgate.backends.vfio_user.refused import Refused

_ONE = (1).to_bytes(8, "little")
_ACTIONS = ACTION_MASK | ACTION_UNMASK | ACTION_TRIGGER
_DATA = DATA_NONE | DATA_BOOL | DATA_EVENTFD
_ATTRIBUTES = {ACTION_TRIGGER: "eventfd", ACTION_MASK: "on_mask", ACTION_UNMASK: "on_unmask"}


class _Line:
    """One interrupt: whom it signals, and what keeps it from that."""

    __slots__ = ("eventfd", "level", "masked", "on_mask", "on_unmask", "pending")

    def __init__(self) -> None:
        self.eventfd: int | None = None
        self.on_mask: int | None = None
        self.on_unmask: int | None = None
        self.masked = False
        self.pending = False
        self.level = False


class Interrupts:
    """The interrupts of one function, by type; `counts` says how many each has.

    `on_connect(type, count)` is told how many of a type there are, up to the last with an eventfd
    to signal, whenever that may have changed. `loop` listens to eventfds. `trigger` and `set_level`
    may come from any thread, with the locks of the function held; all else comes from one thread,
    the session's.
    """

    def __init__(
        self, counts: Mapping[int, int], on_connect: Callable[[int, int], None], loop: Loop
    ) -> None:
        self._lines = {irq: [_Line() for _ in range(count)] for irq, count in counts.items()}
        self._on_connect = on_connect
        self._loop = loop
        self._lock = RLock()

    def info(self, irq: int) -> tuple[IrqInfo, int]:
        """Flags and number of the interrupts of a type."""
        count = len(self._lines.get(irq, ()))
        if not count:
            return IrqInfo(0), 0
        if irq == Irq.ERR:
            return IrqInfo.EVENTFD, count
        if irq == Irq.INTX:
            return IrqInfo.EVENTFD | IrqInfo.MASKABLE | IrqInfo.AUTOMASKED, count
        return IrqInfo.EVENTFD | IrqInfo.MASKABLE, count

    # --- the device's side -----------------------------------------------------------------------

    def trigger(self, irq: int, index: int) -> None:
        """Signal an edge, or let it be pending."""
        with self._lock:
            self._signal(irq, self._lines[irq][index])

    def set_level(self, level: bool) -> None:
        """Take the level of INTA."""
        with self._lock:
            for line in self._lines.get(Irq.INTX, ()):
                line.level = line.pending = level
                if level:
                    self._signal(Irq.INTX, line)

    # --- the client's side -----------------------------------------------------------------------

    def set(
        self, flags: int, irq: int, start: int, count: int, data: bytes, fds: Sequence[int]
    ) -> None:
        """Carry out SET_IRQS. The fds stay the caller's.

        Raises Refused, or OSError where this process has too many files open; nothing was done
        then.
        """
        lines = self._lines.get(irq, [])
        what, action = flags & _DATA, flags & _ACTIONS
        if flags & ~(_DATA | _ACTIONS) or what.bit_count() != 1 or action.bit_count() != 1:
            raise Refused(
                errno.EINVAL, f"SET_IRQS must have one DATA and one ACTION, not flags {flags:#x}"
            )
        if irq == Irq.ERR and action != ACTION_TRIGGER:
            raise Refused(errno.EINVAL, "the error interrupt must be triggered only, not masked")
        if start + count > len(lines):
            raise Refused(
                errno.EINVAL,
                f"interrupts of type {irq} must be below {len(lines)}, not {start} to "
                f"{start + count - 1}",
            )
        if (data and what != DATA_BOOL) or (fds and what != DATA_EVENTFD):
            raise Refused(errno.EINVAL, "SET_IRQS carries data or files that its flags deny")
        if count == 0:
            # To disable a type is the one thing that needs no number (linux/vfio.h).
            if start != 0 or what != DATA_NONE or action != ACTION_TRIGGER:
                raise Refused(errno.EINVAL, "SET_IRQS must name at least one interrupt")
            self.disconnect(irq)
            return
        chosen = lines[start : start + count]
        if what == DATA_EVENTFD:
            if len(fds) not in (0, count):
                raise Refused(
                    errno.EINVAL, f"SET_IRQS must bring {count} eventfds or none, not {len(fds)}"
                )
            if not all(_is_eventfd(fd) for fd in fds):
                raise Refused(errno.EINVAL, "SET_IRQS must bring eventfds, not other files")
            self._connect(irq, action, chosen, _own(fds) or [None] * count)
            return
        if what == DATA_BOOL:
            if len(data) != count:
                raise Refused(errno.EINVAL, f"SET_IRQS must bring {count} bytes, not {len(data)}")
            chosen = [line for line, wanted in zip(chosen, data, strict=True) if wanted]
        with self._lock:
            for line in chosen:
                self._act(irq, action, line)

    def disconnect(self, irq: int) -> None:
        """Close all eventfds of a type; what comes next is pending."""
        with self._lock:
            for line in self._lines.get(irq, ()):
                for attribute in _ATTRIBUTES.values():
                    self._replace(line, attribute, None)
                line.masked = False
        self._on_connect(irq, 0)

    def reset(self) -> None:
        """As after power-on, eventfds apart: they are the client's arrangement."""
        with self._lock:
            for lines in self._lines.values():
                for line in lines:
                    line.masked = line.pending = line.level = False

    def close(self) -> None:
        """Close all eventfds."""
        for irq in self._lines:
            self.disconnect(irq)

    def _connect(
        self, irq: int, action: int, lines: Sequence[_Line], fds: Sequence[int | None]
    ) -> None:
        """Take eventfds, which are ours from now on."""
        attribute = _ATTRIBUTES[action]
        with self._lock:
            for line, fd in zip(lines, fds, strict=True):
                self._replace(line, attribute, fd)
                if action == ACTION_UNMASK and fd is not None:
                    self._loop.watch(fd, partial(self._unmask, irq, line, heard=True))
            counts = enumerate(self._lines[irq], start=1)
            connected = [count for count, line in counts if line.eventfd is not None]
        # Without the lock: it leads into the function, whose locks are held when it signals us.
        self._on_connect(irq, max(connected, default=0))
        with self._lock:
            for line in lines:
                if line.pending:
                    self._signal(irq, line)

    def _replace(self, line: _Line, attribute: str, fd: int | None) -> None:
        old: int | None = getattr(line, attribute)
        setattr(line, attribute, fd)
        if old is not None:
            self._loop.forget(old)
            os.close(old)

    def _act(self, irq: int, action: int, line: _Line) -> None:
        if action == ACTION_TRIGGER:
            # A test of the way to the client: nothing that the device knows of.
            if line.eventfd is not None:
                _write(line.eventfd)
        elif action == ACTION_MASK:
            self._mask(line)
        else:
            self._unmask(irq, line)

    def _unmask(self, irq: int, line: _Line, *, heard: bool = False) -> None:
        with self._lock:
            if line.masked:
                line.masked = False
                if not heard:
                    _write(line.on_unmask)
                if line.pending:
                    self._signal(irq, line)

    def _mask(self, line: _Line) -> None:
        if not line.masked:
            line.masked = True
            _write(line.on_mask)

    def _signal(self, irq: int, line: _Line) -> None:
        if line.eventfd is None or line.masked:
            line.pending = True
            return
        _write(line.eventfd)
        if irq == Irq.INTX:
            line.pending = line.level
            self._mask(line)
        else:
            line.pending = False


def _is_eventfd(fd: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"
    except OSError:  # Without /proc nobody can tell.
        return False


def _own(fds: Sequence[int]) -> list[int]:
    """Descriptors of ours: all of them, or an OSError. Writing to them must never block, whatever
    the client wrote before; the flag for that is the client's too, since it is the same file."""
    mine: list[int] = []
    try:
        for fd in fds:
            mine.append(os.dup(fd))
            os.set_blocking(fd, False)
    except OSError:
        for fd in mine:
            os.close(fd)
        raise
    return mine


def _write(fd: int | None) -> None:
    """Add 1 to an eventfd."""
    if fd is not None:
        with suppress(BlockingIOError):  # Full: whoever never reads it will not miss one.
            os.write(fd, _ONE)
