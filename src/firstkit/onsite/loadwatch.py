"""The load of one engine, read again and again while requests may come to it, and what of it the gateway must hear."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Optional

from firstkit.engines.load import METRICS_PATH, Load, read_load

CACHE_STEP = 0.05
"""A cache that is fuller or emptier by less is no news."""
COUNT_STEP = 4
"""Counts that differ by less than a fourth are no news, but none and some are."""
NOT_KNOWN = Load()


@dataclass(frozen=True)
class Told:
    """The last load, and ``others``: so many of its requests no request of this pilot stands for."""

    load: Load = NOT_KNOWN
    others: int = 0


class LoadWatch:
    """``get(path)`` gives status and body of an answer of the engine, ``in_flight()`` the requests that the pilot has
    at it now; ``on_news`` comes when the load is worth a report. Numbers of an engine that does not answer stand: it
    may be too busy, and its health is for others to judge."""

    def __init__(
        self,
        get: Callable[[str], Awaitable[tuple[int, bytes]]],
        names: Mapping[str, str],
        in_flight: Callable[[], int],
        on_news: Callable[[], None],
    ) -> None:
        self.told = Told()
        self._get = get
        self._names = names
        self._in_flight = in_flight
        self._on_news = on_news
        self._reported = Told()
        self._surplus = 0

    async def run(self, every_s: float) -> None:
        """Returns only when cancelled, or at once for an engine that has no numbers."""
        while self._names:
            await asyncio.sleep(every_s)
            await self.look()

    async def look(self) -> None:
        """Read the load once."""
        before = self._in_flight()
        status, body = await self._get(METRICS_PATH)
        if status != 200:
            return
        load = read_load(body, self._names)
        # A request that has just come or gone here may not have there, so only what is seen twice counts.
        surplus, last = max(0, load.requests - max(before, self._in_flight())), self._surplus
        self._surplus = surplus
        self.told = Told(load, min(surplus, last))
        if is_news(self._reported, self.told):
            self._reported = self.told
            self._on_news()


def is_news(reported: Told, told: Told) -> bool:
    """Whether routing would see the replica in another light. ``running`` alone is none: who routes knows it."""
    before, now = reported.load, told.load
    return (
        _differ(reported.others, told.others)
        or _differ(before.waiting, now.waiting)
        or abs((before.cache_use or 0.0) - (now.cache_use or 0.0)) >= CACHE_STEP
    )


def _differ(before: Optional[int], now: Optional[int]) -> bool:
    one, other = before or 0, now or 0
    return bool(one) != bool(other) or COUNT_STEP * abs(one - other) > max(one, other)
