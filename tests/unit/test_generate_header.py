# SPDX-License-Identifier: MIT
"""The C header of a device: every name, and that a C compiler takes it for every architecture."""

import enum
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest

from callgate.call import (
    BufferIn,
    BufferInOut,
    BufferOut,
    call,
    i8,
    i16,
    i32,
    i64,
    u8,
    u16,
    u32,
    u64,
)
from callgate.device import Device
from callgate.errors import DeclarationError
from callgate.generate import header
from callgate.interrupt import Interrupt
from callgate.register import Bar, Field, Register

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("x86_64", "x86", "aarch64", "riscv64")


class Mode(enum.IntEnum):
    """How it goes */ and on."""

    SLOW = 0
    FAST = 7


class Large(enum.IntEnum):
    HUGE = 1 << 40
    NONE = 0


class Zoo(Device):
    """One of each kind.

    A second paragraph, with */ in it.
    """

    id = 0x1AF4, 0x10FF
    regs = Bar(0, 0x1000)
    wide = Bar(2, 0x10000, width=64, prefetchable=True)
    ports = Bar(4, 32, "io")
    control = Register(0x00, doc="control */ it")
    on = Field(control, 0, access="w1s")
    mode = Field(control, 4, 7, access="r", doc="how it goes")
    byte = Register(0x10, width=8, access="r")
    pair = Register(0x12, width=16)
    large = Register(0x18, width=64, access="w1c", bar=regs)
    top = Field(large, 60, 63)
    command = Register(0x100, bar=wide, access="w")
    port = Register(4, bar=ports)
    done = Interrupt("it is done")
    late = Interrupt()

    @call
    def open(self, dev: u32, register: i8, status: bool) -> None:
        """A name that the header needs itself, and parameters that C or the wrapper needs."""

    @call
    def switch(self, mode: Mode, large: Annotated[Large, u64]) -> Mode:
        return mode

    @call
    def store(self, key: u16, data: bytes, more: bytes) -> bytes:
        return data + more

    @call
    def several(self, a: i64, b: i32, c: i16, d: u8) -> tuple[i32, bytes, bool, bytes, u64]:
        return b, b"", True, b"", d

    @call(one_way=True)
    def poke(self) -> None: ...

    @call(one_way=True)
    def log(self, text: bytes) -> None: ...

    @call
    def copy(self, source: BufferIn, target: BufferOut, both: BufferInOut) -> u64:
        return 0

    @call
    def result(self, result: u8) -> u8:
        return result


TEXT = header(Zoo)


def function(name: str) -> str:
    """One function of the header on a single line, from its name on."""
    found = re.search(rf"\b{name}\((.*?)\n\}}", TEXT, re.DOTALL)
    assert found is not None, f"the header must have {name}"
    return " ".join(f"{name}({found[1]}".split())


@pytest.mark.parametrize(
    "define",
    [
        "ZOO_VENDOR_ID 0x1af4u",
        "ZOO_DEVICE_ID 0x10ffu",
        "ZOO_VERSION 1u",
        "ZOO_CONTROL 0x00u /* BAR 0, 32 bits, rw: control * / it */",
        "ZOO_ON_MASK 0x1u /* control, bit 0, w1s */",
        "ZOO_MODE_MASK 0xf0u /* control, bits 4-7, r: how it goes */",
        "ZOO_MODE_SHIFT 4u",
        "ZOO_TOP_MASK 0xf000000000000000u /* large, bits 60-63, w1c */",
        "ZOO_COMMAND 0x100u /* BAR 2, 32 bits, w */",
        "ZOO_INTERRUPT_DONE 0u /* it is done */",
        "ZOO_INTERRUPT_LATE 1u",
        "ZOO_LARGE_HUGE 0x10000000000u",
    ],
)
def test_what_is_declared_has_a_name(define: str) -> None:
    lines = [" ".join(line.split()) for line in TEXT.splitlines()]
    assert f"#define {define}" in lines


def test_the_identity_is_that_of_the_device() -> None:
    octets = re.search(r"ZOO_UUID .*?\{(.*?)\}", TEXT, re.DOTALL)
    assert octets is not None
    assert bytes(int(octet, 16) for octet in re.findall("0x..", octets[1])) == Zoo.spec.uuid.bytes
    for one in Zoo.spec.calls:
        signature = f"ZOO_{one.name.upper()}_SIGNATURE"
        assert f'CALLGATE_CALL("{one.name}", {signature})' in TEXT
        assert re.search(rf"#define {signature} +{one.hash:#018x}ULL ", TEXT)


def test_an_enumeration_that_c_can_hold_is_one() -> None:
    assert "enum zoo_mode {\n\tZOO_MODE_SLOW = 0,\n\tZOO_MODE_FAST = 7,\n};" in TEXT
    assert "enum zoo_large" not in TEXT


def test_a_register_is_read_and_written_as_its_access_allows() -> None:
    names = set(re.findall(r"\bzoo_((?:read|write)_\w+)\(", TEXT))
    readable = {"control", "byte", "pair", "large", "port"}
    writable = {"control", "pair", "large", "command", "port"}
    assert names == {f"read_{name}" for name in readable} | {f"write_{name}" for name in writable}
    assert "uint8_t zoo_read_byte(const struct zoo *dev)" in TEXT
    assert "callgate_write32(&dev->device, 2, ZOO_COMMAND, value);" in function("zoo_write_command")
    assert "callgate_read64(&dev->device, 0, ZOO_LARGE)" in function("zoo_read_large")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "zoo_open_call",  # zoo_open finds the device
            [
                "struct zoo *dev, uint32_t dev_, int8_t register_, bool status_)",
                "slots[] = { dev_, (uint64_t)(int64_t)register_, status_ };",
                "callgate_call(&dev->device, &dev->calls.open, slots, 3, NULL, 0)",
            ],
        ),
        (
            "zoo_switch",
            [
                "enum zoo_mode mode, uint64_t large, enum zoo_mode *result)",
                "&dev->calls.switch_",
                "*result = (enum zoo_mode)answers[0];",
            ],
        ),
        (
            "zoo_store",
            [
                "uint16_t key, const void *data, uint32_t data_length, const void *more, "
                "uint32_t more_length, void *result, uint32_t *result_length)",
                "status = callgate_frame_take(&dev->device);",
                "slots[2] = callgate_put(&dev->device, more, more_length, &used);",
                "callgate_get(&dev->device, answers[0], result, result_length);",
            ],
        ),
        (
            "zoo_several",
            [
                "int32_t *result0, void *result1, uint32_t *result1_length, bool *result2, "
                "void *result3, uint32_t *result3_length, uint64_t *result4)",
                "*result0 = (int32_t)answers[0]; *result2 = (bool)answers[2];",
            ],
        ),
        ("zoo_poke", ["callgate_post(&dev->device, &dev->calls.poke, NULL, 0)"]),
        ("zoo_log", ["uint32_t text_length)", "callgate_post("]),
        (
            "zoo_copy",
            [
                "const void *source, uint64_t source_length, void *target, "
                "uint64_t target_length, void *both, uint64_t both_length, uint64_t *result)",
                "callgate_env_address(source), source_length, callgate_env_address(target)",
            ],
        ),
        ("zoo_result", ["uint8_t result, uint8_t *result_)"]),
    ],
)
def test_a_call_is_a_typed_function(name: str, parts: list[str]) -> None:
    text = function(name)
    for part in parts:
        assert part in text


def test_a_device_without_calls_is_found_by_its_ids() -> None:
    class Plain(Device):
        id = 0x1AF4, 0x10F1
        on = Register(0)

    text = header(Plain)
    assert "callgate_find(&dev->device, PLAIN_VENDOR_ID, PLAIN_DEVICE_ID, skip)" in text
    assert "reopen" not in text
    assert "UUID" not in text


def test_two_declarations_cannot_make_one_name() -> None:
    class Twice(Device):
        id = 0x1AF4, 0x10F1
        a = Register(0)
        b = Field(a, 0)
        b_mask = Register(4)

    with pytest.raises(DeclarationError, match="TWICE_B_MASK is made twice: rename one"):
        header(Twice)


def test_a_class_without_ids_has_no_header() -> None:
    class Base(Device):
        pass

    with pytest.raises(DeclarationError, match=r"Base\.id must be given"):
        header(Base)


@pytest.mark.parametrize("name", ["int", "while", "true", "asm", "linux", "errno"])
def test_a_name_that_is_a_word_of_c(name: str) -> None:
    made: type[Device] = type("Some", (Device,), {"id": (0x1AF4, 0x10F0), "name": name})
    with pytest.raises(DeclarationError, match=f"Some.name must be no word of C .*'{name}' is"):
        header(made)


@pytest.mark.parametrize("name", ["Callgate", "CallgateFrame", "Callgate_"])
def test_a_name_that_begins_as_the_librarys_do(name: str) -> None:
    made: type[Device] = type(name, (Device,), {"id": (0x1AF4, 0x10F0)})
    with pytest.raises(DeclarationError, match=f"{name}.name must not begin with callgate"):
        header(made)


def test_a_name_that_only_looks_like_it() -> None:
    made: type[Device] = type("Callgates", (Device,), {"id": (0x1AF4, 0x10F0)})
    assert "callgates_open(" in header(made)


def compile_c(source: Path, target: str) -> None:
    compiled = subprocess.run(
        [
            *(sys.executable, "-m", "ziglang", "cc", "-c", str(source), "-o", "made.o"),
            *("-target", f"{target}-freestanding-none", "-ffreestanding", "-std=c11"),
            *("-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{ROOT / 'guest/include'}"),
        ],
        cwd=source.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert compiled.returncode == 0, compiled.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_a_c_compiler_takes_it(target: str, tmp_path: Path) -> None:
    (tmp_path / "zoo.h").write_text(TEXT, "utf-8")
    source = tmp_path / "zoo.c"
    source.write_text('#include "zoo.h"\n', "utf-8")
    compile_c(source, target)


def test_devices_may_be_called_as_the_librarys_files_are(tmp_path: Path) -> None:
    names = sorted(file.stem for file in (ROOT / "guest/include/callgate").rglob("*.h"))
    assert {"abi", "call", "device", "driver", "pci"} < set(names)
    names.remove("i386")  # A macro of GNU C's.
    for name in names:
        body = {"id": (0x1AF4, 0x10F0), "name": name, "value": Register(0)}

        def ping(self) -> None: ...  # type: ignore[no-untyped-def]

        made: type[Device] = type("Some", (Device,), {**body, "ping": call(ping)})
        (tmp_path / f"{name}.h").write_text(header(made), "utf-8")
    source = tmp_path / "all.c"
    calls = "\n".join(f"\tstruct {each} {each}_; {each}_open(&{each}_);" for each in names)
    includes = "\n".join(f'#include "{each}.h"' for each in names)
    source.write_text(f"{includes}\nvoid f(void)\n{{\n{calls}\n}}\n", "utf-8")
    compile_c(source, "x86_64")


def test_in_the_kernel_it_needs_no_other_header(tmp_path: Path) -> None:
    (tmp_path / "zoo.h").write_text(TEXT, "utf-8")
    source = tmp_path / "driver.c"
    source.write_text(
        '#include "zoo.h"\nunsigned long long signature = ZOO_OPEN_SIGNATURE;\n'
        "struct zoo {\n\tint own;\n};\n",
        "utf-8",
    )
    command = [sys.executable, "-m", "ziglang", "cc", "-D__KERNEL__", "-Wall", "-Wextra", "-Werror"]
    command += ["-c", str(source), "-o", str(tmp_path / "driver.o")]
    subprocess.run(command, check=True)
