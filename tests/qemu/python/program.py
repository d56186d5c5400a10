# SPDX-License-Identifier: MIT
"""Runs in the guest: the same calls, whatever the door. Its argument says which one is expected.

Whatever is wrong ends it with a traceback.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import callgate.driver
from callgate.driver import lspci
from callgate.driver.device import GateDevice
from callgate.errors import BadValue, DeviceError, NotFound
from callgate.gate.abi import Transport

OPEN = callgate.driver.open


def fails(kind: type[Exception], run: Callable[..., Any], *arguments: Any) -> Exception:
    """Make a call that must raise."""
    try:
        run(*arguments)
    except kind as error:
        return error
    raise AssertionError(f"{run} with {arguments} must raise {kind.__name__}")


def calls(device: Any) -> None:
    assert device.add(2, 40) == 42
    assert device.add(-1, 2) == 1
    assert [device.add(number, number) for number in range(500)] == list(range(0, 1000, 2))
    assert device.narrow(255) == 255
    fails(BadValue, device.narrow, 256)
    assert device.negate(-7) == 7
    assert device.turn(b"abc") == (b"cba", 3)
    assert device.turn(b"") == (b"", 0)
    error = fails(DeviceError, device.refuse, 77)
    assert isinstance(error, DeviceError)
    assert error.code == 77
    fails(TypeError, device.add, 1)
    fails(NotFound, device.call, "nothing")
    fails(NotFound, OPEN, "nobody")
    device.poke()
    device.notify("poke")
    end = time.monotonic() + 10
    while device.pokes() != 2:
        assert time.monotonic() < end
    device.bind_add_anew()
    assert device.add(20, 22) == 42


def buffers(device: Any) -> None:
    assert device.total(bytes(range(100))) == sum(range(100))
    filled = bytearray(300)
    device.count(filled)
    assert filled == bytes(number & 0xFF for number in range(300))
    device.invert(filled)
    assert filled == bytes(~number & 0xFF for number in range(300))
    fails(TypeError, device.invert, b"constant")


def transports(device: Any) -> None:
    for transport in Transport:
        if device.transports & transport:
            device.transport = transport
            assert device.add(2, 40) == 42
            assert device.turn(b"abc") == (b"cba", 3)
    device.transport = None


def interrupt(device: GateDevice, line: bool) -> None:
    rang = device.interrupt(0)
    assert not rang.wait(0.1)
    for _ in range(3):
        device.function.write(0, 0, 4, 1)
        if line:
            # The kernel has masked it; the device must let it go before it may come again.
            assert rang.wait(10)
            device.function.write(0, 4, 4, 1)
            rang.take()
        else:
            assert rang.wait(10)
    assert not rang.wait(0.1)


def listed(device: Any) -> None:
    (found,) = lspci.survey()
    assert found["name"] == "counterpart"
    signatures = {each["signature"] for each in found["calls"]}
    assert signatures == {entry.text for entry in device.calls.values()}
    print(lspci.show(found))


def main() -> None:
    door = sys.argv[1]
    with OPEN("counterpart") as device:
        assert (type(device).__name__ == "CharDevice") == (door == "module")
        calls(device)
        transports(device)
        listed(device)
        if door != "module":
            # Huge pages, which memory for DMA takes.
            Path("/proc/sys/vm/nr_hugepages").write_text("2")
            assert isinstance(device, GateDevice)
            interrupt(device, door == "uio")
        buffers(device)
    print("ok")


main()
