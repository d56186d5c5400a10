# SPDX-License-Identifier: MIT
"""Names in C."""

import re


def snake(name: str) -> str:
    """`FrameState` as `frame_state`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
