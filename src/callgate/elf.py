# SPDX-License-Identifier: MIT
"""Guest programs: static ELF executables, loaded by physical address."""

from __future__ import annotations

import io
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from callgate.errors import DmaError, LoadError
from callgate.memory import GuestMemory

ARCHITECTURES = {
    "EM_X86_64": "x86_64",
    "EM_386": "i386",
    "EM_AARCH64": "aarch64",
    "EM_RISCV": "riscv64",
}
"""Our name of an architecture by the header's e_machine (ELF-64 Object File Format, 1.5)."""
_FAR = 1 << 20
"""Bytes behind a symbol of unknown size that still count as its own."""


@dataclass(frozen=True)
class Segment:
    """Bytes that go to a guest physical address, and zeros behind them up to `size`."""

    address: int
    data: bytes
    size: int


@dataclass(frozen=True)
class Symbol:
    """A name in the program's code or data; `size` 0 is unknown."""

    address: int
    size: int
    name: str


@dataclass(frozen=True)
class Program:
    """A guest program, read from a file."""

    path: Path
    arch: str
    entry: int
    segments: tuple[Segment, ...]
    image: bytes = field(repr=False)
    """The whole file."""

    @cached_property
    def symbols(self) -> tuple[Symbol, ...]:
        """Ascending by address. Read when asked for, since few runs do; a damaged table is none."""
        from elftools.elf.elffile import ELFFile

        try:
            return _symbols(ELFFile(io.BytesIO(self.image)))
        except Exception:  # pyelftools raises whatever it stumbles over.
            return ()

    def load(self, memory: GuestMemory) -> None:
        """Write the program into RAM. Raises LoadError if it does not fit."""
        for segment in self.segments:
            try:
                memory.check(segment.address, segment.size, write=True)
            except DmaError:
                slots = ", ".join(str(slot) for slot in memory.slots)
                raise LoadError(
                    f"{self.path.name} must lie in the machine's memory ({slots}), and has "
                    f"{segment.size:#x} bytes at {segment.address:#x}: link it elsewhere, or give "
                    "the machine more ram"
                ) from None
            memory.write(segment.address, segment.data)
            memory.write(
                segment.address + len(segment.data), bytes(segment.size - len(segment.data))
            )

    def symbol_at(self, address: int) -> str | None:
        """The function or object that `address` lies in, with the offset: `main+0x10`."""
        index = bisect_right(self.symbols, address, key=lambda symbol: symbol.address) - 1
        if index < 0:
            return None
        symbol = self.symbols[index]
        offset = address - symbol.address
        if offset >= (symbol.size or _FAR):
            return None
        return f"{symbol.name}+{offset:#x}" if offset else symbol.name


def read_program(path: Path | str, arch: str | None = None) -> Program:
    """Read an ELF file. `arch` is the machine's; None takes any that callgate knows.

    Raises LoadError if there is no such file, or it is no static little-endian executable for that
    architecture.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LoadError(
            f"The guest program {path} cannot be read: {error.strerror}. Build it first "
            "(python guest/build.py), or name another"
        ) from error
    return parse_program(data, path, arch)


def parse_program(data: bytes, path: Path, arch: str | None = None) -> Program:
    """Like `read_program`, for what the file holds."""
    from elftools.elf.elffile import ELFFile

    try:
        file = ELFFile(io.BytesIO(data))
        own = _architecture(file, path.name)
        if arch is not None and own != arch:
            raise LoadError(
                f"{path.name} is for {own}, the machine is {arch}: build the program for {arch}, "
                f'or give the machine arch="{own}"'
            )
        if file["e_type"] != "ET_EXEC":
            raise LoadError(
                f"{path.name} must be a static executable (ET_EXEC), not {file['e_type']}: link it "
                "without -pie and -shared"
            )
        segments = tuple(
            Segment(segment["p_paddr"], segment.data(), segment["p_memsz"])
            for segment in file.iter_segments("PT_LOAD")
            if segment["p_memsz"]
        )
        if any(len(segment.data) > segment.size for segment in segments):
            raise LoadError(f"{path.name} must not have segments with more bytes than memory")
        return Program(path, own, file["e_entry"], segments, data)
    except LoadError:
        raise
    except Exception as error:  # pyelftools raises whatever it stumbles over in a damaged file.
        raise LoadError(f"{path.name} must be an ELF executable: {error}") from error


def _architecture(file: Any, name: str) -> str:
    machine = file["e_machine"]
    arch = ARCHITECTURES.get(machine)
    if arch == "riscv64" and file.elfclass != 64:
        arch = None
    if arch is None or not file.little_endian:
        order = "" if file.little_endian else ", big-endian"
        raise LoadError(
            f"{name} must be for one of {', '.join(ARCHITECTURES.values())}, and it is for "
            f"{machine} with {file.elfclass} bits{order}"
        )
    return arch


def _symbols(file: Any) -> tuple[Symbol, ...]:
    from elftools.elf.sections import SymbolTableSection

    found: dict[int, Symbol] = {}
    table = file.get_section_by_name(".symtab")
    for symbol in table.iter_symbols() if isinstance(table, SymbolTableSection) else ():
        # Some are the assembler's own: $x and $d (ELF for the Arm Architecture, 4.5.4), .L0.
        if symbol["st_shndx"] in ("SHN_UNDEF", "SHN_ABS") or symbol.name.startswith(("$", ".")):
            continue
        if symbol.name and symbol["st_info"]["type"] in ("STT_FUNC", "STT_NOTYPE", "STT_OBJECT"):
            new = Symbol(symbol["st_value"], symbol["st_size"], symbol.name)
            old = found.get(new.address)
            if old is None or old.size < new.size:
                found[new.address] = new
    return tuple(sorted(found.values(), key=lambda symbol: symbol.address))
