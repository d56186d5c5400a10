# SPDX-License-Identifier: MIT
"""What the guest did wrong: counted, logged loudly once, then quietly.

A guest may err as often as it likes, so its errors must neither raise in the host nor fill the
host's log. Each kind of fault warns once; the count tells the rest.
"""

from __future__ import annotations

import logging
from threading import Lock

from callgate.errors import DmaError, VmmGone

LOGGER = logging.getLogger("callgate.guest")


class Faults:
    """Counts of the guest's faults towards one `owner`, by kind. Safe to use from any thread."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self._counts: dict[str, int] = {}
        self._lock = Lock()

    def note(self, kind: str, sentence: str) -> None:
        """Count a fault, and log `sentence` to `callgate.guest`.

        The first fault of each `kind` is logged at level WARNING, all later ones at DEBUG. A `kind`
        is one of the host's own few words: made of what the guest sent, it would fill the memory.
        """
        with self._lock:
            before = self._counts.get(kind, 0)
            self._counts[kind] = before + 1
        if before:
            LOGGER.debug("%s: %s", self.owner, sentence)
        else:
            LOGGER.warning(
                "%s: %s (%s: more of this kind at level DEBUG)", self.owner, sentence, kind
            )

    def note_dma(self, what: str, error: DmaError) -> None:
        """`note` an access to memory that the map does not allow. One that was under way when the
        VMM ended is nobody's fault, and is not noted."""
        if not isinstance(error, VmmGone):
            self.note("dma", f"{what}: {error}")

    @property
    def counts(self) -> dict[str, int]:
        """How often each kind was noted, as a copy; a kind never noted is absent."""
        with self._lock:
            return dict(self._counts)
