# SPDX-License-Identifier: MIT
"""What holds for every test: hypothesis judges results, not speed, and CI repeats itself."""

import gc
import itertools
import os
from collections.abc import Iterator

import pytest
from coverage import Coverage
from hypothesis import settings

from callgate.gate import frame

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


CONFIG = "COVERAGE_PROCESS_CONFIG"
"""By which a Python that a test starts knows that it is to be covered."""
FROZEN = 100
"""After how many tests their reports, too, are kept from the collector."""
_ran = itertools.count(1)


@pytest.fixture(params=["quick", "plain"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have frames answered by compiled code, and by the same in Python."""
    ways = {"quick": frame.QUICK, "plain": frame.PLAIN}[request.param]
    if ways is None:
        pytest.skip("callgate.gate._frame is not built: it needs a C compiler and Python's headers")
    monkeypatch.setattr(frame, "WAYS", ways)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep the tests themselves from the collector, which many of them call."""
    _freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Leave out of the coverage what would take long with it, and runs no line that others do not:
    processors, and what is marked `uncovered`; with the Pythons that it starts."""
    tracer = Coverage.current()
    if tracer is None or not _is_uncovered(item):
        return (yield)
    tracer.stop()
    config = os.environ.pop(CONFIG, "")
    try:
        return (yield)
    finally:
        os.environ[CONFIG] = config
        tracer.start()


def _is_uncovered(item: pytest.Item) -> bool:
    folder = item.path.parent.name
    return (
        folder == "guest"
        or (folder == "conformance" and "unicorn" in item.name)
        or item.get_closest_marker("uncovered") is not None
    )


def pytest_runtest_logfinish(nodeid: str) -> None:
    """Keep what pytest remembers of each test from it: in the end that is most of what lives."""
    if next(_ran) % FROZEN == 0:
        _freeze()


def _freeze() -> None:
    gc.collect()
    gc.freeze()
