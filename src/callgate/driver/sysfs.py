# SPDX-License-Identifier: MIT
"""A door for programs in a Linux guest, with no module: PCI functions as sysfs has them.

    /sys/bus/pci/devices/0000:00:01.0/
        config          configuration space
        resource        where each BAR is, as the kernel sees it
        resource0 ...   a BAR: memory is mapped into the process, I/O ports are read and written
        driver          who has it: a function with a driver of its own is left alone

It takes root. Memory for DMA is a huge page, which stays where it is; behind an IOMMU a physical
address means nothing to the device, so buffers and messages need the function bound to vfio-pci.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Literal

from callgate.driver.door import DmaMemory
from callgate.driver.pci import Interrupt, PciFunction
from callgate.driver.uio import UioInterrupt
from callgate.errors import BackendError, NotFound
from callgate.gate.abi import Instruction, Transport, round_up
from callgate.gate.fence import WEAK, fence
from callgate.linux.words import words

DEVICES = Path("/sys/bus/pci/devices")
_PAGE_TABLE = Path("/proc/self/pagemap")
_MEMORY = Path("/proc/meminfo")
_BARS = 6
_IO = 0x100
"""A resource's flag in the kernel: I/O ports (IORESOURCE_IO)."""
_MAP_HUGETLB = 0x40000
_PRESENT, _FRAME_BITS = 1 << 63, (1 << 55) - 1
_ALIGN = 64
_CODES: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
_HARMLESS = {None, "uio_pci_generic", "pci-stub"}
"""Drivers that leave the device to programs."""


@dataclass
class _Bar:
    """A BAR, opened: memory is mapped, ports are a file."""

    start: int
    end: int
    file: int = -1
    map: mmap.mmap | None = None
    views: dict[int, memoryview] = field(default_factory=dict)
    address: int = 0
    """Of the map in this process."""

    def close(self) -> None:
        for view in self.views.values():
            view.release()
        if self.map is not None:
            self.map.close()
        if self.file >= 0:
            os.close(self.file)


@dataclass
class _Arena:
    """A huge page, of which memory for DMA is cut. None is given back: drivers are short-lived."""

    gpa: int
    memory: memoryview
    used: int = 0


class SysfsDoor:
    """See `callgate.driver.Door`. Functions are domain << 16 | bus << 8 | device << 3 | function.

    Raises BackendError where there is no PCI bus in sysfs, or it cannot be used from here.
    """

    apart = True
    register_slots = 0

    def __init__(self, devices: Path | None = None) -> None:
        self._devices = devices = devices or DEVICES
        if not devices.is_dir():
            raise BackendError(f"{devices} must be there: this kernel has no PCI bus")
        if os.geteuid() != 0:
            raise BackendError("PCI devices without a driver take root, or callgate_pci.ko")
        x86 = not WEAK
        self.transports = Transport.POLLED | Transport.MMIO | Transport.PIO * x86
        self._words = words()
        self._lock = Lock()
        self._configs: dict[int, int] = {}
        self._bars: dict[str, list[_Bar]] = {"memory": [], "io": []}
        self._opened: set[int] = set()
        self._arenas: list[_Arena] = []

    def close(self) -> None:
        """Unmap and close everything. What was mapped or allocated must not be used any more."""
        for bars in self._bars.values():
            while bars:
                bars.pop().close()
        while self._configs:
            os.close(self._configs.popitem()[1])
        self._opened.clear()

    # --- functions and configuration space -------------------------------------------------------

    def functions(self) -> Iterator[int]:
        """See `Door`: those that no driver has."""
        for folder in sorted(self._devices.iterdir()):
            if self.driver(folder) in _HARMLESS:
                domain, bus, rest = folder.name.split(":")
                slot, _, number = rest.partition(".")
                address = int(domain, 16) << 16 | int(bus, 16) << 8 | int(slot, 16) << 3
                yield address | int(number)

    @staticmethod
    def driver(folder: Path) -> str | None:
        """The name of the driver that has a function."""
        link = folder / "driver"
        return os.path.basename(os.readlink(link)) if link.is_symlink() else None

    def folder(self, function: int) -> Path:
        """Where sysfs has a function."""
        slot = f"{function >> 3 & 0x1F:02x}.{function & 7}"
        return self._devices / f"{function >> 16:04x}:{function >> 8 & 0xFF:02x}:{slot}"

    def config_read(self, function: int, offset: int, size: int) -> int:
        """See `Door`. All ones where a function has gone."""
        data = os.pread(self._config(function), size, offset)
        return int.from_bytes(data, "little") if len(data) == size else (1 << 8 * size) - 1

    def config_write(self, function: int, offset: int, size: int, value: int) -> None:
        """See `Door`."""
        os.pwrite(self._config(function), value.to_bytes(size, "little"), offset)

    def _config(self, function: int) -> int:
        file = self._configs.get(function)
        if file is None:
            path = self.folder(function) / "config"
            try:
                file = self._configs[function] = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise NotFound(f"{path} must be there: the function has gone") from error
        return file

    # --- BARs ------------------------------------------------------------------------------------

    def _bar(self, kind: str, address: int, size: int) -> _Bar:
        """The BAR that holds an access. Raises NotFound."""
        for _ in range(2):
            for bar in self._bars[kind]:
                if bar.start <= address and address + size <= bar.end:
                    return bar
            with self._lock:
                for function in self._configs.keys() - self._opened:
                    self._open_bars(function)
        raise NotFound(f"{address:#x} must lie in a BAR of a function that was opened")

    def _open_bars(self, function: int) -> None:
        """Open all BARs of a function; addresses are those in its configuration space."""
        self._opened.add(function)
        folder = self.folder(function)
        lines = (folder / "resource").read_text().splitlines()[:_BARS]
        for index, line in enumerate(lines):
            first, last, flags = (int(word, 16) for word in line.split())
            path = folder / f"resource{index}"
            if not last or not path.exists():
                continue
            place = PciFunction(self, function).bar(index)
            bar = _Bar(place.address, place.address + last - first + 1)
            bar.file = os.open(path, os.O_RDWR | os.O_SYNC | os.O_CLOEXEC)
            if not flags & _IO:
                bar.map = mmap.mmap(bar.file, max(last - first + 1, mmap.PAGESIZE))
                whole = memoryview(bar.map)
                bar.views = {size: whole.cast(code) for size, code in _CODES.items()}
                bar.address = _address(bar.map)
            self._bars[place.kind].append(bar)

    def read(self, address: int, size: int) -> int:
        """See `Door`: one load. Raises NotFound outside of BARs of functions that were opened."""
        bar = self._bar("memory", address, size)
        if self._words is not None:
            return self._words.loads[size](bar.address + address - bar.start)
        value: int = bar.views[size][(address - bar.start) // size]
        return value

    def write(self, address: int, size: int, value: int) -> None:
        """See `Door`: one store. Raises NotFound as `read`."""
        bar = self._bar("memory", address, size)
        if self._words is not None:
            self._words.stores[size](bar.address + address - bar.start, value)
            return
        if WEAK:
            fence()
        bar.views[size][(address - bar.start) // size] = value

    def io_read(self, port: int, size: int) -> int:
        """See `Door`: a system call."""
        bar = self._bar("io", port, size)
        return int.from_bytes(os.pread(bar.file, size, port - bar.start), "little")

    def io_write(self, port: int, size: int, value: int) -> None:
        """See `Door`: a system call."""
        bar = self._bar("io", port, size)
        os.pwrite(bar.file, value.to_bytes(size, "little"), port - bar.start)

    def map(self, address: int, length: int) -> memoryview | None:
        """See `Door`: a BAR's memory."""
        bar = self._bar("memory", address, length)
        return bar.views[1][address - bar.start :][:length]

    def hypercall(
        self, instruction: Instruction, selector: int, vector: int, slots: tuple[int, ...]
    ) -> tuple[int, tuple[int, ...]]:
        """Raises BackendError: hypercalls are for the kernel."""
        raise BackendError("A program cannot make hypercalls: choose polled, pio or mmio")

    # --- memory for DMA --------------------------------------------------------------------------

    def allocate(self, length: int) -> DmaMemory:
        """See `Door`: of a huge page, so not more than that."""
        wanted = round_up(max(length, 1), _ALIGN)
        with self._lock:
            arena = next((each for each in self._arenas if wanted <= _room(each)), None)
            if arena is None:
                arena = _Arena(*_huge_page(wanted))
                self._arenas.append(arena)
            gpa = arena.gpa + arena.used
            arena.used += wanted
        return DmaMemory(gpa, length)

    def _memory(self, gpa: int, length: int) -> memoryview:
        for arena in self._arenas:
            start = gpa - arena.gpa
            if start >= 0 and start + length <= len(arena.memory):
                return arena.memory[start : start + length]
        raise NotFound(f"{gpa:#x} must be memory that was allocated here")

    def load(self, gpa: int, length: int) -> bytes:
        """See `Door`: of memory that was allocated here."""
        return bytes(self._memory(gpa, length))

    def store(self, gpa: int, data: bytes) -> None:
        """See `Door`: to memory that was allocated here."""
        self._memory(gpa, len(data))[:] = data

    # --- interrupts ------------------------------------------------------------------------------

    def interrupt(self, function: int, index: int) -> Interrupt | None:
        """See `Door`: its INTx line, for all, where uio_pci_generic has it."""
        found = sorted((self.folder(function) / "uio").glob("uio*"))
        return (
            UioInterrupt(Path("/dev") / found[0].name, PciFunction(self, function))
            if found
            else None
        )

    def pause(self, seconds: float) -> None:
        """See `Door`."""
        time.sleep(seconds)


def _room(arena: _Arena) -> int:
    return len(arena.memory) - arena.used


def _huge_page(wanted: int) -> tuple[int, memoryview]:
    """A huge page of at least `wanted` bytes: its physical address, and the memory.

    Raises MemoryError, with what to do.
    """
    sizes = [line for line in _MEMORY.read_text().splitlines() if line.startswith("Hugepagesize:")]
    if not sizes:
        raise MemoryError("Memory for DMA must be huge pages, which this kernel has not")
    size = int(sizes[0].split()[1]) << 10
    if wanted > size:
        raise MemoryError(f"Memory for DMA must be {size} bytes at most, not {wanted}")
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _MAP_HUGETLB
    try:
        memory = mmap.mmap(-1, size, flags)
    except OSError as error:
        raise MemoryError(
            "A huge page must be free for DMA: echo 4 > /proc/sys/vm/nr_hugepages"
        ) from error
    view = memoryview(memory)
    view[0] = 0  # It is there from now on.
    address = _address(memory)
    with _PAGE_TABLE.open("rb") as table:
        table.seek(address // mmap.PAGESIZE * 8)
        (entry,) = struct.unpack("<Q", table.read(8))
    frame = entry & _FRAME_BITS
    if not entry & _PRESENT or not frame:
        raise MemoryError("Physical addresses of memory must be readable: it takes CAP_SYS_ADMIN")
    return frame * mmap.PAGESIZE, view


def _address(memory: mmap.mmap) -> int:
    import ctypes  # here alone

    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
