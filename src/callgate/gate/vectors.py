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
A call takes no lock that another vCPU's call could hold. It writes itself down in its own `Slot`,
then looks whether it may run. A revocation closes the binding, then looks who is written down:

    caller                                   revoker
    1. slot.binding = binding    (store)     a. binding.refusal = BUSY      (store)
    2. binding.refusal           (load)      b. slot.binding of every slot  (load)
       None: run, else undo 1                   the binding: sleep, then look again

This is Dekker's handshake: if both loads missed the other side's store, then 2 came before a, and
b before 1. With 1 before 2 and a before b that is a circle, so it cannot be: either the call sees
that it is refused or the revoker sees the call. The same holds, one step later, for waking up:

    caller                                   revoker
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

import copy
import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from threading import Lock, get_ident
from typing import Any
from weakref import ReferenceType, ref

from callgate.counter import Counter
from callgate.errors import DrainTimeout, VectorError, VectorsExhausted
from callgate.gate.abi import VECTOR_BITS, Status
from callgate.gate.numbering import Numbering
from callgate.gate.quota import Quota

BUSY, DENIED, REVOKED = Status.BUSY, Status.DENIED, Status.REVOKED


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
        """How many calls were answered without the handler having run, by status."""
        return {status: n for status, n in self._noted() if status < Status.DEVICE_ERROR}

    @property
    def errors(self) -> dict[Status, int]:
        """How many calls reached the handler and failed there, by status."""
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


class Slot:
    """Where a call in flight is written down: one for each frame, and one for each vCPU.

    It holds one call at a time; it is the caller's from before `VectorTable.enter` until after
    `leave`. A vCPU's does so by itself; a frame, which two vCPUs may ring, is claimed first.
    `thread` is the thread in which the handler runs. Whoever hands the call to another thread
    stores that one's `get_ident()` there, so that a handler can revoke its own call.
    """

    __slots__ = ("__weakref__", "binding", "quota", "thread")

    def __init__(self) -> None:
        self.thread = 0
        self.binding: Binding | None = None
        self.quota: Quota | None = None


class Abandoned:
    """A call that was answered (TIMED_OUT) while its handler still runs in `thread`."""

    __slots__ = ("binding", "quota", "thread")

    def __init__(self, binding: Binding, thread: int, quota: Quota | None) -> None:
        self.binding = binding
        self.thread = thread
        self.quota = quota


class VectorTable:
    """The vectors of one VM. Every method is safe from any thread.

    `seed` makes the vectors the same from run to run, for tests. `index_bits` and `tag_bits` are
    the widths of a vector's two parts, together at most 31. `clock` is what quotas measure by.
    """

    __slots__ = (
        "_abandoned",
        "_clock",
        "_denied",
        "_left",
        "_lock",
        "_numbering",
        "_past",
        "_quotas",
        "_slots",
        "drains",
        "live",
    )

    live: dict[int, Binding]
    """Bindings by vector, for the call path: `live.get(vector)`, else `judge(vector)`."""
    drains: int
    """How many threads wait for calls to leave. Not 0: who leaves a slot must call `wake`."""

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
        self._numbering = Numbering(key, index_bits, tag_bits)
        # What this table issued under other keys, before it was restored from another's state.
        self._past: dict[bytes, Numbering] = {}
        self._clock = clock
        self._lock = Lock()
        self._left = threading.Condition(self._lock)
        self._slots: set[ReferenceType[Slot]] = set()
        self._abandoned: set[Abandoned] = set()
        # Kept by name, not in the bindings: a guest that resets its device, which binds its calls
        # again, must get neither past the filter nor a full bucket.
        self._denied: set[tuple[Hashable, str | None]] = set()
        self._quotas: dict[tuple[Hashable, str], Quota] = {}

    # Vectors

    def bind(self, owner: Hashable, name: str, signature: int, target: Any) -> Binding:
        """Issue a vector that was never issued before. The filter and quotas set earlier apply.

        Raises VectorsExhausted when there is none left.
        """
        # Not `with`, which takes longer than the lock: bind and revoke are what a reset repeats.
        self._lock.acquire()
        try:
            numbering = self._numbering
            vector = numbering.free.popleft() if numbering.free else numbering.fresh()
            while self._past and any(past.spent(vector) for past in self._past.values()):
                numbering.spend(vector)
                vector = numbering.free.popleft() if numbering.free else numbering.fresh()
            binding = Binding(vector, owner, name, signature, target)
            if self._denied and self._denies(binding):
                binding.refusal = DENIED
            if self._quotas:
                binding.quota = self._quotas.get((owner, name))
            self.live[vector] = binding
            return binding
        finally:
            self._lock.release()

    def lookup(self, vector: int) -> Binding | None:
        """Return the binding that is live under `vector`; it may be denied or draining."""
        return self.live.get(vector)

    def bindings(self, owner: Hashable) -> list[Binding]:
        """Return the owner's live bindings."""
        with self._lock:
            return [binding for binding in self.live.values() if binding.owner == owner]

    def judge(self, vector: int) -> Status:
        """Return what to answer a call whose vector was not found in `live`.

        REVOKED if it was issued once, NO_SUCH_VECTOR if never. A vector that has become live since
        the look-up is BUSY: the caller tries again. Never OK, so it can be answered as it is.
        """
        # Without the lock, so in this order: a vector is spent before it leaves `live`.
        if vector in self.live:
            return BUSY
        if self._numbering.spent(vector) or any(past.spent(vector) for past in self._past.values()):
            return REVOKED
        return Status.NO_SUCH_VECTOR

    # Calls

    def slot(self) -> Slot:
        """Return a new place for one call in flight; the table forgets it when nobody holds it."""
        slot = Slot()
        with self._lock:
            self._slots.add(ref(slot, self._slots.discard))
        return slot

    def enter(self, slot: Slot, binding: Binding) -> Status | None:
        """Begin a call in `slot`, which belongs to the caller.

        None: run the handler, then `leave`. Else the call must not run; it is already counted and
        the slot is free again, so answer that status.
        """
        slot.thread = get_ident()
        # The store, and only then the load: see the head of this file.
        slot.binding = binding
        refusal = binding.refusal
        if refusal is None:
            quota = binding.quota
            if quota is None:
                next(binding.calls)
                return None
            if quota.take():
                slot.quota = quota
                next(binding.calls)
                return None
            refusal = BUSY
        slot.binding = None
        if self.drains:
            self.wake()
        binding.note(refusal)
        return refusal

    def leave(self, slot: Slot) -> None:
        """End the call in `slot`."""
        quota = slot.quota
        if quota is not None:
            slot.quota = None
            quota.give()
        slot.binding = None
        if self.drains:
            self.wake()

    def wake(self) -> None:
        """Make those who wait for calls to leave look again."""
        with self._lock:
            self._left.notify_all()

    def abandon(self, slot: Slot) -> Abandoned:
        """Free `slot` while its handler still runs; `settle` must follow when the handler returns.

        The call still counts as in flight, for `revoke` and `deny` and for its quota. Raises
        VectorError if no call is in `slot`.
        """
        with self._lock:
            binding = slot.binding
            if binding is None:
                raise VectorError("A call must be in the slot that is abandoned: it has left")
            call = Abandoned(binding, slot.thread, slot.quota)
            self._abandoned.add(call)
            slot.quota = None
            slot.binding = None
            # The handler itself may be who waits, for a slot that had another thread's number.
            self._left.notify_all()
            return call

    def settle(self, call: Abandoned) -> None:
        """End an abandoned call: its handler has returned."""
        if call.quota is not None:
            call.quota.give()
        with self._lock:
            self._abandoned.remove(call)
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
        self._lock.acquire()
        try:
            if binding.refusal is not REVOKED:
                if self.live.get(binding.vector) is not binding:
                    raise VectorError(f"{binding!r} must be revoked in the table that bound it")
                binding.refusal = BUSY
            if self._slots or self._abandoned:
                self._finish([binding], timeout)
            else:
                self._end(binding)
        finally:
            self._lock.release()

    def revoke_owner(self, owner: Hashable, *, timeout: float | None = None) -> list[Binding]:
        """Revoke all that `owner` has bound, as `revoke` does, and return it.

        All of it is closed to new calls before the wait begins; `timeout` bounds the whole wait.
        The owner's filter and quotas stay: see `forget`.
        """
        with self._lock:
            closed = self._close(owner)
            self._finish(closed, timeout)
            return closed

    def rebind(self, owner: Hashable, *, timeout: float | None = None) -> list[Binding]:
        """Give each of the owner's calls a new vector: what a reset of the device does.

        Raises DrainTimeout if old calls still run after `timeout` seconds. They have their new
        vectors even then: see `bindings`.
        """
        closed: list[Binding] = []
        bound: list[Binding] = []
        try:
            with self._lock:
                closed = self._close(owner)
                self._finish(closed, timeout)
        finally:
            for old in closed:
                bound.append(self.bind(old.owner, old.name, old.signature, old.target))
        return bound

    # Filter and quotas

    def deny(
        self,
        owner: Hashable,
        name: str | None = None,
        *,
        drain: bool = True,
        timeout: float | None = None,
    ) -> None:
        """Forbid the owner's call `name`, or all its calls, now and after any later bind.

        When this returns, no call of it runs or starts until `allow`; with `drain` False, those in
        flight may still run. Raises DrainTimeout after `timeout` seconds, with what still runs in
        `calls`; the call is denied all the same. Calls of the calling thread are not waited for.
        """
        with self._lock:
            self._denied.add((owner, name))
            self._filter()
            calls = []
            if drain:
                calls = self._drain(
                    lambda each: each.owner == owner and name in (None, each.name), timeout
                )
        if calls:
            denied = f"{name_of(owner)}{'' if name is None else '.' + name}"
            raise DrainTimeout(
                f"Denied {denied}, but after {timeout} s calls still run: {', '.join(calls)}",
                calls,
            )

    def allow(self, owner: Hashable, name: str | None = None) -> None:
        """Undo `deny` with the same arguments. A call runs when neither form denies it."""
        with self._lock:
            self._denied.discard((owner, name))
            self._filter()

    def limit(
        self,
        owner: Hashable,
        name: str,
        *,
        per_second: float | None = None,
        burst: float | None = None,
        in_flight: int | None = None,
    ) -> None:
        """Set the quota of the owner's call `name`, now and after any later bind; none if all None.

        Calls that began before the call had a quota are not counted. See `Quota`. Raises
        VectorError if a limit makes no sense.
        """
        with self._lock:
            quota = self._quotas.get((owner, name))
            if per_second is None and burst is None and in_flight is None:
                self._quotas.pop((owner, name), None)
                quota = None
            elif quota is not None:
                quota.change(per_second=per_second, burst=burst, in_flight=in_flight)
            else:
                quota = Quota(
                    per_second=per_second, burst=burst, in_flight=in_flight, clock=self._clock
                )
                self._quotas[owner, name] = quota
            for binding in self.live.values():
                if binding.owner == owner and binding.name == name:
                    binding.quota = quota

    def forget(self, owner: Hashable) -> None:
        """Drop the filter and quotas of an owner that will not bind again."""
        with self._lock:
            self._denied = {key for key in self._denied if key[0] != owner}
            self._quotas = {key: value for key, value in self._quotas.items() if key[0] != owner}
            self._filter()

    # Snapshot

    def state(self) -> dict[str, Any]:
        """Return what a snapshot holds, for JSON: every vector ever issued, and what is live.

        Bindings that are being revoked count as revoked. The filter and the quotas are the host's,
        not the machine's, and are not part of it. Raises VectorError if two live bindings have the
        same owner name and name, since `restore` could not tell them apart.
        """
        with self._lock:
            live = self._by_name()
            numbering = copy.deepcopy(self._numbering)
            for vector in self.live.keys() - {each.vector for each in live.values()}:
                numbering.spend(vector)
            return {
                "index_bits": numbering.index_bits,
                "tag_bits": numbering.tag_bits,
                **numbering.state(),
                "past": [past.state() for past in self._past.values()],
                "live": [
                    {
                        "owner": owner,
                        "name": name,
                        "signature": each.signature,
                        "vector": each.vector,
                    }
                    for (owner, name), each in live.items()
                ],
            }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Give each live binding the vector that `state` has for it.

        Bindings are matched by owner name, name and signature, both ways. Every other vector that
        the snapshot's table or this one ever issued is revoked. The machine must be at rest. Raises
        VectorError, and changes nothing, if something does not match or a call is in flight.
        """
        with self._lock:
            old = self._numbering
            numbering, past, wanted = _parse(state, old.index_bits, old.tag_bits)
            if self.drains or self._running():
                raise VectorError("Calls are in flight: a table must be at rest to be restored")
            vectors = self._match(wanted)
            own = {**self._past, old.key: old}
            same = own.pop(numbering.key, None)
            for vector in vectors:
                if any(each.spent(vector) for each in own.values()) or (
                    same is not old and vector in self.live
                ):
                    raise VectorError(
                        f"Vector {vector:#010x} of the snapshot was issued by this table before, "
                        "to another call: restore into a new machine"
                    )
            stale = list(self.live)
            for vector in stale:
                old.spend(vector)
            if same is not None:
                numbering.absorb(same)
            numbering.settle(vectors)
            for key, each in own.items():
                past.setdefault(key, each).absorb(each)
                past[key].free.clear()
            self._past = past
            self._numbering = numbering
            # In place: the call path may hold on to the dict.
            for vector, binding in vectors.items():
                binding.vector = vector
                self.live[vector] = binding
            for vector in stale:
                if vector not in vectors:
                    del self.live[vector]

    # With the lock held

    def _close(self, owner: Hashable) -> list[Binding]:
        """Close the owner's bindings that nobody else is revoking yet, and return them."""
        closed = [
            each for each in self.live.values() if each.owner == owner and each.refusal is not BUSY
        ]
        for binding in closed:
            binding.refusal = BUSY
        return closed

    def _finish(self, bindings: list[Binding], timeout: float | None) -> None:
        """Drain bindings that are closed, and revoke them whatever becomes of that."""
        try:
            calls = self._drain(bindings.__contains__, timeout)
        finally:
            for binding in bindings:
                self._end(binding)
        if calls:
            names = ", ".join(map(str, bindings))
            raise DrainTimeout(
                f"Revoked {names}, but after {timeout} s calls still run: {', '.join(calls)}",
                calls,
            )

    def _end(self, binding: Binding) -> None:
        if binding.refusal is not REVOKED:
            vector = binding.vector
            binding.refusal = REVOKED
            self._numbering.spend(vector)
            del self.live[vector]

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

    def _running(self) -> list[tuple[Binding, int]]:
        """Return every call in flight, with its thread."""
        running = [(call.binding, call.thread) for call in self._abandoned]
        # A copy: a slot that dies takes itself out of the set, at any moment.
        for reference in self._slots.copy():
            slot = reference()
            binding = None if slot is None else slot.binding
            if slot is not None and binding is not None:
                running.append((binding, slot.thread))
        return running

    def _in_flight(self, concerns: Callable[[Binding], bool]) -> list[str]:
        """Name the calls that `concerns` and that other threads run."""
        running = [
            (binding, thread)
            for binding, thread in self._running()
            # What was opened again (`allow` while `deny` waits) is not waited for.
            if binding.refusal is not None and thread != get_ident() and concerns(binding)
        ]
        if not running:
            return []
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        return [f"{binding} in thread {names.get(thread, thread)}" for binding, thread in running]

    def _denies(self, binding: Binding) -> bool:
        owner = binding.owner
        return (owner, None) in self._denied or (owner, binding.name) in self._denied

    def _filter(self) -> None:
        for binding in self.live.values():
            # BUSY means draining, which is stronger than denied.
            if binding.refusal is not BUSY:
                binding.refusal = DENIED if self._denies(binding) else None

    def _by_name(self) -> dict[tuple[str, str], Binding]:
        found: dict[tuple[str, str], Binding] = {}
        for binding in self.live.values():
            if binding.refusal is not BUSY:
                key = name_of(binding.owner), binding.name
                if key in found:
                    raise VectorError(
                        f"Two live bindings are named {binding}: "
                        "a snapshot needs an owner name for each device"
                    )
                found[key] = binding
        return found

    def _match(self, wanted: dict[tuple[str, str], tuple[int, int]]) -> dict[int, Binding]:
        """Pair what the snapshot wants, (signature, vector) by name, with the live bindings."""
        found = self._by_name()
        for key in sorted(wanted.keys() - found.keys()):
            raise VectorError(f"The snapshot has a call {'.'.join(key)} that this machine lacks")
        for key in sorted(found.keys() - wanted.keys()):
            raise VectorError(f"This machine has a call {'.'.join(key)} that the snapshot lacks")
        for key, (signature, _) in wanted.items():
            if found[key].signature != signature:
                raise VectorError(
                    f"The signature of {'.'.join(key)} must be {signature:#x}, as in the snapshot, "
                    f"not {found[key].signature:#x}"
                )
        return {vector: found[key] for key, (_, vector) in wanted.items()}


def _parse(
    state: Mapping[str, Any], index_bits: int, tag_bits: int
) -> tuple[Numbering, dict[bytes, Numbering], dict[tuple[str, str], tuple[int, int]]]:
    """Read what `VectorTable.state` wrote, which may come from a file: trust none of it.

    Return its numbering, its past ones by key, and the (signature, vector) of its calls by name.
    """
    try:
        widths = state["index_bits"], state["tag_bits"]
        if widths != (index_bits, tag_bits):
            raise VectorError(
                f"A snapshot's vectors must have {index_bits} index and {tag_bits} tag bits, "
                f"as this table's, not {widths[0]} and {widths[1]}"
            )
        numbering = Numbering.load(state, *widths)
        loaded = [Numbering.load(each, *widths) for each in state["past"]]
        past = {each.key: each for each in loaded}
        wanted = {
            (str(each["owner"]), str(each["name"])): (int(each["signature"]), int(each["vector"]))
            for each in state["live"]
        }
        vectors = {vector for _, vector in wanted.values()}
        places = {numbering.place(vector) for vector in vectors}
        if not len(places) == len(wanted) == len(state["live"]):
            raise ValueError("two live calls share a name or an index")
        for vector in vectors:
            if not numbering.issuable(vector):
                raise ValueError(f"{vector} is live and was never issued")
        if numbering.key in past:
            raise ValueError("its numbering is its past one too")
    except (KeyError, TypeError, ValueError, OverflowError, VectorsExhausted) as error:
        raise VectorError(f"The snapshot's vectors are damaged: {error!r}") from error
    return numbering, past, wanted


def name_of(owner: object) -> str:
    """Return the name under which messages and snapshots know an owner: its `name`, or its str."""
    name = getattr(owner, "name", None)
    return name if isinstance(name, str) else str(owner)
