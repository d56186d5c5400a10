# SPDX-License-Identifier: MIT
"""A driver in a process of its own: calls through the memory of the gate that a server shares.

    python -m tests.vfio_user.driver SOCKET VECTOR FRAMES WATCHING PAUSE SECONDS

By the book (docs/abi.md, 6.4): READY, full barrier, load `watching`, and a doorbell only if it was
0. It prints how many calls it made and how often it rang; a call that is never answered ends it.
"""

import mmap
import sys
import time
from pathlib import Path

from tests.vfio_user.rig import GATE, Peer

from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.protocol import Command
from callgate.gate.abi import Feature, FrameState
from callgate.gate.fence import fence

LOST = 10.0
"""Seconds after which a call is lost: far longer than any scheduler holds up a watcher."""


def main(path: str, vector: int, frames: int, watching_at: int, pause: int, seconds: float) -> None:
    with Peer(Path(path)) as peer:
        request = p.REGION_INFO.pack(4096, 0, GATE, 0, 0, 0)
        answer = peer.ask(Command.DEVICE_GET_REGION_INFO, request)
        offset, size = p.SPARSE_AREA.unpack_from(answer.payload, 48)
        pages = mmap.mmap(answer.fds[0], size, offset=offset)
        answer.close()
        words, quads = memoryview(pages).cast("I"), memoryview(pages).cast("Q")
        peer.write(GATE, size + 0x0C, int(Feature.POLLED))
        state, watching = frames // 4, watching_at // 4
        ready, done = vector << 32 | FrameState.READY, int(FrameState.DONE)
        calls = rung = 0
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(64):
                calls += 1
                quads[frames // 8 + 4] = calls
                quads[frames // 8 + 5] = 1
                quads[frames // 8 + 1] = 2 << 16
                quads[frames // 8] = ready
                fence()
                if not words[watching]:
                    rung += 1
                    peer.write_posted(GATE, size, 0)
                spins = 0
                while words[state] != done:
                    spins += 1
                    if spins % 20_000 == 0:
                        time.sleep(0)
                        if spins == 20_000:
                            since = time.monotonic()
                        elif time.monotonic() - since > LOST:
                            sys.exit(f"call {calls} was lost: watching is {words[watching]}")
                if quads[frames // 8 + 4] != calls + 1:
                    sys.exit(f"call {calls} gave {quads[frames // 8 + 4]}")
                # From none to about as long as the watcher stays: so calls meet its going.
                for _ in range(calls % 97 * pause):
                    pass
        print(calls, rung)


if __name__ == "__main__":
    path, vector, frames, watching, pause, seconds = sys.argv[1:]
    main(path, int(vector), int(frames), int(watching), int(pause), float(seconds))
