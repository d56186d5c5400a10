# SPDX-License-Identifier: MIT
"""`callgate show`: a device's datasheet on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from callgate.device import Device


def show_device(cls: type[Device], console: Console | None = None) -> None:
    """Print what the class declares."""
    spec = cls.spec
    console = console or Console()
    vendor, device = cls.id
    console.print(f"[bold]{spec.name}[/bold]  {vendor:04x}:{device:04x}  class {cls.class_code:06x}"
                  f"  rev {cls.revision:02x}")  # fmt: skip
    if spec.doc:
        console.print(spec.doc.splitlines()[0], highlight=False)
    console.print(f"ABI {spec.uuid} version {cls.version}, {cls.frames} frames of "
                  f"{cls.frame_size} bytes" if spec.calls else "no calls, so no gate")  # fmt: skip
    if spec.bars:
        table = _table("BARs", "index", "name", "kind", "size", "width")
        for bar in spec.bars:
            kind = bar.kind + (", prefetchable" if bar.prefetchable else "")
            table.add_row(str(bar.index), bar.name, kind, f"{bar.size:#x}", str(bar.width))
        console.print(table)
    if spec.registers:
        table = _table("Registers", "offset", "name", "width", "access", "reset", "")
        for register in sorted(spec.registers, key=lambda one: one.offset):
            table.add_row(
                f"{register.offset:#06x}", register.name, str(register.width),
                register.access, f"{register.reset:#x}", register.doc,
            )  # fmt: skip
            for field in register.fields:
                bits = str(field.low) if field.low == field.high else f"{field.high}:{field.low}"
                table.add_row("", f"  {field.name}", rf"\[{bits}]", field.access,
                              f"{field.reset:#x}", field.doc)  # fmt: skip
        console.print(table)
    if spec.interrupts:
        table = _table(f"Interrupts by {spec.interrupts_by}", "index", "name", "")
        for interrupt in spec.interrupts:
            table.add_row(str(interrupt.index), interrupt.name, interrupt.doc)
        console.print(table)
    if spec.calls:
        table = _table("Calls", "signature", "hash", "flags", "")
        for call in spec.calls:
            flags = " ".join(flag.name.lower() for flag in call.flags if flag.name)
            table.add_row(
                call.text, f"{call.hash:016x}", flags, call.doc.splitlines()[0] if call.doc else ""
            )
        console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def lspci_dump(*slots: tuple[Device, ...]) -> str:
    """Config space of a machine with these devices in it, as `lspci -F` reads it.

    It is as firmware leaves it: addresses are assigned and decoded, nobody is bus master.
    """
    from callgate.machine import Machine
    from callgate.pci.lspci import dump

    with Machine(*slots, on="loopback", watch=False) as machine:
        return dump(machine.bus)
