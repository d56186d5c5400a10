# SPDX-License-Identifier: MIT
"""Serial: what the data sheet promises a driver, and what the far end of the line may rely on."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate.devices.serial import FIFO_DEPTH, TRIGGERS, Control, Serial
from callgate.pci import config as space
from callgate.testing import FakeGuest

RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR, MCR, LSR, MSR, SCR = range(3, 8)

ERBFI, ETBEI, ELSI, EDSSI = 1, 2, 4, 8
NONE, BY_MODEM, BY_THRE, BY_DATA, BY_LINE, BY_TIMEOUT = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C
FIFOS, CLEAR_RX, CLEAR_TX = 1, 2, 4
FIFOS_ON = 0xC0
EIGHT, DLAB, BREAK = 0x03, 0x80, 0x40
DTR, RTS, OUT1, OUT2, LOOP = 1, 2, 4, 8, 16
DR, OE, PE, FE, BI, THRE, TEMT, FIFO_ERROR = (1 << bit for bit in range(8))
EMPTY = THRE | TEMT
DCTS, DDSR, TERI, DDCD, CTS, DSR, RI, DCD = (1 << bit for bit in range(8))
CONNECTED = CTS | DSR | DCD
CHARACTER = 10 * 12 * 16 / 1_843_200  # 8N1 at the divisor that a reset leaves
EPSILON = 1e-9


class Port:
    """A port as its driver and its far end see it."""

    def __init__(self, uart: Serial, guest: FakeGuest) -> None:
        self.uart = uart
        self.guest = guest
        self.function = guest.function(*uart.id)

    def read(self, register: int) -> int:
        return self.function.read(0, register, 1)

    def write(self, register: int, value: int) -> None:
        self.function.write(0, register, 1, value)

    def setup(self, *, fcr: int = FIFOS, ier: int = 0, mcr: int = DTR | RTS | OUT2) -> None:
        """8 bits, no parity; the FIFOs on."""
        self.write(LCR, EIGHT)
        self.write(FCR, fcr)
        self.write(IER, ier)
        self.write(MCR, mcr)

    def set_divisor(self, divisor: int) -> None:
        self.write(LCR, EIGHT | DLAB)
        self.write(DLL, divisor & 0xFF)
        self.write(DLM, divisor >> 8)
        self.write(LCR, EIGHT)

    def reset(self) -> None:
        """Reset the machine; firmware gives the port its place again."""
        self.guest.machine.reset()
        self.function.enable()

    @property
    def source(self) -> int:
        """IIR without the FIFOs' bits."""
        return self.read(IIR) & 0x0F

    @property
    def interrupt(self) -> bool:
        """Whether INTA is asserted."""
        return bool(self.function.config(space.STATUS, 2) & space.STATUS_INTERRUPT)

    def receive(self, count: int = 1 << 30) -> bytes:
        """What a polling driver reads, up to `count` bytes."""
        data = bytearray()
        while len(data) < count and self.read(LSR) & DR:
            data.append(self.read(RBR))
        return bytes(data)

    def send(self, data: bytes) -> None:
        """Write without looking."""
        for byte in data:
            self.write(THR, byte)


Make = Callable[..., Port]


@pytest.fixture
def make() -> Iterator[Make]:
    """Plug in a port, of the class `kind` with the attributes given."""
    with ExitStack() as stack:

        def make(
            on_output: Callable[[bytes], int | None] | None = None,
            kind: type[Serial] = Serial,
            **attributes: Any,
        ) -> Port:
            uart = kind(on_output)
            for name, value in attributes.items():
                setattr(uart, name, value)
            return Port(uart, stack.enter_context(FakeGuest(uart)))

        yield make


@pytest.fixture
def port(make: Make) -> Port:
    return make()


# --- as QEMU's pci-serial ------------------------------------------------------------------------


def test_it_is_found_as_pci_serial(port: Port) -> None:
    config = port.function.config
    assert config(0, 4) == 0x0002_1B36
    assert config(space.REVISION, 4) == 0x0700_0201
    assert config(space.SUBSYSTEM, 4) == 0x1100_1AF4
    assert config(space.INTERRUPT_PIN, 1) == 1
    port.function.set_config(space.BAR0, 4, 0xFFFF_FFFF)
    assert config(space.BAR0, 4) == 0xFFFF_FFF9  # 8 I/O ports


def test_registers_after_reset(port: Port) -> None:
    after = [0x00, 0x00, NONE, 0x00, 0x00, EMPTY, CONNECTED, 0x00]
    assert [port.read(register) for register in range(8)] == after
    port.setup(ier=0x0F)
    port.write(SCR, 0x5A)
    port.uart.set_modem(cts=False)
    port.uart.feed(b"lost")
    port.reset()
    after[MSR] = DSR | DCD
    assert [port.read(register) for register in range(8)] == after
    assert not port.interrupt


def test_linux_autoconfig_finds_a_16550a(port: Port) -> None:
    """The questions of Linux's 8250_port.c, in its order."""
    port.write(IER, 0)
    assert port.read(IER) & 0x0F == 0
    port.write(IER, 0x0F)
    assert port.read(IER) & 0x0F == 0x0F
    port.write(IER, 0)
    port.write(MCR, LOOP | 0x0A)
    assert port.read(MSR) & 0xF0 == DCD | CTS
    port.write(MCR, 0)
    port.write(LCR, 0xBF)
    port.write(FCR, 0)
    port.write(LCR, 0)
    port.write(FCR, FIFOS)
    assert port.read(IIR) >> 6 == 3
    for lcr in (DLAB, 0xBF):
        port.write(LCR, lcr)
        assert port.read(FCR) != 0  # no EFR
    port.write(LCR, 0)
    mcr = port.read(MCR)
    port.write(LCR, 0xE0)
    assert port.read(2) & LOOP == mcr & LOOP
    port.write(LCR, 0)
    port.write(MCR, mcr ^ LOOP)
    port.write(LCR, 0xE0)
    assert port.read(2) & LOOP == mcr & LOOP  # no bank of National's SuperIO
    port.write(LCR, 0)
    port.write(MCR, mcr)
    for lcr in (0, DLAB):
        port.write(LCR, lcr)
        port.write(FCR, FIFOS | 0x20)
        assert port.read(IIR) >> 5 == 6  # no TI16750
    port.write(LCR, 0)
    port.write(IER, 0x40)
    assert port.read(IER) == 0  # no XScale
    port.write(FCR, FIFOS | CLEAR_RX | CLEAR_TX)
    port.write(MCR, LOOP)
    port.write(LCR, EIGHT)
    port.send(bytes(range(256)))
    assert port.receive() == bytes(range(FIFO_DEPTH))


# --- plain registers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("register", "bits"), [(IER, 0x0F), (LCR, 0xFF), (MCR, 0x1F), (LSR, 0), (MSR, 0), (SCR, 0xFF)]
)
def test_a_register_keeps_its_bits(port: Port, register: int, bits: int) -> None:
    before = port.read(register)
    for value in (0xFF, 0xA5, 0x00):
        port.write(register, value)
        seen = port.read(register)
        assert seen == (value & bits if bits else before)
        port.write(LCR, 0)


def test_the_divisor_lies_behind_dlab(port: Port) -> None:
    port.write(IER, ERBFI)
    port.write(LCR, DLAB | EIGHT)
    assert (port.read(DLL), port.read(DLM)) == (12, 0)
    port.write(DLL, 0x34)
    port.write(DLM, 0x12)
    assert (port.read(DLL), port.read(DLM)) == (0x34, 0x12)
    port.write(LCR, EIGHT)
    assert (port.read(RBR), port.read(IER)) == (0, ERBFI)
    assert port.read(LSR) == EMPTY


def test_dlab_hides_no_other_register(port: Port) -> None:
    port.write(LCR, DLAB)
    port.write(FCR, FIFOS)
    port.write(SCR, 7)
    assert (port.read(IIR), port.read(SCR)) == (FIFOS_ON | NONE, 7)
    assert port.read(LSR) == EMPTY


@pytest.mark.parametrize(
    ("lcr", "divisor", "bits"),
    [
        (0x00, 12, 7),
        (0x04, 12, 7.5),
        (0x03, 12, 10),
        (0x07, 12, 11),
        (0x0F, 384, 12),  # 160 ms for four of them, says 8.11
        (0x03, 1, 10),
        (0x03, 0, 10),
    ],
)
def test_a_character_takes_its_time(port: Port, lcr: int, divisor: int, bits: float) -> None:
    port.set_divisor(divisor)
    port.write(LCR, lcr)
    baud = 115_200 / (divisor or 65536)
    assert port.uart.character_time == pytest.approx(bits / baud)


# --- data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fcr", [0, FIFOS])
def test_bytes_go_both_ways(make: Make, fcr: int) -> None:
    sent = bytearray()
    port = make(sent.extend)
    port.setup(fcr=fcr)
    port.uart.feed(b"to the guest, more than the FIFO holds")
    port.uart.feed(bytearray(b"."))
    port.uart.feed(memoryview(b"."))
    assert port.receive() == b"to the guest, more than the FIFO holds.."
    port.send(b"from the guest, and at once")
    assert sent == b"from the guest, and at once"
    assert port.read(LSR) == EMPTY


def test_rbr_shows_the_last_character_when_there_is_none(port: Port) -> None:
    port.setup()
    assert port.read(RBR) == 0
    port.uart.feed(b"ab")
    assert [port.read(RBR) for _ in range(4)] == list(b"abbb")


def test_characters_have_as_many_bits_as_lcr_says(make: Make) -> None:
    sent = bytearray()
    port = make(sent.extend)
    for lcr, mask in enumerate((0x1F, 0x3F, 0x7F, 0xFF)):
        port.write(LCR, lcr)
        port.uart.feed(b"\xff")
        assert port.receive() == bytes([mask])
        sent.clear()
        port.write(THR, 0xFF)
        assert sent == bytes([mask])


def test_what_waits_is_not_in_the_fifo(port: Port) -> None:
    port.setup()
    port.uart.feed(bytes(FIFO_DEPTH + 5))
    assert port.uart.waiting == 5
    port.read(RBR)
    assert port.uart.waiting == 4


def test_fed_before_the_machine_it_is_received_first(make: Make) -> None:
    uart = Serial()
    uart.feed(b"early")
    uart.set_modem(dcd=False)
    uart.resume()
    assert uart.waiting == 5
    with FakeGuest(uart) as guest:
        port = Port(uart, guest)
        assert port.read(MSR) == CTS | DSR | DDCD
        port.write(LCR, EIGHT)
        assert port.receive() == b"early"
    uart.feed(b"late")
    uart.send_break()
    with FakeGuest(uart) as guest:
        assert Port(uart, guest).receive() == b"late\0"


def test_an_unplugged_port_starts_anew_elsewhere(make: Make) -> None:
    sent = bytearray()
    uart = Serial(sent.extend)
    uart.pace = True
    with FakeGuest(uart) as guest:
        port = Port(uart, guest)
        port.setup(fcr=FIFOS, ier=ERBFI)
        uart.feed(b"abc")
        guest.advance(CHARACTER)
        port.send(b"xyz")
        assert port.interrupt
    with FakeGuest(uart) as guest:
        port = Port(uart, guest)
        assert port.interrupt
        guest.advance(CHARACTER * 8)
        assert port.source == BY_DATA or port.source == BY_TIMEOUT
        assert port.receive() == b"abc"
        assert sent == b"xyz"


# --- FIFO control ---------------------------------------------------------------------------------


def test_iir_tells_whether_the_fifos_are_on(port: Port) -> None:
    assert port.read(IIR) == NONE
    port.write(FCR, FIFOS)
    assert port.read(IIR) == FIFOS_ON | NONE
    port.write(FCR, 0xFE)  # without bit 0 nothing else is programmed, and they go off
    assert port.read(IIR) == NONE


def test_without_bit_0_fcr_programs_nothing(make: Make) -> None:
    port = make(lambda data: 0)
    port.setup(fcr=0, mcr=LOOP)
    port.send(b"a")
    port.write(FCR, CLEAR_RX | CLEAR_TX | 0xC0)
    assert port.receive() == b"a"


@pytest.mark.parametrize("change", [FIFOS | CLEAR_RX, 0])
def test_the_receiver_fifo_is_cleared(port: Port, change: int) -> None:
    port.setup(ier=ERBFI | ELSI, mcr=LOOP)
    port.send(bytes(FIFO_DEPTH + 1))
    assert port.source == BY_LINE
    port.write(FCR, change)
    assert port.read(LSR) == EMPTY | OE
    assert port.source == NONE
    assert not port.interrupt
    port.guest.advance(5 * CHARACTER)
    assert port.source == NONE


def test_errors_go_with_their_characters(port: Port) -> None:
    port.setup(ier=ELSI)
    port.uart.inject(1, parity=True, framing=True)
    port.uart.inject(2, framing=True)
    assert port.source == BY_LINE
    port.write(FCR, FIFOS | CLEAR_RX)
    assert port.source == NONE
    assert port.read(LSR) == EMPTY


@pytest.mark.parametrize("change", [FIFOS | CLEAR_TX, 0])
def test_the_transmitter_fifo_is_cleared(make: Make, change: int) -> None:
    offered: list[bytes] = []

    def refuse(data: bytes) -> int:
        offered.append(data)
        return 0

    port = make(refuse)
    port.setup(ier=ETBEI)
    assert port.source == BY_THRE
    port.send(b"abc")
    assert port.read(LSR) == 0
    assert port.source == NONE
    port.write(FCR, change)
    assert port.read(LSR) == EMPTY
    assert port.source == BY_THRE
    offered.clear()
    port.uart.resume()
    assert offered == []


def test_turning_the_fifos_on_clears_rbr_and_thr(make: Make) -> None:
    port = make(lambda data: 0)
    port.write(LCR, EIGHT)
    port.uart.feed(b"a")
    port.send(b"b")
    assert port.read(LSR) == DR
    port.write(FCR, FIFOS)
    assert port.read(LSR) == EMPTY


# --- interrupts -----------------------------------------------------------------------------------


def test_sources_come_in_their_order(make: Make) -> None:
    port = make()
    port.setup(fcr=FIFOS | 0x40, ier=0)
    port.uart.set_modem(cts=False)
    port.uart.feed(b"abc")
    port.uart.inject(ord("d"), overrun=True)
    assert (port.source, port.interrupt) == (NONE, False)
    port.write(IER, 0x0F)
    assert (port.source, port.interrupt) == (BY_LINE, True)
    assert port.read(LSR) & OE
    assert port.source == BY_DATA
    port.guest.advance(4 * CHARACTER + EPSILON)
    assert port.source == BY_TIMEOUT
    assert port.read(RBR) == ord("a")
    # Below the trigger level, and read: neither data nor time-out.
    assert (port.source, port.interrupt) == (BY_THRE, True)
    assert port.source == BY_MODEM
    assert port.read(MSR) == DSR | DCD | DCTS
    assert (port.source, port.interrupt) == (NONE, False)
    assert port.read(MSR) == DSR | DCD


@pytest.mark.parametrize(
    ("bit", "source"),
    [(ERBFI, BY_DATA), (ETBEI, BY_THRE), (ELSI, BY_LINE), (EDSSI, BY_MODEM)],
)
def test_each_enable_bit_lets_its_source_through(port: Port, bit: int, source: int) -> None:
    port.setup()
    port.uart.set_modem(dsr=False)
    port.uart.inject(0, framing=True)
    assert not port.interrupt
    port.write(IER, bit)
    assert port.interrupt
    assert port.source == source
    port.write(IER, 0x0F & ~bit)
    assert port.source != source
    port.write(IER, 0)
    assert (port.source, port.interrupt) == (NONE, False)


@pytest.mark.parametrize(("bits", "level"), list(enumerate(TRIGGERS)))
def test_data_interrupts_at_the_trigger_level(port: Port, bits: int, level: int) -> None:
    port.setup(fcr=FIFOS | bits << 6, ier=ERBFI)
    port.uart.feed(bytes(level - 1))
    assert (port.source, port.interrupt) == (NONE, False)
    port.uart.feed(b"\0")
    assert (port.source, port.interrupt) == (BY_DATA, True)
    port.read(RBR)
    assert (port.source, port.interrupt) == (NONE, False)


def test_the_level_does_not_drop_between(make: Make) -> None:
    levels: list[bool] = []

    class Watched(Serial):
        def attach(self) -> None:
            set_level = self.plugged.set_level

            def watch(index: int, level: bool) -> None:
                levels.append(level)
                set_level(index, level)

            self.plugged.set_level = watch  # type: ignore[method-assign]
            super().attach()

    port = make(kind=Watched)
    port.setup(ier=ERBFI | ETBEI)
    port.uart.feed(bytes(100))
    port.receive()
    port.send(bytes(100))
    assert levels == [True]
    assert port.source == BY_THRE
    assert levels == [True, False]


def test_in_16450_mode_each_character_interrupts(port: Port) -> None:
    port.setup(fcr=0, ier=ERBFI)
    port.uart.feed(b"ab")
    assert port.read(IIR) == BY_DATA
    port.guest.advance(10 * CHARACTER)
    assert port.read(IIR) == BY_DATA  # nothing times out
    assert port.read(RBR) == ord("a")
    assert port.read(IIR) == NONE
    assert port.read(IIR) == BY_DATA
    assert port.read(RBR) == ord("b")
    assert port.read(IIR) == NONE
    assert port.read(IIR) == NONE


# A line that takes no time fills the receiver anew when the guest has seen that it is empty.


@pytest.mark.parametrize("fcr", [0, FIFOS, FIFOS | 0xC0])
def test_a_handler_comes_to_its_end(port: Port, fcr: int) -> None:
    depth = FIFO_DEPTH if fcr else 1
    port.setup(fcr=fcr, ier=ERBFI)
    port.uart.feed(bytes(range(40)))
    got, most = bytearray(), 0
    while port.source != NONE:
        part = port.receive()
        assert not port.interrupt
        got += part
        most = max(most, len(part))
        assert port.source == NONE  # With that it returns, and it is called again for more.
        port.guest.advance(4 * CHARACTER)
    assert got == bytes(range(40))
    assert most == depth


def test_who_polls_needs_no_pause(port: Port) -> None:
    port.setup()
    port.uart.feed(bytes(range(100)))
    assert port.receive(100) == bytes(range(100))
    port.uart.feed(bytes(range(100)))
    port.write(IER, ERBFI)
    got = port.receive()
    assert FIFO_DEPTH <= len(got) <= 2 * FIFO_DEPTH
    port.write(IER, 0)
    assert got + port.receive() == bytes(range(100))


def test_a_handler_that_never_reads_iir_waits_four_characters(port: Port) -> None:
    port.setup(ier=ERBFI)
    port.uart.feed(bytes(FIFO_DEPTH + 1))
    assert len(port.receive(100)) == FIFO_DEPTH
    port.guest.advance(4 * CHARACTER - EPSILON)
    assert not port.read(LSR) & DR
    port.guest.advance(2 * EPSILON)
    assert port.read(LSR) & DR


def test_a_handler_that_leaves_some_is_not_waited_for(port: Port) -> None:
    """As long as characters are there, there are interrupts."""
    port.setup(fcr=FIFOS | 0x80, ier=ERBFI)
    port.uart.feed(bytes(range(40)))
    got = bytearray()
    for _ in range(20):
        if port.source in (BY_DATA, BY_TIMEOUT):
            got += bytes(port.read(RBR) for _ in range(3) if port.read(LSR) & DR)
        port.guest.advance(4 * CHARACTER)
    assert got == bytes(range(40))


def test_clearing_the_receiver_lets_more_in(port: Port) -> None:
    port.setup(ier=ERBFI)
    port.uart.feed(bytes(range(20)))
    port.write(FCR, FIFOS | 2)
    assert port.receive(100) == bytes(range(FIFO_DEPTH, 20))


# --- the time-out ---------------------------------------------------------------------------------


def test_a_quiet_line_times_out_after_four_characters(port: Port) -> None:
    port.setup(fcr=FIFOS | 0xC0, ier=ERBFI)
    port.uart.feed(b"ab")
    port.guest.advance(4 * CHARACTER - EPSILON)
    assert port.source == NONE
    port.guest.advance(2 * EPSILON)
    assert (port.source, port.interrupt) == (BY_TIMEOUT, True)
    assert port.source == BY_TIMEOUT  # reading IIR does not take it back
    port.uart.feed(b"c")
    assert port.source == BY_TIMEOUT  # nor does a further character
    assert port.read(RBR) == ord("a")
    assert (port.source, port.interrupt) == (NONE, False)
    port.guest.advance(4 * CHARACTER + EPSILON)
    assert port.source == BY_TIMEOUT
    assert port.receive() == b"bc"
    port.guest.advance(5 * CHARACTER)
    assert (port.source, port.interrupt) == (NONE, False)


@pytest.mark.parametrize("stir", ["feed", "read"])
def test_a_character_that_comes_or_goes_restarts_its_time(port: Port, stir: str) -> None:
    port.setup(fcr=FIFOS | 0xC0, ier=ERBFI)
    port.uart.feed(b"abc")
    port.guest.advance(3 * CHARACTER)
    if stir == "feed":
        port.uart.feed(b"d")
    else:
        port.read(RBR)
    port.guest.advance(3 * CHARACTER)
    assert port.source == NONE
    port.guest.advance(CHARACTER + EPSILON)
    assert port.source == BY_TIMEOUT


def test_nothing_else_restarts_its_time(port: Port) -> None:
    port.setup(fcr=FIFOS | 0xC0, ier=ERBFI)
    port.uart.feed(b"a")
    port.guest.advance(3 * CHARACTER)
    for register in (IER, IIR, LCR, MCR, LSR, MSR, SCR):
        port.read(register)
    for register, value in ((FCR, FIFOS | 0xC0), (LCR, EIGHT), (MCR, RTS), (IER, 1), (THR, 0)):
        port.write(register, value)
    port.uart.set_modem(cts=False)
    port.uart.resume()
    port.guest.advance(CHARACTER + EPSILON)
    assert port.source == BY_TIMEOUT


def test_it_goes_by_the_divisor(port: Port) -> None:
    port.set_divisor(1)
    port.setup(fcr=FIFOS | 0xC0, ier=ERBFI)
    port.uart.feed(b"a")
    port.guest.advance(4 * CHARACTER / 12 + EPSILON)
    assert port.source == BY_TIMEOUT


def test_a_time_out_outlives_its_enable_bit(port: Port) -> None:
    port.setup(fcr=FIFOS | 0xC0)
    port.uart.feed(b"a")
    port.guest.advance(4 * CHARACTER + EPSILON)
    assert port.source == NONE
    port.write(IER, ERBFI)
    assert port.source == BY_TIMEOUT


# --- the transmitter ------------------------------------------------------------------------------


def test_iir_takes_the_thre_interrupt_back(port: Port) -> None:
    port.setup(ier=ETBEI)
    assert port.interrupt
    assert port.read(IIR) == FIFOS_ON | BY_THRE
    assert port.read(IIR) == FIFOS_ON | NONE
    assert not port.interrupt
    port.write(IER, ETBEI)  # it is enabled already
    assert port.source == NONE
    port.write(IER, 0)
    port.write(IER, ETBEI)
    assert port.source == BY_THRE


def test_iir_takes_it_back_only_if_it_names_it(port: Port) -> None:
    port.setup(ier=ETBEI | ERBFI)
    port.uart.feed(b"a")
    assert port.source == BY_DATA
    assert port.receive() == b"a"
    assert port.source == BY_THRE


def test_enabling_it_raises_nothing_while_characters_wait(make: Make) -> None:
    port = make(lambda data: 0)
    port.setup()
    port.send(b"a")
    port.write(IER, ETBEI)
    assert port.source == NONE
    port.uart.on_output = None
    port.uart.resume()
    assert port.source == BY_THRE


def test_a_far_end_that_is_full_holds_the_guest_back(make: Make) -> None:
    sent = bytearray()
    room = 0

    def take(data: bytes) -> int:
        nonlocal room
        count = min(room, len(data))
        sent.extend(data[:count])
        room -= count
        return count

    port = make(take)
    port.setup(ier=ETBEI)
    port.send(bytes(range(FIFO_DEPTH)))
    assert (port.read(LSR), port.source) == (0, NONE)
    room = 10
    port.uart.resume()
    assert sent == bytes(range(10))
    assert (port.read(LSR), port.source) == (0, NONE)
    room = 100
    port.send(b"\x10")
    assert sent == bytes(range(17))
    assert (port.read(LSR), port.source) == (EMPTY, BY_THRE)
    assert port.uart.faults.counts == {}


@pytest.mark.parametrize(("fcr", "depth"), [(0, 1), (FIFOS, FIFO_DEPTH)])
def test_a_guest_that_does_not_look_at_thre_loses_its_own(make: Make, fcr: int, depth: int) -> None:
    sent: list[bytes] = []
    port = make(lambda data: 0)
    port.setup(fcr=fcr)
    port.send(bytes(range(depth + 3)))
    port.uart.on_output = sent.append
    port.uart.resume()
    assert sent == [bytes(range(depth - 1)) + bytes([depth + 2])]
    assert port.uart.faults.counts == {"transmitter overrun": 3}


@pytest.mark.parametrize(("answer", "taken"), [(None, 3), (99, 3), (3, 3), (-1, 0)])
def test_what_the_far_end_says_that_it_took(make: Make, answer: int | None, taken: int) -> None:
    offered: list[bytes] = []

    def take(data: bytes) -> int | None:
        offered.append(data)
        return answer if len(offered) > 3 else 0

    port = make(take)
    port.setup()
    port.send(b"abc")
    port.uart.resume()
    assert offered[-1] == b"abc"
    assert bool(port.read(LSR) & TEMT) == (taken == 3)


def test_a_subclass_may_be_the_far_end() -> None:
    class Parrot(Serial):
        def on_output(self, data: bytes) -> int | None:
            self.feed(data.upper())
            return None

    with FakeGuest(uart := Parrot()) as guest:
        port = Port(uart, guest)
        port.setup()
        port.send(b"polly")
        assert port.receive() == b"POLLY"


def test_the_far_end_may_feed_what_it_is_given(make: Make) -> None:
    port = make()
    port.uart.on_output = port.uart.feed
    port.setup()
    port.send(bytes(range(200)))
    assert port.receive() == bytes(range(200))


def test_a_bug_of_the_far_end_is_reported_and_the_guest_goes_on(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object) -> int:
        raise ZeroDivisionError("far away")

    port = make(fail, on_room=fail, on_control=fail)
    with caplog.at_level(logging.ERROR, "callgate.device"):
        port.setup(ier=ETBEI)
        port.send(b"a")
        port.uart.feed(b"b")
        port.uart.resume()
    assert "far away" in caplog.text
    assert (port.read(LSR), port.source) == (EMPTY | DR, BY_THRE)
    assert port.receive() == b"b"


# --- on_room --------------------------------------------------------------------------------------


def test_on_room_tells_that_all_was_received(make: Make) -> None:
    calls: list[int] = []
    port = make()
    port.uart.on_room = lambda: calls.append(port.uart.waiting)
    port.setup()
    port.uart.feed(bytes(FIFO_DEPTH + 2))
    assert calls == []
    port.read(RBR)
    assert calls == []
    port.read(RBR)
    assert calls == [0]
    port.receive()
    port.uart.feed(b"")
    assert calls == [0]


def test_on_room_may_feed_in_order(make: Make) -> None:
    source = iter(range(200))
    port = make()

    def more() -> None:
        if (value := next(source, None)) is not None:
            port.uart.feed(bytes([value]))

    port.uart.on_room = more
    port.setup()
    more()
    assert port.receive() == bytes(range(200))


# --- line status ----------------------------------------------------------------------------------


def test_errors_show_when_their_character_is_at_the_top(port: Port) -> None:
    port.setup(ier=ELSI)
    port.uart.feed(b"a")
    port.uart.inject(ord("b"), parity=True)
    port.uart.inject(ord("c"), framing=True)
    port.uart.send_break()
    port.uart.feed(b"d")
    ready = EMPTY | DR
    assert port.source == NONE
    assert port.read(LSR) == ready | FIFO_ERROR
    assert port.read(RBR) == ord("a")
    assert port.source == BY_LINE
    assert port.read(LSR) == ready | FIFO_ERROR | PE
    assert port.source == NONE
    assert port.read(LSR) == ready | FIFO_ERROR  # others are behind it
    assert port.read(RBR) == ord("b")
    assert port.read(LSR) == ready | FIFO_ERROR | FE
    assert port.read(RBR) == ord("c")
    assert port.read(LSR) == ready | FIFO_ERROR | BI | FE
    assert port.read(LSR) == ready
    assert [port.read(RBR), port.read(RBR)] == [0, ord("d")]
    assert port.read(LSR) == EMPTY


def test_only_reading_lsr_resets_errors(port: Port) -> None:
    port.setup(ier=ELSI)
    port.uart.inject(1, parity=True)
    port.uart.inject(2, framing=True)
    assert (port.read(RBR), port.read(RBR)) == (1, 2)
    assert port.source == BY_LINE
    assert port.read(LSR) == EMPTY | FIFO_ERROR | PE | FE
    assert port.read(LSR) == EMPTY


def test_in_16450_mode_lsr_7_is_zero(port: Port) -> None:
    port.setup(fcr=0)
    port.uart.inject(1, parity=True)
    assert port.read(LSR) == EMPTY | DR | PE
    assert port.read(LSR) == EMPTY | DR


@pytest.mark.parametrize(
    ("lcr", "errors"), [(0x03, 0), (0x0B, PE), (0x1B, 0), (0x2B, PE), (0x3B, 0), (0x13, 0)]
)
def test_a_break_has_no_stop_bit_and_a_zero_for_parity(port: Port, lcr: int, errors: int) -> None:
    port.setup()
    port.write(LCR, lcr)
    port.uart.send_break()
    assert port.read(LSR) == EMPTY | DR | BI | FE | FIFO_ERROR | errors
    assert port.read(RBR) == 0


def test_an_overrun_of_the_fifo_loses_what_came_last(port: Port) -> None:
    port.setup(ier=ELSI, mcr=LOOP)
    port.send(bytes(range(FIFO_DEPTH)))
    assert port.source == NONE
    port.send(b"\xff\xff")
    assert port.source == BY_LINE  # at once, whatever is at the top
    assert port.read(LSR) == EMPTY | DR | OE
    assert port.receive() == bytes(range(FIFO_DEPTH))


def test_an_overrun_of_rbr_loses_what_was_there(port: Port) -> None:
    port.setup(fcr=0, mcr=LOOP)
    port.send(b"abc")
    assert port.read(LSR) == EMPTY | DR | OE
    assert port.receive() == b"c"


def test_an_overrun_may_be_injected(port: Port) -> None:
    port.setup()
    port.uart.feed(b"a")
    port.uart.inject(ord("c"), overrun=True)
    assert port.read(LSR) == EMPTY | DR | OE
    assert port.receive() == b"ac"


@pytest.mark.parametrize("character", [-1, 256])
def test_what_is_no_character_is_refused(port: Port, character: int) -> None:
    with pytest.raises(ValueError, match=f"A character must be 0 to 255, not {character}"):
        port.uart.inject(character)


@pytest.mark.parametrize("data", ["text", 5, None])
def test_what_is_no_bytes_is_refused(port: Port, data: Any) -> None:
    with pytest.raises(TypeError):
        port.uart.feed(data)
    assert port.uart.waiting == 0


# --- the modem ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "bit", "delta"),
    [("cts", CTS, DCTS), ("dsr", DSR, DDSR), ("dcd", DCD, DDCD)],
)
def test_a_modem_line_that_changes_interrupts(port: Port, line: str, bit: int, delta: int) -> None:
    port.setup(ier=EDSSI)
    port.uart.set_modem(**{line: False})
    assert (port.source, port.interrupt) == (BY_MODEM, True)
    port.uart.set_modem(**{line: True})
    assert port.read(MSR) == CONNECTED | delta  # it changed, twice
    assert (port.source, port.interrupt) == (NONE, False)
    port.uart.set_modem(**{line: True})
    assert port.source == NONE
    port.uart.set_modem(**{line: False})
    assert port.read(MSR) == CONNECTED & ~bit | delta


def test_ringing_interrupts_when_it_ends(port: Port) -> None:
    port.setup(ier=EDSSI)
    port.uart.set_modem(ri=True)
    assert port.source == NONE
    assert port.read(MSR) == CONNECTED | RI
    port.uart.set_modem(ri=False)
    assert port.source == BY_MODEM
    assert port.read(MSR) == CONNECTED | TERI


def test_control_tells_what_the_guest_drives(make: Make) -> None:
    seen: list[Control] = []
    port = make(on_control=seen.append)
    off = Control(False, False, False, False, False)
    assert port.uart.control == off
    port.write(MCR, DTR | RTS)
    assert seen == [off._replace(dtr=True, rts=True)]
    port.write(MCR, DTR | RTS)
    assert len(seen) == 1
    port.write(MCR, OUT1 | OUT2)
    assert seen[-1] == off._replace(out1=True, out2=True)
    port.write(LCR, BREAK)
    assert seen[-1] == off._replace(out1=True, out2=True, sending_break=True)
    port.write(LCR, EIGHT)
    port.write(MCR, OUT1 | LOOP)
    assert seen[-1] == port.uart.control == off
    port.write(MCR, OUT1)
    assert seen[-1] == off._replace(out1=True)
    port.reset()
    assert seen[-1] == off
    assert len(seen) == 7


def test_while_the_line_is_held_nothing_is_sent(make: Make) -> None:
    sent = bytearray()
    port = make(sent.extend)
    port.write(LCR, EIGHT | BREAK)
    port.send(b"lost")
    assert port.read(LSR) == EMPTY  # the transmitter works on
    port.write(LCR, EIGHT)
    port.send(b"kept")
    assert sent == b"kept"


@pytest.mark.parametrize("gates", [False, True])
def test_out2_gates_interrupts_where_the_board_has_it_so(make: Make, gates: bool) -> None:
    port = make(out2_gates=gates)
    port.setup(ier=ETBEI, mcr=0)
    assert port.interrupt is not gates
    port.write(MCR, OUT2)
    assert port.interrupt
    port.write(MCR, OUT2 | LOOP)  # the pin is off
    assert port.interrupt is not gates
    assert port.source == BY_THRE


# --- loopback -------------------------------------------------------------------------------------


def test_loopback_leads_outputs_to_inputs(port: Port) -> None:
    port.uart.set_modem(cts=True, dsr=False, ri=False, dcd=False)
    port.read(MSR)
    port.setup(ier=EDSSI, mcr=LOOP)
    assert port.read(MSR) == DCTS
    for outputs, lines, deltas in [
        (RTS, CTS, DCTS),
        (DTR, DSR, DCTS | DDSR),
        (OUT1, RI, DDSR),
        (OUT2, DCD, TERI | DDCD),
        (DTR | RTS | OUT1 | OUT2, 0xF0, DCTS | DDSR),
    ]:
        port.write(MCR, LOOP | outputs)
        assert (port.source, port.interrupt) == (BY_MODEM if deltas else NONE, bool(deltas))
        assert port.read(MSR) == lines | deltas
        assert port.source == NONE
    port.uart.set_modem(cts=False)
    assert port.read(MSR) == 0xF0  # disconnected
    port.write(MCR, 0)
    assert port.read(MSR) == DCTS | DDSR | TERI | DDCD


def test_loopback_disconnects_the_line(make: Make) -> None:
    sent = bytearray()
    port = make(sent.extend)
    port.setup(mcr=LOOP)
    port.uart.feed(b"outside")
    assert port.read(LSR) == EMPTY
    port.send(b"inside")
    assert port.receive() == b"inside"
    assert (bytes(sent), port.uart.waiting) == (b"", 7)
    port.write(LCR, EIGHT | BREAK)  # acts on the pin alone
    port.send(b"inside")
    assert port.receive() == b"inside"
    port.write(MCR, 0)
    assert port.receive() == b"outside"


def test_loopback_times_out(port: Port) -> None:
    port.setup(fcr=FIFOS | 0x80, ier=ERBFI, mcr=LOOP)
    port.send(b"a")
    port.guest.advance(4 * CHARACTER + EPSILON)
    assert port.source == BY_TIMEOUT


# --- flow control ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pace", [False, True])
def test_with_flow_control_the_far_end_waits_for_rts(make: Make, pace: bool) -> None:
    port = make(flow_control=True, pace=pace)
    port.setup(mcr=DTR)
    port.uart.feed(bytes(range(FIFO_DEPTH)))
    port.guest.advance(20 * CHARACTER)
    assert port.read(LSR) == EMPTY
    port.write(MCR, DTR | RTS)
    port.guest.advance(3 * CHARACTER + EPSILON)
    port.write(MCR, DTR)
    port.guest.advance(20 * CHARACTER)
    assert port.receive() == bytes(range(3 if pace else FIFO_DEPTH))
    port.write(MCR, RTS)
    port.guest.advance(20 * CHARACTER)
    assert port.receive() == bytes(range(3, FIFO_DEPTH) if pace else b"")


# --- a line that takes time -----------------------------------------------------------------------


def test_characters_arrive_one_by_one(make: Make) -> None:
    port = make(pace=True)
    port.setup()
    port.uart.feed(b"abc")
    for byte in b"abc":
        assert port.read(LSR) == EMPTY
        port.guest.advance(CHARACTER + EPSILON / 10)
        assert port.read(RBR) == byte
    port.guest.advance(10 * CHARACTER)
    assert port.read(LSR) == EMPTY


@pytest.mark.parametrize(("fcr", "kept"), [(0, bytes([19])), (FIFOS, bytes(range(FIFO_DEPTH)))])
def test_a_guest_that_is_late_sees_overruns(make: Make, fcr: int, kept: bytes) -> None:
    port = make(pace=True)
    port.setup(fcr=fcr)
    port.uart.feed(bytes(range(20)))
    port.guest.advance(20 * CHARACTER + EPSILON)
    assert port.read(LSR) & OE
    assert port.receive() == kept
    assert port.uart.waiting == 0


def test_overrun_takes_the_errors_of_what_is_lost_along(make: Make) -> None:
    port = make(pace=True)
    port.setup()
    port.uart.feed(bytes(FIFO_DEPTH))
    port.uart.inject(1, parity=True)
    port.guest.advance(20 * CHARACTER)
    assert port.read(LSR) == EMPTY | DR | OE
    port.receive()
    assert port.read(LSR) == EMPTY


def test_loopback_that_begins_in_the_middle_of_a_character_delays_it(make: Make) -> None:
    port = make(pace=True)
    port.setup()
    port.uart.feed(b"a")
    port.guest.advance(CHARACTER / 2)
    port.write(MCR, LOOP)
    port.guest.advance(CHARACTER)
    assert port.read(LSR) == EMPTY
    port.write(MCR, 0)
    port.guest.advance(CHARACTER + EPSILON)
    assert port.receive() == b"a"


def test_in_16450_mode_thr_is_empty_once_the_shift_register_has_it(make: Make) -> None:
    sent = bytearray()
    port = make(sent.extend, pace=True)
    port.setup(fcr=0)
    port.send(b"a")
    assert port.read(LSR) == THRE
    port.send(b"b")
    assert port.read(LSR) == 0
    port.guest.advance(CHARACTER + EPSILON)
    assert (bytes(sent), port.read(LSR)) == (b"a", THRE)
    port.guest.advance(CHARACTER + EPSILON)
    assert (bytes(sent), port.read(LSR)) == (b"ab", EMPTY)


def test_a_burst_tells_thre_when_the_fifo_is_empty(make: Make) -> None:
    sent = bytearray()
    port = make(sent.extend, pace=True)
    port.setup(ier=ETBEI)
    assert port.source == BY_THRE
    port.send(bytes(range(FIFO_DEPTH)))
    for count in range(FIFO_DEPTH - 1):
        assert (len(sent), port.read(LSR), port.source) == (count, 0, NONE)
        port.guest.advance(CHARACTER + EPSILON / 100)
    assert (len(sent), port.read(LSR), port.source) == (FIFO_DEPTH - 1, THRE, BY_THRE)
    port.guest.advance(CHARACTER)
    assert (bytes(sent), port.read(LSR)) == (bytes(range(FIFO_DEPTH)), EMPTY)


def test_a_lone_character_tells_thre_when_it_has_left(make: Make) -> None:
    """8.11: else a driver that sends single characters would be interrupted at once by each."""
    port = make(pace=True)
    port.setup(ier=ETBEI)
    assert port.source == BY_THRE
    port.send(b"a")
    assert (port.read(LSR), port.source) == (0, NONE)
    port.guest.advance(CHARACTER + EPSILON)
    assert (port.read(LSR), port.source) == (EMPTY, BY_THRE)


def test_a_full_far_end_holds_the_shift_register(make: Make) -> None:
    sent = bytearray()
    full = True

    def take(data: bytes) -> int:
        if not full:
            sent.extend(data)
        return 0 if full else len(data)

    port = make(take, pace=True)
    port.setup()
    port.send(b"ab")
    port.guest.advance(10 * CHARACTER)
    assert (bytes(sent), port.read(LSR)) == (b"", 0)
    port.uart.resume()
    assert sent == b""
    full = False
    port.uart.resume()
    assert sent == b"a"
    port.guest.advance(CHARACTER / 2)
    port.uart.resume()  # its time on the line has not passed
    assert sent == b"a"
    port.guest.advance(CHARACTER)
    assert (bytes(sent), port.read(LSR)) == (b"ab", EMPTY)


def test_clearing_the_fifo_leaves_the_shift_register(make: Make) -> None:
    sent = bytearray()
    port = make(sent.extend, pace=True)
    port.setup(mcr=0)
    port.send(b"abc")
    port.write(FCR, FIFOS | CLEAR_TX)
    assert port.read(LSR) == THRE
    port.guest.advance(3 * CHARACTER)
    assert (bytes(sent), port.read(LSR)) == (b"a", EMPTY)


def test_loopback_takes_its_time(make: Make) -> None:
    port = make(pace=True)
    port.setup(fcr=FIFOS | 0xC0, ier=ERBFI, mcr=LOOP)
    port.send(b"ab")
    assert not port.read(LSR) & DR
    port.guest.advance(2 * CHARACTER + EPSILON)
    assert port.source == NONE
    port.guest.advance(4 * CHARACTER)
    assert port.source == BY_TIMEOUT
    assert port.receive() == b"ab"


def test_reset_ends_what_is_under_way(make: Make) -> None:
    sent = bytearray()
    port = make(sent.extend, pace=True)
    port.setup()
    port.send(b"abc")
    port.uart.feed(b"xy")
    port.guest.advance(CHARACTER / 2)
    port.reset()
    port.setup()
    port.guest.advance(20 * CHARACTER)
    assert sent == b""
    assert port.receive() == b"xy"


# --- what a guest may do --------------------------------------------------------------------------


def test_wide_accesses_are_taken_byte_by_byte(port: Port) -> None:
    port.function.write(0, 0, 4, EIGHT << 24 | FIFOS << 16 | ERBFI << 8)
    assert port.function.read(0, 0, 4) == EIGHT << 24 | (FIFOS_ON | NONE) << 16 | ERBFI << 8
    port.function.write(0, 6, 2, 0x5AFF)
    assert port.function.read(0, 6, 2) == 0x5A << 8 | CONNECTED
    port.uart.feed(b"a")
    assert port.function.read(0, 0, 2) == ERBFI << 8 | ord("a")


@pytest.mark.parametrize(("offset", "size"), [(1, 2), (3, 2), (7, 2), (2, 4), (5, 4), (8, 1)])
def test_accesses_that_are_none_read_all_ones(port: Port, offset: int, size: int) -> None:
    bar = port.guest.machine.functions[0].bars[0]
    before = [port.read(register) for register in range(8)]
    bar.write(offset, size, 0)
    assert bar.read(offset, size) == (1 << 8 * size) - 1
    assert [port.read(register) for register in range(8)] == before
    assert sum(port.uart.faults.counts.values()) == 2


def test_writes_to_status_registers_are_dropped(port: Port) -> None:
    port.write(LSR, 0)
    port.write(MSR, 0)
    assert (port.read(LSR), port.read(MSR)) == (EMPTY, CONNECTED)
    assert port.uart.faults.counts == {"read-only register": 2}


class Trouble:
    """A far end that takes what it likes, and comes back when it likes."""

    def __init__(self, uart: Serial, answers: list[int]) -> None:
        self.uart = uart
        self.answers = answers

    def output(self, data: bytes) -> int | None:
        answer = self.answers.pop() if self.answers else None
        if answer is not None and answer > 5:
            self.uart.feed(data)
            self.uart.resume()
        return answer


@given(
    accesses=st.lists(
        st.tuples(
            st.integers(0, 9),
            st.sampled_from([1, 1, 1, 2, 4, 8, 3]),
            st.one_of(st.none(), st.integers(0, 255), st.integers(0, 2**64 - 1)),
        ),
        max_size=60,
    ),
    answers=st.lists(st.integers(-1, 20), max_size=10),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_nothing_that_a_guest_does_raises_or_grows(
    accesses: list[tuple[int, int, int | None]],
    answers: list[int],
    flags: tuple[bool, bool, bool],
) -> None:
    uart = Serial()
    uart.on_output = Trouble(uart, answers).output
    uart.pace, uart.flow_control, uart.out2_gates = flags
    logging.disable()
    try:
        with FakeGuest(uart) as guest:
            port = Port(uart, guest)
            bar = guest.machine.functions[0].bars[0]
            for number, (offset, size, value) in enumerate(accesses):
                if value is None:
                    assert 0 <= bar.read(offset, size) < 1 << 8 * size
                else:
                    bar.write(offset, size, value)
                if number % 7 == 0:
                    uart.send_break()
                if number % 5 == 0:
                    guest.advance(CHARACTER)
                assert len(uart._received) <= FIFO_DEPTH
                assert len(uart._to_send) <= FIFO_DEPTH
                assert uart._with_errors == sum(each > 0xFF for each in uart._received)
                assert len(uart._started_timers) <= 3
            gated = uart.out2_gates and port.read(MCR) & (OUT2 | LOOP) != OUT2
            assert port.interrupt == (not uart.iir & NONE and not gated)
            assert uart.bugs._known == set()
    finally:
        logging.disable(logging.NOTSET)


# --- nothing lost, nothing doubled, in order ------------------------------------------------------


class Driver:
    """A driver that goes by LSR or by IIR, and a far end whose room comes and goes."""

    def __init__(self, uart: Serial, guest: FakeGuest) -> None:
        self.port = Port(uart, guest)
        self.fed, self.got = bytearray(), bytearray()
        self.written, self.sent = bytearray(), bytearray()
        self.room = 0
        uart.on_output = self.take
        self.counter = 0

    def take(self, data: bytes) -> int:
        count = min(self.room, len(data))
        self.room -= count
        self.sent += data[:count]
        return count

    def feed(self, count: int) -> None:
        data = self.pattern(count)
        self.fed += data
        self.port.uart.feed(data)

    def give_room(self, count: int) -> None:
        self.room += count
        self.port.uart.resume()

    def receive(self, count: int) -> None:
        self.got += self.port.receive(count)

    def transmit(self, count: int) -> None:
        """As drivers do: up to a FIFO's depth when THRE is set."""
        if self.port.read(LSR) & THRE:
            depth = FIFO_DEPTH if self.port.uart.fifos_enabled else 1
            data = self.pattern(min(count, depth))
            self.written += data
            self.port.send(data)

    def handle(self, count: int) -> None:
        """An interrupt handler, up to `count` rounds."""
        for _ in range(count):
            source = self.port.source
            if source == NONE:
                break
            if source == BY_LINE:
                assert not self.port.read(LSR) & (OE | PE | FE | BI)
            elif source in (BY_DATA, BY_TIMEOUT):
                self.got.append(self.port.read(RBR))
            elif source == BY_THRE:
                self.transmit(count)
            elif source == BY_MODEM:
                self.port.read(MSR)

    def enable(self, count: int) -> None:
        self.port.write(IER, count & 0x0F)

    def trigger(self, count: int) -> None:
        if self.port.uart.fifos_enabled:
            self.port.write(FCR, FIFOS | (count & 3) << 6)

    def wait(self, count: int) -> None:
        self.port.guest.advance(count * CHARACTER / 4)

    def scramble(self, count: int) -> None:
        """What must not touch the data: divisor, scratchpad, modem, status reads."""
        port = self.port
        port.set_divisor(count + 1)
        port.write(SCR, count)
        port.uart.set_modem(cts=bool(count & 1), ri=bool(count & 2))
        for register in (IER, IIR, LCR, MCR, MSR, SCR):
            port.read(register)

    def pattern(self, count: int) -> bytes:
        data = bytes((self.counter + index) * 7 & 0xFF for index in range(count))
        self.counter += count
        return data


ACTIONS = (
    *("feed", "give_room", "receive", "transmit", "handle"),
    *("enable", "trigger", "wait", "scramble"),
)


@given(
    fcr=st.sampled_from([0, FIFOS, FIFOS | 0xC0]),
    steps=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 40)), max_size=60),
)
def test_nothing_is_lost_or_doubled_and_all_is_in_order(
    fcr: int, steps: list[tuple[str, int]]
) -> None:
    with FakeGuest(uart := Serial()) as guest:
        driver = Driver(uart, guest)
        driver.port.setup(fcr=fcr, ier=0x0F)
        for name, count in steps:
            getattr(driver, name)(count)
            assert driver.fed.startswith(driver.got)
            assert driver.written.startswith(driver.sent)
            assert driver.port.interrupt == (not uart.iir & NONE)
            assert uart.dr == (driver.got != driver.fed) or uart._gap is not None
            assert uart.temt == (driver.sent == driver.written)
        driver.give_room(1 << 20)
        while uart.dr or uart._gap is not None:
            driver.receive(1 << 20)
            assert driver.port.source != BY_DATA
        assert driver.got == driver.fed
        assert driver.sent == driver.written
        assert uart.faults.counts == {}


@pytest.mark.uncovered
@given(
    chunks=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    reads=st.lists(st.integers(1, 16), max_size=8),
)
def test_on_a_line_that_takes_time_a_guest_that_keeps_up_loses_nothing(
    chunks: list[int], reads: list[int]
) -> None:
    sent = bytearray()
    with FakeGuest(uart := Serial(sent.extend)) as guest:
        uart.pace = True
        port = Port(uart, guest)
        port.setup()
        fed, got, written = bytearray(), bytearray(), bytearray()
        for chunk in chunks:
            data = bytes(range(chunk))
            fed += data
            uart.feed(data)
            for count in [*reads, *[FIFO_DEPTH] * (chunk // 4 + 1)]:
                guest.advance(min(count, 15) * CHARACTER)
                got += port.receive()
                if port.read(LSR) & THRE:
                    written += data[:FIFO_DEPTH]
                    port.send(data[:FIFO_DEPTH])
        guest.advance(FIFO_DEPTH * 2 * CHARACTER)
        got += port.receive()
        assert (got, sent) == (fed, written)
        assert uart.faults.counts == {}
