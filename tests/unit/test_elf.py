# SPDX-License-Identifier: MIT
"""Guest programs: what loads, and what is refused with which sentence.

The files are made here, byte by byte (ELF-64 Object File Format 1.5, TIS ELF 1.2).
"""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate.elf import parse_program, read_program
from callgate.errors import LoadError
from callgate.memory import GuestMemory

MACHINES = {"x86_64": 62, "i386": 3, "aarch64": 183, "riscv64": 243}
ET_REL, ET_EXEC, ET_DYN = 1, 2, 3
PT_LOAD = 1


def elf(
    arch: str = "x86_64",
    *,
    kind: int = ET_EXEC,
    segments: tuple[tuple[int, bytes, int], ...] = ((0x100000, b"code", 8),),
    symbols: tuple[tuple[str, int, int], ...] = (),
    entry: int = 0x100000,
    machine: int | None = None,
    wide: bool | None = None,
    order: str = "<",
) -> bytes:
    """Make an ELF file of segments (address, bytes, memory size), symbols (name, value, size)."""
    wide = arch != "i386" if wide is None else wide
    header = 64 if wide else 52
    phsize = 56 if wide else 32
    at = header + phsize * len(segments)
    programs = b""
    body = b""
    for address, data, size in segments:
        offset = at + len(body)
        if wide:
            programs += struct.pack(
                order + "IIQQQQQQ", PT_LOAD, 7, offset, address, address, len(data), size, 1
            )
        else:
            programs += struct.pack(
                order + "8I", PT_LOAD, offset, address, address, len(data), size, 7, 1
            )
        body += data
    names = b"\0"
    table = bytes(24 if wide else 16)
    for name, value, size in symbols:
        place = len(names)
        names += name.encode() + b"\0"
        info = 0x12  # global function
        if wide:
            table += struct.pack(order + "IBBHQQ", place, info, 0, 1, value, size)
        else:
            table += struct.pack(order + "IIIBBH", place, value, size, info, 0, 1)
    section_names = b"\0.symtab\0.strtab\0.shstrtab\0"
    sections = [
        (0, 0, 0, 0, 0, 0),
        (1, 2, table, 2, 1, 24 if wide else 16),
        (9, 3, names, 0, 0, 0),
        (17, 3, section_names, 0, 0, 0),
    ]
    headers = b""
    at += len(body)
    for title, type_, content, link, info, size in sections:
        data = content if isinstance(content, bytes) else b""
        if wide:
            headers += struct.pack(
                order + "IIQQQQIIQQ", title, type_, 0, 0, at, len(data), link, info, 1, size
            )
        else:
            headers += struct.pack(
                order + "10I", title, type_, 0, 0, at, len(data), link, info, 1, size
            )
        body += data
        at += len(data)
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    word = "Q" if wide else "I"
    head = ident + struct.pack(
        f"{order}HHI{word}{word}{word}IHHHHHH",
        kind,
        MACHINES.get(arch, 0) if machine is None else machine,
        1,
        entry,
        header,
        at,
        0,
        header,
        phsize,
        len(segments),
        64 if wide else 40,
        len(sections),
        3,
    )
    return head + programs + body + headers


def memory(size: int = 0x200000) -> GuestMemory:
    ram = GuestMemory()
    ram.add(0, bytearray(b"\xaa" * size))
    return ram


@pytest.mark.parametrize("arch", MACHINES)
def test_reads_each_architecture(arch: str, tmp_path: Path) -> None:
    file = tmp_path / "guest.elf"
    file.write_bytes(elf(arch, symbols=(("main", 0x100000, 4),)))
    program = read_program(file, arch)
    assert program.arch == arch
    assert read_program(file).arch == arch
    assert program.entry == 0x100000
    assert program.symbol_at(0x100002) == "main+0x2"


def test_loads_bytes_and_zeros_behind_them() -> None:
    ram = memory()
    program = parse_program(
        elf(segments=((0x100000, b"code", 8), (0x180000, b"", 16))), Path("guest.elf")
    )
    program.load(ram)
    assert ram.read(0x0FFFFF, 10) == b"\xaacode\0\0\0\0\xaa"
    assert ram.read(0x180000, 17) == bytes(16) + b"\xaa"


def test_refuses_another_architecture() -> None:
    with pytest.raises(LoadError) as caught:
        parse_program(elf("aarch64"), Path("/some/where/adder.elf"), "x86_64")
    assert str(caught.value) == (
        "adder.elf is for aarch64, the machine is x86_64: build the program for x86_64, "
        'or give the machine arch="aarch64"'
    )


def test_refuses_an_architecture_that_no_machine_has() -> None:
    with pytest.raises(LoadError, match="must be for one of x86_64, i386, aarch64, riscv64"):
        parse_program(elf(machine=8, wide=False), Path("mips.elf"))


def test_refuses_riscv_of_32_bits() -> None:
    with pytest.raises(LoadError, match="EM_RISCV with 32 bits"):
        parse_program(elf("riscv64", wide=False), Path("small.elf"))


def test_refuses_big_endian() -> None:
    with pytest.raises(LoadError, match="big-endian"):
        parse_program(elf("aarch64", order=">"), Path("big.elf"))


@pytest.mark.parametrize("kind", [ET_REL, ET_DYN])
def test_refuses_what_is_not_linked_to_a_place(kind: int) -> None:
    with pytest.raises(LoadError, match=r"must be a static executable \(ET_EXEC\)"):
        parse_program(elf(kind=kind), Path("guest.o"))


def test_refuses_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"cannot be read: No such file or directory\. Build it"):
        read_program(tmp_path / "none.elf")
    with pytest.raises(LoadError, match="cannot be read: Is a directory"):
        read_program(tmp_path)


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF", elf()[:60], elf()[:100]])
def test_refuses_what_is_no_elf_file(data: bytes) -> None:
    with pytest.raises(LoadError, match=r"guest\.elf must be an ELF executable"):
        parse_program(data, Path("guest.elf"))


def test_refuses_segments_outside_memory() -> None:
    program = parse_program(elf(segments=((0x1FFFFC, b"code", 8),)), Path("high.elf"))
    with pytest.raises(LoadError, match=r"high\.elf must lie in the machine's memory .*0x1ffffc"):
        program.load(memory())


def test_refuses_more_bytes_than_memory() -> None:
    with pytest.raises(LoadError, match="more bytes than memory"):
        parse_program(elf(segments=((0x100000, b"code", 2),)), Path("guest.elf"))


def test_names_the_symbol_that_an_address_lies_in() -> None:
    program = parse_program(
        elf(symbols=(("second", 0x1020, 8), ("first", 0x1000, 0x10), ("open", 0x2000, 0))),
        Path("guest.elf"),
    )
    assert program.symbol_at(0xFFF) is None
    assert program.symbol_at(0x1000) == "first"
    assert program.symbol_at(0x100F) == "first+0xf"
    assert program.symbol_at(0x1010) is None
    assert program.symbol_at(0x1020) == "second"
    assert program.symbol_at(0x2345) == "open+0x345"
    assert program.symbol_at(0x2000 + (1 << 20)) is None


def test_a_program_without_symbols_has_no_names() -> None:
    assert parse_program(elf(), Path("guest.elf")).symbol_at(0x100000) is None


@given(st.data())
def test_a_damaged_file_raises_only_load_error(data: st.DataObject) -> None:
    good = bytearray(elf(symbols=(("main", 0x100000, 4),)))
    for _ in range(data.draw(st.integers(1, 6))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    damaged = bytes(good[: data.draw(st.sampled_from([cut, len(good)]))])
    try:
        program = parse_program(damaged, Path("guest.elf"))
        program.load(memory())
    except LoadError:
        pass
