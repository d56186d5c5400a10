#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Build callgate's kernel modules and the examples' drivers, for the kernels that tests boot.

    python guest/linux/build.py [--arch ARCH] [--newer] [--make WORD]... [--kdir]

ARCH is x86_64 (if none is named), aarch64 or riscv64; the newer kernel is for x86_64.
tools/get-headers brings what it takes, but for the compiler where that is this machine's own.
Results are build/linux/RELEASE/*.ko; the sources are copied there first, so that nothing is written
beside them. What is newer than all it is made of is left alone. Each WORD goes to make: W=1, C=2.

With --kdir nothing is built: it prints the folder of the headers, the KDIR of who builds a driver
by `make -C KDIR M=$PWD`.

With the variable CALLGATE_KDIR, the folder in which a kernel was built, it is for that kernel. For
the kernel that runs, and for others whose headers are installed: make -C guest/linux.
"""

import argparse
import fcntl
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "guest" / "linux"
BUILD = ROOT / "build" / "linux"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "callgate"
ARCHITECTURES = ("x86_64", "aarch64", "riscv64")
NEWER_ARCH = "x86_64"
_INSIDE = "/callgate"
"""Where sources lie in a root directory of its own."""


class BuildError(Exception):
    """Something could not be built; the text says what and why."""


class MissingError(BuildError):
    """What it takes is not there; the text says how to bring it."""


@dataclass(frozen=True)
class Headers:
    """A kernel's headers. With `root`, a directory in which make and the compiler run. `words` are
    for make."""

    release: str
    folder: Path
    root: Path | None = None
    words: tuple[str, ...] = ()

    @property
    def build(self) -> Path:
        """Where modules for this kernel are built."""
        return BUILD / self.release


def find_headers(arch: str = "x86_64", *, newer: bool = False) -> Headers:
    """What tools/get-headers brought, or what CALLGATE_KDIR names. Raises MissingError."""
    if own := os.environ.get("CALLGATE_KDIR"):
        kernel = Path(own)
        said = kernel / "include" / "config" / "kernel.release"
        if not said.exists():
            raise MissingError(f"CALLGATE_KDIR must name a folder with a kernel, not {kernel}")
        if arch != platform.machine():
            raise MissingError(f"CALLGATE_KDIR names a kernel for this machine, not for {arch}")
        return Headers(said.read_text().strip(), kernel)
    if newer:
        root = CACHE / "newer" / NEWER_ARCH
        images = sorted((root / "boot").glob("vmlinuz-*"))
        if not images or not (root / ".done").exists():
            raise MissingError("A newer kernel must be there: tools/get-headers --newer")
        release = images[-1].name.partition("-")[2]
        return Headers(release, Path("/usr/src", f"linux-headers-{release}"), root)
    images = sorted((CACHE / "linux" / arch / "boot").glob("vmlinu[xz]-*"))
    if not images:
        raise MissingError(f"A kernel for {arch} must be there: tools/get-qemu --guest {arch}")
    release = images[-1].name.partition("-")[2]
    folder = CACHE / "headers" / release
    if not (folder / ".done").exists():
        raise MissingError(
            f"The headers of kernel {release} must be there: tools/get-headers --guest {arch}"
        )
    native = arch == platform.machine()
    words = () if native else (f"CROSS_COMPILE={arch}-linux-gnu-",)
    source = Path("usr", "src", f"linux-headers-{release}")
    if (folder / "usr" / "bin" / "make").exists():
        return Headers(release, Path("/") / source, folder, words)
    if not native and not shutil.which(f"{arch}-linux-gnu-gcc"):
        package = f"gcc-{arch.replace('_', '-')}-linux-gnu"
        raise MissingError(f"A compiler for {arch} must be there: apt-get install {package}")
    return Headers(release, folder / source, words=words)


def find_kdir(arch: str = "x86_64", *, newer: bool = False) -> Path:
    """The folder for make's -C. Raises MissingError, also where it takes a root directory."""
    headers = find_headers(arch, newer=newer)
    if headers.root is not None:
        raise MissingError(
            f"The headers of kernel {headers.release} must be used inside {headers.root}, with its "
            f"own compiler: chroot there, then make -C {headers.folder}"
        )
    return headers.folder


def sources() -> dict[Path, Path]:
    """Each source file by its place in the build folder: the modules', then the drivers'."""
    names = ("Kbuild", "*.c", "*.h", "include/**/*.h")
    found = {file.relative_to(SOURCE): file for name in names for file in sorted(SOURCE.glob(name))}
    for folder in drivers():
        for file in (folder / "Kbuild", *folder.glob("driver.c"), *folder.glob("kernel.c")):
            found[Path(folder.name, file.name)] = file
    return found


def drivers() -> list[Path]:
    """Folders of modules that use ours."""
    examples = [kbuild.parent for kbuild in sorted(ROOT.glob("examples/*/Kbuild"))]
    return [*examples, SOURCE / "bench", ROOT / "tests" / "qemu" / "module"]


def build(arch: str = "x86_64", *, newer: bool = False, words: tuple[str, ...] = ()) -> Path:
    """Build what is not current; returns the folder with the modules. Raises BuildError."""
    headers = find_headers(arch, newer=newer)
    folder = headers.build
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / ".lock"):
        files = sources()
        stamp = folder / ".done"
        if not words and _is_current(stamp, [*files.values(), Path(__file__)]):
            return folder
        stamp.unlink(missing_ok=True)
        work = folder / "source"
        shutil.rmtree(work, ignore_errors=True)
        for place, file in files.items():
            (work / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, work / place)
        _make(headers, work, words)
        for module in [*work.glob("*.ko"), *work.glob("*/*.ko")]:
            shutil.copy(module, folder / module.name)
        stamp.touch()
    return folder


def _make(headers: Headers, work: Path, words: tuple[str, ...]) -> None:
    place = work if headers.root is None else Path(_INSIDE)
    if headers.root is not None:
        inside = headers.root / _INSIDE[1:]
        shutil.rmtree(inside, ignore_errors=True)
        shutil.copytree(work, inside)
    command = ["make", "-C", str(headers.folder), f"-j{os.cpu_count()}", *headers.words, *words]
    if "CALLGATE_KDIR" in os.environ:
        # A kernel of which modules were never built has no list of its symbols.
        command.append("KBUILD_MODPOST_WARN=1")
    _run(headers, [*command, f"M={place}", "modules"])
    for driver in [folder.name for folder in drivers()]:
        # As somebody would who has only the module's headers and its list of symbols.
        symbols = f"KBUILD_EXTRA_SYMBOLS={place}/Module.symvers"
        include = f"CALLGATE_INCLUDE={place}/include"
        _run(headers, [*command, f"M={place / driver}", symbols, include, "modules"])
    if headers.root is not None:
        inside = headers.root / _INSIDE[1:]
        shutil.rmtree(work)
        shutil.move(inside, work)


def _run(headers: Headers, command: list[str]) -> None:
    if headers.root is not None:
        command = _in_root(headers.root, command)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if "BTF generation" not in line]
    if done.returncode:
        raise BuildError("\n".join([f"{' '.join(command)} failed:", *said]))
    if said and "CALLGATE_KDIR" not in os.environ:
        # A warning is an error.
        raise BuildError("\n".join(["The modules must be built without a warning:", *said]))


def _in_root(root: Path, command: list[str]) -> list[str]:
    """A command, to be run in a root directory of its own, with this machine's /dev and /proc."""
    own = [] if os.geteuid() == 0 else ["--map-root-user"]
    script = 'for each in dev proc; do mount --rbind "/$each" "$0/$each" || exit; done; exec "$@"'
    chroot = ["chroot", str(root), "/usr/bin/env", "-i", "PATH=/usr/bin", *command]
    return ["unshare", *own, "--mount", "sh", "-c", script, str(root), *chroot]


def _is_current(stamp: Path, files: list[Path]) -> bool:
    if not stamp.exists():
        return False
    made = stamp.stat().st_mtime_ns
    return all(file.stat().st_mtime_ns < made for file in files)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", choices=ARCHITECTURES, default="x86_64", metavar="ARCH")
    parser.add_argument("--newer", action="store_true", help="for the newer kernel")
    parser.add_argument("--make", action="append", default=[], metavar="WORD", help="for make")
    parser.add_argument("--kdir", action="store_true", help="print the headers' folder only")
    given = parser.parse_args()
    if given.newer and given.arch != NEWER_ARCH:
        parser.error(f"the newer kernel is for {NEWER_ARCH}, not for {given.arch}")
    try:
        if given.kdir:
            print(find_kdir(given.arch, newer=given.newer))
            return 0
        folder = build(given.arch, newer=given.newer, words=tuple(given.make))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, MissingError) else 1
    print(folder.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
