# SPDX-License-Identifier: MIT
"""The KVM ABI: what each name means to a C compiler that reads the kernel's headers.

The declarations are turned into one C file, a line for each thing to compare, which is compiled but
never run: what the compiler made of a line lies in the object file under its symbol. Lines that it
refuses are names which the headers lack. The machine's own headers may be older or newer than what
is declared; those that come with ziglang lack none.
"""

import importlib.util
import mmap
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from ctypes import (
    Array,
    Structure,
    Union,
    addressof,
    alignment,
    c_char,
    c_uint64,
    c_void_p,
    sizeof,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from elftools.elf.elffile import ELFFile

from callgate.linux import kvm
from callgate.linux.ioctl import Ioctl
from callgate.linux.kvm import kvm_run
from callgate.linux.layout import flexible

COMPILERS = {
    "installed": ["gcc", "-fmax-errors=0"],
    "ziglang": [
        *(sys.executable, "-m", "ziglang", "cc"),
        *("-target", "x86_64-linux-musl", "-ferror-limit=0"),
    ],
}
HEAD = f"""#include <linux/kvm.h>
#include <linux/version.h>
#define PAGE_SIZE {mmap.PAGESIZE}
#define is_signed(x) ((__typeof__(x))-1 < 0)
"""


class Probe(NamedTuple):
    """An object in C, and the bytes that it must have."""

    name: str
    kind: str
    initializer: str
    value: bytes


def number(name: str, expression: str, value: int) -> Probe:
    return Probe(name, "unsigned long long", expression, value.to_bytes(8, "little"))


def element(kind: Any) -> tuple[Any, str]:
    """What an array is made of, and how C takes the first; itself if it is none."""
    index = ""
    while issubclass(kind, Array):
        kind, index = kind._type_, index + "[0]"
    return kind, index


def is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Structure | Union)


def is_anonymous(struct: Any, member: str) -> bool:
    return member in getattr(struct, "_anonymous_", ())


def untagged(struct: Any, path: str) -> Iterator[str]:
    """Yield the names of structures that have none in C, but are named by their path."""
    for member, kind, *_ in struct._fields_:
        inner, _ = element(kind)
        if inner.__name__ == f"{path}_{member}":
            yield inner.__name__
            yield from untagged(inner, path if is_anonymous(struct, member) else inner.__name__)


STRUCTURES = {name: value for name, value in vars(kvm).items() if is_struct(value)}
del STRUCTURES["Structure"], STRUCTURES["Union"]
UNTAGGED = {inner for name, struct in STRUCTURES.items() for inner in untagged(struct, name)}


def of_fields(tag: str, struct: Any, path: str = "", offset: int = 0) -> Iterator[Probe]:
    """Yield offset, size and signedness of each field, those of structures without a tag too."""
    for member, kind, *width in struct._fields_:
        inner, index = element(kind)
        at = offset + getattr(struct, member).offset
        here = f"{path}{member}"
        if is_anonymous(struct, member):
            yield from of_fields(tag, inner, path, at)
            continue
        name, c = f"struct {tag}.{here}", f"((struct {tag} *)0)->{here}"
        if width:
            whole = f"__typeof__(((struct {tag} *)0)->{path[:-1]})"
            for value in (1, -1):
                bits = bytes(struct(**{member: value}))
                yield Probe(name, whole, f"{{ .{member} = {value} }}", bits)
            continue
        yield number(name, f"__builtin_offsetof(struct {tag}, {here})", at)
        yield number(name, f"sizeof({c}{index})", sizeof(inner))
        if sizeof(kind):  # a flexible array has none
            yield number(name, f"sizeof({c})", sizeof(kind))
        if not is_struct(inner) and not index and inner is not c_void_p:
            yield number(name, f"is_signed({c})", inner(-1).value < 0)
        if inner.__name__ in UNTAGGED:
            yield from of_fields(tag, inner, f"{here}{index}.", at)


def probes() -> Iterator[Probe]:
    for name, value in vars(kvm).items():
        if isinstance(value, int) and name != "PAGESIZE":
            yield number(name, name, value)
        elif isinstance(value, Ioctl):
            yield number(name, name, value.number)
    for tag in STRUCTURES.keys() - UNTAGGED:
        struct = STRUCTURES[tag]
        yield number(f"struct {tag}", f"sizeof(struct {tag})", sizeof(struct))
        yield number(f"struct {tag}", f"_Alignof(struct {tag})", alignment(struct))
        yield from of_fields(tag, struct)


PROBES = list(probes())


@dataclass
class Headers:
    """What a compiler's headers say of the declarations."""

    version: str
    pinned: bool
    wrong: list[str] = field(default_factory=list)
    lacking: set[str] = field(default_factory=set)
    macros: set[str] = field(default_factory=set, repr=False)


def run(compiler: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMPILERS[compiler], "-std=gnu11", "-w", *arguments],
        cwd=folder,
        env=os.environ | {"LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )


def compiled(compiler: str, folder: Path) -> set[int]:
    """Compile probes.o, and return the numbers of the probes that are not in it."""
    lacking: set[int] = set()
    while True:
        lines = [
            f"const {probe.kind} p{n} = {probe.initializer};" if n not in lacking else ""
            for n, probe in enumerate(PROBES)
        ]
        (folder / "probes.c").write_text("\n".join([HEAD + "#line 1", *lines, ""]), "utf-8")
        result = run(compiler, "-c", "probes.c", "-o", "probes.o", folder=folder)
        if result.returncode == 0:
            return lacking
        refused = re.findall(r"^probes\.c:(\d+):.*\berror\b", result.stderr, re.MULTILINE)
        before = len(lacking)
        lacking |= {int(line) - 1 for line in refused}
        assert len(lacking) > before, result.stderr


@pytest.fixture(scope="module", params=COMPILERS)
def headers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Headers:
    compiler: str = request.param
    folder = tmp_path_factory.mktemp(compiler)
    if compiler == "ziglang" and importlib.util.find_spec("ziglang") is None:
        pytest.skip('ziglang: the package is not installed: pip install "callgate[guest]"')
    if compiler == "installed" and shutil.which("gcc") is None:
        pytest.skip("installed: there is no gcc to read <linux/kvm.h> with")
    (folder / "head.c").write_text(f"{HEAD}#ifndef __x86_64__\n#error not x86-64\n#endif\n")
    head = run(compiler, "-E", "-dM", "head.c", folder=folder)
    if compiler == "installed" and head.returncode:
        pytest.skip(f"installed: no <linux/kvm.h> for x86-64: {head.stderr.splitlines()[0]}")
    assert head.returncode == 0, head.stderr
    macros = dict(re.findall(r"^#define (\w+) (.*)", head.stdout, re.MULTILINE))
    code = int(macros["LINUX_VERSION_CODE"])
    version = f"the headers of Linux {code >> 16}.{code >> 8 & 0xFF}"
    said = Headers(version, pinned=compiler == "ziglang", macros=set(macros))
    lacking = compiled(compiler, folder)
    said.lacking = {PROBES[n].name for n in lacking}
    with (folder / "probes.o").open("rb") as file:
        elf: Any = ELFFile(file)
        symbols = {s.name: s for s in elf.get_section_by_name(".symtab").iter_symbols()}
        for n, probe in enumerate(PROBES):
            if n in lacking:
                continue
            symbol = symbols[f"p{n}"]
            section = elf.get_section(symbol["st_shndx"])
            at, size = symbol["st_value"], symbol["st_size"]
            # A section of zeros has no bytes in the file.
            value = bytes(size)
            if section["sh_type"] != "SHT_NOBITS":
                value = section.data()[at : at + size]
            if value != probe.value:
                is_, here = (f"{int.from_bytes(v, 'little'):#x}" for v in (value, probe.value))
                said.wrong.append(f"{probe.initializer} is {is_} in C, {here} in Python")
    return said


def test_what_is_declared_is_what_the_headers_say(headers: Headers) -> None:
    assert not headers.wrong, "\n".join(["", *headers.wrong])


def test_the_headers_have_all_that_is_declared(headers: Headers) -> None:
    # The fields of a structure that is lacking go without saying.
    names = {n for n in headers.lacking if n.rpartition(".")[0] not in headers.lacking}
    sentence = f"not compared, since {headers.version} lack them: {', '.join(sorted(names))}"
    if names and not headers.pinned:
        pytest.skip(sentence)
    assert not names, sentence


@pytest.mark.parametrize("headers", ["ziglang"], indirect=True)
def test_every_exit_is_declared(headers: Headers) -> None:
    of_left_out = re.compile(r"KVM_EXIT_(HYPERV_|ARM_SEA_FLAG_).*")
    exits = {n for n in headers.macros if n.startswith("KVM_EXIT_") and not of_left_out.match(n)}
    assert exits <= vars(kvm).keys()


def test_requests_know_their_names() -> None:
    for name, value in vars(kvm).items():
        if isinstance(value, Ioctl):
            assert value.name == name


def test_a_union_without_a_name_lends_its_fields() -> None:
    run = kvm_run()
    run.io.port = 0x3F8
    assert run.u.io.port == 0x3F8


# With /dev/kvm, where there is one.


class Machine(NamedTuple):
    """A VM of one vCPU, with 64 KiB of RAM at 0."""

    fd: int
    vm: int
    vcpu: int
    ram: mmap.mmap
    page: mmap.mmap
    run: kvm_run


@pytest.fixture
def machine() -> Iterator[Machine]:
    with ExitStack() as stack:

        def owned(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        try:
            fd = owned(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            pytest.skip(f"kvm: /dev/kvm: {error.strerror}")
        vm = owned(kvm.KVM_CREATE_VM(fd, 0))
        kvm.KVM_SET_TSS_ADDR(vm, 0xFFFBD000)  # more than a C int holds
        kvm.KVM_SET_IDENTITY_MAP_ADDR(vm, c_uint64(0xFFFBC000))
        kvm.KVM_CREATE_IRQCHIP(vm)
        kvm.KVM_CREATE_PIT2(vm, kvm.kvm_pit_config())
        ram = mmap.mmap(-1, 0x10000)
        slot = kvm.kvm_userspace_memory_region(
            memory_size=len(ram),
            userspace_addr=addressof(c_char.from_buffer(ram)),
            flags=kvm.KVM_MEM_LOG_DIRTY_PAGES,
        )
        kvm.KVM_SET_USER_MEMORY_REGION(vm, slot)
        vcpu = owned(kvm.KVM_CREATE_VCPU(vm, 0))
        page = mmap.mmap(vcpu, kvm.KVM_GET_VCPU_MMAP_SIZE(fd))
        yield Machine(fd, vm, vcpu, ram, page, kvm_run.from_buffer(page))


def boot(machine: Machine, code: bytes, **registers: int) -> None:
    """Let the vCPU stand before `code`, in real mode."""
    machine.ram[0x1000 : 0x1000 + len(code)] = code
    sregs = kvm.kvm_sregs()
    kvm.KVM_GET_SREGS(machine.vcpu, sregs)
    sregs.cs.base = sregs.cs.selector = 0
    kvm.KVM_SET_SREGS(machine.vcpu, sregs)
    kvm.KVM_SET_REGS(machine.vcpu, kvm.kvm_regs(rip=0x1000, rflags=2, **registers))


OUT = b"\xee\xfe\xc0\xeb\xfb"  # 1: out %al, %dx; inc %al; jmp 1b


def test_a_guests_out_lies_behind_the_run_structure(machine: Machine) -> None:
    boot(machine, OUT, rax=ord("A"), rdx=0x3F8)
    said = b""
    for _ in range(3):
        assert kvm.KVM_RUN(machine.vcpu) == 0
        assert machine.run.exit_reason == kvm.KVM_EXIT_IO
        io = machine.run.u.io
        assert (io.direction, io.size, io.port, io.count) == (kvm.KVM_EXIT_IO_OUT, 1, 0x3F8, 1)
        said += machine.page[io.data_offset : io.data_offset + io.size * io.count]
    assert said == b"ABC"


def test_a_run_that_is_interrupted_is_not_restarted(machine: Machine) -> None:
    if not kvm.KVM_CHECK_EXTENSION(machine.fd, kvm.KVM_CAP_IMMEDIATE_EXIT):
        pytest.skip("kvm: KVM_CAP_IMMEDIATE_EXIT is 0")
    boot(machine, OUT)
    machine.run.immediate_exit = 1
    with pytest.raises(InterruptedError, match="KVM_RUN: Interrupted system call"):
        kvm.KVM_RUN(machine.vcpu)


def test_registers_are_in_the_run_structure(machine: Machine) -> None:
    valid = kvm.KVM_CHECK_EXTENSION(machine.fd, kvm.KVM_CAP_SYNC_REGS)
    if not valid & kvm.KVM_SYNC_X86_REGS:
        pytest.skip(f"kvm: KVM_CAP_SYNC_REGS is {valid}")
    boot(machine, OUT, rax=0x41, rdx=0x3F8)
    machine.run.kvm_valid_regs = kvm.KVM_SYNC_X86_REGS
    kvm.KVM_RUN(machine.vcpu)
    regs = machine.run.s.regs.regs
    assert (regs.rax, regs.rdx) == (0x41, 0x3F8)
    regs.rax = 0x60
    machine.run.kvm_dirty_regs = kvm.KVM_SYNC_X86_REGS
    kvm.KVM_RUN(machine.vcpu)
    assert regs.rax == 0x61


def test_a_coalesced_write_lies_in_the_ring(machine: Machine) -> None:
    if not kvm.KVM_CHECK_EXTENSION(machine.fd, kvm.KVM_CAP_COALESCED_PIO):
        pytest.skip("kvm: KVM_CAP_COALESCED_PIO is 0")
    zone = kvm.kvm_coalesced_mmio_zone(addr=0x600, size=1, pio=1)
    kvm.KVM_REGISTER_COALESCED_MMIO(machine.vm, zone)
    boot(machine, b"\xee\xba\xf8\x03\xee", rax=0x41, rdx=0x600)  # out; mov $0x3f8, %dx; out
    kvm.KVM_RUN(machine.vcpu)
    assert (machine.run.exit_reason, machine.run.io.port) == (kvm.KVM_EXIT_IO, 0x3F8)
    ring = flexible(kvm.kvm_coalesced_mmio_ring, kvm.KVM_COALESCED_MMIO_MAX).from_buffer(
        machine.page, kvm.KVM_COALESCED_MMIO_PAGE_OFFSET * mmap.PAGESIZE
    )
    assert (ring.first, ring.last) == (0, 1)
    write = ring.coalesced_mmio[ring.first]
    assert (write.phys_addr, write.len, write.pio, write.data[0]) == (0x600, 1, 1, 0x41)


STATES = ("REGS", "SREGS", "SREGS2", "FPU", "XSAVE", "XCRS", "LAPIC", "VCPU_EVENTS", "DEBUGREGS")


@pytest.mark.parametrize("state", [*STATES, "MP_STATE"])
def test_the_kernel_takes_back_a_vcpus_state(machine: Machine, state: str) -> None:
    cap = f"KVM_CAP_{state}"
    if not kvm.KVM_CHECK_EXTENSION(machine.fd, getattr(kvm, cap, kvm.KVM_CAP_USER_MEMORY)):
        pytest.skip(f"kvm: {cap} is 0")
    struct = getattr(kvm, {"LAPIC": "kvm_lapic_state"}.get(state, f"kvm_{state.lower()}"))()
    getattr(kvm, f"KVM_GET_{state}")(machine.vcpu, struct)
    getattr(kvm, f"KVM_SET_{state}")(machine.vcpu, struct)


def test_the_kernel_takes_back_a_vms_state(machine: Machine) -> None:
    for chip in range(kvm.KVM_NR_IRQCHIPS):
        irqchip = kvm.kvm_irqchip(chip_id=chip)
        kvm.KVM_GET_IRQCHIP(machine.vm, irqchip)
        kvm.KVM_SET_IRQCHIP(machine.vm, irqchip)
    assert irqchip.chip.ioapic.base_address == 0xFEC00000
    pit = kvm.kvm_pit_state2()
    kvm.KVM_GET_PIT2(machine.vm, pit)
    kvm.KVM_SET_PIT2(machine.vm, pit)
    kvm.KVM_GET_CLOCK(machine.vm, clock := kvm.kvm_clock_data())
    kvm.KVM_SET_CLOCK(machine.vm, kvm.kvm_clock_data(clock=clock.clock))


def test_flexible_arrays_come_filled(machine: Machine) -> None:
    cpuid = flexible(kvm.kvm_cpuid2, 256)(nent=256)
    kvm.KVM_GET_SUPPORTED_CPUID(machine.fd, cpuid)
    assert 0 < cpuid.nent <= 256
    assert 0x80000000 in {entry.function for entry in cpuid.entries[: cpuid.nent]}
    kvm.KVM_SET_CPUID2(machine.vcpu, cpuid)
    msrs = flexible(kvm.kvm_msrs, 2)(nmsrs=2, entries=((0x174, 0, 8), (0x175, 0, 0x9000)))
    assert kvm.KVM_SET_MSRS(machine.vcpu, msrs) == 2
    again = flexible(kvm.kvm_msrs, 2)(nmsrs=2, entries=((0x174,), (0x175,)))
    assert kvm.KVM_GET_MSRS(machine.vcpu, again) == 2
    assert [entry.data for entry in again.entries] == [8, 0x9000]
