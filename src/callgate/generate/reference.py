# SPDX-License-Identifier: MIT
"""The reference page of a device, in Markdown: its datasheet for driver writers."""

import inspect
from collections.abc import Iterable, Iterator

from callgate.call import Call, Scalar
from callgate.device import Device
from callgate.register import Register
from callgate.spec import DeviceSpec


def reference(device: type[Device]) -> str:
    """Markdown page of `device`: identity, BARs, registers and fields, interrupts, calls."""
    spec = device.spec
    doc = inspect.cleandoc(spec.doc)
    parts = [
        f"# {device.__name__}",
        *([doc] if doc else []),
        _table(["", ""], _identity(spec)),
    ]
    if spec.bars:
        parts += ["## BARs", _table(["index", "name", "kind", "size"], _bars(spec))]
    if spec.registers:
        columns = ["BAR", "offset", "name", "bits", "access", "reset", ""]
        parts += ["## Registers", _table(columns, _registers(spec))]
    if spec.interrupts:
        rows = ((str(one.index), f"`{one.name}`", one.doc) for one in spec.interrupts)
        parts += ["## Interrupts", f"By {spec.interrupts_by}.", _table(["index", "name", ""], rows)]
    if spec.calls:
        parts.append("## Calls")
        parts += [part for call in spec.calls for part in _call(call)]
    return "\n\n".join(parts) + "\n"


def _identity(spec: DeviceSpec) -> Iterator[tuple[str, str]]:
    cls = spec.cls
    if hasattr(cls, "id"):
        yield "PCI id", "`{:04x}:{:04x}`".format(*cls.id)
    if cls.subsystem != (0, 0):
        yield "subsystem", "`{:04x}:{:04x}`".format(*cls.subsystem)
    yield "class code", f"`{cls.class_code:06x}`, revision {cls.revision}"
    if spec.calls:
        yield "name", f"`{spec.name}`"
        yield "ABI", f"`{spec.uuid}`, version {cls.version}"
        yield "frames", f"{cls.frames} of {cls.frame_size} bytes"


def _bars(spec: DeviceSpec) -> Iterator[tuple[str, ...]]:
    for bar in spec.bars:
        kind = "I/O" if bar.kind == "io" else f"memory, {bar.width} bits"
        kind += ", prefetchable" if bar.prefetchable else ""
        kind += ", shared memory" if bar.ram else ""
        yield str(bar.index), f"`{bar.name}`", kind, f"{bar.size:#x}"


def _registers(spec: DeviceSpec) -> Iterator[tuple[str, ...]]:
    for register in spec.registers:
        bar = str(spec.bar_of(register).index)
        place = (bar, f"{register.offset:#04x}", f"`{register.name}`")
        yield *place, str(register.width), register.access, f"{register.reset:#x}", register.doc
        yield from _fields(register)


def _fields(register: Register) -> Iterator[tuple[str, ...]]:
    for field in register.fields:
        bits = f"{field.low}" if field.low == field.high else f"{field.low}-{field.high}"
        place = "", "", f"`.{field.name}`"
        yield *place, f"[{bits}]", field.access, f"{field.reset:#x}", field.doc


def _call(call: Call) -> Iterator[str]:
    shown = [f"{parameter.name}: {parameter.type.name}" for parameter in call.parameters]
    returned = call.text.partition("->")[2]
    yield f"### `{call.name}({', '.join(shown)}) -> {returned}`"
    if call.doc:
        yield call.doc
    facts = [f"`{call.text}`, hash {call.hash:#018x}"]
    facts.append(f"{call.arguments} argument and {call.result_slots} result slots")
    flags = [flag.name.lower() for flag in call.flags if flag.name]
    if flags:
        facts.append("flags " + ", ".join(flags))
    yield "; ".join(facts) + "."
    kinds = (*(parameter.type for parameter in call.parameters), *call.results)
    enums = {kind.enum for kind in kinds if isinstance(kind, Scalar) and kind.enum is not None}
    for one in sorted(enums, key=lambda each: each.__name__):
        rows = ((str(int(member)), f"`{member.name}`") for member in one)
        yield _table([one.__name__, ""], rows)


def _table(columns: list[str], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [" | ".join(columns), "|".join("---" for _ in columns)]
    for row in rows:
        lines.append(" | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row))
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)
