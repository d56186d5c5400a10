# SPDX-License-Identifier: MIT
"""docs/matrix.md: what calls what, by which transport, everywhere; with what a call takes.

    python -m tests.matrix [--nested] [--write]

A cell is the median of a call `add(u64, u64) -> u64`, or says why it cannot be. What should be and
is not ends this with 1. `--nested` adds Linux on the backend kvm, in an emulated machine whose
processor virtualizes; `--inside MODULES` is what runs in there.
"""

import argparse
import datetime
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.qemu.module import build
from tests.qemu.module.device import Workbench
from tests.qemu.test_module import parameters
from tests.qemu.tools import python

from callgate import __version__
from callgate.backends.kvm import probe
from callgate.backends.qemu.find import find_qemu
from callgate.backends.qemu.guest import Guest
from callgate.backends.qemu.kernel import find_kernel
from callgate.bench.device import Bench
from callgate.linux_guest import LinuxGuest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "matrix.md"
TRANSPORTS = ("polled", "hypercall", "pio", "mmio")
ARCHITECTURES = ("x86_64", "aarch64", "riscv64")
C, SYSFS, CHARDEV, MODULE = (
    "program in C, by the mapped BAR",
    "Python, by sysfs",
    "Python, by /dev/callgateN",
    "kernel module",
)
PRIVILEGED = "privileged: a program cannot make hypercalls"
NO_PORTS = "a program has no I/O ports on this architecture"
QEMU_KEEPS = "QEMU answers hypercalls itself: the device offers none"
KVM_KEEPS = "KVM without CONFIG_KVM_XEN answers hypercalls itself: the device offers none"
NO_EDU = "this program measures itself beside QEMU's own device `edu`, which is not there"
TIMEOUT = 1200.0

Cells = dict[str, str]
"""By transport: a figure, or why there is none."""
Table = dict[tuple[str, str, str], Cells]
"""By driver, hypervisor, architecture."""

FIGURES = """
import sys, time
import callgate.driver
from callgate.gate.abi import Transport

kind = sys.argv[1]
with callgate.driver.open("bench") as device:
    for transport in Transport:
        if not device.transports & transport:
            continue
        device.transport = transport
        add, times = device.add, []
        for _ in range(60):
            began = time.perf_counter()
            for number in range(50):
                assert add(number, 2) == number + 2
            times.append((time.perf_counter() - began) / 50)
        print("figure", kind, transport.name.lower(), round(sorted(times)[30] * 1e9))
"""
SCRIPT = r"""
{C} PYTHONHOME=/usr python3 figures.py sysfs
insmod ./callgate.ko && insmod ./callgate_pci.ko || exit 1
PYTHONHOME=/usr python3 figures.py chardev
mount -t debugfs debugfs /sys/kernel/debug
insmod ./callgate_test.ko {parameters} || exit 1
for gate in /sys/class/callgate/*; do
    if [ "$(cat $gate/name)" = workbench ]; then break; fi
done
for way in $(cat $gate/transports); do
    echo $way > $gate/transport || continue
    set -- $(cat /sys/kernel/debug/callgate_test/bench | grep '^callgate_call ')
    echo figure module $way $2
done
"""


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nested", action="store_true")
    parser.add_argument("--write", action="store_true", help="write docs/matrix.md")
    parser.add_argument("--inside", type=Path, metavar="MODULES", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        print("cells", json.dumps(list(_linux_on_kvm(given.inside))))
        return 0
    table: Table = {}
    table.update(_bare())
    for arch in ARCHITECTURES:
        say(f"Linux for {arch} in QEMU ...")
        table.update(_linux_in_qemu(arch))
    if given.nested:
        say("Linux on kvm, in an emulated machine ...")
        table.update(_nested())
    page = _page(table, nested=given.nested)
    if given.write:
        PAGE.write_text(page, "utf-8")
    else:
        print(page)
    missing = [key for key, cells in table.items() if len(cells) < len(TRANSPORTS)]
    for driver, hypervisor, arch in missing:
        lacking = TRANSPORTS - table[driver, hypervisor, arch].keys()
        say(f"MISSING: {driver}, {hypervisor}, {arch}: {', '.join(sorted(lacking))}")
    return 1 if missing else 0


def say(text: str) -> None:
    """Tell who waits."""
    print(text, file=sys.stderr, flush=True)


# --- bare metal -----------------------------------------------------------------------------------


def _bare() -> Iterator[tuple[tuple[str, str, str], Cells]]:
    on = ["unicorn"] + ["kvm"] * (probe.lacks() is None)
    for backend in on:
        say(f"bare metal on {backend} ...")
        command = [sys.executable, "-m", "callgate", "bench", "--on", backend, "--json"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows = json.loads(done.stdout)["calls"]
        for arch in sorted({row["arch"] for row in rows}):
            cells: Cells = {}
            for row in rows:
                if row["arch"] == arch and row["transport"] in TRANSPORTS:
                    cells.setdefault(row["transport"], _microseconds(row["median"] * 1e3))
            if backend == "kvm":
                cells.setdefault("hypercall", KVM_KEEPS)
            yield ("bare metal", backend, arch), cells


def _microseconds(nanoseconds: float) -> str:
    value = nanoseconds / 1000
    return f"{value:.2f} us" if value < 10 else f"{value:.1f} us"


# --- Linux ----------------------------------------------------------------------------------------


def _linux_in_qemu(arch: str) -> Iterator[tuple[tuple[str, str, str], Cells]]:
    run = [sys.executable, str(ROOT / "guest" / "build.py"), "--linux", arch]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
    with (
        _files(arch, build.modules(arch)) as files,
        Guest(
            Bench(),
            Workbench(),
            arch=arch,
            program=SCRIPT.format(C="./bench calls 2000;", parameters=parameters()),
            files={**files, "bench": _bench(arch)},
            memory=512,
            cpus=2,
            extra=["-device", "edu,addr=0x8"],
            timeout=TIMEOUT,
        ) as guest,
    ):
        result = guest.run()
    if result.exit_code:
        say(result.output)
    yield from _cells(result.output, "QEMU (TCG)", arch, hypercalls=QEMU_KEEPS)


def _linux_on_kvm(modules: Path) -> Iterator[tuple[tuple[str, str, str], Cells]]:
    with (
        _files("x86_64", modules) as files,
        LinuxGuest(
            Bench(),
            Workbench(),
            on="kvm",
            program=SCRIPT.format(C="", parameters=parameters()),
            files=files,
            memory=512,
            cpus=2,
            timeout=TIMEOUT,
        ) as guest,
    ):
        result = guest.run()
    say(result.output)
    yield from _cells(result.output, "kvm (nested SVM)", "x86_64", hypercalls=None)


def _nested() -> Iterator[tuple[tuple[str, str, str], Cells]]:
    command = [str(ROOT / "tools" / "nested"), sys.executable, "-m", "tests.matrix", "--inside"]
    command.append(str(build.modules()))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, errors="replace")
    for line in done.stdout.splitlines():
        if line.startswith("cells "):
            for key, cells in json.loads(line.partition(" ")[2]):
                yield tuple(key), cells
            return
    raise RuntimeError(f"tools/nested must end well: {done.stdout}")


@contextmanager
def _files(arch: str, folder: Path) -> Iterator[dict[str, Path]]:
    """What a guest is given."""
    names = ("callgate", "callgate_pci", "callgate_test")
    with TemporaryDirectory(prefix="callgate-matrix-") as own:
        script = Path(own, "figures.py")
        script.write_text(FIGURES)
        modules = {f"{name}.ko": folder / f"{name}.ko" for name in names}
        yield {**python(arch), **modules, script.name: script}


def _bench(arch: str) -> Path:
    return ROOT / "build" / "guest" / arch / "linux" / "bench"


def _cells(
    output: str, hypervisor: str, arch: str, hypercalls: str | None
) -> Iterator[tuple[tuple[str, str, str], Cells]]:
    """What the guest's script printed. `hypercalls` is why there are none."""
    found: dict[str, Cells] = {C: {}, SYSFS: {}, CHARDEV: {}, MODULE: {}}
    kinds = {"sysfs": SYSFS, "chardev": CHARDEV, "module": MODULE}
    ways = {"call-watched": "polled", "call-doorbell-mmio": "mmio", "call-doorbell-pio": "pio"}
    for line in output.splitlines():
        words = line.split()
        if len(words) == 4 and words[0] == "figure" and words[3].isdigit():
            found[kinds[words[1]]][words[2]] = _microseconds(int(words[3]))
        elif len(words) == 4 and words[0] in ways:
            found[C][ways[words[0]]] = _microseconds(int(words[1]))
    for kind, cells in found.items():
        if kind == C and not cells:
            cells.update(dict.fromkeys(TRANSPORTS, NO_EDU))
        if kind in (C, SYSFS):
            cells.setdefault("hypercall", PRIVILEGED)
            if arch != "x86_64":
                cells.setdefault("pio", NO_PORTS)
        elif hypercalls is not None:
            cells.setdefault("hypercall", hypercalls)
        yield (kind, hypervisor, arch), cells


# --- the page -------------------------------------------------------------------------------------


def _page(table: Table, *, nested: bool) -> str:
    reasons: list[str] = []

    def cell(cells: Cells, transport: str) -> str:
        text = cells.get(transport, "**missing**")
        if text.endswith(" us"):
            return text
        if text not in reasons and transport in cells:
            reasons.append(text)
        return f"({reasons.index(text) + 1})" if transport in cells else text

    rows = [
        f"| {driver} | {hypervisor} | {arch} | "
        + " | ".join(cell(cells, transport) for transport in TRANSPORTS)
        + " |"
        for (driver, hypervisor, arch), cells in table.items()
    ]
    images = (find_kernel(arch).image.name for arch in ARCHITECTURES)
    kernels = ", ".join(image.partition("-")[2] for image in images)
    made = [
        f"callgate {__version__}",
        f"CPython {platform.python_version()}",
        _version_of_qemu(),
        f"Linux {kernels} in the guests",
    ]
    command = "make matrix" + (" NESTED=--nested" if nested else "")
    lines = [
        "# Who calls what, and how",
        "",
        f"Written by `{command}` on {datetime.date.today().isoformat()}: {', '.join(made)}.",
        "",
        "A cell is the median of a call `add(u64, u64) -> u64`, as its caller sees it, with the",
        "same driver source in all rows of a kind; or the reason why there is none. QEMU without",
        "KVM emulates the processor, so its figures say what works, not how fast hardware is.",
        "",
        "| driver | hypervisor | architecture | " + " | ".join(TRANSPORTS) + " |",
        "|---|---|---|" + "---:|" * len(TRANSPORTS),
        *rows,
        "",
        *(f"{number}. {reason}." for number, reason in enumerate(reasons, 1)),
    ]
    return "\n".join(lines) + "\n"


def _version_of_qemu() -> str:
    command = [str(find_qemu("x86_64")), "--version"]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return f"QEMU {said.split()[3]}"


if __name__ == "__main__":
    sys.exit(main())
