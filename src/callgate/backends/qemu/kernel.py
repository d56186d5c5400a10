# SPDX-License-Identifier: MIT
"""A Linux kernel to boot, and modules in the order in which they can be loaded."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import platform
import re
import shutil
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

from callgate.backends.qemu.find import cache_folder
from callgate.errors import BackendError

BOOT = Path("/boot")
_COMPRESSED = (".ko", ".ko.gz", ".ko.xz", ".ko.zst")


@dataclass(frozen=True)
class Kernel:
    """A kernel's image, and the folder of its modules (None: it has none)."""

    image: Path
    modules: Path | None


@dataclass(frozen=True)
class Module:
    """A module's name, and its object file."""

    name: str
    data: bytes


def find_kernel(arch: str, given: Path | None = None, modules: Path | None = None) -> Kernel:
    """The kernel `given`, or the newest readable one in /boot, or tools/get-qemu's.

    Its modules are in `modules`, or where the kernel's version says: beside the folder of the
    image (`../lib/modules/VERSION`), or in the system's. Raises BackendError.
    """
    if given is not None:
        if not given.is_file() or not os.access(given, os.R_OK):
            raise BackendError(f"The kernel {given} must be a file that you can read")
        return Kernel(given, modules or _modules_of(given))
    if platform.machine() == arch:
        for image in _newest(BOOT):
            return Kernel(image, modules or _modules_of(image))
    for image in _newest(cache_folder() / "linux" / arch / "boot"):
        return Kernel(image, modules or _modules_of(image))
    option = "" if arch == "x86_64" else f" --guest {arch}"
    raise BackendError(
        f"A Linux kernel for {arch} must be there: name one by --kernel, or run "
        f"tools/get-qemu{option}"
    )


def find_busybox(arch: str, given: Path | None = None) -> Path:
    """The static busybox `given`, or PATH's if it is for `arch`, or tools/get-qemu's."""
    found = [given] if given is not None else []
    if given is None:
        if platform.machine() == arch and (on_path := shutil.which("busybox")):
            found.append(Path(on_path))
        folder = cache_folder() / "linux" / arch
        found += [folder / "bin" / "busybox", folder / "usr" / "bin" / "busybox"]
    for path in found:
        if path.is_file() and is_static(path):
            return path
    if given is not None:
        raise BackendError(f"{given} must be a busybox that was linked statically")
    option = "" if arch == "x86_64" else f" --guest {arch}"
    raise BackendError(
        f"A static busybox for {arch} must be there: install busybox-static, or run "
        f"tools/get-qemu{option}, or name one by --busybox"
    )


def is_static(path: Path) -> bool:
    """Whether an ELF program needs no loader; True for what is no ELF file, such as a script."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as file:
        try:
            return all(each.header.p_type != "PT_INTERP" for each in ELFFile(file).iter_segments())
        except ELFError:
            return True


def load_order(names: list[str], folder: Path | None) -> list[Module]:
    """The modules of these names (or files) and all that they need, each after what it needs.

    What the kernel has built in is left out. Raises BackendError for a name that nobody knows.
    """
    known = _known(folder)
    built_in = _built_in(folder)
    order: dict[str, Module] = {}

    def add(name: str, wanted_by: str, waiting: tuple[str, ...]) -> None:
        file = Path(name)
        plain = _plain(file)
        if plain in order or plain in waiting:
            return
        if file.suffix and file.is_file():
            found = file
        elif plain in known:
            found = known[plain]
        elif plain in built_in:
            return
        else:
            where = f"in {folder}" if folder else "there: the kernel has no modules' folder"
            if file.suffix:
                where = f"a file here, which {name} is not, or {where}"
            raise BackendError(f"The module {plain}{wanted_by} must be {where}")
        data = _read(found)
        for needed in _needs(data):
            add(needed, f", which {plain} needs,", (*waiting, plain))
        order[plain] = Module(plain, data)

    for name in names:
        add(name, "", ())
    return list(order.values())


def _newest(folder: Path) -> list[Path]:
    """The kernels in a folder that can be read, newest version first."""
    images = [path for path in folder.glob("vmlinu[xz]-*") if os.access(path, os.R_OK)]
    return sorted(images, key=lambda path: _version(path.name), reverse=True)


def _version(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _modules_of(image: Path) -> Path | None:
    version = image.name.partition("-")[2]
    root = image.resolve().parent.parent
    for folder in (root / "lib", root / "usr" / "lib", Path("/lib")):
        if version and (folder / "modules" / version).is_dir():
            return folder / "modules" / version
    return None


def _known(folder: Path | None) -> dict[str, Path]:
    if folder is None:
        return {}
    files = (path for path in folder.rglob("*.ko*") if path.name.endswith(_COMPRESSED))
    return {_plain(path): path for path in files}


def _built_in(folder: Path | None) -> set[str]:
    path = folder / "modules.builtin" if folder else None
    if path is None or not path.exists():
        return set()
    return {_plain(Path(line)) for line in path.read_text().splitlines()}


def _plain(path: Path) -> str:
    """A module's name: `virtio-blk.ko.xz` is virtio_blk."""
    return path.name.partition(".ko")[0].replace("-", "_")


def _read(path: Path) -> bytes:
    """A module's object file, decompressed. Raises BackendError."""
    try:
        return _decompressed(path, path.read_bytes())
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise BackendError(f"The module {path} cannot be read: {error}") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()
        raise BackendError(f"The module {path} cannot be read: {said or error}") from error


def _decompressed(path: Path, data: bytes) -> bytes:
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        # Part of Python's library since 3.14 alone.
        zstd = shutil.which("zstd")
        if zstd is None:
            raise BackendError(f"zstd must be installed to read {path}: apt-get install zstd")
        return subprocess.run([zstd, "-dc"], input=data, capture_output=True, check=True).stdout
    return data


def _needs(data: bytes) -> list[str]:
    """The modules that one needs: the `depends` of its section .modinfo."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        section = ELFFile(io.BytesIO(data)).get_section_by_name(".modinfo")
    except ELFError as error:
        raise BackendError(f"A kernel module must be an ELF file: {error}") from error
    for entry in section.data().split(b"\0") if section is not None else ():
        key, _, value = entry.partition(b"=")
        if key == b"depends" and value:
            return value.decode().split(",")
    return []
