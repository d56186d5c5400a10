# SPDX-License-Identifier: MIT
"""A device's calls as methods, however they get there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Self

from callgate.driver.directory import Entry
from callgate.errors import NotFound
from callgate.gate.abi import Transport


class Calls(ABC):
    """A device that has calls. They are its methods; `calls` lists them by name.

    A call whose name is also a name of this class is reached by `call(name, ...)`. Arguments and
    results are Python's: int, bool, bytes; for buffers anything with the buffer protocol (copied,
    and for `out` and `inout` copied back). Integers are -2^63 to 2^64 - 1, else ValueError, and
    travel modulo 2^64, as in C; the host refuses what does not fit the argument's type. A status
    other than OK raises the `CallError` of that name. `name` is the device's.
    """

    name: str
    calls: dict[str, Entry]

    def __init__(self) -> None:
        self._kept: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        # Only for names that are not there yet: what is found is kept until `_forget`.
        calls = self.__dict__.get("calls")
        if calls is None or name not in calls:
            names = ", ".join(calls) if calls else "not known yet"
            raise AttributeError(f"The device must have a call {name!r}; its calls are {names}")
        run = self._quick(calls[name]) or partial(self.call, name)
        self._kept.add(name)
        self.__dict__[name] = run
        return run

    def _forget(self) -> None:
        while self._kept:
            self.__dict__.pop(self._kept.pop(), None)

    def _entry(self, name: str) -> Entry:
        if name not in self.calls:
            names = ", ".join(self.calls)
            raise NotFound(f"{self.name} must have a call {name!r}; its calls are {names}")
        return self.calls[name]

    def _quick(self, entry: Entry) -> Callable[..., Any] | None:
        """The call as one function with everything looked up beforehand, where there is one."""
        return None

    @property
    @abstractmethod
    def transport(self) -> Transport | None:
        """The transport to use; None: the cheapest that the platform offers for each call.

        Setting one that cannot be used here raises BackendError.
        """

    @transport.setter
    @abstractmethod
    def transport(self, transport: Transport | None) -> None: ...

    @abstractmethod
    def call(self, name: str, *arguments: Any) -> Any:
        """Make a call by name.

        Raises the CallError of its status, `Revoked` also while the call has no vector or was bound
        anew with another signature; NoAnswer; NotFound where there is no such call; TypeError and
        ValueError for arguments that cannot be.
        """

    @abstractmethod
    def notify(self, name: str) -> None:
        """Run a one-way call without arguments, by a single write. Raises NotFound."""

    @abstractmethod
    def refresh(self) -> None:
        """Look anew what the device is and offers. To be called after Revoked and after a reset."""

    def close(self) -> None:
        """Give back what belongs to this process. Harmless when repeated."""
