# SPDX-License-Identifier: MIT
"""What is shown, runs: the pages' code is executed, and their commands, files and tables exist."""

import importlib.util
import inspect
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import pytest
from typer.main import get_command

import callgate.linux_guest as linux_guest_module
from callgate.backends.board import BOARDS
from callgate.backends.result import Result
from callgate.bench.report import MARK, as_markdown
from callgate.cli.app import app
from callgate.linux_guest import LinuxGuest
from callgate.load import load_device_class
from callgate.machine import Machine
from callgate.testing.linux import run_linux

ROOT = Path(__file__).resolve().parents[2]
ADDER = ROOT / "examples" / "01_adder"
PAGES = sorted(
    file.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "examples/*/README.md")
    for file in ROOT.glob(pattern)
    if file.name != "CHANGELOG.md"
)
KNOWN = {"python", "c", "sh", "toml", ""}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def blocks(page: str, language: str) -> Iterator[tuple[int, str]]:
    """The blocks of a language, each with the lines before it."""
    text = text_of(page)
    for found in BLOCK.finditer(text):
        if found[1] == language:
            yield text[: found.start(2)].count("\n"), found[2]


def files(page: str) -> dict[str, str]:
    """Files that a page shows whole, by name: what stands below a line with nothing but that."""
    return dict(
        re.findall(r"^`([\w.]+)`:\n\n```\w*\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)
    )


def having(language: str) -> list[str]:
    return [page for page in PAGES if any(blocks(page, language))]


@pytest.mark.parametrize("page", PAGES)
def test_a_block_says_what_it_is(page: str) -> None:
    found = {match[1] for match in BLOCK.finditer(text_of(page))}
    assert found <= KNOWN, f"{page}: a block must be one of {KNOWN}, so that it is tested"


def linux_guest(*devices: Any, **options: Any) -> Result:
    """Stands in for the fixture: that one is run in examples/01_adder/test_linux.py."""
    inspect.signature(run_linux).bind(*devices, **options)
    return Result(0, "2 + 40 = 42 ok\n", None, 2.0)


class Guest:
    """Stands in for `LinuxGuest`, which is run in tests/kvm."""

    def __init__(self, *devices: Any, **options: Any) -> None:
        own = {"on", "program", "modules", "files"}
        inspect.signature(LinuxGuest.__init__).bind(self, *devices, **options)
        assert set(options) - own <= set(inspect.signature(Machine.__init__).parameters)
        self.run = partial(Result, 0, "2 + 40 = 42 ok\n", None, 2.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.mark.parametrize("page", having("python"))
def test_python_runs(
    page: str, guests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_guest: Any
) -> None:
    """In the order of the page. There are the files of the first example, as a user has them, and
    its device, or the page's own."""
    shutil.copy(ADDER / "device.py", tmp_path)
    if own := files(page).get("device.py"):
        (tmp_path / "device.py").write_text(own, "utf-8")
    shutil.copy(guests / "aarch64" / "01_adder.elf", tmp_path / "adder.elf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "device", raising=False)
    monkeypatch.setattr(linux_guest_module, "LinuxGuest", Guest)
    given: dict[str, Callable[..., Any]] = {"fake_guest": fake_guest, "linux_guest": linux_guest}
    module = ModuleType("page")
    for line, block in blocks(page, "python"):
        exec(compile("\n" * line + block, page, "exec"), vars(module))
    for name, test in list(vars(module).items()):
        if name.startswith("test_") and inspect.isfunction(test):
            test(*(given[wanted] for wanted in inspect.signature(test).parameters))
    monkeypatch.delitem(sys.modules, "device", raising=False)


def test_the_readmes_device_is_the_first_example() -> None:
    _, device = next(blocks("README.md", "python"))
    assert (ADDER / "device.py").read_text("utf-8").endswith(device)


@pytest.mark.parametrize("arch", list(BOARDS))
def test_the_readmes_guest_says_42(arch: str, tmp_path: Path) -> None:
    specification = importlib.util.spec_from_file_location("guest_build", ROOT / "guest/build.py")
    assert specification is not None
    assert specification.loader is not None
    build = importlib.util.module_from_spec(specification)
    sys.modules["guest_build"] = build
    specification.loader.exec_module(build)
    ((_, text),) = blocks("README.md", "c")
    source = tmp_path / "guest.c"
    source.write_text(text, "utf-8")
    build.write_header(ADDER / "device.py")
    architecture = next(each for each in build.ARCHITECTURES if each.name == arch)
    program = tmp_path / "guest.elf"
    build.compile_guest(architecture, build.Guest("guest", source), program)
    adder = load_device_class(ADDER / "device.py")()
    with Machine(adder, arch=arch, guest=program, timeout=20) as machine:
        result = machine.run()
    assert (result.output, result.exit_code) == ("42\n", 0)


def commands(page: str) -> Iterator[list[str]]:
    """What a page would have one type: in sh blocks, and behind a `$`. Continued lines are one."""
    text = text_of(page).replace("\\\n", " ")
    lines = [
        line for found in BLOCK.finditer(text) if found[1] == "sh" for line in found[2].split("\n")
    ]
    lines += re.findall(r"^ +\$ (.*)$", text, re.MULTILINE)
    lines += re.findall(r"^ {4}((?:callgate|make) .*?)(?:  .*)?$", text, re.MULTILINE)
    for line in lines:
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "|"]:
            if word in ("|", "&", ">", "..."):
                if words:
                    yield words
                words = []
            else:
                words.append(word)


@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(page))])
def test_commands_can_be_given(page: str) -> None:
    """They are parsed and not carried out; `make` targets and scripts are there."""
    targets = set(re.findall(r"^([a-z][\w-]*):", text_of_makefile(), re.MULTILINE))
    for words in commands(page):
        match words:
            case ["callgate", *arguments]:
                parse([each for each in arguments if each != "..."])
            case ["make", "-C", folder, *_]:
                assert folder.startswith(("/", "$")) or (ROOT / folder / "Makefile").is_file(), (
                    f"{page}: {folder}"
                )
            case ["make", *given]:
                wanted = {word for word in given if "=" not in word and not word.startswith("#")}
                assert wanted <= targets, f"{page}: make {wanted - targets}"
            case ["python" | "python3", script, *_] if script.endswith(".py"):
                if script not in ("device.py",):
                    assert (ROOT / script).is_file(), f"{page}: {script}"
            case [script, *_] if script.startswith("tools/"):
                assert (ROOT / script).is_file(), f"{page}: {script}"


def text_of_makefile() -> str:
    return (ROOT / "Makefile").read_text("utf-8")


def parse(arguments: list[str]) -> None:
    group: Any = get_command(app)
    with group.make_context("callgate", list(arguments)) as context:
        name, command, rest = group.resolve_command(context, list(arguments))
        command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("page", PAGES)
def test_names_in_the_text_are_there(page: str) -> None:
    """Commands and their options, files and links."""
    text = text_of(page)
    known: Any = get_command(app)
    for name in re.findall(r"`callgate ([a-z]+)", text):
        assert name in known.commands, f"{page}: callgate {name}"
    for name in re.findall(r"`make ([\w-]+)`", text):
        assert re.search(rf"^{name}:", text_of_makefile(), re.MULTILINE), f"{page}: make {name}"
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\(([^)#]+)", text):
        if not link.startswith("http"):
            assert (folder / link).exists(), f"{page}: {link}"
    for file in re.findall(r"`((?:src|tests|docs|guest|tools|examples)/[\w./-]+)`", text):
        if file.startswith("docs/specs/"):
            continue  # QEMU's.
        assert (ROOT / file).exists(), f"{page}: {file}"


@pytest.mark.parametrize("page", having("toml"))
def test_toml_is_toml(page: str) -> None:
    for _, block in blocks(page, "toml"):
        tomllib.loads(block)


def test_contributing_names_each_folder_of_tests() -> None:
    folders = {file.parent.name for file in (ROOT / "tests").glob("*/test_*.py")}
    assert set(re.findall(r"^\| `(\w+)/` \|", text_of("CONTRIBUTING.md"), re.MULTILINE)) == folders


def test_figures_stand_in_one_place() -> None:
    """`callgate bench --markdown` makes them; other pages refer to them."""
    columns = as_markdown([], []).splitlines()[0]
    _, _, behind = text_of("README.md").partition(MARK)
    assert behind.lstrip().startswith(columns), "README.md: paste `callgate bench --markdown`"
    assert "<!-- end -->" in behind
    for page in PAGES:
        if page != "README.md":
            assert "| median us |" not in text_of(page), f"{page}: refer to README.md's table"
