# SPDX-License-Identifier: MIT
"""`callgate serve`: real processes, served, probed, killed, and started again."""

import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from threading import Thread

import pytest

from callgate.backends.vfio_user.client import Client, Disconnected
from callgate.backends.vfio_user.protocol import Region
from callgate.cli.app import run_app
from callgate.cli.serve import qemu_option

READY = "Without a copy"
"""How the last line begins that it says before it waits."""
ROOT = Path(__file__).resolve().parents[2]
MODEL = """
from callgate import Device, Register, main


class Sample(Device):
    id = 0x1AF4, 0x10F9
    value = Register(0x00)
    bad = Register(0x04, access="w")

    @bad.on_write
    def fail(self, value):
        return 1 / 0


class Second(Device):
    id = 0x1AF4, 0x10FA
    value = Register(0x00)


if __name__ == "__main__":
    main(Sample)
"""


@pytest.fixture
def device(tmp_path: Path) -> Path:
    file = tmp_path / "device.py"
    file.write_text(MODEL)
    return file


class Serving:
    """A `callgate serve` in a process, whose output comes line by line."""

    def __init__(self, *arguments: object, program: tuple[str, ...] = ("-m", "callgate")) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *program, "serve", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._lines: Queue[str] = Queue()
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))

    def line(self) -> str:
        return self._lines.get(timeout=60)

    def until(self, words: str) -> list[str]:
        """The lines up to one with these words."""
        lines = [self.line()]
        while words not in lines[-1]:
            lines.append(self.line())
        return lines

    def end(self, number: int) -> tuple[int, str]:
        """Signal it: exit code, and what it said on standard error."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> tuple[int, str]:
        assert self.process.stderr is not None
        told = self.process.stderr.read()
        code = self.process.wait(60)
        self._reader.join(60)
        return code, told

    def __enter__(self) -> "Serving":
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(60)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@pytest.fixture
def sock(tmp_path: Path) -> Path:
    return tmp_path / "sock"


@pytest.fixture
def serving(device: Path, sock: Path) -> Iterator[Serving]:
    with Serving(f"{device}:Sample", "--socket", sock) as serving:
        serving.until(READY)
        yield serving


def test_it_says_what_it_serves_and_how_to_plug_it_in(device: Path, sock: Path) -> None:
    with Serving(f"{device}:Sample", "--socket", sock) as serving:
        lines = serving.until(READY)
        assert lines[0] == f"serving 1af4:10f9 sample at {sock}"
        assert lines[1] == "QEMU 10.1 or later takes:"
        assert lines[2].strip() == qemu_option(sock)
        assert "memory-backend-memfd" in lines[3]
        assert "share=on" in lines[3]
        assert stat.S_IMODE(sock.stat().st_mode) == 0o600


def test_the_option_is_one_for_a_shell_and_for_json() -> None:
    path = Path('/tmp/it\'s a "socket"')
    flag, value = shlex.split(qemu_option(path))
    assert flag == "-device"
    assert json.loads(value) == {
        "driver": "vfio-user-pci",
        "socket": {"type": "unix", "path": str(path)},
    }


def test_clients_come_and_go(serving: Serving, sock: Path) -> None:
    for _ in range(2):
        with Client(sock) as client:
            assert client.read(Region.CONFIG, 0, 4) == bytes.fromhex("f41af910")
            client.write(0, 0, b"\1\2\3\4")
            assert serving.line() == f"sample at {sock}: a client connected"
        assert serving.line() == f"sample at {sock}: a client has gone"
    with Client(sock) as client:
        assert client.read(0, 0, 4) == bytes(4), "it was reset meanwhile"


def test_state_is_kept_if_so_told(device: Path, sock: Path) -> None:
    with Serving(f"{device}:Sample", "--socket", sock, "--keep-state") as serving:
        serving.until(READY)
        with Client(sock) as client:
            client.write(0, 0, b"\1\2\3\4")
        serving.until("has gone")
        with Client(sock) as client:
            assert client.read(0, 0, 4) == b"\1\2\3\4"


def test_several_devices_in_order(device: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with Serving(
        f"{device}:Second", f"{device}:Sample", "--socket", one, "--socket", two
    ) as serving:
        lines = serving.until(READY)
        assert [line.split()[1] for line in lines[:2]] == ["1af4:10fa", "1af4:10f9"]
        with Client(one) as first, Client(two) as second:
            assert first.read(Region.CONFIG, 2, 2) == b"\xfa\x10"
            assert second.read(Region.CONFIG, 2, 2) == b"\xf9\x10"
        assert serving.end(signal.SIGTERM) == (0, "")
    assert not one.exists()
    assert not two.exists()


@pytest.mark.parametrize("client_is_there", [False, True])
@pytest.mark.parametrize(
    ("number", "ended"),
    [(signal.SIGTERM, (0, "")), (signal.SIGINT, (130, "callgate: interrupted\n"))],
)
def test_it_ends_cleanly(
    serving: Serving, sock: Path, number: int, ended: tuple[int, str], client_is_there: bool
) -> None:
    if client_is_there:
        with Client(sock) as client:
            assert serving.end(number) == ended
            with pytest.raises(Disconnected):
                client.info()
    else:
        assert serving.end(number) == ended
    assert not sock.exists()


def test_killed_and_started_again_over_the_socket_that_was_left(
    serving: Serving, device: Path, sock: Path
) -> None:
    with Client(sock) as client:
        serving.process.kill()
        serving.process.wait()
        with pytest.raises(Disconnected):
            client.info()
    assert sock.exists()
    with Serving(f"{device}:Sample", "--socket", sock) as again:
        again.until(READY)
        with Client(sock) as client:
            assert client.read(Region.CONFIG, 0, 2) == b"\xf4\x1a"


def test_two_on_one_socket(serving: Serving, device: Path, sock: Path) -> None:
    with Serving(f"{device}:Sample", "--socket", sock) as second:
        assert second.ended() == (2, f"callgate: Somebody serves {sock} already\n")
    with Client(sock) as client:
        assert client.read(Region.CONFIG, 0, 2) == b"\xf4\x1a"


def test_the_first_socket_goes_when_the_second_cannot_be_made(device: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    bad.write_text("precious")
    arguments = (f"{device}:Sample", f"{device}:Second", "--socket", good, "--socket", bad)
    with Serving(*arguments) as serving:
        code, told = serving.ended()
    assert code == 2
    assert told == f"callgate: {bad} must be free, or a socket that nobody serves\n"
    assert not good.exists()
    assert bad.read_text() == "precious"


def test_a_bug_of_the_model_shows_its_traceback_and_serving_goes_on(
    serving: Serving, device: Path, sock: Path
) -> None:
    with Client(sock) as client:
        client.write(0, 4, bytes(4))
        client.write(0, 0, b"abcd")
        assert client.read(0, 0, 4) == b"abcd"
    code, told = serving.end(signal.SIGTERM)
    assert code == 0
    line = MODEL.splitlines().index("        return 1 / 0") + 1
    assert f'File "{device}", line {line}, in fail' in told
    assert "ZeroDivisionError: division by zero" in told
    assert "vfio_user" not in told


@pytest.mark.parametrize("method", ["__init__", "attach"])
def test_a_bug_before_it_serves_is_the_authors_to_see(
    device: Path, sock: Path, method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    body = f"    def {method}(self):\n        self.vlaue += 1\n"
    device.write_text(textwrap.dedent(MODEL).partition("class Second")[0] + body)
    assert run_app(["serve", str(device), "--socket", str(sock)]) == 1
    told = capfd.readouterr().err
    assert told.startswith("Traceback (most recent call last):\n")
    assert told.count("  File ") == 1
    assert "'Sample' object has no attribute 'vlaue'" in told
    assert not sock.exists()


def test_what_crosses_is_traced(device: Path, sock: Path) -> None:
    with Serving(f"{device}:Sample", "--socket", sock, "--trace", "--linger", "0") as serving:
        serving.until(READY)
        with Client(sock) as client:
            client.write(0, 0, b"\x34\x12\0\0")
        serving.until("has gone")
        code, told = serving.end(signal.SIGTERM)
    assert code == 0
    assert "value = 0x1234" in told


def test_nobody_reads_what_it_says(device: Path, sock: Path) -> None:
    command = [sys.executable, "-m", "callgate", "serve", f"{device}:Sample", "--socket", str(sock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while READY.encode() not in process.stdout.readline():
            pass
        process.stdout.close()
        for _ in range(2):
            with Client(sock) as client:
                assert client.read(Region.CONFIG, 0, 2) == b"\xf4\x1a"
        process.terminate()
        assert process.wait(60) == 0
        assert process.stderr.read() == b""


def test_a_device_file_serves_itself(device: Path, sock: Path) -> None:
    with Serving("--socket", sock, program=(str(device),)) as serving:
        assert serving.until(READY)[0].startswith("serving 1af4:10f9 ")
        assert serving.end(signal.SIGTERM)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--socket"),
        (["--socket", "a", "--socket", "b"], "one --socket for each FILE, in order: 1, not 2"),
        (["--socket", "x" * 120], "A socket's path must be 1 to 107 bytes, not"),
        (["--socket", "/nonexistent/sock"], "/nonexistent/sock"),
        (["--socket", "/etc"], "/etc must be free, or a socket that nobody serves"),
        (["--socket", "a", "--handler-timeout", "0"], "--handler-timeout must be above 0"),
        (["--socket", "a", "--linger", "-1"], "--linger"),
        (["--socket", "a", "--linger", "inf"], "--linger must be a number of milliseconds"),
        (["--socket", "a", "--linger", "nan"], "--linger"),
    ],
)
def test_wrong_use(
    device: Path,
    arguments: list[str],
    sentence: str,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_app(["serve", f"{device}:Sample", *arguments]) == 2
    out, told = capfd.readouterr()
    assert out == ""
    (line,) = told.splitlines()
    assert sentence in line


def test_two_devices_on_one_socket(
    device: Path, sock: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = [f"{device}:Sample", f"{device}:Second"]
    both = ["--socket", str(sock), "--socket", os.path.relpath(sock)]
    assert run_app(["serve", *files, *both]) == 2
    assert "Each device must have a --socket of its own" in capfd.readouterr().err


def test_the_adder_is_served(sock: Path) -> None:
    with Serving(ROOT / "examples" / "01_adder" / "device.py", "--socket", sock) as serving:
        serving.until(READY)
        told = subprocess.run(
            [sys.executable, "-m", "callgate", "probe", sock, *("--write", "bar0:0:4=2"),
             *("--write", "bar0:4:4=40", "--write", "bar0:8:4=1", "--read", "bar0:0xc")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert told.stdout.endswith("bar0 + 0xc = 0x0000002a\n")
