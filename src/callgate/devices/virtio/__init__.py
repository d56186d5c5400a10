# SPDX-License-Identifier: MIT
"""Virtio devices on the PCI bus, after the Virtual I/O Device (VIRTIO) specification 1.2.

`transport` is the PCI function that a driver finds, `queue` the split virtqueue, `capability` where
config space says that the structures are, `worker` the thread of a device whose requests may wait.
A device is a subclass of `Virtio` that says what a request does. Section numbers in this folder are
that specification's, where no other is named.
"""

from __future__ import annotations

from callgate.devices.virtio.queue import Broken, Piece, Queue, Request
from callgate.devices.virtio.transport import CONFIG, Virtio

__all__ = ["CONFIG", "Broken", "Piece", "Queue", "Request", "Virtio"]
