# SPDX-License-Identifier: MIT
"""What is shown, runs: each example as machine code on every architecture and platform, and from
Python."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from callgate.backends.platform import PLATFORMS
from callgate.device import Device
from callgate.errors import DeviceError
from callgate.gate.abi import Transport
from callgate.load import load_device_class
from callgate.machine import Machine
from callgate.testing import FakeGuest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(file.parent.name for file in ROOT.glob("examples/*/device.py"))
PLACES = [(arch, name) for name, place in PLATFORMS.items() for arch in place.architectures]

ADDED = "2 + 40 = 42 ok"
CHECKSUM = [
    "sum32 of 65536 bytes: a4d82000 ok",
    "xor in place ok",
    "sum32 of 3 bytes: refused with code 1 ok",
]
SAID = {
    "02_timer": [*(f"tick {number}" for number in range(1, 6)), "stopped ok"],
    "03_checksum": CHECKSUM,
    "04_rebind": ["100 calls, 9 look-ups ok", "while a timer rebinds: 5 look-ups ok"],
    "05_console": ["hello, console ok", "3000 bytes ok", "nothing more ok"],
}


def file(example: str) -> Path:
    return ROOT / "examples" / example / "device.py"


def device(example: str) -> Device:
    return load_device_class(file(example))()


def said_by(example: str, platform: str) -> list[str]:
    """What the guest prints: the adder's, one line for each way that the platform has."""
    if example != "01_adder":
        return SAID[example]
    ways = ["cheapest", "polled", "hypercall", "hypercall-frame", "pio", "mmio"]
    if not PLATFORMS[platform].offer.transports & Transport.HYPERCALL:
        ways = [way for way in ways if "hypercall" not in way]
    return [f"registers: {ADDED}", *(f"call {way}: {ADDED}" for way in ways)]


def test_every_example_has_its_expectation() -> None:
    assert ["01_adder", *SAID] == EXAMPLES


@pytest.mark.parametrize(("arch", "platform"), PLACES)
@pytest.mark.parametrize("example", EXAMPLES)
def test_as_machine_code(example: str, arch: str, platform: str, guests: Path) -> None:
    program = guests / arch / f"{example}.elf"
    model = device(example)
    with Machine(model, arch=arch, platform=platform, guest=program, timeout=30) as machine:
        result = machine.run()
    assert result.output.splitlines() == said_by(example, platform)
    assert result.exit_code == 0
    assert set(model.faults.counts) <= {"REVOKED"}  # What the last example is about.


@pytest.mark.parametrize("arch", ["x86_64", "i386", "aarch64", "riscv64"])
def test_two_runs_of_one_machine_are_the_same(arch: str, guests: Path) -> None:
    program = guests / arch / "01_adder.elf"
    with Machine(device("01_adder"), arch=arch, guest=program, timeout=30) as machine:
        first = machine.run().output
        machine.reset()
        assert machine.run().output == first


@pytest.mark.parametrize("example", EXAMPLES)
def test_callgate_run_needs_only_the_file(example: str, guests: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "callgate", "run", file(example)], capture_output=True, text=True
    )
    assert run.returncode == 0
    assert run.stdout.splitlines() == said_by(example, "kvm-intel")
    if example != "04_rebind":  # Its guest calls revoked vectors, which the host may mention.
        assert run.stderr == ""


def test_a_device_file_is_its_own_command(guests: Path) -> None:
    run = subprocess.run(
        [sys.executable, file("01_adder"), "--arch", "riscv64", "--platform", "native"],
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines() == said_by("01_adder", "native")


def test_the_trace_names_devices_registers_and_calls(guests: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "callgate", "run", file("01_adder"), "--trace"],
        capture_output=True,
        text=True,
    )
    assert run.stdout.splitlines() == said_by("01_adder", "kvm-intel")
    shown = [
        (match[1], " ".join(match[2].split()))
        for line in run.stderr.splitlines()
        if (match := re.fullmatch(r" *[\d.]+ ms  (\w+) +(.*)  \[[\d.]+ us\]", line))
    ]
    assert len(shown) == len(run.stderr.splitlines())
    assert {device for device, _ in shown} == {"adder"}
    said = [what for _, what in shown]
    for what in (
        "config read vendor id -> 0x1af4",
        "config write command = 0x7",
        "write doorbell VERSION = 0x10000",
        "write a = 0x2",
        "write b = 0x28",
        "write start = 0x1",
        "interrupt done",
        "read total -> 0x2a",
        "call add(2, 40) -> 42 (hypercall)",
        "write doorbell DOORBELL = 0x0",
    ):
        assert what in said
    # By which doorbell, or by none: the host may be watching the frames at the time.
    assert sum(what.startswith("call add(2, 40) -> 42 (frame 0 by ") for what in said) >= 3


def test_a_bug_in_a_handler_shows_its_own_traceback(guests: Path, tmp_path: Path) -> None:
    model = tmp_path / "device.py"
    model.write_text(file("01_adder").read_text().replace("return (a + b)", "return (a / 0)"))
    line = 1 + model.read_text().splitlines().index(
        "        return (a / 0) & 0xFFFF_FFFF_FFFF_FFFF"
    )
    run = subprocess.run(
        [
            *(sys.executable, "-m", "callgate", "run", model),
            *("--guest", guests / "x86_64" / "01_adder.elf", "--platform", "native"),
        ],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert run.stdout.splitlines()[:2] == [f"registers: {ADDED}", "call cheapest: DEVICE_FAULT"]
    told = run.stderr.splitlines()
    assert told[0] == "callgate: adder.add: the device model raised"
    assert [row for row in told if "File" in row] == [f'  File "{model}", line {line}, in add']
    assert told[-1] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("arch", ["x86_64", "i386", "aarch64", "riscv64"])
def test_a_guest_says_what_status_it_got(arch: str, guests: Path, tmp_path: Path) -> None:
    model = tmp_path / "device.py"
    model.write_text(file("03_checksum").read_text().replace("return int(", "return int(1 / 0 + "))
    cls = load_device_class(model)
    with Machine(cls(), guest=guests / arch / "03_checksum.elf", timeout=60) as machine:
        result = machine.run()
    assert (result.exit_code, result.output) == (1, "sum32: DEVICE_FAULT\n")


def test_a_guest_that_hangs_has_said_what_it_said(guests: Path, tmp_path: Path) -> None:
    """The device never interrupts, and the guest waits for that: what it printed is not lost."""
    model = tmp_path / "device.py"
    model.write_text(file("02_timer").read_text().replace("self.ticks += 1", "self.ticks += 1 if "
                     "self.ticks < 2 else self.enable_no_more"))  # fmt: skip
    run = subprocess.run(
        [
            *(sys.executable, "-m", "callgate", "run", model, "--timeout", "0.5"),
            *("--guest", guests / "riscv64" / "02_timer.elf"),
        ],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert run.stdout == "tick 1\ntick 2\n"
    assert "'Ticker' object has no attribute 'enable_no_more'" in run.stderr
    assert "callgate: The guest used up its time at " in run.stderr


# --- the same devices without a processor ---------------------------------------------------------


def open_example(fake_guest: Any, example: str, **options: Any) -> tuple[FakeGuest, Any]:
    guest: FakeGuest = fake_guest(device(example))
    cls = load_device_class(file(example))
    return guest, guest.open(cls.spec.name, **options)


@pytest.mark.parametrize("transport", [None, Transport.HYPERCALL, Transport.PIO, Transport.MMIO])
def test_the_adder_from_python(fake_guest: Any, transport: Transport | None) -> None:
    _, adder = open_example(fake_guest, "01_adder", transport=transport)
    assert adder.add(2, 40) == 42
    assert adder.add(0xFFFF_FFFF_FFFF_FFFF, 1) == 0


def test_the_adders_registers_and_interrupt_from_python(fake_guest: Any) -> None:
    guest, adder = open_example(fake_guest, "01_adder")
    done = adder.interrupt(0)
    function = guest.function(0x1AF4, 0x10F0)
    function.write(0, 0x00, 4, 2)
    function.write(0, 0x04, 4, 40)
    assert not done.take()
    function.write(0, 0x08, 4, 1)
    assert done.take()
    assert function.read(0, 0x0C, 4) == 42


def test_the_timer_from_python(fake_guest: Any) -> None:
    guest = fake_guest(device("02_timer"))
    ticker = guest.function(0x1AF4, 0x10F1)
    tick = ticker.interrupt(0)
    ticker.write(0, 0x04, 4, 1000)
    ticker.write(0, 0x00, 4, 1)
    guest.advance(0.0055)
    assert tick.take()
    assert ticker.read(0, 0x08, 8) == 5
    assert ticker.read(0, 0x10, 4) == 1
    ticker.write(0, 0x10, 4, 1)
    assert ticker.read(0, 0x10, 4) == 0
    ticker.write(0, 0x00, 4, 3)  # Once.
    guest.advance(0.01)
    assert ticker.read(0, 0x08, 8) == 6
    assert ticker.read(0, 0x00, 4) == 2


def test_the_checksum_from_python(fake_guest: Any) -> None:
    pytest.importorskip("numpy")
    _, checksum = open_example(fake_guest, "03_checksum")
    data = bytearray(range(256))
    words = [int.from_bytes(data[at : at + 4], "little") for at in range(0, 256, 4)]
    assert checksum.sum32(data) == sum(words) % 2**32
    checksum.xor(data, 0xA5)
    assert data == bytes(byte ^ 0xA5 for byte in range(256))
    with pytest.raises(DeviceError) as refused:
        checksum.sum32(b"abc")
    assert refused.value.code == 1


def test_vectors_come_and_go_from_python(fake_guest: Any) -> None:
    guest, rebind = open_example(fake_guest, "04_rebind")
    function = guest.function(0x1AF4, 0x10F3)
    function.write(0, 0x00, 4, 10)
    seen = set()
    for count in range(1, 101):
        seen.add(rebind.calls["count"].vector)
        assert rebind.count(1) == count
    assert len(seen) == 10
    assert function.read(0, 0x04, 4) == 10
    function.write(0, 0x00, 4, 0)
    function.write(0, 0x08, 4, 1000)
    for count in range(101, 201):
        guest.advance(0.0003)
        seen.add(rebind.calls["count"].vector)
        assert rebind.count(1) == count
    assert function.read(0, 0x04, 4) == 10 + 30
    assert len(seen) == 10 + 30


def test_the_console_from_python(fake_guest: Any) -> None:
    console: Any = device("05_console")
    line: Any = fake_guest(console).open("console")
    typed, taken = line.interrupt(0), line.interrupt(1)
    assert line.write(b"echo") == 4
    assert typed.take()
    assert (line.read(3), line.read(100), line.read(100)) == (b"ech", b"o", b"")
    shown = bytearray()

    def slow(data: bytes) -> int:
        shown.extend(data[:2])
        return len(data[:2])

    console.far = slow
    assert line.write(b"abc") == 2
    assert not taken.take()
    console.resume()
    assert taken.take()
    assert line.write(b"c") == 1
    console.far = shown.extend
    console.resume()
    assert not taken.take()  # Nothing was left.
    assert line.write(b"de") == 2
    assert shown == b"abcde"
    console.type(bytes(3000))
    assert [len(line.read(5000)) for _ in range(4)] == [1024, 1024, 952, 0]
