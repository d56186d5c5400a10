# SPDX-License-Identifier: MIT
"""A device that lies: in its capability, its header, its directory, its doorbell page, its frames.

The guest's program (liar.c) writes a number to `lie` and binds the driver; then it writes 1 to
`spring`, which is for lies that come later, calls, resets, and unbinds. Number 0 is the truth.

    number -> LIES[number]: what is done before the driver binds, after it has, or to each call
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from callgate import Device, Register, call, u64
from callgate.gate import abi
from callgate.gate.abi import CAPABILITY, ENTRY, HEADER, FrameState, Layout, Status
from callgate.gate.gate import Gate
from callgate.pci.bar import Write
from callgate.pci.capability import VENDOR_SPECIFIC, PciExpress
from callgate.pci.function import Function

_SEED = 20_260_101
_RANDOM = 40
_READY, _DONE = int(FrameState.READY), int(FrameState.DONE)
_INTERESTING = (
    *(0, 1, 2, 3, 7, 8, 0x27, 0x3F, 0x40, 0x7F, 0x80, 0xBF, 0xFF, 0x100, 0xFFF, 0x1000, 0x1001),
    *(0x4000, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_F000, 0xFFFF_FFFF),
)


@dataclass(frozen=True)
class Lie:
    """`before` is done before the driver binds, `after` once it is bound; `answer` answers a frame
    in the device's place, `read` a read of the doorbell page. `expected` says what the guest must
    see, of what it prints: errnos and statuses by step; a step that is not named is free."""

    name: str
    before: Callable[[Liar], None] | None = None
    after: Callable[[Liar], None] | None = None
    answer: Callable[[Liar, int], None] | None = None
    read: Callable[[Liar, int], int] | None = None
    expected: dict[str, str] | None = None
    polled: bool = True
    """Whether it offers to watch: who answers calls otherwise is to be rung for each."""


class Liar(Device):
    """Tells the truth until it is told otherwise."""

    id = 0x1AF4, 0x10FB
    frames = 4
    capabilities = (PciExpress(),)
    parallel = True
    lie = Register(0x00, doc="which lie to tell, 0 for none")
    count = Register(0x04, access="r", doc="how many there are")
    spring = Register(0x08, doc="1: the driver is bound")

    def attach(self) -> None:
        self.count = len(LIES)
        self.restless: Restless | None = None
        self.told = LIES[0]
        function = self.plugged
        assert isinstance(function, Function)
        self.function = function
        self.honest: bytes | None = None
        for bar in function.bars:
            for window in bar.windows:
                if window.name == "doorbell" and bar.kind == "memory":
                    window.read = self.read_doorbell
                if window.name in ("doorbell", "doorbell ports"):
                    window.write = partial(self.write_doorbell, window.write)

    def reset(self) -> None:
        self.count = len(LIES)

    def detach(self) -> None:
        self.rest()

    @property
    def real_gate(self) -> Gate:
        gate = self.function.gate
        assert gate is not None
        return gate

    @property
    def capability(self) -> int:
        """Where it is in configuration space."""
        places = self.function._capabilities
        return next(at for at, kind in places.items() if kind == VENDOR_SPECIFIC)

    @call
    def add(self, a: u64, b: u64) -> u64:
        return (a + b) & 0xFFFF_FFFF_FFFF_FFFF

    @call
    def echo(self, data: bytes) -> bytes:
        return data

    # --- what the guest asks for -----------------------------------------------------------------

    @lie.on_write
    def choose(self, value: int) -> None:
        self.rest()
        gate, at = self.real_gate, self.capability
        if self.honest is None:
            self.honest = bytes(self.function.config.dump()[at : at + CAPABILITY.size])
        for offset in range(2, CAPABILITY.size):
            self.function.config.preset(at + offset, 1, self.honest[offset])
        self.told = LIES[value]
        gate.offered &= ~abi.Feature.POLLED
        if self.told.polled:
            gate.offered |= abi.Feature.POLLED
        gate.reset()
        if self.told.before is not None:
            self.told.before(self)

    @spring.on_write
    def sprung(self, value: int) -> None:
        if value and self.told.after is not None:
            self.told.after(self)

    def write_doorbell(self, ring: Write, offset: int, size: int, value: int) -> None:
        if self.told.answer is not None and offset == 0 and value < self.frames:
            self.told.answer(self, value)
        else:
            ring(offset, size, value)

    def read_doorbell(self, offset: int, size: int) -> int:
        if self.told.read is not None:
            return self.told.read(self, offset)
        return self.real_gate.mmio_read(offset, size)

    # --- how to lie ------------------------------------------------------------------------------

    def in_capability(self, **values: int) -> None:
        for name, value in values.items():
            member = next(each for each in CAPABILITY.members if each.name == name)
            self.function.config.preset(self.capability + member.offset, member.size, value)

    def in_layout(self, base: int, layout: Layout, **values: int | bytes) -> None:
        ram = self.real_gate.ram
        for name, value in values.items():
            member = next(each for each in layout.members if each.name == name)
            at = base + member.offset
            data = value if isinstance(value, bytes) else value.to_bytes(member.size, "little")
            ram[at : at + member.size] = data.ljust(member.size, b"\0")

    def in_header(self, **values: int | bytes) -> None:
        self.in_layout(0, HEADER, **values)

    def in_entry(self, number: int, **values: int | bytes) -> None:
        self.in_layout(HEADER.size + number * ENTRY.size, ENTRY, **values)

    def in_frame(self, index: int, **values: int | bytes) -> None:
        gate = self.real_gate
        base = gate.frames_offset + index * gate.frame_size
        # The state last.
        for name in sorted(values, key=lambda name: name == "state"):
            self.in_layout(base, abi.FRAME, **{name: values[name]})

    def work(self, step: Callable[[int], None]) -> None:
        """Do something again and again."""
        self.restless = Restless(step)

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, action)
        timer.daemon = True
        timer.start()

    def rest(self) -> None:
        if self.restless is not None:
            self.restless.end()
            self.restless = None


class Restless:
    """A thread that does `step` until `end`."""

    def __init__(self, step: Callable[[int], None]) -> None:
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(step,), daemon=True)
        self._thread.start()

    def _run(self, step: Callable[[int], None]) -> None:
        number = 0
        while not self._ending.wait(0.0001):
            step(number)
            number += 1

    def end(self) -> None:
        self._ending.set()
        self._thread.join()


# --- lies ----------------------------------------------------------------------------------------


def capability(title: str, bind: str, **values: int) -> Lie:
    """In the capability: what `bind` gives."""
    return Lie(
        f"capability: {title}",
        before=lambda liar: liar.in_capability(**values),
        expected={"bind": bind},
    )


def header(title: str, bind: str, **values: int | bytes) -> Lie:
    return Lie(
        f"header: {title}",
        before=lambda liar: liar.in_header(**values),
        expected={"bind": bind},
    )


def entry(title: str, open: str, **values: int | bytes) -> Lie:
    """In the directory's entry of `add`: what opening that gives."""
    return Lie(
        f"entry: {title}",
        before=lambda liar: liar.in_entry(0, **values),
        expected={"bind": "0", "open": open},
    )


def answer(name: str, call: str, answer: Callable[[Liar, int], None], **more: str) -> Lie:
    """In a frame: what the call gives."""
    expected = {"bind": "0", "open": "0", "call": call, **more}
    return Lie(f"answer: {name}", answer=answer, expected=expected, polled=False)


def frame(**values: int | bytes) -> Callable[[Liar, int], None]:
    """Answers every frame with these members."""
    return lambda liar, index: liar.in_frame(index, **values)


def honest(liar: Liar, index: int) -> None:
    liar.real_gate._frames[index].look()


def late(liar: Liar, index: int) -> None:
    """Answers when nobody waits any more."""
    liar.in_frame(index, state=FrameState.RUNNING)
    liar.later(0.1, lambda: liar.in_frame(index, status=Status.OK, results=1, state=_DONE))


def twice(liar: Liar, index: int) -> None:
    honest(liar, index)
    for pause in (0.0, 0.001, 0.01):
        liar.later(pause, lambda: liar.in_frame(index, status=77, results=200, state=_DONE))


def takes_back(liar: Liar, index: int) -> None:
    """DONE, and then RUNNING again."""
    honest(liar, index)
    liar.later(0.0, lambda: liar.in_frame(index, state=FrameState.RUNNING))


def flicker(liar: Liar) -> None:
    """Every frame's state is something else at any moment."""
    chosen = random.Random(_SEED)
    liar.work(lambda number: liar.in_frame(number % 4, state=chosen.choice((0, 1, 2, 3, 4, 99))))


def swap(liar: Liar) -> None:
    """The entries change places without end, while the generation says that they rest."""
    first, second = HEADER.size, HEADER.size + ENTRY.size
    ram = liar.real_gate.ram

    def step(number: int) -> None:
        one, two = bytes(ram[first:second]), bytes(ram[second : second + ENTRY.size])
        ram[first:second], ram[second : second + ENTRY.size] = two, one

    liar.work(step)


def turn(liar: Liar) -> None:
    """The generation goes on without end."""
    liar.work(lambda number: liar.in_header(generation=2 * number + (number & 1)))


def watching(liar: Liar) -> None:
    """Says that it watches, and does not."""
    liar.in_header(watching=1)
    liar.work(lambda number: liar.in_header(watching=1))


def shrink(liar: Liar) -> None:
    """After a reset the gate is another one."""
    gate = liar.real_gate
    write = gate._write_directory

    def smaller() -> None:
        write()
        if liar.told.name == "later: shrinks":
            liar.in_header(frame_count=2)

    gate._write_directory = smaller  # type: ignore[method-assign]


def muddle(number: int) -> Lie:
    """Random members, from a seed."""
    chosen = random.Random(_SEED + number)

    def tell(liar: Liar) -> None:
        for _ in range(chosen.randint(1, 4)):
            place = chosen.choice(("capability", "header", "header", "entry", "frame"))
            layout = {
                "capability": CAPABILITY,
                "header": HEADER,
                "entry": ENTRY,
                "frame": abi.FRAME,
            }[place]
            member = chosen.choice(layout.members)
            value = chosen.choice((*_INTERESTING, chosen.getrandbits(32)))
            if place == "capability":
                # Of id and next pointer QEMU has its own copy.
                if member.offset >= 2:
                    liar.in_capability(**{member.name: value & ((1 << 8 * member.size) - 1)})
                continue
            data: Any = value & ((1 << 8 * min(member.size, 8)) - 1)
            data = data.to_bytes(min(member.size, 8), "little") * (member.size // 8 or 1)
            base = {"header": 0, "entry": HEADER.size, "frame": liar.real_gate.frames_offset}[place]
            liar.in_layout(base, layout, **{member.name: data[: member.size]})

    return Lie(f"muddle {number}", before=tell)


_LIES = (
    Lie("the truth", expected={"bind": "0", "open": "0", "call": "ok", "echo": "ok"}),
    capability("signature", "ENODEV", signature=0x1234),
    capability("too short", "EIO", length=0x27),
    capability("shorter than itself", "EIO", length=3),
    capability("longer", "0", length=0xFF),
    capability("major version", "EPROTONOSUPPORT", version_major=2),
    capability("minor version", "0", version_minor=99),
    capability("no such BAR", "EIO", bar=6),
    capability("no BAR at all", "EIO", bar=0xFF),
    capability("a BAR of registers", "EIO", bar=0),
    capability("unaligned gate", "EIO", gate_offset=8),
    capability("gate behind the BAR", "EIO", gate_offset=0xFFFF_F000),
    capability("empty gate", "EIO", gate_length=0),
    capability("endless gate", "EIO", gate_length=0xFFFF_FFFF),
    capability("gate that wraps", "EIO", gate_offset=0xFFFF_F000, gate_length=0x2000),
    capability("no memory", "EIO", doorbell_offset=0),
    capability("unaligned doorbell", "EIO", doorbell_offset=0x5001),
    capability("doorbell behind the gate", "EIO", doorbell_offset=0xFFFF_F000),
    capability("doorbell elsewhere", "EIO", doorbell_offset=0x1000),
    capability("no transports", "0", transports=0),
    capability("all transports", "0", transports=0xFF),
    capability("ports in a memory BAR", "0", pio_bar=0),
    capability("ports in no BAR", "0", pio_bar=200),
    capability("ports behind the BAR", "0", pio_offset=0xFFFF_FFFC),
    Lie(
        "capability: vmcall where nobody hears it",
        before=lambda liar: liar.in_capability(transports=0x0D, instruction=1),
        expected={"bind": "0", "open": "0", "call": "ok", "echo": "ok"},
    ),
    Lie(
        "capability: vmmcall where nobody hears it",
        before=lambda liar: liar.in_capability(transports=0x0D, instruction=2),
        expected={"bind": "0", "open": "0", "call": "ok", "echo": "ok"},
    ),
    capability("another processor's instruction", "0", transports=0x0F, instruction=4),
    header("signature", "EIO", signature=0),
    header("all ones", "ENODEV", signature=0xFFFF_FFFF),
    header("major version", "EPROTONOSUPPORT", version_major=0),
    header("features", "0", features=0xFFFF_FFFF),
    header("no features", "0", features=0),
    header("never at rest", "ETIMEDOUT", generation=7),
    header("directory behind the gate", "EIO", directory_offset=0xFFFF_FFF8),
    header("unaligned directory", "EIO", directory_offset=0xC4),
    header("endless directory", "EIO", entry_count=0xFFFF),
    header("no directory", "0", entry_count=0),
    header("tiny entries", "EIO", entry_size=0x38),
    header("no entries' size", "EIO", entry_size=0),
    header("unaligned entries", "EIO", entry_size=0x44),
    header("frames behind the gate", "EIO", frames_offset=0xFFFF_F000),
    header("unaligned frames", "EIO", frames_offset=0x1004),
    header("no frames", "EIO", frame_count=0),
    header("too many frames", "EIO", frame_count=0xFFFF),
    header("no frames' size", "EIO", frame_size=0),
    header("tiny frames", "EIO", frame_size=0x80),
    header("huge frames", "EIO", frame_size=0xFFFF_FFF8),
    header("one frame", "0", frame_count=1),
    header("another doorbell", "EIO", doorbell_offset=0x1000),
    header("an interrupt that is not there", "0", interrupt=500),
    header("no interrupt", "0", interrupt=0xFFFF),
    header("no end of its name", "0", name=b"A" * 40),
    header("a name that is none", "0", name=b"\n\x01/../\xff\xfe"),
    header("texts anywhere", "0", text_offset=0xFFFF_FFFF, text_length=0xFFFF_FFFF),
    entry("no end of its name", "ENOENT", name=b"B" * 40),
    entry("no end of the same name", "ENOENT", name=b"add" + b"B" * 37),
    entry("another's name", "ENOENT", name=b"echo"),
    entry("a file's name", "ENOENT", name=b"../../etc"),
    entry("no name", "ENOENT", name=b""),
    entry("control characters", "ENOENT", name=b"a\nb"),
    entry("signature", "ESTALE", signature=1),
    entry("a vector that is none", "EIO", vector=0x8000_0001),
    entry("too many arguments", "EIO", arguments=13),
    entry("too many results", "EIO", results=255),
    entry("text behind the gate", "EIO", text_offset=0xFFFF_FF00),
    entry("endless text", "EIO", text_length=0xFFFF_FFFF),
    entry("long text", "0", text_offset=0, text_length=0x5000),
    Lie(
        "entry: not bound",
        before=lambda liar: liar.in_entry(0, vector=0),
        expected={"bind": "0", "open": "0", "call": "ENOTCONN"},
    ),
    Lie(
        "entry: a vector that never was",
        before=lambda liar: liar.in_entry(0, vector=5),
        expected={"bind": "0", "open": "0", "call": "status 1"},
    ),
    Lie(
        "entry: another count of arguments",
        before=lambda liar: liar.in_entry(0, arguments=1),
        expected={"bind": "0", "open": "0", "call": "EINVAL"},
    ),
    answer("never", "ETIMEDOUT", lambda liar, index: None, echo="ETIMEDOUT"),
    answer("RUNNING for ever", "ETIMEDOUT", frame(state=FrameState.RUNNING)),
    answer("FREE", "EIO", frame(state=FrameState.FREE)),
    answer("no state that there is", "EIO", frame(state=7)),
    answer("all ones", "EIO", frame(state=0xFFFF_FFFF)),
    answer("DONE without an answer", "EIO", frame(state=_DONE)),
    answer("no results", "EIO", frame(status=Status.OK, results=0, state=_DONE)),
    answer("more results than there is room for", "EIO", frame(status=0, results=13, state=_DONE)),
    answer("255 results", "EIO", frame(status=0, results=255, state=_DONE)),
    answer("a status that is none", "status 12", frame(status=12, results=0, state=_DONE)),
    answer("a large status", "status 4294967294", frame(status=0xFFFF_FFFE, state=_DONE)),
    answer(
        "payload behind the frame",
        "ok",
        frame(
            status=Status.OK,
            results=1,
            values=(0xFFFF_FFFF_0000_0042).to_bytes(8, "little"),
            state=_DONE,
        ),
        echo="ENOBUFS",
    ),
    answer("late", "ETIMEDOUT", late),
    Lie("answer: twice", answer=twice, polled=False),
    Lie("answer: takes it back", answer=takes_back, polled=False),
    Lie("later: frames flicker", after=flicker),
    Lie("later: entries change places", after=swap),
    Lie("later: the directory changes on and on", after=turn),
    Lie(
        "later: the directory never rests",
        after=lambda liar: liar.in_header(generation=0xFFFF_FFFF),
        expected={"bind": "0", "open": "ETIMEDOUT"},
    ),
    Lie(
        "later: says it watches",
        after=watching,
        answer=lambda liar, index: None,
        expected={"call": "ETIMEDOUT"},
    ),
    Lie("later: shrinks", after=shrink, expected={"call": "ok", "again": "ENODEV"}),
    Lie(
        "later: all memory changes",
        after=lambda liar: liar.work(
            lambda number: liar.in_layout(8 * (number % 2000), abi.FRAME, cookie=number)
        ),
    ),
    Lie(
        "doorbell: refuses the version",
        read=lambda liar, at: 0,
        expected={"bind": "EPROTONOSUPPORT"},
    ),
    Lie("doorbell: reads all ones", read=lambda liar, at: 0xFFFF_FFFF, expected={"bind": "ENODEV"}),
    Lie(
        "doorbell: has all features",
        read=lambda liar, at: 0xFFFF_FFFF if at == 0xC else liar.real_gate.mmio_read(at, 4),
        expected={"bind": "0", "call": "ok"},
    ),
)
LIES = (*_LIES, *(muddle(number) for number in range(_RANDOM)))
