"""Where a request goes: to the replica that is expected to finish it first. Pure.

A replica shares its speed among the requests that it has. So the time in which one more would be finished grows with
their number, in shares of its room, and with how slow it was measured to be beside the others. Equal replicas get equal
numbers, one of half the speed half as many.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf

from firstkit.links.messages import end_margin_s

REFRESH_S = 1.0
"""How old what choosing knows of time may be."""


def expected_finish(in_flight: int, room: int, slowness: float) -> float:
    """When one more request would be finished, as a multiple of what a replica of mean speed takes when it is full;
    infinite where there is no room. ``slowness``: 1 is as fast as the mean, 2 half as fast."""
    return (in_flight + 1) * slowness / room if in_flight < room else inf


def time_left(born_at: float, ends_at: float, now: float, need_s: float) -> tuple[float, float]:
    """Seconds until a replica must have finished what it has, and those that a request is taken to need there.

    ``ends_at``: infinite where no end is known. Where requests need more than a replica ever has, half of its life is
    for new ones: else none would ever be served.
    """
    if ends_at == inf:
        return inf, need_s
    life_s = max(0.0, ends_at - born_at)
    margin_s = end_margin_s(life_s)
    return ends_at - margin_s - REFRESH_S - now, min(need_s, (life_s - margin_s) / 2)


def choose(finishes: Sequence[float], first: int) -> int | None:
    """Index of the earliest of ``finishes``; None when all are infinite.

    Among equals the next index from ``first`` on wins, round the end, so that a caller who goes on behind its last
    choice spreads.
    """
    if not finishes:
        return None
    least = min(finishes)
    if least == inf:
        return None
    try:
        return finishes.index(least, first % len(finishes))
    except ValueError:
        return finishes.index(least)


def prefer(finishes: Sequence[float], chosen: int, known: Iterable[int], bonus: float) -> int | None:
    """The best of the indexes that are ``known`` to suit, if it is expected to finish at most ``bonus`` later than the
    ``chosen`` one."""
    best, latest = None, finishes[chosen] + bonus
    for index in known:
        if finishes[index] <= latest:
            best, latest = index, finishes[index]
    return best
