# SPDX-License-Identifier: MIT
"""docs/tutorial_device.md shows the device as it is. tests/guest/test_docs.py runs its code."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILE = (ROOT / "src/callgate/devices/virtio_rng.py").read_text("utf-8")
BLOCKS = re.findall(
    r"^```python\n(.*?)^```$",
    (ROOT / "docs/tutorial_device.md").read_text("utf-8"),
    re.MULTILINE | re.DOTALL,
)
STEPS = [block for block in BLOCKS if "class VirtioRng" in block]


def test_each_step_is_a_part_of_the_file() -> None:
    """Its lines are the file's, in their order."""
    assert len(STEPS) == 3
    for step in STEPS:
        lines = iter(FILE.splitlines())
        for line in step.splitlines():
            assert line in lines, line


def test_the_last_step_is_the_file() -> None:
    assert STEPS[-1] == FILE
