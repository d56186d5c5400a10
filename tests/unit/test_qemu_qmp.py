# SPDX-License-Identifier: MIT
"""The connection to QEMU's monitor, against one that speaks QMP from a script."""

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from callgate.backends.qemu import qmp
from callgate.backends.qemu.qmp import Monitor
from callgate.errors import BackendError

pytest.importorskip("qemu.qmp", reason="the package qemu.qmp is not installed")

GREETING = {
    "QMP": {
        "version": {"qemu": {"major": 10, "minor": 1, "micro": 0}, "package": ""},
        "capabilities": [],
    }
}
Messages = list[dict[str, Any]]
DONE: Messages = [{"return": {}}]


class Qemu:
    """Answers each command with the messages that `answers` has for it; `asked` is what came."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, Messages] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.greeting: object = GREETING
        self.hang_up = False
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        if self._thread.ident is not None:
            self._thread.join()

    def _serve(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except OSError:
            return
        with connection:
            self._say(connection, self.greeting)
            for request in _requests(connection):
                name = request["execute"]
                if name != "qmp_capabilities":
                    self.asked.append((name, request.get("arguments", {})))
                if self.hang_up:
                    return
                for message in self.answers.get(name, DONE):
                    answers = "event" not in message and "id" in request
                    said = {**message, "id": request["id"]} if answers else message
                    self._say(connection, said)

    @staticmethod
    def _say(connection: socket.socket, message: object) -> None:
        connection.sendall(json.dumps(message).encode() + b"\r\n")


def _requests(connection: socket.socket) -> Iterator[dict[str, Any]]:
    """They need no ends of lines."""
    came = ""
    while data := connection.recv(4096):
        came += data.decode()
        while came := came.lstrip():
            try:
                request, end = json.JSONDecoder().raw_decode(came)
            except ValueError:
                break
            yield request
            came = came[end:]


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[Qemu]:
    qemu = Qemu(tmp_path / "qmp.sock")
    yield qemu
    qemu.close()


@pytest.fixture
def monitor(qemu: Qemu) -> Iterator[Monitor]:
    qemu.start()
    monitor = Monitor(qemu.path)
    yield monitor
    monitor.close()


def event(name: str, device: str) -> dict[str, Any]:
    return {
        "event": name,
        "data": {"device": device, "path": f"/machine/peripheral/{device}"},
        "timestamp": {"seconds": 1, "microseconds": 0},
    }


def test_commands(qemu: Qemu, monitor: Monitor) -> None:
    qemu.answers["query-status"] = [{"return": {"running": True}}]
    assert monitor.command("query-status", detail=3) == {"running": True}
    assert qemu.asked == [("query-status", {"detail": 3})]


def test_qemu_refuses_in_its_own_words(qemu: Qemu, monitor: Monitor) -> None:
    said = {"class": "GenericError", "desc": "Bus 'port9' not found"}
    qemu.answers["device_add"] = [{"error": said}]
    with pytest.raises(BackendError, match=r"^QEMU refused device_add: Bus 'port9' not found$"):
        monitor.plug(Path("/run/0.sock"), "device0", "port9")


def test_plugging_in(qemu: Qemu, monitor: Monitor) -> None:
    monitor.plug(Path("/run/0.sock"), "device0", "port0")
    wanted = {
        "driver": "vfio-user-pci",
        "socket": {"type": "unix", "path": "/run/0.sock"},
        "id": "device0",
        "bus": "port0",
    }
    assert qemu.asked == [("device_add", wanted)]


def test_unplugging_waits_for_the_guest(qemu: Qemu, monitor: Monitor) -> None:
    gone = [event("DEVICE_DELETED", "device1"), event("DEVICE_DELETED", "device0")]
    qemu.answers["device_del"] = [*DONE, *gone]
    monitor.unplug("device0")
    assert qemu.asked == [("device_del", {"id": "device0"})]
    qemu.answers["device_del"] = [*gone, *DONE]
    monitor.unplug("device0")


def test_a_guest_that_does_not_let_go(
    qemu: Qemu, monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qmp, "PATIENCE", 0.05)
    qemu.answers["device_del"] = [*DONE, event("DEVICE_DELETED", "device1")]
    with pytest.raises(BackendError, match=r"^The guest did not let go of device0 within 0\.05 s$"):
        monitor.unplug("device0")
    qemu.answers["device_del"] = [*DONE, event("DEVICE_UNPLUG_GUEST_ERROR", "device0")]
    with pytest.raises(BackendError, match=r"^The guest refused to let go of device0$"):
        monitor.unplug("device0")
    qemu.answers["device_del"] = [{"error": {"class": "DeviceNotFound", "desc": "no such one"}}]
    with pytest.raises(BackendError, match=r"^QEMU refused device_del: no such one$"):
        monitor.unplug("device0")


def test_a_monitor_that_opens_late(qemu: Qemu, monkeypatch: pytest.MonkeyPatch) -> None:
    later = qemu.path.with_name("later.sock")
    monkeypatch.setattr(time, "sleep", lambda seconds: qemu.path.rename(later))
    qemu.start()
    monitor = Monitor(later)
    assert monitor.command("cont") == {}
    monitor.close()


def test_a_monitor_that_does_not_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "PATIENCE", 0.0)
    path = tmp_path / "nope.sock"
    told = f"^QEMU must open its monitor at {path}, and did not$"
    with pytest.raises(BackendError, match=told):
        Monitor(path)


@pytest.mark.parametrize("greeting", ["hello", {"return": {}}])
def test_what_is_no_monitor(qemu: Qemu, greeting: object) -> None:
    qemu.greeting = greeting
    qemu.start()
    with pytest.raises(BackendError, match=f"QEMU's monitor at {qemu.path} must answer: "):
        Monitor(qemu.path)


def test_a_file_that_is_no_socket(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(BackendError, match="must answer: "):
        Monitor(path)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qemu.qmp", None)
    told = r"^Hot plug takes the package qemu\.qmp: pip install 'callgate\[qemu\]'$"
    with pytest.raises(BackendError, match=told):
        Monitor(tmp_path / "qmp.sock")


def test_a_monitor_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "PATIENCE", 0.05)
    path = tmp_path / "mute.sock"
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(path))
        mute.listen()
        told = f"^QEMU's monitor at {path} must answer: it did not within 0.05 s$"
        with pytest.raises(BackendError, match=told):
            Monitor(path)


def test_closing_after_qemu_has_ended(qemu: Qemu) -> None:
    qemu.start()
    monitor = Monitor(qemu.path)
    qemu.hang_up = True
    with pytest.raises(BackendError, match=r"^QEMU refused quit: "):
        monitor.command("quit")
    monitor.close()
