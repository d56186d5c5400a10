# SPDX-License-Identifier: MIT
"""Vectors come and go while the guest calls: who looks up by name again goes on."""

from callgate import Device, Register, call, main, u32, u64


class Rebind(Device):
    """Counts calls; every `interval` of them the host revokes the vector and assigns a new one."""

    id = 0x1AF4, 0x10F3
    interval = Register(0x00, reset=10, doc="calls between two rebindings; 0: none")
    rebinds = Register(0x04, access="r", doc="rebindings so far")

    def attach(self) -> None:
        self.calls = 0

    def reset(self) -> None:
        self.calls = 0

    @call
    def count(self, step: u32) -> u64:
        """Add `step` to the count and return it."""
        self.calls += step
        if self.interval and self.calls % self.interval == 0:
            # A handler may revoke its own call: this one still answers, the next needs a look-up.
            self.gate.revoke("count")
            self.gate.bind("count")
            self.rebinds += 1
        return self.calls


if __name__ == "__main__":
    main(Rebind)
