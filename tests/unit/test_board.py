# SPDX-License-Identifier: MIT
"""The boards, and the page that tells a guest's author what lies where."""

import re
from pathlib import Path

import pytest

from callgate.backends.board import BOARDS, Board, Window
from callgate.pci.bus import CONFIG_PORTS

ROOT = Path(__file__).resolve().parents[2]


def shown(window: Window) -> str:
    return f"{window.base:x}-{window.end - 1:x}"


def place(board: Board, address: int | None) -> str:
    if address is None:
        return ""
    return f"port {address:x}" if board.is_x86 else f"{address:x}"


def linked_at(board: Board) -> str:
    script = (ROOT / "guest" / "bare" / board.arch / "link.ld").read_text()
    found = re.search(r"^\t\. = 0x([0-9a-f]+);", script, re.MULTILINE)
    assert found is not None
    return found[1]


def rows() -> dict[str, list[str]]:
    """The table of docs/unicorn.md: first column, the others."""
    text = (ROOT / "docs" / "unicorn.md").read_text()
    lines = text[text.index("| | x86_64 | i386 | aarch64 |") :].split("\n\n")[0].splitlines()
    cells = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    return {first: others for first, *others in cells}


@pytest.mark.parametrize("arch", BOARDS)
def test_the_page_says_where_things_are(arch: str) -> None:
    board = BOARDS[arch]
    table = rows()
    at = table[""].index(arch)
    ports = f"{CONFIG_PORTS:x}, {CONFIG_PORTS + 4:x}" if board.is_x86 else ""
    assert {first: others[at] for first, others in table.items() if first.strip("-")} == {
        "RAM from": f"{board.ram:x}",
        "programs of `guest/bare` at": linked_at(board),
        "ECAM": shown(board.ecam),
        "configuration ports": ports,
        "memory BARs": shown(board.bars),
        "I/O BARs, as ports": shown(board.ports),
        "I/O port 0 in memory": f"{board.port_window.base:x}" if board.port_window else "",
        "console": place(board, board.console),
        "exit": place(board, board.exit),
    }
