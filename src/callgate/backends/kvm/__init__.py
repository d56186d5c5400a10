# SPDX-License-Identifier: MIT
"""KVM: this host's own processor runs the guest.

    backend    what a machine needs of a backend; the threads
    vm         memory slots, interrupts, eventfds              KVM's VM
    vcpu       a processor: its run loop, its exits            KVM's vCPU
    cpu        a processor's state at the guest's entry
    state      all of a machine's state, read and set again
    probe      what this host's KVM offers, and why something is missing
    linux      the kernel, put where its boot protocol wants it; acpi and aml: the tables

The kernel's raw ABI is in `callgate.linux`.
"""
