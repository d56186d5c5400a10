# SPDX-License-Identifier: MIT
"""What a message's function raises to answer with an error reply."""

from __future__ import annotations


class Refused(Exception):
    """The message is answered with `errno`; the sentence goes to the log."""

    def __init__(self, number: int, sentence: str) -> None:
        super().__init__(sentence)
        self.errno = number
