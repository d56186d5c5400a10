# SPDX-License-Identifier: MIT
"""The educational device, for the registers and bits that edu.c names."""

from callgate.devices import edu


class Edu(edu.Edu):
    """QEMU's educational device."""
