# SPDX-License-Identifier: MIT
"""An entropy device (virtio 1.2, 5.4): the driver gives buffers, the device fills them.

VirtioRng()                                 what this host's kernel has
VirtioRng(random.Random(7).randbytes)       the same in each run, for tests
"""

import os
from collections.abc import Callable

from callgate.devices.virtio import Queue, Request, Virtio


class VirtioRng(Virtio):
    """An entropy device.

    `source` returns as many random bytes as it is asked for. It is asked for MOST at once at most,
    however large the driver's buffer is: the driver takes what it gets, and asks again.
    """

    id = 0x1AF4, 0x1044
    class_code = 0x00FF00
    queue_sizes = (8,)
    MOST = 4096

    def __init__(self, source: Callable[[int], bytes] = os.urandom) -> None:
        self.source = source

    def handle(self, queue: Queue, request: Request) -> int:
        """Fill the buffer, or its beginning (5.4.6.1)."""
        written = 0
        for gpa, length in request.writable:
            count = min(length, self.MOST - written)
            data = self.source(count)
            if len(data) != count:
                raise ValueError(
                    f"The source must give the {count} bytes that it is asked for, not {len(data)}"
                )
            self.memory.write(gpa, data)
            written += count
        return written
