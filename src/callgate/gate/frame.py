# SPDX-License-Identifier: MIT
"""Frame: one frame of a gate as the host sees it (docs/abi.md, section 5).

    words    0 state    1 vector    2 flags, counts    3 status
    quads    0          1           2 code  3 cookie  4 ... 15 values

The usual frame carries a call of this gate's that no quota bounds, with the right number of
arguments and no flags. It goes a short way: its first quad finds the call, and the call's own stub
takes the arguments out of the frame and puts the results back. All others are copied and judged
step by step. Both ways lead through `Slot.run`.

    WAYS            either of these two
      QUICK         the usual frame's way compiled (_frame.c), `Slot.run` included
      PLAIN         the same in Python (see callgate.compiled)
        Judge       what both do with all other frames
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

from callgate.compiled import PURE, compiled
from callgate.gate.abi import FRAME, MAX_VALUES, FrameFlag, FrameState, Status
from callgate.gate.fence import WEAK, fence

if TYPE_CHECKING:
    from callgate.gate.gate import Gate
    from callgate.gate.target import Target
    from callgate.gate.vectors import Binding, Slot

# Plain numbers: a look-up in an enum class costs as much as a call in Python 3.11, and an IntFlag's
# operators cost more than all else on a call's path.
_FREE = int(FrameState.FREE)
_READY = int(FrameState.READY)
_RUNNING = int(FrameState.RUNNING)
_DONE = int(FrameState.DONE)
_ONE_WAY = int(FrameFlag.ONE_WAY)
_INTERRUPT = int(FrameFlag.INTERRUPT)
_UNKNOWN_FLAGS = 0xFFFF & ~(_ONE_WAY | _INTERRUPT)
_FAULTED = int(Status.DEVICE_FAULT) << 32
_LOW = 0xFFFF_FFFF
_VALUES_AT = FRAME.offset("values")
_VALUES = tuple(struct.Struct(f"<{count}Q").unpack_from for count in range(MAX_VALUES + 1))


def head(vector: int) -> int:
    """The first quad of a READY frame that calls `vector`: the key of `Frame.calls`."""
    return vector << 32 | _READY


class Judge:
    """A frame's ways that are not the usual one."""

    __slots__ = ()

    gate: Gate
    slot: Slot
    quads: memoryview
    payload: memoryview

    def _explain(self, flags: int, binding: Binding, error: Exception) -> int:
        """Answer a usual frame whose call raised; returns its second quad."""
        status, code = binding.target.explain(binding, error)
        return self._put(flags, status, code, ())

    def _judge(self, vector: int, flags: int) -> int:
        """Answer a frame that is in any way unusual; returns its second quad."""
        binding = self.gate.table.live.get(vector)
        count = flags >> 16
        if flags & _UNKNOWN_FLAGS:
            sentence = f"a frame's flags must be known ones, not {flags & 0xFFFF:#x}"
            return self._refuse(flags, vector, Status.BAD_FRAME, sentence)
        if binding is None or binding.target.gate is not self.gate:
            # A live vector of another device is none of this one's.
            status = self.gate.table.judge(vector) if binding is None else Status.NO_SUCH_VECTOR
            sentence = f"vector {vector:#x} leads to no call of this device"
            return self._refuse(flags, vector, status, sentence)
        if count > MAX_VALUES:
            sentence = f"a frame has room for {MAX_VALUES} slots, not {count}"
            return self._refuse(flags, vector, Status.BAD_COUNT, sentence)
        values = _VALUES[count](self.quads, _VALUES_AT)
        payload = self.payload
        if flags & _ONE_WAY:  # No result is written, not into the payload either.
            payload = memoryview(bytearray(payload))
        status, code, results = binding.target.execute(self.slot, binding, values, payload)
        return self._put(flags, status, code, () if flags & _ONE_WAY else results)

    def _refuse(self, flags: int, vector: int, status: Status, sentence: str) -> int:
        self.gate.faults.note(status.name, sentence)
        return self._put(flags, status, 0, ())

    def _put(self, flags: int, status: Status, code: int, results: tuple[int, ...]) -> int:
        """Write code and results; returns the second quad, which tells of them."""
        if code:
            self.quads[2] = code
        for at, result in enumerate(results, _VALUES_AT // 8):
            self.quads[at] = result
        return flags | len(results) << 24 | status << 32


class PlainFrame(Judge):
    """One frame, and the place where its call in flight is written down.

    `calls` is its gate's: bindings by the first quad of a READY frame. What is missing there is
    looked up in the table, so it may lag behind that, for as long as a binding is refused.

    `free` holds one item while nobody answers the frame. Who takes it out has the frame, and puts
    it back: a lock that nobody waits for, at half of a lock's price.
    """

    __slots__ = ("calls", "free", "gate", "payload", "quads", "slot", "woken", "words")

    def __init__(self, gate: Gate, calls: dict[int, Binding], ram: memoryview, slot: Slot) -> None:
        self.gate = gate
        self.calls = calls
        self.words = ram[: FRAME.size].cast("I")
        self.quads = ram[: FRAME.size].cast("Q")
        self.payload = ram[FRAME.size :]
        self.slot = slot
        self.free = [True]
        self.woken: Callable[[], None] | None = None
        """Told of each doorbell that found the frame READY, if somebody watches."""

    def clear(self) -> None:
        """Make it FREE, unless it is being answered. All else stays: who has just seen DONE reads
        on."""
        try:
            self.free.pop()
        except IndexError:
            return
        self.words[0] = _FREE
        self.free.append(True)

    def look(self, from_watcher: bool = False) -> None:
        """Answer the frame if it is READY."""
        quads, free = self.quads, self.free
        # A frame is answered by one thread at a time, whoever else rings for it.
        while True:
            try:
                free.pop()
            except IndexError:
                return
            # State and vector in one load: they were stored in one, or the vector before.
            first = quads[0]
            binding = self.calls.get(first)
            if binding is not None or first & _LOW == _READY:
                break
            free.append(True)
            # Who stored READY just now may have found the frame taken, and counts on us.
            if quads[0] & _LOW != _READY:
                return
        # Who rings from now on sees a frame that is being answered.
        words = self.words
        words[0] = _RUNNING
        if WEAK:  # The driver's store of READY came after all that is read now.
            fence()
        answer = _FAULTED
        interrupt = 0
        try:
            # From here on only the copy is judged.
            flags = words[2]
            target: Target
            if (
                binding is not None
                and flags == (target := binding.target).usual
                and binding.quota is None
            ):
                try:
                    self.slot.run(binding, target.lock, target.frame_stub, quads, self.payload)
                    answer = target.done
                except Exception as error:
                    answer = self._explain(flags, binding, error)
            else:
                flags &= 0xFF_FFFF  # The count of results is the host's to write.
                interrupt = flags & _INTERRUPT
                answer = self._judge(first >> 32, flags)
        finally:
            # Results, then status, then the state: whoever sees DONE sees all of them. The frame is
            # given back before that: who sees DONE may ring at once, and is not to find it taken.
            quads[1] = answer
            free.append(True)
            if WEAK:
                fence()
            words[0] = _DONE
        if interrupt:
            self.gate.tell_done()
        if self.woken is not None and not from_watcher:
            self.woken()


Doorbell: TypeAlias = Callable[[int, int, int], None]
"""Takes writes of the guest: (offset, size, value)."""


def plain_bell(frames: Sequence[PlainFrame], otherwise: Doorbell) -> Doorbell:
    """Rings for the frame whose index is written to offset 0, in 4 bytes; all else is left to
    `otherwise`, an index that no frame has too."""
    looks = [frame.look for frame in frames]

    def ring(offset: int, size: int, value: int) -> None:
        if offset == 0 and size == 4:
            try:
                look = looks[value]
            except IndexError:
                otherwise(offset, size, value)
            else:
                look()
        else:
            otherwise(offset, size, value)

    return ring


class PlainWatch:
    """Answers what is READY of all frames, and then of the one that was used last, many times: its
    driver is likely to go on. `states` are the frames' first words."""

    def __init__(self, frames: Sequence[PlainFrame], states: memoryview) -> None:
        self._frames = frames
        self._states = states
        self._latest = frames[0]

    def __call__(self, rounds: int) -> bool:
        """Look so often; whether there was a call."""
        found = False
        states = self._states.tolist()
        if _READY in states:
            found = True
            for frame, state in zip(self._frames, states, strict=True):
                if state == _READY:
                    self._latest = frame
                    frame.look(True)
        words, look = self._latest.words, self._latest.look
        for _ in range(1, rounds):
            if words[0] == _READY:
                found = True
                look(True)
        return found


class Ways(NamedTuple):
    """How frames are answered: the class of a frame, what makes the doorbell of all of them, and
    what makes a watch, which looks at all of them so often as it is told."""

    frame: type[PlainFrame]
    bell: Callable[[tuple[PlainFrame, ...], Doorbell], Doorbell]
    watch: Callable[[tuple[PlainFrame, ...], memoryview], Callable[[int], bool]]


PLAIN = Ways(PlainFrame, plain_bell, PlainWatch)


def _quick() -> Ways | None:
    module = compiled("callgate.gate._frame")
    if module is None:
        return None
    base: Any = module.Frame

    class QuickFrame(Judge, base):  # type: ignore[misc]
        """See `PlainFrame`."""

        __slots__ = ()

        def __init__(
            self, gate: Gate, calls: dict[int, Binding], ram: memoryview, slot: Slot
        ) -> None:
            frame, payload = ram[: FRAME.size], ram[FRAME.size :]
            super().__init__(gate, calls, frame.cast("I"), frame.cast("Q"), payload, slot)

    def watch(frames: tuple[PlainFrame, ...], states: memoryview) -> Callable[[int], bool]:
        return partial(module.watch, frames)

    return Ways(cast("type[PlainFrame]", QuickFrame), module.Bell, watch)


QUICK = _quick()
WAYS = PLAIN if QUICK is None or PURE else QUICK
