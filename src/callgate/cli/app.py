# SPDX-License-Identifier: MIT
"""The commands. Each says in its help what it does, with an example.

Exit codes: the guest's own for `run`; 2 for what the user can mend, told in one sentence; 1 for a bug
in a device model, shown as its own traceback; 130 for Ctrl-C.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from callgate.device import Device
from callgate.errors import CallgateError
from callgate.load import DeviceFileBug, find_guest, load_device_class
from callgate.report import user_traceback

app = typer.Typer(
    name="callgate",
    help="Write a PCI device in Python; any guest, on any hypervisor, can call it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

File = Annotated[
    str, typer.Argument(metavar="FILE", help="A device file, or FILE:CLASS.", show_default=False)
]
Files = Annotated[
    list[str],
    typer.Argument(metavar="FILE...", help="Device files, or FILE:CLASS.", show_default=False),
]


def run_app(arguments: list[str]) -> int:
    """Run the command line with these arguments; the exit code."""
    logging.basicConfig(level=logging.WARNING, format="callgate: %(message)s", stream=sys.stderr)
    try:
        app(arguments, prog_name="callgate")
        return 0
    except SystemExit as error:
        return int(error.code or 0)
    except KeyboardInterrupt:
        print("callgate: interrupted", file=sys.stderr)
        return 130
    except DeviceFileBug as error:
        assert error.__cause__ is not None
        print(user_traceback(error.__cause__), file=sys.stderr)
        return 1
    except CallgateError as error:
        print(f"callgate: {error}", file=sys.stderr)
        return 2


def _version(wanted: bool) -> None:
    if wanted:
        from callgate import __version__

        print(f"callgate {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_version, help="Print the version."),
    ] = False,
) -> None:
    """Choose a command below; each has --help."""


@app.command()
def run(
    files: Files,
    on: Annotated[str, typer.Option(metavar="BACKEND", help="Where the guest runs.")] = "unicorn",
    arch: Annotated[
        str, typer.Option(metavar="ARCH", help="x86_64, i386, aarch64 or riscv64.")
    ] = "x86_64",
    platform: Annotated[
        str | None,
        typer.Option(metavar="PLATFORM", help="Who traps hypercalls; `native`: nobody."),
    ] = None,
    guest: Annotated[
        Path | None,
        typer.Option(metavar="ELF", help="The guest program.", show_default="the example's own"),
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Print every access, call and interrupt.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="End a guest that runs longer.")
    ] = None,
    instructions: Annotated[
        int | None, typer.Option(metavar="N", help="End a guest that executes more.")
    ] = None,
    handler_timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Answer TIMED_OUT for a handler that takes longer."),
    ] = None,
) -> None:
    """Run a guest program with the devices plugged in; exit with the guest's exit code.

    Example: [bold]callgate run examples/01_adder/device.py --arch riscv64 --trace[/bold]
    """
    from callgate.machine import Machine

    classes = [load_device_class(file) for file in files]
    program = guest or find_guest(_path_of(classes[0]), arch)
    with Machine(
        *(_new(cls) for cls in classes),
        on=on,
        arch=arch,
        platform=platform,
        guest=program,
        timeout=timeout,
        instructions=instructions,
        handler_timeout=handler_timeout,
        trace=(lambda event: print(event, file=sys.stderr)) if trace else None,
    ) as machine:
        result = machine.run()
    sys.stdout.write(result.output)
    sys.stdout.flush()
    raise typer.Exit(result.exit_code)


@app.command()
def show(
    file: File,
    lspci: Annotated[
        bool, typer.Option("--lspci", help="Print config space as `lspci -F - -vvv` reads it.")
    ] = False,
) -> None:
    """Show what a device declares: ids, BARs, registers, interrupts, calls.

    Example: [bold]callgate show examples/01_adder/device.py --lspci | lspci -F - -vvv[/bold]
    """
    cls = load_device_class(file)
    if lspci:
        from callgate.cli.show import lspci_dump

        sys.stdout.write(lspci_dump(_new(cls)))
        return
    from callgate.cli.show import show_device

    show_device(cls)


@app.command()
def header(file: File) -> None:
    """Print the C header with typed wrappers for a device's calls, and its registers' names.

    Example: [bold]callgate header examples/01_adder/device.py > adder.h[/bold]
    """
    from callgate.generate import header as generate_header

    sys.stdout.write(generate_header(load_device_class(file)))


@app.command()
def bench(
    on: Annotated[
        list[str] | None, typer.Option(metavar="BACKEND", help="Only this backend.")
    ] = None,
    arch: Annotated[
        list[str] | None, typer.Option(metavar="ARCH", help="Only this architecture.")
    ] = None,
    calls: Annotated[int, typer.Option(metavar="N", help="Calls measured in each row.")] = 20000,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw a plot (extra: plot).")
    ] = None,
) -> None:
    """Measure a whole call as the guest sees it, beside a bare trap of the same emulator.

    Example: [bold]callgate bench --on unicorn --arch aarch64 --json[/bold]
    """
    from callgate.bench import run_bench

    run_bench(backends=on, architectures=arch, calls=calls, as_json=json, plot=plot)


@app.command()
def demo(
    folder: Annotated[
        Path, typer.Option(metavar="DIR", help="The examples' folder.")
    ] = Path("examples"),
) -> None:
    """Run every example on every backend, architecture and platform; print what each transport did.

    Example: [bold]callgate demo[/bold]
    """
    from callgate.cli.demo import run_demo

    raise typer.Exit(run_demo(folder))


def _path_of(cls: type[Device]) -> Path:
    file = sys.modules[cls.__module__].__file__
    assert file is not None
    return Path(file)


def _new(cls: type[Device]) -> Device:
    try:
        return cls()
    except CallgateError:
        raise
    except Exception as error:
        raise DeviceFileBug(cls.__name__) from error
