# SPDX-License-Identifier: MIT
"""`callgate probe`: what it shows of a device of ours, and what it makes of strange servers."""

import errno
import gc
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vfio_user.fake_server import Answer, Fake, entry, io_fds, region, reply, sparse, version

from callgate.backends.vfio_user import channel as channels
from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.client import RegionInfo
from callgate.backends.vfio_user.protocol import Command, Region
from callgate.backends.vfio_user.server import Server
from callgate.call import call, u64
from callgate.cli import probe_survey
from callgate.cli.app import run_app
from callgate.device import Device
from callgate.gate.abi import CAPABILITY, CAPABILITY_SIGNATURE
from callgate.interrupt import Interrupt
from callgate.pci.ids import names
from callgate.register import Bar, Register


class Sample(Device):
    id = 0x1AF4, 0x10F3
    subsystem = 0x1AF4, 0x1100
    class_code = 0x020000
    revision = 7

    ports = Bar(0, 0x20, "io")
    value = Register(0x00, reset=5)
    wide = Register(0x08, width=64)
    done = Interrupt()

    @call
    def twice(self, number: u64) -> u64:
        return number * 2 % 2**64


class Signals(Device):
    id = 0x1AF4, 0x10F4
    msi = True

    done = Interrupt()
    failed = Interrupt()


class Told:
    """What the command line says: exit code, standard output, the error in one sentence."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd = capfd
        self.out = self.err = ""

    def __call__(self, *arguments: object) -> int:
        code = run_app(["probe", *map(str, arguments)])
        self.out, self.err = self.capfd.readouterr()
        return code

    def fine(self, *arguments: object) -> str:
        """Standard output of what must succeed."""
        assert self(*arguments) == 0, self.err
        assert self.err == ""
        return self.out

    def error(self, *arguments: object) -> str:
        """The sentence about what must fail."""
        assert self(*arguments) == 2, self.err
        (line,) = self.err.splitlines()
        assert line.startswith("callgate: ")
        return line.removeprefix("callgate: ")


@pytest.fixture
def probe(capfd: pytest.CaptureFixture[str]) -> Iterator[Told]:
    before = open_files()
    yield Told(capfd)
    assert open_files() == before


def open_files() -> int:
    """How many there are. A device's memory goes with the last that refers to it."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def sock(tmp_path: Path) -> Path:
    return tmp_path / "sock"


@pytest.fixture
def sample(sock: Path, probe: Told) -> Iterator[Path]:
    with Server(Sample(), sock, keep_state=True):
        yield sock


# --- a device of ours -----------------------------------------------------------------------------


def test_the_device_is_shown_as_lspci_would(probe: Told, sample: Path) -> None:
    out = probe.fine(sample)
    for words in (
        "[020000]: ",
        "[1af4:10f3] (rev 07)\n",
        "Subsystem: 1af4:1100\n",
        "Command: I/O- Mem- BusMaster- ",
        "Status: Cap+ ",
        "Interrupt: pin A routed to line 0\n",
        "BAR 0: I/O ports [size=32] unassigned\n",
        "BAR 1: Memory, 32-bit [size=4K] unassigned\n",
        "BAR 2: Memory, 64-bit [size=128K] unassigned\n",
        "[40] MSI-X: Enable- Count=2 Masked-, table BAR 1 + 0x0, pending bits BAR 1 + 0x800\n",
        "[4c] vendor capability: 40 bytes, a callgate\n",
    ):
        assert words in out


def test_both_kinds_of_messages_are_shown(probe: Told, tmp_path: Path) -> None:
    with Server(Signals(), tmp_path / "s"):
        out = " ".join(probe.fine(tmp_path / "s").split())
    for words in (
        "[40] MSI: Enable- Count=1/2 Maskable+ 64bit+ ",
        "[58] MSI-X: Enable- Count=2 Masked-, table BAR 0 + 0x0, pending bits BAR 0 + 0x800 ",
        "1 MSI 2 eventfd maskable 2 MSI-X 2 eventfd maskable",
    ):
        assert words in out


def test_regions_interrupts_protocol_and_gate(probe: Told, sample: Path) -> None:
    out = " ".join(probe.fine(sample).split())
    for words in (
        "0 bar0 0x20 rw 1 bar1 0x1000 rw 2 bar2 0x20000 rw 0x0..0x10fff ioeventfd at 0x11000 of 4 "
        "bytes",
        "7 config 0x1000 rw",
        "0 INTx 1 eventfd maskable automasked 2 MSI-X 2 eventfd maskable",
        f"vfio-user 0.0 at {sample}, device flags reset pci max_msg_fds: 16",
        'twin_socket: {"supported": true, "fd_index": 0}',
        "Gate: BAR 2 + 0x0, 72K, doorbell at 0x11000; transports: ",
        "device 'sample', ABI ",
        "16 frames of 4096 bytes at 0x1000",
        "twice(u64)->u64",
    ):
        assert words in out
    assert "Remark" not in out


def test_json_says_the_same(probe: Told, sample: Path) -> None:
    found = json.loads(probe.fine(sample, "--json"))
    assert found["version"] == [0, 0]
    device = found["device"]
    assert (device["vendor"], device["device"], device["revision"]) == (0x1AF4, 0x10F3, 7)
    assert (device["class"], device["subsystem"]) == (0x020000, [0x1AF4, 0x1100])
    assert len(device["config"]) == 2 * 4096
    assert [(bar["index"], bar["kind"], bar["size"], bar["width"]) for bar in device["bars"]] == [
        (0, "io", 0x20, 32), (1, "memory", 0x1000, 32), (2, "memory", 0x20000, 64),
        (4, "io", 16, 32),
    ]  # fmt: skip
    assert [(one["id"], one["offset"]) for one in device["capabilities"]] == [(17, 64), (9, 76)]
    gate = found["regions"][2]
    assert (gate["name"], gate["areas"], gate["shared"]) == ("bar2", [[0, 0x11000]], True)
    assert gate["io_fds"] == [
        {"offset": 0x11000, "size": 4, "type": 0, "flags": 0, "datamatch": 0}
    ]  # fmt: skip
    assert [(irq["index"], irq["count"]) for irq in found["interrupts"]][:3] == [
        (0, 1), (1, 0), (2, 2),
    ]  # fmt: skip
    (entry,) = found["gate"]["directory"]["entries"]
    assert (entry["text"], entry["vector"] > 0) == ("twice(u64)->u64", True)
    assert found["remarks"] == []


def test_the_dump_is_what_lspci_reads(probe: Told, sample: Path) -> None:
    dump = probe.fine(sample, "--lspci")
    rows = dump.splitlines()
    assert rows[0] == "00:00.0 vfio-user"
    assert rows[1] == "00: f4 1a f3 10 00 00 10 00 07 00 00 02 00 00 00 00"
    assert rows[-1].startswith("ff0: ")
    if shutil.which("lspci") is None:
        pytest.skip("lspci: not installed (apt-get install pciutils)")
    said = subprocess.run(
        ["lspci", "-n", "-F", "/dev/stdin"], input=dump, capture_output=True, text=True, check=True
    )
    assert said.stdout == "00:00.0 0200: 1af4:10f3 (rev 07)\n"


def test_a_gate_is_found_by_messages_alone(
    probe: Told, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = json.loads(probe.fine(sample, "--json"))["gate"]["directory"]
    monkeypatch.setattr(RegionInfo, "load", lambda self, offset, count: None)
    assert json.loads(probe.fine(sample, "--json"))["gate"]["directory"] == shared


# --- accesses -------------------------------------------------------------------------------------


def test_accesses_are_made_in_order(probe: Told, sample: Path) -> None:
    out = probe.fine(
        *(sample, "--read", "bar0:0", "--write", "bar0:0:4=0x1234", "--read", "0:0x0:2:2"),
        *("--write", "BAR0:0:1=0xff", "--read=bar0:0:4", "--read", "7:0:2", "--read", "bar0:0:3"),
    )
    assert out.splitlines() == [
        "bar0 + 0x0 = 0x00000005",
        "bar0 + 0x0 <- 0x00001234",
        "bar0 + 0x0 = 0x1234",
        "bar0 + 0x2 = 0x0000",
        "bar0 + 0x0 <- 0xff",
        "bar0 + 0x0 = 0x000012ff",
        "config + 0x0 = 0x1af4",
        "bar0 + 0x0 = ff 12 00",
    ]


def test_accesses_as_json(probe: Told, sample: Path) -> None:
    out = probe.fine(sample, "--json", "--write", "bar0:8:8=0xFFFFFFFFFFFFFFFF", "--read=bar0:8:8")
    both = {"region": "bar0", "offset": 8, "size": 8, "value": (1 << 64) - 1}
    assert json.loads(out) == {"accesses": [{"access": "write"} | both, {"access": "read"} | both]}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--read", "bar0"], "A read must be REGION:OFFSET[:SIZE[:COUNT]], not 'bar0'"),
        (["--read", "bar0:1:2:3:4"], "A read must be REGION:OFFSET[:SIZE[:COUNT]], not"),
        (["--read", "bar6:0"], "must be bar0 to bar5, rom, config, vga or a number, not 'bar6'"),
        (["--read", "-1:0"], "not '-1'"),
        (["--read", "4294967296:0"], "not '4294967296'"),
        (["--read", ":0"], "not ''"),
        (["--read", "bar0:"], "'' of 'bar0:' must be a number, as 16 or 0x10"),
        (["--read", "bar0:x"], "'x' of 'bar0:x' must be a number"),
        (["--read", "bar0:-4"], "'-4' of 'bar0:-4' must be a number"),
        (["--read", "bar0:0:0"], "must be 1 to 1048576 bytes"),
        (["--read", "bar0:0:0x100001"], "must be 1 to 1048576 bytes"),
        (["--read", "bar0:0:4:0"], "count of 'bar0:0:4:0' must be 1 or more"),
        (["--read", "bar0:0xfffffffffffffffd"], "must end below 2^64"),
        (["--write", "bar0:0:4"], "A write must be REGION:OFFSET:SIZE=VALUE, not 'bar0:0:4'"),
        (["--write", "bar0:0=4"], "A write must be REGION:OFFSET:SIZE=VALUE"),
        (["--write", "bar0:0:4="], "'' of 'bar0:0:4=' must be a number"),
        (["--write", "bar0:0:1=256"], "must fit 1 bytes"),
        (["--bench", "--at", "bar0"], "A place must be REGION:OFFSET[:SIZE], not 'bar0'"),
        (["--at", "bar0:0"], "--at must come with --bench"),
        (["--bench", "--count", "9"], "'--count'"),
        (["--lspci", "--json"], "--lspci must stand alone"),
    ],
)
def test_wrong_use(probe: Told, arguments: list[str], sentence: str) -> None:
    assert sentence in probe.error("nobody is asked", *arguments)


@pytest.mark.parametrize("place", ["bar0:0x20", "bar3:0", "rom:0", "config:4096", "77:0"])
def test_an_access_that_the_server_refuses(probe: Told, sample: Path, place: str) -> None:
    told = probe.error(sample, "--read", "bar0:0", "--read", place, "--read", "bar0:4")
    assert told == f"{sample}: the peer refused REGION_READ with EINVAL"
    assert probe.out == "bar0 + 0x0 = 0x00000005\n"


# --- measuring ------------------------------------------------------------------------------------


def test_the_bench_measures_each_way_and_leaves_the_register(probe: Told, sample: Path) -> None:
    probe.fine(sample, "--write", "bar0:8:8=77")
    rows = json.loads(
        probe.fine(sample, "--bench", "--count", 20, "--at", "bar0:8:8", "--json")
    )["bench"]  # fmt: skip
    assert [(row["what"], row["where"]) for row in rows] == [
        ("config read", "config + 0x0"),
        ("register read", "bar0 + 0x8"),
        ("posted write", "bar0 + 0x8"),
        ("posted write, then read", "bar0 + 0x8"),
        ("write, answered", "bar0 + 0x8"),
        ("mapped read", "bar2 + 0x0"),
    ]
    assert all(0 < row["median"] <= row["p99"] and row["samples"] == 20 for row in rows)


def test_the_bench_as_a_table(probe: Told, sample: Path) -> None:
    out = probe.fine(sample, "--bench", "--count", 10, "--read", "bar0:0")
    assert out.startswith("bar0 + 0x0 = 0x00000005\nwhat ")
    assert re.search(r"\nregister read +bar0 \+ 0x0 +\d+\.\d\d +\d+\.\d\d +10 *\n", out)


def test_the_bench_finds_a_register_that_has_one_width(probe: Told, sock: Path) -> None:
    def read(server: Fake, id: int, payload: bytes) -> None:
        _, index, count = p.REGION_ACCESS.unpack(payload)
        if index == Region.CONFIG or count == 8:
            server.send(id, Command.REGION_READ, payload + b"abcdefgh"[:count])
        else:
            server.send(id, Command.REGION_READ, flags=p.REPLY | p.ERROR, error=errno.EINVAL)

    write = reply(Command.REGION_WRITE)
    with Fake(sock, **described(REGION_READ=read, REGION_WRITE=write)) as server:
        rows = json.loads(probe.fine(sock, "--bench", "--count", 10, "--json"))["bench"]
    assert [row["where"] for row in rows] == ["config + 0x0"] + ["bar0 + 0x0"] * 4
    written = {payload for command, payload in server.came if command == Command.REGION_WRITE}
    assert written == {p.REGION_ACCESS.pack(0, 0, 8) + b"abcdefgh"}, "what was read goes back"


def test_the_bench_looks_behind_what_is_mapped(probe: Told, sock: Path) -> None:
    def read(server: Fake, id: int, payload: bytes) -> None:
        server.send(id, Command.REGION_READ, payload + bytes(payload[12]))

    only = reply(Command.DEVICE_GET_INFO, p.DEVICE_INFO.pack(16, 3, 1, 0))
    mapped = region(size=0x4000, tail=sparse((0, 0x1000), (0x1000, 0x1000)))
    answers = described(
        DEVICE_GET_INFO=only, DEVICE_GET_REGION_INFO=mapped, REGION_READ=read,
        REGION_WRITE=reply(Command.REGION_WRITE),
    )  # fmt: skip
    with Fake(sock, **answers):
        rows = json.loads(probe.fine(sock, "--bench", "--count", 10, "--json"))["bench"]
    assert rows[1]["where"] == "bar0 + 0x2000"


def test_the_bench_needs_a_register(probe: Told, sock: Path) -> None:
    with Fake(sock, **described()):
        told = probe.error(sock, "--bench")
    assert told == "The device must have a register that traps: name one with --at"


# --- servers that are not ours --------------------------------------------------------------------


def described(**answers: Answer) -> dict[str, Answer]:
    """A server that describes BAR 0 and 256 bytes of configuration space, and no more."""

    def describe(server: Fake, id: int, payload: bytes) -> None:
        index = struct.unpack_from("=8xI", payload)[0]
        size = {0: 0x1000, int(Region.CONFIG): 256}.get(index, 0)
        payload = p.REGION_INFO.pack(p.REGION_INFO.size, 3 if size else 0, index, 0, size, 0)
        server.send(id, Command.DEVICE_GET_REGION_INFO, payload)

    return {
        "DEVICE_GET_INFO": reply(Command.DEVICE_GET_INFO, p.DEVICE_INFO.pack(16, 3, 9, 5)),
        "DEVICE_GET_REGION_INFO": describe,
        "DEVICE_GET_REGION_IO_FDS": io_fds(),
        "DEVICE_GET_IRQ_INFO": reply(Command.DEVICE_GET_IRQ_INFO, p.IRQ_INFO.pack(16, 1, 0, 1)),
        "REGION_READ": memory(config()),
        **answers,
    }


def config(*, capabilities: bytes = b"", first: int = 0x40) -> bytes:
    data = bytearray(256)
    struct.pack_into("<HHHH", data, 0, 0xDEAD, 0xBEEF, 0, 0x10 if capabilities else 0)
    data[0x34] = first
    data[0x40 : 0x40 + len(capabilities)] = capabilities
    return bytes(data)


def memory(data: bytes, *, most: int = 1 << 20) -> Answer:
    """Reads of configuration space; longer ones than `most` are refused."""

    def read(server: Fake, id: int, payload: bytes) -> None:
        offset, index, count = p.REGION_ACCESS.unpack(payload)
        if index == Region.CONFIG and count <= most and offset + count <= len(data):
            server.send(id, Command.REGION_READ, payload + data[offset : offset + count])
        else:
            server.send(id, Command.REGION_READ, flags=p.REPLY | p.ERROR, error=errno.EINVAL)

    return read


def test_what_is_optional_may_be_refused(probe: Told, sock: Path) -> None:
    refused = described(
        DEVICE_GET_REGION_IO_FDS=reply(Command.DEVICE_GET_REGION_IO_FDS, error=errno.ENOTSUP),
        DEVICE_GET_IRQ_INFO=reply(Command.DEVICE_GET_IRQ_INFO, error=0),
        REGION_READ=memory(config(), most=4),
    )
    with Fake(sock, **refused):
        out = " ".join(probe.fine(sock).split())
    assert "[dead:beef]" in out
    assert "0 bar0 0x1000 rw refused" in out
    assert "0 INTx 0 the peer refused DEVICE_GET_IRQ_INFO with no errno" in out


def test_a_region_may_be_refused(probe: Told, sock: Path) -> None:
    no = reply(Command.DEVICE_GET_REGION_INFO, error=errno.EINVAL)
    with Fake(sock, **described(DEVICE_GET_REGION_INFO=no)):
        out = probe.fine(sock)
    assert "8  vga" in out
    assert "No configuration space" in out
    assert "Remark: the server describes no configuration space" in out
    with Fake(sock.with_name("other"), **described(DEVICE_GET_REGION_INFO=no)):
        assert "must have a configuration space to be dumped" in probe.error(
            sock.with_name("other"), "--lspci"
        )


def test_counts_without_an_end_are_cut(probe: Told, sock: Path) -> None:
    many = reply(Command.DEVICE_GET_INFO, p.DEVICE_INFO.pack(16, 3, 0xFFFF_FFFF, 0xFFFF_FFFF))
    with Fake(sock, **described(DEVICE_GET_INFO=many)) as server:
        out = probe.fine(sock)
    assert "Remark: the server says 4294967295 regions; QEMU takes 100" in out
    assert "Remark: the server says 4294967295 interrupt types; QEMU takes 50" in out
    asked = [command for command, _ in server.came]
    assert asked.count(Command.DEVICE_GET_REGION_INFO) == 100
    assert asked.count(Command.DEVICE_GET_IRQ_INFO) == 50


def test_remarks_on_what_a_vmm_stumbles_over(probe: Told, sock: Path) -> None:
    odd = region(size=0x3000, tail=sparse((0, 0x1000), (0x800, 0x1000), (0x2000, 0x2000)))
    far = io_fds(entry(0xFFFF_FFFF, offset=0x3000))
    only = reply(Command.DEVICE_GET_INFO, p.DEVICE_INFO.pack(16, 3, 1, 0))
    strange = described(
        DEVICE_GET_INFO=only, DEVICE_GET_REGION_INFO=odd, DEVICE_GET_REGION_IO_FDS=far
    )
    with Fake(sock, **strange):
        remarks = json.loads(probe.fine(sock, "--json"))["remarks"]
    assert [remark.partition(":")[0] for remark in remarks] == [
        "bar0 has 0x3000 bytes, which is no power of two",
        "bar0 has an area of 0x1000 bytes at 0x800 to be mapped, which are no whole pages inside "
        "it",
        "bar0 has an area of 0x2000 bytes at 0x2000 to be mapped, which are no whole pages inside "
        "it",
        "bar0 can be mapped, as its flags say, but no file came with the answer",
        "bar0 has an I/O file descriptor at 0x3000, which is outside of it",
        "the server describes no configuration space",
    ]


@pytest.mark.parametrize(
    "chain",
    [
        bytes([0x05, 0x40]),  # points at itself
        bytes([0x05, 0x44, 0, 0, 0x11, 0x40]),  # two in a circle
        bytes([0x05, 0x10]),  # into the header
        b"\xff" * 64,
    ],
)
def test_capabilities_that_are_no_chain(probe: Told, sock: Path, chain: bytes) -> None:
    with Fake(sock, **described(REGION_READ=memory(config(capabilities=chain)))):
        assert "[dead:beef]" in probe.fine(sock)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"bar": 9}, "contradicts itself"),
        ({"version_major": 2}, "must be of version 1"),
        ({"gate_length": 0x2000, "doorbell_offset": 0x1000}, "must lie inside its BAR, 0"),
        ({"bar": 3}, "must lie inside its BAR, 3"),
        ({"gate_length": 0x1000}, "directory must lie inside the gate"),
    ],
)
def test_a_gate_that_is_none(
    probe: Told, sock: Path, fields: dict[str, int], sentence: str
) -> None:
    sound = {
        "id": 9, "length": CAPABILITY.size, "signature": CAPABILITY_SIGNATURE, "version_major": 1,
        "gate_length": 0x1000,
    }  # fmt: skip
    found = config(capabilities=CAPABILITY.pack(**(sound | fields)))
    with Fake(sock, **described(REGION_READ=memory(found))):
        assert "Remark: the gate cannot be used: the" in probe.fine(sock)
    with Fake(sock.with_name("2"), **described(REGION_READ=memory(found))):
        (remark,) = json.loads(probe.fine(sock.with_name("2"), "--json"))["remarks"]
    assert sentence in remark


def test_a_terminal_is_not_told_what_to_do(probe: Told, sock: Path) -> None:
    evil = {"\x1b[2J": "\x1b]0;owned\x07", "[bold red]": ":smile: \u202e"}
    with Fake(sock, **described(VERSION=version(evil))):
        out = probe.fine(sock)
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "\u202e" not in out
    assert "[bold red]: " in out
    assert ":smile:" in out


def test_extended_capabilities_and_classic_ones(probe: Told, sock: Path) -> None:
    chain = bytes.fromhex("05488001 00000000 10500200 00000000 01580300 00000000 03000000")
    data = config(capabilities=chain).ljust(4096, b"\0")
    data = data[:256] + struct.pack("<I", 1 | 2 << 16 | 0x140 << 20) + data[260:]
    data = data[:0x140] + struct.pack("<I", 3 | 1 << 16 | 0x100 << 20) + data[0x144:]

    def describe(server: Fake, id: int, payload: bytes) -> None:
        index = struct.unpack_from("=8xI", payload)[0]
        size = 4096 if index == Region.CONFIG else 0
        server.send(
            id, Command.DEVICE_GET_REGION_INFO, p.REGION_INFO.pack(32, 3, index, 0, size, 0)
        )

    with Fake(sock, **described(DEVICE_GET_REGION_INFO=describe, REGION_READ=memory(data))):
        out = probe.fine(sock)
    for words in (
        "[40] MSI: Enable- Count=1/1 Maskable+ 64bit+",
        "[48] PCI Express: version 2, device type 0",
        "[50] power management: version 3, D0",
        "[58] vital product data",
        "[100 v2] advanced error reporting",
        "[140 v1] device serial number",
    ):
        assert words in out


# --- servers that misbehave -----------------------------------------------------------------------


def silent(server: Fake, id: int, payload: bytes) -> None:
    """No answer."""


def garbage(server: Fake, id: int, payload: bytes) -> None:
    server.far.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def closing(server: Fake, id: int, payload: bytes) -> None:
    server.far.shutdown(2)


@pytest.mark.parametrize(
    "at", ["VERSION", "DEVICE_GET_INFO", "DEVICE_GET_REGION_INFO", "DEVICE_GET_REGION_IO_FDS",
           "DEVICE_GET_IRQ_INFO", "REGION_READ"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (silent, "the peer did not answer {} in 0.2 s"),
        (garbage, "a message's size must be 16 to"),
        (closing, "the peer closed the connection"),
        (reply(Command.DMA_MAP), "the reply to {} says it is one to DMA_MAP"),
    ],
)
def test_it_ends_in_one_sentence(
    probe: Told, sock: Path, at: str, answer: Answer, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "TIMEOUT", 0.2)
    monkeypatch.setattr(channels, "_LOOK", 0.05)
    with Fake(sock, **described(**{at: answer})):
        told = probe.error(sock)
    assert told.startswith(f"{sock}: {sentence.format(at)}")
    assert ("another client" in told) == (at == "VERSION" and answer is silent)
    assert probe.out == ""


def test_a_server_that_is_slow_at_everything_is_given_up(
    probe: Told, sock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_survey, "PATIENCE", 0)
    with Fake(sock, **described()):
        assert "must tell all within 0 s" in probe.error(sock)


def test_nobody_serves(probe: Told, sock: Path) -> None:
    assert (
        probe.error(sock) == f"A vfio-user server must listen at {sock}: No such file or directory"
    )


def test_ctrl_c(sock: Path) -> None:
    with Fake(sock, VERSION=silent) as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "callgate", "probe", str(sock)],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        with process:
            assert server.arrived.wait(30)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
            assert process.stderr is not None
            assert process.stderr.read() == "callgate: interrupted\n"


# --- names ----------------------------------------------------------------------------------------


def test_names_are_those_of_pci_ids(tmp_path: Path) -> None:
    file = tmp_path / "pci.ids"
    file.write_text(
        "# comment\n\n1af4  Red Hat, Inc.\n\t1000  Virtio net\n\t\t1af4 0001  Subsystem\n"
        "\t10f3  Sample\n8086  Intel\n\t10f3  Not this\nC 02  Network\n\t00  Ethernet\n"
        "\t80  Other\nC 03  Display\n\t00  VGA\n"
    )

    def look(id: tuple[int, int], kind: int) -> tuple[str, str, str]:
        found = names(id, kind, places=[tmp_path / "missing", file])
        return found.vendor, found.device, found.kind

    assert look((0x1AF4, 0x10F3), 0x020000) == ("Red Hat, Inc.", "Sample", "Ethernet")
    assert look((0x1AF4, 0x10F4), 0x02FF00) == ("Red Hat, Inc.", "", "Network")
    assert look((0xFFFF, 0x10F3), 0x000000) == ("", "", "unclassified device")
    assert look((0xFFFF, 0xFFFF), 0xFF0000) == ("", "", "")


def test_without_pci_ids_the_class_is_told_by_its_base(tmp_path: Path) -> None:
    found = names((1, 2), 0x010802, places=[tmp_path / "missing"])
    assert (found.vendor, found.device, found.kind) == ("", "", "mass storage controller")
