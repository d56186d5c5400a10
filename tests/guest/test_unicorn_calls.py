# SPDX-License-Identifier: MIT
"""Trap instructions: whose they are, what they carry, and what others get (docs/abi.md, 6.3)."""

from collections.abc import Callable
from pathlib import Path

import pytest

from callgate import Device, GuestError, call, u8, u32, u64
from callgate.gate.abi import Status
from callgate.machine import Machine

Build = Callable[[str, str], Path]
ONES = (1 << 64) - 1
# Platform by architecture, with its trap instruction.
PLATFORMS = [
    ("x86_64", "kvm-intel", ".byte 0x0f, 0x01, 0xc1"),
    ("x86_64", "kvm-amd", ".byte 0x0f, 0x01, 0xd9"),
    ("i386", "kvm-intel", ".byte 0x0f, 0x01, 0xc1"),
    ("i386", "kvm-amd", ".byte 0x0f, 0x01, 0xd9"),
    ("i386", "lguest", "int $0x1f"),
    ("aarch64", "smccc", "hvc #0"),
    ("riscv64", "sbi", "ecall"),
]
REGISTERS = {
    "x86_64": ["rax", "rdi", "rsi", "rdx", "r10", "r8", "r9", "rbx", "rcx", "r11"],
    "i386": ["eax", "ebx", "ecx", "edx", "esi", "edi", "ebp"],
    "aarch64": [f"x{n}" for n in range(9)],
    "riscv64": ["a7", "a6", "a0", "a1", "a2", "a3", "a4", "a5", "t3"],
}
HALT = {"x86_64": "cli; hlt", "i386": "cli; hlt", "aarch64": "wfi", "riscv64": "wfi"}


class Sums(Device):
    """Has calls with all counts of slots."""

    id = 0x1AF4, 0x10F0

    @call
    def none(self) -> None:
        """Take and give nothing."""

    @call
    def one(self, a: u64) -> u64:
        """Add one."""
        return (a + 1) & ONES

    @call
    def three(self, a: u64, b: u64, c: u64) -> tuple[u64, u64, u64]:
        """Give the sums of neighbours."""
        return (a + b) & ONES, (b + c) & ONES, (c + a) & ONES

    @call
    def six(
        self, a: u64, b: u64, c: u64, d: u64, e: u64, f: u64
    ) -> tuple[u64, u64, u64, u64, u64, u64]:
        """Give all back in reverse."""
        return f, e, d, c, b, a

    @call
    def small(self, a: u8) -> u32:
        """Refuse what is no byte, before this runs."""
        return a

    @call
    def bug(self) -> None:
        """Fail."""
        raise ValueError("a bug in a model")


def load(arch: str) -> str:
    """Instructions that load REGISTERS from RAM + 0x8000, a 64-bit word for each."""
    names = REGISTERS[arch]
    if arch == "x86_64":
        return "\n".join(f"mov {0x8000 + 8 * at}, %{name}" for at, name in enumerate(names))
    if arch == "i386":
        return "\n".join(f"mov {0x8000 + 8 * at}, %{name}" for at, name in enumerate(names))
    if arch == "aarch64":
        loads = "\n".join(f"ldr {name}, [x17, #{8 * at}]" for at, name in enumerate(names))
        return f"movz x17, #0x4000, lsl #16\n movk x17, #0x8000\n{loads}"
    loads = "\n".join(f"ld {name}, {8 * at}(t6)" for at, name in enumerate(names))
    return f"li t6, 0x80008000\n{loads}"


class Caller:
    """A guest that makes one call with the registers that the host chooses, and halts."""

    def __init__(self, build: Build, arch: str, platform: str, instruction: str) -> None:
        source = f"_start: {load(arch)}\n{instruction}\ncalled: {HALT[arch]}\n"
        self.arch = arch
        self.device = Sums()
        self.machine = Machine(self.device, guest=build(arch, source), platform=platform)

    def __enter__(self) -> "Caller":
        return self

    def __exit__(self, *_: object) -> None:
        self.machine.close()

    def vector(self, name: str) -> int:
        gate = self.machine.functions[0].gate
        assert gate is not None
        binding = gate.binding(name)
        assert binding is not None
        return binding.vector

    def __call__(self, values: dict[str, int]) -> dict[str, int]:
        """Make the call with these registers, and give them all afterwards."""
        names = REGISTERS[self.arch]
        words = [values.get(name, 0x1111 * (at + 1)) for at, name in enumerate(names)]
        self.machine.reset()
        # The reset gave the calls new vectors.
        words = [word() if callable(word) else word for word in words]
        data = b"".join((word & ONES).to_bytes(8, "little") for word in words)
        self.machine.memory.write(self.machine.board.ram + 0x8000, data)
        with pytest.raises(GuestError, match=r"halted with interrupts off|waits for an interrupt"):
            self.machine.run()
        registers = self.machine.backend.registers()
        assert self.machine.system.symbol_at(registers[next(iter(registers))] - 1)
        return registers

    def call(self, name: str, *slots: int) -> tuple[Status, list[int]]:
        """Make a call by its name; the status and all result slots."""
        values: dict[str, object] = {}
        selector = self.machine.platform.offer.selector
        vector = lambda: self.vector(name)  # noqa: E731  looked up when it is used
        if self.arch == "i386":
            values["eax"] = vector
            for at, slot in enumerate(slots):
                values[REGISTERS["i386"][1 + 2 * at]] = slot & 0xFFFF_FFFF
                values[REGISTERS["i386"][2 + 2 * at]] = slot >> 32
        elif self.arch == "x86_64":
            values["rax"] = vector
            values.update(zip(REGISTERS["x86_64"][1:], slots, strict=False))
        elif self.arch == "aarch64":
            values |= {"x0": selector, "x1": vector}
            values.update(zip(REGISTERS["aarch64"][2:], slots, strict=False))
        else:
            values |= {"a7": selector, "a6": vector}
            values.update(zip(REGISTERS["riscv64"][2:], slots, strict=False))
        return self.answer(self(values))  # type: ignore[arg-type]

    def answer(self, registers: dict[str, int]) -> tuple[Status, list[int]]:
        if self.arch == "i386":
            halves = [registers[name] for name in REGISTERS["i386"][1:]]
            slots = [low | high << 32 for low, high in zip(halves[::2], halves[1::2], strict=True)]
            return Status(registers["eax"]), slots
        if self.arch == "x86_64":
            names = REGISTERS["x86_64"]
            return Status(registers["rax"]), [registers[name] for name in names[1:7]]
        if self.arch == "aarch64":
            return Status(registers["x0"]), [registers[f"x{n}"] for n in range(1, 7)]
        return Status(registers["a0"]), [registers[f"a{n}"] for n in range(1, 7)]


@pytest.fixture(params=PLATFORMS, ids=lambda each: f"{each[0]}-{each[1]}")
def platform(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    value: tuple[str, str, str] = request.param
    return value


def test_carries_all_counts_of_slots(build: Build, platform: tuple[str, str, str]) -> None:
    a, b, c = 0x1234_5678_9ABC_DEF0, 0xFFFF_FFFF_0000_0001, 0x8000_0000_0000_0000
    with Caller(build, *platform) as guest:
        assert guest.call("none")[0] == Status.OK
        status, slots = guest.call("one", ONES)
        assert (status, slots[0]) == (Status.OK, 0)
        status, slots = guest.call("three", a, b, c)
        assert (status, slots[:3]) == (Status.OK, [(a + b) & ONES, (b + c) & ONES, (c + a) & ONES])
        status, slots = guest.call("six", *([1, 2, 3, 4, 5, 6] if guest.arch != "i386" else []))
        if guest.arch == "i386":
            assert status == Status.BAD_FRAME
        else:
            assert (status, slots) == (Status.OK, [6, 5, 4, 3, 2, 1])


def test_answers_each_status(build: Build, platform: tuple[str, str, str]) -> None:
    with Caller(build, *platform) as guest:
        assert guest.call("small", 255)[0] == Status.OK
        assert guest.call("small", 256)[0] == Status.BAD_VALUE
        assert guest.call("bug")[0] == Status.DEVICE_FAULT
        guest.vector = lambda name: 12345  # type: ignore[method-assign]
        assert guest.call("none")[0] == Status.NO_SUCH_VECTOR


def test_leaves_other_registers_alone(build: Build, platform: tuple[str, str, str]) -> None:
    with Caller(build, *platform) as guest:
        _, slots = guest.call("one", 5)
        registers = guest.machine.backend.registers()
        # One result; what lies behind it is what the guest put there.
        if guest.arch == "i386":
            assert slots[1:] == [0x4444 | 0x5555 << 32, 0x6666 | 0x7777 << 32]
        elif guest.arch == "x86_64":
            assert slots[1:] == [0x3333, 0x4444, 0x5555, 0x6666, 0x7777]
            kept = [registers[name] for name in ("rbx", "rcx", "r11")]
            assert kept == [0x8888, 0x9999, 0xAAAA]
        elif guest.arch == "aarch64":
            # X2 had the argument.
            assert slots[1:] == [5, 0x4444, 0x5555, 0x6666, 0x7777]
            assert registers["x8"] == 0x9999
        else:
            # a6 had the vector.
            assert slots[1:] == [0x5555, 0x6666, 0x7777, 0x8888, guest.vector("one")]
            assert registers["t3"] == 0x9999


@pytest.mark.parametrize(
    ("arch", "platform", "registers", "answer"),
    [
        ("aarch64", "smccc", {"x0": 0x8400_0000}, {"x0": ONES}),  # PSCI_VERSION
        ("aarch64", "smccc", {"x0": 0xC600_CA12}, {"x0": ONES}),
        ("aarch64", "native", {"x0": 0xC600_CA11}, {"x0": ONES}),
        ("riscv64", "sbi", {"a7": 0x10}, {"a0": ONES - 1, "a1": 0}),  # base extension
        ("riscv64", "sbi", {"a7": 0x0800_CA11 | 1 << 32}, {"a0": ONES - 1}),
        ("riscv64", "native", {"a7": 0x0800_CA11}, {"a0": ONES - 1}),
    ],
)
def test_what_is_not_ours_is_not_supported(
    build: Build, arch: str, platform: str, registers: dict[str, int], answer: dict[str, int]
) -> None:
    instruction = "hvc #0" if arch == "aarch64" else "ecall"
    with Caller(build, arch, platform, instruction) as guest:
        after = guest(registers)
        assert {name: after[name] for name in answer} == answer


def test_smc_is_not_supported(build: Build) -> None:
    with Caller(build, "aarch64", "smccc", ".word 0xd4000003") as guest:
        assert guest({"x0": 0x8400_0000})["x0"] == ONES


@pytest.mark.parametrize(
    ("arch", "platform", "instruction"),
    [
        ("x86_64", "kvm-intel", ".byte 0x0f, 0x01, 0xd9"),
        ("x86_64", "kvm-amd", ".byte 0x0f, 0x01, 0xc1"),
        ("x86_64", "native", ".byte 0x0f, 0x01, 0xc1"),
        ("i386", "lguest", ".byte 0x0f, 0x01, 0xc1"),
    ],
)
def test_the_instruction_of_another_platform_is_invalid(
    build: Build, arch: str, platform: str, instruction: str
) -> None:
    guest = build(arch, f"_start: nop\n here: {instruction}\n hlt")
    with (
        Machine(Sums(), guest=guest, platform=platform) as machine,
        pytest.raises(GuestError, match=r"an invalid instruction, at 0x\w+ \(here\)"),
    ):
        machine.run()


def test_int_1f_is_an_interrupt_elsewhere(build: Build) -> None:
    guest = build("i386", "_start: mov $0x9000, %esp\n int $0x1f\n hlt")
    with (
        Machine(Sums(), guest=guest, platform="kvm-intel") as machine,
        pytest.raises(GuestError, match="IDT must have a gate for interrupt 0x1f"),
    ):
        machine.run()


@pytest.mark.parametrize(
    ("arch", "platform", "signature"),
    [
        ("x86_64", "kvm-intel", "KVMKVMKVM\0\0\0"),
        ("x86_64", "kvm-amd", "KVMKVMKVM\0\0\0"),
        ("x86_64", "native", None),
        ("i386", "kvm-intel", "KVMKVMKVM\0\0\0"),
        ("i386", "lguest", "lguestlguest"),
        ("i386", "native", None),
    ],
)
def test_cpuid_tells_the_platform(
    compile_c: Build, arch: str, platform: str, signature: str | None
) -> None:
    source = """
    static void cpuid(u32 leaf, u32 *out)
    {
        __asm__ volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3])
                         : "a"(leaf), "c"(0));
    }
    static void print_word(u32 word)
    {
        for (int i = 0; i < 4; i++)
            put((u8)(word >> 8 * i));
    }
    int main(void)
    {
        u32 out[4];
        cpuid(0x40000000, out);
        for (int i = 1; i < 4; i++)
            print_word(out[i]);
        cpuid(0, out);
        if (out[0] < 1 || !out[1])
            return 2;
        cpuid(1, out);
        if (!(out[3] >> 9 & 1) || !(out[3] & 1))
            return 3;
        return out[2] >> 31;
    }
    """
    with Machine(guest=compile_c(arch, source), platform=platform, timeout=10) as machine:
        result = machine.run()
    assert result.exit_code == (1 if signature else 0)
    assert result.output == (signature or "\0" * 12)


# Code in user mode, where I/O is allowed (IOPL 3) and interrupts are on.
USER = """
static u64 gdt[] = { 0, CODE, 0x00cf93000000ffff, CODE | 3ull << 45, 0x00cff3000000ffff };
static void user(void)
{
    u32 status;
    __asm__ volatile(INSTRUCTION : "=a"(status) : "a"(1) : "memory");
    out32(0xf4, status);
    for (;;)
        ;
}
int main(void)
{
    struct { u16 limit; word base; } __attribute__((packed)) table;
    table.limit = sizeof gdt - 1;
    table.base = (word)gdt;
    __asm__ volatile("lgdt %0" : : "m"(table));
#ifdef __x86_64__
    __asm__ volatile("pushq $0x23; pushq $0x90000; pushq $0x3202; pushq $0x1b; pushq %0; iretq"
                     : : "r"((word)user) : "memory");
#else
    __asm__ volatile("mov %1, %%ds; mov %1, %%es; pushl $0x23; pushl $0x90000; pushl $0x3202;"
                     "pushl $0x1b; pushl %0; iretl" : : "r"((word)user), "r"(0x23) : "memory");
#endif
    return 9;
}
"""


def user_program(arch: str, instruction: str) -> str:
    code = "0x00af9b000000ffffull" if arch == "x86_64" else "0x00cf9b000000ffffull"
    return f'#define CODE {code}\n#define INSTRUCTION "{instruction}"\n{USER}'


@pytest.mark.parametrize("arch", ["x86_64", "i386"])
def test_user_mode_may_not_call(compile_c: Build, arch: str) -> None:
    guest = compile_c(arch, user_program(arch, ".byte 0x0f, 0x01, 0xc1"))
    with Machine(Sums(), guest=guest, timeout=10) as machine:
        assert machine.run().exit_code == 0xFFFF_FFFF
        assert machine.system.faults.counts == {"hypercall": 1}


@pytest.mark.parametrize("arch", ["x86_64", "i386"])
def test_user_mode_is_not_interrupted(compile_c: Build, arch: str) -> None:
    guest = compile_c(arch, user_program(arch, "int $0x30"))
    with (
        Machine(Sums(), guest=guest, timeout=10) as machine,
        pytest.raises(GuestError, match="Interrupt 0x30 came in user mode"),
    ):
        machine.run()


def test_user_mode_may_not_ecall(build: Build) -> None:
    guest = build(
        "riscv64",
        "_start: li a0, 0x1800\n csrc mstatus, a0\n la a0, 1f\n csrw mepc, a0\n mret\n 1: ecall",
    )
    with (
        Machine(Sums(), guest=guest, timeout=10) as machine,
        pytest.raises(GuestError, match="made an ECALL in user mode"),
    ):
        machine.run()


# --- exceptions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "source", "message"),
    [
        ("x86_64", "here: ud2", r"executed an invalid instruction, at 0x\w+ \(here\)"),
        ("x86_64", "xor %ecx, %ecx\n here: div %ecx", r"a divide error, .*\(here\)"),
        ("x86_64", "mov $0x73, %eax\n here: mov %eax, %ds", r"general protection .*\(here\)"),
        ("i386", "here: ud2", r"executed an invalid instruction, at 0x\w+ \(here\)"),
        ("i386", "mov $0x73, %eax\n here: mov %eax, %ds", r"general protection .*\(here\)"),
        ("aarch64", "here: .word 0", r"an undefined instruction, .*\(here\)"),
        ("aarch64", "here: brk #1", r"a BRK instruction, .*\(here\)"),
        ("aarch64", "svc #1", "an SVC instruction"),
        ("riscv64", "here: .word 0", r"an illegal instruction, .*\(here\)"),
        ("riscv64", "here: csrw mhartid, a0", r"an illegal instruction, .*\(here\)"),
    ],
)
def test_an_exception_ends_the_run(build: Build, arch: str, source: str, message: str) -> None:
    with Machine(guest=build(arch, f"_start: nop\n {source}"), timeout=10) as machine:
        with pytest.raises(GuestError, match=message) as caught:
            machine.run()
        # Every register is in the report.
        for name, value in machine.backend.registers().items():
            width = machine.board.bits // 4
            assert f"{name:>6} {value:0{width}x}" in str(caught.value)


@pytest.mark.parametrize("arch", ["x86_64", "i386", "aarch64", "riscv64"])
def test_a_jump_to_nowhere_ends_the_run(build: Build, arch: str) -> None:
    jump = {
        "x86_64": "mov $0x70000000, %eax\n jmp *%rax",
        "i386": "mov $0x70000000, %eax\n jmp *%eax",
        "aarch64": "movz x0, #0x7000, lsl #16\n br x0",
        "riscv64": "li a0, 0x70000000\n jr a0",
    }
    with (
        Machine(guest=build(arch, f"_start: {jump[arch]}"), timeout=10) as machine,
        pytest.raises(GuestError, match="jumped to where there is no memory, at 0x70000000\n"),
    ):
        machine.run()


def test_semihosting_ends(build: Build) -> None:
    source = """
    _start: adr x1, block
    mov x0, #0x18
    hlt #0xf000
    b .
    .align 3
    block: .quad 0x20026, 3
    """
    with Machine(guest=build("aarch64", source), timeout=10) as machine:
        assert machine.run().exit_code == 3


def test_semihosting_of_another_reason_ends_with_1(build: Build) -> None:
    source = "_start: adr x1, block\n mov x0, #0x20\n hlt #0xf000\n b .\n .align 3\n"
    source += "block: .quad 0x20024, 3"
    with Machine(guest=build("aarch64", source), timeout=10) as machine:
        assert machine.run().exit_code == 1


def test_other_semihosting_is_not_supported(build: Build) -> None:
    source = "_start: mov x0, #5\n hlt #0xf000\n add x0, x0, #1\n exit"
    with Machine(guest=build("aarch64", source), timeout=10) as machine:
        assert machine.run().exit_code == 0
        assert machine.system.faults.counts == {"semihosting": 1}
