# SPDX-License-Identifier: MIT
"""Programs that are not static, such as mkfs.ext4, with the libraries that they need; Python."""

import subprocess
from pathlib import Path

import pytest
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

from callgate.backends.qemu.find import cache_folder

SOURCE = Path(__file__).resolve().parents[2] / "src" / "callgate"
_PROGRAMS = "sbin", "usr/sbin", "bin", "usr/bin"
_UNUSED = {"ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tkinter", "unittest"}
"""What of Python's library a guest's program does not import."""


class Tools:
    """Programs for an architecture in the root folder of a Linux."""

    def __init__(self, root: Path, arch: str = "x86_64") -> None:
        self.root = root
        self.triplet = f"{arch}-linux-gnu"
        places = f"lib/{self.triplet}", f"usr/lib/{self.triplet}"
        self.libraries = *places, "lib64", "usr/lib64", "lib", "usr/lib"

    def files(self, *names: str) -> dict[str, Path]:
        """What a guest needs to run programs of these names: path in the guest, file here."""
        found: dict[str, Path] = {}
        for name in names:
            found[name] = self._find(name, _PROGRAMS)
            self.add_libraries(found[name], found)
        return found

    def run(self, name: str, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
        """Run one here."""
        program = self._find(name, _PROGRAMS)
        wanted = _loader(program)
        assert wanted is not None
        loader = self._find(Path(wanted).name, self.libraries)
        folders = ":".join(str(self.root / folder) for folder in self.libraries)
        line = [loader, "--library-path", folders, program, *arguments]
        return subprocess.run(line, capture_output=True, check=False)

    def add_libraries(self, program: Path, found: dict[str, Path]) -> None:
        """Add to `found` the loader of a program, or of a library, and all that it is linked to."""
        loader = _loader(program)
        if loader is not None:
            found[loader] = self._find(Path(loader).name, self.libraries)
        wanted = [program]
        while wanted:
            for name in _needed(wanted.pop()):
                library = self._find(name, self.libraries)
                place = f"/lib/{self.triplet}/{name}"
                if place not in found:
                    found[place] = library
                    wanted.append(library)

    def _find(self, name: str, folders: tuple[str, ...]) -> Path:
        for folder in folders:
            path = self.root / folder / name
            if path.is_file():
                return path
        raise FileNotFoundError(f"{name} must be in {self.root}")


def e2fsprogs() -> Tools:
    """mkfs.ext4, e2fsck and debugfs: tools/get-qemu's. Skips the test where they are not."""
    tools = Tools(cache_folder() / "linux" / "x86_64")
    try:
        tools.files("mkfs.ext4", "e2fsck", "debugfs")
    except FileNotFoundError as error:
        pytest.skip(f"{error}: run tools/get-qemu")
    return tools


def python(arch: str) -> dict[str, Path]:
    """What a guest needs for `PYTHONHOME=/usr python3` with callgate in it, and nothing else.

    Skips the test where there is no Python for `arch`.
    """
    tools = Tools(cache_folder() / "python" / arch, arch)
    library = next((tools.root / "usr" / "lib").glob("python3.*"), None)
    if library is None:
        pytest.skip(f"no Python for {arch}: run tools/get-qemu --python --guest {arch}")
    found = {"python3": tools.root / "usr" / "bin" / library.name}
    tools.add_libraries(found["python3"], found)
    for file in library.rglob("*"):
        place = file.relative_to(library)
        if not file.is_file() or _UNUSED & set(place.parts) or "config-" in str(place):
            continue
        found[f"/usr/lib/{library.name}/{place}"] = file
        if file.name.startswith("_ctypes."):
            tools.add_libraries(file, found)
    for file in SOURCE.rglob("*.py"):
        found[f"/usr/lib/{library.name}/callgate/{file.relative_to(SOURCE)}"] = file
    return found


def _loader(program: Path) -> str | None:
    """The path at which a program wants its loader; a library wants none."""
    with program.open("rb") as file:
        for segment in ELFFile(file).iter_segments():
            if isinstance(segment, InterpSegment):
                return str(segment.get_interp_name())
    return None


def _needed(program: Path) -> list[str]:
    """The names of the libraries that a program, or a library, is linked with."""
    with program.open("rb") as file:
        return [
            tag.needed  # type: ignore[attr-defined]
            for segment in ELFFile(file).iter_segments()
            if isinstance(segment, DynamicSegment)
            for tag in segment.iter_tags("DT_NEEDED")
        ]
