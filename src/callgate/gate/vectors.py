# SPDX-License-Identifier: MIT
"""The vector table: which number addresses which call, and how that is taken back.

A table belongs to one VM. `numbering.py` says which numbers it issues; here is what becomes of one:

    bind()          revoke()                 drained, or time-out
    ------> open ------------> draining ------------------------> revoked
             |  ^               BUSY                               REVOKED, for ever
      deny() v  | allow()
            denied
             DENIED

All of that is one attribute, `Binding.refusal`: None while open, else what a call is answered.

How a call and a revocation meet
--------------------------------
A call takes no lock of the table's. It writes itself down in its own `Slot`, then looks whether it
may run. A revocation, or a denial, closes the binding, then looks who is written down:

    Slot.run                                 revoke, deny
    1. slot.binding = binding    (store)     a. binding.refusal = BUSY      (store)
    2. binding.refusal           (load)      b. slot.binding of every slot  (load)
       None: run, else go to 3                  the binding: sleep, then look again

This is Dekker's handshake: if both loads missed the other side's store, then 2 came before a, and
b before 1. With 1 before 2 and a before b that is a circle, so it cannot be: either the call sees
that it is refused or the revoker sees the call. The same holds, one step later, for waking up:

    Slot.run                                 _drain
    3. slot.binding = None       (store)     c. table.drains += 1           (store)
    4. table.drains              (load)      b. slot.binding of every slot  (load)
       not 0: notify, under the lock            the binding: sleep, which lets go of the lock

Either the revoker sees that the call has left or the call sees that somebody waits; it then
notifies under the lock that the revoker holds from c until it sleeps, so no wake-up is lost.

The argument needs all four to lie in one order that both threads agree on. With the GIL that is
plain: each is one bytecode, and bytecodes do not overlap. Free-threaded CPython gives it too for
attributes in `__slots__`, which is why these classes have them: a store is a release store inside
the object's own mutex, whose unlocking is a sequentially consistent compare-and-exchange, and that
keeps the load after it from being done before the store is seen. That is what CPython does, not a
promise of the language.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Collection, Hashable
from threading import Lock, get_ident
from typing import Any, Protocol, TypeVar
from weakref import ReferenceType, ref

from callgate.call import CallRefused
from callgate.counter import Counter
from callgate.errors import DrainTimeout, VectorError
from callgate.gate.abi import VECTOR_BITS, Status
from callgate.gate.numbering import Numbering
from callgate.gate.quota import Quota
from callgate.threads import entry

BUSY, DENIED, REVOKED = Status.BUSY, Status.DENIED, Status.REVOKED
Values = TypeVar("Values")
Results = TypeVar("Results")


class Binding:
    """One call of one owner, bound to one vector.

    `owner`, `name`, `signature` and `target` are what `bind` was given; the table does not look
    into `target`. `refusal` is None while calls may run, else the status that they are answered;
    only the table sets it. `quota` is None or the `Quota` to ask. `calls` counts the calls let in.
    """

    __slots__ = (
        "_answers",
        "calls",
        "name",
        "owner",
        "quota",
        "refusal",
        "signature",
        "target",
        "vector",
    )

    def __init__(
        self, vector: int, owner: Hashable, name: str, signature: int, target: Any
    ) -> None:
        self.vector = vector
        self.owner = owner
        self.name = name
        self.signature = signature
        self.target = target
        self.refusal: Status | None = None
        self.quota: Quota | None = None
        self.calls = Counter()
        self._answers: dict[Status, Counter] | None = None

    def note(self, status: Status) -> None:
        """Count an answer other than OK."""
        answers = self._answers
        if answers is None:
            # One counter for each status, made at once: then no thread can replace another's.
            answers = {each: Counter() for each in Status}
            with _NOTING:
                if self._answers is None:
                    self._answers = answers
                answers = self._answers
        next(answers[status])

    @property
    def refused(self) -> dict[Status, int]:
        """How many calls the guest had refused, by status: for what it sent, or for what the host
        allows. All but BAD_BUFFER were refused before the handler ran."""
        return {status: n for status, n in self._noted() if status < Status.DEVICE_ERROR}

    @property
    def errors(self) -> dict[Status, int]:
        """How many calls the model refused or failed, by status."""
        return {status: n for status, n in self._noted() if status >= Status.DEVICE_ERROR}

    def _noted(self) -> list[tuple[Status, int]]:
        counts = [(status, counter.value) for status, counter in (self._answers or {}).items()]
        return [(status, n) for status, n in counts if n]

    def __str__(self) -> str:
        return f"{name_of(self.owner)}.{self.name}"

    def __repr__(self) -> str:
        refusal = "open" if self.refusal is None else self.refusal.name
        return f"<Binding {self} {self.vector:#010x} {refusal}>"


_NOTING = Lock()


class Turn(Protocol):
    """A device's lock, or what takes it for no longer than a time limit."""

    def acquire(self) -> object:
        """Take it, or raise."""

    def release(self) -> None:
        """Give it back."""


class Slot:
    """Where a call in flight is written down: one for each frame, and one for each vCPU.

    It holds one call at a time. A vCPU makes one at a time by itself; a frame, which two vCPUs may
    ring, is claimed first. `thread` is the thread in which the handler runs.
    """

    __slots__ = ("__weakref__", "binding", "table", "thread")

    def __init__(self, table: VectorTable) -> None:
        self.table = table
        self.thread = 0
        self.binding: Binding | None = None

    @entry(lambda scope: (scope["binding"].owner, scope["binding"].name))
    def run(
        self,
        binding: Binding,
        lock: Turn | None,
        handle: Callable[[Values, memoryview | None], Results],
        values: Values,
        payload: memoryview | None,
    ) -> Results:
        """Make a call of `binding`: `handle(values, payload)`, in `lock` if there is one.

        Raises CallRefused when the binding is closed, and what `handle` raises.
        """
        # The lock comes first: who waits for it is not in flight, so a handler can revoke a call
        # that another vCPU waits to make. Not `with`, which takes longer than the lock.
        if lock is not None:
            lock.acquire()
        self.thread = get_ident()
        self.binding = binding  # 1
        try:
            refusal = binding.refusal  # 2
            if refusal is not None:
                raise CallRefused(refusal)
            next(binding.calls)
            return handle(values, payload)
        finally:
            self.binding = None  # 3
            if self.table.drains:  # 4
                self.table.wake()
            if lock is not None:
                lock.release()


class VectorTable:
    """The vectors of one VM. Every method is safe from any thread.

    `seed` makes the vectors the same from run to run, for tests. `index_bits` and `tag_bits` are
    the widths of a vector's two parts, together at most 31. `clock` is what quotas measure by.
    """

    __slots__ = (
        "_clock",
        "_denied",
        "_left",
        "_quotas",
        "_slots",
        "drains",
        "former",
        "live",
        "lock",
        "numbering",
    )

    live: dict[int, Binding]
    """Bindings by vector, for the call path: `live.get(vector)`, else `judge(vector)`."""
    drains: int
    """How many threads wait for calls to leave. Not 0: who leaves a slot must call `wake`."""
    former: dict[int, tuple[str, str]]
    """Device and call of vectors that were revoked: for traces, which alone fill it."""

    def __init__(
        self,
        *,
        seed: int | None = None,
        index_bits: int = 19,
        tag_bits: int = 12,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if index_bits < 1 or tag_bits < 1 or index_bits + tag_bits > VECTOR_BITS:
            raise VectorError(
                "A vector's index_bits and tag_bits must be at least 1 each and at most "
                f"{VECTOR_BITS} together, not {index_bits} and {tag_bits}"
            )
        if seed is None:
            key = secrets.token_bytes(16)
        else:
            key = hashlib.blake2b(str(seed).encode(), digest_size=16).digest()
        self.live = {}
        self.drains = 0
        self.former = {}
        self.numbering = Numbering(key, index_bits, tag_bits)
        self.lock = Lock()
        self._clock = clock
        self._left = threading.Condition(self.lock)
        self._slots: set[ReferenceType[Slot]] = set()
        # Kept by name, not in the bindings: a guest that resets its device, which binds its calls
        # again, must get neither past the filter nor a full bucket.
        self._denied: set[tuple[Hashable, str]] = set()
        self._quotas: dict[tuple[Hashable, str], Quota] = {}

    # Vectors

    def bind(self, owner: Hashable, name: str, signature: int, target: Any) -> Binding:
        """Issue a vector that was never issued before. The filter and quotas set earlier apply.

        Raises VectorsExhausted when there is none left.
        """
        # Not `with`, which takes longer than the lock: bind and revoke are what a reset repeats.
        self.lock.acquire()
        try:
            binding = Binding(self.numbering.issue(), owner, name, signature, target)
            if self._denied and (owner, name) in self._denied:
                binding.refusal = DENIED
            if self._quotas:
                binding.quota = self._quotas.get((owner, name))
            self.live[binding.vector] = binding
            return binding
        finally:
            self.lock.release()

    def judge(self, vector: int) -> Status:
        """Return what to answer a call whose vector was not found in `live`.

        REVOKED if it was issued once, NO_SUCH_VECTOR if never. A vector that has become live since
        the look-up is BUSY: the caller tries again. Never OK, so it can be answered as it is.
        """
        # Without the lock, so in this order: a vector is spent before it leaves `live`.
        if vector in self.live:
            return BUSY
        return REVOKED if self.numbering.spent(vector) else Status.NO_SUCH_VECTOR

    # Calls

    def slot(self) -> Slot:
        """Return a new place for one call in flight; the table forgets it when nobody holds it."""
        slot = Slot(self)
        with self.lock:
            self._slots.add(ref(slot, self._slots.discard))
        return slot

    def wake(self) -> None:
        """Make those who wait for calls to leave look again."""
        with self.lock:
            self._left.notify_all()

    # Revocation

    def revoke(self, binding: Binding, *, timeout: float | None = None) -> None:
        """Take a vector back for ever. When this returns, no call of it runs or will run.

        New calls are answered BUSY while those in flight drain, then REVOKED. Calls that run in
        the calling thread itself are not waited for: a handler may revoke its own call. Two
        handlers that revoke each other's calls wait for each other: inside a handler, and wherever
        the guest can cause a revocation, give a time-out.

        Raises DrainTimeout after `timeout` seconds, with what still runs in `calls`. The vector is
        revoked all the same; to wait longer, call this again.
        """
        with self.lock:
            if binding.refusal is not REVOKED:
                if self.live.get(binding.vector) is not binding:
                    raise VectorError(f"{binding!r} must be revoked in the table that bound it")
                binding.refusal = BUSY
            self._finish([binding], timeout, lambda each: each is binding)

    def revoke_owner(self, owner: Hashable, *, timeout: float | None = None) -> None:
        """Revoke all that `owner` has bound, as `revoke` does.

        All of it is closed to new calls before the wait begins; `timeout` bounds the whole wait.
        Calls of what another thread revokes are waited for too. The owner's filter and quotas stay:
        see `forget`.
        """
        with self.lock:
            closed = [each for each in self.live.values() if each.owner == owner]
            for binding in closed:
                binding.refusal = BUSY
            self._finish(closed, timeout, lambda each: each.owner == owner)

    # Filter and quotas

    def deny(
        self, owner: Hashable, names: Collection[str], *, timeout: float | None = None
    ) -> None:
        """Forbid these calls of the owner, now and after any later bind.

        All are closed before the wait begins. When this returns, none of them runs or starts until
        `allow`. Raises DrainTimeout after `timeout` seconds, with what still runs in `calls`; they
        are denied all the same. Calls of the calling thread are not waited for.
        """
        with self.lock:
            self._denied.update((owner, name) for name in names)
            self._filter()
            calls = self._drain(lambda each: each.owner == owner and each.name in names, timeout)
        if calls:
            denied = ", ".join(f"{name_of(owner)}.{name}" for name in names)
            raise DrainTimeout(
                f"Denied {denied}, but after {timeout} s calls still run: {', '.join(calls)}",
                calls,
            )

    def allow(self, owner: Hashable, names: Collection[str]) -> None:
        """Undo `deny` for these calls."""
        with self.lock:
            self._denied.difference_update((owner, name) for name in names)
            self._filter()

    def limit(
        self,
        owner: Hashable,
        name: str,
        *,
        per_second: float | None = None,
        in_flight: int | None = None,
    ) -> None:
        """Set the quota of the owner's call `name`, now and after any later bind; none if all None.

        Calls that began before the call had a quota are not counted. See `Quota`. Raises
        VectorError if a limit makes no sense.
        """
        with self.lock:
            quota = self._quotas.get((owner, name))
            if per_second is None and in_flight is None:
                self._quotas.pop((owner, name), None)
                quota = None
            elif quota is not None:
                quota.change(per_second=per_second, in_flight=in_flight)
            else:
                quota = Quota(per_second=per_second, in_flight=in_flight, clock=self._clock)
                self._quotas[owner, name] = quota
            for binding in self.live.values():
                if binding.owner == owner and binding.name == name:
                    binding.quota = quota

    def forget(self, owner: Hashable) -> None:
        """Drop the filter and quotas of an owner that will not bind again."""
        with self.lock:
            self._denied = {key for key in self._denied if key[0] != owner}
            self._quotas = {key: value for key, value in self._quotas.items() if key[0] != owner}
            self._filter()

    # With the lock held

    def _finish(
        self,
        bindings: Collection[Binding],
        timeout: float | None,
        concerns: Callable[[Binding], bool],
    ) -> None:
        """Drain what `concerns`, which is closed, and revoke the bindings whatever comes of it."""
        try:
            calls = self._drain(concerns, timeout)
        finally:
            spend, live = self.numbering.spend, self.live
            for binding in bindings:
                if binding.refusal is not REVOKED:
                    binding.refusal = REVOKED
                    spend(binding.vector)
                    del live[binding.vector]
        if calls:
            names = ", ".join(map(str, bindings))
            raise DrainTimeout(
                f"Revoked {names}, but after {timeout} s calls still run: {', '.join(calls)}",
                calls,
            )

    def _drain(self, concerns: Callable[[Binding], bool], timeout: float | None) -> list[str]:
        """Sleep until no other thread runs a call that `concerns`, which is closed already.

        Return what still runs after `timeout` seconds.
        """
        calls = self._in_flight(concerns)
        if not calls:
            return calls
        deadline = None if timeout is None else time.monotonic() + timeout
        self.drains += 1
        try:
            while calls := self._in_flight(concerns):
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    break
                self._left.wait(left)
        finally:
            self.drains -= 1
        return calls

    def running(self) -> list[tuple[Binding, int]]:
        """Every call in flight, with its thread."""
        found = []
        # A copy: a slot that dies takes itself out of the set, at any moment.
        for reference in self._slots.copy():
            slot = reference()
            if slot is not None:
                binding = slot.binding
                if binding is not None:
                    found.append((binding, slot.thread))
        return found

    def _in_flight(self, concerns: Callable[[Binding], bool]) -> list[str]:
        """Name the calls that `concerns` and that other threads run."""
        running = [
            (binding, thread)
            for binding, thread in self.running()
            # What was opened again (`allow` while `deny` waits) is not waited for.
            if binding.refusal is not None and thread != get_ident() and concerns(binding)
        ]
        if not running:
            return []
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        return [f"{binding} in thread {names.get(thread, thread)}" for binding, thread in running]

    def _filter(self) -> None:
        for binding in self.live.values():
            # BUSY means draining, which is stronger than denied.
            if binding.refusal is not BUSY:
                denied = (binding.owner, binding.name) in self._denied
                binding.refusal = DENIED if denied else None


def name_of(owner: object) -> str:
    """Return the name under which messages and snapshots know an owner: its `name`, or its str."""
    name = getattr(owner, "name", None)
    return name if isinstance(name, str) else str(owner)
