# SPDX-License-Identifier: MIT
"""What a guest's loads and stores reach: RAM, windows of BARs, nothing; and how windows move."""

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from callgate import Bar, BudgetError, Device, GuestError, Register
from callgate.backends.board import BOARDS
from callgate.machine import Machine
from callgate.memory import anonymous

Build = Callable[[str, str], Path]
ARCHITECTURES = tuple(BOARDS)


@pytest.fixture(params=ARCHITECTURES)
def arch(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def pattern(offset: int, size: int) -> int:
    return int.from_bytes(bytes((offset + at) * 7 + 3 & 0xFF for at in range(size)), "little")


class Recorder(Device):
    """Answers with a pattern, and writes down what it was asked."""

    id = 0x1AF4, 0x10F0
    trapped = Bar(0, 0x2000)
    shared = Bar(1, 0x4000, ram=True)
    ports = Bar(2, 16, "io")

    def __init__(self) -> None:
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, int, int]] = []

    @trapped.on_read
    def read(self, offset: int, size: int) -> int:
        self.reads.append((offset, size))
        return pattern(offset, size)

    @trapped.on_write
    def write(self, offset: int, size: int, value: int) -> None:
        self.writes.append((offset, size, value))

    @ports.on_read
    def read_port(self, offset: int, size: int) -> int:
        return pattern(offset, size)

    @ports.on_write
    def write_port(self, offset: int, size: int, value: int) -> None:
        self.writes.append((0x10000 + offset, size, value))


# Loads or stores at an address that the host chooses: it writes address and value to RAM, and the
# guest goes on from its endless loop when the word `go` is set.
MATRIX = """
struct order { u64 go, address, size, value, store; };
int main(void)
{
    volatile struct order *order = (volatile struct order *)(word)(RAM + 0x8000);
    for (;;) {
        while (!order->go)
            ;
        word a = (word)order->address;
        if (order->store) {
            switch (order->size) {
            case 1: MEM(u8, a) = (u8)order->value; break;
            case 2: MEM(u16, a) = (u16)order->value; break;
            case 4: MEM(u32, a) = (u32)order->value; break;
            case 8: MEM(u64, a) = order->value; break;
            default: return 3;
            }
        } else {
            switch (order->size) {
            case 1: order->value = MEM(u8, a); break;
            case 2: order->value = MEM(u16, a); break;
            case 4: order->value = MEM(u32, a); break;
            case 8: order->value = MEM(u64, a); break;
            default: return 3;
            }
        }
        order->go = 0;
        put('\\n');
    }
}
"""


class Probe:
    """A guest that makes one access at a time."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.at = machine.board.ram + 0x8000

    def __call__(self, address: int, size: int, value: int | None = None) -> int:
        words = (1, address, size, value or 0, int(value is not None))
        self.machine.memory.write(self.at, b"".join(each.to_bytes(8, "little") for each in words))
        self.machine.exchange(b"")
        return int.from_bytes(self.machine.memory.read(self.at + 24, 8), "little")


def test_every_access_arrives_as_the_guest_made_it(compile_c: Build, arch: str) -> None:
    device = Recorder()
    widths = (1, 2, 4) if arch == "i386" else (1, 2, 4, 8)
    with Machine(device, guest=compile_c(arch, MATRIX), timeout=20) as machine:
        probe = Probe(machine)
        base = machine.functions[0].bars[0].address
        for size in widths:
            for offset in [*range(9), 0xFF8, *range(0xFF9, 0x1009), 0x1FF0]:
                value = pattern(offset + 1, size)
                assert probe(base + offset, size) == pattern(offset, size), (size, hex(offset))
                probe(base + offset, size, value)
                assert device.reads == [(offset, size)]
                assert device.writes == [(offset, size, value)]
                device.reads.clear()
                device.writes.clear()


def test_i386_makes_two_accesses_of_eight_bytes(compile_c: Build) -> None:
    device = Recorder()
    with Machine(device, guest=compile_c("i386", MATRIX), timeout=20) as machine:
        probe = Probe(machine)
        base = machine.functions[0].bars[0].address
        assert probe(base, 8) == pattern(0, 8)
        assert sorted(device.reads) == [(0, 4), (4, 4)]


def test_an_access_over_the_end_of_a_window_reaches_nothing(compile_c: Build, arch: str) -> None:
    device = Recorder()
    with Machine(device, guest=compile_c(arch, MATRIX), timeout=20) as machine:
        probe = Probe(machine)
        bars = machine.functions[0].bars
        end = bars[0].address + 0x2000
        assert probe(end - 2, 4) == 0xFFFF_FFFF
        probe(end - 2, 4, 0x1234)
        probe(end - 1, 1, 0x56)
        assert device.reads == []
        assert device.writes == [(0x1FFF, 1, 0x56)]


def test_an_access_over_the_end_of_plain_memory(compile_c: Build, arch: str) -> None:
    device = Recorder()
    with Machine(device, guest=compile_c(arch, MATRIX), timeout=20) as machine:
        probe = Probe(machine)
        end = machine.board.ram + 0x200_0000
        probe(end - 4, 4, 0x1122_3344)
        probe(end - 2, 4, 0x5566_7788)
        # The bytes in RAM are RAM's, and the others go nowhere.
        assert machine.memory.read(end - 4, 2) == b"\x44\x33"
        assert probe(end - 4, 2) == 0x3344


def test_nothing_reads_all_ones_and_drops_writes(compile_c: Build, arch: str) -> None:
    with Machine(guest=compile_c(arch, MATRIX), timeout=30) as machine:
        probe = Probe(machine)
        # More places than the backend keeps mapped, and each twice.
        places = [machine.board.ram + 0x200_0000 + at * 0x20_0000 for at in range(100)]
        random.Random(7).shuffle(places)
        for place in [*places, *places]:
            if not (machine.board.bars.base <= place < machine.board.bars.end):
                probe(place, 4, 0xDEAD)
                assert probe(place, 4) == 0xFFFF_FFFF
        faults = machine.bus.faults.counts
        assert faults["memory read"] == faults["memory write"] >= 150


def test_nothing_at_the_end_of_the_address_space(compile_c: Build, arch: str) -> None:
    with Machine(guest=compile_c(arch, MATRIX), timeout=20) as machine:
        probe = Probe(machine)
        assert probe(0xFFFF_FFFF, 1) == 0xFF
        if machine.board.bits == 64:
            assert probe((1 << 64) - 4104, 8) == (1 << 64) - 1
        if arch == "x86_64":
            assert probe((1 << 64) - 8, 8) == (1 << 64) - 1
        elif machine.board.bits == 64:
            # Here the library gives up.
            with pytest.raises(GuestError, match="the last page of the address space"):
                probe((1 << 64) - 8, 8)


def test_a_window_of_memory_is_shared_without_traps(compile_c: Build, arch: str) -> None:
    device = Recorder()
    with Machine(device, guest=compile_c(arch, MATRIX), timeout=20) as machine:
        probe = Probe(machine)
        base = machine.functions[0].bars[1].address
        probe(base + 0x1004, 4, 0x1234_5678)
        assert bytes(device.shared[0x1004:0x1008]) == b"\x78\x56\x34\x12"
        device.shared[0:4] = b"\x01\x02\x03\x04"
        assert probe(base, 4) == 0x0403_0201
        assert machine.bus.faults.counts == {}


def test_rom_drops_writes(compile_c: Build, arch: str) -> None:
    with Machine(guest=compile_c(arch, MATRIX), timeout=20) as machine:
        probe = Probe(machine)
        gpa = machine.board.ram + 0x400_0000
        machine.memory.add(gpa, b"ROM!" * 1024)
        assert probe(gpa, 4) == int.from_bytes(b"ROM!", "little")
        probe(gpa, 4, 7)
        assert probe(gpa, 4) == int.from_bytes(b"ROM!", "little")


# The config access and what follows it are neighbours in one block of instructions.
MOVE = """
int main(void)
{
    u32 trapped = BAR(0), shared = BAR(1), step = 0x100000;
    COMMAND = 6;
    for (int round = 0; round < 200; round++) {
        MEM(u32, shared + 4) = 0x1234 + (u32)round;
        CONFIG(0x10) = trapped + step;
        u32 gone = MEM(u32, trapped + 8);
        u32 here = MEM(u32, trapped + step + 8);
        CONFIG(0x14) = shared + step;
        u32 shared_gone = MEM(u32, shared + 4);
        u32 shared_here = MEM(u32, shared + step + 4);
        MEM(u32, shared) = 0xbad;
        MEM(u32, shared + step) = 0x600d;
        if (gone != ~0u || here != EIGHT)
            return 1;
        if (shared_gone != ~0u || shared_here != 0x1234 + (u32)round)
            return 2;
        if (MEM(u32, shared + step) != 0x600d)
            return 3;
        CONFIG(0x10) = trapped;
        CONFIG(0x14) = shared;
        if (MEM(u32, trapped + 8) != EIGHT || MEM(u32, trapped + step + 8) != ~0u)
            return 4;
        if (MEM(u32, shared) != 0x600d || MEM(u32, shared + step) != ~0u)
            return 5;
        COMMAND = 0;
        u32 off = MEM(u32, trapped + 8) & MEM(u32, shared);
        COMMAND = 6;
        u32 on = MEM(u32, trapped + 8);
        if (off != ~0u || on != EIGHT || MEM(u32, shared) != 0x600d)
            return 6;
        /* Each where the other was. */
        CONFIG(0x10) = shared;
        CONFIG(0x14) = trapped;
        if (MEM(u32, shared + 8) != EIGHT || MEM(u32, trapped) != 0x600d)
            return 7;
        CONFIG(0x10) = trapped;
        CONFIG(0x14) = shared;
    }
    return 0;
}
"""


def test_a_bar_that_moves_answers_at_its_new_place_at_once(compile_c: Build, arch: str) -> None:
    source = MOVE.replace("EIGHT", f"{pattern(8, 4):#x}u")
    with Machine(Recorder(), guest=compile_c(arch, source), timeout=30) as machine:
        assert machine.run().exit_code == 0


@pytest.mark.parametrize("arch", ["x86_64", "i386"])
def test_a_bar_that_moves_by_the_config_ports(compile_c: Build, arch: str) -> None:
    source = MOVE.replace("EIGHT", f"{pattern(8, 4):#x}u")
    source = "#undef CONFIG\nstruct config { u32 at; };\n" + source
    for register in ("0x10", "0x14"):
        for value in ("trapped + step", "shared + step", "trapped", "shared"):
            source = source.replace(
                f"CONFIG({register}) = {value};", f"config({register}, {value});"
            )
    source = source.replace("COMMAND = 6", "config(4, 6)").replace("COMMAND = 0", "config(4, 0)")
    source = source.replace("BAR(0)", "bar(0x10)").replace("BAR(1)", "bar(0x14)")
    source = (
        """
        static inline void config(u32 offset, u32 value)
        {
            out32(0xcf8, 0x80000800 | offset);
            out32(0xcfc, value);
        }
        static inline u32 bar(u32 offset)
        {
            out32(0xcf8, 0x80000800 | offset);
            return in32(0xcfc) & ~15u;
        }
        """
        + source
    )
    with Machine(Recorder(), guest=compile_c(arch, source), timeout=30) as machine:
        assert machine.run().exit_code == 0


PORTS = """
int main(void)
{
    u16 port = (u16)BAR(2);
    u32 step = 0x100;
    COMMAND = 1;
    if (in32(port + 4) != FOUR)
        return 1;
    out32(port + 8, 0x12345678);
    CONFIG(0x18) = port + step;
    if (in32(port + 4) != ~0u)
        return 2;
    if (in32((u16)(port + step + 4)) != FOUR)
        return 3;
    out32(port, 0xbad);
    return 0;
}
"""


def test_io_ports(compile_c: Build, arch: str) -> None:
    device = Recorder()
    source = PORTS.replace("FOUR", f"{pattern(4, 4):#x}u")
    with Machine(device, guest=compile_c(arch, source), timeout=10) as machine:
        assert machine.run().exit_code == 0
        assert machine.bus.faults.counts == {"port read": 1, "port write": 1}
    assert device.writes == [(0x10008, 4, 0x12345678)]


class Vanishing(Device):
    """Turns its own decoding off when it is written to."""

    id = 0x1AF4, 0x10F1
    window = Bar(0, 16)
    shared = Bar(1, 0x1000, ram=True)
    trap = Register(0x00, bar=window)
    machine: Machine

    @trap.on_write
    def vanish(self, value: int) -> None:
        self.machine.functions[0].config_write(4, 2, 0)


def test_a_window_may_go_while_it_is_written_to(compile_c: Build, arch: str) -> None:
    source = """
    int main(void)
    {
        u32 trap = BAR(0), shared = BAR(1);
        for (int round = 0; round < 100; round++) {
            COMMAND = 6;
            if (MEM(u32, trap) != 0)
                return 1;
            MEM(u32, shared) = 0x1234;
            MEM(u32, trap) = 0;
            if (MEM(u32, trap) != ~0u)
                return 2;
            for (volatile int i = 0; i < 3; i++)
                ; /* The memory goes at the end of the block. */
            if (MEM(u32, shared) != ~0u)
                return 3;
        }
        return 0;
    }
    """
    device = Vanishing()
    with Machine(device, guest=compile_c(arch, source), timeout=20) as machine:
        device.machine = machine
        assert machine.run().exit_code == 0


def test_memory_may_come_and_go_while_the_guest_runs(compile_c: Build, arch: str) -> None:
    source = """
    int main(void)
    {
        u32 place = RAM + 0x4000000;
        for (u32 round = 1; round <= 5; round++) {
            while (MEM(u32, place) == ~0u)
                ;
            MEM(u32, place + 4) = 0x600d;
            while (MEM(u32, place) != ~0u)
                ;
            MEM(u32, RAM + 0x8000) = round;
        }
        return 0;
    }
    """
    with Machine(guest=compile_c(arch, source), timeout=20) as machine:
        place = machine.board.ram + 0x400_0000

        def change() -> None:
            for number in range(1, 6):
                more = anonymous(0x10000)
                machine.memory.add(place, more)
                while more[4:8] != b"\x0d\x60\0\0":
                    time.sleep(0.001)
                machine.memory.remove(place)
                while machine.memory.read(machine.board.ram + 0x8000, 1)[0] != number:
                    time.sleep(0.001)

        thread = threading.Thread(target=change)
        thread.start()
        assert machine.run().exit_code == 0
        thread.join()


def test_a_device_reads_and_writes_the_guests_own_memory(compile_c: Build, arch: str) -> None:
    class Copier(Device):
        id = 0x1AF4, 0x10F2
        source = Register(0x00)
        target = Register(0x04)

        @target.on_write
        def copy(self, value: int) -> None:
            view = self.memory.map(value, 8, write=True)
            view[:] = self.memory.read(self.source, 8)

    source = """
    static volatile u64 from = 0x1122334455667788, to;
    int main(void)
    {
        u32 bar = BAR(0);
        COMMAND = 6;
        MEM(u32, bar) = (u32)(word)&from;
        MEM(u32, bar + 4) = (u32)(word)&to;
        return to == from ? 0 : 1;
    }
    """
    with Machine(Copier(), guest=compile_c(arch, source), timeout=10) as machine:
        assert machine.run().exit_code == 0


def test_code_in_a_device_is_no_code(compile_c: Build, arch: str) -> None:
    for touch in "", "(void)MEM(u32, bar);":
        source = f"int main(void) {{ u32 bar = BAR(0); {touch} ((void (*)(void))(word)bar)(); }}"
        with Machine(Recorder(), guest=compile_c(arch, source), timeout=10) as machine:
            base = machine.functions[0].bars[0].address
            with pytest.raises(GuestError, match=f"^The guest jumped .* no memory.*, at {base:#x}"):
                machine.run()


def test_a_bug_of_ours_comes_out(compile_c: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "int main(void) { COMMAND = 6; for (;;) MEM(u32, BAR(0)) = MEM(u32, BAR(0) + 4); }"
    guest = compile_c("x86_64", source)

    def fail(*_: object) -> int:
        raise RuntimeError("a bug of ours")

    for broken in ("register_read", "register_write"):
        monkeypatch.setattr(Recorder, broken, fail)
        with (
            Machine(Recorder(), guest=guest, timeout=10) as machine,
            pytest.raises(RuntimeError, match="a bug of ours"),
        ):
            machine.run()
        monkeypatch.undo()
    with (
        Machine(Recorder(), guest=guest, timeout=0.1) as machine,
        pytest.raises(BudgetError),
    ):
        machine.run()
