# SPDX-License-Identifier: MIT
"""What Linux drivers' lines come to."""

from pathlib import Path

import pytest

from callgate.bench.linux import checks_of, linux_checks
from callgate.errors import BenchError

SAID = """\
call-watched 1000 2000 1000
module-call 1400 3000 1000
chardev-call 1900 3000 1000
chardev-none 250 300 1000
module-cpus-4 90000 0 4000
frames-cpus-4 100000 0 1000
module-cpus-4 100000 0 4000
frames-cpus-4 130000 0 1000
module-cpus-4 200000 0 4000
frames-cpus-4 120000 0 1000
"""


def test_each_way_stands_beside_the_one_below() -> None:
    checks = checks_of(SAID)
    assert [(check.value, check.unit, check.met) for check in checks] == [
        (pytest.approx(1.4), "us", None),
        (pytest.approx(1.4), "x", True),
        (pytest.approx(1.9), "us", None),
        (pytest.approx(2.0), "x", None),
        (100000, "/s", None),
        (pytest.approx(1.2), "x", True),
    ]


def test_what_is_not_built_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BenchError, match=r"linux/bench must be there: build it"):
        linux_checks(tmp_path, 100)
    programs = tmp_path / "build" / "guest" / "x86_64" / "linux"
    programs.mkdir(parents=True)
    for name in ("bench", "chardev"):
        (programs / name).touch()
    with pytest.raises(BenchError, match=r"callgate\.ko must be there: build it"):
        linux_checks(tmp_path, 100)
