# SPDX-License-Identifier: MIT
"""`callgate probe --kvm`: what this host's KVM can do, which transports follow, what is missing."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from callgate.backends.base import backend
from callgate.backends.kvm import probe
from callgate.backends.platform import PLATFORMS
from callgate.gate.abi import Transport

ARCH = "x86_64"


def run_probe_kvm(*, as_json: bool) -> None:
    """Print it. Raises BackendError where this host has no KVM that we could use."""
    kind = backend("kvm")
    host = probe.host()
    platform = PLATFORMS[kind.platforms(ARCH)[0]]
    offered = platform.offer.transports
    transports = {
        str(each.name).lower(): bool(offered & each)
        for each in Transport
        if each is not Transport.HYPERCALL
    }
    transports["hypercall"] = bool(offered & Transport.HYPERCALL)
    found: dict[str, Any] = {
        "processor": host.vendor,
        "virtualizes": host.virtualizes,
        "processors": kind.most_cpus(),
        "platform": platform.name,
        "transports": transports,
        "no_hypercall": host.no_hypercall,
        "capabilities": host.capabilities,
    }
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 100
    how = "virtualizes by itself" if host.virtualizes else "does not: KVM is emulated in software"
    console.print(f"processor   {host.vendor}, {how}")
    linux = "Linux, and bare metal" if host.virtualizes else "bare metal only"
    console.print(f"guests      up to {kind.most_cpus()} processors; {linux}")
    console.print(f"platform    {platform.name}")
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, there in transports.items():
        words = "yes" if there else f"no: {host.no_hypercall}"
        if there and name == "hypercall":
            words = f"yes, by {platform.offer.instruction.name.lower()}"
        table.add_row("transport", name, words)
    console.print(table)
    console.print()
    table = Table(box=None, pad_edge=False)
    for heading in ("capability", "value", "what for"):
        table.add_column(heading)
    for name, use in {**probe.NEEDED, **probe.USED}.items():
        value = host.capabilities[name]
        missing = "" if value else " (missing)"
        table.add_row(name, str(value), use + missing)
    console.print(table)
