# SPDX-License-Identifier: MIT
"""A guest on an emulated CPU inside this process, by the Unicorn library (docs/unicorn.md).

backend.py    the loop: run, stop, sleep, deliver
engine.py     the library's C interface, without the price of its Python one
memory.py     who answers at which address: RAM mapped, all else trapped
x86.py arm.py riscv.py    what differs between processors: registers, traps, interrupts
apic.py       the local APIC that interrupt messages on x86 are sent to
alarm.py      the thread that stops the emulator when a timer is due
"""
