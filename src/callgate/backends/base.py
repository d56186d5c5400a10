# SPDX-License-Identifier: MIT
"""The base of all backends, their registry, and the platforms; the guide to writing a backend.

A backend runs the guest's instructions and reports its traps. All else is the `System` that it is
given: memory, PCI bus, console, calls. The way of a guest's access:

    guest's load, store, in, out  ->  System.mem_read, mem_write, io_read, io_write
    guest's hypercall             ->  System.router.call
    MSI-X message to the CPU      <-  Backend.interrupt
    the guest moved a BAR         <-  Backend.remap

To write one, subclass `Backend` in a module of its own and list it in `_BACKENDS` below, or, outside
this package, as an entry point of the group `callgate.backends`. A module is imported when its backend
is asked for, and not before; so it may import what few people have installed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, ClassVar

from callgate.errors import BackendError
from callgate.gate.abi import Instruction, Transport

if TYPE_CHECKING:
    from callgate.backends.system import System

_BACKENDS = {
    "loopback": "callgate.backends.loopback:Loopback",
    "unicorn": "callgate.backends.unicorn:Unicorn",
}
ENTRY_POINTS = "callgate.backends"


@dataclass(frozen=True)
class Offer:
    """What a platform offers a guest that wants to call: content of the PCI capability."""

    transports: Transport
    instruction: Instruction = Instruction.NONE
    selector: int = 0


@dataclass(frozen=True)
class Platform:
    """What the guest takes the machine for: who traps its hypercalls and what CPUID says."""

    name: str
    architectures: tuple[str, ...]
    offer: Offer
    signature: bytes = b""
    """The 12 bytes of CPUID leaf 0x40000000 on x86; empty: CPUID denies a hypervisor."""


_PLAIN = Transport.PIO | Transport.MMIO | Transport.POLLED
_WITH_HYPERCALL = _PLAIN | Transport.HYPERCALL

PLATFORMS = {
    platform.name: platform
    for platform in (
        Platform(
            "kvm-intel",
            ("x86_64", "i386"),
            Offer(_WITH_HYPERCALL, Instruction.VMCALL),
            b"KVMKVMKVM\0\0\0",
        ),
        Platform(
            "kvm-amd",
            ("x86_64", "i386"),
            Offer(_WITH_HYPERCALL, Instruction.VMMCALL),
            b"KVMKVMKVM\0\0\0",
        ),
        # lguest patched its guests and had no CPUID leaf; the name is what they would look for.
        Platform("lguest", ("i386",), Offer(_WITH_HYPERCALL, Instruction.INT_1F), b"lguestlguest"),
        Platform("smccc", ("aarch64",), Offer(_WITH_HYPERCALL, Instruction.HVC, 0xC600_CA11)),
        Platform("sbi", ("riscv64",), Offer(_WITH_HYPERCALL, Instruction.ECALL, 0x0800_CA11)),
        Platform("native", ("x86_64", "i386", "aarch64", "riscv64"), Offer(_PLAIN)),
    )
}
"""By name; the first that knows an architecture is that architecture's default."""


def platform(name: str | None, arch: str) -> Platform:
    """The platform `name`, or the default of `arch`. Raises `BackendError`."""
    fitting = [each for each in PLATFORMS.values() if arch in each.architectures]
    if name is None:
        return fitting[0]
    for each in fitting:
        if each.name == name:
            return each
    names = ", ".join(each.name for each in fitting)
    raise BackendError(f"The platform of an {arch} machine must be one of {names}, not {name!r}")


@dataclass
class Budget:
    """How long a guest may run. A backend counts `instructions` down, as far as it can count."""

    instructions: int | None = None
    """Instructions left."""
    deadline: float | None = None
    """When the time is up, by `time.monotonic`."""


class Backend(ABC):
    """Runs a guest's processor against a `System`. One for each run of a machine; not shared.

    A backend implements `reset`, `run`, `stop`, `remap` and `registers`, and `interrupt` where an
    interrupt message can reach the processor. It owns the processor and what it mapped, and gives
    both back in `close`. It may assume that all but `stop` and `interrupt` are called by the thread
    that called `run`, if not inside one of its own traps.
    """

    name: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]]
    has_processor: ClassVar[bool] = True
    """False: no guest program can run; the driver is Python, in this process."""

    def __init__(self, system: System) -> None:
        self.system = system

    @classmethod
    def lacks(cls) -> str | None:
        """What this machine lacks to run the backend, and the remedy; None when nothing."""
        return None

    @abstractmethod
    def reset(self, entry: int) -> None:
        """Put the processor into its state at power-on, as docs/backends.md gives it, at `entry`."""

    @abstractmethod
    def run(self, budget: Budget) -> None:
        """Run the guest until it ended (`system.exit_code`), or `stop` was called.

        Runs device timers when due, and sleeps while the guest waits for an interrupt. Raises
        `BudgetError` when the budget is used up, `GuestError` when the guest cannot go on, and what a
        trap raised. After it returned or raised `BudgetError` the guest can be run on.
        """

    @abstractmethod
    def stop(self) -> None:
        """Let `run` return soon, or at once when it is called next. From any thread."""

    @abstractmethod
    def remap(self) -> None:
        """Follow `system.bus.mappings()`, which changed: before the guest's next instruction."""

    @abstractmethod
    def registers(self) -> dict[str, int]:
        """The processor's registers by their names in its manual, `pc` first, for reports."""

    def interrupt(self, vector: int) -> None:
        """Raise the interrupt `vector` of the processor. From any thread."""

    def close(self) -> None:
        """Give back the processor and all mappings. Harmless when repeated."""


def backends() -> list[str]:
    """Names of the backends that are known, installed ones of other packages included."""
    return sorted({*_BACKENDS, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def backend(name: str) -> type[Backend]:
    """The backend class of this name, which this machine can run. Raises `BackendError`."""
    found = _load(name)
    lacking = found.lacks()
    if lacking is not None:
        raise BackendError(f"{name}: {lacking}")
    return found


def _load(name: str) -> type[Backend]:
    if name in _BACKENDS:
        module, _, attribute = _BACKENDS[name].partition(":")
        found = getattr(import_module(module), attribute)
    else:
        points = entry_points(group=ENTRY_POINTS, name=name)
        if not points:
            raise BackendError(f"The backend must be one of {', '.join(backends())}, not {name!r}")
        found = next(iter(points)).load()
    if not (isinstance(found, type) and issubclass(found, Backend)):
        raise BackendError(f"{name}: {found!r} is not a subclass of callgate.backends.base.Backend")
    return found
