"""Where a request goes: the least loaded replica that has room."""

from __future__ import annotations

from collections.abc import Sequence


def choose(loads: Sequence[float], first: int) -> int | None:
    """Index of the least loaded replica with room; None when all are full.

    ``loads`` are shares of the room in use: below 1.0 there is room, infinite means not eligible. Among equals the
    next index from ``first`` on wins, round the end, so that a caller who goes on behind its last choice spreads.
    """
    if not loads:
        return None
    least = min(loads)
    if least >= 1.0:
        return None
    try:
        return loads.index(least, first % len(loads))
    except ValueError:
        return loads.index(least)
