# SPDX-License-Identifier: MIT
"""Kernel modules and programs for the tests of callgate.ko, built when they are not current."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LINUX = ROOT / "guest" / "linux"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "callgate"
FLAGS = ("-static", "-O2", "-s", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fno-sanitize=all")
MISSING = 2
"""What guest/linux/build.py ends with when headers or a compiler are missing."""


def modules(arch: str = "x86_64", *, newer: bool = False) -> Path:
    """The folder of the modules; skips the test where headers or a compiler are missing."""
    command = [sys.executable, str(LINUX / "build.py"), "--arch", arch]
    command += ["--newer"] if newer else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == MISSING:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return ROOT / done.stdout.strip()


def kernel(*, newer: bool = False) -> Path | None:
    """The kernel's image, None for the one that tests boot anyway; as `modules`, a kernel that was
    built here where CALLGATE_KDIR names one."""
    if own := os.environ.get("CALLGATE_KDIR"):
        return Path(own, "arch", "x86", "boot", "bzImage")
    if not newer:
        return None
    return next((CACHE / "newer" / "x86_64" / "boot").glob("vmlinuz-*"))


def program(name: str, arch: str = "x86_64") -> Path:
    """A program of this folder, for Linux' user space on `arch`; x86 and arm are the 32 bits of
    x86_64 and aarch64."""
    pytest.importorskip("ziglang", reason="the package ziglang is needed to build guests")
    source = Path(__file__).with_name(f"{name}.c")
    machine = {"x86": "x86_64", "arm": "aarch64"}.get(arch, arch)
    target = f"{arch}-linux-musl" + ("eabihf" if arch == "arm" else "")
    result = ROOT / "build" / "guest" / machine / "linux" / f"module_{name}_{arch}"
    headers = list((LINUX / "include" / "uapi").rglob("*.h"))
    if result.exists() and all(
        file.stat().st_mtime_ns < result.stat().st_mtime_ns for file in (source, *headers)
    ):
        return result
    result.parent.mkdir(parents=True, exist_ok=True)
    unfinished = result.with_suffix(f".{os.getpid()}.part")
    command = [sys.executable, "-m", "ziglang", "cc", "-target", target, *FLAGS]
    command += [f"-I{LINUX / 'include' / 'uapi'}", str(source), "-o", str(unfinished)]
    subprocess.run(command, check=True)
    unfinished.replace(result)
    return result
