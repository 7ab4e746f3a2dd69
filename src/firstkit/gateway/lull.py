"""A rest between two turns of a loop that tokens keep busy, so that each turn has several of them.

For a token that comes alone the process is woken up, all sockets are looked at, and the caches have forgotten what was
done for the one before: an eighth of what it costs to pass it on. Network cards do the same with packets.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from firstkit.clock import monotonic

LULL_S = 0.0005
"""Turns in which tokens come are so far apart; one that takes as long by itself is followed by no rest."""
BUSY_PER_S = 8000
"""With so many pieces of streams a second: below it a rest would hold up tokens and gather few."""
WINDOW_S = 0.01
"""Over which they are counted."""


class Lull:
    """``after`` each piece of a stream; where they are many, the loop stands still at the end of its turn, for less
    than LULL_S. What comes meanwhile waits as long, and no longer."""

    def __init__(self, sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = monotonic) -> None:
        self._sleep = sleep
        self._clock = clock
        self._is_due = False
        self._is_busy = False
        self._pieces = 0
        self._since = 0.0
        self._turn_at = 0.0

    def after(self) -> None:
        """A piece of a stream was passed on."""
        self._pieces += 1
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._rest)

    def _rest(self) -> None:
        self._is_due = False
        now = self._clock()
        if now - self._since >= WINDOW_S:
            self._is_busy = self._pieces >= BUSY_PER_S * (now - self._since)
            self._since, self._pieces = now, 0
        rest_s = self._turn_at + LULL_S - now
        if self._is_busy and rest_s > 0:
            self._sleep(rest_s)
            now = self._clock()
        self._turn_at = now
