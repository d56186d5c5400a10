# SPDX-License-Identifier: MIT
"""`callgate lspci`: the devices with a gate that this Linux has, and their calls.

It needs nothing but Python, so that a guest need not have what the host's side uses.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from callgate.driver.chardev import CLASS
from callgate.driver.directory import GatePlace, read_directory
from callgate.driver.find import gates
from callgate.driver.pci import PciFunction
from callgate.driver.sysfs import SysfsDoor
from callgate.errors import BackendError, CallgateError
from callgate.gate.abi import Feature, Transport


def survey(door: SysfsDoor | None = None) -> Iterator[dict[str, Any]]:
    """What there is, a dictionary for each device: those of the kernel's module, then those that no
    driver has, which take root to look at.

    Raises BackendError when there are none of the first, and the others cannot be looked at.
    """
    found = False
    for folder in sorted(CLASS.iterdir()) if CLASS.is_dir() else ():
        found = True
        yield _of_module(folder)
    if door is None:
        try:
            door = SysfsDoor()
        except BackendError:
            if not found:
                raise
            return
    for function, place, _ in gates(door):
        yield _of_function(function, place)


def _of_module(folder: Path) -> dict[str, Any]:
    def read(name: str) -> str:
        return (folder / name).read_text().strip()

    calls = sorted((folder / "calls").iterdir()) if (folder / "calls").is_dir() else []
    return {
        "place": (folder / "device").resolve().name,
        "name": read("name"),
        "version": int(read("version"), 0),
        "uuid": read("uuid"),
        "driver": (folder / "device" / "driver").resolve().name,
        "file": f"/dev/{folder.name}" if (folder / "dev").exists() else None,
        "transports": read("transports").split(),
        "features": read("features").split(),
        "frames": int(read("frames"), 0),
        "calls": [{"signature": each.read_text().strip(), "bound": None} for each in calls],
    }


def _of_function(function: PciFunction, place: GatePlace) -> dict[str, Any]:
    directory = read_directory(function, place)
    return {
        "place": str(function),
        "name": directory.name,
        "version": directory.version,
        "uuid": str(directory.uuid),
        "driver": None,
        "file": None,
        "transports": _words(place.transports),
        "features": _words(directory.features),
        "frames": directory.frames[1],
        "calls": [
            {"signature": entry.text, "bound": bool(entry.vector)}
            for entry in directory.entries.values()
        ],
    }


def _words(flags: Transport | Feature) -> list[str]:
    return [str(each.name).lower() for each in type(flags) if each & flags]


def show(found: dict[str, Any]) -> str:
    """As lspci -v shows a device."""
    lines = [f"{found['place']} {found['name']} (version {found['version']})"]
    lines.append(f"\tABI: {found['uuid']}")
    lines.append(f"\tTransports: {' '.join(found['transports'])}; {found['frames']} frames")
    lines.append(f"\tFeatures: {' '.join(found['features']) or 'none'}")
    if found["driver"]:
        file = f", {found['file']}" if found["file"] else ""
        lines.append(f"\tKernel driver in use: {found['driver']}{file}")
    for each in found["calls"]:
        unbound = " (not bound)" if each["bound"] is False else ""
        lines.append(f"\tCall: {each['signature']}{unbound}")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """The command line of it."""
    parser = argparse.ArgumentParser(
        prog="callgate lspci", description="List devices with a gate, their calls and signatures."
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    given = parser.parse_args(arguments)
    try:
        found = list(survey())
    except CallgateError as error:
        parser.exit(2, f"callgate: {error}\n")
    shown = "\n\n".join(map(show, found)) or "No device with a gate is here."
    sys.stdout.write((json.dumps(found, indent=2) if given.json else shown) + "\n")
    return 0
