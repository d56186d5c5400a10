# SPDX-License-Identifier: MIT
"""The initramfs, as the kernel unpacks it, and what its /init says on the console."""

import stat
import subprocess
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate.backends.qemu.initramfs import Init, build, new_token
from callgate.backends.qemu.kernel import Module

TOKEN = "callgate-0123456789abcdef"


def unpack(archive: bytes) -> Iterator[tuple[str, int, int, bytes]]:
    """Name, inode, mode and content of each file (Linux, early-userspace/buffer-format.rst)."""
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        inode, mode, size, length = fields[0], fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + length]
        assert name[-1:] == b"\0"
        begin = (at + 110 + length + 3) & ~3
        if name == b"TRAILER!!!\0":
            assert begin == len(archive)
            return
        yield name[:-1].decode(), inode, mode, archive[begin : begin + size]
        at = (begin + size + 3) & ~3


def test_files_modules_and_their_folders() -> None:
    archive = build(
        busybox=b"busy",
        program="true",
        token=TOKEN,
        modules=[Module("low", b"one"), Module("top", b"three")],
        files={"/srv/test": b"12345", "/etc/deep/number": b""},
    )
    entries = list(unpack(archive))
    files = {name: data for name, _, mode, data in entries if stat.S_ISREG(mode)}
    folders = [name for name, _, mode, _ in entries if stat.S_ISDIR(mode)]
    init = files.pop("init").decode()
    assert files == {
        "bin/busybox": b"busy",
        "lib/modules/low.ko": b"one",
        "lib/modules/top.ko": b"three",
        "srv/test": b"12345",
        "etc/deep/number": b"",
    }
    assert {"dev", "proc", "root", "sys", "tmp", "etc/deep", "lib/modules"} <= set(folders)
    order = [name for name, *_ in entries]
    for name in order:  # The kernel makes no folders by itself.
        parent = name.rpartition("/")[0]
        assert not parent or order.index(parent) < order.index(name)
    assert all(mode & 0o777 == 0o755 for _, _, mode, _ in entries)
    numbers = [inode for _, inode, _, _ in entries]
    assert len(set(numbers)) == len(numbers)
    assert "for module in low top; do" in init
    assert init.startswith("#!/bin/busybox sh\n")
    assert init.endswith("exit $exit_code\npoweroff -f\n")


def test_the_program_is_quoted_and_init_is_a_shells() -> None:
    program = """echo "it's" '$HOME'; exit 3"""
    for wait in (False, True):
        archive = build(busybox=b"", program=program, token=TOKEN, wait=wait)
        init = next(data for name, _, _, data in unpack(archive) if name == "init").decode()
        assert ("read line < /dev/console" in init) is wait
        done = subprocess.run(["/bin/sh", "-n"], input=init, text=True, capture_output=True)
        assert (done.returncode, done.stderr) == (0, "")
        (line,) = [each for each in init.splitlines() if "setsid" in each]
        shown = line.strip().removeprefix("setsid -c ").partition(" < /dev/console")[0]
        done = subprocess.run(["/bin/sh", "-c", shown], text=True, capture_output=True)
        assert (done.returncode, done.stdout) == (3, "it's $HOME\n")


def test_a_token_is_of_one_run() -> None:
    assert new_token() != new_token()
    assert new_token().startswith("callgate-")


def heard(*pieces: bytes) -> tuple[Init, bytes]:
    """What was heard, and which bytes were told to be the programs'."""
    init = Init(TOKEN)
    told = bytearray()
    init.on_byte = told.append
    for piece in pieces:
        init.hear(piece)
    return init, bytes(told)


SAID = f"{TOKEN} ready\r\ncall me\r\n{TOKEN} other\r\ncal\r\n\r\n{TOKEN} exit 41\r\n".encode()


@given(st.lists(st.integers(0, len(SAID)), max_size=6).map(sorted))
def test_what_init_says_is_parted_from_what_programs_say(cuts: list[int]) -> None:
    ends = [*cuts, len(SAID)]
    pieces = [SAID[begin:end] for begin, end in zip([0, *cuts], ends, strict=True)]
    init, told = heard(*pieces)
    assert told == b"call me\r\ncal\r\n\r\n"
    assert (init.ready, init.exit_code) == (True, 41)


def test_what_comes_before_the_end() -> None:
    init, told = heard(b"call")
    assert (init.ready, init.exit_code, told) == (False, None, b"")
    init, told = heard(b"call", b"ed\nx", f"{TOKEN} ready\n".encode())
    assert told == b"called\nx" + f"{TOKEN} ready\n".encode()
    assert not init.ready
    init = Init(TOKEN)
    init.hear(f"{TOKEN} ready\n".encode())  # with nobody to tell
    assert init.ready


@pytest.mark.parametrize(
    ("word", "code"),
    [("0", 0), ("137", 137), ("x", 1), ("-1", 1), ("²", 1), ("9" * 5000, 1)],
    ids=["0", "137", "x", "-1", "superscript", "long"],
)
def test_an_exit_code_is_a_number(word: str, code: int) -> None:
    """The guest knows its token, and can say what it wants."""
    assert heard(f"{TOKEN} exit {word}\n".encode())[0].exit_code == code


def test_an_exit_without_a_code_is_none() -> None:
    assert heard(f"{TOKEN} exit\n{TOKEN}\n{TOKEN}exit 3\n".encode())[0].exit_code is None


def test_output_without_what_init_says() -> None:
    init = Init(TOKEN)
    said = f"{TOKEN} ready\r\nab\xff\r\nno newline\r\n{TOKEN} exit 0\r\n".encode("latin-1")
    assert init.without(said) == "ab\ufffd\nno newline"
    assert init.without(b"") == ""
