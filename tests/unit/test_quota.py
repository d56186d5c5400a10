# SPDX-License-Identifier: MIT
"""A quota lets through what it allows, no less and no more."""

from __future__ import annotations

import re
import time
from threading import Thread

import pytest

from callgate.errors import VectorError
from callgate.gate.quota import Quota


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def taken(quota: Quota, tries: int = 1000) -> int:
    return sum(quota.take() for _ in range(tries))


def test_without_limits_everything_passes() -> None:
    assert taken(Quota()) == 1000


def test_in_flight_bounds_what_is_not_given_back() -> None:
    quota = Quota(in_flight=3)
    assert taken(quota) == 3
    quota.give()
    assert taken(quota) == 1


def test_the_bucket_is_full_at_first_and_refills_at_the_rate() -> None:
    clock = Clock()
    quota = Quota(per_second=8, burst=4, clock=clock)
    assert taken(quota) == 4
    clock.now += 5 / 16
    assert taken(quota) == 2
    clock.now += 1 / 16  # Half a call was left over: now it is a whole one.
    assert taken(quota) == 1
    clock.now += 3600
    assert taken(quota) == 4


def test_a_burst_is_by_default_one_second_and_at_least_one_call() -> None:
    clock = Clock()
    assert taken(Quota(per_second=7, clock=clock)) == 7
    assert taken(Quota(per_second=0.5, clock=clock)) == 1


def test_a_call_that_in_flight_refuses_costs_no_token() -> None:
    quota = Quota(per_second=2, in_flight=1, clock=Clock())
    assert taken(quota) == 1
    quota.give()
    assert taken(quota) == 1
    quota.give()
    assert taken(quota) == 0


def test_change_keeps_what_runs_and_does_not_fill_the_bucket() -> None:
    clock = Clock()
    quota = Quota(per_second=4, in_flight=5, clock=clock)
    assert taken(quota) == 4
    quota.change(per_second=8, in_flight=6)
    assert taken(quota) == 0
    clock.now += 1
    assert taken(quota) == 2  # 4 run already.
    quota.change(in_flight=7)
    assert taken(quota) == 1


def test_a_bucket_that_shrinks_spills() -> None:
    quota = Quota(per_second=100, clock=Clock())
    quota.change(per_second=100, burst=3)
    assert taken(quota) == 3


def test_time_before_a_change_counts_at_the_old_rate() -> None:
    clock = Clock()
    quota = Quota(per_second=10, clock=clock)
    assert taken(quota) == 10
    clock.now += 0.5
    quota.change(per_second=1000)
    assert taken(quota) == 5


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"per_second": 0}, "per_second must be above 0, not 0"),
        ({"per_second": float("nan")}, "per_second must be above 0, not nan"),
        ({"per_second": 5, "burst": 0.5}, "burst must be at least 1 and come with per_second"),
        ({"burst": 5}, "burst must be at least 1 and come with per_second"),
        ({"in_flight": 0}, "in_flight must be 1 or more, not 0"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, float], sentence: str) -> None:
    quota = Quota(in_flight=2)
    with pytest.raises(VectorError, match=re.escape(sentence)):
        quota.change(**limits)  # type: ignore[arg-type]  # int and float, by name
    assert taken(quota) == 2


def test_threads_together_take_no_more_than_there_is() -> None:
    class Slow(int):
        """Lets the other threads go first when it is compared."""

        def __le__(self, other: int) -> bool:
            below = int(self) <= other
            time.sleep(0.0001)
            return below

    quota = Quota(in_flight=Slow(50))
    results: list[int] = []
    threads = [Thread(target=lambda: results.append(taken(quota, 100))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(results) == 50
