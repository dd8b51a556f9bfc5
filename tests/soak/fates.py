"""Fates: what a peer does in the middle of a message, known to both ends from its number."""

from __future__ import annotations

import random

RESET, END, STALLED, SILENT, COMPLETE = FATES = ("reset", "end", "stalled", "silent", "complete")
MESSAGE = 64  # bytes


def fate_of(index: int) -> tuple[str, int]:
    """What becomes of connection ``index``, and how many bytes of its message it sends."""
    chance = random.Random(index)
    fate = chance.choice(FATES)
    if fate == COMPLETE:
        return fate, MESSAGE
    if fate == SILENT:
        return fate, 0
    return fate, chance.randrange(fate == STALLED, MESSAGE)
