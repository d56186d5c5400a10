# SPDX-License-Identifier: MIT
"""The command line: `callgate`, `python -m callgate`, and `main` for a device file of its own."""

from __future__ import annotations

import sys

from callgate.device import Device

_COMMANDS = ("run", "serve", "show", "header", "reference")


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
        command = "run"
        if arguments and arguments[0].isidentifier():  # Which no option and no file is.
            command = arguments.pop(0)
            if command not in _COMMANDS:
                print(_no_command(command), file=sys.stderr)
                sys.exit(2)
        arguments = [command, f"{file}:{device.__name__}", *arguments]
    try:
        from callgate.cli.app import run_app
    except ModuleNotFoundError as error:
        sys.exit(_run_bare(arguments, error))
    sys.exit(run_app(arguments))


def _no_command(word: str) -> str:
    return (
        f"callgate: A device file's command must be one of {', '.join(_COMMANDS)}, not {word}: "
        "`callgate` itself has others (--help)"
    )


def _run_bare(arguments: list[str], missing: ModuleNotFoundError) -> int | str:
    """In a guest, where the package may be installed without what it depends on."""
    if (missing.name or "").startswith("callgate"):
        raise missing
    if arguments[:1] == ["lspci"]:
        from callgate.driver.lspci import main

        return main(arguments[1:])
    return (
        f"callgate: {missing.name} must be installed for all commands but lspci: "
        "pip install callgate, without --no-deps"
    )
