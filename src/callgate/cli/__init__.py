# SPDX-License-Identifier: MIT
"""The command line: `callgate`, `python -m callgate`, and `main` for a device file of its own."""

from __future__ import annotations

import sys

from callgate.device import Device

_COMMANDS = ("run", "show", "header")


def main(device: type[Device] | None = None) -> None:
    """Run the command line and exit.

    With a Device class, as the last line of a device file, the file is its own command:
    `python device.py [OPTIONS]` is `callgate run device.py [OPTIONS]`, and `python device.py show`
    is `callgate show device.py`. In a file that is imported it does nothing.
    """
    arguments = sys.argv[1:]
    if device is not None:
        if device.__module__ != "__main__":
            return
        file = sys.modules["__main__"].__file__
        command = arguments.pop(0) if arguments and arguments[0] in _COMMANDS else "run"
        arguments = [command, f"{file}:{device.__name__}", *arguments]
    from callgate.cli.app import run_app

    sys.exit(run_app(arguments))
