# SPDX-License-Identifier: MIT
"""For tests of devices: a guest without a processor, pytest fixtures, the conformance suite."""

from callgate.testing.fake_guest import FakeGuest

__all__ = ["FakeGuest"]
