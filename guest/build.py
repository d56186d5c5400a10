#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Build the guest programs, for every architecture: without an operating system, and for Linux.

    python guest/build.py [--linux ARCHITECTURE]... [NAME...]     all, or the guests of these names

Sources are examples/*/guest.c with the device.py beside it, tests/guest/*.c with a device file of
the same name, and guest/bare/{agent,bench}.c; a guest is named after its folder (examples) or its
file. Results are build/guest/ARCHITECTURE/NAME.elf, and the C headers of their devices in
build/guest/include. What is newer than all it is made of is left alone.

With --linux the examples and guest/user/*.c are built for Linux' user space too, as static
programs: build/guest/ARCHITECTURE/linux/NAME. The first one takes a minute, since the compiler
builds its C library for it.

The compiler is the PyPI package ziglang: one clang and lld for all architectures.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GUEST = ROOT / "guest"
BARE = GUEST / "bare"
USER = GUEST / "user"
BUILD = ROOT / "build" / "guest"

FLAGS = (
    *("-std=c11", "-ffreestanding", "-nostdlib", "-static", "-O2", "-g0"),
    *("-Wall", "-Wextra", "-Werror"),
    *("-fno-pic", "-fno-sanitize=all", "-fno-stack-protector", "-fno-asynchronous-unwind-tables"),
    "-Wl,-z,max-page-size=4096",
)


@dataclass(frozen=True)
class Architecture:
    """How one architecture is built: zig's name of it, and what of guest/bare it shares."""

    name: str
    target: str
    flags: tuple[str, ...]
    shared: str

    @property
    def sources(self) -> list[Path]:
        """What of guest/bare each of its guests is linked with."""
        common = [BARE / name for name in ("bare.c", "environment.c", "stdio.c", "string.c")]
        own = [path for path in sorted((BARE / self.name).iterdir()) if path.suffix in {".S", ".c"}]
        shared = BARE / self.shared
        board = [path for path in sorted(shared.iterdir()) if path.suffix in {".S", ".c"}]
        return [*own, *common, *board]


USER_FLAGS = (
    *("-std=c11", "-static", "-O2", "-s", "-fno-sanitize=all"),
    *("-Wall", "-Wextra", "-Werror"),
)

# General registers only: nobody turned the floating-point unit on, and interrupt handlers save no
# more. No red zone: interrupts use the same stack. Aligned accesses: the MMU is off.
_X86_PLAIN = "-x87-mmx-sse-sse2+soft_float"
ARCHITECTURES = (
    Architecture("x86_64", "x86_64", (f"-mcpu=x86_64{_X86_PLAIN}", "-mno-red-zone"), "pc"),
    Architecture("i386", "x86", (f"-mcpu=i686{_X86_PLAIN}",), "pc"),
    Architecture("aarch64", "aarch64", ("-mcpu=generic-neon-fp_armv8+strict_align",), "virt"),
    Architecture(
        "riscv64",
        "riscv64",
        ("-mcpu=generic_rv64+m+a+c+zicsr", "-mabi=lp64", "-mcmodel=medany"),
        "virt",
    ),
)


@dataclass(frozen=True)
class Guest:
    """One program. `device` is the device file whose C header it includes, if there is one."""

    name: str
    source: Path
    device: Path | None = None
    user: bool = False
    """Whether it is a program for Linux."""

    @property
    def result(self) -> Path:
        """Where it is built, below the architecture's folder."""
        return Path("linux", self.name) if self.user else Path(f"{self.name}.elf")


class BuildError(Exception):
    """Something could not be built; the text says what and why."""


def guests() -> list[Guest]:
    """All guests of the repository."""
    found = [
        Guest("agent", BARE / "agent.c"),
        Guest("bench", BARE / "bench.c", ROOT / "src" / "callgate" / "bench" / "device.py"),
    ]
    for source in sorted(ROOT.glob("examples/*/guest.c")):
        device = existing(source.with_name("device.py"))
        found.append(Guest(source.parent.name, source, device))
        found.append(Guest(source.parent.name, source, device, user=True))
    bench = ROOT / "src" / "callgate" / "bench" / "device.py"
    found.append(Guest("bench", USER / "bench.c", bench, user=True))
    found.append(Guest("chardev", USER / "chardev.c", user=True))
    for source in sorted(ROOT.glob("tests/guest/*.c")):
        found.append(Guest(source.stem, source, existing(source.with_suffix(".py"))))
    return found


def existing(path: Path) -> Path | None:
    """`path`, if there is such a file."""
    return path if path.exists() else None


def is_current(result: Path, sources: list[Path]) -> bool:
    """Whether `result` is newer than each of `sources`."""
    if not result.exists():
        return False
    made = result.stat().st_mtime_ns
    return all(source.stat().st_mtime_ns < made for source in sources)


def common_sources() -> list[Path]:
    """What every guest is made of."""
    files = [path for path in GUEST.rglob("*") if path.suffix in {".c", ".h", ".S", ".ld"}]
    return [path for path in files if "linux" not in path.parts] + [Path(__file__)]


def write_header(device: Path) -> Path:
    """Write the C header of the device that a file defines; returns the header's path."""
    sys.path.insert(0, str(ROOT / "src"))
    from callgate.errors import CallgateError
    from callgate.generate import header
    from callgate.load import load_device_class

    try:
        device_class = load_device_class(device)
        text = header(device_class)
    except CallgateError as error:
        raise BuildError(f"{shown(device)} gave no C header: {error}") from error
    result = BUILD / "include" / f"{device_class.spec.name}.h"
    if not result.exists() or result.read_text("utf-8") != text:
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text(text, "utf-8")
        print(shown(result))
    return result


def compile_guest(architecture: Architecture, guest: Guest, result: Path) -> None:
    """Compile and link one guest."""
    result.parent.mkdir(parents=True, exist_ok=True)
    unfinished = result.with_suffix(f".{os.getpid()}.part")
    command = [
        *(sys.executable, "-m", "ziglang", "cc"),
        *(user_options(architecture) if guest.user else bare_options(architecture)),
        *(f"-I{path}" for path in (GUEST / "include", BUILD / "include")),
        str(guest.source),
        *("-o", str(unfinished)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        unfinished.unlink(missing_ok=True)
        raise BuildError(f"{shown(result)} was not built:\n{done.stderr.strip()}")
    unfinished.replace(result)


def bare_options(architecture: Architecture) -> list[str]:
    """Compiler options, and what is linked in, without an operating system."""
    own = BARE / architecture.name
    return [
        *("-target", f"{architecture.target}-freestanding-none"),
        *architecture.flags,
        *FLAGS,
        f"-I{BARE / 'include'}",
        *("-iquote", str(own), "-iquote", str(BARE)),
        f"-Wl,-T,{own / 'link.ld'}",
        *(str(path) for path in architecture.sources),
    ]


def user_options(architecture: Architecture) -> list[str]:
    """The same for a static program on Linux."""
    target = f"{architecture.target}-linux-musl"
    uapi = GUEST / "linux" / "include" / "uapi"
    return ["-target", target, *USER_FLAGS, f"-I{uapi}", str(USER / "environment.c")]


def shown(path: Path) -> str:
    """A path as one reads it in the repository."""
    return (path.relative_to(ROOT) if path.is_relative_to(ROOT) else path).as_posix()


def build(names: list[str], linux: list[str]) -> None:
    """Build what is not current; for Linux too on the architectures that `linux` names.

    Raises BuildError after all that could be built was built.
    """
    known = guests()
    for name in names:
        if name not in {guest.name for guest in known}:
            listed = ", ".join(guest.name for guest in known)
            raise BuildError(f"The guest must be one of {listed}, not {name}.")
    if importlib.util.find_spec("ziglang") is None:
        raise BuildError('ziglang must be installed: pip install "callgate[guest]"')
    common = common_sources()
    errors: list[str] = []

    def one(architecture: Architecture, guest: Guest, sources: list[Path]) -> None:
        result = BUILD / architecture.name / guest.result
        try:
            if not is_current(result, sources):
                compile_guest(architecture, guest, result)
                print(shown(result))
        except BuildError as error:
            errors.append(str(error))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for guest in known:
            if names and guest.name not in names:
                continue
            sources = [*common, guest.source]
            if guest.device is not None:
                sources.append(write_header(guest.device))
            for architecture in ARCHITECTURES:
                if not guest.user or architecture.name in linux:
                    pool.submit(one, architecture, guest, sources)
    if errors:
        raise BuildError("\n\n".join(errors))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="a guest; all, if none is named")
    parser.add_argument(
        "--linux",
        action="append",
        default=[],
        metavar="ARCHITECTURE",
        choices=[each.name for each in ARCHITECTURES],
        help="build for Linux on this architecture too",
    )
    given = parser.parse_args()
    try:
        build(given.names, given.linux)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
