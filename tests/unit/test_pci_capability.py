# SPDX-License-Identifier: MIT
"""Capabilities: the chain can be walked, their bits follow their rules, and their writes act."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate.errors import DeclarationError
from callgate.faults import Faults
from callgate.pci import config as space
from callgate.pci.bar import BarState
from callgate.pci.capability import (
    Capability,
    Host,
    PciExpress,
    PowerManagement,
    VendorCapability,
    place,
)
from callgate.pci.config import ConfigSpace, define_header


class Sample:
    """A function, as far as a capability sees it."""

    def __init__(self) -> None:
        self.config = ConfigSpace(Faults("sample"))
        define_header(self.config, id=(0x1AF4, 0x10F0), class_code=0xFF0000)
        self.awake = True
        self.bars: tuple[BarState, ...] = ()
        self.resets = 0

    def set_awake(self, awake: bool) -> None:
        self.awake = awake

    def reset(self) -> None:
        self.resets += 1
        self.config.reset()


def chain(config: ConfigSpace) -> Iterator[tuple[int, int]]:
    """Walk as a driver does: (offset, id)."""
    at = config.read(0x34, 1) if config.read(space.STATUS, 2) & space.STATUS_CAPABILITIES else 0
    while at:
        yield at, config.read(at, 1)
        at = config.read(at + 1, 1)


def test_the_chain_is_in_the_order_of_declaration_and_aligned() -> None:
    host = Sample()
    capabilities = (VendorCapability(b"abc"), PowerManagement(), VendorCapability(b"defgh"))
    placed = place(host, capabilities, "sample")
    assert list(chain(host.config)) == [(0x40, 9), (0x48, 1), (0x50, 9)]
    assert list(placed) == [0x40, 0x48, 0x50]
    assert host.config.dump()[0x42:0x46] == b"\x06abc"
    host.config.reset()
    assert len(list(chain(host.config))) == 3


def test_without_capabilities_the_status_says_so() -> None:
    host = Sample()
    assert place(host, (), "sample") == {}
    assert host.config.read(space.STATUS, 2) == 0
    assert list(chain(host.config)) == []


def test_status_errors_can_still_be_cleared() -> None:
    host = Sample()
    place(host, [PowerManagement()], "sample")
    host.config.change(space.STATUS, 2, set=space.STATUS_MASTER_ABORT)
    host.config.write(space.STATUS, 2, 0xFFFF)
    assert host.config.read(space.STATUS, 2) == space.STATUS_CAPABILITIES


def test_a_capability_may_fill_the_space_to_its_last_byte() -> None:
    host = Sample()
    place(host, [VendorCapability(bytes(189))], "sample")
    assert host.config.read(0x42, 1) == 192


def test_too_many_capabilities_are_told_in_a_sentence() -> None:
    with pytest.raises(DeclarationError) as raised:
        place(Sample(), [VendorCapability(bytes(177)), PowerManagement()] * 2, "sample")
    assert str(raised.value) == (
        "The capabilities of sample must fit the 192 bytes behind the header; VendorCapability "
        "(id 0x09, 180 bytes) would end at 0x1b0"
    )


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Capability(0x100, b""), "must be 0 to 0xff"),
        (lambda: Capability(5, bytes(191)), "must be at most 190 bytes, not 191"),
        (lambda: VendorCapability(bytes(300)), "must be at most 190 bytes, not 301"),
        (lambda: Capability(5, b"a", writable=b"ab"), "mask must not be longer than the body"),
        (lambda: VendorCapability(b"a", writable=b"ab"), "mask must not be longer"),
    ],
)
def test_a_capability_that_cannot_exist_is_refused(make: object, sentence: str) -> None:
    assert callable(make)
    with pytest.raises(DeclarationError, match=sentence):
        make()


def test_the_guest_writes_the_bits_that_it_may() -> None:
    host = Sample()
    capability = Capability(5, b"\x00\x0f\xf0\x00", writable=b"\xff", w1c=b"\0\x03")
    place(host, [capability, VendorCapability(b"abc", writable=b"\xff")], "sample")
    host.config.write(0x40, 4, 0xFFFF_FFFF)
    assert host.config.read(0x40, 4) == 0x0CFF_4805
    host.config.write(0x48, 4, 0xFFFF_FFFF)
    assert host.config.dump()[0x48:0x4E] == b"\x09\x00\x06\xffbc"


def test_a_subclass_learns_of_writes() -> None:
    class Door(Capability):
        def wrote(self, host: Host, at: int) -> None:
            seen.append(host.config.get(at + 2, 2))

    seen: list[int] = []
    host = Sample()
    place(host, [VendorCapability(b""), Door(5, bytes(2), writable=b"\xff")], "sample")
    host.config.write(0x44, 2, 0xFFFF)
    assert seen == []
    host.config.write(0x46, 2, 0x1234)
    assert seen == [0x34]


def test_power_states_that_exist_are_entered() -> None:
    host = Sample()
    place(host, [PowerManagement()], "sample")
    assert host.config.read(0x42, 2) == 3
    assert host.config.read(0x44, 2) == 8
    host.config.write(0x44, 2, 3)
    assert not host.awake
    for unsupported in (1, 2):
        host.config.write(0x44, 2, unsupported)
        assert (host.awake, host.config.read(0x44, 2)) == (False, 11)
    host.config.write(0x44, 2, 0)
    assert host.awake
    host.config.write(0x44, 2, 2)
    assert (host.awake, host.config.read(0x44, 2)) == (True, 8)


def test_function_level_reset_resets_and_reads_zero() -> None:
    host = Sample()
    place(host, [PciExpress()], "sample")
    assert host.config.read(0x44, 4) & 1 << 28
    host.config.write(0x48, 2, 0x0F)
    assert host.resets == 0
    host.config.write(0x48, 2, 0x801F)
    assert host.resets == 1
    assert host.config.read(0x48, 2) == 0x2810


@pytest.mark.parametrize(("integrated", "kind", "lanes"), [(True, 9, 0), (False, 0, 1)])
def test_an_express_endpoint_says_what_it_is(integrated: bool, kind: int, lanes: int) -> None:
    host = Sample()
    place(host, [PciExpress(integrated=integrated)], "sample")
    assert host.config.read(0x42, 2) == 2 | kind << 4
    assert host.config.read(0x52, 2) >> 4 == lanes
    assert PciExpress().size == 0x3C


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=60)), max_size=8))
def test_any_chain_that_fits_can_be_walked(declared: list[tuple[int, bytes]]) -> None:
    host = Sample()
    capabilities = [Capability(id, body) for id, body in declared]
    try:
        placed = place(host, capabilities, "sample")
    except DeclarationError:
        assert sum(capability.size + 3 & ~3 for capability in capabilities) > 192
        return
    assert list(chain(host.config)) == [(at, each.id) for at, each in placed.items()]
    for at, each in placed.items():
        assert at % 4 == 0
        assert host.config.dump()[at + 2 : at + each.size] == each.body
