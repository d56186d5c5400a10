# SPDX-License-Identifier: MIT
"""One client's session: what each message does to the function.

A message's function takes the message and returns the reply's payload, or payload and fds, or None
for a reply without payload. It raises `Refused` to answer with an error.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from struct import Struct
from typing import Any, TypeAlias

from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.channel import Channel, Closed, Disconnected, Message
from callgate.backends.vfio_user.interrupts import Interrupts
from callgate.backends.vfio_user.loop import Loop
from callgate.backends.vfio_user.memory import DmaMaps
from callgate.backends.vfio_user.protocol import Command, DeviceFlag, Irq, Region, RegionFlag
from callgate.backends.vfio_user.refused import Refused
from callgate.faults import Faults
from callgate.gate.abi import PAGE, DoorbellRegister
from callgate.memory import GuestMemory, Pages
from callgate.pci.bar import SIZES, BarState, Window
from callgate.pci.config import INTERRUPT_PIN
from callgate.pci.config import SIZE as CONFIG_SIZE
from callgate.pci.function import Function
from callgate.pci.message import Messages

SLOW = 1.0
"""Seconds after which a device's handler is reported: QEMU waits 5 for an answer."""
_MODEL = frozenset(
    (
        Command.REGION_READ,
        Command.REGION_WRITE,
        Command.REGION_WRITE_MULTI,
        Command.DEVICE_RESET,
    )
)
"""What runs the device's own code."""
_UNMAP_ALL = 1 << 1
"""VFIO_DMA_UNMAP_FLAG_ALL (linux/vfio.h)"""
_DEEPEST = 16
"""How many handlers may be begun while an earlier one waits for memory: a guest chooses that."""
_STEP = 0.005
"""Seconds after which a session looks whether its command was carried out by another thread."""
_VERSION_DATA = 4096
"""Bytes of JSON that we read."""

Reply: TypeAlias = tuple[bytes, list[int]] | bytes | None


class Session:
    """A client's, from its first message to its last. `run` serves it; `close` may end that."""

    def __init__(
        self,
        function: Function,
        memory: GuestMemory,
        interrupts: Interrupts,
        loop: Loop,
        connection: socket.socket,
        faults: Faults,
    ) -> None:
        self._function = function
        self._memory = memory
        self._interrupts = interrupts
        self._loop = loop
        self._faults = faults
        self._channel = Channel(connection)
        self._requests = self._channel
        """Where DMA requests go: the same socket, or its twin."""
        self._maps: DmaMaps | None = None
        self._depth = 0
        """How many handlers wait for memory while others run that came later."""
        self._bells: dict[int, int] = {}
        self._bars: dict[int, BarState] = {bar.index: bar for bar in function.bars}

    def run(self) -> None:
        """Serve the client until it goes away."""
        channel = self._channel
        lock = self._function.device.lock
        try:
            while not self._by_messages:
                self._run(channel.next_command())
            while True:
                channel.wait_for_command()
                # Who has the lock and waits for memory carries commands out himself: `_meanwhile`.
                if lock.acquire(timeout=_STEP):
                    try:
                        self._run(channel.take())
                    finally:
                        lock.release()
        except Closed:
            pass
        except Disconnected as error:
            self._faults.note("connection", f"the connection was given up: {error}")
        finally:
            self._end()

    @property
    def left(self) -> bool:
        """Whether the client has closed the connection, perhaps unnoticed by now."""
        return self._channel.left

    def close(self) -> None:
        """Let `run` end. From any thread."""
        self._channel.close()
        self._requests.close()

    def _end(self) -> None:
        self.close()
        self._interrupts.close()
        if self._maps is not None:
            self._maps.close()
        for fd in self._bells.values():
            self._loop.forget(fd)
            os.close(fd)
        self._bells.clear()

    def _run(self, message: Message | None) -> None:
        if message is not None:
            try:
                self._answer(message)
            finally:
                if message.fds:
                    message.close()

    # --- memory by messages ----------------------------------------------------------------------

    @property
    def _by_messages(self) -> bool:
        return self._maps is not None and self._maps.by_messages

    def _ask(self, command: int, payload: bytes) -> Message:
        """Ask the client for memory. On a socket of its own, it can answer at any time."""
        meanwhile = self._meanwhile if self._requests is self._channel else None
        return self._requests.request(command, payload, meanwhile=meanwhile)

    def _meanwhile(self) -> bool:
        """Carry out what the client waits for, since QEMU gives no memory before it was answered.

        So a handler that waits for memory can meet accesses that came after its own; nothing is
        carried out early that the client does not wait for. Returns whether something was.
        """
        lock = self._function.device.lock
        if self._depth == _DEEPEST or not lock.acquire(blocking=False):
            return False
        self._depth += 1
        try:
            for asked in self._channel.waiting():
                if asked.flags & p.NO_REPLY or self._post(asked):
                    continue
                while (message := self._channel.take()) is not None:
                    self._run(message)
                    if message is asked:
                        break
                return True
        except Disconnected:
            pass  # Whoever reads next learns of it.
        finally:
            self._depth -= 1
            lock.release()
        return False

    def _post(self, message: Message) -> bool:
        """Answer a write to a BAR before it is carried out, if there is nothing wrong with it.

        What it begins may ask for memory. What the client sends next comes after it in any case.
        """
        if message.command != Command.REGION_WRITE or len(message.payload) < p.REGION_ACCESS.size:
            return False
        offset, region, count = p.REGION_ACCESS.unpack_from(message.payload)
        head = p.REGION_ACCESS.size
        if len(message.payload) != head + count or not 0 < count <= p.MAX_TRANSFER:
            return False
        bar = self._bars.get(region)
        if bar is None or offset + count > bar.size:
            return False
        message.flags |= p.NO_REPLY
        self._channel.send_reply(message, message.payload[:head])
        return True

    # --- answers ---------------------------------------------------------------------------------

    def _answer(self, message: Message) -> None:
        began = time.perf_counter()
        try:
            reply = self._carry_out(message)
        except Disconnected:
            raise
        except Refused as error:
            self._refuse(message, error.errno, str(error))
        except OSError as error:
            # No more files, or no more memory: what the message needed is what we lack.
            number = error.errno or errno.EIO
            self._refuse(message, number, f"{_name(message)}: {error.strerror or error}")
        except BaseException as error:
            # `sys.exit` in a hook, say: the client's next message is to be answered.
            self._function.device.bugs.report(f"{self._function.name}, {_name(message)}", error)
            self._refuse(message, errno.EIO, f"{_name(message)}: the device model failed")
        else:
            if not message.flags & p.NO_REPLY:
                if isinstance(reply, tuple):
                    self._channel.send_reply(message, *reply)
                else:
                    self._channel.send_reply(message, reply or b"")
        took = time.perf_counter() - began
        if took > SLOW and message.command in _MODEL:
            self._faults.note(
                "slow",
                f"{_name(message)} took {took:.1f} s, and the guest's CPU waited: a handler must "
                "be quick, or answer by an interrupt later",
            )

    def _refuse(self, message: Message, number: int, sentence: str) -> None:
        self._faults.note(f"message {_name(message)}", sentence)
        if not message.flags & p.NO_REPLY:
            self._channel.send_error(message, number)

    def _carry_out(self, message: Message) -> Reply:
        if self._maps is None and message.command != Command.VERSION:
            raise Refused(errno.EINVAL, "VERSION must be the first message")
        if len(message.fds) > p.MAX_FDS:
            raise Refused(
                errno.EINVAL,
                f"a message must bring {p.MAX_FDS} files at most, not {len(message.fds)}",
            )
        handler = _HANDLERS.get(message.command)
        if handler is None:
            raise Refused(errno.ENOTSUP, f"command {message.command} is not known here")
        return handler(self, message)

    # --- VERSION ---------------------------------------------------------------------------------

    def version(self, message: Message) -> Reply:
        """Agree on 0.0, and on the capabilities that both sides know."""
        (major, _minor), data = _split(message, p.VERSION_HEAD)
        if self._maps is not None:
            raise Refused(errno.EINVAL, "VERSION must come once")
        if major != p.MAJOR:
            raise Refused(errno.EINVAL, f"the major version must be {p.MAJOR}, not {major}")
        theirs = _capabilities(data)
        max_fds = _limit(theirs, "max_msg_fds", 1, 0, 253)
        transfer = _limit(theirs, "max_data_xfer_size", p.MAX_TRANSFER, 1, p.MAX_TRANSFER)
        ours: dict[str, object] = {
            "max_msg_fds": p.MAX_FDS,
            "max_data_xfer_size": p.MAX_TRANSFER,
            "max_dma_maps": p.MAX_MAPS,
            "pgsizes": PAGE,
            "write_multiple": True,
        }
        agreed = {name: value for name, value in ours.items() if name in theirs}
        fds: list[int] = []
        self._channel.max_fds = max_fds
        twin = theirs.get("twin_socket")
        if isinstance(twin, dict) and twin.get("supported") is True and max_fds > 0:
            near, far = socket.socketpair()
            self._requests = Channel(near)
            fds.append(far.detach())
            agreed["twin_socket"] = {"supported": True, "fd_index": 0}
        self._maps = DmaMaps(self._memory, self._ask, transfer, self._faults.note)
        text = json.dumps({"capabilities": agreed}).encode() + b"\0"
        message.fds.extend(fds)  # Closed with it, once the reply was sent.
        return p.VERSION_HEAD.pack(p.MAJOR, p.MINOR) + text, fds

    # --- DMA -------------------------------------------------------------------------------------

    def dma_map(self, message: Message) -> Reply:
        """Add a stretch of guest memory: by its file, or to be asked for by messages."""
        (_, flags, offset, address, size), _ = _split(message, p.DMA_MAP, argsz=True)
        if len(message.fds) > 1:
            raise Refused(errno.EINVAL, "DMA_MAP must bring one file or none")
        self._dma.map(address, size, flags, offset, message.fds[0] if message.fds else None)
        return None

    def dma_unmap(self, message: Message) -> Reply:
        """Take it away; the reply comes when nobody uses it any more."""
        (_, flags, address, size), _ = _split(message, p.DMA_UNMAP, argsz=True)
        if flags == _UNMAP_ALL and address == size == 0:  # Not in the specification; QEMU has it.
            self._dma.unmap_all()
        elif flags:
            raise Refused(errno.EINVAL, f"the flags of DMA_UNMAP must be 0, not {flags:#x}")
        else:
            self._dma.unmap(address, size)
        return message.payload[: p.DMA_UNMAP.size]

    @property
    def _dma(self) -> DmaMaps:
        assert self._maps is not None
        return self._maps

    # --- what the device is ----------------------------------------------------------------------

    def get_info(self, message: Message) -> Reply:
        """A PCI device that can be reset."""
        _split(message, p.DEVICE_INFO, argsz=True)
        flags = DeviceFlag.RESET | DeviceFlag.PCI
        return p.DEVICE_INFO.pack(p.DEVICE_INFO.size, flags, p.REGIONS, p.IRQS)

    def get_region_info(self, message: Message) -> Reply:
        """Size and kind of a region, with what of it can be mapped."""
        (argsz, _flags, index, *_), _ = _split(message, p.REGION_INFO, argsz=True)
        if index >= p.REGIONS:
            raise Refused(errno.EINVAL, f"a region must be below {p.REGIONS}, not {index}")
        size = self._region_size(index)
        flags = RegionFlag.READ | RegionFlag.WRITE if size else RegionFlag(0)
        plain = self._mappable(index)
        if plain is None:
            return p.REGION_INFO.pack(p.REGION_INFO.size, flags, index, 0, size, 0)
        flags |= RegionFlag.MMAP | RegionFlag.CAPS
        window, fd = plain
        areas = (
            p.CAP_HEADER.pack(p.CAP_SPARSE_MMAP, 1, 0)
            + p.SPARSE_HEAD.pack(1, 0)
            + p.SPARSE_AREA.pack(window.offset, window.size)
        )
        full = p.REGION_INFO.size + len(areas)
        # cap_offset stands in a short reply too: QEMU refuses 0 there (it asks again).
        head = p.REGION_INFO.pack(full, flags, index, p.REGION_INFO.size, size, 0)
        if argsz < full:
            return head
        return head + areas, [fd]

    def get_region_io_fds(self, message: Message) -> Reply:
        """The doorbell as an ioeventfd: whoever writes there need not come by the socket."""
        (argsz, flags, index, _count), _ = _split(message, p.IO_FDS, argsz=True)
        if flags or index >= p.REGIONS:
            raise Refused(
                errno.EINVAL, f"flags must be 0 and a region below {p.REGIONS}, not {index}"
            )
        bar = self._bars.get(index)
        found = [window for window in bar.windows if window.name == "doorbell"] if bar else []
        gate = self._function.gate
        if not found or gate is None or not self._channel.max_fds:
            return p.IO_FDS.pack(p.IO_FDS.size, 0, index, 0)
        full = p.IO_FDS.size + p.IO_FD.size
        head = p.IO_FDS.pack(full, 0, index, 1)
        if argsz < full:
            return head
        fd = self._bells.get(index)
        if fd is None:
            fd = self._bells[index] = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._loop.watch(fd, gate.look)
        at = found[0].offset + DoorbellRegister.DOORBELL
        # No datamatch: the gate then looks at all frames, whichever index was written.
        return head + p.IO_FD.pack(at, 4, 0, p.IO_FD_IOEVENTFD, 0, 0, 0), [fd]

    def get_irq_info(self, message: Message) -> Reply:
        """How many interrupts of a type there are, and how they can be used."""
        (_, _flags, index, _count), _ = _split(message, p.IRQ_INFO, argsz=True)
        if index >= p.IRQS:
            raise Refused(errno.EINVAL, f"an interrupt type must be below {p.IRQS}, not {index}")
        flags, count = self._interrupts.info(index)
        return p.IRQ_INFO.pack(p.IRQ_INFO.size, flags, index, count)

    def set_irqs(self, message: Message) -> Reply:
        """Connect, mask, unmask or trigger interrupts."""
        (argsz, flags, index, start, count), data = _split(message, p.IRQ_SET)
        if argsz != len(message.payload):
            raise Refused(
                errno.EINVAL,
                f"SET_IRQS must have the {argsz} bytes of its argsz, not {len(message.payload)}",
            )
        if index >= p.IRQS:
            raise Refused(errno.EINVAL, f"an interrupt type must be below {p.IRQS}, not {index}")
        self._interrupts.set(flags, index, start, count, data, message.fds)
        return None

    # --- regions ---------------------------------------------------------------------------------

    def region_read(self, message: Message) -> Reply:
        """Read from a BAR or from configuration space."""
        (offset, region, count), _ = _split(message, p.REGION_ACCESS)
        bar = self._check(region, offset, count)
        if bar is not None and count in SIZES:
            data = bar.read(offset, count).to_bytes(count, "little")
        else:
            data = self._read_long(bar, offset, count)
        return message.payload[: p.REGION_ACCESS.size] + data

    def region_write(self, message: Message) -> Reply:
        """Write to a BAR or to configuration space."""
        (offset, region, count), data = _split(message, p.REGION_ACCESS)
        if len(data) != count:
            raise Refused(errno.EINVAL, f"REGION_WRITE must bring {count} bytes, not {len(data)}")
        if not message.flags & p.NO_REPLY and self._dma.by_messages:
            self._post(message)
        self._write(region, offset, count, data)
        return message.payload[: p.REGION_ACCESS.size]

    def region_write_multi(self, message: Message) -> Reply:
        """Several writes of up to 8 bytes, in order."""
        (count,), data = _split(message, p.WRITE_COUNT)
        if len(data) != count * p.WRITE_ONE.size:
            raise Refused(
                errno.EINVAL,
                f"REGION_WRITE_MULTI must bring {count} writes, not {len(data)} bytes",
            )
        for offset, region, size, value in p.WRITE_ONE.iter_unpack(data):
            if size > len(value):
                raise Refused(errno.EINVAL, f"a write must be of 8 bytes at most, not {size}")
            self._write(region, offset, size, value[:size])
        return p.WRITE_COUNT.pack(count)

    def reset(self, message: Message) -> Reply:
        """Reset the function."""
        self._interrupts.reset()
        self._function.reset()
        return None

    def _region_size(self, index: int) -> int:
        if index == Region.CONFIG:
            return CONFIG_SIZE
        bar = self._bars.get(index)
        return bar.size if bar else 0

    def _mappable(self, index: int) -> tuple[Window, int] | None:
        """The window of a BAR that is plain memory with a file of its own, and that file."""
        bar = self._bars.get(index)
        if bar is None or bar.kind != "memory" or not self._channel.max_fds:
            return None
        for window in bar.windows:
            pages = window.ram.obj if window.ram is not None else None
            # The file's offset 0 is the region's: so does VFIO have it.
            if not isinstance(pages, Pages) or pages.fd < 0 or window.offset:
                continue
            if len(pages) == window.size and not window.size % PAGE:
                return window, pages.fd
        return None

    def _check(self, region: int, offset: int, count: int) -> BarState | None:
        """The BAR of an access, None for configuration space. Raises Refused outside of both."""
        size = self._region_size(region)
        if not 0 < count <= p.MAX_TRANSFER or offset + count > size:
            raise Refused(
                errno.EINVAL,
                f"an access must lie in its region and be 1 to {p.MAX_TRANSFER} bytes, not "
                f"{count} at {offset:#x} of region {region}, which has {size:#x}",
            )
        return self._bars.get(region)

    def _write(self, region: int, offset: int, count: int, data: bytes) -> None:
        bar = self._check(region, offset, count)
        if bar is not None and count in SIZES:
            bar.write(offset, count, int.from_bytes(data, "little"))
            return
        write = self._function.config_write if bar is None else bar.write
        if bar is not None and (window := _plain(bar, offset, count)) is not None:
            assert window.ram is not None
            start = offset - window.offset
            window.ram[start : start + count] = data
            return
        for at, size in _pieces(offset, count):
            value = int.from_bytes(data[at - offset : at - offset + size], "little")
            write(at, size, value)

    def _read_long(self, bar: BarState | None, offset: int, count: int) -> bytes:
        if bar is None and count not in SIZES:
            return self._function.config.dump(offset + count)[offset:]
        read = self._function.config_read if bar is None else bar.read
        if bar is not None and (window := _plain(bar, offset, count)) is not None:
            assert window.ram is not None
            start = offset - window.offset
            return bytes(window.ram[start : start + count])
        return b"".join(
            read(at, size).to_bytes(size, "little") for at, size in _pieces(offset, count)
        )


_HANDLERS: dict[int, Callable[[Session, Message], Reply]] = {
    Command.VERSION: Session.version,
    Command.DMA_MAP: Session.dma_map,
    Command.DMA_UNMAP: Session.dma_unmap,
    Command.DEVICE_GET_INFO: Session.get_info,
    Command.DEVICE_GET_REGION_INFO: Session.get_region_info,
    Command.DEVICE_GET_REGION_IO_FDS: Session.get_region_io_fds,
    Command.DEVICE_GET_IRQ_INFO: Session.get_irq_info,
    Command.DEVICE_SET_IRQS: Session.set_irqs,
    Command.REGION_READ: Session.region_read,
    Command.REGION_WRITE: Session.region_write,
    Command.DEVICE_RESET: Session.reset,
    Command.REGION_WRITE_MULTI: Session.region_write_multi,
}


def connect_interrupts(function: Function, loop: Loop) -> Interrupts:
    """The interrupts of a function, as its VMM will see them."""
    messages: dict[int, Messages | None] = {Irq.MSI: function.msi, Irq.MSIX: function.msix}
    counts = {irq: each.vectors for irq, each in messages.items() if each is not None}
    counts[Irq.INTX] = 1 if function.config.get(INTERRUPT_PIN, 1) else 0
    # ERR is never signalled, but QEMU warns its user about a device that has none.
    counts[Irq.ERR] = 1

    def on_connect(irq: int, vectors: int) -> None:
        # Without eventfds, what is triggered stays in the function's own pending bits.
        each = messages.get(irq)
        if each is not None:
            function.connect(each, partial(interrupts.trigger, irq), vectors)

    interrupts = Interrupts(counts, on_connect, loop)
    return interrupts


def _split(
    message: Message, layout: Struct, *, argsz: bool = False
) -> tuple[tuple[Any, ...], bytes]:
    """A payload's fixed part, and what follows it. Raises Refused where it is too short.

    With `argsz`, the first member says how long the reply may be, and that is too short too if it
    has no room for the fixed part.
    """
    payload = message.payload
    if len(payload) < layout.size:
        raise Refused(
            errno.EINVAL,
            f"{_name(message)} must have {layout.size} bytes at least, not {len(payload)}",
        )
    fields = layout.unpack_from(payload)
    if argsz and fields[0] < layout.size:
        raise Refused(
            errno.EINVAL,
            f"the argsz of {_name(message)} must be {layout.size} at least, not {fields[0]}",
        )
    return fields, payload[layout.size :]


def _capabilities(data: bytes) -> dict[str, Any]:
    """The client's capabilities; there may be none."""
    if not data.rstrip(b"\0"):
        return {}
    if len(data) > _VERSION_DATA or data[-1:] != b"\0":
        raise Refused(
            errno.EINVAL, f"version data must be a string of {_VERSION_DATA} bytes at most"
        )
    try:
        found = json.loads(data.partition(b"\0")[0])
    except (ValueError, RecursionError) as error:
        raise Refused(errno.EINVAL, f"version data must be JSON: {error}") from error
    capabilities = found.get("capabilities", {}) if isinstance(found, dict) else None
    if not isinstance(capabilities, dict):
        raise Refused(errno.EINVAL, "version data must be an object with capabilities")
    return capabilities


def _limit(capabilities: dict[str, Any], name: str, default: int, least: int, most: int) -> int:
    value = capabilities.get(name, default)
    # JSON knows numbers only: 16.0 is 16. A bool is no number there, but one in Python.
    whole = type(value) is int or (isinstance(value, float) and value.is_integer())
    if not whole or value < least:
        raise Refused(errno.EINVAL, f"the capability {name} must be a number, {least} or more")
    return min(int(value), most)


def _plain(bar: BarState, offset: int, count: int) -> Window | None:
    """The window of plain memory that holds a range."""
    for window in bar.windows:
        inside = window.offset <= offset and offset + count <= window.offset + window.size
        if inside and window.ram is not None:
            return window
    return None


def _pieces(offset: int, count: int) -> Iterator[tuple[int, int]]:
    """A range cut into aligned accesses of 4, 2 or 1 bytes, as VFIO does: (offset, size)."""
    at, end = offset, offset + count
    while at < end:
        size = next(size for size in (4, 2, 1) if at % size == 0 and at + size <= end)
        yield at, size
        at += size


def _name(message: Message) -> str:
    try:
        return Command(message.command).name
    except ValueError:
        return "of an unknown command"
