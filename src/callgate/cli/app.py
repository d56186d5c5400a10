# SPDX-License-Identifier: MIT
"""The commands. Each says in its help what it does, with an example.

Exit codes: the guest's own for `run`; 2 for what the user can mend, told in one sentence; 1 for a
bug in a device model, shown as its own traceback, and for a demo that went wrong; 130 for Ctrl-C;
0 for a `serve` that SIGTERM ended.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand
from typer.main import get_command

from callgate.cli.options import (
    File,
    Files,
    HandlerTimeout,
    Json,
    Lspci,
    Slots,
    Trace,
    need_positive,
    tracer,
)
from callgate.cli.run import run
from callgate.errors import CallgateError
from callgate.load import load_device_class, load_slot, make_devices
from callgate.report import is_users, user_traceback

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
    except SystemExit as error:  # A model's, or rich's, which ends so what nobody reads.
        if isinstance(error.__context__, BrokenPipeError):
            return _nobody_reads()
        return error.code if isinstance(error.code, int) else _tell(str(error.code), 1)
    except typer.TyperException as error:
        return _tell(f"{error.format_message().rstrip('.')} (--help tells more)")
    except KeyboardInterrupt:
        return _tell("interrupted", INTERRUPTED)
    except BrokenPipeError:
        return _nobody_reads()
    except CallgateError as error:
        return _tell(str(error))
    except Exception as error:
        if isinstance(error, OSError) and not is_users(error):
            return _tell(f"{error.filename or 'the system'}: {error.strerror or error}")
        print(user_traceback(error), file=sys.stderr)
        return 1
    return 0


def _tell(sentence: str, code: int = WRONG_USE) -> int:
    print(f"callgate: {sentence}", file=sys.stderr)
    return code


def _nobody_reads() -> int:
    # Python flushes once more at its end, and would complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return NOBODY_READS


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


app.command()(run)


@app.command()
def show(
    files: Slots,
    lspci: Lspci = False,
) -> None:
    """Show what devices declare: ids, BARs, registers, interrupts, calls.

    For example:

    [bold]callgate show examples/01_adder/device.py[/bold]

    [bold]callgate show examples/01_adder/device.py --lspci | lspci -F /dev/stdin -vvv[/bold]
    """
    from callgate.cli.show import lspci_dump, show_device

    if lspci:
        slots = [make_devices(load_slot(each)) for each in files]
        sys.stdout.write(lspci_dump(*slots))
    else:
        for each in files:
            for cls in load_slot(each):
                show_device(cls)


@app.command()
def lspci(json: Json = False) -> None:
    """List the devices with a gate that this Linux has, and their calls. In a guest, that is.

    Those that no driver has take root to look at. For example:

    [bold]callgate lspci[/bold]
    """
    from callgate.driver.lspci import main

    raise typer.Exit(main(["--json"] * json))


@app.command()
def serve(
    files: Files,
    sockets: Annotated[
        list[Path],
        typer.Option(
            "--socket", metavar="PATH", help="Where to listen; one for each FILE, in order."
        ),
    ],
    keep_state: Annotated[
        bool, typer.Option("--keep-state", help="Do not reset a device whose client has gone.")
    ] = False,
    handler_timeout: HandlerTimeout = None,
    linger: Annotated[
        float,
        typer.Option(metavar="MS", min=0, help="Watch the frames so long after the last call."),
    ] = 5.0,
    trace: Trace = False,
) -> None:
    """Serve devices by vfio-user, for a hypervisor to plug in; ends with Ctrl-C or SIGTERM.

    For example:

    [bold]callgate serve examples/01_adder/device.py --socket /tmp/adder.sock[/bold]

    [bold]callgate serve disk.py net.py --socket /tmp/disk.sock --socket /tmp/net.sock[/bold]
    """
    need_positive("--handler-timeout", handler_timeout)
    if not math.isfinite(linger):
        raise typer.BadParameter(f"--linger must be a number of milliseconds, not {linger}")
    classes = [load_device_class(file) for file in files]
    from callgate.cli.serve import run_serve

    ended_by = run_serve(
        classes,
        sockets,
        keep_state=keep_state,
        handler_timeout=handler_timeout,
        linger=linger / 1000,
        trace=tracer(trace),
    )
    if ended_by == signal.SIGINT:
        raise KeyboardInterrupt


class _InOrder(TyperCommand):
    """A command that knows in which order its repeated options came (`ctx.meta`)."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta["callgate.order"] = [param.name for param in order]
        return super().parse_args(ctx, args)


@app.command(cls=_InOrder)
def probe(
    ctx: typer.Context,
    socket: Annotated[
        Path | None,
        typer.Argument(
            metavar="SOCKET", help="Where a vfio-user server listens.", show_default=False
        ),
    ] = None,
    kvm: Annotated[
        bool, typer.Option("--kvm", help="Show what this host's KVM can do instead.")
    ] = False,
    read: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REGION:OFFSET[:SIZE[:COUNT]]",
            help="Read: bar0 to bar5, config, rom or a number; by default 4 bytes, once.",
        ),
    ] = None,
    write: Annotated[
        list[str] | None,
        typer.Option(metavar="REGION:OFFSET:SIZE=VALUE", help="Write, and wait for the answer."),
    ] = None,
    bench: Annotated[
        bool,
        typer.Option("--bench", help="Measure accesses. Writes to a register what it held."),
    ] = False,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="REGION:OFFSET[:SIZE]",
            help="The register that --bench measures.",
            show_default="the first that traps",
        ),
    ] = None,
    count: Annotated[
        int, typer.Option(metavar="N", min=10, help="Accesses measured in each row.")
    ] = 1000,
    lspci: Lspci = False,
    json: Json = False,
) -> None:
    """Show the device of any vfio-user server, or access its registers, or measure them.

    For example:

    [bold]callgate probe /tmp/adder.sock[/bold]

    [bold]callgate probe /tmp/adder.sock --write bar0:0:4=2 --read bar0:0 --read bar0:0xc[/bold]

    [bold]callgate probe /tmp/adder.sock --bench --at bar0:0xc --count 10000 --json[/bold]

    [bold]callgate probe /tmp/adder.sock --lspci | lspci -F /dev/stdin -vvv[/bold]

    [bold]callgate probe --kvm[/bold]
    """
    if kvm or socket is None:
        if not kvm or socket is not None or read or write or bench or at or lspci:
            raise typer.BadParameter("give a SOCKET, or --kvm and nothing else but --json")
        from callgate.cli.probe_kvm import run_probe_kvm

        run_probe_kvm(as_json=json)
        return
    from callgate.cli.probe import run_probe
    from callgate.cli.probe_access import parse_place, parse_read, parse_write

    if at is not None and not bench:
        raise typer.BadParameter("--at must come with --bench: it names the register to measure")
    if lspci and (json or read or write or bench):
        raise typer.BadParameter("--lspci must stand alone: its output is for another program")
    reads, writes = map(parse_read, read or ()), map(parse_write, write or ())
    order = [name for name in ctx.meta["callgate.order"] if name in ("read", "write")]
    run_probe(
        socket,
        accesses=[next(reads if name == "read" else writes) for name in order],
        benchmark=bench,
        count=count,
        place=None if at is None else parse_place(at),
        lspci=lspci,
        as_json=json,
    )


@app.command()
def header(file: File) -> None:
    """Print the C header with typed wrappers for a device's calls, and its registers' names.

    For example: [bold]callgate header examples/01_adder/device.py > adder.h[/bold]
    """
    from callgate.generate import header as generate_header

    sys.stdout.write(generate_header(load_device_class(file)))


@app.command()
def reference(file: File) -> None:
    """Print a device's reference page for driver writers, in Markdown.

    For example: [bold]callgate reference examples/01_adder/device.py > adder.md[/bold]
    """
    from callgate.generate import reference as generate_reference

    sys.stdout.write(generate_reference(load_device_class(file)))


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
    json: Json = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the tables of README.md.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw a plot (.png, .svg, .pdf); needs the extra plot."),
    ] = None,
    modules: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="With qemu: measure Linux drivers' calls too, by the callgate.ko in this folder.",
        ),
    ] = None,
) -> None:
    """Measure a whole call as the guest sees it, beside a bare trap of the same emulator.

    For example: [bold]callgate bench --on unicorn --arch aarch64 --json[/bold]
    """
    from callgate.cli.bench import run_bench

    if json and markdown:
        raise typer.BadParameter("--json and --markdown must not go together")
    if modules is not None and "qemu" not in (on or ()):
        raise typer.BadParameter("--modules must go with --on qemu")
    form = "json" if json else "markdown" if markdown else "table"
    run_bench(backends=on, architectures=arch, calls=calls, form=form, plot=plot, modules=modules)


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
