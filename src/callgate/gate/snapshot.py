# SPDX-License-Identifier: MIT
"""A vector table's state: what a snapshot of its machine holds, so that no vector is issued twice.

The filter and the quotas are the host's, not the machine's, and are not part of it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeAlias

from callgate.errors import VectorError, VectorsExhausted
from callgate.gate.abi import Status
from callgate.gate.numbering import Numbering
from callgate.gate.vectors import Binding, VectorTable, name_of

Name: TypeAlias = tuple[str, str]
"""Of the owner, and of its call."""


def state(table: VectorTable) -> dict[str, Any]:
    """Return every vector ever issued, and what is live, for JSON.

    Bindings that are being revoked count as revoked. Raises VectorError if two live bindings have
    the same owner name and name, since `restore` could not tell them apart.
    """
    with table.lock:
        live = _by_name(table)
        numbering = copy.deepcopy(table.numbering)
        for vector in table.live.keys() - {each.vector for each in live.values()}:
            numbering.spend(vector)
        return {
            "index_bits": numbering.index_bits,
            "tag_bits": numbering.tag_bits,
            **numbering.state(),
            "past": [past.state() for past in numbering.past.values()],
            "live": [
                {"owner": owner, "name": name, "signature": each.signature, "vector": each.vector}
                for (owner, name), each in live.items()
            ],
        }


def restore(table: VectorTable, state: Mapping[str, Any]) -> None:
    """Give each live binding the vector that `state` has for it.

    Bindings are matched by owner name, name and signature, both ways. Every other vector that the
    snapshot's table or this one ever issued is revoked. The machine must be at rest; what its gates
    show of vectors is theirs to write anew. Raises VectorError, and changes nothing, if something
    does not match or a call is in flight.
    """
    with table.lock:
        old = table.numbering
        numbering, wanted = _parse(state, old.index_bits, old.tag_bits)
        if table.drains or table.running():
            raise VectorError("Calls are in flight: a table must be at rest to be restored")
        vectors = _match(table, wanted)
        own = {**old.past, old.key: old}
        same = own.pop(numbering.key, None)
        for vector in vectors:
            if any(each.own(vector) for each in own.values()) or (
                same is not old and vector in table.live
            ):
                raise VectorError(
                    f"Vector {vector:#010x} of the snapshot was issued by this table before, to "
                    "another call: restore into a new machine"
                )
        stale = list(table.live)
        for vector in stale:
            old.spend(vector)
        if same is not None:
            numbering.absorb(same)
        numbering.settle(vectors)
        for key, each in own.items():
            past = numbering.past.setdefault(key, each)
            past.absorb(each)
            past.free.clear()
            past.past = {}
        table.numbering = numbering
        # In place: the call path may hold on to the dict.
        for vector, binding in vectors.items():
            binding.vector = vector
            table.live[vector] = binding
        for vector in stale:
            if vector not in vectors:
                del table.live[vector]


def _by_name(table: VectorTable) -> dict[Name, Binding]:
    found: dict[Name, Binding] = {}
    for binding in table.live.values():
        if binding.refusal is not Status.BUSY:
            key = name_of(binding.owner), binding.name
            if key in found:
                raise VectorError(
                    f"Two live bindings are named {binding}: "
                    "a snapshot needs an owner name for each device"
                )
            found[key] = binding
    return found


def _match(table: VectorTable, wanted: dict[Name, tuple[int, int]]) -> dict[int, Binding]:
    """Pair what the snapshot wants, (signature, vector) by name, with the live bindings."""
    found = _by_name(table)
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
) -> tuple[Numbering, dict[Name, tuple[int, int]]]:
    """Read what `state` wrote, which may come from a file: trust none of it.

    Return its numbering, with its past, and the (signature, vector) of its calls by name.
    """
    try:
        widths = state["index_bits"], state["tag_bits"]
        if widths != (index_bits, tag_bits):
            raise VectorError(
                f"A snapshot's vectors must have {index_bits} index and {tag_bits} tag bits, "
                f"as this table's, not {widths[0]} and {widths[1]}"
            )
        numbering = Numbering.load(state, *widths)
        for each in state["past"]:
            past = Numbering.load(each, *widths)
            numbering.past[past.key] = past
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
        if numbering.key in numbering.past:
            raise ValueError("its numbering is its past one too")
    except (KeyError, TypeError, ValueError, OverflowError, VectorsExhausted) as error:
        raise VectorError(f"The snapshot's vectors are damaged: {error!r}") from error
    return numbering, wanted
