# SPDX-License-Identifier: MIT
"""What the bench's guest is told to do: `struct bench_order` of guest/bare/bench.c."""

from __future__ import annotations

import struct
from dataclasses import dataclass

SYMBOL = "bench_order"
"""Where the guest looks for it."""
CALL, STORE, OUT, TRAP, READ, WRITE, POST, ROUND, RING_PORT, WATCHED, SEVERAL = range(11)
"""What it does: calls of the device, one kind of bare trap, or one of access."""
PATHS = {"polled": 1, "hypercall": 2, "hypercall-frame": 3, "pio": 4, "mmio": 5}
"""enum callgate_path of the guest library."""
_LAYOUT = struct.Struct("<6I2Q")


@dataclass(frozen=True)
class Order:
    """`batches` times `size` calls or traps, with a mark before each batch and after the last."""

    batches: int
    size: int
    what: int = CALL
    path: int = 0
    instruction: int = 0
    selector: int = 0
    place: int = 0
    mark: int = 0

    def pack(self) -> bytes:
        """As it lies in the guest's memory."""
        return _LAYOUT.pack(
            self.what,
            self.path,
            self.batches,
            self.size,
            self.instruction,
            self.selector,
            self.place,
            self.mark,
        )
