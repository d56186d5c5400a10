# SPDX-License-Identifier: MIT
"""What holds for every test: hypothesis judges results, not speed, and CI repeats itself."""

import gc
import os

import pytest
from hypothesis import settings

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep the tests themselves from the collector, which many of them call."""
    gc.collect()
    gc.freeze()
