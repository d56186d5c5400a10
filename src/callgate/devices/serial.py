# SPDX-License-Identifier: MIT
"""Serial: a 16550A serial port on the PCI bus: QEMU's pci-serial (its docs/specs/pci-serial.rst).

    feed, inject, send_break --> waiting --> receiver FIFO --> RBR --> guest
    on_output <-------------------------- transmitter FIFO <-- THR <-- guest
    set_modem --> MSR                                    MCR, LCR --> on_control

The far end of the line is Python: `feed` and `on_output`, or a `SerialStream` for a terminal, a
socket or a pipe.

    received = bytearray()
    uart = Serial(received.extend)
    uart.feed(b"to the guest")

Section numbers are those of National Semiconductor's data sheet PC16550D (June 1995). Where it
leaves something open, the model does what software relies on, and a comment says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from callgate import Bar, Device, Field, Interrupt, Register, Timer

Bytes: TypeAlias = bytes | bytearray | memoryview

FIFO_DEPTH = 16
"""Characters that each of the two FIFOs holds."""
TRIGGERS = 1, 4, 8, 14
"""Characters at which the receiver FIFO interrupts, by the upper bits of FCR (8.5)."""

_DR, _OE, _PE, _FE, _BI, _THRE, _TEMT, _FIFO_ERROR = (1 << bit for bit in range(8))  # LSR
_OF_A_CHARACTER = _PE | _FE | _BI
_ANY_ERROR = _OE | _OF_A_CHARACTER | _FIFO_ERROR
_ERBFI, _ETBEI, _ELSI, _EDSSI = 1, 2, 4, 8  # IER
_BY_NONE, _BY_MODEM, _BY_THRE, _BY_DATA, _BY_LINE, _BY_TIMEOUT = 1, 0, 2, 4, 6, 12  # IIR
_SOURCE, _FIFOS_ON = 0x0F, 0xC0
_ENABLE, _CLEAR_RECEIVER, _CLEAR_TRANSMITTER = 1, 2, 4  # FCR
_WORD_LENGTH, _LONG_STOP, _PARITY, _EVEN, _DLAB = 0x03, 0x04, 0x08, 0x10, 0x80  # LCR
_DTR, _RTS, _OUT1, _OUT2, _LOOP = 0x01, 0x02, 0x04, 0x08, 0x10  # MCR
_TERI, _DELTAS, _CTS, _DSR, _RI, _DCD, _LINES = 0x04, 0x0F, 0x10, 0x20, 0x40, 0x80, 0xF0  # MSR
_TIMEOUT = 4
"""Characters' time without a character before the receiver FIFO interrupts (8.11)."""


class Control(NamedTuple):
    """What the guest drives on the line beside data. All off in loopback mode (8.8)."""

    dtr: bool
    rts: bool
    out1: bool
    out2: bool
    sending_break: bool


class Serial(Device):
    """A 16550A serial port.

    `on_output` is called with the bytes that the guest sent, and returns how many of them the far
    end took, or None for all. What it does not take stays in the transmitter, so that the guest
    waits, until `resume`. Without `on_output` the line is open, and all is lost.

    Three callables may be assigned, or be methods of a subclass: `on_output(data)`, `on_room()`,
    called when the guest has received all that was fed, and `on_control(control)`, called when what
    the guest drives beside data changed. They run while the device is locked: they must not wait.
    They may call the methods below, all of which may be called from any thread. What they raise is
    reported as a bug of the model.
    """

    id = 0x1B36, 0x0002
    subsystem = 0x1AF4, 0x1100
    class_code = 0x070002
    revision = 1

    crystal: float = 1_843_200.0
    """Hz; a bit lasts 16 times the divisor of its periods."""
    pace: bool = False
    """Whether characters take their time on the line. Off, nothing is ever lost: what the guest has
    no room for waits, and more comes when an interrupt handler has seen that there is no more. On,
    the line delivers at the rate that the guest programmed, room or not, and
    a guest that is late sees overruns. To be set before the guest runs."""
    flow_control: bool = False
    """Whether the far end sends only while the guest asserts RTS: a driver that has not opened the
    port yet, or whose buffers are full, then loses nothing."""
    out2_gates: bool = False
    """Whether OUT2 has to be on for interrupts, as on the boards of PCs. QEMU asks for nothing."""

    on_output: Callable[[bytes], int | None] | None = None
    on_room: Callable[[], None] | None = None
    on_control: Callable[[Control], None] | None = None

    ports = Bar(0, 8, "io")

    data = Register(0, width=8, doc="RBR when read, THR when written; with dlab DLL")

    ier = Register(1, width=8, doc="interrupt enable register (8.7); with dlab DLM")
    erbfi = Field(ier, 0, doc="received data available, and time-out")
    etbei = Field(ier, 1, doc="transmitter holding register empty")
    elsi = Field(ier, 2, doc="receiver line status")
    edssi = Field(ier, 3, doc="modem status")
    ier_zero = Field(ier, 4, 7, access="r")

    iir = Register(2, width=8, reset=_BY_NONE, doc="IIR when read (8.6), FCR when written (8.5)")
    none_pending = Field(iir, 0, doc="0: an interrupt is pending")
    source = Field(iir, 1, 3, doc="which: 3 line status, 2 data, 6 time-out, 1 THRE, 0 modem")
    fifos_enabled = Field(iir, 6, 7, doc="3: yes")

    lcr = Register(3, width=8, doc="line control register (8.1)")
    word_length = Field(lcr, 0, 1, doc="5 to 8 bits")
    long_stop = Field(lcr, 2, doc="two stop bits, with 5 bits one and a half")
    parity_enable = Field(lcr, 3)
    even_parity = Field(lcr, 4)
    stick_parity = Field(lcr, 5)
    set_break = Field(lcr, 6, doc="the line is held at spacing")
    dlab = Field(lcr, 7, doc="divisor latch access")

    mcr = Register(4, width=8, doc="modem control register (8.8)")
    dtr = Field(mcr, 0)
    rts = Field(mcr, 1)
    out1 = Field(mcr, 2)
    out2 = Field(mcr, 3)
    loop = Field(mcr, 4, doc="transmitter and modem outputs lead to the inputs")
    mcr_zero = Field(mcr, 5, 7, access="r")

    lsr = Register(5, width=8, access="r", reset=_THRE | _TEMT, doc="line status register (8.4)")
    dr = Field(lsr, 0, doc="data ready")
    oe = Field(lsr, 1, doc="overrun error")
    pe = Field(lsr, 2, doc="parity error")
    fe = Field(lsr, 3, doc="framing error")
    bi = Field(lsr, 4, doc="break")
    thre = Field(lsr, 5, doc="transmitter holding register, or FIFO, empty")
    temt = Field(lsr, 6, doc="transmitter empty")
    fifo_error = Field(lsr, 7, doc="pe, fe or bi of a character in the receiver FIFO")

    msr = Register(
        6, width=8, access="r", reset=_CTS | _DSR | _DCD, doc="modem status register (8.9)"
    )
    dcts = Field(msr, 0, doc="cts changed")
    ddsr = Field(msr, 1, doc="dsr changed")
    teri = Field(msr, 2, doc="ri ended")
    ddcd = Field(msr, 3, doc="dcd changed")
    cts = Field(msr, 4)
    dsr = Field(msr, 5)
    ri = Field(msr, 6)
    dcd = Field(msr, 7)

    scr = Register(7, width=8, doc="scratchpad register")

    intr = Interrupt("a source that ier enables is pending")

    def __init__(self, on_output: Callable[[bytes], int | None] | None = None) -> None:
        if on_output is not None:
            self.on_output = on_output
        self._live = False
        self._queue: deque[int] = deque()
        """Characters on their way to the receiver, each with its line status bits from bit 8 on."""
        self._lines = _CTS | _DSR | _DCD
        self._told = self.control
        self._clear()

    def _clear(self) -> None:
        """Let everything but the far end be as after a master reset (table I)."""
        self._enabled = 0
        """IER: the register's own value is that of DLM while the guest writes it."""
        # A reset leaves the divisor as it was; this is what firmware leaves, and QEMU.
        self._divisor = 12
        self._fifos = False
        self._depth = self._trigger = 1
        self._received: deque[int] = deque()
        """The receiver FIFO; in 16450 mode RBR is its only place. As in the queue."""
        self._with_errors = 0
        """Characters in it that have line status bits."""
        self._errors = 0
        """OE, PE, FE and BI as LSR shows them."""
        self._last = 0
        """What RBR held last."""
        self._stirred = False
        """Whether a character came into the FIFO or left it: the time-out's time begins anew."""
        self._timed_out = False
        self._timeout: Timer | None = None
        self._receiving = False
        """Whether a character's time on the line runs."""
        self._sated = False
        """Whether the receiver was filled by a line that takes no time, with its interrupt on."""
        self._gap: Timer | None = None
        """Runs from when it was emptied then, until it is filled anew."""
        self._to_send = bytearray()
        """The transmitter FIFO; in 16450 mode THR is its only place."""
        self._shifting: int | None = None
        """The transmitter's shift register. A line that takes no time needs none."""
        self._sending = False
        """Whether its time on the line runs."""
        self._burst = False
        """Whether the transmitter FIFO held two characters at once since THRE."""
        self._empty = True
        """THRE."""
        self._emptied = False
        """Whether the THRE interrupt is pending: THRE came, and neither IIR nor THR was used."""
        self._asserted = False

    def attach(self) -> None:
        """Begin: what was fed before is on its way."""
        self._live = True
        # Timers are the machine's, and so is the line.
        self._receiving = self._sending = self._asserted = False
        self._let_in()
        self._stirred = True
        self.resume()
        self._proceed()

    def detach(self) -> None:
        """End. What is fed now waits for the next machine."""
        self._live = False

    def reset(self) -> None:
        """Lose what the FIFOs hold; what is on its way to them stays on its way."""
        self._clear()
        self.msr = self._lines
        self._drive()
        self._proceed()

    # --- the far end's side ----------------------------------------------------------------------

    def feed(self, data: Bytes) -> None:
        """Let the guest receive `data`, after all that is on its way. Never waits."""
        with self.lock:
            self._queue.extend(bytes(memoryview(data)))
            self._proceed()

    def inject(
        self,
        character: int,
        *,
        parity: bool = False,
        framing: bool = False,
        overrun: bool = False,
    ) -> None:
        """Let the guest receive a character (8 bits) with errors; `overrun`: one before it was
        lost. Raises ValueError."""
        if not 0 <= character <= 0xFF:
            raise ValueError(f"A character must be 0 to 255, not {character}")
        self._enqueue(character, _PE * parity | _FE * framing | _OE * overrun)

    def send_break(self) -> None:
        """Let the guest receive a break: a zero character without a stop bit (8.4, bit 4)."""
        self._enqueue(0, _BI | _FE)

    @property
    def waiting(self) -> int:
        """How many characters are on their way to the guest's receiver."""
        return len(self._queue)

    def set_modem(
        self,
        *,
        cts: bool | None = None,
        dsr: bool | None = None,
        ri: bool | None = None,
        dcd: bool | None = None,
    ) -> None:
        """Set the modem's lines; those not named stay. From the start, all but `ri` are on."""
        with self.lock:
            for bit, on in ((_CTS, cts), (_DSR, dsr), (_RI, ri), (_DCD, dcd)):
                if on is not None:
                    self._lines = self._lines | bit if on else self._lines & ~bit
            self._follow_modem()
            self._update()

    def resume(self) -> None:
        """Offer again what `on_output` did not take: the far end has room."""
        with self.lock:
            if self._shifting is not None and not self._sending:
                self._shifted()
            else:
                self._transmit()
                self._update()

    @property
    def control(self) -> Control:
        """What the guest drives beside data, now."""
        mcr = self.mcr
        if mcr & _LOOP:
            return Control(False, False, False, False, False)
        return Control(
            dtr=bool(mcr & _DTR),
            rts=bool(mcr & _RTS),
            out1=bool(mcr & _OUT1),
            out2=bool(mcr & _OUT2),
            sending_break=bool(self.set_break),
        )

    @property
    def character_time(self) -> float:
        """Seconds that a character takes, by divisor and LCR (8.1, 8.3)."""
        lcr = self.lcr
        bits = 7.0 + (lcr & _WORD_LENGTH) + bool(lcr & _PARITY)
        if lcr & _LONG_STOP:
            bits += 1 if lcr & _WORD_LENGTH else 0.5
        # A divisor of zero is "not recommended": a 16-bit counter that is loaded with it counts so.
        return bits * 16 * (self._divisor or 0x10000) / self.crystal

    # --- the guest's side ------------------------------------------------------------------------

    @data.on_read
    def _read_data(self) -> int:
        if self.lcr & _DLAB:
            return self._divisor & 0xFF
        if self._received:
            character = self._received.popleft()
            if character > 0xFF:
                self._with_errors -= 1
            # Not when it came: on a line that takes no time, that may be before LCR was written.
            self._last = character & self._word
            self._timed_out = False
            self._stirred = True
            if self._sated and not self._received:
                self._gap = self.after(_TIMEOUT * self.character_time, self._seen_empty)
            self._reveal()
            self._proceed()
        return self._last

    @data.on_write
    def _write_data(self, value: int) -> None:
        if self.lcr & _DLAB:
            self._divisor = self._divisor & 0xFF00 | value
            return
        self._empty = self._emptied = False
        if len(self._to_send) < self._depth:
            self._to_send.append(value)
            self._burst |= len(self._to_send) > 1
        else:
            self._to_send[-1] = value
            self.faults.note(
                "transmitter overrun",
                f"THR must be written while THRE is set, or up to {FIFO_DEPTH} times since: a "
                "character took the place of one that was not sent yet",
            )
        self._transmit()
        self._update()

    @ier.on_read
    def _read_ier(self) -> int:
        return self._divisor >> 8 if self.lcr & _DLAB else self._enabled

    @ier.on_write
    def _write_ier(self, value: int) -> None:
        if self.lcr & _DLAB:
            self._divisor = self._divisor & 0xFF | value << 8
            self.ier = self._enabled
            return
        # Enabling the THRE interrupt while THRE is set raises it, and may do so again. That is not
        # in the data sheet, but in the chip; drivers start to send by it, and Linux tests for it.
        if self.ier & ~self._enabled & _ETBEI and self._empty:
            self._emptied = True
        self._enabled = self.ier
        self._proceed()

    @iir.on_read
    def _read_iir(self) -> int:
        iir = self.iir
        if iir & _SOURCE == _BY_THRE:
            self._emptied = False
            self._update()
        elif iir & _SOURCE == _BY_NONE and self._gap is not None:
            self._seen_empty()
        return iir

    @iir.on_write
    def _write_fcr(self, value: int) -> None:
        fifos = bool(value & _ENABLE)
        changed = fifos != self._fifos
        self._fifos = fifos
        self._depth = FIFO_DEPTH if fifos else 1
        self._trigger = TRIGGERS[value >> 6] if fifos else 1
        if changed or (fifos and value & _CLEAR_RECEIVER):
            self._received.clear()
            self._with_errors = 0
            self._errors &= _OE
            self._timed_out = False
            self._stirred = True
            self._let_in()
        if changed or (fifos and value & _CLEAR_TRANSMITTER):
            self._to_send.clear()
            self._set_empty()
        self._proceed()

    @lcr.on_write
    def _write_lcr(self, value: int) -> None:
        self._drive()

    @mcr.on_write
    def _write_mcr(self, value: int) -> None:
        self._follow_modem()
        self._drive()
        self._proceed()

    @lsr.on_read
    def _read_lsr(self) -> int:
        lsr = self.lsr
        if lsr & _ANY_ERROR:
            self._errors = 0
            if self._received and self._received[0] > 0xFF:
                self._received[0] &= 0xFF
                self._with_errors -= 1
            self._update()
        return lsr

    @msr.on_read
    def _read_msr(self) -> int:
        msr = self.msr
        if msr & _DELTAS:
            self.msr = msr & ~_DELTAS
            self._update()
        return msr

    # --- the receiver ----------------------------------------------------------------------------

    def _enqueue(self, character: int, errors: int) -> None:
        with self.lock:
            self._queue.append(character | errors << 8)
            self._proceed()

    def _proceed(self) -> None:
        """Receive what is on its way and may be received; then let all follow."""
        if self._live:
            if self.pace:
                self._start_receiving()
            else:
                while self._queue and self._has_room() and self._may_come():
                    self._take()
                    # A guest whose receiver is never empty never comes out of its handler.
                    self._sated = len(self._received) == self._depth
            if self._stirred:
                self._restart_timeout()
        self._update()

    def _has_room(self) -> bool:
        if not self._enabled & _ERBFI:
            self._let_in()
        return len(self._received) < self._depth and not self._sated

    def _seen_empty(self) -> None:
        """The guest has seen that the receiver is empty, or has had the time to."""
        self._let_in()
        self._proceed()

    def _let_in(self) -> None:
        self._sated = False
        if self._gap is not None:
            self._gap.cancel()
            self._gap = None

    def _may_come(self) -> bool:
        """Whether the far end's characters reach the receiver, and it sends them."""
        mcr = self.mcr
        return not mcr & _LOOP and (not self.flow_control or bool(mcr & _RTS))

    def _take(self) -> None:
        self._receive(self._queue.popleft())
        if not self._queue:
            self._tell(self.on_room)

    def _start_receiving(self) -> None:
        """Let the next character's time on the line begin."""
        if not self._receiving and self._queue and self._may_come():
            self._receiving = True
            self.after(self.character_time, self._arrived)

    def _arrived(self) -> None:
        self._receiving = False
        if self._queue and self._may_come():
            self._take()
        self._proceed()

    def _receive(self, character: int) -> None:
        """Move a character from the shift register to RBR or the FIFO (8.4)."""
        self._stirred = True
        errors = character >> 8
        if errors & _BI and self.lcr & (_PARITY | _EVEN) == _PARITY:
            errors |= _PE  # The line says 0, and the parity bit should be 1.
        self._errors |= errors & _OE
        if len(self._received) == self._depth:
            self._errors |= _OE
            if self._fifos:
                return  # What is in the FIFO stays.
            self._received.clear()
            self._with_errors = 0
        errors &= _OF_A_CHARACTER
        self._with_errors += bool(errors)
        self._received.append(character & 0xFF | errors << 8)
        if len(self._received) == 1:
            self._reveal()

    def _reveal(self) -> None:
        """Show in LSR the errors of the character at the top."""
        if self._received:
            self._errors |= self._received[0] >> 8

    def _restart_timeout(self) -> None:
        """A character came or went: let the time-out's time begin anew (8.11)."""
        self._stirred = False
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None
        if self._fifos and self._received and not self._timed_out:
            self._timeout = self.after(_TIMEOUT * self.character_time, self._time_out)

    def _time_out(self) -> None:
        self._timed_out = True
        self._update()

    # --- the transmitter -------------------------------------------------------------------------

    @property
    def _word(self) -> int:
        """The bits of a character: 5 to 8."""
        return (0x20 << (self.lcr & _WORD_LENGTH)) - 1

    def _transmit(self) -> None:
        """Send what may be sent now."""
        if not self._to_send:
            return
        if self.pace:
            if self._shifting is not None or not self._live:
                return
            self._shifting = self._to_send.pop(0)
            self._sending = True
            self.after(self.character_time, self._shifted)
            # A lone character in the FIFO does not tell THRE before it has left (8.11).
            if not self._to_send and (self._burst or not self._fifos):
                self._set_empty()
            return
        characters = bytes(self._to_send)
        self._to_send.clear()  # `on_output` may come back to us.
        left = characters[self._send(characters) :]
        self._to_send[:0] = left
        if not self._to_send:
            self._set_empty()

    def _shifted(self) -> None:
        """The character in the shift register has had its time on the line."""
        self._sending = False
        assert self._shifting is not None
        if not self._send(bytes([self._shifting])):
            return
        self._shifting = None
        if self._to_send:
            self._transmit()
        elif not self._empty:
            self._set_empty()
        self._update()

    def _send(self, characters: bytes) -> int:
        """Hand characters over; returns how many were taken."""
        word = self._word
        if word != 0xFF:
            characters = bytes(each & word for each in characters)
        if self.mcr & _LOOP:
            for each in characters:
                self._receive(each)
            self._restart_timeout()
            return len(characters)
        if self.on_output is None or self.set_break:  # A line that is held shows nothing else.
            return len(characters)
        taken = self._tell(self.on_output, characters)
        return len(characters) if taken is None else max(0, min(taken, len(characters)))

    def _set_empty(self) -> None:
        self._empty = self._emptied = True
        self._burst = False

    # --- both ------------------------------------------------------------------------------------

    def _follow_modem(self) -> None:
        """Let MSR show the modem's lines, or in loopback mode our own, and what changed (8.9)."""
        mcr, lines = self.mcr, self._lines
        if mcr & _LOOP:
            lines = (mcr & _RTS) << 3 | (mcr & _DTR) << 5 | (mcr & (_OUT1 | _OUT2)) << 4
        before = self.msr
        deltas = ((before ^ lines) & _LINES) >> 4
        if lines & _RI:
            deltas &= ~_TERI  # It tells that the ringing ended.
        self.msr = lines | before & _DELTAS | deltas

    def _drive(self) -> None:
        """Tell the far end what changed beside data."""
        control = self.control
        if control != self._told:
            self._told = control
            self._tell(self.on_control, control)

    def _tell(self, callback: Callable[..., int | None] | None, *arguments: object) -> int | None:
        """Call the far end; its bugs are not the guest's."""
        if callback is None:
            return None
        try:
            return callback(*arguments)
        except Exception as error:
            self.bugs.report(f"{self}: the far end of the line", error)
            return None

    def _update(self) -> None:
        """Let LSR, IIR and INTR be what all else says."""
        errors, enabled = self._errors, self._enabled
        count = len(self._received)
        lsr = errors
        if count:
            lsr |= _DR
        if self._empty:
            lsr |= _THRE
        if not self._to_send and self._shifting is None:
            lsr |= _TEMT
        if self._fifos and (self._with_errors or errors & _OF_A_CHARACTER):
            lsr |= _FIFO_ERROR
        if enabled & _ELSI and errors:
            source = _BY_LINE
        elif enabled & _ERBFI and self._timed_out:
            source = _BY_TIMEOUT
        elif enabled & _ERBFI and count >= self._trigger:
            source = _BY_DATA
        elif enabled & _ETBEI and self._emptied:
            source = _BY_THRE
        elif enabled & _EDSSI and self.msr & _DELTAS:
            source = _BY_MODEM
        else:
            source = _BY_NONE
        self.lsr = lsr
        self.iir = source | _FIFOS_ON if self._fifos else source
        asserted = source != _BY_NONE and self._gate_open()
        if asserted != self._asserted and self._live:
            self._asserted = asserted
            if asserted:
                self.intr.assert_()  # noqa: PT009
            else:
                self.intr.deassert()

    def _gate_open(self) -> bool:
        """Whether the board lets INTR through."""
        return not self.out2_gates or self.mcr & (_OUT2 | _LOOP) == _OUT2
