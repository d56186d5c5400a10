# SPDX-License-Identifier: MIT
"""A console over calls: both sides say what they have, and nobody waits for the other in a call."""

from collections.abc import Callable

from callgate import Device, Interrupt, call, main, u32

MOST = 1024
"""Bytes that one call reads."""


class Console(Device):
    """A line to a far end: that sees what the guest writes, and the guest reads what that types.

    The far end is Python: `far` is called with what the guest wrote, and returns how many bytes of
    it were taken, or None for all; `type` and `resume` may be called from any thread. Without `far`
    the line is an echo.

    No call waits. A driver reads when `typed` interrupts, until there is nothing more. Of what it
    writes the far end may take a part, or nothing: then it writes the rest when `taken` interrupts.
    """

    id = 0x1AF4, 0x10F4
    typed = Interrupt("there is something to read")
    taken = Interrupt("there is room again, after a write of which a part was left")

    def __init__(self, far: Callable[[bytes], int | None] | None = None) -> None:
        self.far = far or self.type
        self.waiting = bytearray()
        self.left = False

    def reset(self) -> None:
        self.waiting.clear()
        self.left = False

    @call
    def write(self, data: bytes) -> u32:
        """Return how many bytes were taken, from the first on."""
        taken = self.far(data)
        if taken is None:
            taken = len(data)
        self.left = taken < len(data)
        self.taken.deassert()
        return taken

    @call
    def read(self, limit: u32) -> bytes:
        """Return up to `limit` bytes that were typed; none, if there are none."""
        data = bytes(self.waiting[: min(limit, MOST)])
        del self.waiting[: len(data)]
        if not self.waiting:
            self.typed.deassert()
        return data

    # --- the far end ---

    def type(self, data: bytes) -> None:
        """Let the guest read this."""
        with self.lock:
            self.waiting += data
            self.typed.trigger()

    def resume(self) -> None:
        """The far end has room again."""
        with self.lock:
            if self.left:
                self.left = False
                self.taken.trigger()


if __name__ == "__main__":
    main(Console)
