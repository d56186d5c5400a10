# SPDX-License-Identifier: MIT
"""The KVM backend's VM: interrupts by route and without, lines, memory that changes, state."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from callgate import BackendError, Bar, Device, Machine, Register, call, u64
from callgate.backends.kvm import probe, vm
from callgate.backends.kvm.backend import Kvm
from callgate.driver.find import open_device
from callgate.gate.abi import DoorbellRegister, Feature
from callgate.linux import kvm
from callgate.memory import anonymous
from callgate.pci.bus import Place
from callgate.testing.agent import AgentDoor

Build = Callable[[str, str], Path]
LACKING = probe.lacks()
pytestmark = pytest.mark.skipif(LACKING is not None, reason=f"kvm: {LACKING}")
HALTED = "_start: jmp _start"
APIC = 0xFEE0_0000

# A handler at vector 0x41 that ends the guest with what it counted; the main loop waits for it.
INTERRUPTED = """
_start:
    mov $0x90000, %esp
    lgdt gdtr(%rip)
    lea handler(%rip), %rax
    lea idt(%rip), %rbx
    mov %ax, 0x410(%rbx)
    movw $0x10, 0x412(%rbx)
    movw $0x8e00, 0x414(%rbx)
    shr $16, %rax
    mov %ax, 0x416(%rbx)
    lidt idtr(%rip)
    mov $0xff, %al
    out %al, $0x21
    out %al, $0xa1
    mov $0xfee000f0, %ebx
    movl $0x1ff, (%rbx)
    put 'r'
    sti
1:  hlt
    jmp 1b
handler:
    incl count(%rip)
    mov $0xfee000b0, %ebx
    movl $0, (%rbx)
    put '!'
    cmpl $3, count(%rip)
    je 2f
    iretq
2:  mov $7, %eax
    exit
    .balign 16
gdt: .quad 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdtr: .word . - gdt - 1
    .quad gdt
    .balign 16
idt: .space 0x1000
idtr: .word 0xfff
    .quad idt
count: .long 0
"""


def backend_of(machine: Machine) -> Kvm:
    assert isinstance(machine.backend, Kvm)
    return machine.backend


@pytest.mark.parametrize("routed", [True, False])
def test_messages_interrupt_by_route_and_without(
    build: Build, routed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not routed:
        monkeypatch.setattr(vm, "_ROUTES", 0)
    with Machine(on="kvm", guest=build("x86_64", INTERRUPTED), timeout=20) as machine:

        def interrupt(byte: int) -> None:
            machine.system.send(APIC, 0x41)

        machine.console.on_byte = interrupt
        result = machine.run()
        assert (result.exit_code, result.output) == (7, "r!!!")
        assert len(backend_of(machine)._started()._routing) == routed


def test_more_messages_than_there_are_routes(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm, "_ROUTES", 4)
    with Machine(on="kvm", guest=build("x86_64", HALTED), timeout=20) as machine:
        files = len(os.listdir("/proc/self/fd"))
        for data in range(0x40, 0x50):
            machine.system.send(APIC, data)
            machine.system.send(APIC, data)
        assert len(os.listdir("/proc/self/fd")) == files + 4


def test_a_line_is_up_while_anybody_pulls_it(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, bool]] = []
    with Machine(on="kvm", guest=build("x86_64", HALTED), timeout=20) as machine:
        monkeypatch.setattr(
            machine.backend, "set_line", lambda gsi, level: seen.append((gsi, level))
        )
        system = machine.system
        for slot, level in ((1, True), (9, True), (1, False), (9, False), (2, True)):
            system.set_intx(Place(slot, 0), level)
    # Slots 1 and 9 share a line.
    assert seen == [(17, True), (17, True), (17, True), (17, False), (18, True)]


def test_what_is_read_can_be_set_and_is_read_again(build: Build) -> None:
    source = "_start: mov $0x1234, %ebx\n mov $7, %eax\n exit"
    guest = build("x86_64", source)
    with Machine(on="kvm", guest=guest, timeout=20) as one:
        one.run()
        state = backend_of(one).state()
        registers = one.backend.registers()
    with Machine(on="kvm", guest=guest, timeout=20) as other:
        assert other.backend.registers() != registers
        backend_of(other).set_state(state)
        assert other.backend.registers() == registers
        again = backend_of(other).state()
    (before,), (after,) = state["vcpus"], again["vcpus"]
    # What counts time goes on: the TSC, among the MSRs.
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"msrs"}
    for name in ("irqchip_0", "irqchip_1", "irqchip_2"):
        assert state["vm"][name] == again["vm"][name]


def test_a_machine_goes_on_from_a_state(build: Build) -> None:
    """Registers come from one machine, memory is copied: the other takes the guest over."""
    source = (
        "_start: mov $41, %ecx\n put 'a'\n"
        "1: mov $0x3fd, %dx\n in %dx, %al\n test $1, %al\n jz 1b\n"
        "mov $0x3f8, %dx\n in %dx, %al\n inc %ecx\n mov %ecx, %eax\n exit"
    )
    guest = build("x86_64", source)
    with (
        Machine(on="kvm", guest=guest, timeout=20) as one,
        Machine(on="kvm", guest=guest, timeout=20) as other,
    ):
        one.console.on_byte = lambda byte: one.stop()
        with pytest.raises(Exception, match="stopped"):
            one.run()
        other.memory.write(0, one.memory.read(0, 1 << 21))
        backend_of(other).set_state(backend_of(one).state())
        other.console.feed(b"x")
        assert other.run().exit_code == 42
        assert other.console.text == ""


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: state["vcpus"].clear(), "0 processors cannot be set in a machine of 1"),
        (lambda state: state["vcpus"][0].pop("regs"), "a state must have regs"),
        (lambda state: state["vm"].pop("clock"), "a state must have clock"),
        (
            lambda state: state["vcpus"][0].update(lapic=bytes(5)),
            "lapic must have 1024 bytes, as this KVM's has, not 5",
        ),
    ],
)
def test_a_state_that_does_not_fit(
    build: Build, change: Callable[[dict[str, Any]], object], sentence: str
) -> None:
    with Machine(on="kvm", guest=build("x86_64", HALTED), timeout=20) as machine:
        state = backend_of(machine).state()
        change(state)
        with pytest.raises(BackendError, match=sentence):
            backend_of(machine).set_state(state)


def test_memory_comes_and_goes(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """RAM that is added is a slot of the VM; what is removed is none, and its number is free."""
    slots: list[tuple[int, int, int]] = []
    real = kvm.KVM_SET_USER_MEMORY_REGION

    def spy(fd: int, region: Any) -> int:
        slots.append((region.slot, region.guest_phys_addr, region.memory_size))
        return real(fd, region)

    monkeypatch.setattr(vm, "KVM_SET_USER_MEMORY_REGION", spy)
    address, size = 1 << 33, 1 << 21
    with (
        anonymous(size) as more,
        Machine(on="kvm", guest=build("x86_64", HALTED), timeout=20) as machine,
    ):
        slots.clear()
        for _ in range(3):
            machine.memory.add(address, more)
            machine.memory.remove(address)
    number = slots[0][0]
    assert slots == [(number, address, size), (number, address, 0)] * 3


class Posting(Device):
    """One-way calls without arguments, which NOTIFY takes."""

    id = 0x1AF4, 0x10F3

    def __init__(self) -> None:
        self.threads: list[str] = []

    @call(one_way=True)
    def poke(self) -> None:
        self.threads.append(threading.current_thread().name)

    @call
    def add(self, a: u64, b: u64) -> u64:
        return a + b


def test_one_way_doorbells_are_eventfds(guests: Path) -> None:
    """The call runs on a thread of its own, with no exit; a stale vector's write is one."""
    device = Posting()
    with Machine(device, on="kvm", guest=guests / "x86_64" / "agent.elf", timeout=20) as machine:
        door = AgentDoor(machine)
        driver = open_device("posting", door)
        assert driver.features & Feature.NOTIFY
        bells = backend_of(machine)._doorbells
        assert bells is not None
        assert len(bells._files) == 2  # In the page and at the port.
        for _ in range(3):
            driver.notify("poke")
        until(lambda: len(device.threads) == 3)
        assert set(device.threads) == {"callgate doorbells"}
        stale = driver.calls["poke"].vector
        device.gate.bind("poke")
        assert stale not in {bell.vector for bell in bells._files}
        door.write(driver.doorbell + DoorbellRegister.NOTIFY, 4, stale)
        assert device.faults.counts["notify"] == 1
        driver.function.set_config(0x04, 2, 0)
        assert not bells._files
        driver.function.set_config(0x04, 2, 7)
        assert len(bells._files) == 2
    assert not bells._files


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


class Screen(Device):
    """A BAR that combines writes, and one that does not."""

    id = 0x1AF4, 0x10F4
    pixels = Bar(0, 0x1000, write_combining=True)
    control = Bar(1, 0x1000)
    begin = Register(0, bar=control)

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int]] = []

    @pixels.on_write
    def _pixel(self, offset: int, size: int, value: int) -> None:
        self.seen.append(("pixel", offset, value))

    @pixels.on_read
    def _shown(self, offset: int, size: int) -> int:
        return len(self.seen)

    @begin.on_write
    def _begin(self, value: int) -> None:
        self.seen.append(("begin", value, len(self.seen)))


FIND = """
_start:
    mov $0xb0008010, %ebx
    mov (%rbx), %ecx
    mov 4(%rbx), %edx
    and $-16, %ecx
    and $-16, %edx
"""


def test_combined_writes_come_in_order_and_before_other_accesses(build: Build) -> None:
    source = FIND + (
        "mov $0, %esi\n 1: mov %esi, (%rcx,%rsi,4)\n inc %esi\n cmp $300, %esi\n jne 1b\n"
        "movl $7, (%rdx)\n movl $9, 4(%rcx)\n mov (%rcx), %eax\n exit"
    )
    screen = Screen()
    with Machine(screen, on="kvm", guest=build("x86_64", source), timeout=20) as machine:
        result = machine.run()
    wanted = [("pixel", 4 * at, at) for at in range(300)]
    assert screen.seen == [*wanted, ("begin", 7, 300), ("pixel", 4, 9)]
    assert result.exit_code == 302, "a read sees all that was written before"


def test_a_combined_write_does_not_wait_for_ever(build: Build) -> None:
    screen = Screen()
    guest = build("x86_64", FIND + "movl $5, 8(%rcx)\n 1: jmp 1b")
    with Machine(screen, on="kvm", guest=guest, timeout=20) as machine:
        machine.timers.every(0.001, lambda: machine.stop() if screen.seen else None)
        with pytest.raises(Exception, match="stopped"):
            machine.run()
    assert screen.seen == [("pixel", 8, 5)]


def test_writes_are_combined_where_the_bar_is_now(build: Build) -> None:
    with Machine(Screen(), on="kvm", guest=build("x86_64", HALTED), timeout=20) as machine:
        combined = backend_of(machine)._started().combined
        assert combined is not None
        function = machine.functions[0]
        assert len(combined._zones) == 1
        function.config_write(0x10, 4, 0xC100_0000)
        assert combined._zones == {(0xC100_0000, 0x1000)}
        function.config_write(0x04, 2, 0)
        assert not combined.active
