# SPDX-License-Identifier: MIT
"""A frame of the gate from the driver's side (docs/abi.md, section 5)."""

from __future__ import annotations

from callgate.driver.door import Door
from callgate.errors import BadFrame
from callgate.gate.abi import FRAME, MAX_VALUES, FrameState, Status
from callgate.gate.fence import WEAK, fence

_READY = int(FrameState.READY)
_STATUSES = {int(status): status for status in Status}
_VALUES = FRAME.offset("values") // 8
LOW = 0xFFFF_FFFF

Reply = tuple[int, int, tuple[int, ...]]
"""Status, the device's own code (0 unless DEVICE_ERROR), result slots."""


def known(status: int) -> int:
    """The `Status` of that number; the number itself where this driver knows none."""
    return _STATUSES.get(status, status)


def make_ready(quads: memoryview, words: memoryview, vector: int) -> None:
    """Store READY, behind all that was stored before."""
    if not WEAK:
        quads[0] = _READY | vector << 32
        return
    # Where Python stores byte by byte, one changes in a state.
    words[1] = vector
    fence()
    words[0] = _READY


class Frame:
    """One frame of `size` bytes at `base`. Whoever holds it has it alone.

    Where it is mapped, `quads` and `words` are its memory, as numbers of 64 and of 32 bits.
    """

    def __init__(self, door: Door, index: int, base: int, size: int) -> None:
        self.index = index
        self.base = base
        self.payload_size = size - FRAME.size
        self._door = door
        self._quads: memoryview[int] | None = None
        mapped = door.map(base, size)
        if mapped is not None:
            self._bytes = mapped
            self._quads = self.quads = mapped.cast("Q")
            self.words = mapped.cast("I")
        # A copy in the C library's way is not for what arm64 maps as a device's.
        self._in_bulk = mapped is not None and not WEAK

    @property
    def is_mapped(self) -> bool:
        """Whether it is memory of this process: then `quads` and `words` are there."""
        return self._quads is not None

    @property
    def state(self) -> int:
        """The frame's state; all ones where nothing answers."""
        if self._quads is not None:
            return self._quads[0] & LOW
        return self._door.read(self.base, 4)

    @state.setter
    def state(self, state: int) -> None:
        self._door.write(self.base, 4, state)

    def submit(self, vector: int, head: int, slots: tuple[int, ...]) -> None:
        """Fill the frame and make it READY. `head` is the word with flags and argument count."""
        quads = self._quads
        if quads is not None:
            at = _VALUES
            for slot in slots:
                quads[at] = slot
                at += 1
            quads[1] = head
            quads[2] = 0
            make_ready(quads, self.words, vector)
            return
        write, base = self._door.write, self.base
        for number, slot in enumerate(slots, _VALUES):
            write(base + 8 * number, 8, slot)
        write(base + 8, 8, head)
        write(base + 16, 8, 0)
        # Apart from the vector: in 32-bit code a store of 8 bytes is two, the lower half first.
        write(base + 4, 4, vector)
        write(base, 4, _READY)

    def reply(self) -> Reply:
        """What a frame that is DONE says."""
        if WEAK:
            fence()
        answer = self.read_quad(1)
        status = known(answer >> 32)
        count = min(answer >> 24 & 0xFF, MAX_VALUES)
        results = tuple([self.read_quad(number) for number in range(_VALUES, _VALUES + count)])
        return status, self.read_quad(2) if status == Status.DEVICE_ERROR else 0, results

    def read_quad(self, number: int) -> int:
        """The 64-bit word at 8 * number."""
        if self._quads is not None:
            return self._quads[number]
        return self._door.read(self.base + 8 * number, 8)

    def write_quad(self, number: int, value: int) -> None:
        """Store a 64-bit word at 8 * number; number 0 is state and vector at once."""
        if self._quads is not None:
            self._quads[number] = value
        else:
            self._door.write(self.base + 8 * number, 8, value)

    def read_payload(self, offset: int, length: int) -> bytes:
        """A copy of payload bytes. Raises BadFrame if they leave the payload."""
        if offset + length > self.payload_size:
            raise BadFrame("the device's answer must lie inside the frame's payload")
        start = FRAME.size + offset
        if self._in_bulk:
            return bytes(self._bytes[start : start + length])
        first, end = start // 8, -(-(start + length) // 8)
        words = b"".join(self.read_quad(n).to_bytes(8, "little") for n in range(first, end))
        return words[start - 8 * first :][:length]

    def write_payload(self, data: bytes) -> None:
        """Store `data` at the payload's start. Raises BadFrame if it does not fit."""
        if len(data) > self.payload_size:
            raise BadFrame(f"a payload must be at most {self.payload_size} bytes long")
        if self._in_bulk:
            self._bytes[FRAME.size : FRAME.size + len(data)] = data
            return
        # The rest of the last word is payload too: frames are multiples of 8 bytes.
        for start in range(0, len(data), 8):
            word = int.from_bytes(data[start : start + 8], "little")
            self.write_quad((FRAME.size + start) // 8, word)
