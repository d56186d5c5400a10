# SPDX-License-Identifier: MIT
"""The guest's faults are counted each, and logged loudly once."""

from __future__ import annotations

import logging
from threading import Thread

import pytest

from callgate.faults import Faults


def test_the_first_fault_of_each_kind_warns_and_later_ones_do_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    faults = Faults("adder")
    with caplog.at_level(logging.DEBUG, logger="callgate.guest"):
        faults.note("bad read", "a read of 3 bytes at 0x4")
        faults.note("bad read", "a read of 5 bytes at 0x8")
        faults.note("bad write", "a write of 3 bytes at 0x4")

    assert [(record.levelname, record.name) for record in caplog.records] == [
        ("WARNING", "callgate.guest"),
        ("DEBUG", "callgate.guest"),
        ("WARNING", "callgate.guest"),
    ]
    first, second, third = (record.getMessage() for record in caplog.records)
    assert first.startswith("adder: a read of 3 bytes at 0x4")
    assert second == "adder: a read of 5 bytes at 0x8"
    assert third.startswith("adder: a write of 3 bytes at 0x4")


def test_each_owner_warns_for_itself(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="callgate.guest"):
        Faults("adder").note("bad read", "a read of 3 bytes")
        Faults("timer").note("bad read", "a read of 3 bytes")
    assert len(caplog.records) == 2


def test_counts_are_a_copy() -> None:
    faults = Faults("adder")
    faults.note("bad read", "a read of 3 bytes")
    counts = faults.counts
    counts["bad read"] = 7
    assert faults.counts == {"bad read": 1}


def test_text_of_the_guest_is_not_a_format() -> None:
    faults = Faults("adder")
    faults.note("bad name", "a call named %s %d {0}")
    assert faults.counts == {"bad name": 1}


def test_no_fault_is_lost_between_threads(caplog: pytest.LogCaptureFixture) -> None:
    faults = Faults("adder")

    def err() -> None:
        for _ in range(2000):
            faults.note("bad read", "a read of 3 bytes")

    with caplog.at_level(logging.WARNING, logger="callgate.guest"):
        threads = [Thread(target=err) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert faults.counts == {"bad read": 8000}
    assert len(caplog.records) == 1
