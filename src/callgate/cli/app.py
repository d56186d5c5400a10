# SPDX-License-Identifier: MIT
"""The commands. Each says in its help what it does, with an example.

Exit codes: the guest's own for `run`; 2 for what the user can mend, told in one sentence; 1 for a
bug in a device model, shown as its own traceback, and for a demo that went wrong; 130 for Ctrl-C.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.main import get_command

from callgate.device import Device
from callgate.errors import BackendError, CallgateError
from callgate.load import DeviceFileBug, find_guest, load_device_class
from callgate.report import user_traceback

if TYPE_CHECKING:
    from callgate.trace import Event

WRONG_USE = 2
INTERRUPTED = 130
NOBODY_READS = 141
"""What a shell says of a process that a closed pipe ended."""

app = typer.Typer(
    name="callgate",
    help="Write a PCI device in Python; any guest, on any hypervisor, can call it.",
    add_completion=False,
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
    command = get_command(app)
    try:
        with command.make_context("callgate", arguments or ["--help"]) as parsed:
            command.invoke(parsed)
        sys.stdout.flush()
    except typer.Exit as error:
        return error.exit_code
    except SystemExit as error:  # A model's.
        return error.code if isinstance(error.code, int) else _tell(str(error.code), 1)
    except typer.TyperException as error:
        return _tell(f"{error.format_message().rstrip('.')} (--help tells more)")
    except KeyboardInterrupt:
        return _tell("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Python flushes once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOBODY_READS
    except DeviceFileBug as error:
        print(user_traceback(error.__cause__ or error), file=sys.stderr)
        return 1
    except CallgateError as error:
        return _tell(str(error))
    except OSError as error:
        return _tell(f"{error.filename or 'the system'}: {error.strerror or error}")
    return 0


def _tell(sentence: str, code: int = WRONG_USE) -> int:
    print(f"callgate: {sentence}", file=sys.stderr)
    return code


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
        str | None,
        typer.Option(
            metavar="ARCH",
            help="x86_64, i386, aarch64 or riscv64.",
            show_default="the ELF file's; else x86_64",
        ),
    ] = None,
    platform: Annotated[
        str | None,
        typer.Option(
            metavar="PLATFORM",
            help="Who traps hypercalls: kvm-intel, kvm-amd, lguest, smccc, sbi; native: nobody.",
            show_default="the architecture's usual one",
        ),
    ] = None,
    guest: Annotated[
        Path | None,
        typer.Option(
            metavar="ELF", help="The guest program.", show_default="the one built for the folder"
        ),
    ] = None,
    trace: Annotated[
        bool,
        typer.Option("--trace", help="Print every access, call and interrupt to standard error."),
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

    For example:

    [bold]callgate run examples/01_adder/device.py[/bold]

    [bold]callgate run examples/01_adder/device.py --arch riscv64 --platform native --trace[/bold]

    [bold]callgate run device.py other.py:Second --guest firmware.elf --timeout 10[/bold]
    """
    for name, value in (("--timeout", timeout), ("--handler-timeout", handler_timeout)):
        if value is not None and not value > 0:
            raise typer.BadParameter(f"{name} must be above 0 seconds, not {value:g}")
    if instructions is not None and instructions < 1:
        raise typer.BadParameter(f"--instructions must be at least 1, not {instructions}")
    classes = [load_device_class(file) for file in files]
    from callgate.backends.base import backend
    from callgate.machine import Machine

    if not backend(on).has_processor:
        raise BackendError(
            f"The backend {on} must have a processor to run a guest program: it is for "
            "drivers in Python (callgate.testing.FakeGuest)"
        )
    if guest is None:
        guest = find_guest(_path_of(classes[0]), arch or "x86_64")
    with _device_code():
        machine = Machine(
            *(cls() for cls in classes),
            on=on,
            arch=arch,
            platform=platform,
            guest=guest,
            timeout=timeout,
            instructions=instructions,
            handler_timeout=handler_timeout,
            trace=_tracer() if trace else None,
        )
    with machine:
        machine.console.on_byte = _echo
        result = machine.run()
    raise typer.Exit(result.exit_code)


@app.command()
def show(
    file: File,
    lspci: Annotated[
        bool, typer.Option("--lspci", help="Print config space as `lspci -F` reads it.")
    ] = False,
) -> None:
    """Show what a device declares: ids, BARs, registers, interrupts, calls.

    For example:

    [bold]callgate show examples/01_adder/device.py[/bold]

    [bold]callgate show examples/01_adder/device.py --lspci | lspci -F /dev/stdin -vvv[/bold]
    """
    from callgate.cli.show import lspci_dump, show_device

    cls = load_device_class(file)
    if lspci:
        with _device_code():
            text = lspci_dump(cls())
        sys.stdout.write(text)
    else:
        show_device(cls)


@app.command()
def header(file: File) -> None:
    """Print the C header with typed wrappers for a device's calls, and its registers' names.

    For example: [bold]callgate header examples/01_adder/device.py > adder.h[/bold]
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
    calls: Annotated[
        int, typer.Option(metavar="N", min=1000, help="Calls measured in each row.")
    ] = 20000,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw a plot (.png, .svg, .pdf); needs the extra plot."),
    ] = None,
) -> None:
    """Measure a whole call as the guest sees it, beside a bare trap of the same emulator.

    For example: [bold]callgate bench --on unicorn --arch aarch64 --json[/bold]
    """
    from callgate.cli.bench import run_bench

    run_bench(backends=on, architectures=arch, calls=calls, as_json=json, plot=plot)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(metavar="DIR", help="The examples' folder.")] = Path(
        "examples"
    ),
) -> None:
    """Run every example on every architecture and platform; print what each transport did.

    Exits with 1 if anything was not as it should be.

    For example: [bold]callgate demo[/bold]
    """
    from callgate.cli.demo import run_demo

    raise typer.Exit(run_demo(folder))


def _path_of(cls: type[Device]) -> Path:
    """The file that defines a class, as one would name it here."""
    path = Path(inspect.getfile(cls))
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


@contextmanager
def _device_code() -> Iterator[None]:
    """An exception of a device's own code, such as its __init__, is its author's to see."""
    try:
        yield
    except (CallgateError, OSError):
        raise
    except Exception as error:
        raise DeviceFileBug from error


def _echo(byte: int) -> None:
    """Pass on what the guest writes, line by line, as it comes."""
    out = sys.stdout.buffer
    out.write(bytes((byte,)))
    if byte == 0x0A:
        out.flush()


def _tracer() -> Callable[[Event], None]:
    began = time.perf_counter()

    def show(event: Event) -> None:
        # One write: calls may come from several threads.
        sys.stderr.write(f"{(time.perf_counter() - began) * 1e3:9.3f} ms  {event}\n")

    return show
