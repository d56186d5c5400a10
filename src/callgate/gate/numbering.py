# SPDX-License-Identifier: MIT
"""Which numbers a vector table issues: never the same one twice, in memory that does not grow.

    vector   31  30              tag_bits  tag_bits-1        0
            +---+-------------------------+-------------------+
            | 0 |  index, never 0 (19)    |     tag (12)      |
            +---+-------------------------+-------------------+

The first index and each index's first tag are random, so a driver that knows a vector beforehand
fails at once. An index that is bound again gets its next tag; when it has used all its tags it
retires. What must be remembered is two numbers for each index in use, not every vector.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from callgate.errors import VectorsExhausted


class Numbering:
    """Which vectors were issued, and which comes next.

    Indices come into use one after the other, from a start that follows from `key`; so does each
    one's first tag. `place` counts them in that order. `tags[place]` tags of an index are spent,
    that is revoked, from `first[place]` upwards, modulo their number. `free` holds the next vector
    of each index that can be bound, the one that was freed first in front. `past` is what was
    issued under other keys, by key, before another machine's state was restored.
    """

    __slots__ = (
        "count",
        "first",
        "free",
        "index_bits",
        "key",
        "mask",
        "past",
        "start",
        "tag_bits",
        "tags",
    )

    def __init__(self, key: bytes, index_bits: int, tag_bits: int) -> None:
        self.key = key
        self.index_bits = index_bits
        self.tag_bits = tag_bits
        self.count = (1 << index_bits) - 1
        self.mask = (1 << tag_bits) - 1
        self.start = 1 + self._draw(0) % self.count
        self.first = array("I")
        self.tags = array("I")
        self.free: deque[int] = deque()
        self.past: dict[bytes, Numbering] = {}

    def _draw(self, n: int) -> int:
        """Return the key's random number `n`. A hash, since a snapshot must outlive a Python."""
        digest = hashlib.blake2b(n.to_bytes(8, "little"), key=self.key, digest_size=8).digest()
        return int.from_bytes(digest, "little")

    def place(self, vector: int) -> int:
        """Return the place of the vector's index; at or past the end of `tags` if not in use."""
        return ((vector >> self.tag_bits) - self.start) % self.count

    def next(self, place: int) -> int:
        """Return the next vector of a place that has tags left."""
        index = 1 + (self.start - 1 + place) % self.count
        return index << self.tag_bits | (self.first[place] + self.tags[place]) & self.mask

    def grow(self) -> int:
        """Bring the next index into use, and return its place."""
        place = len(self.tags)
        if place == self.count:
            raise VectorsExhausted(
                f"All {self.count} indices of this table are bound or have used all their "
                f"{self.mask + 1} tags: it can bind no further call"
            )
        self.first.append(self._draw(1 + place) & self.mask)
        self.tags.append(0)
        return place

    def issue(self) -> int:
        """Return a vector that was never issued before. Raises VectorsExhausted."""
        free = self.free
        while True:
            vector = free.popleft() if free else self.next(self.grow())
            if not self.past or not any(past.own(vector) for past in self.past.values()):
                return vector
            self.spend(vector)

    def spend(self, vector: int) -> None:
        """Mark an issued vector as revoked; its index can be bound again if it has tags left."""
        place = ((vector >> self.tag_bits) - self.start) % self.count
        mask = self.mask
        first = self.first[place]
        tags = ((vector - first) & mask) + 1
        if tags > self.tags[place]:
            self.tags[place] = tags
        else:
            # A snapshot brought the vector back after later ones of its index were issued.
            tags = self.tags[place]
        if tags <= mask:
            self.free.append(vector & ~mask | (first + tags) & mask)

    def spent(self, vector: int) -> bool:
        """Whether `vector`, any number, was issued and revoked."""
        return self.own(vector) or any(past.own(vector) for past in self.past.values())

    def own(self, vector: int) -> bool:
        """Whether it was so under this key, or passed over because it was under another."""
        if not 1 <= vector >> self.tag_bits <= self.count:
            return False
        place = self.place(vector)
        return (
            place < len(self.tags) and (vector - self.first[place]) & self.mask < self.tags[place]
        )

    def issuable(self, vector: int) -> bool:
        """Whether `vector` was issued or is the next one of its index: what a live one must be."""
        if self.own(vector):
            return True
        place = self.place(vector)
        return (
            place < len(self.tags) and self.tags[place] <= self.mask and vector == self.next(place)
        )

    def absorb(self, other: Numbering) -> None:
        """Count as spent what `other`, of the same key, has spent too."""
        for place, tags in enumerate(other.tags):
            if place == len(self.tags):
                self.grow()
            self.tags[place] = max(self.tags[place], tags)

    def settle(self, live: Iterable[int]) -> None:
        """Make `free` right, in its order, given the vectors that are live."""
        bound = {self.place(vector) for vector in live}
        order = dict.fromkeys([*map(self.place, self.free), *range(len(self.tags))])
        self.free = deque(
            self.next(place)
            for place in order
            if place not in bound and self.tags[place] <= self.mask
        )

    def state(self) -> dict[str, Any]:
        """Return what `load` takes, for JSON."""
        return {"key": self.key.hex(), "tags": list(self.tags), "free": list(self.free)}

    @classmethod
    def load(cls, state: Mapping[str, Any], index_bits: int, tag_bits: int) -> Numbering:
        """Return the numbering that `state` was taken of; `settle` must follow.

        Raises ValueError, or what else comes of reading something that `state` never wrote.
        """
        numbering = cls(bytes.fromhex(state["key"]), index_bits, tag_bits)
        for tags in state["tags"]:
            numbering.tags[numbering.grow()] = tags
        numbering.free.extend(map(int, state["free"]))
        if any(tags > numbering.mask + 1 for tags in numbering.tags):
            raise ValueError(f"an index has {numbering.mask + 1} tags, and more are spent")
        if any(numbering.place(vector) >= len(numbering.tags) for vector in numbering.free):
            raise ValueError("an index is free that was never in use")
        return numbering
