"""How many requests may be sent a second time: a share of all, so that trouble is not doubled by those who flee it."""

from __future__ import annotations

SHARE = 0.1
MOST_SAVED = 10.0


class RetryBudget:
    """Every request earns a tenth of a retry; at most MOST_SAVED are saved up, and as many are there at the start."""

    def __init__(self) -> None:
        self._saved = MOST_SAVED

    def earn(self) -> None:
        """A request came."""
        saved = self._saved + SHARE
        self._saved = saved if saved < MOST_SAVED else MOST_SAVED

    def spend(self) -> bool:
        """Whether one may be sent once more; if so it is counted."""
        if self._saved < 1:
            return False
        self._saved -= 1
        return True
