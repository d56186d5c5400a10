# SPDX-License-Identifier: MIT
"""Watching frames that another process fills: no call is lost when the watcher goes to sleep.

`make stress` runs the same for as long as it takes to switch CALLGATE_SWITCHES times.
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from tests.vfio_user.rig import GATE, Rig, until

from callgate.backends.vfio_user import server as servers
from callgate.gate.abi import HEADER, Feature, FrameState
from callgate.gate.gate import Gate
from callgate.gate.watcher import Watcher

ROOT = Path(__file__).resolve().parents[2]
SWITCHES = int(os.environ.get("CALLGATE_SWITCHES", "0"))
"""How often the watcher must have gone to sleep, over all turns; 0: as often as it does in 4 s."""
SECONDS = 2.0
WATCHING = HEADER.offset("watching")


def gate_of(rig: Rig) -> Gate:
    gate = rig.server.function.gate
    assert gate is not None
    return gate


def vector_of(rig: Rig) -> int:
    binding = gate_of(rig).binding("add")
    assert binding is not None
    return binding.vector


def post(rig: Rig, index: int = 0) -> int:
    """Fill a frame, and set it READY; returns the place of its state."""
    gate = gate_of(rig)
    words = gate.ram.cast("I")
    at = (gate.frames_offset + index * gate.frame_size) // 4
    words[at + 2] = 2 << 16
    words[at + 1] = vector_of(rig)
    words[at] = FrameState.READY
    return at


def is_done(words: memoryview, at: int) -> bool:
    return int(words[at]) == FrameState.DONE


def test_the_first_doorbell_wakes_it_and_then_none_is_needed(tmp_path: Path) -> None:
    with Rig(tmp_path, linger=30) as rig, rig.connect() as peer:
        gate = gate_of(rig)
        words = gate.ram.cast("I")
        peer.write(GATE, gate.ram_size + 0x0C, int(Feature.POLLED))
        at = post(rig)
        peer.write_posted(GATE, gate.ram_size, 0)
        until(lambda: words[at] == FrameState.DONE)
        until(lambda: gate.ram[WATCHING])
        for index in range(4):
            at = post(rig, index)
            until(partial(is_done, words, at))


def test_it_stops_after_a_while(tmp_path: Path) -> None:
    with Rig(tmp_path, linger=0.001) as rig, rig.connect() as peer:
        gate = gate_of(rig)
        peer.write(GATE, gate.ram_size + 0x0C, int(Feature.POLLED))
        post(rig)
        peer.write(GATE, gate.ram_size, 0)
        until(lambda: not gate.ram[WATCHING])


def test_a_client_that_goes_is_watched_no_more(tmp_path: Path) -> None:
    with Rig(tmp_path, linger=0.05) as rig:
        gate = gate_of(rig)
        peer = rig.connect()
        peer.write(GATE, gate.ram_size + 0x0C, int(Feature.POLLED))
        post(rig)
        peer.write(GATE, gate.ram_size, 0)
        until(lambda: gate.ram[WATCHING])
        rig.leave(peer)
        until(lambda: not gate.ram[WATCHING])
        with rig.connect() as other:  # Who has not accepted `polled` is not promised anything.
            post(rig)
            other.write(GATE, gate.ram_size, 0)
            assert not gate.polled
            assert not gate.ram[WATCHING]


def drive(rig: Rig, pause: int, seconds: float) -> tuple[int, int]:
    """Let another process call for a while; how many calls it made, and how often it rang."""
    gate = gate_of(rig)
    numbers = vector_of(rig), gate.frames_offset, WATCHING, pause, seconds
    ran = subprocess.run(
        [sys.executable, "-m", "tests.vfio_user.driver", str(rig.path), *map(str, numbers)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ran.returncode == 0, ran.stderr
    calls, rung = map(int, ran.stdout.split())
    return calls, rung


@pytest.mark.uncovered
@pytest.mark.timeout(0 if SWITCHES else 120)
@pytest.mark.parametrize(("linger", "pause"), [(0.0, 40), (5e-5, 150)])
def test_no_wake_up_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linger: float, pause: int
) -> None:
    """The driver calls, often just when the watcher goes. Without the later look that it takes for
    drivers that have no barrier, so that nothing but the order of stores and loads answers them."""
    monkeypatch.setattr(servers, "Watcher", partial(Watcher, settle=0))
    switches = 0
    say = Gate.say_watching

    def counted(gate: Gate, watching: bool) -> None:
        nonlocal switches
        switches += not watching
        say(gate, watching)

    monkeypatch.setattr(Gate, "say_watching", counted)
    calls = rung = 0
    with Rig(tmp_path, linger=linger) as rig:
        while True:
            more = drive(rig, pause, 60.0 if SWITCHES else SECONDS)
            assert rig.went.acquire(timeout=20)
            calls, rung = calls + more[0], rung + more[1]
            if switches >= SWITCHES // 2:
                break
    assert rung > 20
    assert calls > rung  # Some were answered without a doorbell: they met a watcher.
    assert switches > 20
    print(f"linger {linger:g} s: {calls} calls, {rung} doorbells, {switches} switches")
