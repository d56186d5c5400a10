# SPDX-License-Identifier: MIT
"""qemu: devices in a QEMU that nobody patched, which owns the bus and speaks vfio-user.

find.py        a QEMU that is new enough
kernel.py      a Linux kernel, and modules with what they need
initramfs.py   what Linux boots into
command.py     QEMU's command line
qmp.py         plugging and unplugging while the guest runs
guest.py       all of it together: servers, QEMU, console, exit code
"""
