# SPDX-License-Identifier: MIT
"""The suite on a stock QEMU: the same guest program, the devices behind vfio-user.

QEMU owns the bus, the configuration mechanism and part of each function's configuration space, so
what the suite says of these is not callgate's to answer: `ELSEWHERE` names those tests, with what
is different.
"""

from __future__ import annotations

import time
from contextlib import suppress
from types import TracebackType
from typing import Any, ClassVar, Self

import pytest

from callgate.backends.board import BOARDS, Board
from callgate.backends.platform import Platform
from callgate.backends.platform import platform as find_platform
from callgate.backends.qemu.find import find_qemu
from callgate.backends.qemu.guest import Guest
from callgate.device import Device
from callgate.driver.pci import PciFunction
from callgate.errors import BackendError
from callgate.gate.vectors import VectorTable
from callgate.memory import GuestMemory
from callgate.pci.bus import CONFIG_PORTS
from callgate.pci.function import Function
from callgate.testing.agent import AgentDoor
from callgate.testing.conformance.rig import Case, Rig
from callgate.testing.conformance.suite import ConformanceSuite

_BARS = 6
_BAR0 = 0x10
_REVISION = 0x08
_CONFIG_PORTS = range(CONFIG_PORTS, CONFIG_PORTS + 8)
_ARRIVES = 0.02
"""Seconds after which an interrupt that a test does not expect would have come."""


class _OnlyCase(Case):
    """Of an architecture that has but one."""

    @property
    def is_default(self) -> bool:
        return True


class QemuMachine:
    """A `Guest` in QEMU, with what the suite asks of a machine."""

    def __init__(self, guest: Guest, platform: Platform) -> None:
        self.guest = guest
        self.board: Board = BOARDS[guest.arch]
        self.platform = platform
        self.functions: tuple[Function, ...] = tuple(each.function for each in guest.servers)
        self.exchange = guest.exchange

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def memory(self) -> GuestMemory:
        """The guest's memory, as the first device has it."""
        return self.guest.servers[0].memory

    def close(self) -> None:
        """End QEMU."""
        self.guest.close()


class _QemuDoor(AgentDoor):
    """A write to a BAR is posted, and an interrupt goes from the device to QEMU by an eventfd: both
    arrive a little later. A test asks the device itself what a write did, so a read follows each.
    """

    def __init__(self, machine: Any) -> None:
        super().__init__(machine)
        self.load = self._load

    def write(self, address: int, size: int, value: int) -> None:
        """See `Door`."""
        super().write(address, size, value)
        self._flush()

    def io_write(self, port: int, size: int, value: int) -> None:
        """See `Door`."""
        super().io_write(port, size, value)
        if port not in _CONFIG_PORTS:  # These QEMU answers at once, and `_flush` uses them.
            self._flush()

    def _flush(self) -> None:
        for slot in range(1, 1 + len(self._machine.functions)):
            self.config_read(slot << 3, _REVISION, 1)

    def messages(self, index: int) -> int:
        """See `InterruptedDoor`."""
        time.sleep(_ARRIVES)
        return super().messages(index)

    def _load(self, gpa: int, length: int) -> bytes:
        time.sleep(_ARRIVES)
        return self._machine.memory.read(gpa, length)


class _QemuRig(Rig):
    @property
    def uninterrupted(self) -> None:
        """See `Rig`."""

    @property
    def nothing(self) -> int:
        """See `Rig`; QEMU's q35 gives 0 for memory."""
        return 0 if self.machine.board.is_x86 else super().nothing


class QemuSuite(ConformanceSuite):
    """Subclass it, in a test module, with a name that pytest collects."""

    backends: ClassVar[tuple[str, ...] | None] = ("qemu",)
    architectures: ClassVar[tuple[str, ...]] = ("x86_64", "aarch64", "riscv64")
    ELSEWHERE: ClassVar[dict[str, str]] = {
        **dict.fromkeys(
            (
                "test_a_reset_revokes_everything",
                "test_a_reset_frees_frames_and_forgets_features",
                "test_after_a_reset_nothing_decodes",
            ),
            "qemu: the VMM resets a function (DEVICE_RESET), not the host",
        ),
        **dict.fromkeys(
            ("test_functions_of_one_slot_are_apart", "test_the_bus_shows_who_is_there"),
            "qemu: the bus is QEMU's, with functions of its own",
        ),
        **dict.fromkeys(
            (
                "test_the_table_holds_what_was_written",
                "test_a_masked_entry_is_pending",
                "test_the_functions_mask",
                "test_without_bus_mastering_a_message_waits",
            ),
            "qemu: MSI-X table, masks and what waits behind them are QEMU's",
        ),
        "test_msi_pending_bits": "qemu: the pending bits that a guest reads are QEMU's",
        "test_an_access_that_straddles": "qemu: QEMU splits accesses that are not aligned",
        "test_wide_bars_reach_above_4_gib": "qemu: the agent reaches the first 4 GiB only",
    }
    """Tests that do not concern this backend, by name, each with the reason."""

    def cases(self, name: str) -> list[Case]:
        """One for each architecture that a QEMU is here for."""
        found: list[Case] = []
        for arch in self.architectures:
            with suppress(BackendError):
                find_qemu(arch)
                found.append(_OnlyCase(name, arch, "native"))
        if not found:
            find_qemu(self.architectures[0])
        return found

    @pytest.fixture(autouse=True)
    def _concerned(self, request: pytest.FixtureRequest) -> None:
        reason = self.ELSEWHERE.get(request.node.originalname)
        if reason is not None:
            pytest.skip(reason)

    def make_rig(self, case: Case, *devices: Device, **options: Any) -> Rig:
        """A rig on QEMU, with BARs assigned as firmware does."""
        agent = self.guests / case.arch / "agent.elf"
        if not agent.exists():
            pytest.skip(f"qemu: {agent} must be built first: python guest/build.py")
        clock = options.pop("clock", time.monotonic)
        table = VectorTable(clock=clock)
        guest = Guest(*devices, arch=case.arch, guest=agent, table=table, **options)
        try:
            machine: Any = QemuMachine(guest, find_platform("native", case.arch))
            rig = _QemuRig(case, machine, _QemuDoor(machine), devices)
            _assign(rig)
            return rig
        except BaseException:
            guest.close()
            raise


def _assign(rig: Rig) -> None:
    """Give each BAR that has none an address, as firmware does; x86 has firmware that did."""
    bars, ports = rig.machine.board.bars.base, rig.machine.board.ports.base
    for device in rig.devices:
        function = PciFunction(rig.door, rig.devices.index(device) + 1 << 3)
        index = 0
        while index < _BARS:
            at = _BAR0 + 4 * index
            low = function.config(at, 4)
            wide = not low & 1 and low & 6 == 4
            function.set_config(at, 4, 0xFFFF_FFFF)
            mask = function.config(at, 4) & ~(3 if low & 1 else 15)
            function.set_config(at, 4, low)
            size = (~mask & 0xFFFF_FFFF) + 1
            index += 2 if wide else 1
            if not mask or low & mask:
                continue
            if low & 1:
                size &= 0xFFFF
                ports = (ports + size - 1) & -size
                function.set_config(at, 4, ports)
                ports += size
            else:
                bars = (bars + size - 1) & -size
                function.set_config(at, 4, bars)
                if wide:
                    function.set_config(at + 4, 4, 0)
                bars += size
