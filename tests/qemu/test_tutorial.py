# SPDX-License-Identifier: MIT
"""docs/tutorial_driver.md, followed: its files in a folder of their own, built, booted, tested."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.qemu.module import build

from callgate.testing.linux import needs_linux

ROOT = Path(__file__).resolve().parents[2]
FILE = re.compile(r"^`([\w.]+)`:\n\n```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_driver_of_the_tutorial(tmp_path: Path) -> None:
    needs_linux()
    build.modules()
    files = dict(FILE.findall((ROOT / "docs/tutorial_driver.md").read_text("utf-8")))
    assert list(files) == [
        *("device.py", "driver.c", "Kbuild", "build.sh", "check.sh", "test_driver.py", "ci.sh")
    ]
    for name, text in files.items():
        (tmp_path / name).write_text(text, "utf-8")
    (tmp_path / "check.sh").chmod(0o755)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"CALLGATE": str(ROOT), "PATH": path}

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "warning" not in run("sh", "build.sh")
    assert "1 passed" in run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
