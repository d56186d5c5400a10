# SPDX-License-Identifier: MIT
"""`callgate/abi.h`, Linux' `callgate_abi.h` and the tables of `docs/abi.md`, out of
`callgate.gate.abi`.

`python -m callgate.generate.abi` says whether the files are in step, `--update` writes them:
a header wholly, in a Markdown file what stands between `<!-- abi: NAME -->` and `<!-- end -->`.
"""

import argparse
import enum
import hashlib
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from callgate.gate import abi
from callgate.gate.abi import Layout, Member
from callgate.spec import snake

FILES = (
    Path("docs/abi.md"),
    Path("guest/include/callgate/abi.h"),
    Path("guest/linux/include/uapi/linux/callgate_abi.h"),
)
"""What `--update` writes, from the repository's root."""

Codes: TypeAlias = type[enum.IntEnum] | type[enum.IntFlag]

_ENUMS: tuple[tuple[Codes, str], ...] = (
    (abi.Status, "What a call answers: callgate_frame.status."),
    (abi.FrameState, "Who owns a frame: callgate_frame.state."),
    (abi.FrameFlag, "Bits of callgate_frame.flags."),
    (abi.CallFlag, "Bits of callgate_entry.flags."),
    (abi.Transport, "Bits of callgate_capability.transports."),
    (abi.Instruction, "The trap instruction: callgate_capability.instruction."),
    (abi.Feature, "Bits of callgate_header.features."),
    (abi.DoorbellRegister, "Offsets in the doorbell page."),
)
_CONSTANTS = (
    ("VERSION_MAJOR", abi.VERSION_MAJOR, "d", "of the ABI that this header describes"),
    ("VERSION_MINOR", abi.VERSION_MINOR, "d", ""),
    ("VERSION", abi.VERSION, "#x", "major << 16 | minor"),
    ("CAPABILITY_SIGNATURE", abi.CAPABILITY_SIGNATURE, "#x", '"CGAT"'),
    ("HEADER_SIGNATURE", abi.HEADER_SIGNATURE, "#x", '"CGHD"'),
    ("MAX_VALUES", abi.MAX_VALUES, "d", "argument and result slots of a frame"),
    ("MAX_REGISTER_VALUES", abi.MAX_REGISTER_VALUES, "d", "of a hypercall in 64-bit code"),
    ("NO_BAR", abi.NO_BAR, "#x", ""),
    ("NO_INTERRUPT", abi.NO_INTERRUPT, "#x", ""),
    ("DOORBELL_SIZE", abi.PAGE, "d", "the doorbell page"),
    ("PIO_DOORBELL", abi.PIO_DOORBELL, "#x", "offsets from pio_offset"),
    ("PIO_NOTIFY", abi.PIO_NOTIFY, "#x", ""),
    ("PIO_SIZE", abi.PIO_SIZE, "#x", ""),
    ("PAYLOAD_OFFSET", abi.PAYLOAD_OFFSET, "#x", "in a frame"),
    ("PAYLOAD_ALIGN", abi.PAYLOAD_ALIGN, "d", "of each result's payload"),
    ("MIN_FRAME_SIZE", abi.MIN_FRAME_SIZE, "d", ""),
    ("NAME_LENGTH", abi.NAME_LENGTH, "d", "longest name in bytes; a NUL follows"),
)
_EXAMPLE = "add(u64,u64)->u64"


def header() -> str:
    """Text of `callgate/abi.h`: C11, with `<stdint.h>` and `<stddef.h>`, or Linux's types."""
    parts = [
        "/* SPDX-License-Identifier: MIT */\n"
        "/* The callgate call ABI (docs/abi.md).\n"
        " * Generated from src/callgate/gate/abi.py: python -m callgate.generate.abi --update\n"
        " */\n"
        "#ifndef CALLGATE_ABI_H\n"
        "#define CALLGATE_ABI_H\n"
        "\n"
        "#ifdef __KERNEL__\n"
        "#include <linux/stddef.h>\n"
        "#include <linux/types.h>\n"
        "#else\n"
        "#include <stddef.h>\n"
        "#include <stdint.h>\n"
        "#endif",
        "\n".join(_defines()),
        *(_enum(kind, doc) for kind, doc in _ENUMS),
        "#define CALLGATE_AT(layout, member, offset) \\\n"
        '\t_Static_assert(offsetof(struct layout, member) == (offset), #layout "." #member)',
        *(_struct(layout) for layout in abi.LAYOUTS),
        "#undef CALLGATE_AT",
        _status_name(),
        "#endif /* CALLGATE_ABI_H */\n",
    ]
    return "\n\n".join(parts)


def linux_header() -> str:
    """Text of Linux' `callgate_abi.h`: the types of <linux/types.h>, which sparse checks."""
    parts = [
        "/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */\n"
        "/* The callgate call ABI (docs/abi.md).\n"
        " * Generated from src/callgate/gate/abi.py: python -m callgate.generate.abi --update\n"
        " */\n"
        "#ifndef _UAPI_LINUX_CALLGATE_ABI_H\n"
        "#define _UAPI_LINUX_CALLGATE_ABI_H\n"
        "\n"
        "#include <linux/types.h>",
        "\n".join(_defines()),
        *(_enum(kind, doc) for kind, doc in _ENUMS),
        *("\n".join(_plain_struct(layout, _linux_type)) for layout in abi.LAYOUTS),
        "#endif /* _UAPI_LINUX_CALLGATE_ABI_H */\n",
    ]
    return "\n\n".join(parts)


def fill(text: str) -> str:
    """`text`, a Markdown page, with every marked block written anew.

    Raises ValueError for a block whose name is unknown or that does not end.
    """

    def block(found: re.Match[str]) -> str:
        name, indent = found["name"], found["indent"]
        if name not in _BLOCKS:
            raise ValueError(f"abi block must be one of {', '.join(_BLOCKS)}, not {name}")
        body = textwrap.indent(_BLOCKS[name](), indent)
        return f"{indent}<!-- abi: {name} -->\n{body}\n{indent}<!-- end -->"

    pattern = (
        r"^(?P<indent> *)<!-- abi: (?P<name>\w+) -->$(?:(?!<!-- abi:)[\s\S])*?^ *<!-- end -->$"
    )
    filled, count = re.subn(pattern, block, text, flags=re.MULTILINE)
    if count != text.count("<!-- abi:"):
        raise ValueError("every <!-- abi: NAME --> must stand on its own line and have an end")
    return filled


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status: 1 if a file is not in step and was not updated."""
    parser = argparse.ArgumentParser(prog="python -m callgate.generate.abi", description=__doc__)
    parser.add_argument("--update", action="store_true", help="write what is not in step")
    parser.add_argument("files", nargs="*", type=Path, help="docs/abi.md and the headers")
    options = parser.parse_args(arguments)
    status = 0
    for path in options.files or FILES:
        text = path.read_text("utf-8") if path.exists() else ""
        if path.suffix == ".h":
            expected = linux_header() if path.name == "callgate_abi.h" else header()
        else:
            expected = fill(text)
        if text == expected:
            continue
        if options.update:
            path.write_text(expected, "utf-8")
            sys.stdout.write(f"{path} written\n")
        else:
            sys.stdout.write(f"{path} is not in step with gate/abi.py; run with --update\n")
            status = 1
    return status


def _constant(kind: type[enum.Enum], member: enum.Enum) -> str:
    """C name of an enum's member; the statuses, which are read most, have the shortest."""
    prefix = "" if kind is abi.Status else f"{snake(kind.__name__).upper()}_"
    return f"CALLGATE_{prefix}{member.name}"


def _columns(rows: list[tuple[str, str]]) -> Iterator[str]:
    """Lines of a code column and a comment column, indented once."""
    width = max(len(code) for code, _ in rows)
    for code, comment in rows:
        line = f"\t{code:{width}}  /* {comment} */"
        if len(line.expandtabs()) > 100:
            yield f"\t/* {comment} */"
            yield f"\t{code}"
        else:
            yield line


def _defines() -> Iterator[str]:
    rows = [
        (f"CALLGATE_{name}", f"{value:{form}}u", comment)
        for name, value, form, comment in _CONSTANTS
    ]
    for name, value, comment in rows:
        line = f"#define {name:30} {value}"
        yield f"{line:50}  /* {comment} */" if comment else line


def _value(kind: Codes, member: int) -> str:
    return f"{int(member):#04x}" if _in_hex(kind) else f"{int(member)}"


def _in_hex(kind: Codes) -> bool:
    return issubclass(kind, enum.IntFlag) or kind is abi.DoorbellRegister


def _enum(kind: Codes, doc: str) -> str:
    lines = [f"/* {doc} */", f"enum callgate_{snake(kind.__name__)} {{"]
    for member in kind:
        if hasattr(member, "text"):
            lines.append(f"\t/* {member.text} */")
        lines.append(f"\t{_constant(kind, member)} = {_value(kind, member)},")
    return "\n".join([*lines, "};"])


def _standard_type(member: Member) -> str:
    return "char" if member.type == "char" else f"uint{member.type[1:]}_t"


def _linux_type(member: Member) -> str:
    plain = {"char": "char", "u8": "__u8"}
    return plain.get(member.type, f"__le{member.type[1:]}")


def _declaration(member: Member, type_of: Callable[[Member], str]) -> str:
    base = type_of(member)
    array = f"[{member.count}]" if member.count > 1 else ""
    return f"{base} {member.name}{array};"


def _plain_struct(layout: Layout, type_of: Callable[[Member], str]) -> list[str]:
    rows = [
        (_declaration(member, type_of), f"{member.offset:#04x} {member.doc}")
        for member in layout.members
    ]
    return [*_comment(layout.doc), f"struct {layout.name} {{", *_columns(rows), "};"]


def _struct(layout: Layout) -> str:
    checks = [
        f"CALLGATE_AT({layout.name}, {member.name}, {member.offset:#04x});"
        for member in layout.members
    ]
    return "\n".join(
        [
            *_plain_struct(layout, _standard_type),
            f'_Static_assert(sizeof(struct {layout.name}) == {layout.size:#x}, "{layout.name}");',
            *checks,
        ]
    )


def _comment(text: str) -> Iterator[str]:
    lines = textwrap.wrap(text, 94)
    for number, line in enumerate(lines):
        end = " */" if number == len(lines) - 1 else ""
        yield f"{'/*' if number == 0 else ' *'} {line}{end}"


def _status_name() -> str:
    cases = [
        f'\tcase {_constant(abi.Status, status)}:\n\t\treturn "{status.name}";'
        for status in abi.Status
    ]
    return "\n".join(
        [
            "/* A status as it is called in docs/abi.md, or NULL. */",
            "static inline const char *callgate_status_name(uint32_t status)",
            "{",
            "\tswitch (status) {",
            *cases,
            "\t}",
            "\treturn NULL;",
            "}",
        ]
    )


def _layout_table(layout: Layout) -> str:
    rows = [
        f"| {member.offset:#04x} | {member.type}{f'[{member.count}]' if member.count > 1 else ''} "
        f"| `{member.name}` | {member.doc} |"
        for member in layout.members
    ]
    return "\n".join(
        [
            f"`struct {layout.name}`, {layout.size:#x} bytes.",
            "",
            "| offset | type | member | |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def _enum_table(kind: Codes) -> str:
    members = kind.__members__.items()
    if all(hasattr(member, "text") for _, member in members):
        rows = [
            f"| {_value(kind, one)} | {name} | {getattr(one, 'text', '')} |"
            for name, one in members
        ]
        return "\n".join(["| value | name | |", "|---|---|---|", *rows])
    # Bits and instructions are written as words in the text, states and registers as names.
    shown = str.lower if issubclass(kind, enum.IntFlag) or kind is abi.Instruction else str
    return ", ".join(f"`{shown(name)}` = {_value(kind, one)}" for name, one in members) + "."


def _example_hash() -> str:
    value = int.from_bytes(hashlib.sha256(_EXAMPLE.encode()).digest()[:8], "little")
    return f"Example: `{_EXAMPLE}` has the hash {value:#018x}."


def _layout_block(layout: Layout) -> Callable[[], str]:
    return lambda: _layout_table(layout)


def _enum_block(kind: Codes) -> Callable[[], str]:
    return lambda: _enum_table(kind)


_BLOCKS: dict[str, Callable[[], str]] = {
    **{layout.name: _layout_block(layout) for layout in abi.LAYOUTS},
    **{f"callgate_{snake(kind.__name__)}": _enum_block(kind) for kind, _ in _ENUMS},
    "example_hash": _example_hash,
}

if __name__ == "__main__":
    sys.exit(main())
