# SPDX-License-Identifier: MIT
"""What a guest in a stock QEMU sees: our calls and registers beside QEMU's own devices.

All is measured by guest/user/bench.c in Linux' user space, in one run: QEMU's C `edu` in the same
machine is the yardstick for calls, QEMU's own virtio-blk-pci on the same file the one for disks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import NamedTemporaryFile
from typing import TypeAlias

from callgate.backends.qemu.guest import Guest
from callgate.bench.device import Bench
from callgate.bench.report import Check, Row
from callgate.device import Device
from callgate.errors import BenchError

SLOTS = 8
"""First slot of QEMU's own devices, behind ours."""
DISK = 256 << 20
ROUNDS = 5
"""How often the two disks are measured, in turns."""
TIMEOUT = 300.0
BOOT_TARGET = 5.0
EXIT_TARGET = 1.0
WATCHED_TARGET = 4.0
TAIL_TARGET = 10.0
DOORBELL_TARGET = 1.2
DISKS = (
    ("random-read", "random reads of 4 KiB, 32 at once", 0.3),
    ("sequential-read", "sequential reads of 1 MiB, one at once", 0.6),
)
"""What the guest calls it, what it is, and the least that is wanted of QEMU's own throughput."""


def qemu_rows(calls: int, disk: type[Device] | None) -> tuple[list[Row], list[Check]]:
    """Measure. `disk` is our disk's class, made with the path of a file; None: leave disks out.

    Raises BenchError, BackendError and GuestError.
    """
    program = find_program("bench")
    with _file() as file:
        devices: list[Device] = [Bench()]
        extra = ["-device", f"edu,addr={SLOTS:#x}"]
        line = f"./bench calls {min(calls, 5000)}"
        if disk is not None:
            devices.append(disk(file))
            # With its defaults: like ours, it reads and writes through the host's page cache.
            extra += ["-drive", f"file={file},if=none,id=theirs,format=raw"]
            extra += ["-device", f"virtio-blk-pci,drive=theirs,addr={SLOTS + 1:#x}"]
            line += f" && {_disks(calls)}"
        with Guest(
            *devices,
            arch="x86_64",
            program=f"echo up; {line}",
            modules=["virtio_blk", "virtio_pci"] if disk is not None else [],
            files={"bench": program},
            cpus=1,
            extra=extra,
            timeout=TIMEOUT,
        ) as guest:
            began = time.monotonic()
            guest.start()
            guest.wait_for("up\r\n", TIMEOUT)
            boot = time.monotonic() - began
            result = guest.run()
            left = time.monotonic() - guest.exited
    if result.exit_code:
        raise BenchError(
            f"The bench's guest must end with 0, not {result.exit_code}: {result.output}"
        )
    figures, disks = figures_of(result.output)
    rows, checks = _report(figures, boot, left)
    return rows, checks + _compare(disks)


def _disks(calls: int) -> str:
    """Shell that measures both disks in turns: ours is the one in slot 2."""
    return (
        f"for round in $(seq {ROUNDS}); do for d in /sys/block/vd*; do "
        "case $(readlink -f $d/device/..) in *:00:02.0*) name=ours;; *) name=theirs;; esac; "
        f"./bench disk $name /dev/${{d##*/}} {min(max(calls, 1000), 4000)} || exit 1; done; done"
    )


Figures: TypeAlias = dict[str, list[tuple[float, float]]]
"""By name: median and p99 in microseconds, of each round."""


def figures_of(output: str) -> tuple[Figures, dict[str, list[float]]]:
    """What the guest's lines say; for disks bytes per second, of each round."""
    found: Figures = {}
    disks: dict[str, list[float]] = {}
    for line in output.splitlines():
        words = line.split()
        if len(words) != 4 or not words[1].isdigit():
            continue
        if words[0].startswith(("ours-", "theirs-")):
            disks.setdefault(words[0], []).append(float(words[1]))
        else:
            found.setdefault(words[0], []).append((float(words[1]) / 1e3, float(words[2]) / 1e3))
    return found, disks


def middle(figures: Figures, name: str, column: int = 0) -> float:
    """The median of the rounds' medians, or p99s."""
    return median(figure[column] for figure in figures[name])


def _report(figures: Figures, boot: float, left: float) -> tuple[list[Row], list[Check]]:
    """Rows for calls, each beside its yardstick; checks for the rest.

    Watched calls and reads of edu take turns, and of the rounds' ratios the median counts: the
    machine's own speed changes meanwhile.
    """
    edu, ours = middle(figures, "edu-read"), middle(figures, "register-read")
    turns = list(zip(figures["call-watched"], figures["edu-read"], strict=True))
    rows = []
    for name, transport, instruction, bare, target in (
        ("call-watched", "polled", "", edu, WATCHED_TARGET),
        ("call-doorbell-mmio", "mmio", "store", ours, DOORBELL_TARGET),
        ("call-doorbell-pio", "pio", "out", ours, DOORBELL_TARGET),
        ("register-read", "read", "load", edu, None),
        ("register-write", "write", "store", edu, None),
    ):
        if name not in figures:
            continue
        whole = middle(figures, name)
        ratio = whole / bare
        if name == "call-watched":
            ratio = median(call[0] / read[0] for call, read in turns)
        rows.append(
            Row(
                backend="qemu",
                arch="x86_64",
                platform="native",
                transport=transport,
                instruction=instruction,
                median=whole,
                p99=middle(figures, name, 1),
                per_second=1e6 / whole if whole else 0.0,
                bare=bare,
                ratio=ratio,
                target=target,
            )
        )
    checks = [
        Check("qemu: read of QEMU's own edu", edu, "us"),
        Check(
            "qemu: p99 of a watched call, in reads of edu",
            median(call[1] / read[0] for call, read in turns),
            "x",
            TAIL_TARGET,
        ),
        Check("qemu: start of QEMU to the program's first line", boot, "s", BOOT_TARGET),
        Check("qemu: the program's end to the shell", left, "s", EXIT_TARGET),
    ]
    return rows, checks


def _compare(disks: dict[str, list[float]]) -> list[Check]:
    """Each round is a pair; of the pairs' ratios, the median counts."""
    checks = []
    for name, what, least in DISKS if disks else ():
        ours, theirs = disks[f"ours-{name}"], disks[f"theirs-{name}"]
        ratio = median(their / our for our, their in zip(ours, theirs, strict=True))
        checks += [
            Check(f"qemu: virtio_blk, {what}", median(ours) / 1e6, "MB/s"),
            Check(f"qemu: QEMU's own virtio-blk-pci, {what}", median(theirs) / 1e6, "MB/s"),
            Check(f"qemu: QEMU's own to virtio_blk, {what}", ratio, "x", 1 / least),
        ]
    return checks


@contextmanager
def _file() -> Iterator[Path]:
    """A file of random bytes, so that no file system leaves holes in it."""
    with NamedTemporaryFile(prefix="callgate-", suffix=".img") as file:
        with open("/dev/urandom", "rb") as source:
            for _ in range(DISK >> 20):
                file.write(source.read(1 << 20))
        file.flush()
        yield Path(file.name)


def find_program(name: str) -> Path:
    """A program of guest/user, for x86_64. Raises BenchError where it was not built."""
    here = Path.cwd()
    for above in (here, *here.parents):
        path = above / "build" / "guest" / "x86_64" / "linux" / name
        if path.is_file():
            return path
    raise BenchError(
        f"build/guest/x86_64/linux/{name} must be there: build it with "
        f"`python guest/build.py --linux x86_64 {name}`"
    )
