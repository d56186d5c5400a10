# SPDX-License-Identifier: MIT
"""Function: a device gets all that PCI asks of it, and the guest gets no exception out of it."""

import logging
from collections.abc import Callable
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate.call import BufferIn, call, u64
from callgate.device import Device
from callgate.errors import DeclarationError, DmaError, PlugError
from callgate.gate.abi import CAPABILITY, FRAME, HEADER, NO_BAR, FrameState, Status, Transport
from callgate.gate.gate import Offer
from callgate.gate.vectors import VectorTable
from callgate.interrupt import Interrupt
from callgate.memory import GuestMemory
from callgate.pci import config as space
from callgate.pci.bar import BarState
from callgate.pci.capability import Capability, PciExpress, PowerManagement, VendorCapability
from callgate.pci.function import Function
from callgate.register import Bar, Register
from callgate.timers import ManualClock, Timers
from callgate.trace import Event

MEMORY, MASTER, IO = space.COMMAND_MEMORY, space.COMMAND_MASTER, space.COMMAND_IO


class Everything(Device):
    """Registers, interrupts and calls."""

    id = 0x1AF4, 0x10F1
    subsystem = 0x1AF4, 0x1100
    class_code = 0x120000
    revision = 3
    capabilities: ClassVar[tuple[Capability, ...]] = (
        PowerManagement(),
        PciExpress(),
        VendorCapability(b"sample"),
    )

    value = Register(0x00, reset=5)
    fixed = Register(0x04, access="r", reset=0x1234)
    start = Register(0x08, access="w")
    done = Interrupt()
    failed = Interrupt()

    @start.on_write
    def begin(self, value: int) -> None:
        if value == 0xBAD:
            raise ZeroDivisionError
        self.done.trigger()

    @call
    def add(self, a: u64, b: u64) -> u64:
        return (a + b) % 2**64

    @call
    def total(self, data: BufferIn) -> u64:
        return sum(data.view)


class Both(Everything):
    """MSI-X and MSI."""

    msi = True


class OnlyMsi(Both):
    msix = False


class Plain(Device):
    """Neither interrupts nor calls nor registers."""

    id = 0x1AF4, 0x10F2


class Rig:
    """A function with RAM of 64 KiB at 0, and what it sent."""

    def __init__(
        self,
        device: Device | None = None,
        *,
        offer: Offer | None = None,
        trace: Callable[[Event], None] | None = None,
    ) -> None:
        self.device = device or Everything()
        self.memory = GuestMemory()
        self.memory.add(0, bytearray(0x10000))
        self.memory.add(0x20000, bytes(0x1000))
        self.messages: list[tuple[int, int]] = []
        self.line: list[bool] = []
        self.moves = 0
        self.function = Function(
            self.device,
            memory=self.memory,
            deliver=lambda *message: self.messages.append(message),
            set_intx=self.line.append,
            timers=Timers(ManualClock()),
            table=VectorTable(),
            offer=offer,
            trace=trace,
        )
        self.function.on_mapping = self._moved

    def _moved(self) -> None:
        self.moves += 1

    def bar(self, index: int) -> BarState:
        return next(bar for bar in self.function.bars if bar.index == index)

    def command(self, bits: int) -> None:
        self.function.config_write(space.COMMAND, 2, bits)

    @property
    def status(self) -> int:
        return self.function.config_read(space.STATUS, 2)

    def capability(self, id: int, which: int = 0) -> int:
        at = self.function.config_read(space.CAPABILITIES, 1)
        while at:
            if self.function.config_read(at, 1) == id:
                if not which:
                    return at
                which -= 1
            at = self.function.config_read(at + 1, 1)
        raise AssertionError(f"no capability {id:#x}")

    def enable_msix(self) -> None:
        """Vector n sends 100h + n to FEE00000; bus mastering on."""
        at = self.capability(0x11)
        table = self.bar(self.function.config_read(at + 4, 4) & 7)
        for index in range((self.function.config_read(at + 2, 2) & 0x7FF) + 1):
            table.write(16 * index, 8, 0xFEE0_0000)
            table.write(16 * index + 8, 8, 0x100 + index)
        self.function.config_write(at + 2, 2, 0x8000)
        self.command(MEMORY | MASTER)

    def enable_msi(self, granted: int = 2) -> None:
        """Vector n of 2 ** granted sends 200h + n to FEE01000; bus mastering on."""
        at = self.capability(0x05)
        for offset, size, value in ((4, 4, 0xFEE0_1000), (12, 2, 0x200), (2, 2, granted << 4 | 1)):
            self.function.config_write(at + offset, size, value)
        self.command(MEMORY | MASTER)


@pytest.fixture
def rig() -> Rig:
    return Rig()


# --- what is built ------------------------------------------------------------------------------


def test_the_header_is_the_devices(rig: Rig) -> None:
    read = rig.function.config_read
    assert read(0x00, 4) == 0x10F1_1AF4
    assert read(0x08, 4) == 0x1200_0003
    assert read(0x2C, 4) == 0x1100_1AF4
    assert read(space.INTERRUPT_PIN, 1) == 1


def test_bars_are_placed_in_the_free_slots(rig: Rig) -> None:
    shape = [(bar.index, bar.kind, bar.width) for bar in rig.function.bars]
    assert shape == [(0, "memory", 32), (1, "memory", 32), (2, "memory", 64), (4, "io", 32)]
    assert [[window.name for window in bar.windows] for bar in rig.function.bars] == [
        ["registers"],
        ["msix table", "msix pending"],
        ["gate", "doorbell"],
        ["doorbell ports"],
    ]


def test_a_device_that_declares_nothing_has_nothing() -> None:
    rig = Rig(Plain())
    assert rig.function.bars == ()
    assert (rig.function.msix, rig.function.msi, rig.function.gate) == (None, None, None)
    assert rig.status == 0
    assert rig.function.config_read(space.INTERRUPT_PIN, 1) == 0
    rig.function.reset()
    rig.function.close()


def test_declared_bars_keep_their_index() -> None:
    class Crowded(Device):
        id = 0x1AF4, 0x10F2
        low = Bar(1, 0x1000)
        high = Bar(3, 0x1000, width=64, prefetchable=True)
        done = Interrupt()

        @call
        def ping(self) -> None: ...

    rig = Rig(Crowded())
    assert [(bar.index, bar.width) for bar in rig.function.bars] == [
        (0, 32),  # MSI-X
        (1, 32),
        (2, 32),  # the gate: no two slots together are free
        (3, 64),
        (5, 32),  # the doorbell's ports
    ]
    assert rig.bar(5).kind == "io"
    assert rig.bar(3).prefetchable


def test_without_a_free_bar_the_ports_are_not_offered() -> None:
    class Full(Device):
        id = 0x1AF4, 0x10F2
        a, b, c = Bar(0, 16), Bar(1, 16), Bar(2, 16)

        @call
        def ping(self) -> None: ...

    rig = Rig(Full())
    at = rig.capability(0x09)
    fields = CAPABILITY.unpack(rig.function.config.dump()[at : at + CAPABILITY.size])
    assert fields["bar"] == 4
    assert fields["pio_bar"] == NO_BAR
    assert not fields["transports"] & Transport.PIO


def test_ports_that_the_platform_does_not_offer_get_no_bar() -> None:
    rig = Rig(offer=Offer(Transport.MMIO))
    assert all(bar.kind == "memory" for bar in rig.function.bars)


def test_calls_alone_have_no_pin() -> None:
    """The gate's interrupt is a message only: a pin would never be asserted."""

    class Calls(Device):
        id = 0x1AF4, 0x10F2

        @call
        def ping(self) -> None: ...

    rig = Rig(Calls())
    assert rig.function.config.get(space.INTERRUPT_PIN, 1) == 0
    assert rig.function.msix is not None
    rig.function.trigger(0)
    assert rig.line == []


def test_capabilities_that_do_not_fit_are_refused() -> None:
    class Wrong(Everything):
        capabilities = (VendorCapability(bytes(180)),)

    with pytest.raises(DeclarationError, match="must fit the 192 bytes"):
        Rig(Wrong())


def test_config_space_leads_to_the_gate(rig: Rig) -> None:
    at = rig.capability(0x09, which=1)
    fields = CAPABILITY.unpack(rig.function.config.dump()[at : at + CAPABILITY.size])
    assert (fields["bar"], fields["gate_offset"], fields["pio_bar"]) == (2, 0, 4)
    gate = rig.bar(fields["bar"])
    assert gate.read(0, 4) == int.from_bytes(b"CGHD", "little")
    assert gate.windows[0].ram is not None
    assert fields["doorbell_offset"] == gate.windows[1].offset
    assert gate.size >= fields["gate_length"]
    assert gate.size & gate.size - 1 == 0
    ports = rig.bar(fields["pio_bar"])
    assert ports.read(fields["pio_offset"], 4) == gate.read(fields["doorbell_offset"], 4)


# --- registers ----------------------------------------------------------------------------------


def test_registers_answer_in_their_window(rig: Rig) -> None:
    bar = rig.bar(0)
    assert bar.read(0, 4) == 5
    bar.write(0, 4, 0xABCD)
    assert bar.windows[0].read(0, 4) == 0xABCD
    bar.write(4, 4, 0)
    assert bar.read(4, 4) == 0x1234
    assert bar.read(0x100, 4) == 0xFFFF_FFFF
    bar.write(0x100, 4, 1)
    assert bar.read(2, 4) == 0xFFFF_FFFF


def test_a_bug_in_a_hook_does_not_reach_the_guest(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "callgate.device"):
        rig.bar(0).write(8, 4, 0xBAD)
    assert "ZeroDivisionError" in caplog.text


def test_a_bar_of_memory_is_shared_with_the_device() -> None:
    class Screen(Device):
        id = 0x1AF4, 0x10F2
        pixels = Bar(0, 0x2000, ram=True, prefetchable=True)

    device = Screen()
    rig = Rig(device)
    rig.bar(0).write(0x1000, 4, 0x00FF_00FF)
    assert device.pixels[0x1000] == 0xFF
    window = rig.bar(0).windows[0]
    assert window.ram is not None
    assert len(window.ram) == 0x2000


# --- decode -------------------------------------------------------------------------------------


def test_decoding_follows_command_and_address(rig: Rig) -> None:
    rig.bar(0).place(0x8000_0000)
    rig.bar(4).place(0xC000)
    assert (rig.moves, rig.bar(0).enabled) == (0, False)
    rig.command(MEMORY)
    assert (rig.moves, rig.bar(0).enabled, rig.bar(4).enabled) == (1, True, False)
    rig.command(MEMORY | MASTER)
    assert rig.moves == 1
    rig.command(MEMORY | IO)
    assert (rig.moves, rig.bar(4).enabled) == (2, True)
    rig.bar(0).place(0x9000_0000)
    assert rig.moves == 3
    rig.bar(0).place(0x9000_0000)
    assert rig.moves == 3
    assert not rig.bar(1).enabled  # never assigned


def test_sizing_while_decoding_is_on_moves_nothing_to_the_top(rig: Rig) -> None:
    rig.bar(0).place(0x8000_0000)
    rig.command(MEMORY)
    rig.function.config_write(0x10, 4, 0xFFFF_FFFF)
    assert not rig.bar(0).enabled
    rig.function.config_write(0x10, 4, 0x8000_0000)
    assert rig.bar(0).enabled


# --- DMA ----------------------------------------------------------------------------------------


def test_dma_needs_bus_mastering(rig: Rig) -> None:
    memory = rig.device.memory
    attempts: list[Callable[[], object]] = [
        lambda: memory.read(0, 4),
        lambda: memory.write(0, b"data"),
        lambda: memory.map(0, 4),
        lambda: memory.scatter([(0, 4)]),
        lambda: memory.check(0, 4, write=False),
    ]
    for attempt in attempts:
        with pytest.raises(DmaError, match="must be bus master"):
            attempt()
    rig.command(MASTER)
    for attempt in attempts:
        attempt()
    assert rig.memory.read(0, 4) == b"data"
    rig.command(0)
    with pytest.raises(DmaError, match="must be bus master"):
        memory.read(0, 4)
    assert not rig.status & space.STATUS_MASTER_ABORT


@pytest.mark.parametrize(
    ("gpa", "length", "write"),
    [(0xFFFF, 2, False), (0x10000, 1, False), (2**64 - 4, 8, False), (0x20000, 1, True)],
)
def test_dma_to_nowhere_is_a_master_abort(rig: Rig, gpa: int, length: int, write: bool) -> None:
    rig.command(MASTER)
    with pytest.raises(DmaError):
        rig.device.memory.map(gpa, length, write=write)
    assert rig.status & space.STATUS_MASTER_ABORT
    rig.function.config_write(space.STATUS, 2, space.STATUS_MASTER_ABORT)
    assert not rig.status & space.STATUS_MASTER_ABORT


def call_through_bar(rig: Rig, name: str, *values: int) -> tuple[Status, int]:
    """Call as a driver does, with nothing but accesses to the gate's BAR."""
    gate, bar = rig.function.gate, rig.bar(2)
    assert gate is not None
    binding = gate.binding(name)
    assert binding is not None
    frame = bar.read(HEADER.offset("frames_offset"), 4)
    bar.write(frame + FRAME.offset("vector"), 4, binding.vector)
    bar.write(frame + FRAME.offset("flags"), 2, 0)
    bar.write(frame + FRAME.offset("arguments"), 1, len(values))
    for number, value in enumerate(values):
        bar.write(frame + FRAME.offset("values") + 8 * number, 8, value)
    bar.write(frame, 4, FrameState.READY)
    bar.write(bar.read(HEADER.offset("doorbell_offset"), 4), 4, 0)
    assert bar.read(frame, 4) == FrameState.DONE
    return Status(bar.read(frame + FRAME.offset("status"), 4)), bar.read(frame + 0x20, 8)


def test_calls_pass_through_the_gates_bar(rig: Rig) -> None:
    assert call_through_bar(rig, "add", 2, 2**64 - 1) == (Status.OK, 1)


def test_a_calls_buffer_needs_bus_mastering_too(rig: Rig) -> None:
    rig.memory.write(0x1000, b"\x01\x02\x03")
    assert call_through_bar(rig, "total", 0x1000, 3)[0] is Status.BAD_BUFFER
    rig.command(MASTER)
    assert call_through_bar(rig, "total", 0x1000, 3) == (Status.OK, 6)
    assert call_through_bar(rig, "total", 0xFFFE, 3)[0] is Status.BAD_BUFFER


# --- interrupts ---------------------------------------------------------------------------------


def test_msix_messages_go_out(rig: Rig) -> None:
    rig.enable_msix()
    rig.bar(0).write(8, 4, 1)
    device = rig.device
    assert isinstance(device, Everything)
    device.failed.trigger()
    rig.function.set_level(1, True)
    device.failed.deassert()
    assert rig.messages == [(0xFEE0_0000, 0x100), (0xFEE0_0000, 0x101), (0xFEE0_0000, 0x101)]
    assert rig.line == []


def test_a_message_waits_for_bus_mastering_and_the_function_mask(rig: Rig) -> None:
    rig.enable_msix()
    at = rig.capability(0x11)
    rig.command(MEMORY)
    rig.bar(0).write(8, 4, 1)
    assert rig.messages == []
    assert rig.bar(1).read(0x800, 8) == 1
    rig.function.config_write(at + 2, 2, 0xC000)
    rig.command(MEMORY | MASTER)
    assert rig.messages == []
    rig.function.config_write(at + 2, 2, 0x8000)
    assert rig.messages == [(0xFEE0_0000, 0x100)]
    assert rig.bar(1).read(0x800, 8) == 0


def test_without_msix_the_line_stays_up_until_deasserted(rig: Rig) -> None:
    device = rig.device
    assert isinstance(device, Everything)
    device.done.trigger()
    rig.function.set_level(1, True)
    assert rig.line == [True]
    assert rig.status & space.STATUS_INTERRUPT
    device.done.deassert()
    assert rig.line == [True]
    device.failed.deassert()
    assert rig.line == [True, False]
    assert not rig.status & space.STATUS_INTERRUPT


def test_interrupt_disable_lowers_the_line_and_not_the_status(rig: Rig) -> None:
    device = rig.device
    assert isinstance(device, Everything)
    device.done.trigger()
    rig.command(space.COMMAND_INTX_DISABLE)
    assert rig.line == [True, False]
    assert rig.status & space.STATUS_INTERRUPT
    rig.command(0)
    assert rig.line == [True, False, True]


def test_a_function_with_msix_enabled_does_not_use_its_line(rig: Rig) -> None:
    device = rig.device
    assert isinstance(device, Everything)
    device.done.trigger()
    rig.enable_msix()
    assert rig.line == [True, False]
    rig.function.config_write(rig.capability(0x11) + 2, 2, 0)
    assert rig.line == [True, False, True]


def test_the_gates_interrupt_has_no_line(rig: Rig) -> None:
    rig.function.trigger(2)
    assert rig.line == []
    rig.enable_msix()
    rig.function.trigger(2)
    assert rig.messages == [(0xFEE0_0000, 0x102)]


def test_a_vmm_that_owns_the_vectors_gets_interrupts_by_index(rig: Rig) -> None:
    seen: list[int] = []
    rig.function.trigger(0)
    assert rig.function.msix is not None
    rig.function.connect(rig.function.msix, seen.append, 3)
    assert rig.line == [True, False]
    rig.function.trigger(1)
    assert seen == []
    rig.command(MASTER)
    assert seen == [1]
    rig.function.connect(rig.function.msix, seen.append, 0)
    assert rig.line == [True, False, True]


def test_msi_has_a_capability_and_no_bar() -> None:
    rig = Rig(OnlyMsi())
    assert rig.function.msix is None
    windows = [window.name for bar in rig.function.bars for window in bar.windows]
    assert windows == ["registers", "gate", "doorbell", "doorbell ports"]
    control = rig.function.config_read(rig.capability(0x05) + 2, 2)
    assert control == 0x180 | 2 << 1  # Two interrupts and the gate's: 4 vectors, with masks.


def test_a_device_may_have_neither() -> None:
    class Wired(Everything):
        msix = False

    rig = Rig(Wired())
    assert (rig.function.msix, rig.function.msi) == (None, None)
    rig.function.trigger(0)
    rig.function.trigger(2)
    assert (rig.line, rig.messages) == ([True], [])


def test_msi_messages_go_out() -> None:
    rig = Rig(OnlyMsi())
    rig.enable_msi()
    for index in (0, 1, 2):
        rig.function.trigger(index)
    assert rig.messages == [(0xFEE0_1000, 0x200 + index) for index in (0, 1, 2)]
    assert not rig.function.msix_enabled


@pytest.mark.parametrize("what", ["bus mastering", "D3hot", "mask"])
def test_an_msi_message_waits(what: str) -> None:
    rig = Rig(OnlyMsi())
    rig.enable_msi()
    if what == "bus mastering":
        place = space.COMMAND, 2, MEMORY, MEMORY | MASTER
    elif what == "D3hot":
        place = rig.capability(0x01) + 4, 2, 3, 0
    else:
        place = rig.capability(0x05) + 0x10, 4, 0b10, 0
    at, size, off, on = place
    rig.function.config_write(at, size, off)
    rig.function.trigger(1)
    pending = rig.capability(0x05) + 0x14
    assert (rig.messages, rig.function.config_read(pending, 4)) == ([], 0b10)
    rig.function.config_write(at, size, on)
    assert rig.messages == [(0xFEE0_1000, 0x201)]
    assert rig.function.config_read(pending, 4) == 0


def test_a_function_with_msi_enabled_does_not_use_its_line() -> None:
    rig = Rig(OnlyMsi())
    rig.function.trigger(0)
    rig.enable_msi()
    assert rig.line == [True, False]
    assert not rig.status & space.STATUS_INTERRUPT
    rig.function.config_write(rig.capability(0x05) + 2, 2, 0)
    assert rig.line == [True, False, True]


def test_msix_goes_before_msi() -> None:
    rig = Rig(Both())
    rig.enable_msi()
    rig.function.config_write(rig.capability(0x05) + 0x10, 4, 0b11)
    rig.function.trigger(1)
    rig.enable_msix()
    assert rig.function.msix_enabled
    rig.function.config_write(rig.capability(0x05) + 0x10, 4, 0)
    rig.function.trigger(0)
    assert rig.messages == [(0xFEE0_0000, 0x100)]
    rig.function.config_write(rig.capability(0x11) + 2, 2, 0)
    assert rig.messages[1:] == [(0xFEE0_1000, 0x201)]  # It was pending.
    rig.function.trigger(0)
    assert rig.messages[2:] == [(0xFEE0_1000, 0x200)]
    assert rig.line == []


@pytest.mark.parametrize("kind", [Both, OnlyMsi])
def test_a_message_whose_event_is_settled_is_withdrawn(kind: type[Both]) -> None:
    device = kind()
    rig = Rig(device)
    (rig.enable_msi if kind is OnlyMsi else rig.enable_msix)()
    rig.command(MEMORY)
    device.done.trigger()
    device.failed.trigger()
    device.done.deassert()
    rig.command(MEMORY | MASTER)
    assert [data & 0xF for _, data in rig.messages] == [1]


# --- power and reset ----------------------------------------------------------------------------


def test_in_d3hot_only_configuration_answers(rig: Rig) -> None:
    rig.enable_msix()
    rig.bar(0).place(0x8000_0000)
    at = rig.capability(0x01)
    rig.function.config_write(at + 4, 2, 3)
    assert not rig.bar(0).enabled
    with pytest.raises(DmaError):
        rig.device.memory.read(0, 1)
    rig.function.trigger(0)
    assert rig.messages == []
    assert rig.function.config_read(space.COMMAND, 2) == MEMORY | MASTER
    rig.function.config_write(at + 4, 2, 0)
    assert rig.bar(0).enabled
    assert rig.bar(0).address == 0x8000_0000
    assert rig.messages == [(0xFEE0_0000, 0x100)]


def test_after_a_reset_msi_is_as_it_was() -> None:
    rig = Rig(OnlyMsi())
    initial = rig.function.config.dump()
    rig.enable_msi()
    rig.function.config_write(rig.capability(0x05) + 0x10, 4, 1)
    rig.function.trigger(0)
    rig.function.reset()
    assert rig.function.config.dump() == initial
    rig.function.trigger(0)
    assert (rig.messages, rig.line) == ([], [True])


@pytest.mark.parametrize("how", ["reset", "function level reset"])
def test_a_reset_brings_all_back(rig: Rig, how: Literal["reset", "function level reset"]) -> None:
    gate = rig.function.gate
    assert gate is not None
    initial = rig.function.config.dump(space.SIZE)
    rig.bar(0).place(0x8000_0000)
    rig.enable_msix()
    rig.bar(0).write(0, 4, 77)
    rig.function.config_write(rig.capability(0x11) + 2, 2, 0)
    rig.function.trigger(0)
    rig.function.config_write(rig.capability(0x01) + 4, 2, 3)
    vector = gate.binding("add")
    moves = rig.moves
    if how == "reset":
        rig.function.reset()
    else:
        rig.function.config_write(rig.capability(0x10) + 8, 2, 0x8000)
    assert rig.function.config.dump(space.SIZE) == initial
    assert rig.function.awake
    assert rig.moves == moves  # D3hot had taken the BARs away before
    assert rig.bar(0).read(0, 4) == 5
    assert rig.bar(1).read(12, 4) == 1
    assert rig.line[-1] is False
    assert gate.binding("add") is not vector
    rig.function.trigger(0)
    assert rig.line[-1] is True


def test_a_device_is_in_one_place_at_a_time(rig: Rig) -> None:
    assert rig.device.plugged is rig.function
    with pytest.raises(PlugError, match="must be unplugged"):
        Rig(rig.device)
    rig.function.close()
    with pytest.raises(PlugError, match="must be plugged"):
        _ = rig.device.plugged
    Rig(rig.device)


def test_a_device_that_fails_to_attach_leaves_no_vector() -> None:
    class Broken(Everything):
        def attach(self) -> None:
            raise OSError("no such file")

    table = VectorTable()
    with pytest.raises(OSError, match="no such file"):
        Function(
            Broken(),
            memory=GuestMemory(),
            deliver=lambda address, data: None,
            set_intx=lambda level: None,
            timers=Timers(),
            table=table,
        )
    assert not table.live


# --- tracing and fuzz ---------------------------------------------------------------------------


def test_what_crosses_the_boundary_is_traced() -> None:
    events: list[Event] = []
    rig = Rig(trace=events.append)
    rig.bar(0).read(4, 4)
    rig.bar(0).write(8, 4, 1)
    rig.bar(0).read(0x40, 4)
    rig.function.config_read(0, 4)
    rig.command(MEMORY)
    assert [(event.kind, event.name, event.arguments, event.result) for event in events] == [
        ("read", "fixed", (), "0x1234"),
        ("interrupt", "done", (), ""),
        ("write", "start", (1,), ""),
        ("read", "registers + 0x40", (), "0xffffffff"),
        ("config read", "vendor id", (), "0x10f11af4"),
        ("config write", "command", (2,), ""),
    ]


def test_a_trace_names_the_capability_of_msi() -> None:
    events: list[Event] = []
    rig = Rig(OnlyMsi(), trace=events.append)
    rig.function.config_read(rig.capability(0x05), 4)
    assert events[-1].name == "MSI capability"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["config", 0, 1, 2, 4]),
            st.one_of(st.integers(0, 0x140), st.integers(-8, 1 << 17)),
            st.sampled_from([1, 2, 4, 8, 0, 3]),
            st.one_of(st.sampled_from([0, 1, 3, 0xBAD, 0x8000]), st.integers(0, 2**64 - 1)),
        ),
        max_size=50,
    )
)
def test_nothing_that_a_guest_does_raises(
    accesses: list[tuple[str | int, int, int, int]],
) -> None:
    rig = Rig(Both())
    logging.disable()
    try:
        before = rig.function.config.dump(4)
        for where, offset, size, value in accesses:
            ones = (1 << 8 * size) - 1
            if isinstance(where, str):
                rig.function.config_write(offset, size, value)
                assert 0 <= rig.function.config_read(offset, size) <= ones
            else:
                rig.bar(where).write(offset, size, value)
                assert 0 <= rig.bar(where).read(offset, size) <= ones
        assert rig.function.config.dump(4) == before
        assert not any(rig.function.config.dump(space.SIZE)[256:])
    finally:
        logging.disable(logging.NOTSET)
