# SPDX-License-Identifier: MIT
"""What the suite's tests work with: a machine of one case, and a driver's door into it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

from callgate.backends.base import backend
from callgate.device import Device
from callgate.driver.device import GateDevice
from callgate.driver.directory import find_gate
from callgate.driver.door import Door
from callgate.driver.frame import Reply
from callgate.driver.pci import PciFunction
from callgate.gate.abi import MAX_REGISTER_VALUES, Transport
from callgate.machine import Machine
from callgate.pci.bus import Place
from callgate.pci.function import Function
from callgate.testing.agent import AgentDoor

ONES = (1 << 64) - 1


@dataclass(frozen=True)
class Case:
    """One machine that the suite runs on."""

    backend: str
    arch: str
    platform: str

    def __str__(self) -> str:
        return f"{self.backend}-{self.arch}-{self.platform}"

    @property
    def is_default(self) -> bool:
        """Whether the platform is its architecture's usual one."""
        return self.platform == backend(self.backend).platforms(self.arch)[0]


def cases_of(name: str) -> list[Case]:
    """All cases of a backend. Raises BackendError when it lacks something on this host."""
    return [
        Case(name, arch, platform)
        for arch in backend(name).architectures
        for platform in backend(name).platforms(arch)
    ]


class Way(NamedTuple):
    """One way to make a call: a transport, and for `hypercall` one of its forms."""

    transport: Transport
    framed: bool

    def __str__(self) -> str:
        form = " (frame)" if self.framed else " (registers)"
        name = str(self.transport.name).lower()
        return name + form if self.transport is Transport.HYPERCALL else name

    def invoke(
        self, device: GateDevice, vector: int, slots: Iterable[int] = (), payload: bytes = b""
    ) -> Reply:
        """`GateDevice.invoke`, this way."""
        values = tuple(slots)
        count = len(values) if self.framed else None
        return device.invoke(vector, values, payload, transport=self.transport, count=count)


@runtime_checkable
class InterruptedDoor(Protocol):
    """A door whose processor takes interrupt messages, and counts them."""

    def message(self, index: int) -> tuple[int, int]:
        """Address and data of message `index`."""

    def messages(self, index: int) -> int:
        """How often it came."""


class Rig:
    """A machine with `devices` in slots 1, 2, ..., and a `door` into it.

    A `with` block closes it.
    """

    def __init__(
        self, case: Case, machine: Machine, door: Door, devices: tuple[Device, ...]
    ) -> None:
        self.case = case
        self.machine = machine
        self.door = door
        self.devices = devices
        self._closing = ExitStack()
        self._closing.enter_context(machine)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.close()

    @property
    def slots(self) -> int:
        """Slots that a hypercall's registers carry (docs/abi.md, 6.3)."""
        return MAX_REGISTER_VALUES * self.machine.board.bits // 64

    @property
    def widths(self) -> tuple[int, ...]:
        """Bytes that one access of this processor can have: in 32-bit code, 8 are two of 4."""
        return (1, 2, 4, 8) if self.machine.board.bits == 64 else (1, 2, 4)

    @property
    def uninterrupted(self) -> str | None:
        """Why the processor takes no interrupt messages; None when it does."""
        return self.machine.backend.uninterrupted

    @property
    def nothing(self) -> int:
        """What a load of 8 bytes gives where nothing answers: all ones on a PCI bus."""
        return ONES

    def function(self, device: Device, *, enable: bool = True) -> PciFunction:
        """The device's PCI function, decoding and bus mastering on unless `enable` is false."""
        function = PciFunction(self.door, self.devices.index(device) + 1 << 3)
        if enable:
            function.enable()
        return function

    def open(self, device: Device, **options: Any) -> GateDevice:
        """The device's gate; options as for `GateDevice`."""
        function = self.function(device, enable=False)
        place = find_gate(function)
        assert place is not None, f"{device} must have a gate"
        return GateDevice(function, place, **options)

    def ways(self, device: GateDevice) -> list[Way]:
        """Every way that the platform offers."""
        offered = device.place.transports
        ways = [Way(each, True) for each in Transport if offered & each]
        if offered & Transport.HYPERCALL:
            ways.insert(0, Way(Transport.HYPERCALL, False))
        return ways

    def plug(self, device: Device, slot: int, number: int) -> PciFunction:
        """Plug one more device in, as function `number` of a slot, and assign all BARs anew."""
        machine = self.machine
        function = Function(
            device,
            memory=machine.memory,
            deliver=machine.system.send,
            set_intx=partial(machine.system.set_intx, Place(slot, number)),
            timers=machine.timers,
            table=machine.table,
            offer=machine.platform.offer,
        )
        self._closing.callback(function.close)
        machine.bus.plug(function, slot, number)
        bars, ports = machine.board.bars, machine.board.ports
        machine.bus.assign(memory=range(bars.base, bars.end), ports=range(ports.base, ports.end))
        return PciFunction(self.door, slot << 3 | number)

    def reset(self) -> None:
        """Reset the machine, and begin anew with what runs in it."""
        self.machine.reset()
        if isinstance(self.door, AgentDoor):
            self.door.restart()


def make_rig(case: Case, guests: Path, *devices: Device, **options: Any) -> Rig:
    """A rig on an in-process machine. Options are those of `Machine`.

    `guests` is where `guest/build.py` puts what it builds. Raises FileNotFoundError if it has not.
    """
    has_processor = backend(case.backend).has_processor
    agent = guests / case.arch / "agent.elf"
    if has_processor and not agent.exists():
        raise FileNotFoundError(
            f"{case.backend}: {agent} must be built first: python guest/build.py"
        )
    machine = Machine(
        *devices,
        on=case.backend,
        arch=case.arch,
        platform=case.platform,
        guest=agent if has_processor else None,
        **options,
    )
    try:
        door: Door = AgentDoor(machine) if has_processor else machine.door
        return Rig(case, machine, door, devices)
    except BaseException:
        machine.close()
        raise
