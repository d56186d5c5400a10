# SPDX-License-Identifier: MIT
"""Layouts and numbers of vfio-user 0.0 (docs/interop/vfio-user.rst; linux/vfio.h where it says so).

All is in the byte order of the host, as the specification has it.

    message    id 2 | command 2 | size 4 | flags 4 | errno 4 | payload ...
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final

MAJOR: Final = 0
MINOR: Final = 0
"""QEMU refuses any other, though the specification allows a server to answer less."""

HEADER = Struct("=HHIII")
TYPE: Final = 0xF
COMMAND: Final = 0
REPLY: Final = 1
NO_REPLY: Final = 1 << 4
ERROR: Final = 1 << 5

MAX_FDS: Final = 16
"""What we accept with one message (`max_msg_fds`)."""
MAX_TRANSFER: Final = 1 << 20
"""Data bytes of one message (`max_data_xfer_size`)."""
MAX_MAPS: Final = 4096
"""DMA maps at one time (`max_dma_maps`)."""
MAX_MESSAGE: Final = MAX_TRANSFER + 4096
"""Bytes of the longest message that we read."""

VERSION_HEAD = Struct("=HH")
DMA_MAP = Struct("=IIQQQ")
"""argsz, flags, offset, address, size"""
DMA_UNMAP = Struct("=IIQQ")
"""argsz, flags, address, size"""
DEVICE_INFO = Struct("=IIII")
"""argsz, flags, num_regions, num_irqs"""
REGION_INFO = Struct("=IIIIQQ")
"""argsz, flags, index, cap_offset, size, offset"""
CAP_HEADER = Struct("=HHI")
"""id, version, next"""
SPARSE_HEAD = Struct("=II")
"""nr_areas, reserved"""
SPARSE_AREA = Struct("=QQ")
"""offset, size"""
IO_FDS = Struct("=IIII")
"""argsz, flags, index, count"""
IO_FD = Struct("=QQIIIIQ")
"""offset, size, fd_index, type, flags, padding, datamatch"""
IRQ_INFO = Struct("=IIII")
"""argsz, flags, index, count"""
IRQ_SET = Struct("=IIIII")
"""argsz, flags, index, start, count"""
REGION_ACCESS = Struct("=QII")
"""offset, region, count"""
WRITE_COUNT = Struct("=Q")
WRITE_ONE = Struct("=QII8s")
"""offset, region, count, data"""
DMA_ACCESS = Struct("=QQ")
"""address, count"""
DMA_WRITTEN = Struct("=QI")
"""address, count: the reply to DMA_WRITE"""


class Command(IntEnum):
    """VFIO_USER_..."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15


def command_name(command: int) -> str:
    """What a command is called, for people."""
    try:
        return Command(command).name
    except ValueError:
        return f"command {command}"


class DmaFlag(IntFlag):
    """Flags of DMA_MAP."""

    READ = 1
    WRITE = 2


class DeviceFlag(IntFlag):
    """VFIO_DEVICE_FLAGS_... (linux/vfio.h)."""

    RESET = 1
    PCI = 2


class RegionFlag(IntFlag):
    """VFIO_REGION_INFO_FLAG_... (linux/vfio.h)."""

    READ = 1
    WRITE = 2
    MMAP = 4
    CAPS = 8


CAP_SPARSE_MMAP: Final = 1
IO_FD_IOEVENTFD: Final = 0
"""VFIO_USER_IO_FD_TYPE_IOEVENTFD"""


class Region(IntEnum):
    """VFIO_PCI_..._REGION_INDEX (linux/vfio.h); 0 to 5 are the BARs."""

    ROM = 6
    CONFIG = 7
    VGA = 8


BARS: Final = 6
REGIONS: Final = 9


class Irq(IntEnum):
    """VFIO_PCI_..._IRQ_INDEX (linux/vfio.h)."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


IRQS: Final = 5


class IrqInfo(IntFlag):
    """VFIO_IRQ_INFO_... (linux/vfio.h)."""

    EVENTFD = 1
    MASKABLE = 2
    AUTOMASKED = 4
    NORESIZE = 8


DATA_NONE: Final = 1 << 0
DATA_BOOL: Final = 1 << 1
DATA_EVENTFD: Final = 1 << 2
ACTION_MASK: Final = 1 << 3
ACTION_UNMASK: Final = 1 << 4
ACTION_TRIGGER: Final = 1 << 5
"""VFIO_IRQ_SET_... (linux/vfio.h): one DATA and one ACTION."""
