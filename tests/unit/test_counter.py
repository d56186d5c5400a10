# SPDX-License-Identifier: MIT
"""A count without a lock is exact, however often it is read."""

from __future__ import annotations

from threading import Thread

from callgate.counter import Counter


def test_reading_does_not_count() -> None:
    counter = Counter()
    assert [counter.value, counter.value] == [0, 0]
    next(counter)
    next(counter)
    assert [counter.value, counter.value] == [2, 2]


def test_counters_are_apart() -> None:
    one, other = Counter(), Counter()
    next(one)
    assert (one.value, other.value) == (1, 0)


def test_nothing_is_lost_between_threads_that_count_and_read() -> None:
    counter = Counter()
    seen: list[int] = []

    def count() -> None:
        for _ in range(20_000):
            next(counter)

    def read() -> None:
        seen.extend(counter.value for _ in range(2000))

    threads = [Thread(target=act) for act in (count, count, count, read, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.value == 60_000
    assert all(0 <= value <= 60_000 for value in seen)
