# SPDX-License-Identifier: MIT
"""Which kernel, busybox and modules a Linux guest gets, on folders like those of a host."""

import gzip
import lzma
import platform
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from callgate.backends.qemu import kernel
from callgate.backends.qemu.kernel import (
    Kernel,
    find_busybox,
    find_kernel,
    is_static,
    load_order,
)
from callgate.errors import BackendError

VERSION = "6.99.1-callgate"


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host for x86_64 without kernels, with an empty cache and nothing on PATH."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(kernel, "BOOT", tmp_path / "boot")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    return tmp_path


def put(path: Path, data: bytes = b"#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o755)
    return path


def program(kind: int) -> bytes:
    """An ELF executable with one segment, of this type."""
    head = struct.pack(
        "<4sBBBB8xHHIQQQIHHHHHH",
        *(b"\x7fELF", 2, 1, 1, 0, 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 64, 0, 0),
    )
    return head + struct.pack("<IIQQQQQQ", kind, 4, 120, 0, 0, 8, 8, 1) + b"/lib/ld\0"


def module(depends: str | None = "", name: str = "any") -> bytes:
    """A kernel module's object file, as far as it tells of itself; None: it does not."""
    said = f"name={name}\0depends={depends}\0license=GPL\0".encode() if depends is not None else b""
    names = b"\0.shstrtab\0.modinfo\0"
    at = 64 + len(names)
    sections = [(0, 0, 0, 0), (1, 3, 64, len(names))]
    if said:
        sections.append((11, 1, at, len(said)))
    head = struct.pack(
        "<4sBBBB8xHHIQQQIHHHHHH",
        *(b"\x7fELF", 2, 1, 1, 0, 1, 62, 1, 0, 0, at + len(said), 0, 64, 0, 0),
        *(64, len(sections), 1),
    )
    table = b"".join(
        struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, offset, size, 0, 0, 1, 0)
        for name, kind, offset, size in sections
    )
    return head + names + said + table


# --- kernels --------------------------------------------------------------------------------------


def test_a_kernel_that_was_named(tmp_path: Path) -> None:
    image = put(tmp_path / "root" / "boot" / f"vmlinuz-{VERSION}")
    assert find_kernel("x86_64", image) == Kernel(image, None)
    modules = tmp_path / "root" / "usr" / "lib" / "modules" / VERSION
    modules.mkdir(parents=True)
    assert find_kernel("x86_64", image) == Kernel(image, modules)
    nearer = tmp_path / "root" / "lib" / "modules" / VERSION
    nearer.mkdir(parents=True)
    assert find_kernel("x86_64", image) == Kernel(image, nearer)
    other = tmp_path / "others"
    assert find_kernel("x86_64", image, other) == Kernel(image, other)
    plain = put(tmp_path / "bzImage")
    assert find_kernel("aarch64", plain) == Kernel(plain, None)
    with pytest.raises(BackendError, match=f"The kernel {tmp_path} must be a file that you can"):
        find_kernel("x86_64", tmp_path)


def test_the_hosts_newest_kernel_comes_first(host: Path) -> None:
    fetched = put(host / "cache" / "callgate" / "linux" / "x86_64" / "boot" / "vmlinuz-7.0.0-amd64")
    assert find_kernel("x86_64").image == fetched
    put(host / "boot" / "vmlinuz-6.9.12-1-amd64")
    newest = put(host / "boot" / "vmlinuz-6.10.2-1-amd64")
    put(host / "boot" / "initrd.img-6.11.0")
    assert find_kernel("x86_64").image == newest
    assert find_kernel("x86_64", modules=host).modules == host


def test_the_hosts_kernel_is_for_its_own_architecture(host: Path) -> None:
    put(host / "boot" / "vmlinuz-6.10.2-arm64")
    told = r"^A Linux kernel for aarch64 must be there: .* tools/get-qemu --guest aarch64$"
    with pytest.raises(BackendError, match=told):
        find_kernel("aarch64")
    image = put(host / "cache" / "callgate" / "linux" / "aarch64" / "boot" / "vmlinuz-6.1.0-arm64")
    assert find_kernel("aarch64", modules=host) == Kernel(image, host)


def test_no_kernel_at_all() -> None:
    with pytest.raises(BackendError, match=r"name one by --kernel, or run tools/get-qemu$"):
        find_kernel("x86_64")


# --- busybox --------------------------------------------------------------------------------------


def test_busybox_is_the_hosts_or_what_was_brought(host: Path) -> None:
    brought = put(host / "cache" / "callgate" / "linux" / "x86_64" / "usr" / "bin" / "busybox")
    assert find_busybox("x86_64") == brought
    installed = put(host / "path" / "busybox", program(1))
    assert find_busybox("x86_64") == installed
    put(installed, program(3))
    assert find_busybox("x86_64") == brought
    other = put(host / "cache" / "callgate" / "linux" / "riscv64" / "bin" / "busybox")
    assert find_busybox("riscv64") == other
    assert find_busybox("riscv64", brought) == brought


def test_busybox_that_is_not_there(tmp_path: Path) -> None:
    told = (
        r"static busybox for x86_64 must be there: install busybox-static, or run tools/get-qemu,"
    )
    with pytest.raises(BackendError, match=told):
        find_busybox("x86_64")
    with pytest.raises(BackendError, match="run tools/get-qemu --guest aarch64, or name one by"):
        find_busybox("aarch64")
    dynamic = put(tmp_path / "dynamic", program(3))
    with pytest.raises(BackendError, match=r"dynamic must be a busybox that was linked statically"):
        find_busybox("x86_64", dynamic)
    with pytest.raises(BackendError, match=r"nothing must be a busybox"):
        find_busybox("x86_64", tmp_path / "nothing")


@pytest.mark.parametrize(
    ("data", "static"),
    [(b"#!/bin/sh\n", True), (b"", True), (program(1), True), (program(3), False)],
    ids=["script", "empty", "static", "dynamic"],
)
def test_what_needs_no_loader(tmp_path: Path, data: bytes, static: bool) -> None:
    assert is_static(put(tmp_path / "program", data)) is static


# --- modules --------------------------------------------------------------------------------------


def names(wanted: list[str], folder: Path | None) -> list[str]:
    return [each.name for each in load_order(wanted, folder)]


def test_each_module_comes_after_what_it_needs(tmp_path: Path) -> None:
    put(tmp_path / "net" / "top.ko", module("middle,low"))
    put(tmp_path / "middle.ko", module("low"))
    put(tmp_path / "low.ko", module())
    put(tmp_path / "alone.ko", module(None))
    put(tmp_path / "low.ko.old", b"not one")
    assert names(["alone", "top", "low"], tmp_path) == ["alone", "low", "middle", "top"]
    assert names([], tmp_path) == []


def test_modules_that_need_each_other_end(tmp_path: Path) -> None:
    put(tmp_path / "a.ko", module("b"))
    put(tmp_path / "b.ko", module("a"))
    assert names(["a"], tmp_path) == ["b", "a"]


def test_a_dash_is_an_underscore(tmp_path: Path) -> None:
    put(tmp_path / "virtio-blk.ko", module("virtio_ring"))
    put(tmp_path / "virtio-ring.ko", module())
    assert names(["virtio-blk", "virtio_blk"], tmp_path) == ["virtio_ring", "virtio_blk"]


def test_what_is_built_in_is_left_out(tmp_path: Path) -> None:
    put(tmp_path / "mine.ko", module("virtio-pci"))
    put(tmp_path / "modules.builtin", b"kernel/drivers/virtio/virtio_pci.ko\n")
    assert names(["mine", "virtio_pci"], tmp_path) == ["mine"]


def test_a_module_by_its_file(tmp_path: Path) -> None:
    put(tmp_path / "lib" / "low.ko", module())
    mine = put(tmp_path / "my-driver.ko", module("low"))
    found = load_order([str(mine)], tmp_path / "lib")
    assert [each.name for each in found] == ["low", "my_driver"]
    assert found[1].data == mine.read_bytes()
    with pytest.raises(
        BackendError, match=r"^The module low, which my_driver needs, must be there"
    ):
        load_order([str(mine)], None)


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress)], ids=["gz", "xz"]
)
def test_compressed_modules(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    put(tmp_path / f"low.ko{suffix}", compress(module()))
    put(tmp_path / f"top.ko{suffix}", compress(module("low")))
    found = load_order(["top"], tmp_path)
    assert [(each.name, each.data) for each in found] == [
        ("low", module()),
        ("top", module("low")),
    ]


def test_zstd_is_anothers_work(tmp_path: Path, host: Path) -> None:
    put(tmp_path / "modules" / "low.ko.zst", b"compressed")
    with pytest.raises(BackendError, match=r"zstd must be installed to read .*low\.ko\.zst: apt"):
        load_order(["low"], tmp_path / "modules")
    put(tmp_path / "plain", module())
    script = f'#!/bin/sh\n[ "$1" = -dc ] && exec /bin/cat {tmp_path / "plain"}\n'
    put(host / "path" / "zstd", script.encode())
    (found,) = load_order(["low"], tmp_path / "modules")
    assert found.data == module()


def test_a_module_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=f"^The module nope must be in {tmp_path}$"):
        load_order(["nope"], tmp_path)
    with pytest.raises(BackendError, match="must be there: the kernel has no modules' folder"):
        load_order(["nope"], None)
    put(tmp_path / "top.ko", module("nope"))
    with pytest.raises(BackendError, match=r"^The module nope, which top needs, must be in"):
        load_order(["top"], tmp_path)


def test_a_module_that_is_none(tmp_path: Path) -> None:
    put(tmp_path / "text.ko", b"no ELF file")
    with pytest.raises(BackendError, match="A kernel module must be an ELF file"):
        load_order(["text"], tmp_path)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_a_module_that_is_damaged(tmp_path: Path, host: Path, suffix: str) -> None:
    put(host / "path" / "zstd", b"#!/bin/sh\necho not in zstd format >&2\nexit 1\n")
    path = put(tmp_path / "modules" / f"low.ko{suffix}", b"no compressed file at all")
    with pytest.raises(BackendError, match=f"^The module {path} cannot be read: "):
        load_order(["low"], tmp_path / "modules")
