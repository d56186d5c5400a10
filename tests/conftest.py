# SPDX-License-Identifier: MIT
"""What holds for every test: hypothesis judges results, not speed, and CI repeats itself."""

import os

from hypothesis import settings

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")
