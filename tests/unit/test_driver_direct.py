# SPDX-License-Identifier: MIT
"""DirectDoor: the driver's accesses are the bus's, without a processor."""

import threading

import pytest

from callgate.call import call, u64
from callgate.device import Device
from callgate.gate.abi import Instruction, Status
from callgate.register import Bar, Register
from callgate.testing import FakeGuest

MIB = 1 << 20


class Sample(Device):
    id = 0x1AF4, 0x10F0
    area = Bar(0, 0x1000)
    shared = Bar(1, 0x2000, ram=True)
    value = Register(0, reset=7)

    @call
    def add(self, a: u64, b: u64) -> u64:
        return a + b

    @call
    def pair(self) -> tuple[u64, u64]:
        return 1, 2


def test_it_maps_plain_memory_and_nothing_else() -> None:
    sample = Sample()
    with FakeGuest(sample) as guest:
        function = guest.function(*Sample.id)
        base = function.bar(1).address
        view = guest.door.map(base + 0x1000, 16)
        assert view is not None
        view[:3] = b"abc"
        assert bytes(sample.shared[0x1000:0x1003]) == b"abc"
        assert guest.door.map(base + 0x1FF8, 16) is None, "it ends before"
        assert guest.door.map(function.bar(0).address, 4) is None, "registers"
        assert guest.door.map(0xCF00_0000, 4) is None, "nothing"


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_it_maps_ram(arch: str) -> None:
    with FakeGuest(Sample(), arch=arch, ram=MIB) as guest:
        ram = guest.machine.board.ram
        view = guest.door.map(ram + 16, 4)
        assert view is not None
        view[:] = b"abcd"
        assert guest.memory.read(ram + 16, 4) == b"abcd"
        assert guest.door.map(ram + MIB - 2, 4) is None, "it ends before"


def test_memory_for_dma_is_apart_aligned_and_empty() -> None:
    with FakeGuest(Sample(), arch="aarch64", ram=MIB) as guest:
        guest.memory.write(guest.machine.board.ram, b"\xff" * MIB)
        found = [guest.door.allocate(length) for length in (1, 64, 65, 0)]
        ends = [memory.gpa + memory.length for memory in found]
        for memory, end in zip(found[1:], ends, strict=False):
            assert memory.gpa >= end
        assert all(memory.gpa % 64 == 0 for memory in found)
        assert guest.door.load(found[2].gpa, 65) == bytes(65)
        with pytest.raises(MemoryError, match="1048576 bytes for DMA are more than"):
            guest.door.allocate(MIB)


def test_memory_for_dma_is_ram_even_if_rom_lies_below() -> None:
    with FakeGuest(Sample(), arch="aarch64", ram=MIB) as guest:
        guest.memory.add(0x1000, bytes(0x1000))

        memory = guest.machine.door.allocate(16)
        guest.memory.write(memory.gpa, b"writable")


def test_hypercalls() -> None:
    with FakeGuest(Sample()) as guest:
        device = guest.open("sample")
        hypercall = guest.door.hypercall

        def make(vector: int, *slots: int) -> tuple[int, tuple[int, ...]]:
            return hypercall(Instruction.VMCALL, 0, vector, slots)

        assert make(device.calls["add"].vector, 2, 40) == (Status.OK, (42,))
        assert make(device.calls["add"].vector, 2) == (Status.OK, (2,)), "the rest is 0"
        assert make(device.calls["pair"].vector) == (Status.OK, (1, 2))
        assert make(0)[0] == Status.NO_SUCH_VECTOR


@pytest.mark.parametrize(("arch", "slots"), [("x86_64", 6), ("i386", 3), ("riscv64", 6)])
def test_registers_are_those_of_the_architecture(arch: str, slots: int) -> None:
    with FakeGuest(Sample(), arch=arch) as guest:
        assert guest.door.register_slots == slots


def test_each_thread_is_a_processor_of_its_own() -> None:
    """A call that waits for another thread's call does not share its slot."""

    class Meeting(Device):
        id = 0x1AF4, 0x10F1
        parallel = True

        def attach(self) -> None:
            self.barrier = threading.Barrier(2, timeout=10)

        @call
        def meet(self) -> u64:
            self.barrier.wait()
            return 1

    with FakeGuest(Meeting()) as guest:
        device = guest.open("meeting")
        answers: list[int] = []
        threads = [threading.Thread(target=lambda: answers.append(device.meet())) for _ in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [1, 1]


def test_a_pause_runs_the_timers_that_are_due() -> None:
    with FakeGuest(Sample()) as guest:
        ran: list[int] = []
        guest.machine.timers.after(1, lambda: ran.append(1))
        guest.door.pause(0)
        assert ran == []
        guest.clock.advance(1)
        guest.door.pause(0)
        assert ran == [1]
