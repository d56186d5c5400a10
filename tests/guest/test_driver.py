# SPDX-License-Identifier: MIT
"""The C driver, run by guests: all that it can do, and what it does with a host that lies."""

from pathlib import Path

import pytest

from callgate.backends.platform import PLATFORMS
from callgate.device import Device
from callgate.gate.abi import CAPABILITY, CAPABILITY_SIGNATURE, ENTRY, HEADER, HEADER_SIGNATURE
from callgate.load import load_device_class
from callgate.machine import Machine
from callgate.pci.capability import VendorCapability
from callgate.register import Bar

ROOT = Path(__file__).resolve().parents[2]
ZOO = load_device_class(ROOT / "tests/guest/zoo.py")
PLACES = [(arch, name) for name, place in PLATFORMS.items() for arch in place.architectures]


def guest(arch: str, name: str) -> Path:
    path = ROOT / "build" / "guest" / arch / f"{name}.elf"
    assert path.exists(), "run: python guest/build.py"
    return path


@pytest.mark.parametrize(("arch", "platform"), PLACES)
def test_the_driver_does_all_of_it(arch: str, platform: str) -> None:
    with Machine(
        ZOO(), arch=arch, platform=platform, guest=guest(arch, "zoo"), timeout=20
    ) as machine:
        result = machine.run()
    assert (result.exit_code, result.output) == (0, "0 checks failed\n")


@pytest.mark.parametrize("arch", ["x86_64", "i386", "aarch64", "riscv64"])
def test_interrupts_by_msi_where_there_is_no_msix(arch: str) -> None:
    device: Device = load_device_class(ROOT / "tests/guest/msi.py")()
    with Machine(device, arch=arch, guest=guest(arch, "msi"), timeout=20) as machine:
        result = machine.run()
    assert (result.exit_code, result.output) == (0, "0 checks failed\n")


@pytest.mark.parametrize("arch", ["x86_64", "i386", "aarch64", "riscv64"])
def test_interrupts_by_the_pin_where_there_are_no_messages(arch: str) -> None:
    files = "tests/guest/pin.py", "examples/01_adder/device.py", "examples/03_checksum/device.py"
    pin, adder, checksum = (load_device_class(ROOT / file)() for file in files)
    # In one slot, so the function's number counts.
    with Machine(
        (adder, pin), checksum, arch=arch, guest=guest(arch, "pin"), timeout=20
    ) as machine:
        result = machine.run()
    assert (result.exit_code, result.output) == (0, "0 checks failed\n")


@pytest.mark.parametrize("arch", ["x86_64", "i386", "aarch64", "riscv64"])
def test_a_second_device_of_the_kind_is_found_behind_the_first(arch: str) -> None:
    with Machine(ZOO(), ZOO(), arch=arch, guest=guest(arch, "walk"), timeout=20) as machine:
        result = machine.run()
    assert result.output == "8 OK zoo\n10 OK zoo\n"


SIZE = 0x8000
SOUND: dict[str, int] = {
    "length": CAPABILITY.size,
    "bar": 0,
    "signature": CAPABILITY_SIGNATURE,
    "version_major": 1,
    "gate_offset": 0x1000,
    "gate_length": 0x6000,
    "doorbell_offset": 0x5000,
    "transports": 4,
    "pio_bar": 0xFF,
    "frame_count": 4,
    "entry_count": 1,
}
SOUND_HEADER: dict[str, int] = {
    "signature": HEADER_SIGNATURE,
    "version_major": 1,
    "directory_offset": HEADER.size,
    "entry_count": 1,
    "entry_size": ENTRY.size,
    "frames_offset": 0x1000,
    "frame_count": 4,
    "frame_size": 0x1000,
    "doorbell_offset": 0x5000,
}


def liar(capability: dict[str, int], header: dict[str, int]) -> type[Device]:
    """A device that fakes a gate in plain memory, whose doorbell page keeps what is written."""

    class Liar(Device):
        id = 0x1AF4, 0x10FC
        memory_bar = Bar(0, SIZE, ram=True)
        capabilities = (VendorCapability(CAPABILITY.pack(**SOUND | capability)[3:]),)

        def attach(self) -> None:
            start = SOUND["gate_offset"]
            packed = HEADER.pack(name=b"liar", **SOUND_HEADER | header)
            self.memory_bar[start : start + HEADER.size] = packed
            entry = start + HEADER.size
            self.memory_bar[entry : entry + ENTRY.size] = ENTRY.pack(vector=1, name=b"call")

    return Liar


@pytest.mark.parametrize(
    ("capability", "header", "word"),
    [
        pytest.param({}, {}, "OK liar", id="sound"),
        pytest.param({"bar": 6}, {}, "MALFORMED", id="no such BAR"),
        pytest.param({"bar": 1}, {}, "MALFORMED", id="a BAR that is not there"),
        pytest.param({"gate_offset": 0x3000}, {}, "MALFORMED", id="the gate leaves the BAR"),
        pytest.param({"gate_offset": 0xFFFF_F000}, {}, "MALFORMED", id="the gate wraps around"),
        pytest.param({"gate_length": 0xFFFF_FFFF}, {}, "MALFORMED", id="the gate is too long"),
        pytest.param({"gate_length": 0x80}, {}, "MALFORMED", id="no room for the header"),
        pytest.param({"gate_offset": 0x1004}, {}, "MALFORMED", id="the gate is not aligned"),
        pytest.param({"version_major": 2}, {}, "no gate", id="another version"),
        pytest.param({"signature": 0}, {}, "no gate", id="not a gate"),
        pytest.param({}, {"signature": 0}, "MALFORMED", id="not a header"),
        pytest.param({}, {"signature": 0xFFFF_FFFF}, "GONE", id="gone"),
        pytest.param({}, {"version_major": 2}, "MALFORMED", id="a header of another version"),
        pytest.param({}, {"directory_offset": 0x4FF8}, "MALFORMED", id="entries leave"),
        pytest.param({}, {"directory_offset": 0xFFFF_FFF8}, "MALFORMED", id="entries wrap"),
        pytest.param({}, {"entry_count": 0xFFFF}, "MALFORMED", id="too many entries"),
        pytest.param({}, {"entry_size": 0x38}, "MALFORMED", id="entries too small"),
        pytest.param({}, {"directory_offset": 0xC4}, "MALFORMED", id="entries not aligned"),
        pytest.param({}, {"frames_offset": 0x2000}, "MALFORMED", id="frames leave"),
        pytest.param({}, {"frame_count": 0}, "MALFORMED", id="no frames"),
        pytest.param({}, {"frame_count": 0xFFFF}, "MALFORMED", id="too many frames"),
        pytest.param({}, {"frame_size": 0x80}, "MALFORMED", id="frames too small"),
        pytest.param({}, {"frame_size": 0xFFFF_FFF8}, "MALFORMED", id="frames too large"),
        pytest.param({}, {"frame_size": 0x1001}, "MALFORMED", id="frames not aligned"),
        pytest.param({}, {"doorbell_offset": 0x4000}, "MALFORMED", id="two doorbells"),
        pytest.param(
            {"doorbell_offset": 0x6000},
            {"doorbell_offset": 0x6000},
            "MALFORMED",
            id="the doorbell leaves",
        ),
    ],
)
def test_what_a_host_says_is_checked(
    capability: dict[str, int], header: dict[str, int], word: str
) -> None:
    device = liar(capability, header)()
    with Machine(device, guest=guest("x86_64", "walk"), timeout=20) as machine:
        result = machine.run()
    assert result.output == f"8 {word}\n"


def test_a_capability_list_that_is_a_circle_ends() -> None:
    class Circle(Device):
        id = 0x1AF4, 0x10FC
        capabilities = (VendorCapability(bytes(9)),)

    with Machine(Circle(), guest=guest("x86_64", "walk"), timeout=20) as machine:
        function = machine.functions[0]
        first = function.config.get(0x34, 1)
        function.config.set(first + 1, 1, first)
        result = machine.run()
    assert result.output == "8 no gate\n"
