# SPDX-License-Identifier: MIT
"""callgate.ko's sources as the kernel's own tools see them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.qemu.module import build

LINUX = build.LINUX
SOURCES = sorted([*LINUX.glob("*.[ch]"), *LINUX.glob("include/**/callgate.h")])
DRIVERS = sorted(build.ROOT.glob("examples/*/driver.c"))


def run(*command: str | Path, cwd: Path = LINUX) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def headers() -> Path:
    """The folder of the headers that tests build against."""
    release = build.modules().name
    return build.CACHE / "headers" / release / "usr"


def test_kernel_doc_has_nothing_to_say() -> None:
    tool = next(headers().glob("lib/linux-kbuild-*/scripts/kernel-doc"))
    if not shutil.which("perl"):
        pytest.skip("kernel-doc is a Perl program: apt-get install perl")
    assert run("perl", tool, "-none", *SOURCES) == ""


def test_checkpatch_has_nothing_to_say() -> None:
    """With --strict, but for what it takes for an operator in inline assembly, and says of a macro
    that makes attributes; and of a driver that is for kernels of several versions."""
    found = os.environ.get("CALLGATE_CHECKPATCH")
    if not found:
        pytest.skip("CALLGATE_CHECKPATCH must name scripts/checkpatch.pl of a kernel's sources")
    ignored = ["SPACING", "MACRO_ARG_REUSE", "MACRO_ARG_PRECEDENCE"]
    ignored += ["LINUX_VERSION_CODE", "CONSTANT_COMPARISON"]
    command = ["perl", found, "--no-tree", "--strict", "--terse", "--file", "--no-summary"]
    command += [f"--ignore={','.join(ignored)}", "--max-line-length=100"]
    # By the paths that they have in a kernel: other rules hold below include/uapi.
    files = [*SOURCES, LINUX / "include/uapi/linux/callgate_abi.h"]
    assert run(*command, *(file.relative_to(LINUX) for file in files), *DRIVERS) == ""


def test_sparse_has_nothing_to_say(tmp_path: Path) -> None:
    if not shutil.which("sparse"):
        pytest.skip("sparse is not here: apt-get install sparse")
    build.modules()
    folder = next(headers().glob("src/linux-headers-*-*64"))
    shutil.copytree(LINUX, tmp_path / "source")
    command = ["make", "-C", str(folder), f"M={tmp_path / 'source'}", "C=2", "W=1", "modules"]
    said = run(*command).splitlines()
    assert [line for line in said if "warning" in line or "error" in line] == []


def test_dkms_builds_it(tmp_path: Path) -> None:
    if not shutil.which("dkms"):
        pytest.skip("dkms is not here: apt-get install --no-install-recommends dkms")
    release = build.modules().name
    folder = headers() / "src" / f"linux-headers-{release}"
    run("make", "dkms", f"DESTDIR={tmp_path}")
    sources, tree = tmp_path / "usr" / "src", tmp_path / "tree"
    tree.mkdir()
    version = next(sources.iterdir()).name.replace("callgate-", "callgate/")
    command = ["dkms", "build", version, "-k", release, "--kernelsourcedir", str(folder)]
    run(*command, "--dkmstree", tree, "--sourcetree", sources)
    built = sorted(path.name for path in tree.rglob("*.ko*"))
    assert built == ["callgate.ko", "callgate_pci.ko"]
