# SPDX-License-Identifier: MIT
"""Find a device by name, wherever this program runs.

in this process     a machine without a processor (loopback)
/dev/callgateN      the kernel's module has it
sysfs               no driver has it, and this is root
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from callgate.driver.calls import Calls
from callgate.driver.device import GateDevice
from callgate.driver.direct import machines
from callgate.driver.directory import GatePlace, find_gate, read_directory
from callgate.driver.door import Door
from callgate.driver.pci import PciFunction
from callgate.errors import BackendError, NotFound


def devices(door: Door) -> Iterator[PciFunction]:
    """All PCI functions that answer."""
    for address in door.functions():
        yield PciFunction(door, address)


def gates(door: Door) -> Iterator[tuple[PciFunction, GatePlace, str]]:
    """Functions with a gate, each with its device's name. Memory decoding is on afterwards."""
    for function, place, name in _look(door):
        if place is not None:
            yield function, place, name


def _look(door: Door) -> Iterator[tuple[PciFunction, GatePlace | None, str]]:
    """Functions with a gate; without a place where it is damaged, and then why."""
    for function in devices(door):
        try:
            place = find_gate(function)
            if place is None:
                continue
            function.enable(master=False)
            yield function, place, read_directory(function, place).name
        except NotFound as error:  # The next one may be sound.
            yield function, None, str(error)


def open_device(name: str, door: Door, **options: Any) -> GateDevice:
    """The first device with a gate whose name is `name`; options as for GateDevice.

    Raises NotFound, naming what there is.
    """
    seen: list[str] = []
    device = _open(name, door, seen, options)
    if device is None:
        raise NotFound(
            f"a device named {name!r} must be on the bus; those with a gate are: "
            f"{', '.join(seen) or 'none'}"
        )
    return device


def _open(name: str, door: Door, seen: list[str], options: dict[str, Any]) -> GateDevice | None:
    for function, place, found in _look(door):
        if place is not None and found == name:
            return GateDevice(function, place, **options)
        seen.append(found)
    return None


def open_here(name: str, door: Door | None = None, **options: Any) -> Calls:
    """The first device of that name that this program can call: in this process, behind
    /dev/callgateN, by sysfs; with a `door`, behind that. Options: `transport`, `timeout`.

    Raises NotFound, naming what there is and what cannot be looked at from here; BackendError for
    a transport that is not offered.
    """
    if door is not None:
        return open_device(name, door, **options)
    seen: list[str] = []
    for machine in machines():
        device = _open(name, machine.door, seen, options)
        if device is not None:
            return device
    # Not needed, nor loaded, where the devices are in this process.
    from callgate.driver.chardev import CharDevice, char_devices
    from callgate.driver.sysfs import SysfsDoor

    for path, found in char_devices():
        if found != name:
            seen.append(found)
            continue
        try:
            return CharDevice(path, **options)
        except OSError as error:
            seen.append(f"{found} ({path}: {error.strerror})")
    try:
        sysfs = SysfsDoor()
    except BackendError as error:
        seen.append(f"what sysfs has ({error})")
    else:
        device = _open(name, sysfs, seen, options)
        if device is not None:
            return device
        sysfs.close()
    raise NotFound(
        f"a device named {name!r} must be in this machine; those with a gate are: "
        f"{', '.join(seen) or 'none'}"
    )
