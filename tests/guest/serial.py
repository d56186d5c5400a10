# SPDX-License-Identifier: MIT
"""The serial port, for the registers and bits that serial.c names."""

from callgate.devices import serial


class Serial(serial.Serial):
    """A 16550A serial port."""
