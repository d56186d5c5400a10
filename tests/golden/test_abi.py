# SPDX-License-Identifier: MIT
"""The call ABI, written down a second time: version 1.0 does not change, whatever abi.py says.

A later minor version may give reserved members a meaning and add codes; it moves nothing.
"""

import enum
from pathlib import Path

import pytest

from callgate.gate import abi
from callgate.generate.abi import fill, header, main

ROOT = Path(__file__).resolve().parents[2]

LAYOUTS = {
    "callgate_capability": """
        00 u8 id, 01 u8 next, 02 u8 length, 03 u8 bar, 04 u32 signature, 08 u16 version_minor,
        0a u16 version_major, 0c u32 gate_offset, 10 u32 gate_length, 14 u32 doorbell_offset,
        18 u8 transports, 19 u8 instruction, 1a u8 pio_bar, 1b u8 reserved, 1c u32 pio_offset,
        20 u32 selector, 24 u16 frame_count, 26 u16 entry_count, 28 end""",
    "callgate_header": """
        00 u32 signature, 04 u16 version_minor, 06 u16 version_major, 08 u32 features,
        0c u32 generation, 10 u8[16] uuid, 20 u32 device_version, 24 u32 directory_offset,
        28 u16 entry_count, 2a u16 entry_size, 2c u32 frames_offset, 30 u16 frame_count,
        32 u16 interrupt, 34 u32 frame_size, 38 u32 doorbell_offset, 3c u32 doorbell_vector,
        40 char[40] name, 68 u32 text_offset, 6c u32 text_length, 70 u8[16] reserved,
        80 u32 watching, 84 u8[60] reserved2, c0 end""",
    "callgate_entry": """
        00 u32 vector, 04 u8 arguments, 05 u8 results, 06 u16 flags, 08 u64 signature,
        10 char[40] name, 38 u32 text_offset, 3c u32 text_length, 40 end""",
    "callgate_frame": """
        00 u32 state, 04 u32 vector, 08 u16 flags, 0a u8 arguments, 0b u8 results, 0c u32 status,
        10 u64 code, 18 u64 cookie, 20 u64[12] values, 80 end""",
}
CODES: dict[type[enum.IntEnum] | type[enum.IntFlag], str] = {
    abi.Status: """OK 0, NO_SUCH_VECTOR 1, REVOKED 2, BAD_COUNT 3, BAD_VALUE 4, BAD_BUFFER 5,
        BAD_FRAME 6, DENIED 7, BUSY 8, DEVICE_ERROR 9, DEVICE_FAULT 10, TIMED_OUT 11""",
    abi.FrameState: "FREE 0, READY 1, RUNNING 2, DONE 3",
    abi.FrameFlag: "ONE_WAY 1, INTERRUPT 2",
    abi.CallFlag: "ONE_WAY 1, PAYLOAD_IN 2, PAYLOAD_OUT 4, BUFFERS 8, REGISTERS 16",
    abi.Transport: "HYPERCALL 1, PIO 2, MMIO 4, POLLED 8",
    abi.Instruction: "NONE 0, VMCALL 1, VMMCALL 2, INT_1F 3, HVC 4, ECALL 5",
    abi.Feature: "POLLED 1, NOTIFY 2, CHANGE_INTERRUPT 4, DONE_INTERRUPT 8",
    abi.DoorbellRegister: "DOORBELL 0, NOTIFY 4, VERSION 8, FEATURES 12",
}
CONSTANTS = """VERSION 65536, CAPABILITY_SIGNATURE 1413564227, HEADER_SIGNATURE 1145587523,
    MAX_VALUES 12, MAX_REGISTER_VALUES 6, NO_BAR 255, NO_INTERRUPT 65535, PAGE 4096,
    PIO_DOORBELL 0, PIO_NOTIFY 4, PIO_SIZE 16, PAYLOAD_OFFSET 128, PAYLOAD_ALIGN 8,
    MIN_FRAME_SIZE 256, NAME_LENGTH 39"""


def items(text: str) -> list[str]:
    return [" ".join(item.split()) for item in text.split(",")]


@pytest.mark.parametrize("layout", abi.LAYOUTS, ids=lambda layout: layout.name)
def test_each_member_stays_where_it_is(layout: abi.Layout) -> None:
    members = [
        f"{member.offset:02x} {member.type}{f'[{member.count}]' if member.count > 1 else ''} "
        f"{member.name}"
        for member in layout.members
    ]
    assert [*members, f"{layout.size:02x} end"] == items(LAYOUTS[layout.name])


@pytest.mark.parametrize("kind", CODES, ids=lambda kind: kind.__name__)
def test_each_code_keeps_its_number(kind: type[enum.IntEnum] | type[enum.IntFlag]) -> None:
    assert [f"{member.name} {int(member)}" for member in kind] == items(CODES[kind])


@pytest.mark.parametrize("constant", items(CONSTANTS))
def test_each_constant_keeps_its_value(constant: str) -> None:
    name, _, value = constant.partition(" ")
    assert getattr(abi, name) == int(value)


def test_the_c_header_is_in_step() -> None:
    text = (ROOT / "guest/include/callgate/abi.h").read_text("utf-8")
    assert text == header(), "run: python -m callgate.generate.abi --update"


def test_the_page_is_in_step() -> None:
    text = (ROOT / "docs/abi.md").read_text("utf-8")
    assert text == fill(text), "run: python -m callgate.generate.abi --update"


def test_the_page_shows_all_of_it() -> None:
    text = (ROOT / "docs/abi.md").read_text("utf-8")
    for name in (*LAYOUTS, *CODES):
        shown = name if isinstance(name, str) else f"callgate_{snake_case(name.__name__)}"
        assert f"<!-- abi: {shown} -->" in text, f"docs/abi.md must have a block {shown}"


def snake_case(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)[1:]


def test_update_writes_what_is_not_in_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, c_header = tmp_path / "page.md", tmp_path / "abi.h"
    page.write_text("before\n<!-- abi: example_hash -->\nstale\n<!-- end -->\nafter\n", "utf-8")
    files = [str(page), str(c_header)]
    assert main(files) == 1
    assert "not in step" in capsys.readouterr().out
    assert "stale" in page.read_text("utf-8")
    assert main(["--update", *files]) == 0
    before, marker, line, end, after = page.read_text("utf-8").splitlines()
    assert (before, marker, end, after) == (
        "before",
        "<!-- abi: example_hash -->",
        "<!-- end -->",
        "after",
    )
    assert line == "Example: `add(u64,u64)->u64` has the hash 0xb68bd69f011c6117."
    assert c_header.read_text("utf-8") == header()
    assert main(files) == 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("<!-- abi: nonsense -->\n<!-- end -->\n", "must be one of .*, not nonsense"),
        ("<!-- abi: example_hash -->\n", "must stand on its own line and have an end"),
        ("inside <!-- abi: example_hash -->\n<!-- end -->\n", "must stand on its own line"),
        (
            "<!-- abi: example_hash -->\n<!-- abi: callgate_frame -->\n<!-- end -->\n",
            "must stand on its own line and have an end",
        ),
    ],
)
def test_a_page_with_wrong_markers_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        fill(text)
