# SPDX-License-Identifier: MIT
"""Messages: interrupts that are writes by the function. What MSI and MSI-X have in common.

    trigger(interrupt) --> its vector --+-- nothing holds it back --> deliver(address, data)
                                        +-- else pending: until then, or until withdrawn

A message that cannot go sets its pending bit and goes when it can. The specification says so of
masked vectors (PCI Local Bus 3.0, 6.8.3.4 and 6.8.3.5). Here it also holds while bus mastering is
off or the function is in D3hot: the function may not write then (6.2.2, command bit 2), and a
driver that turns bus mastering on after it unmasked loses nothing. A pending bit is cleared when
the event that set it is settled before its message went (6.8.3.5).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from threading import Lock

from callgate.pci.config import ConfigSpace


class Messages(ABC):
    """A function's interrupts by MSI or by MSI-X, with `vectors` of them.

    `deliver(address, data)` sends a message; None where only a VMM does, which `signal` tells.
    `enabled` follows the capability, `may_send` bus mastering: who changes one of them, or connects
    a VMM, calls `flush`. Safe from any thread.
    """

    def __init__(self, vectors: int, deliver: Callable[[int, int], None] | None) -> None:
        self.vectors = vectors
        self.deliver = deliver
        self.enabled = False
        self.may_send = False
        self.signal: Callable[[int], None] | None = None
        """How a VMM that makes the messages (vfio-user) is told of one, by vector."""
        self.signalled = 0
        """Of how many vectors, from 0 on, it is told."""
        self._config: ConfigSpace
        self._at: int
        self._lock = Lock()
        self._pending: set[int] = set()
        """By interrupt: which vector one has can change until its message goes."""

    @property
    def in_use(self) -> bool:
        """Whether interrupts go this way: INTx is silent then (6.8.3.3)."""
        return self.enabled or self.signal is not None

    def placed(self, config: ConfigSpace, at: int) -> None:
        """Called when the capability has its place."""
        self._config, self._at = config, at

    @abstractmethod
    def follow(self) -> None:
        """Let all be as the capability says now."""

    def connect(self, signal: Callable[[int], None], vectors: int) -> None:
        """Let a VMM make the messages of the first `vectors`, told by `signal`; 0: no more."""
        with self._lock:
            self.signal, self.signalled = (signal, vectors) if vectors else (None, 0)

    def trigger(self, interrupt: int) -> None:
        """Send the message of an interrupt, or make it pending."""
        with self._lock:
            send = self._message(self._vector(interrupt))
            if send is None:
                self._pending.add(interrupt)
                self._show_pending()
        if send is not None:
            send()

    def withdraw(self, interrupt: int) -> None:
        """Forget what is pending of an interrupt: its event is settled."""
        if interrupt in self._pending:
            with self._lock:
                self._pending.discard(interrupt)
                self._show_pending()

    def flush(self) -> None:
        """Send what is pending and can go: one message for each vector."""
        with self._lock:
            vectors = sorted(self._pending_vectors())
            ready = {vector: self._message(vector) for vector in vectors}
            self._pending = {each for each in self._pending if ready[self._vector(each)] is None}
            self._show_pending()
        for send in ready.values():
            if send is not None:
                send()

    def is_pending(self, vector: int) -> bool:
        """Whether the pending bit of a vector is set."""
        with self._lock:
            return vector in self._pending_vectors()

    def reset(self) -> None:
        """As after power-on; `signal` stays, which is the VMM's."""
        with self._lock:
            self.enabled = False
            self._pending.clear()
            self._show_pending()

    # --- the difference: to be called with the lock held -----------------------------------------

    @abstractmethod
    def _vector(self, interrupt: int) -> int:
        """The vector of an interrupt."""

    @abstractmethod
    def _is_masked(self, vector: int) -> bool:
        """Whether the guest holds a vector back."""

    @abstractmethod
    def _where(self, vector: int) -> tuple[int, int]:
        """Address and data of a vector's message."""

    def _show_pending(self) -> None:
        """Called when `_pending` may have changed."""

    def _pending_vectors(self) -> set[int]:
        return {self._vector(each) for each in self._pending}

    def _message(self, vector: int) -> Callable[[], None] | None:
        """How to send a vector's message now; None when it cannot go.

        To be called outside the lock: a message is a write, which may end in this very function.
        """
        if not self.may_send or self._is_masked(vector):
            return None
        if self.signal is not None:
            return partial(self.signal, vector)
        if not self.enabled or self.deliver is None:
            return None
        return partial(self.deliver, *self._where(vector))
