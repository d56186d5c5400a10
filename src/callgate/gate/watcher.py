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

from callgate.device import PATIENCE
from callgate.gate.fence import fence
from callgate.gate.gate import Gate
from callgate.threads import join

LINGER = 0.005
_SETTLE = 0.001
"""Seconds after which a store that another thread made can be seen, barrier or not."""
_IDLE_LOOKS = 4
_LOOKS = 512
"""At frames, before other threads' turn comes."""


class Watcher:
    """Watches a gate's frames while the feature `polled` is in force, in a thread of its own, so
    that a slow call holds up no other device.

    A `with` block, or `close`, ends the thread. The first doorbell wakes it: a driver that never
    calls costs nothing.
    """

    def __init__(self, gate: Gate, *, linger: float = LINGER, settle: float | None = None) -> None:
        self.gate = gate
        self.linger = linger
        self.settle = _SETTLE if settle is None else settle
        """Seconds until the look for drivers without a barrier; 0, and there is none."""
        self._wake = threading.Event()
        self._closed = False
        self._rounds = max(1, _LOOKS // gate.frame_count)
        gate.watched_by(self._wake.set)
        self._thread = threading.Thread(
            target=self._run, name=f"callgate watcher of {gate.device}", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching; every call that came while `watching` said 1 has been answered.

        A call that does not end is ended, or left behind.
        """
        self._closed = True
        self._wake.set()
        join(self._thread, 2 * PATIENCE)
        self.gate.watched_by(None)

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait()
            self._wake.clear()
            if self._closed:
                break
            self._watch()
            self.gate.say_watching(False)
            fence()
            self._look_last()
            if self.settle:
                time.sleep(self.settle)
                self._look_last()

    def _watch(self) -> None:
        last = time.monotonic()
        idle = 0
        self._announce()
        while not self._closed:
            if self._wake.is_set():  # Perhaps by a driver that accepted `polled` just now.
                self._wake.clear()
                self._announce()
            if self._look(self._rounds):
                last = time.monotonic()
                idle = 0
                continue
            idle += 1
            if idle % _IDLE_LOOKS == 0:
                if time.monotonic() - last > self.linger:
                    return
                time.sleep(0)  # Hand the interpreter to whoever else runs a model.

    def _look(self, rounds: int) -> bool:
        """Look so often; whether there was a call."""
        try:
            return self.gate.watch(rounds)
        except BaseException as error:
            self._report(error)
            return True

    def _look_last(self) -> None:
        """Answer every frame that is READY now."""
        for _ in range(self.gate.frame_count):  # A call that raises cuts a look short.
            try:
                self.gate.watch(1)
                return
            except BaseException as error:
                self._report(error)

    def _report(self, error: BaseException) -> None:
        # `sys.exit` in a handler, say: it must not end the thread on which drivers count.
        self.gate.device.bugs.report(f"{self.gate.device}, watched", error)

    def _announce(self) -> None:
        if self.gate.polled:
            self.gate.say_watching(True)
