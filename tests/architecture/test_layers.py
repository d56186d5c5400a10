# SPDX-License-Identifier: MIT
"""The folder tree is the architecture: a module imports its own layer and those below.

Every failure names the file, the line and what must hold.
"""

import ast
import functools
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "callgate"

# A part is a module or a folder right below src/callgate, or a module that is named here by
# itself. Lowest layer first; a new part is given its place here.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset(
        {
            "call",
            "compiled",
            "counter",
            "deadline",
            "declaration",
            "device",
            "errors",
            "faults",
            "gate.abi",  # numbers and layouts, which need nothing and which all refer to
            "interrupt",
            "memory",
            "register",
            "report",
            "spec",
            "threads",
            "timers",
            "trace",
        }
    ),
    frozenset({"gate", "pci"}),
    frozenset({"backends", "devices", "elf", "linux"}),
    frozenset(
        {"bench", "driver", "generate", "linux_guest", "load", "machine", "overrun", "testing"}
    ),
    frozenset({"cli", "__main__"}),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS, start=1) for part in parts}

# Who may import what lies outside callgate; all other modules may not. A name that ends in "/"
# stands for the folder.
OUTSIDE = {
    "ctypes": (
        "linux/",
        "backends/",
        "driver/chardev.py",  # addresses of buffers in the kernel module's structures
        "driver/sysfs.py",  # a buffer's address, to look up where it is in memory
        "threads.py",  # CPython raises in another thread through its C interface alone
    ),
    "fcntl": (
        "linux/",
        "backends/",
        "bench/kvm.py",  # a bare loop in Python, to be compared with
        "driver/chardev.py",  # the shortest way of a call
        "memory.py",  # seals the size of shared memory
    ),
    "mmap": (
        "linux/",
        "backends/",
        "driver/sysfs.py",  # a guest's program maps BARs
        "memory.py",  # anonymous shared memory, the same on every platform
    ),
    "unicorn": ("backends/",),
    "rich": ("cli/",),
    "typer": ("cli/",),
}

# Parts that know no more of callgate than these.
ALONE = {"linux": ("errors",)}

# Not needed to declare a device, so not loaded by `import callgate`.
LAZY = {"elftools", "matplotlib", "numpy", "rich", "typer", "unicorn"}

# Stands where a user stands, so may import the public names: stock devices are device files, and
# the command line lies above all.
LIKE_A_USER = ("devices/", "cli/")


class Import(NamedTuple):
    line: int
    module: str  # dotted, absolute
    on_load: bool  # carried out when the module that holds it is loaded


def imports(source: str, file: str) -> Iterator[Import]:
    """Yield each import in a module; `file` is its path below src/callgate."""
    folders = ("callgate", *Path(file).parts[:-1])

    def visit(node: ast.AST, on_load: bool) -> Iterator[Import]:
        match node:
            case ast.Import():
                for name in node.names:
                    yield Import(node.lineno, name.name, on_load)
            case ast.ImportFrom():
                base = folders[: len(folders) - node.level + 1] if node.level else ()
                module = ".".join((*base, *filter(None, [node.module])))
                for name in node.names:
                    yield Import(node.lineno, f"{module}.{name.name}", on_load)
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                for statement in node.body:
                    yield from visit(statement, False)
                for statement in node.orelse:
                    yield from visit(statement, on_load)
            case _:
                inside = on_load and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                for child in ast.iter_child_nodes(node):
                    yield from visit(child, inside)

    yield from visit(ast.parse(source), True)


def part_of(module: str) -> str:
    """Return the part that a dotted name below callgate lies in, "" for the public names."""
    names = module.split(".")[1:]
    return next((part for n in (2, 1) if (part := ".".join(names[:n])) in LEVEL), "")


def part_of_file(file: str) -> str:
    """Return the part that a file below src/callgate lies in, by its first name if none does."""
    module = Path("callgate", file).with_suffix("")
    return part_of(".".join(module.parts)) or module.parts[1]


def breaches(source: str, file: str) -> list[str]:
    """Return a sentence for each import that a rule forbids."""
    own = part_of_file(file)
    found: dict[str, None] = {}

    def report(line: int, sentence: str) -> None:
        found[f"src/callgate/{file}:{line}: {sentence}"] = None

    if own != "__init__" and own not in LEVEL:
        report(1, f"{own} must have its place in LAYERS of this test.")
        return list(found)
    for line, module, _ in imports(source, file):
        top = module.split(".")[0]
        allowed = OUTSIDE.get(top)
        if allowed is not None and not file.startswith(allowed):
            report(line, f"only {', '.join(allowed)} may import {top}.")
        if top != "callgate" or own == "__init__":
            continue
        part = part_of(module)
        if not part and module.count(".") > 1:
            report(line, f"{module} must have its place in LAYERS of this test.")
        elif not part and not file.startswith(LIKE_A_USER):
            report(line, f"{module} must be imported from the module that defines it.")
        elif own in ALONE and part not in (own, *ALONE[own]):
            report(line, f"{own} must import only {', '.join(ALONE[own])} of callgate.")
        elif part and LEVEL[part] > LEVEL[own]:
            report(
                line,
                f"{own} is of layer {LEVEL[own]} and must not import {part}, of layer "
                f"{LEVEL[part]}: have it passed in, or move the code.",
            )
    return list(found)


@functools.cache
def modules() -> dict[str, str]:
    """Return the source of each module by its path below src/callgate."""
    return {
        file.relative_to(PACKAGE).as_posix(): file.read_text()
        for file in sorted(PACKAGE.rglob("*.py"))
    }


def test_each_module_imports_its_own_layer_and_those_below() -> None:
    found = [breach for file, source in modules().items() for breach in breaches(source, file)]
    assert not found, "\n" + "\n".join(found)


def test_contributing_shows_the_same_layers() -> None:
    rows = re.findall(r"^\| (\d) \| (.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    shown = {int(level): set(re.findall(r"`([\w/]+)`", parts)) for level, parts in rows}
    layers = enumerate(LAYERS, start=1)
    assert shown == {level: {part.replace(".", "/") for part in parts} for level, parts in layers}


def test_each_exception_is_needed() -> None:
    """One that nobody uses any more would let somebody in unseen."""

    def imported(place: str, wanted: str) -> bool:
        return any(
            found.module.split(".")[0] == wanted or found.module.startswith(f"{wanted}.")
            for file, source in modules().items()
            if file.startswith(place)
            for found in imports(source, file)
        )

    unused = [
        f"{place} need not be excepted: it does not import {package}"
        for package, places in OUTSIDE.items()
        for place in places
        if not imported(place, package)
    ]
    unused += [
        f"{place} need not be excepted: it imports no public names"
        for place in LIKE_A_USER
        if not any(
            found.module.startswith("callgate.") and not part_of(found.module)
            for file, source in modules().items()
            if file.startswith(place)
            for found in imports(source, file)
        )
    ]
    unused += [
        f"{part} need not be in LAYERS: there is no such part"
        for part in LEVEL
        if part not in {part_of_file(file) for file in modules()}
    ]
    assert not unused, "\n" + "\n".join(unused)


def test_no_part_imports_itself_through_others() -> None:
    graph: dict[str, set[str]] = {}
    for file, source in modules().items():
        own = part_of_file(file)
        needs = graph.setdefault(own, set())
        if own != "__init__":
            inner = (i for i in imports(source, file) if i.module.startswith("callgate."))
            needs |= {part_of(i.module) for i in inner if i.on_load} - {own, ""}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"these import each other when they are loaded: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("file", "source", "sentence"),
    [
        ("gate/abi.py", "from callgate.gate import gate", "gate.abi is of layer 1"),
        ("call.py", "from callgate.machine import Machine", "must not import machine"),
        ("pci/bus.py", "from ..driver import open", "must not import driver"),
        ("gate/gate.py", "def f():\n    import callgate.cli", "gate.py:2: gate is of layer 2"),
        ("gate/gate.py", "from callgate import Device", "from the module that defines it"),
        ("pci/msix.py", "import ctypes", "threads.py may import ctypes"),
        ("linux/kvm.py", "from ..memory import GuestMemory", "linux must import only errors of"),
        ("device.py", "from unicorn import Uc", "only backends/ may import unicorn"),
        ("device.py", "from callgate.novelty import N", "novelty.N must have its place in LAYERS"),
        ("novelty.py", "", "novelty must have its place in LAYERS"),
    ],
)
def test_a_forbidden_import_is_named(file: str, source: str, sentence: str) -> None:
    (breach,) = breaches(source, file)
    assert sentence in breach


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("errors.py", "from callgate.gate.abi import Status"),
        ("pci/bus.py", "from . import config\nfrom ..errors import CallgateError"),
        ("backends/unicorn.py", "import ctypes, mmap\nfrom unicorn import Uc"),
        ("linux/kvm.py", "import mmap\nfrom ctypes import sizeof\nfrom .ioctl import _IO"),
        ("linux/file.py", "from callgate.errors import CallgateError"),
        ("devices/edu.py", "from callgate import Device, Register"),
        ("__init__.py", "from callgate.machine import Machine"),
    ],
)
def test_an_allowed_import_is_not(file: str, source: str) -> None:
    assert breaches(source, file) == []


def test_declaring_a_device_loads_no_third_party_package() -> None:
    program = "import sys, callgate; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()
    assert "callgate" in loaded
    assert not LAZY.intersection(loaded), "`import callgate` must not import these"


# What a file says of itself, and must not say of the machine it was written on.

LICENSES = {"guest/linux/": "GPL-2.0", "": "MIT"}
SOURCE_NAMES = {"Kbuild", "Makefile", "setup", "lock", "run"}
SOURCE_ENDS = {".S", ".c", ".h", ".ld", ".lds", ".py", ".pyi", ".sh", ".toml", ".yml"}

# In parts, so that this file does not break its own rule.
REGISTRY_HOSTS = [
    ".".join(parts)
    for parts in [
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("deb", "debian", "org"),
        ("ftp", "debian", "org"),
        ("snapshot", "debian", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("archive", "ubuntu", "com"),
    ]
]
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|root|home|Users)/\w")


@functools.cache
def repository_files() -> dict[str, str]:
    """Return each text file that is, or would be, under version control."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    # Outside a clone (an unpacked archive), all that is there.
    names = listed.stdout.decode().split("\0") if listed.returncode == 0 else walked()
    texts = {}
    for name in filter(None, names):
        content = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b"\0"
        if b"\0" not in content:
            texts[name] = content.decode()
    return texts


def walked() -> list[str]:
    made = {".git", ".venv", "build", "dist", "__pycache__"}
    files = (file.relative_to(ROOT) for file in ROOT.rglob("*") if file.is_file())
    return [
        file.as_posix()
        for file in files
        if not made.intersection(file.parts)
        and not any(part.endswith(("_cache", ".egg-info")) for part in file.parts)
    ]


def test_each_source_file_names_its_license() -> None:
    wrong = []
    for name, text in repository_files().items():
        if Path(name).suffix not in SOURCE_ENDS and Path(name).name not in SOURCE_NAMES:
            continue
        license = next(license for folder, license in LICENSES.items() if name.startswith(folder))
        first, _, rest = text.partition("\n")
        line = rest.partition("\n")[0] if first.startswith("#!") else first
        if f"SPDX-License-Identifier: {license}" not in line:
            wrong.append(f"{name}:1: the first line must say SPDX-License-Identifier: {license}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_file_names_a_registry_or_a_machine() -> None:
    wrong = []
    for name, text in repository_files().items():
        for number, line in enumerate(text.splitlines(), start=1):
            hosts = [host for host in REGISTRY_HOSTS if host in line]
            wrong += [f"{name}:{number}: must not name the host {host}" for host in hosts]
            if path := MACHINE_PATH.search(line):
                wrong.append(f"{name}:{number}: must not name a path of one machine: {path[0]}...")
    assert not wrong, "\n" + "\n".join(wrong)
