# SPDX-License-Identifier: MIT
"""Plugging and unplugging while the guest runs, by QMP (PyPI's qemu.qmp)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from callgate.backends.qemu.command import device
from callgate.errors import BackendError

PATIENCE = 10.0
"""Seconds that QEMU has to open its monitor, and a guest to let go of a device."""
_STEP = 0.05


class Monitor:
    """A connection to the monitor of a QEMU that runs, at its UNIX socket.

    Not for several threads. Raises BackendError where the package qemu.qmp is not installed or the
    monitor does not answer.
    """

    def __init__(self, path: Path) -> None:
        try:
            from qemu.qmp import QMPClient
        except ModuleNotFoundError as error:
            raise BackendError(
                "Hot plug takes the package qemu.qmp: pip install 'callgate[qemu]'"
            ) from error
        deadline = time.monotonic() + PATIENCE
        while not path.exists():
            if time.monotonic() >= deadline:
                raise BackendError(f"QEMU must open its monitor at {path}, and did not")
            time.sleep(_STEP)
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient("callgate")
        try:
            self._loop.run_until_complete(self._connect(path))
        except Exception as error:
            self._loop.close()
            raise BackendError(f"QEMU's monitor at {path} must answer: {error}") from error

    def close(self) -> None:
        """Disconnect."""
        with contextlib.suppress(Exception):  # QEMU may have ended before.
            self._loop.run_until_complete(self._client.disconnect())
        self._loop.close()

    def command(self, name: str, **arguments: object) -> object:
        """Run a QMP command and return what it returns. Raises BackendError with QEMU's words."""
        return self._loop.run_until_complete(self._execute(name, arguments))

    def plug(self, socket: Path, name: str, port: str) -> None:
        """Plug a vfio-user server into a root port, as the device `name`."""
        self.command("device_add", **device(socket), id=name, bus=port)

    def unplug(self, name: str) -> None:
        """Ask the guest to let go of a device, and wait until it has. Raises BackendError."""
        self._loop.run_until_complete(self._unplug(name))

    async def _connect(self, path: Path) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await self._client.connect(str(path))
        except TimeoutError as error:
            raise TimeoutError(f"it did not within {PATIENCE:g} s") from error

    async def _execute(self, name: str, arguments: Mapping[str, object]) -> object:
        try:
            return await self._client.execute(name, dict(arguments))
        except Exception as error:
            raise BackendError(f"QEMU refused {name}: {error}") from error

    async def _unplug(self, name: str) -> None:
        names = ("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR")
        with self._client.listener(names) as events:
            await self._execute("device_del", {"id": name})
            try:
                async with asyncio.timeout(PATIENCE):
                    async for event in events:
                        data: Any = event["data"]
                        if data.get("device") != name:
                            continue
                        if event["event"] == names[0]:
                            return
                        raise BackendError(f"The guest refused to let go of {name}")
            except TimeoutError:
                pass
        raise BackendError(f"The guest did not let go of {name} within {PATIENCE:g} s")
