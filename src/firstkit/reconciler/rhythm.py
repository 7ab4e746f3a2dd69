"""When a scheduler is asked again: soon while something is on its way, seldom when all is well, late in silence."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import inf

CALM_S = 30.0
HURRY_S = 0.5
SLOWEST_S = 10.0
GROWTH = 1.5
LONGEST_SILENCE_S = 60.0


class Rhythm:
    """Times of polls of one scheduler, in seconds of ``clock``. Without jobs nobody needs to be asked.

    ``interval_s``: between two polls there is never less time, whatever happens.
    """

    def __init__(self, clock: Callable[[], float], interval_s: float = 0.0) -> None:
        self._clock = clock
        self.interval_s = interval_s
        self.good = self.failed = 0
        """How often the scheduler answered and did not, since the start."""
        self._hurry_s = max(HURRY_S, interval_s)
        self._calm_s = max(CALM_S, interval_s)
        self._slowest_s = max(SLOWEST_S, interval_s)
        self._pause_s = self._hurry_s
        self._due = inf
        self._earliest = -inf
        self._is_calm = True
        self._silences = 0
        self._silent_until = -inf
        self._silent_since = inf

    @property
    def is_due(self) -> bool:
        return self._clock() >= max(self._due, self._earliest) and not self.is_silent

    @property
    def is_silent(self) -> bool:
        """Whether the scheduler was silent a moment ago, and is left alone for now."""
        return self._clock() < self._silent_until

    @property
    def silent_s(self) -> float | None:
        """For how long it has not answered; None when it did."""
        return None if self._silent_since == inf else self._clock() - self._silent_since

    @property
    def left_s(self) -> float:
        """Seconds until it is due; never less than a moment, so that nobody spins."""
        return max(0.05, max(self._due, self._earliest, self._silent_until) - self._clock())

    def note(self, has_jobs: bool, is_calm: bool) -> None:
        """How the last pass found the cluster: ``is_calm`` when every job runs and its pilot is heard."""
        if not has_jobs and self.silent_s is None:
            self._due = inf
        elif is_calm != self._is_calm or self._due == inf:
            self._pause_s = self._hurry_s
            pause_s = self._calm_s if is_calm and has_jobs else self._hurry_s
            self._due = min(self._due, self._clock() + pause_s * _jitter())  # what comes and goes delays nothing
        self._is_calm = is_calm or not has_jobs

    def hurry(self) -> None:
        """Something was just asked of the scheduler: look soon what came of it."""
        self._pause_s = self._hurry_s
        self._due = min(self._due, self._clock() + self._hurry_s * _jitter())

    def asked(self) -> None:
        """A poll begins."""
        self._earliest = self._clock() + self.interval_s * _jitter()

    def heard(self) -> None:
        """A poll was answered."""
        self.answered()
        self._pause_s = min(self._slowest_s, self._pause_s * GROWTH)
        self._due = self._clock() + (self._calm_s if self._is_calm else self._pause_s) * _jitter()

    def answered(self) -> None:
        """The scheduler answered to anything."""
        self.good += 1
        self._silences = 0
        self._silent_since = inf
        self._silent_until = -inf

    def silence(self) -> None:
        """The scheduler did not answer: leave it alone, longer each time."""
        self._silences += 1
        self.failed += 1
        self._silent_since = min(self._silent_since, self._clock())
        self._silent_until = self._clock() + min(LONGEST_SILENCE_S, 2.0 ** min(self._silences - 1, 30)) * _jitter()


def _jitter() -> float:
    """A little more than one, never less: an interval is a promise."""
    return random.uniform(1.0, 1.2)  # noqa: S311 - spreads load
