"""A clock that jumps from one event to the next, and numbers that are drawn."""

from __future__ import annotations

import random
from collections.abc import Callable
from heapq import heappop, heappush
from math import exp, log
from typing import Any

NINE_OF_TEN = 1.2815515655446004
"""The 90th percentile of the standard normal distribution."""


class Events:
    """What is to happen, in the order of time; of what happens at the same time, in the order in which it was asked
    for. ``now``: seconds since 1970."""

    __slots__ = ("_asked", "_heap", "now")

    def __init__(self, now: float) -> None:
        self.now = now
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._asked = 0

    def at(self, when: float, call: Callable[..., None], *args: Any) -> None:
        """Call it then, or now where that is past."""
        self._asked += 1
        heappush(self._heap, (when, self._asked, call, args))

    def after(self, seconds: float, call: Callable[..., None], *args: Any) -> None:
        self.at(self.now + seconds, call, *args)

    def run(self, until: float) -> int:
        """Everything that happens up to a moment; returns how much that was."""
        heap, count = self._heap, 0
        while heap and heap[0][0] <= until:
            when, _, call, args = heappop(heap)
            if when > self.now:
                self.now = when
            call(*args)
            count += 1
        self.now = until
        return count

    def clock(self) -> float:
        return self.now


def drawn(chance: random.Random, usual: float, late: float) -> float:
    """A number of which half are below ``usual`` and nine of ten below ``late``; its logarithm is normal."""
    if late <= usual:
        return usual
    return usual * exp(chance.gauss(0.0, log(late / usual) / NINE_OF_TEN))


def mean_of(usual: float, late: float) -> float:
    """The mean of such numbers."""
    sigma = log(late / usual) / NINE_OF_TEN if late > usual else 0.0
    return usual * exp(sigma * sigma / 2)


def stream(seed: int, *names: str) -> random.Random:
    """Chance of its own for each purpose: what one part draws changes nothing for another."""
    return random.Random("/".join((str(seed), *names)))  # noqa: S311 - nothing secret is drawn
