# SPDX-License-Identifier: MIT
"""The PCI function of a virtio device (4.1), modern interface only.

    BAR 0    0000  common configuration    features, status, queues (4.1.4.3)
             1000  ISR status              read: which interrupt, and INTx off (4.1.4.5)
             2000  device configuration    registers that the subclass declares (4.1.4.6)
             3000  notifications           4 bytes for each queue (4.1.4.4)

    notification --> requests of the queue --> `handle` --> used ring --> one interrupt a batch

The registers of a queue show the queue that `queue_select` names: selecting one loads them, writing
one stores it there. A guest that breaks a rule has its write dropped where that mends it; a queue
that makes no sense any more lets the device ask for a reset (2.1.2). Either is noted in `faults`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntFlag
from functools import partial
from threading import Lock
from typing import Any, ClassVar

from callgate import Bar, Device, DmaError, Interrupts, Register
from callgate.devices.virtio.capability import ConfigAccess, Structure, VirtioCapability
from callgate.devices.virtio.queue import MAX_SIZE, NO_VECTOR, Broken, Queue, Request
from callgate.devices.virtio.worker import Worker

COMMON = 0x0000
ISR = 0x1000
CONFIG = 0x2000
"""Where device configuration begins: what a subclass adds to the offsets of its registers."""
NOTIFY = 0x3000
NOTIFY_MULTIPLIER = 4
COMMON_LENGTH = 0x38
MAX_QUEUES = (0x4000 - NOTIFY) // NOTIFY_MULTIPLIER

INDIRECT_DESC = 1 << 28
EVENT_IDX = 1 << 29
VERSION_1 = 1 << 32
ACCESS_PLATFORM = 1 << 33
TRANSPORT_FEATURES = INDIRECT_DESC | EVENT_IDX | VERSION_1 | ACCESS_PLATFORM
"""What the transport does for every device (6)."""

QUEUE_INTERRUPT, CONFIG_INTERRUPT = 1, 2
"""Bits of ISR status."""
_ENOUGH = 1 << 18
"""Bytes of requests after which they are given back, though the batch has more."""


class Status(IntFlag):
    """Device status (2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


_DRIVERS = int(
    Status.ACKNOWLEDGE | Status.DRIVER | Status.DRIVER_OK | Status.FEATURES_OK | Status.FAILED
)
"""What the driver sets."""


class Virtio(Device):
    """A virtio device. A subclass declares id and class code, and overrides `handle`.

    Device configuration is made of the registers that it declares at `CONFIG` and above. A subclass
    with an `attach`, `reset` or `detach` of its own calls this one's too; when `attach` is called,
    `features` and `queue_sizes` must be what they are to be.
    """

    subsystem = 0x1AF4, 0x1100
    revision = 1  # 4.1.2.1: legacy drivers ask for 0.

    features: int = 0
    """Feature bits of the device type (5)."""
    queue_sizes: Sequence[int] = (64,)
    """The most entries of each queue: powers of two."""
    threaded: ClassVar[bool] = False
    """Whether requests are carried out on a thread of their own, since they may wait. Else they are
    on the thread that notified, with the device locked, as everything else of a device."""

    structures = Bar(0, 0x4000)

    device_feature_select = Register(COMMON + 0x00, doc="which 32 device_feature shows")
    device_feature = Register(COMMON + 0x04, access="r", doc="features that the device offers")
    driver_feature_select = Register(COMMON + 0x08, doc="which 32 driver_feature shows")
    driver_feature = Register(COMMON + 0x0C, doc="features that the driver accepts")
    config_msix_vector = Register(COMMON + 0x10, width=16, reset=NO_VECTOR)
    num_queues = Register(COMMON + 0x12, width=16, access="r")
    device_status = Register(COMMON + 0x14, width=8, doc="0: reset")
    config_generation = Register(COMMON + 0x15, width=8, access="r")
    queue_select = Register(COMMON + 0x16, width=16, doc="which queue the rest shows")
    queue_size = Register(COMMON + 0x18, width=16, doc="0: there is no such queue")
    queue_msix_vector = Register(COMMON + 0x1A, width=16, reset=NO_VECTOR)
    queue_enable = Register(COMMON + 0x1C, width=16)
    queue_notify_off = Register(COMMON + 0x1E, width=16, access="r")
    queue_desc = Register(COMMON + 0x20, width=64, doc="address of the descriptor area")
    queue_driver = Register(COMMON + 0x28, width=64, doc="address of the driver area")
    queue_device = Register(COMMON + 0x30, width=64, doc="address of the device area")

    isr_status = Register(ISR, width=8, access="r", doc="1: a queue, 2: configuration")

    vectors = Interrupts(2, "whatever the driver connects it with: a queue, or configuration")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = [each for each in cls.capabilities if not isinstance(each, VirtioCapability)]
        end = max(register.offset + register.size for register in cls.spec.registers)
        multiplier = NOTIFY_MULTIPLIER.to_bytes(4, "little")
        bar = cls.structures.index
        ours = [
            VirtioCapability(Structure.COMMON, bar, COMMON, COMMON_LENGTH),
            VirtioCapability(Structure.NOTIFY, bar, NOTIFY, 0x1000, multiplier),
            VirtioCapability(Structure.ISR, bar, ISR, 1),
        ]
        if end > CONFIG:
            ours.append(VirtioCapability(Structure.DEVICE, bar, CONFIG, end - CONFIG))
        cls.capabilities = (*ours, ConfigAccess(), *own)

    # --- what a device type overrides and uses ---------------------------------------------------

    def handle(self, queue: Queue, request: Request) -> int:
        """Carry out a request; return how many bytes it wrote, from the first writable one on.

        What of it is not memory raises DmaError, and the device then asks for a reset, as it does
        for `Broken`.
        """
        raise NotImplementedError

    def handle_batch(
        self, queue: Queue, requests: Iterable[Request]
    ) -> Iterator[tuple[Request, int]]:
        """Carry out requests that came together, and yield each when it is done, in any order."""
        for request in requests:
            yield request, self.handle(queue, request)

    def fill_config(self) -> None:
        """Let the registers of device configuration say what they say after a reset."""

    @property
    def negotiated(self) -> int:
        """The features that driver and device agreed on; 0 before."""
        return self._accepted if self._status & Status.FEATURES_OK else 0

    def accepts(self, features: int) -> bool:
        """Whether the driver may go on with these features. All of them were offered."""
        return True

    def config_changed(self) -> None:
        """Tell the driver that device configuration is another one now (2.5.1). From any thread."""
        with self.lock:
            self.config_generation = self.config_generation + 1 & 0xFF
            self._tell_config()

    def settle(self) -> None:
        """Wait until all requests that the guest made known are done, and told."""
        if self._worker is not None:
            self._worker.settle()

    # --- life ------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Begin, as after a reset."""
        for size in self.queue_sizes:
            if not 0 < size <= MAX_SIZE or size & (size - 1):
                raise ValueError(f"A queue must have a power of two of entries, not {size}")
        if not 0 < len(self.queue_sizes) <= MAX_QUEUES:
            raise ValueError(f"There must be 1 to {MAX_QUEUES} queues")
        self._place = self.plugged
        self._state = Lock()
        """Guards status and ISR bits, which a worker sets too."""
        self._resetting = False
        self._worker: Worker | None = None
        self._clear()
        if self.threaded:
            self._worker = Worker(self._work, f"callgate requests of {self}")

    def detach(self) -> None:
        """End; requests that are not done are dropped."""
        self._stop()
        if self._worker is not None:
            self._worker.close()

    def reset(self) -> None:
        """Be as after power-on. Waits for the one request that may be under way."""
        self._stop()
        if self._worker is not None:
            self._worker.halt()
        self._clear()

    def _stop(self) -> None:
        """Let no request begin any more."""
        for queue in self._queues:
            queue.live = False

    def _clear(self) -> None:
        """Be as after power-on; no request is under way."""
        self._queues = [Queue(index, size) for index, size in enumerate(self.queue_sizes)]
        self._notified: dict[Queue, None] = {}
        """Queues to look at, in the order of their notifications."""
        self._serving = False
        self._status = 0
        self._accepted = 0
        self._resetting = False
        for register in self.spec.registers:
            if self.spec.bar_of(register).index == type(self).structures.index:
                self._register_values[register.name] = register.reset
        self.num_queues = len(self._queues)
        self._show_features()
        self._show_queue()
        with self._state:
            self._isr = 0
        self._place.set_level(self.vectors[0].index, False)
        self.fill_config()

    # --- negotiation -----------------------------------------------------------------------------

    @property
    def _offered(self) -> int:
        return self.features | TRANSPORT_FEATURES

    @device_feature_select.on_write
    def _select_device_features(self, value: int) -> None:
        self._show_features()

    @driver_feature_select.on_write
    def _select_driver_features(self, value: int) -> None:
        self._show_features()

    @driver_feature.on_write
    def _accept_features(self, value: int) -> None:
        shift = 32 * self.driver_feature_select
        if self._status & Status.FEATURES_OK or self._resetting:
            self._refuse("features must not be changed once they are agreed on")
        elif shift > 32:
            if value:
                self._refuse("features must be among those that were offered: there are 64 bits")
        else:
            mask = 0xFFFF_FFFF << shift
            self._accepted = self._accepted & ~mask | value << shift
        self._show_features()

    def _show_features(self) -> None:
        # There are 64 bits; what lies behind them reads as zero (4.1.4.3.1).
        self.device_feature = self._half(self._offered, self.device_feature_select)
        self.driver_feature = self._half(self._accepted, self.driver_feature_select)

    def _half(self, features: int, select: int) -> int:
        return features >> 32 * select & 0xFFFF_FFFF if select < 2 else 0

    @device_status.on_read
    def _read_status(self) -> int:
        return self._status

    @device_status.on_write
    def _write_status(self, value: int) -> None:
        if value == 0:
            self._reset_by_driver()
            return
        if self._resetting:
            self._refuse("nothing must be written before device_status reads 0 after a reset")
            return
        old = self._status
        if old & _DRIVERS & ~value:
            self._refuse("the driver must not clear bits of device_status, but write 0")
        new = old | value & _DRIVERS
        if new & ~old & Status.FEATURES_OK and not self._agree():
            new &= ~Status.FEATURES_OK
        if new & Status.DRIVER_OK and not new & Status.FEATURES_OK:
            self._refuse("FEATURES_OK must be set, and read back, before DRIVER_OK")
            new &= ~Status.DRIVER_OK
        with self._state:
            self._status = int(new) | self._status & Status.NEEDS_RESET
        if new & ~old & Status.DRIVER_OK:
            # Buffers may have been made available before, but not their notifications (3.1.1).
            for queue in self._queues:
                if queue.live:
                    self._notify(queue)

    def _agree(self) -> bool:
        features = self._accepted
        if features & ~self._offered:
            self._refuse(f"features must have been offered, not {features & ~self._offered:#x}")
        elif not features & VERSION_1:
            self._refuse("VERSION_1 must be accepted: there is no legacy interface")
        else:
            return self.accepts(features)
        return False

    def _reset_by_driver(self) -> None:
        """Reset when the request under way is done: device_status then reads 0 (4.1.4.3.1)."""
        if self._resetting:
            return
        self._stop()
        self._resetting = True
        if self._worker is None:
            self._clear()
        else:
            self._worker.defer(self._clear)

    @config_msix_vector.on_write
    def _connect_config(self, value: int) -> None:
        self.config_msix_vector = self._vector(value)

    def _vector(self, value: int) -> int:
        """What a vector register holds after a write (4.1.5.1.2.1): NO_VECTOR if there is none."""
        if value < len(self.vectors) or value == NO_VECTOR:
            return value
        self._refuse(f"a vector must be below {len(self.vectors)}, not {value}")
        return NO_VECTOR

    # --- queues ----------------------------------------------------------------------------------

    @queue_select.on_write
    def _select_queue(self, value: int) -> None:
        self._show_queue()

    def _show_queue(self) -> None:
        queue = self._selected()
        values = (0, NO_VECTOR, 0, 0, 0, 0, 0)
        if queue is not None:
            values = (
                queue.size,
                queue.vector,
                int(queue.enabled),
                queue.index,
                queue.descriptors,
                queue.available,
                queue.used,
            )
        (
            self.queue_size,
            self.queue_msix_vector,
            self.queue_enable,
            self.queue_notify_off,
            self.queue_desc,
            self.queue_driver,
            self.queue_device,
        ) = values

    def _selected(self) -> Queue | None:
        select = self.queue_select
        return self._queues[select] if select < len(self._queues) else None

    @queue_size.on_write
    def _write_size(self, value: int) -> None:
        def change(queue: Queue) -> None:
            if 0 < value <= queue.limit and not value & (value - 1):
                queue.size = value
            else:
                self._refuse(f"queue_size must be a power of two up to {queue.limit}, not {value}")

        self._configure(change)

    @queue_msix_vector.on_write
    def _connect_queue(self, value: int) -> None:
        queue = self._selected()
        if queue is not None and not self._resetting:
            queue.vector = self._vector(value)
        self._show_queue()

    @queue_desc.on_write
    def _write_desc(self, value: int) -> None:
        self._configure(lambda queue: setattr(queue, "descriptors", value))

    @queue_driver.on_write
    def _write_driver(self, value: int) -> None:
        self._configure(lambda queue: setattr(queue, "available", value))

    @queue_device.on_write
    def _write_device(self, value: int) -> None:
        self._configure(lambda queue: setattr(queue, "used", value))

    @queue_enable.on_write
    def _write_enable(self, value: int) -> None:
        def change(queue: Queue) -> None:
            features = self.negotiated
            if value != 1:
                self._refuse(f"queue_enable must be written with 1, not {value}")
            elif not features:
                self._refuse("FEATURES_OK must be set before a queue is enabled")
            else:
                try:
                    queue.enable(
                        self.memory,
                        indirect=bool(features & INDIRECT_DESC),
                        event_idx=bool(features & EVENT_IDX),
                    )
                except Broken as error:
                    self._refuse(str(error))

        self._configure(change)

    def _configure(self, change: Callable[[Queue], None]) -> None:
        queue = self._selected()
        if queue is None or queue.enabled or self._resetting:
            self._refuse("a queue must exist, and not be enabled, to be configured")
        else:
            change(queue)
        self._show_queue()

    # --- notifications ---------------------------------------------------------------------------

    @structures.on_write
    def _write_structures(self, offset: int, size: int, value: int) -> None:
        index, rest = divmod(offset - NOTIFY, NOTIFY_MULTIPLIER)
        if not 0 <= index < len(self._queues) or rest or size not in (2, 4):
            self._refuse(
                f"a notification must be 2 or 4 bytes at a queue's place, not {size} at {offset:#x}"
            )
            return
        queue = self._queues[index]
        if self._status & Status.NEEDS_RESET:
            pass  # The driver cannot know yet.
        elif not queue.live or not self._status & Status.DRIVER_OK:
            self._refuse("a queue must be enabled, and DRIVER_OK set, before a notification")
        else:
            self._notify(queue)

    def _notify(self, queue: Queue) -> None:
        self._notified[queue] = None
        if self._worker is not None:
            self._worker.wake()
        elif not self._serving:
            self._serve_here()

    def _serve_here(self) -> None:
        """Carry out a batch of each queue on this thread. A guest that makes more available all
        the time has to wait for the rest, as everybody else of the device waits for this."""
        self._serving = True
        try:
            self._work()()
        finally:
            self._serving = False
        if self._notified:
            self.after(0, self._serve_here)

    def _work(self) -> Callable[[], None]:
        """Carry out a batch of each queue that was notified; returns how to tell the driver."""
        causes: list[Callable[[], None]] = []
        for queue in list(self._notified):
            # Before it is looked at: who notifies from now on is heard.
            self._notified.pop(queue, None)
            if queue.live and self._serve(queue, causes):
                self._notified[queue] = None
        if self._notified and self._worker is not None:
            self._worker.wake()

        def tell() -> None:
            for cause in causes:
                cause()

        return tell

    def _serve(self, queue: Queue, causes: list[Callable[[], None]]) -> bool:
        """Carry out a batch; whether there may be more."""
        try:
            if not queue.take():
                return not queue.rest()
            done: list[tuple[int, int]] = []
            try:
                for request, written in self.handle_batch(queue, queue.requests(_ENOUGH)):
                    done.append((request.head, written))
            finally:
                if done and queue.give(done):
                    causes.append(partial(self._tell_queue, queue))
            # To ask for notifications and then have them is dear: first look whether it must be.
            return queue.take() or not queue.rest()
        except Broken as error:
            if self._breaks(queue, causes):
                self.faults.note("broken queue", f"queue {queue.index}: {error}")
        except DmaError as error:
            if self._breaks(queue, causes):
                self.faults.note_dma(f"queue {queue.index}", error)
        except Exception as error:
            self.bugs.report(f"{self}.handle", error)
            if self._breaks(queue, causes):
                self.faults.note("bug", f"queue {queue.index}: the device model raised")
        return False

    def _breaks(self, queue: Queue, causes: list[Callable[[], None]]) -> bool:
        """Stop, and ask for a reset (2.1.2); False when one is on its way, and nothing can be as it
        should."""
        if not queue.live:
            return False
        self._stop()
        with self._state:
            self._status |= Status.NEEDS_RESET
        causes.append(self._tell_config)
        return True

    # --- interrupts ------------------------------------------------------------------------------

    def _tell_queue(self, queue: Queue) -> None:
        """Say that requests of a queue are done."""
        if queue.live:
            self._tell(queue.vector, QUEUE_INTERRUPT)

    def _tell_config(self) -> None:
        """Say that configuration or status is another one, to a driver that is there."""
        if self._status & Status.DRIVER_OK:
            self._tell(self.config_msix_vector, CONFIG_INTERRUPT)

    def _tell(self, vector: int, cause: int) -> None:
        place = self._place
        if place.msix_enabled:
            if vector != NO_VECTOR:
                place.trigger(self.vectors[vector].index)
            return
        with self._state:
            self._isr |= cause
        place.trigger(self.vectors[0].index)

    @isr_status.on_read
    def _read_isr(self) -> int:
        with self._state:
            value, self._isr = self._isr, 0
        place, index = self._place, self.vectors[0].index
        if not place.msix_enabled:  # Else it has no part in interrupts, nor takes any back.
            place.set_level(index, False)
            # What came in between was asserted in vain.
            if self._isr:
                place.trigger(index)
        return value

    def _refuse(self, sentence: str) -> None:
        self.faults.note("virtio", sentence)
