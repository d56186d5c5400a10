# SPDX-License-Identifier: MIT
"""Device files: found, executed, and told in a sentence when they are not what they should be."""

import logging
import sys
import textwrap
from pathlib import Path
from typing import Protocol

import pytest

from callgate.errors import DeclarationError, LoadError
from callgate.load import find_guest, load_device_class, load_slot

ONE = """
    from callgate import Device, call, u8

    class One(Device):
        '''A device.'''
        id = 0x1AF4, 0x10F0

        @call
        def add(self, a: u8) -> u8:
            return a
"""


class Write(Protocol):
    def __call__(self, text: str, name: str = "device.py") -> Path: ...


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "device.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    return write


def test_the_device_of_a_file(write: Write) -> None:
    for place in (write(ONE), str(write(ONE))):
        device = load_device_class(place)
        assert device.__name__ == "One"
        assert device.spec.calls[0].text == "add(u8)->u8"


def test_annotations_as_text_are_found_in_the_file(write: Write) -> None:
    text = "from __future__ import annotations\n" + textwrap.dedent(ONE)
    assert load_device_class(write(text)).spec.calls[0].text == "add(u8)->u8"


def test_the_examples() -> None:
    folder = Path(__file__).parents[2] / "examples"
    names = [load_device_class(path).__name__ for path in sorted(folder.glob("*/device.py"))]
    assert names[:4] == ["Adder", "Ticker", "Checksum", "Rebind"]


def test_which_of_several(write: Write) -> None:
    path = write(ONE + "\n    class Two(One):\n        id = 0x1AF4, 0x10F1\n")
    assert load_device_class(f"{path}:Two").__name__ == "Two"
    assert load_device_class(f"{path}:One").__name__ == "One"
    with pytest.raises(LoadError, match=r"defines One, Two: say which one, as .*device\.py:One"):
        load_device_class(path)
    with pytest.raises(LoadError, match="must define the Device Three; it defines One, Two"):
        load_device_class(f"{path}:Three")


def test_what_a_file_imports_or_leaves_unfinished_does_not_count(write: Write) -> None:
    path = write(
        """
        from callgate import Device
        from callgate.device import Device as Other

        class Mixin(Device):
            '''Without an id.'''
        """
    )
    with pytest.raises(LoadError, match=r"must define a subclass of .* with an id"):
        load_device_class(path)
    with pytest.raises(LoadError, match="must define the Device Mixin; it defines none"):
        load_device_class(f"{path}:Mixin")


@pytest.mark.parametrize("name", ["missing.py", "folder", "device.txt", "missing.py:One", "a:b:c"])
def test_no_such_file(write: Write, tmp_path: Path, name: str) -> None:
    write("", "device.txt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(LoadError, match="must be a Python file that exists"):
        load_device_class(tmp_path / name)


def test_a_file_that_is_no_python(write: Write, tmp_path: Path) -> None:
    path = write("x = 1\ndef f(:\n")
    with pytest.raises(LoadError, match=r"device\.py, line 2, must be Python: "):
        load_device_class(path)
    for content in (b"\xff\xfe", b"x = 1\0"):
        path.write_bytes(content)
        with pytest.raises(LoadError, match=r"device\.py(, line 1)?, must be Python: "):
            load_device_class(path)


def test_a_mistake_in_a_file_that_it_imports(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    write("\n\n\nx = = 1\n", "callgate_test_helper_of_a_device.py")
    path = write("import callgate_test_helper_of_a_device")
    with pytest.raises(LoadError, match=r"helper_of_a_device\.py, line 4, must be Python"):
        load_device_class(path)


def test_a_wrong_class_body_stays_what_it_is(write: Write) -> None:
    with pytest.raises(DeclarationError, match=r"One\.id must be \(vendor, device\)"):
        load_device_class(write(ONE.replace("0x1AF4, 0x10F0", "5")))


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("1 / 0", ZeroDivisionError),
        ("import no_such_module_at_all", ModuleNotFoundError),
        ("b'\\xff'.decode('ascii')", UnicodeDecodeError),
    ],
)
def test_a_file_that_raises(write: Write, line: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        load_device_class(write(line))


def test_a_file_finds_its_neighbours(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "callgate_test_neighbour", raising=False)
    before = list(sys.path)
    write("id = 0x1AF4, 0x10F7", "callgate_test_neighbour.py")
    path = write(
        """
        import callgate_test_neighbour
        from callgate import Device

        class One(Device):
            id = callgate_test_neighbour.id
        """
    )
    assert load_device_class(path).id == (0x1AF4, 0x10F7)
    assert sys.path == before
    with pytest.raises(ZeroDivisionError):
        load_device_class(write("1 / 0"))
    assert sys.path == before


def test_the_devices_of_one_slot(write: Write, tmp_path: Path) -> None:
    one = write(ONE, "one.py")
    two = write(ONE + "\n    class Two(One):\n        id = 0x1AF4, 0x10F1\n", "two.py")
    comma = write(ONE.replace("One", "Comma"), "a,b.py")
    assert [each.__name__ for each in load_slot(str(one))] == ["One"]
    assert [each.__name__ for each in load_slot(f"{one},{two}:Two")] == ["One", "Two"]
    assert [each.__name__ for each in load_slot(str(comma))] == ["Comma"]
    with pytest.raises(LoadError, match="must be a Python file that exists"):
        load_slot(f"{one},")


def test_a_file_that_ends_the_program(write: Write) -> None:
    with pytest.raises(LoadError, match="must do nothing but define devices when it is imported"):
        load_device_class(write("raise SystemExit(3)"))
    with pytest.raises(KeyboardInterrupt):
        load_device_class(write("raise KeyboardInterrupt"))


def test_a_failed_file_leaves_no_module_behind(write: Write) -> None:
    before = set(sys.modules)
    for text in ("1 / 0", "x = = 1", "raise SystemExit", ONE.replace("0x1AF4, 0x10F0", "5")):
        with pytest.raises(BaseException):  # noqa: B017, PT011  each another one
            load_device_class(write(text))
    left = {name for name in set(sys.modules) - before if "callgate_device" in name}
    assert left == set()


def test_a_file_that_changed_is_executed_anew(write: Write) -> None:
    first = load_device_class(write(ONE))
    second = load_device_class(
        write(ONE.replace("0x10F0", "0x10F1").replace("A device", "Another device"))
    )
    assert (first.id, second.id) == ((0x1AF4, 0x10F0), (0x1AF4, 0x10F1))


def test_the_guest_of_a_device_file(write: Write, tmp_path: Path) -> None:
    path = write(ONE, "examples/01_adder/device.py")
    with pytest.raises(LoadError, match=r"must have a guest program for x86_64: build it with"):
        find_guest(path, "x86_64")
    far = write("", "build/guest/x86_64/01_adder.elf")
    assert find_guest(path, "x86_64") == far.resolve()
    near = write("", "examples/01_adder/build/guest/x86_64/01_adder.elf")
    assert find_guest(path, "x86_64") == near.resolve()
    with pytest.raises(LoadError, match="aarch64"):
        find_guest(path, "aarch64")


def test_loading_says_nothing(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    load_device_class(write(ONE))
    assert caplog.records == []
