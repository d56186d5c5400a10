# SPDX-License-Identifier: MIT
"""MSI-X: a message goes once, when it may, to where the table says; until then it is pending."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate.faults import Faults
from callgate.pci.msix import Msix, MsixCapability


class Sample:
    def __init__(self, vectors: int = 4) -> None:
        self.sent: list[tuple[int, int]] = []
        self.faults = Faults("sample")
        self.msix = Msix(vectors, lambda *message: self.sent.append(message), self.faults)
        self.table, self.pending = self.msix.windows()

    def ready(self) -> "Sample":
        """Enabled, bus mastering on, every vector unmasked: (FEE00000 + index, 40h + index)."""
        self.msix.enabled = self.msix.may_send = True
        for index in range(self.msix.vectors):
            self.table.write(16 * index, 8, 0xFEE0_0000 + 4 * index)
            self.table.write(16 * index + 8, 8, 0x40 + index)
        return self


def test_a_message_goes_where_the_table_says() -> None:
    sample = Sample().ready()
    sample.msix.trigger(2)
    assert sample.sent == [(0xFEE0_0008, 0x42)]
    sample.table.write(0x24, 4, 0x1)
    sample.table.write(0x28, 4, 0x77)
    sample.msix.trigger(2)
    assert sample.sent[1:] == [(0x1_FEE0_0008, 0x77)]


def test_a_masked_vector_is_pending_and_goes_once_when_unmasked() -> None:
    sample = Sample().ready()
    sample.table.write(0x1C, 4, 1)
    sample.msix.trigger(1)
    sample.msix.trigger(1)
    sample.msix.trigger(0)
    assert sample.sent == [(0xFEE0_0000, 0x40)]
    assert sample.pending.read(0, 8) == 2
    assert sample.msix.is_pending(1)
    sample.table.write(0x1C, 4, 0)
    assert sample.sent[1:] == [(0xFEE0_0004, 0x41)]
    assert sample.pending.read(0, 8) == 0


def test_the_address_may_change_while_the_vector_is_masked() -> None:
    sample = Sample().ready()
    sample.table.write(0x0C, 4, 1)
    sample.msix.trigger(0)
    sample.table.write(0x00, 8, 0xFEE0_1000)
    assert sample.sent == []
    sample.table.write(0x08, 8, 0x99)
    assert sample.sent == [(0xFEE0_1000, 0x99)]


@pytest.mark.parametrize(
    ("attribute", "off", "on"),
    [("function_masked", True, False), ("may_send", False, True), ("enabled", False, True)],
)
def test_what_holds_all_vectors_back_loses_none(attribute: str, off: bool, on: bool) -> None:
    sample = Sample().ready()
    setattr(sample.msix, attribute, off)
    for index in (3, 0, 3):
        sample.msix.trigger(index)
    sample.msix.flush()
    assert sample.sent == []
    assert sample.pending.read(0, 4) == 0b1001
    setattr(sample.msix, attribute, on)
    sample.msix.flush()
    assert sample.sent == [(0xFEE0_0000, 0x40), (0xFEE0_000C, 0x43)]


def test_after_a_reset_all_is_masked_and_nothing_pending() -> None:
    sample = Sample().ready()
    sample.msix.function_masked = True
    sample.msix.trigger(0)
    sample.msix.reset()
    assert not sample.msix.enabled
    assert not sample.msix.function_masked
    assert sample.pending.read(0, 8) == 0
    assert [sample.table.read(16 * index + 12, 4) for index in range(4)] == [1] * 4


def test_bits_that_do_not_exist_stay_zero() -> None:
    sample = Sample(1)
    sample.table.write(0, 8, 2**64 - 1)
    sample.table.write(8, 8, 2**64 - 1)
    assert sample.table.read(0, 8) == 2**64 - 4
    assert sample.table.read(8, 8) == 0x1_FFFF_FFFF


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (0, 2), (2, 4), (4, 8), (12, 8)])
def test_the_table_takes_dwords_and_quadwords(offset: int, size: int) -> None:
    sample = Sample().ready()
    before = bytes(sample.msix._table)
    assert sample.table.read(offset, size) == (1 << 8 * size) - 1
    sample.table.write(offset, size, 0)
    assert bytes(sample.msix._table) == before
    assert sample.faults.counts == {"msix read": 1, "msix write": 1}


def test_the_pending_bits_are_read_only_and_aligned() -> None:
    sample = Sample(70)
    sample.msix.trigger(69)
    assert sample.pending.size == 16
    assert sample.pending.read(8, 8) == 1 << 5
    assert sample.pending.read(8, 4) == 1 << 5
    assert sample.pending.read(9, 2) == 0xFFFF
    sample.pending.write(8, 8, 0)
    assert sample.pending.read(8, 8) == 1 << 5
    assert sample.faults.counts == {"msix read": 1, "msix pending": 1}


@pytest.mark.parametrize(
    ("vectors", "size", "pending_at"),
    [(1, 4096, 2048), (128, 4096, 2048), (129, 8192, 4096), (2048, 65536, 32768)],
)
def test_the_bar_holds_table_and_pending_bits(vectors: int, size: int, pending_at: int) -> None:
    msix = Msix(vectors, lambda address, data: None, Faults("sample"))
    table, pending = msix.windows()
    assert (msix.bar_size, msix.pending_at, pending.offset) == (size, pending_at, pending_at)
    assert table.size == 16 * vectors <= pending_at
    assert pending.size * 8 >= vectors
    body = MsixCapability(vectors, 3, pending_at).body
    assert int.from_bytes(body[:2], "little") == vectors - 1
    assert int.from_bytes(body[6:], "little") == pending_at | 3


def test_a_vmm_that_owns_the_table_gets_the_index() -> None:
    sample = Sample().ready()
    seen: list[int] = []
    sample.msix.reset()
    sample.msix.signal = seen.append
    sample.msix.trigger(2)
    sample.msix.may_send = False
    sample.msix.trigger(3)
    assert seen == [2]
    sample.msix.may_send = True
    sample.msix.flush()
    assert (seen, sample.sent) == ([2, 3], [])


def test_a_message_may_end_in_the_table_itself() -> None:
    sample = Sample().ready()
    sample.msix.deliver = lambda address, data: sample.table.write(0x1C, 4, data)
    sample.msix.trigger(0)
    assert sample.table.read(0x1C, 4) == 0


def test_no_message_is_lost_or_doubled_between_threads() -> None:
    sample = Sample(1).ready()
    rounds = 500

    def mask_and_unmask() -> None:
        for _ in range(rounds):
            sample.table.write(0x0C, 4, 1)
            sample.table.write(0x0C, 4, 0)

    thread = threading.Thread(target=mask_and_unmask)
    thread.start()
    for number in range(1, rounds + 1):
        before = len(sample.sent)
        sample.msix.trigger(0)
        while len(sample.sent) == before:  # pending: the other thread unmasks
            if not thread.is_alive():
                sample.msix.flush()
        assert len(sample.sent) == number
    thread.join()


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("trigger"), st.integers(0, 69), st.just(0), st.just(0)),
            st.tuples(
                st.sampled_from(["table", "pending"]),
                st.integers(0, 1200),
                st.sampled_from([1, 2, 4, 8]),
                st.integers(0, 2**64 - 1),
            ),
            st.tuples(st.just("state"), st.integers(0, 7), st.just(0), st.just(0)),
        ),
        max_size=40,
    )
)
def test_whatever_is_done_a_vector_is_pending_only_while_it_cannot_go(
    steps: list[tuple[str, int, int, int]],
) -> None:
    sample = Sample(70)
    msix = sample.msix
    triggers = 0
    for kind, at, size, value in steps:
        if kind == "trigger":
            msix.trigger(at)
            triggers += 1
        elif kind == "state":
            msix.enabled, msix.function_masked, msix.may_send = bool(at & 1), bool(at & 2), at > 3
            msix.flush()
        else:
            window = sample.table if kind == "table" else sample.pending
            if at + size <= window.size:
                window.write(at, size, value)
                window.read(at, size)
    assert len(sample.sent) + bin(sample.pending.read(0, 8)).count("1") <= triggers
    open_ = msix.enabled and msix.may_send and not msix.function_masked
    for index in range(70):
        masked = sample.table.read(16 * index + 12, 4)
        assert not msix.is_pending(index) or masked or not open_
