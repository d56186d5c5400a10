# SPDX-License-Identifier: MIT
"""The KVM backend: a guest begins, ends, and what ends it otherwise; nothing is left behind."""

import gc
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from callgate import BackendError, BudgetError, Device, GuestError, Machine, Register
from callgate.backends.kvm import probe, vm
from callgate.errors import CallgateError

Build = Callable[[str, str], Path]
LACKING = probe.lacks()
pytestmark = pytest.mark.skipif(LACKING is not None, reason=f"kvm: {LACKING}")
ARCHITECTURES = ("x86_64", "i386")


class Board(Device):
    """A register, and a timer for what timers do to a guest that runs."""

    id = 0x1AF4, 0x10F0
    value = Register(0x00, reset=5)

    def __init__(self) -> None:
        self.ticks = 0

    @value.on_write
    def _written(self, value: int) -> None:
        if value == 0xBAD:
            raise SystemExit("a model that ends the program")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Files and threads are as they were."""
    gc.collect()  # What an earlier test left is not to be counted.
    files = len(os.listdir("/proc/self/fd"))
    yield
    assert not [each.name for each in threading.enumerate() if each.name.startswith("callgate")]
    assert len(os.listdir("/proc/self/fd")) == files


def run(build: Build, source: str, arch: str = "x86_64", **options: object) -> str:
    """Run a program of a few lines; what it wrote."""
    chosen: dict[str, object] = {"timeout": 20.0, **options}
    with Machine(on="kvm", guest=build(arch, source), **chosen) as machine:  # type: ignore[arg-type]
        result = machine.run()
    assert result.exit_code == 7
    return result.output


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_writes_and_ends(build: Build, arch: str) -> None:
    assert run(build, "_start: put 'h'\n put 'i'\n mov $7, %eax\n exit", arch) == "hi"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_mode_at_the_entry(build: Build, arch: str) -> None:
    """Flat segments, interrupts off; 64-bit code has the first gigabytes one to one."""
    stack = "mov $0x9000, %esp\n pushf\n pop %{0}ax\n test $0x200, %eax\n jnz 1f\n"
    far = "movabs $0x700000000, %rbx\n cmpl $-1, (%rbx)\n jne 1f\n" if arch == "x86_64" else ""
    source = (
        f"_start: {stack.format('r' if arch == 'x86_64' else 'e')} {far} mov $7, %eax\n exit\n"
        "1: mov $1, %eax\n exit"
    )
    run(build, source, arch)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_triple_fault_is_told_with_the_registers(build: Build, arch: str) -> None:
    with pytest.raises(GuestError, match=r"triple fault.*at 0x\w+") as raised:
        run(build, "_start: mov $0x1234, %ebx\n ud2", arch)
    if probe.host().virtualizes:  # Where KVM is emulated in software, a shutdown resets.
        assert "rbx" in str(raised.value)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_guest_that_spins_with_interrupts_off(build: Build, arch: str) -> None:
    began = time.monotonic()
    with pytest.raises(BudgetError, match=r"used up its time at 0x100000 \(_start\)"):
        run(build, "_start: jmp _start", arch, timeout=0.2)
    assert time.monotonic() - began < 5


def test_a_guest_that_halts_for_ever(build: Build) -> None:
    with pytest.raises(GuestError, match="halted with interrupts off, and nothing can wake it"):
        run(build, "_start: cli\n 1: hlt\n jmp 1b", timeout=None)


def test_a_halted_guest_that_could_be_woken_uses_up_its_time(build: Build) -> None:
    with pytest.raises(BudgetError, match="used up its time"):
        run(build, "_start: sti\n 1: hlt\n jmp 1b", timeout=1.5)


def test_instructions_are_not_counted(build: Build) -> None:
    with pytest.raises(BackendError, match="kvm cannot count instructions"):
        run(build, "_start: jmp _start", instructions=1000)


def test_a_machine_goes_on_after_its_time(build: Build) -> None:
    source = "_start: inc %rbx\n mov $0x3fd, %dx\n in %dx, %al\n test $1, %al\n jz _start\n"
    with Machine(on="kvm", guest=build("x86_64", source + "mov $7, %eax\n exit")) as machine:
        machine.timeout = 0.1
        for _ in range(3):
            with pytest.raises(BudgetError):
                machine.run()
        before = machine.backend.registers()["rbx"]
        assert before > 0
        machine.console.feed(b"x")
        machine.timeout = 20
        assert machine.run().exit_code == 7
        assert machine.backend.registers()["rbx"] >= before


def test_string_instructions_reach_ports(build: Build) -> None:
    source = (
        "_start: lea text(%rip), %rsi\n mov $5, %ecx\n mov $0x3f8, %dx\n rep outsb\n"
        'mov $7, %eax\n exit\n text: .ascii "hello"'
    )
    assert run(build, source) == "hello"


def test_nothing_answers_where_nobody_is(build: Build) -> None:
    source = (
        "_start: mov $0x1234, %dx\n in %dx, %ax\n cmp $0xffff, %ax\n jne 1f\n"
        "mov $0xe0000000, %ebx\n cmpq $-1, (%rbx)\n jne 1f\n movl $5, (%rbx)\n"
        "mov $7, %eax\n exit\n 1: mov $1, %eax\n exit"
    )
    run(build, source)


def test_an_access_over_the_end_of_a_register(build: Build) -> None:
    """Half before the first page of a BAR, half in it: the processor makes two of it."""
    board = Board()
    source = (
        "_start: mov $0xb0008010, %ebx\n mov (%rbx), %ecx\n and $-16, %ecx\n"
        "cmpl $5, (%rcx)\n jne 1f\n cmpl $0x5ffff, -2(%rcx)\n jne 1f\n"
        "mov $7, %eax\n exit\n 1: mov $1, %eax\n exit"
    )
    with Machine(board, on="kvm", guest=build("x86_64", source), timeout=20) as machine:
        assert machine.run().exit_code == 7


def test_what_leaves_a_model_comes_out_of_run(build: Build) -> None:
    source = "_start: mov $0xb0008010, %ebx\n mov (%rbx), %ecx\n and $-16, %ecx\n"
    guest = build("x86_64", source + "movl $0xbad, (%rcx)\n 1: jmp 1b")
    with (
        Machine(Board(), on="kvm", guest=guest, timeout=20) as machine,
        pytest.raises(SystemExit, match="a model that ends the program"),
    ):
        machine.run()


def test_timers_run_while_the_guest_does(build: Build) -> None:
    board = Board()
    with Machine(board, on="kvm", guest=build("x86_64", "_start: jmp _start")) as machine:

        def tick() -> None:
            board.ticks += 1
            if board.ticks == 20:
                machine.stop()

        board.every(0.001, tick)
        machine.timeout = 20
        with pytest.raises(CallgateError, match="stopped"):
            machine.run()
    assert board.ticks == 20


def test_stop_from_another_thread_and_before_the_run(build: Build) -> None:
    with Machine(on="kvm", guest=build("x86_64", "_start: jmp _start"), timeout=20) as machine:
        began = time.monotonic()
        stopping = threading.Timer(0.1, machine.stop)
        stopping.start()
        with pytest.raises(CallgateError, match="stopped"):
            machine.run()
        stopping.join()
        machine.stop()
        with pytest.raises(CallgateError, match="stopped"):
            machine.run()
    assert time.monotonic() - began < 10


def test_ctrl_c_at_any_moment(build: Build) -> None:
    """While processors start, run or end; all of them have ended when it comes out of `run`."""
    guest = build("x86_64", "_start: jmp _start")
    moments = random.Random(5)
    with Machine(on="kvm", guest=guest, cpus=2, timeout=20) as machine:
        for _ in range(40):
            came = threading.Event()

            def interrupt(came: threading.Event = came) -> None:
                os.kill(os.getpid(), signal.SIGINT)
                came.set()

            timer = threading.Timer(moments.random() * 0.01, interrupt)
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012  it may come before the run
                timer.start()
                machine.run()
                assert came.wait(20)
            timer.join()
            assert not any("vCPU" in each.name for each in threading.enumerate())


def test_a_reset_begins_anew(build: Build) -> None:
    """Also one that the guest asks for (ACPI's reset register): RAM is lost, and all else."""
    source = (
        "_start: put '.'\n mov $0x200000, %ebx\n cmpl $0, (%rbx)\n jne 1f\n movl $1, (%rbx)\n"
        "mov $7, %eax\n exit\n 1: mov $1, %eax\n exit"
    )
    with Machine(on="kvm", guest=build("x86_64", source), timeout=20) as machine:
        for _ in range(3):
            result = machine.run()
            assert (result.exit_code, result.output) == (7, ".")
            machine.reset()
    source = (
        "_start: put '.'\n mov $0x3fd, %dx\n in %dx, %al\n test $1, %al\n jnz 1f\n"
        "mov $0x602, %dx\n mov $1, %al\n out %al, %dx\n 2: jmp 2b\n 1: mov $7, %eax\n exit"
    )
    with Machine(on="kvm", guest=build("x86_64", source), timeout=20) as machine:

        def feed_the_third(byte: int) -> None:
            if len(machine.console.output) == 3:
                machine.console.feed(b"x")

        machine.console.on_byte = feed_the_third
        result = machine.run()
        assert (result.exit_code, result.output) == (7, "...")
    with Machine(on="kvm", guest=build("x86_64", source), timeout=20, reboot=False) as machine:
        assert machine.run().output == "."


def test_soft_off_ends_the_guest(build: Build) -> None:
    source = "_start: mov $0x600, %dx\n mov $0x34, %al\n out %al, %dx\n 1: jmp 1b"
    with Machine(on="kvm", guest=build("x86_64", source), timeout=20) as machine:
        assert machine.run().exit_code == 0


def test_no_kvm_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(probe, "DEVICE", tmp_path / "kvm")
    with pytest.raises(BackendError, match=r"kvm: .*/kvm: No such file or directory: load the"):
        Machine(on="kvm")
    (tmp_path / "kvm").touch(mode=0o000)
    if os.geteuid():
        with pytest.raises(BackendError, match="Permission denied: add yourself to the group"):
            Machine(on="kvm")
    else:
        with pytest.raises(BackendError, match="Inappropriate ioctl"):
            Machine(on="kvm")


def test_a_module_without_a_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    real = probe._capabilities

    def less(device: int) -> dict[str, int]:
        return real(device) | {"KVM_CAP_IRQ_ROUTING": 0, "KVM_CAP_SIGNAL_MSI": 0}

    monkeypatch.setattr(probe, "_capabilities", less)
    with pytest.raises(BackendError) as raised:
        Machine(on="kvm")
    assert str(raised.value) == (
        "kvm: this kernel's KVM lacks KVM_CAP_SIGNAL_MSI (interrupt messages), "
        "KVM_CAP_IRQ_ROUTING (interrupt routes)"
    )


def test_no_more_room_for_memory(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """KVM has a limited number of slots, and says so by EINVAL."""
    monkeypatch.setattr(vm.Vm, "_set", _refuses_after(1, vm.Vm._set))
    with pytest.raises(BackendError, match=r"cannot be put at .*limited number of pieces"):
        Machine(Board(), on="kvm", guest=build("x86_64", "_start: jmp _start"))


def _refuses_after(count: int, real: Callable[..., None]) -> Callable[..., None]:
    left = [count]

    def limited(self: vm.Vm, slot: int, place: vm.Piece, size: int) -> None:
        left[0] -= 1
        if left[0] < 0 and size:
            raise OSError(22, "Invalid argument")
        real(self, slot, place, size)

    return limited


@pytest.mark.parametrize("cpus", [0, 100_000])
def test_how_many_processors_there_may_be(cpus: int) -> None:
    with pytest.raises(BackendError, match=r"must have 1 to \d+ processors"):
        Machine(on="kvm", cpus=cpus)
