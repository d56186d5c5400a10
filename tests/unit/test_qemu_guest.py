# SPDX-License-Identifier: MIT
"""What a Guest makes of the way in which its QEMU goes, played by a shell script.

Guests that run are in tests/qemu.
"""

import re
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from callgate.backends.qemu import guest as module
from callgate.backends.qemu.guest import Guest, read_files, what_to_run
from callgate.call import call, u64
from callgate.device import Device
from callgate.errors import BackendError, BudgetError, GuestError
from callgate.register import Bar, Register

PLAY = """\
#!/bin/sh
[ "$1" = --version ] && echo QEMU emulator version 10.1.0 && exit
[ "$1" = -device ] && exit
while [ $# -gt 0 ]; do
    [ "$1" = -initrd ] && token=$(grep -ao -m 1 'callgate-[0-9a-f]*' "$2" | head -n 1)
    shift
done
"""
FOREVER = "exec sleep 1000\n"
X86_64, I386, AARCH64, RISCV64 = 62, 3, 183, 243


class Sums(Device):
    id = 0x1AF4, 0x10F0

    @call
    def add(self, a: u64, b: u64) -> u64:
        return a + b


class Plain(Device):
    id = 0x1AF4, 0x10F1
    bar = Bar(0, 0x100)
    value = Register(0x00)


Make = Callable[..., Guest]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Make a guest whose QEMU does what a shell script says. $token is its /init's."""
    monkeypatch.setattr(module, "_LEAVE", 0.1)
    guests: list[Guest] = []

    def make(script: str, *devices: Device, **options: Any) -> Guest:
        for name in ("vmlinuz", "busybox"):
            (tmp_path / name).write_text("#!/bin/sh\n")
        qemu = tmp_path / "qemu"
        qemu.write_text(PLAY + script)
        qemu.chmod(0o755)
        options = {"qemu": qemu, "folder": tmp_path, "timeout": 30, **options}
        if "guest" not in options:
            linux = {"kernel": tmp_path / "vmlinuz", "busybox": tmp_path / "busybox"}
            options = {**linux, **options}
        guests.append(Guest(*devices, **options))
        return guests[-1]

    before = set(threading.enumerate())
    yield make
    for guest in guests:
        guest.close()
    assert set(threading.enumerate()) <= before


@pytest.fixture
def bare(make: Make, tmp_path: Path) -> Make:
    """Make one with a program that needs no operating system."""

    def bare(script: str, *devices: Device, machine: int = X86_64, **options: Any) -> Guest:
        head = struct.pack(
            "<4sBBBB8xHHIQQQIHHHHHH",
            *(b"\x7fELF", 2, 1, 1, 0, 2, machine, 1, 0x100000, 64, 0, 0, 64, 56, 1, 0, 0, 0),
        )
        place = struct.pack("<IIQQQQQQ", 1, 5, 120, 0x100000, 0x100000, 2, 2, 1)
        program = tmp_path / "guest.elf"
        program.write_bytes(head + place + b"\xeb\xfe")
        return make(script, *devices, guest=program, **options)

    return bare


# --- how a run ends -------------------------------------------------------------------------------


def test_a_run(make: Make) -> None:
    seen = bytearray()
    guest = make('printf "$token ready\\r\\nhello\\r\\n"; echo; echo $token exit 41\n')
    guest.on_byte = seen.append
    result = guest.run()
    assert (result.exit_code, result.output) == (41, "hello\n")
    assert (bytes(seen), guest.text) == (b"hello\r\n\n", "hello\n")
    assert guest.exited > 0
    assert result.instructions is None
    with pytest.raises(GuestError, match="The guest has ended: make a new one to run it again"):
        guest.run()


def test_a_qemu_that_stays_is_ended(make: Make) -> None:
    assert make(f"echo $token exit 3\n{FOREVER}").run().exit_code == 3
    assert make(f"trap '' TERM\necho $token exit 4\n{FOREVER}").run().exit_code == 4


def test_time_that_is_up(make: Make) -> None:
    guest = make(f"echo and then\n{FOREVER}", timeout=0.3)
    with pytest.raises(BudgetError, match=r"^The guest's 0\.3 s are used up; it wrote last: 'and"):
        guest.run()


def test_an_end_without_a_word_has_what_qemu_said(make: Make) -> None:
    said = "echo qemu: warning: slow >&2; echo qemu: no memory >&2; echo '  really' >&2; exit 1\n"
    told = r"^The guest ended without an exit code: qemu: no memory really$"
    with pytest.raises(GuestError, match=told):
        make(said).run()
    with pytest.raises(GuestError, match=r"^The guest ended without an exit code$"):
        make("exit 0\n").run()


def test_what_a_listener_raises_comes_out(make: Make) -> None:
    """As when nobody reads standard output any more: nothing would end the run."""

    def broken(byte: int) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    guest = make(f"echo hello\n{FOREVER}")
    guest.on_byte = broken
    with pytest.raises(BrokenPipeError):
        guest.run()


def test_closing_ends_qemu(make: Make, tmp_path: Path) -> None:
    guest = make(f"echo $$ > {tmp_path}/pid; echo up\n{FOREVER}")
    guest.start()
    guest.start()  # it runs
    guest.wait_for("up", 30)
    pid = int((tmp_path / "pid").read_text())
    assert Path(f"/proc/{pid}").exists()
    guest.close()
    guest.close()
    assert not Path(f"/proc/{pid}").exists()


def test_a_folder_of_its_own_goes_with_it(make: Make) -> None:
    with make("echo $token exit 0\n", folder=None) as guest:
        initrd = guest.command.initrd
        assert initrd is not None
        assert initrd.exists()
        assert guest.run().exit_code == 0
    assert not initrd.parent.exists()


@pytest.mark.parametrize(
    ("machine", "end", "code"),
    [
        (X86_64, 1, 0),
        (X86_64, 83, 41),
        (AARCH64, 41, 41),
        (RISCV64, 0, 0),
    ],
)
def test_a_program_ends_qemu_with_its_code(bare: Make, machine: int, end: int, code: int) -> None:
    assert bare(f"echo hi; exit {end}\n", machine=machine).run().exit_code == code


@pytest.mark.parametrize(
    ("machine", "script"),
    [
        (X86_64, "exit 0"),  # it reset the machine
        (X86_64, "kill -SEGV $$"),
        (AARCH64, "kill -SEGV $$"),
        (AARCH64, "echo qemu: no such machine >&2; exit 1"),
        (X86_64, "exec >&-; exec sleep 1000"),
    ],
)
def test_a_program_that_gives_no_code(bare: Make, machine: int, script: str) -> None:
    with pytest.raises(GuestError, match="The guest ended without an exit code"):
        bare(script, machine=machine).run()


# --- lines in and out -----------------------------------------------------------------------------


def test_lines_are_exchanged(bare: Make) -> None:
    guest = bare('while read line; do [ "$line" = end ] && exit 1; echo "<$line>"; done\n')
    assert guest.exchange(b"one") == b"<one>"
    assert guest.exchange(b"two\n") == b"<two>"
    assert guest.exchange(b"end") == b""
    with pytest.raises(GuestError, match="has ended"):
        guest.exchange(b"three")


def test_a_guest_that_does_not_answer(bare: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXCHANGE", 0.1)
    with pytest.raises(BudgetError, match=r"The guest's 0\.1 s are used up"):
        bare(FOREVER, timeout=None).exchange(b"hello")


def test_waiting_for_a_word(make: Make) -> None:
    guest = make("echo one; read line; echo qemu: oh >&2\n")
    guest.start()
    guest.wait_for("one", 30)
    with pytest.raises(BudgetError, match=r"The guest's 0\.05 s are used up; it wrote last: 'one"):
        guest.wait_for("two", 0.05)
    guest = make("echo one; echo qemu: oh >&2\n")
    guest.start()
    with pytest.raises(GuestError, match="The guest ended before it wrote 'two': qemu: oh"):
        guest.wait_for("two", 30)


# --- what it is made of ---------------------------------------------------------------------------


def test_each_device_has_a_server(make: Make, tmp_path: Path) -> None:
    guest = make("exit\n", Sums(), Plain(), memory=64, cpus=2, append="debug", extra=["-S"])
    line = guest.command.line()
    assert [each.function.name for each in guest.servers] == ["sums", "plain"]
    sockets = [tmp_path / "0.sock", tmp_path / "1.sock"]
    assert list(guest.command.sockets) == sockets
    assert all(each.is_socket() for each in sockets)
    assert {"64M", "2", "-S"} <= set(line)
    assert any("debug" in word for word in line)
    guest.close()
    assert not any(each.exists() for each in sockets)


def test_files_and_program_are_in_the_initramfs(make: Make, tmp_path: Path) -> None:
    (tmp_path / "number").write_text("content 41")
    guest = make("exit\n", program="cat number", files={"number": tmp_path / "number"})
    assert guest.command.initrd is not None
    archive = guest.command.initrd.read_bytes()
    assert b"root/number\0" in archive
    assert b"content 41" in archive
    assert b"setsid -c sh -c 'cat number'" in archive


def test_a_program_takes_the_place_of_linux(bare: Make) -> None:
    guest = bare("exit\n", machine=AARCH64)
    assert (guest.arch, guest.bare, guest.command.initrd) == ("aarch64", True, None)
    assert guest.command.kernel.name == "guest.elf"


def test_what_is_missing(make: Make, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"The kernel .*nope must be a file"):
        make("exit\n", kernel=tmp_path / "nope")
    with pytest.raises(BackendError, match="qemu-nope cannot be used: No such file"):
        make("exit\n", Sums(), qemu=tmp_path / "qemu-nope")
    with pytest.raises(BackendError, match=r"The file .*nope must be there to be put into"):
        make("exit\n", files={"a": tmp_path / "nope"})
    assert list(tmp_path.glob("*.sock")) == []


# --- plugging in ----------------------------------------------------------------------------------


class Monitor:
    """Stands in for the connection to QEMU's monitor, and writes down what it is asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[tuple[str, ...]] = []
        made.append(self)

    def plug(self, socket: Path, name: str, port: str) -> None:
        self.asked.append(("plug", socket.name, name, port))

    def unplug(self, name: str) -> None:
        self.asked.append(("unplug", name))

    def close(self) -> None:
        self.asked.append(("close",))


made: list[Monitor] = []


@pytest.fixture
def monitors(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Monitor]]:
    monkeypatch.setattr(module, "Monitor", Monitor)
    yield made
    made.clear()


def test_devices_are_plugged_in_for_the_program(
    make: Make, monitors: list[Monitor], tmp_path: Path
) -> None:
    """One with MSI-X stays: QEMU would fail an assertion."""
    script = f"echo $token ready; echo hello; echo; echo $token exit 5\n{FOREVER}"
    guest = make(script, Plain(), Sums(), hotplug=True)
    result = guest.run_hotplugged()
    assert (result.exit_code, result.output) == (5, "hello\n")
    (monitor,) = monitors
    assert monitor.path == tmp_path / "qmp.sock"
    assert monitor.asked == [
        ("plug", "0.sock", "device0", "port0"),
        ("plug", "1.sock", "device1", "port1"),
        ("unplug", "device0"),
        ("close",),
    ]


def test_a_plugged_guest_that_ends_without_a_word(make: Make, monitors: list[Monitor]) -> None:
    with pytest.raises(GuestError, match="ended without an exit code: qemu: oh"):
        make("echo $token ready; echo qemu: oh >&2\n", hotplug=True).run_hotplugged()


def test_what_cannot_be_plugged(make: Make, monitors: list[Monitor]) -> None:
    guest = make("exit\n", Sums(), Plain())
    with pytest.raises(BackendError, match="must be made with hotplug=True to plug devices in"):
        guest.plug(0)
    with pytest.raises(BackendError, match=r"^sums must stay plugged in: QEMU ends with a failed"):
        guest.unplug(0)
    assert monitors == []


# --- what to run ----------------------------------------------------------------------------------


def test_a_shell_or_its_command() -> None:
    assert what_to_run(None, ["a.ko", "b:/etc/b"]) == (
        "sh",
        {"a.ko": Path("a.ko"), "/etc/b": Path("b")},
    )
    assert what_to_run("ls  -l | wc", []) == ("ls  -l | wc", {})
    for empty in ("", "  "):
        with pytest.raises(BackendError, match="must name a program"):
            what_to_run(empty, [])
    with pytest.raises(BackendError, match="must be a line for its shell: No closing quotation"):
        what_to_run("echo it's", [])


@pytest.mark.parametrize(
    ("rest", "wanted"),
    [
        ("", "./test"),
        (" 1 'a b'", "./test 1 'a b'"),
        (" $HOME > log && cat log", "./test $HOME > log && cat log"),
    ],
)
def test_a_program_that_is_here_is_put_there(tmp_path: Path, rest: str, wanted: str) -> None:
    """What follows is the shell's."""
    program = tmp_path / "test"
    program.write_text("#!/bin/sh\n")
    assert what_to_run(f" {program}{rest}", []) == (wanted, {"test": program})
    spaced = tmp_path / "my test"
    spaced.write_text("#!/bin/sh\n")
    assert what_to_run(f"'{spaced}' 1", []) == ("'./my test' 1", {"my test": spaced})


def test_a_program_that_needs_a_loader(tmp_path: Path) -> None:
    head = struct.pack(
        "<4sBBBB8xHHIQQQIHHHHHH",
        *(b"\x7fELF", 2, 1, 1, 0, 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 64, 0, 0),
    )
    program = tmp_path / "test"
    program.write_bytes(head + struct.pack("<IIQQQQQQ", 3, 4, 120, 0, 0, 8, 8, 1) + b"/lib/ld\0")
    told = f"^{re.escape(str(program))} must be linked statically: the guest has no loader"
    with pytest.raises(BackendError, match=told):
        what_to_run(str(program), [])


def test_where_files_go(tmp_path: Path) -> None:
    here = tmp_path / "file"
    here.write_bytes(b"12")
    found = read_files({"a": here, "/etc/b": here})
    assert {Path(name): data for name, data in found.items()} == {
        Path("/", "root", "a"): b"12",
        Path("/etc/b"): b"12",
    }
    with pytest.raises(BackendError, match=f"^The file {tmp_path} must be there to be put into"):
        read_files({"a": tmp_path})
