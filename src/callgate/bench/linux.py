# SPDX-License-Identifier: MIT
"""What a call costs a Linux driver: callgate.ko's own, through /dev/callgateN, on all processors.

One guest, one after the other, so that ratios are of one run:

    program, frames mapped            bench calls, bench cpus: no driver, no kernel
    kernel, callgate_call()           guest/linux/bench
    program, /dev/callgateN           chardev: one ioctl for a call
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

from callgate.backends.qemu.guest import Guest
from callgate.bench.device import Bench
from callgate.bench.qemu import SLOTS, TIMEOUT, figures_of, find_program, middle
from callgate.bench.report import Check
from callgate.errors import BenchError

CPUS = 4
MODULES = ("callgate", "callgate_bench")
MODULE_TARGET = 1.5
"""What a driver's call may take, to the same call of a program that has the frames mapped."""
SHARE_TARGET = 0.8
"""What drivers on all processors get of the calls that the device answers, at the least."""
LONG = 50_000
"""How many calls each processor makes when all do, as the module's `BENCH_LONG`."""
SHARES = 5
"""How often all processors call, with drivers and without, in turns."""
SCRIPT = """
./bench calls {calls} || exit
insmod ./callgate.ko && insmod ./callgate_bench.ko || exit
mount -t debugfs debugfs /sys/kernel/debug
at=/sys/kernel/debug/callgate_bench
cat $at/call && ./chardev /dev/callgate0 {calls} || exit
for round in $(seq {shares}); do
    cat $at/cpus || exit
    rmmod callgate_bench && ./bench cpus {long} && insmod ./callgate_bench.ko || exit
done
"""


def linux_checks(modules: Path, calls: int) -> list[Check]:
    """Measure, with the modules of a folder. Raises BenchError, BackendError and GuestError."""
    files = {name: find_program(name) for name in ("bench", "chardev")}
    for name in MODULES:
        file = files[f"{name}.ko"] = modules / f"{name}.ko"
        if not file.is_file():
            raise BenchError(f"{file} must be there: build it with `make module`")
    with Guest(
        Bench(),
        arch="x86_64",
        program=SCRIPT.format(calls=min(calls, 5000), long=LONG, shares=SHARES),
        files=files,
        cpus=CPUS,
        extra=["-device", f"edu,addr={SLOTS:#x}"],
        timeout=TIMEOUT,
    ) as guest:
        result = guest.run()
    if result.exit_code:
        raise BenchError(
            f"The bench's guest must end with 0, not {result.exit_code}: {result.output}"
        )
    return checks_of(result.output)


def checks_of(output: str) -> list[Check]:
    """What the guest's lines say."""
    figures, _ = figures_of(output)
    program, module, chardev, none = (
        middle(figures, name)
        for name in ("call-watched", "module-call", "chardev-call", "chardev-none")
    )
    drivers, programs = (_middle(output, f"{name}-cpus-{CPUS}") for name in ("module", "frames"))
    return [
        Check("qemu: a watched call of a driver, by callgate.ko", module, "us"),
        Check("qemu: that to a program's, by mapped frames", module / program, "x", MODULE_TARGET),
        Check("qemu: a watched call through /dev/callgateN", chardev, "us"),
        Check("qemu: its more than a driver's, in system calls", (chardev - module) / none, "x"),
        Check(f"qemu: calls of drivers on {CPUS} processors", drivers, "/s"),
        Check("qemu: programs' calls there to drivers'", programs / drivers, "x", 1 / SHARE_TARGET),
    ]


def _middle(output: str, name: str) -> float:
    """The median of the rounds' rates."""
    lines = map(str.split, output.splitlines())
    return median(float(words[1]) for words in lines if words[:1] == [name])
