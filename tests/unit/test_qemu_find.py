# SPDX-License-Identifier: MIT
"""Which QEMU is taken, told by programs that say what QEMU's say."""

from pathlib import Path

import pytest

from callgate.backends.qemu.find import cache_folder, find_qemu
from callgate.errors import BackendError

PROGRAM = "qemu-system-x86_64"


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host without a QEMU."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.delenv("CALLGATE_QEMU", raising=False)
    return tmp_path


def put(path: Path, version: str = "QEMU emulator version 10.1.2 (Debian)", code: int = 0) -> Path:
    """A QEMU of this version; its device is there if asking for it ends with 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "{version}" && exit\nexit {code}\n')
    path.chmod(0o755)
    return path


def brought(host: Path) -> Path:
    return host / "cache" / "callgate" / "bin" / PROGRAM


def test_the_order_in_which_it_is_looked_for(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = put(brought(host))
    assert find_qemu("x86_64") == find_qemu("i386") == fetched
    installed = put(host / "path" / PROGRAM)
    assert find_qemu("x86_64") == installed
    folder = host / "mine"
    named = put(folder / PROGRAM)
    monkeypatch.setenv("CALLGATE_QEMU", str(folder))
    assert find_qemu("x86_64") == named
    given = put(host / "given")
    assert find_qemu("x86_64", given) == given
    assert find_qemu("i386", str(folder)) == named


def test_on_path_what_does_not_fit_is_passed_over(host: Path) -> None:
    put(host / "path" / PROGRAM, "QEMU emulator version 8.2.0")
    fetched = put(brought(host), "QEMU emulator version 11.0.50")
    assert find_qemu("x86_64") == fetched


def test_what_was_named_must_fit(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(brought(host))
    old = put(host / "old", "QEMU emulator version 9.2.1")
    told = r"old cannot be used: it is version 9\.2, and vfio-user came with 10\.1$"
    with pytest.raises(BackendError, match=told):
        find_qemu("x86_64", old)
    monkeypatch.setenv("CALLGATE_QEMU", str(put(host / "bare", code=1)))
    with pytest.raises(BackendError, match="built without the device vfio-user-pci"):
        find_qemu("x86_64")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("#!/bin/sh\necho 'GNU cat 9.1'\n", "it does not say that it is QEMU"),
        ("#!/bin/sh\nexit 127\n", "returned non-zero exit status 127"),
        ("#!/no/such/shell\n", "No such file or directory"),
        ("no program", "Exec format error"),
    ],
)
def test_what_is_no_qemu(host: Path, text: str, told: str) -> None:
    path = host / "program"
    path.write_text(text)
    path.chmod(0o755)
    with pytest.raises(BackendError, match=f"program cannot be used: .*{told}"):
        find_qemu("x86_64", path)


def test_a_file_that_is_missing(host: Path) -> None:
    with pytest.raises(BackendError, match="nope cannot be used: No such file or directory"):
        find_qemu("x86_64", host / "nope")


def test_none_says_what_to_do(host: Path) -> None:
    told = (
        r"^qemu-system-aarch64 that knows vfio-user must be there \(there is none\): install QEMU "
        r"10\.1 or later, or run tools/get-qemu, or name one by --qemu or CALLGATE_QEMU$"
    )
    with pytest.raises(BackendError, match=told):
        find_qemu("aarch64")
    put(host / "path" / PROGRAM, "QEMU emulator version 10.0.9")
    put(brought(host), code=1)
    told = rf"{PROGRAM}: it is version 10\.0, .*10\.1; .*{PROGRAM}: it was built without the device"
    with pytest.raises(BackendError, match=told):
        find_qemu("x86_64")


def test_an_unknown_architecture() -> None:
    told = "on qemu must be one of x86_64, i386, aarch64, riscv64, not 'vax'"
    with pytest.raises(BackendError, match=told):
        find_qemu("vax")


def test_the_cache_is_at_home(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == host / "cache" / "callgate"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(host))
    assert cache_folder() == host / ".cache" / "callgate"
