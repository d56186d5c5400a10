# SPDX-License-Identifier: MIT
"""Bulk data: a buffer in guest memory that NumPy reads and writes where it lies."""

from callgate import BufferIn, BufferInOut, Device, DeviceError, call, main, u8, u32


class Checksum(Device):
    """Sums and transforms guest memory without copying it."""

    id = 0x1AF4, 0x10F2

    @call
    def sum32(self, data: BufferIn) -> u32:
        """Return the sum of the buffer's little-endian 32-bit words, modulo 2**32.

        Device error 1: the length is no multiple of 4.
        """
        if len(data) % 4:
            raise DeviceError(1, "the length must be a multiple of 4")
        return int(data.array("<u4").sum(dtype="u8")) & 0xFFFF_FFFF

    @call
    def xor(self, data: BufferInOut, key: u8) -> None:
        """Exclusive-or every byte of the buffer with `key`, in place."""
        array = data.array("u1")
        array ^= key


if __name__ == "__main__":
    main(Checksum)
