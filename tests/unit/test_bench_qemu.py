# SPDX-License-Identifier: MIT
"""What the bench makes of the lines that its guest in QEMU prints."""

import pytest

from callgate.bench.qemu import _compare, _disks, _report, figures_of

SAID = """\
nothing 31 40 1000
register-read 60000 90000 1000
register-write 30000 40000 1000
edu-read 400 900 1000
call-watched 1200 2000 1000
edu-read 200 900 1000
call-watched 800 2000 1000
edu-read 200 900 1000
call-watched 1000 2000 1000
call-doorbell-mmio 66000 90000 1000
[    3.7] a line of the kernel's
theirs-random-read 90000000 0 4000
theirs-sequential-read 1500000000 0 500
ours-random-read 60000000 0 4000
ours-sequential-read 1000000000 0 500
theirs-random-read 90000000 0 4000
theirs-sequential-read 1500000000 0 500
ours-random-read 45000000 0 4000
ours-sequential-read 500000000 0 500
theirs-random-read 10000000 0 4000
theirs-sequential-read 1500000000 0 500
ours-random-read 10000000 0 4000
ours-sequential-read 750000000 0 500
"""


def test_calls_stand_beside_reads_of_edu() -> None:
    rows, checks = _report(figures_of(SAID)[0], boot=3.0, left=0.5)
    found = {(row.transport, row.instruction): row for row in rows}
    assert set(found) == {("polled", ""), ("mmio", "store"), ("read", "load"), ("write", "store")}
    watched, doorbell = found["polled", ""], found["mmio", "store"]
    assert (watched.median, watched.bare, watched.ratio, watched.met) == (1.0, 0.2, 4.0, True)
    assert (doorbell.median, doorbell.bare, doorbell.ratio) == (66.0, 60.0, 1.1)
    assert [(check.value, check.met) for check in checks] == [
        (0.2, None),
        (10.0, True),
        (3.0, True),
        (0.5, True),
    ]


def test_disks_are_compared_round_by_round() -> None:
    checks = _compare(figures_of(SAID)[1])
    assert [(check.value, check.unit, check.met) for check in checks] == [
        (45.0, "MB/s", None),
        (90.0, "MB/s", None),
        (1.5, "x", True),
        (750.0, "MB/s", None),
        (1500.0, "MB/s", None),
        (2.0, "x", False),
    ]


def test_disks_may_be_left_out() -> None:
    assert _compare({}) == []


@pytest.mark.parametrize(("calls", "count"), [(1, 1000), (2000, 2000), (100_000, 4000)])
def test_disks_are_read_a_bounded_number_of_times(calls: int, count: int) -> None:
    assert f"/dev/${{d##*/}} {count} ||" in _disks(calls)
