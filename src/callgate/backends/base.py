# SPDX-License-Identifier: MIT
"""The base of all backends and their registry: the guide to writing one.

A backend runs the guest's instructions and reports its traps. All else is in the `System` that it
is given: memory, PCI bus, console, timers, calls.

    guest's load, store, in, out   ->  System.mem_read, mem_write, io_read, io_write
    guest's hypercall              ->  System.router.call
    a BAR or RAM came or went      ->  Backend.remap
    interrupt message to the CPU   ->  Backend.interrupt
    interrupt message to RAM       ->  Backend.wake
    interrupt line (INTx)          ->  Backend.set_line
    the guest's end, the console   ->  Backend.stop

To write one, subclass `Backend` in a module of its own and list it in `_BACKENDS` below, or, in
another package, as an entry point of the group `callgate.backends`. The module is imported when its
backend is asked for, and not before: it may import what few people have installed. Then run the
conformance suite on it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import ClassVar

from callgate.backends.platform import platforms
from callgate.backends.system import System
from callgate.errors import BackendError

ENTRY_POINTS = "callgate.backends"
_BACKENDS = {
    "loopback": "callgate.backends.loopback:Loopback",
    "unicorn": "callgate.backends.unicorn.backend:Unicorn",
    "kvm": "callgate.backends.kvm.backend:Kvm",
}
_WHOLE_VMM = {"qemu": "callgate run --on qemu, or callgate.backends.qemu.guest.Guest"}
"""Those that own the bus and all else: no `System` of ours is around them."""


@dataclass
class Budget:
    """How long a guest may run. None: without limit."""

    instructions: int | None = None
    """Instructions left; the backend counts them down."""
    deadline: float | None = None
    """When time is up, by `time.monotonic`."""


@dataclass(frozen=True)
class Linux:
    """A Linux kernel to boot: its image and initramfs, and its command line."""

    image: bytes
    initrd: bytes = b""
    line: str = ""


class Backend(ABC):
    """Runs a guest's processor in a `System`; one for each machine.

    The machine calls `reset` and `run` from one thread at a time, and `close` when neither runs.
    All other methods may be called from any thread, also from inside one of the backend's own traps
    while `run` is on the stack.
    """

    name: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]]
    has_processor: ClassVar[bool] = True
    """False: nothing runs a guest program, and the driver is Python in this process."""

    has_lines: ClassVar[bool] = False
    """Whether there is an interrupt controller: `set_line` does something then."""

    def __init__(self, system: System) -> None:
        self.system = system

    @classmethod
    def lacks(cls) -> str | None:
        """What this host lacks for the backend, with the remedy; None when it lacks nothing."""
        return None

    @classmethod
    def platforms(cls, arch: str) -> list[str]:
        """Names of the platforms that it can be on this host, for guests of an architecture; the
        first is a machine's that was given none."""
        return platforms(arch)

    @classmethod
    def most_cpus(cls) -> int:
        """How many processors a machine can have."""
        return 1

    @abstractmethod
    def reset(self, entry: int) -> None:
        """Put the processor into its state at power-on, about to execute at `entry`."""

    def boot(self, linux: Linux) -> None:
        """Load Linux into memory, and be about to execute it, as `reset` is a program.

        Raises BackendError where there is no board that Linux knows, LoadError for what is no such
        kernel or does not fit into memory.
        """
        raise BackendError(f"{self.name} has no board that Linux could boot on: use kvm or qemu")

    @abstractmethod
    def run(self, budget: Budget) -> None:
        """Run the guest until `stop` is called.

        Runs the system's timers when they are due, and sleeps while the guest waits. Raises
        `BudgetError` when the budget is used up and `GuestError` when the guest cannot go on; an
        exception that left a trap comes out here. The guest can be run on afterwards.
        """

    @abstractmethod
    def stop(self) -> None:
        """Let `run` return soon, or at once when it is called next."""

    @abstractmethod
    def remap(self) -> None:
        """Follow `system.mappings()` and `system.memory.slots`, which changed.

        When the guest caused it by a configuration access, the change holds for its very next
        instruction.
        """

    @abstractmethod
    def registers(self) -> dict[str, int]:
        """The processor's registers by the names of its manual, the program counter first."""

    @property
    def uninterrupted(self) -> str | None:
        """Why no interrupt enters a handler of the guest's; None: they do."""
        return None

    def set_line(self, gsi: int, level: bool) -> None:
        """Set the level of an interrupt line, where `has_lines`."""

    def interrupt(self, address: int, data: int) -> None:
        """Deliver an interrupt message that goes to the processor (on x86, to its local APIC)."""

    def wake(self) -> None:
        """Let a guest that waits look at its memory: an interrupt message was stored there."""

    def close(self) -> None:
        """Give back the processor and everything that was mapped. Harmless when repeated."""


def backends() -> list[str]:
    """Names of the backends that are known, those of other packages included."""
    return sorted({*_BACKENDS, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def backend(name: str) -> type[Backend]:
    """Return the backend class of this name. Raises `BackendError`, which says what is missing."""
    try:
        found = _load(name)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "callgate"):
            raise
        raise BackendError(
            f"{name}: the package {package} is not installed: pip install {package}"
        ) from error
    lacking = found.lacks()
    if lacking is not None:
        raise BackendError(f"{name}: {lacking}")
    return found


def _load(name: str) -> type[Backend]:
    if name in _BACKENDS:
        module, _, attribute = _BACKENDS[name].partition(":")
        found = getattr(import_module(module), attribute)
    else:
        points = list(entry_points(group=ENTRY_POINTS, name=name))
        if name in _WHOLE_VMM:
            raise BackendError(f"{name} is a machine of its own, to be used by {_WHOLE_VMM[name]}")
        if not points:
            names = ", ".join(sorted({*backends(), *_WHOLE_VMM}))
            raise BackendError(f"The backend must be one of {names}, not {name!r}")
        found = points[0].load()
    if not (isinstance(found, type) and issubclass(found, Backend)):
        raise BackendError(
            f"{name}: {found!r} must be a subclass of callgate.backends.base.Backend"
        )
    return found
