# SPDX-License-Identifier: MIT
"""Watching frames: calls without a doorbell (docs/abi.md, 6.4).

While calls come, a thread looks at the frames' states and says so in the header's `watching`. After
`linger` seconds without a call it stores 0, looks once more, and sleeps until a doorbell rings.

No call is lost in between. The driver stores READY, then (past a full barrier) loads `watching`.
The watcher stores `watching = 0`, then loads the states. If the driver still saw 1, its load came
before the watcher's store, so its READY came before the watcher's last look, which finds it. The
fence parts the watcher's store and load, since processors let a load overtake an earlier store.

An emulator of one processor may leave out the driver's barrier (unicorn does). Then the driver's
load can overtake its store, by as long as a store waits for its cache line. So the watcher looks
once more after a while that is far longer.
"""

from __future__ import annotations

import threading
import time

from callgate.gate.abi import FrameState
from callgate.gate.fence import fence
from callgate.gate.gate import Gate

LINGER = 0.005
_SETTLE = 0.001
"""Seconds after which a store that another thread made can be seen, barrier or not."""
_READY = int(FrameState.READY)
_IDLE_LOOKS = 16


class Watcher:
    """Watches the frames of gates that have the feature `polled` in force, in a thread of its own.

    A `with` block, or `close`, ends the thread. The first doorbell wakes it: a driver that never
    calls costs nothing.
    """

    def __init__(self, gates: list[Gate], *, linger: float = LINGER) -> None:
        self.gates = gates
        self.linger = linger
        self._wake = threading.Event()
        self._closed = False
        self._states = [
            gate.ram.cast("I")[
                gate.frames_offset // 4 : gate.frames_offset // 4
                + gate.frame_count * gate.frame_size // 4 : gate.frame_size // 4
            ]
            for gate in gates
        ]
        for gate in gates:
            gate.watched_by(self._wake.set)
        self._thread = threading.Thread(target=self._run, name="callgate watcher", daemon=True)
        self._thread.start()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching; every call that came while `watching` said 1 has been answered."""
        self._closed = True
        self._wake.set()
        self._thread.join()
        for gate in self.gates:
            gate.watched_by(None)

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait()
            self._wake.clear()
            if self._closed:
                break
            self._watch()
            for gate in self.gates:
                gate.say_watching(False)
            fence()
            self._look()
            time.sleep(_SETTLE)
            self._look()

    def _watch(self) -> None:
        last = time.monotonic()
        idle = 0
        self._announce()
        while not self._closed:
            if self._wake.is_set():  # Perhaps by a driver that accepted `polled` just now.
                self._wake.clear()
                self._announce()
            if self._look():
                last = time.monotonic()
                idle = 0
                continue
            idle += 1
            if idle % _IDLE_LOOKS == 0:
                if time.monotonic() - last > self.linger:
                    return
                time.sleep(0)  # Hand the interpreter to whoever else runs a model.

    def _look(self) -> bool:
        """Answer every frame that is READY; whether there was one."""
        found = False
        for gate, states in zip(self.gates, self._states, strict=True):
            words = states.tolist()
            if _READY in words:
                found = True
                for index, state in enumerate(words):
                    if state == _READY:
                        self._ring(gate, index)
        return found

    def _ring(self, gate: Gate, index: int) -> None:
        try:
            gate.ring(index, from_watcher=True)
        except BaseException as error:
            # `sys.exit` in a handler, say: it must not end the thread on which drivers count.
            gate.device.bugs.report(f"{gate.device}, watched", error)

    def _announce(self) -> None:
        for gate in self.gates:
            if gate.polled:
                gate.say_watching(True)
