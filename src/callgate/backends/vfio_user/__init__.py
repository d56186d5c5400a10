# SPDX-License-Identifier: MIT
"""vfio-user: a device for a VMM that owns the guest, over a UNIX socket.

The words and numbers are those of QEMU's docs/interop/vfio-user.rst and of linux/vfio.h.

    protocol.py     layouts and numbers
    channel.py      messages over one socket, requests in both directions
    memory.py       DMA maps: the guest's memory, as far as the client shares it
    interrupts.py   eventfds, masks and pending interrupts
    loop.py         timers, and the eventfds that the client signals
    session.py      what each message does
    server.py       the socket file, clients that come and go
    client.py       the other side: for tests, and for `callgate probe`
"""
