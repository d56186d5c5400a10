# SPDX-License-Identifier: MIT
"""Guest programs of a few lines, and what KVM these tests run on."""

import functools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.guest.conftest import PRELUDES, SCRIPT, guests

from callgate.backends.board import BOARDS
from callgate.backends.kvm import probe

__all__ = ["guests"]
_FORMATS = {"x86_64": ("--64", "elf_x86_64"), "i386": ("--32", "elf_i386")}

Build = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Make an ELF file of assembly, as in tests/guest; by binutils, which an emulated processor
    runs in a second, and a compiler in a minute."""
    if shutil.which("as") is None or shutil.which("ld") is None:
        pytest.skip("as and ld are not installed: apt-get install binutils")
    folder = tmp_path_factory.mktemp("guests")
    script = folder / "link.ld"
    script.write_text(SCRIPT.format(address=BOARDS["x86_64"].ram + 0x100000))
    count = iter(range(1_000_000))

    @functools.cache
    def build(arch: str, source: str) -> Path:
        made = folder / f"{next(count)}.elf"
        text, code = made.with_suffix(".s"), made.with_suffix(".o")
        text.write_text(PRELUDES[arch] + source + "\n")
        width, emulation = _FORMATS[arch]
        for command in (
            ["as", width, "-o", code, text],
            ["ld", "-m", emulation, "-static", "-T", script, "-o", made, code],
        ):
            done = subprocess.run([*map(str, command)], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        return made

    return build


def pytest_report_header() -> str:
    """Say whose semantics are tested: a processor's own, or those of an emulated KVM."""
    lacking = probe.lacks()
    if lacking is not None:
        return f"kvm: none: {lacking}"
    host = probe.host()
    how = "virtualizes" if host.virtualizes else "does not virtualize: KVM is emulated in software"
    calls = f"no hypercalls: {host.no_hypercall}"
    if host.no_hypercall is None:
        calls = f"hypercalls by {'vmmcall' if host.amd else 'vmcall'}"
    return f"kvm: {host.vendor} {how}; {calls}"
