# SPDX-License-Identifier: MIT
"""`--read` and `--write` of `callgate probe`: what is to be accessed, and how it is said."""

from __future__ import annotations

import re
from dataclasses import dataclass

from callgate.backends.vfio_user import protocol as p
from callgate.backends.vfio_user.client import Client
from callgate.backends.vfio_user.protocol import Region
from callgate.cli.probe_survey import region_name
from callgate.errors import BackendError
from callgate.pci.bar import SIZES

READ_FORM = "REGION:OFFSET[:SIZE[:COUNT]]"
WRITE_FORM = "REGION:OFFSET:SIZE=VALUE"
_NAMED = {"rom": int(Region.ROM), "config": int(Region.CONFIG), "vga": int(Region.VGA)}
_U32, _U64 = (1 << 32) - 1, (1 << 64) - 1


@dataclass(frozen=True)
class Access:
    """`count` reads of `size` bytes one behind the other, or one write of `value`."""

    region: int
    offset: int
    size: int
    count: int = 1
    value: int | None = None


@dataclass(frozen=True)
class Done:
    """One access that was carried out; of a read `data` is what came, of a write what went."""

    kind: str
    region: int
    offset: int
    data: bytes

    @property
    def text(self) -> str:
        """The data: a number, as a device of PCI means it, where the size is a register's."""
        if len(self.data) in SIZES:
            return f"0x{int.from_bytes(self.data, 'little'):0{2 * len(self.data)}x}"
        return self.data.hex(" ")

    def __str__(self) -> str:
        arrow = "=" if self.kind == "read" else "<-"
        return f"{region_name(self.region)} + {self.offset:#x} {arrow} {self.text}"


def parse_read(text: str) -> Access:
    """REGION:OFFSET[:SIZE[:COUNT]]. Raises BackendError."""
    region, *numbers = text.split(":")
    if not 1 <= len(numbers) <= 3:
        raise BackendError(f"A read must be {READ_FORM}, not {text!r}")
    offset, size, count = (*(_number(text, one) for one in numbers), *(4, 1)[len(numbers) - 1 :])
    return _checked(text, Access(_region(text, region), offset, size, count))


def parse_write(text: str) -> Access:
    """REGION:OFFSET:SIZE=VALUE. Raises BackendError."""
    place, equals, value = text.partition("=")
    region, *numbers = place.split(":")
    if not equals or len(numbers) != 2:
        raise BackendError(f"A write must be {WRITE_FORM}, not {text!r}")
    offset, size = (_number(text, one) for one in numbers)
    access = _checked(text, Access(_region(text, region), offset, size, value=_number(text, value)))
    assert access.value is not None
    if access.value.bit_length() > 8 * size:
        raise BackendError(f"The value of {text!r} must fit {size} bytes")
    return access


def parse_place(text: str) -> tuple[int, int, int]:
    """REGION:OFFSET[:SIZE]: region, offset and size. Raises BackendError."""
    region, *numbers = text.split(":")
    if not 1 <= len(numbers) <= 2:
        raise BackendError(f"A place must be REGION:OFFSET[:SIZE], not {text!r}")
    offset, size = (*(_number(text, one) for one in numbers), *(4,)[len(numbers) - 1 :])
    access = _checked(text, Access(_region(text, region), offset, size))
    return access.region, access.offset, access.size


def carry_out(client: Client, access: Access, piece: int) -> Done:
    """The `piece`th access of it. Raises what the client raises."""
    if access.value is not None:
        data = access.value.to_bytes(access.size, "little")
        client.write(access.region, access.offset, data)
        return Done("write", access.region, access.offset, data)
    offset = access.offset + piece * access.size
    return Done("read", access.region, offset, client.read(access.region, offset, access.size))


def _region(text: str, name: str) -> int:
    found = re.fullmatch(r"bar([0-5])", name.lower())
    if found:
        return int(found[1])
    if name.lower() in _NAMED:
        return _NAMED[name.lower()]
    try:
        number = int(name, 0)
    except ValueError:
        number = -1
    if not 0 <= number <= _U32:
        raise BackendError(
            f"The region of {text!r} must be bar0 to bar5, rom, config, vga or a number, "
            f"not {name!r}"
        )
    return number


def _number(text: str, number: str) -> int:
    try:
        value = int(number, 0)
    except ValueError:
        value = -1
    if value < 0:
        raise BackendError(f"{number!r} of {text!r} must be a number, as 16 or 0x10")
    return value


def _checked(text: str, access: Access) -> Access:
    if not 1 <= access.size <= p.MAX_TRANSFER:
        raise BackendError(f"The size of {text!r} must be 1 to {p.MAX_TRANSFER} bytes")
    if access.count < 1:
        raise BackendError(f"The count of {text!r} must be 1 or more")
    if access.offset + access.size * access.count - 1 > _U64:
        raise BackendError(f"{text!r} must end below 2^64")
    return access
