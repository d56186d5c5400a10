# SPDX-License-Identifier: MIT
"""serial.c drives the serial port: it looks at the chip, then sends 64 KiB back, with nothing
lost. The same program does so with QEMU's pci-serial."""

import random
from pathlib import Path

import pytest

from callgate.backends.board import BOARDS
from callgate.devices.serial import Serial
from callgate.machine import Machine

ROOT = Path(__file__).resolve().parents[2]
BYTES = 0x10000


@pytest.mark.parametrize("arch", BOARDS)
def test_a_guest_sends_back_what_it_receives(arch: str) -> None:
    data = random.Random(arch).randbytes(BYTES)
    sent = bytearray()
    uart = Serial(sent.extend)
    guest = ROOT / "build" / "guest" / arch / "serial.elf"
    assert guest.exists(), "run: python guest/build.py"
    with Machine(uart, arch=arch, guest=guest, timeout=60) as machine:
        console = machine.console

        def feed_when_ready(byte: int) -> None:
            if console.text.endswith("ready\n"):
                uart.feed(data)

        console.on_byte = feed_when_ready
        result = machine.run()
    assert (result.exit_code, result.output) == (
        0,
        f"ready\n{BYTES} bytes each way, 0 checks failed\n",
    )
    assert sent == data
    assert uart.faults.counts == {}
