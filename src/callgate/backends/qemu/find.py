# SPDX-License-Identifier: MIT
"""Finding a QEMU that knows vfio-user, and what tools/get-qemu brought."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from callgate.errors import BackendError

ARCHITECTURES = ("x86_64", "i386", "aarch64", "riscv64")
VARIABLE = "CALLGATE_QEMU"
OLDEST = (10, 1)
_SYSTEM = {"i386": "x86_64"}
_REMEDY = (
    f"install QEMU {OLDEST[0]}.{OLDEST[1]} or later, or run tools/get-qemu, or name one by --qemu "
    f"or {VARIABLE}"
)


def cache_folder() -> Path:
    """Where tools/get-qemu puts what it brings."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "callgate"


def find_qemu(arch: str, given: Path | str | None = None) -> Path:
    """The QEMU for guests of this architecture: 10.1 or later, with the device vfio-user-pci.

    The first of: `given`; the environment variable CALLGATE_QEMU (a file, or a folder with QEMU's
    programs); PATH; the project's cache. One that was named must fit; on PATH and in the cache
    those that do not fit are passed over. Raises BackendError, which says what is missing.
    """
    if arch not in ARCHITECTURES:
        raise BackendError(
            f"The architecture on qemu must be one of {', '.join(ARCHITECTURES)}, not {arch!r}"
        )
    program = f"qemu-system-{_SYSTEM.get(arch, arch)}"
    named = given or os.environ.get(VARIABLE)
    if named:
        path = Path(named)
        path = path / program if path.is_dir() else path
        unfit = _unfit(path)
        if unfit:
            raise BackendError(f"{path} cannot be used: {unfit}")
        return path
    found = [shutil.which(program), cache_folder() / "bin" / program]
    reasons = []
    for each in found:
        if each is None or not Path(each).exists():
            continue
        unfit = _unfit(Path(each))
        if not unfit:
            return Path(each)
        reasons.append(f"{each}: {unfit}")
    reason = "; ".join(reasons) or "there is none"
    raise BackendError(f"{program} that knows vfio-user must be there ({reason}): {_REMEDY}")


@cache
def _unfit(path: Path) -> str | None:
    """Why this QEMU cannot be used; None when it can."""
    try:
        said = _output(path, "--version")
    except OSError as error:
        return error.strerror or str(error)
    except subprocess.SubprocessError as error:
        return str(error)
    version = re.search(r"QEMU emulator version (\d+)\.(\d+)", said)
    if version is None:
        return "it does not say that it is QEMU"
    number = int(version[1]), int(version[2])
    if number < OLDEST:
        return f"it is version {number[0]}.{number[1]}, and vfio-user came with 10.1"
    try:
        _output(path, "-device", "vfio-user-pci,help")
    except (OSError, subprocess.SubprocessError):
        return "it was built without the device vfio-user-pci"
    return None


def _output(path: Path, *arguments: str) -> str:
    done = subprocess.run(
        [path, *arguments], capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout
