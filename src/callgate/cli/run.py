# SPDX-License-Identifier: MIT
"""`callgate run`: a guest program with devices, on a backend."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from callgate.cli.options import HandlerTimeout, Slots, Trace, need_positive, tracer
from callgate.device import Device
from callgate.errors import BackendError
from callgate.load import find_guest, load_slot, make_devices

if TYPE_CHECKING:
    from callgate.cli.qemu import Options

Classes: TypeAlias = Sequence[tuple[type[Device], ...]]
"""By slot, and in it by function."""


def _on_qemu(metavar: str | None, help: str, *, name: str | None = None, **options: Any) -> Any:
    """An option that is for the backend qemu alone."""
    names = () if name is None else (name,)
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel="On qemu", **options)


def _of_linux(metavar: str | None, help: str, *, name: str | None = None, **options: Any) -> Any:
    """An option for the backends that boot Linux."""
    names = () if name is None else (name,)
    panel = "Linux, on qemu and kvm"
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, **options)


def run(
    files: Slots,
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
    trace: Trace = False,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="End a guest that runs longer.")
    ] = None,
    instructions: Annotated[
        int | None, typer.Option(metavar="N", help="End a guest that executes more.")
    ] = None,
    handler_timeout: HandlerTimeout = None,
    kernel: Annotated[
        Path | None, _of_linux("IMAGE", "Linux to boot.", show_default="the newest one in /boot")
    ] = None,
    modules: Annotated[
        Path | None, _of_linux("DIR", "Its modules.", show_default="lib/modules/VERSION")
    ] = None,
    module: Annotated[
        list[str] | None, _of_linux("NAME", "Load this module, and what it needs, first.")
    ] = None,
    file: Annotated[
        list[str] | None, _of_linux("FILE[:PATH]", "Put this file into the guest, in /root.")
    ] = None,
    execute: Annotated[
        str | None,
        _of_linux(
            "COMMAND",
            "What Linux runs; a program that is a file here is put there.",
            name="--exec",
            show_default="a shell",
        ),
    ] = None,
    busybox: Annotated[
        Path | None, _of_linux("FILE", "A static busybox.", show_default="the installed one")
    ] = None,
    qemu: Annotated[
        Path | None, _on_qemu("FILE", "QEMU 10.1 or later.", show_default="the one on PATH")
    ] = None,
    memory: Annotated[int, _of_linux("MIB", "The guest's memory.", min=16)] = 256,
    cpus: Annotated[int, _of_linux("N", "The guest's processors.", min=1)] = 1,
    accelerator: Annotated[
        str | None,
        _on_qemu("NAME", "kvm or tcg.", name="--accel", show_default="kvm where it works"),
    ] = None,
    append: Annotated[str, _of_linux("WORDS", "More for the kernel's command line.")] = "",
    qemu_option: Annotated[
        list[str] | None, _on_qemu("WORDS", "More for QEMU's command line.")
    ] = None,
    private: Annotated[
        bool, _on_qemu(None, "Share no memory: devices read and write it by messages.")
    ] = False,
    hotplug: Annotated[
        bool, _on_qemu(None, "Plug the devices in when the program starts; unplug them after.")
    ] = False,
    dry_run: Annotated[bool, _on_qemu(None, "Print QEMU's command line only.")] = False,
) -> None:
    """Run a guest program with the devices plugged in; exit with the guest's exit code.

    For example:

    [bold]callgate run examples/01_adder/device.py[/bold]

    [bold]callgate run examples/01_adder/device.py --arch riscv64 --platform native --trace[/bold]

    [bold]callgate run disk.py,net.py other.py:Second --guest firmware.elf --timeout 10[/bold]

    On qemu, Linux boots with the devices in it, unless there is a --guest:

    [bold]callgate run examples/01_adder/device.py --on qemu[/bold]

    [bold]callgate run device.py --on qemu --module my_driver.ko --exec ./my_test[/bold]

    On kvm too, where one of the options for Linux is given:

    [bold]callgate run device.py --on kvm --module my_driver.ko --exec ./my_test[/bold]
    """
    from callgate.cli.qemu import Options

    need_positive("--timeout", timeout)
    need_positive("--handler-timeout", handler_timeout)
    if instructions is not None and instructions < 1:
        raise typer.BadParameter(f"--instructions must be at least 1, not {instructions}")
    linux = Options(
        kernel=kernel,
        modules_folder=modules,
        module=tuple(module or ()),
        file=tuple(file or ()),
        execute=execute,
        busybox=busybox,
        qemu=qemu,
        memory=memory,
        cpus=cpus,
        accelerator=accelerator,
        append=append,
        qemu_option=tuple(qemu_option or ()),
        private=private,
        hotplug=hotplug,
        dry_run=dry_run,
    )
    common: dict[str, Any] = {
        "arch": arch,
        "guest": guest,
        "timeout": timeout,
        "handler_timeout": handler_timeout,
        "trace": tracer(trace),
    }
    slots = [load_slot(each) for each in files]
    if on == "qemu":
        if platform is not None or instructions is not None:
            raise typer.BadParameter("--platform and --instructions are not for --on qemu")
        code = _in_qemu(slots, files, linux, **common)
    elif linux.given_for_qemu():
        raise typer.BadParameter("the options of the panel 'On qemu' must go with --on qemu")
    elif on == "kvm" and linux.given():
        if instructions is not None:
            raise typer.BadParameter("--instructions is not for --on kvm")
        code = _in_linux_on_kvm(slots, linux, platform=platform, **common)
    elif linux.given():
        raise typer.BadParameter("the options for Linux must go with --on qemu or --on kvm")
    else:
        code = _in_machine(slots, on=on, platform=platform, instructions=instructions, **common)
    raise typer.Exit(code)


def _in_qemu(slots: Classes, files: Sequence[str], options: Options, **common: Any) -> int:
    """Run Linux, or a program, in QEMU; the guest's exit code."""
    from callgate.cli.qemu import run_on_qemu

    if any(len(slot) > 1 for slot in slots):
        raise BackendError("On qemu each device must be a FILE of its own: it has a slot to itself")
    devices = make_devices(cls for slot in slots for cls in slot)
    return run_on_qemu(devices, files, options, echo=_echo, **common)


def _in_linux_on_kvm(slots: Classes, options: Options, **common: Any) -> int:
    """Run Linux in a machine of our own; the guest's exit code."""
    from callgate.cli.kvm import run_linux_on_kvm

    return run_linux_on_kvm(slots, options, echo=_echo, **common)


def _in_machine(slots: Classes, *, on: str, guest: Path | None, **common: Any) -> int:
    """Run a program on a backend of ours; the guest's exit code."""
    from callgate.backends.base import backend
    from callgate.machine import Machine

    if not backend(on).has_processor:
        raise BackendError(
            f"The backend {on} must have a processor to run a guest program: it is for "
            "drivers in Python (callgate.testing.FakeGuest)"
        )
    if guest is None:
        guest = find_guest(_path_of(slots[0][0]), common["arch"] or "x86_64")
    devices = [make_devices(slot) for slot in slots]
    with Machine(*devices, on=on, guest=guest, **common) as machine:
        machine.console.on_byte = _echo
        return machine.run().exit_code


def _path_of(cls: type[Device]) -> Path:
    """The file that defines a class, as one would name it here."""
    path = Path(inspect.getfile(cls))
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _echo(byte: int) -> None:
    """Pass on what the guest writes, line by line, or at once to a terminal."""
    out = sys.stdout.buffer
    out.write(bytes((byte,)))
    if byte == 0x0A or out.isatty():
        out.flush()
