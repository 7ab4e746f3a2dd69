"""Where a request goes: to the replica that is expected to finish it first. Pure.

A replica shares its speed among the requests that it has. So the time in which one more would be finished grows with
their number, in shares of its room, and with how slow it was measured to be beside the others. Equal replicas get equal
numbers, one of half the speed half as many.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf

from firstkit.links.messages import end_margin_s

NEARLY_FULL = 0.8
"""Share of an engine's cache."""
REFRESH_S = 1.0
"""How old what choosing knows of time may be."""


def expected_finish(in_flight: int, room: int, slowness: float, burden: float = 0.0) -> float:
    """When one more request would be finished, as a multiple of what a replica of mean speed takes when it is full;
    infinite where there is no room. ``slowness``: 1 is as fast as the mean, 2 half as fast. ``burden``: so many more
    requests it is as good as having; they take no room, for they may be gone."""
    return (in_flight + 1 + burden) * slowness / room if in_flight < room else inf


def burden(room: int, others: int, waiting: int, cache_use: float) -> float:
    """What the engine's own numbers add to the requests that a replica has, in requests: twice its room at most.

    ``others`` are at work there like ours. Those that wait inside the engine count once more: it does not take on what
    it has. A cache that is taken to more than NEARLY_FULL soon makes it put off some of them; a full one counts as half
    of its room.
    """
    fullness = max(0.0, cache_use - NEARLY_FULL) / (1 - NEARLY_FULL)
    return min(2.0 * room, others + waiting + fullness * room / 2)


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
