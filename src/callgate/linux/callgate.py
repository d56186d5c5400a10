# SPDX-License-Identifier: MIT
"""<linux/callgate.h> of callgate.ko for programs (guest/linux/include/uapi), by its own names.

docs/linux.md says what each does.
"""

from ctypes import Array, Structure, c_char, c_uint8, c_uint64
from typing import Annotated

from .ioctl import _IO, _IOR, _IOW, _IOWR, name_ioctls
from .layout import layout, u8, u16, u32, u64

CALLGATE_IOC_MAGIC = 0xC6
CALLGATE_BUFFER_IN = 1 << 0
CALLGATE_BUFFER_OUT = 1 << 1
CALLGATE_TRANSFER_LONG = 1 << 0


@layout
class callgate_info(Structure):
    """What the device is."""

    uuid: Annotated[Array[c_uint8], 16]
    name: Annotated[bytes, c_char * 40]
    device_version: u32
    abi_version: u32
    features: u32
    transports: u32
    entries: u32
    frames: u32
    payload_size: u32
    generation: u32
    timeout_ms: u32
    max_pending: u32


@layout
class callgate_listing(Structure):
    """An entry of the directory."""

    index: u32
    generation: u32
    signature: u64
    text: u64
    text_length: u32
    flags: u16
    arguments: u8
    results: u8
    bound: u8
    reserved: Annotated[Array[c_uint8], 7]
    name: Annotated[bytes, c_char * 40]


@layout
class callgate_handle(Structure):
    """A call, opened by name."""

    name: Annotated[bytes, c_char * 40]
    signature: u64
    handle: u32
    flags: u16
    arguments: u8
    results: u8


@layout
class callgate_buffer(Structure):
    """A buffer argument of a call."""

    address: u64
    length: u32
    slot: u16
    flags: u16


@layout
class callgate_transfer(Structure):
    """A call on its way."""

    handle: u32
    flags: u32
    timeout_ms: u32
    cookie: u32
    status: u32
    arguments: u8
    results: u8
    buffer_count: u16
    code: u64
    buffers: u64
    in_: u64
    in_length: u32
    out_length: u32
    out: u64
    values: Annotated[Array[c_uint64], 12]


CALLGATE_IOC_INFO = _IOR(CALLGATE_IOC_MAGIC, 0x00, callgate_info)
CALLGATE_IOC_LIST = _IOWR(CALLGATE_IOC_MAGIC, 0x01, callgate_listing)
CALLGATE_IOC_OPEN = _IOWR(CALLGATE_IOC_MAGIC, 0x02, callgate_handle)
CALLGATE_IOC_CLOSE = _IO(CALLGATE_IOC_MAGIC, 0x03)
CALLGATE_IOC_CALL = _IOWR(CALLGATE_IOC_MAGIC, 0x04, callgate_transfer)
CALLGATE_IOC_SUBMIT = _IOWR(CALLGATE_IOC_MAGIC, 0x05, callgate_transfer)
CALLGATE_IOC_WAIT = _IOWR(CALLGATE_IOC_MAGIC, 0x06, callgate_transfer)
CALLGATE_IOC_POST = _IOW(CALLGATE_IOC_MAGIC, 0x07, callgate_transfer)
CALLGATE_IOC_NOTIFY = _IO(CALLGATE_IOC_MAGIC, 0x08)

name_ioctls(globals())
