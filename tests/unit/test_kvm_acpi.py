# SPDX-License-Identifier: MIT
"""The ACPI tables: sound by their own sums and pointers, and as ACPICA reads them."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from callgate.backends.board import BOARDS, CONSOLE_IRQ, gsi_of_slot
from callgate.backends.kvm import acpi, aml

PC = BOARDS["x86_64"]


def tables(cpus: int = 2) -> dict[str, bytes]:
    """By signature, found as software finds them: from the RSDP on."""
    data = acpi.tables(PC, cpus, 1 << 32)

    def table(address: int) -> bytes:
        at = address - acpi.BASE
        (length,) = struct.unpack_from("<I", data, at + 4)
        return data[at : at + length]

    assert data[:8] == b"RSD PTR "
    assert sum(data[:20]) % 256 == sum(data[:36]) % 256 == 0
    (xsdt,) = struct.unpack_from("<Q", data, 24)
    entries = table(xsdt)[36:]
    addresses = [xsdt, *struct.unpack(f"<{len(entries) // 8}Q", entries)]
    found = {table(address)[:4].decode(): table(address) for address in addresses}
    (dsdt,) = struct.unpack_from("<Q", found["FACP"], 140)
    found["DSDT"] = table(dsdt)
    return found


def test_sums_and_pointers() -> None:
    found = tables()
    assert set(found) == {"XSDT", "FACP", "APIC", "MCFG", "DSDT"}
    for table in found.values():
        assert sum(table) % 256 == 0
        assert len(table) == struct.unpack_from("<I", table, 4)[0]


@pytest.mark.parametrize("cpus", [1, 2, 255])
def test_each_processor_has_its_local_apic(cpus: int) -> None:
    madt = tables(cpus)["APIC"][44:]
    locals_ = [madt[at : at + 8] for at in range(0, 8 * cpus, 8)]
    assert [(each[0], each[3], each[4]) for each in locals_] == [(0, n, 1) for n in range(cpus)]
    assert madt[8 * cpus :][:2] == b"\x01\x0c"


def test_ecam_is_named() -> None:
    base, segment, first, last = struct.unpack_from("<QHBB", tables()["MCFG"], 44)
    assert (base, segment, first) == (PC.ecam.base, 0, 0)
    assert (last + 1) << 20 == PC.ecam.size


def test_what_the_disassembler_reads(tmp_path: Path) -> None:
    if shutil.which("iasl") is None:
        pytest.skip("iasl is not installed: apt-get install acpica-tools")
    for name, data in tables().items():
        (tmp_path / f"{name}.dat").write_bytes(data)
        done = subprocess.run(
            ["iasl", "-d", f"{name}.dat"], cwd=tmp_path, capture_output=True, text=True
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert "Error" not in said
        assert "Invalid" not in (tmp_path / f"{name}.dsl").read_text()
    dsl = (tmp_path / "DSDT.dsl").read_text()
    assert 'EisaId ("PNP0A08")' in dsl
    assert 'EisaId ("PNP0501")' in dsl
    assert f"{{{CONSOLE_IRQ}}}" in dsl
    assert dsl.count("Package (0x04)") == 32  # 31 slots and _S5
    assert f"0x{gsi_of_slot(1):02X}" in dsl
    again = subprocess.run(
        ["iasl", "-ve", "DSDT.dsl"], cwd=tmp_path, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stdout


def test_lengths_of_packages() -> None:
    """One byte up to 63, then four bits there and a byte or more behind (20.2.4)."""
    for size in (0, 50, 55, 56, 57, 58, 200, 4000, 4090, 5000, 1 << 17):
        data = aml.resources(bytes(size))
        head = data[1]
        extra = head >> 6
        length = head & (0x3F if not extra else 0xF)
        for at in range(extra):
            length |= data[2 + at] << 4 + 8 * at
        assert length == len(data) - 1, size


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"), (1, "01"), (2, "0a02"), (255, "0aff"), (256, "0b0001"),
        (65536, "0c00000100"), (1 << 32, "0e0000000001000000"),
    ],
)  # fmt: skip
def test_integers(value: int, encoded: str) -> None:
    assert aml.integer(value).hex() == encoded


def test_what_aml_has_no_form_for() -> None:
    with pytest.raises(ValueError, match="64 bits at most, not 65"):
        aml.integer(1 << 64)
    with pytest.raises(ValueError, match="one or two names of up to 4 letters"):
        aml.name("TOOLONG", aml.ZERO)
    with pytest.raises(ValueError, match="one or two names"):
        aml.scope("\\_SB.PCI0.S01", b"")
    assert aml.scope("\\_SB.PCI0").startswith(b"\x10\x0b\\\x2e_SB_PCI0")
    assert aml.string("hi") == b"\x0dhi\0"
