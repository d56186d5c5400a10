# SPDX-License-Identifier: MIT
"""Device files: a Python file that defines a Device."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from callgate.backends.board import BOARDS
from callgate.declaration import takes
from callgate.device import Device
from callgate.errors import BackendError, LoadError


def load_device_class(place: str | Path) -> type[Device]:
    """The Device class that a file defines. `FILE:CLASS` chooses where it defines several.

    While the file is executed its folder comes first on `sys.path`, as Python does for a script.

    Raises LoadError (a sentence) if there is no such file, class or valid Python, DeclarationError
    when the class's body is wrong, and whatever else the file raises.
    """
    text = str(place)
    path, wanted = Path(text), ""
    if not path.exists() and ":" in text:
        head, _, wanted = text.rpartition(":")
        path = Path(head)
    module = _execute(path)
    classes = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, Device)
        and value.__module__ == module.__name__
        and "id" in dir(value)
    }
    names = ", ".join(classes)
    if wanted:
        if wanted not in classes:
            raise LoadError(f"{path} must define the Device {wanted}; it defines {names or 'none'}")
        return classes[wanted]
    if not classes:
        raise LoadError(f"{path} must define a subclass of callgate.Device with an id; it has none")
    if len(classes) > 1:
        raise LoadError(f"{path} defines {names}: say which one, as {path}:{next(iter(classes))}")
    return next(iter(classes.values()))


def load_slot(place: str) -> tuple[type[Device], ...]:
    """The Device classes of one slot: `FILE`, or `FILE,FILE`, whose functions they are from 0 on.

    Raises as `load_device_class` does.
    """
    places = [place] if Path(place).exists() else place.split(",")
    return tuple(load_device_class(each) for each in places)


def make_devices(classes: Iterable[type[Device]]) -> tuple[Device, ...]:
    """One device of each class, as a command line makes them.

    Raises LoadError if a class needs arguments for that, and whatever else its __init__ raises.
    """
    classes = tuple(classes)
    for cls in classes:
        for method in (cls.__new__, cls.__init__):
            if not takes(method, 1):
                raise LoadError(
                    f"{cls.__name__} must be made without arguments, as {cls.__name__}(), and its "
                    f"{method.__name__} is {inspect.signature(method)}: give them default values"
                )
    return tuple(cls() for cls in classes)


def _execute(path: Path) -> ModuleType:
    name = "callgate_device" + re.sub(r"\W", "_", str(path.resolve().with_suffix("")))
    if path.suffix != ".py" or not path.is_file():
        raise LoadError(f"{path} must be a Python file that exists")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Annotations are resolved through it.
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        if isinstance(error, SyntaxError):  # In the file, or in one that it imports.
            where = f"{error.filename or path}" + (f", line {error.lineno}" if error.lineno else "")
            raise LoadError(f"{where}, must be Python: {error.msg}") from None
        if isinstance(error, SystemExit):
            raise LoadError(
                f"{path} must do nothing but define devices when it is imported, and it ended the "
                'program: put that below `if __name__ == "__main__":`'
            ) from None
        raise
    finally:
        with suppress(ValueError):  # Unless the file took it away.
            sys.path.remove(folder)
    return module


def find_guest(device_file: Path, arch: str) -> Path:
    """The guest program that belongs to a device file: build/guest/ARCH/FOLDER.elf, where FOLDER is
    the file's folder and `build` stands beside it or above. Raises LoadError if there is none, and
    BackendError for an architecture that does not exist."""
    if arch not in BOARDS:
        raise BackendError(f"The architecture must be one of {', '.join(BOARDS)}, not {arch!r}")
    folder = device_file.resolve().parent
    for above in (folder, *folder.parents):
        candidate = above / "build" / "guest" / arch / f"{folder.name}.elf"
        if candidate.is_file():
            return candidate
    raise LoadError(
        f"{device_file} must have a guest program for {arch}: build it with "
        f"`python guest/build.py`, or name one with --guest"
    )
