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
    """Times of polls of one scheduler, in seconds of ``clock``. Without jobs nobody needs to be asked."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pause_s = HURRY_S
        self._due = inf
        self._is_calm = True
        self._silences = 0
        self._silent_until = -inf

    @property
    def is_due(self) -> bool:
        return self._clock() >= self._due and not self.is_silent

    @property
    def is_silent(self) -> bool:
        """Whether the scheduler was silent a moment ago, and is left alone for now."""
        return self._clock() < self._silent_until

    @property
    def left_s(self) -> float:
        """Seconds until it is due; never less than a moment, so that nobody spins."""
        return max(0.05, max(self._due, self._silent_until) - self._clock())

    def note(self, has_jobs: bool, is_calm: bool) -> None:
        """How the last pass found the cluster: ``is_calm`` when every job runs and its pilot is heard."""
        if not has_jobs:
            self._due = inf
        elif is_calm != self._is_calm or self._due == inf:
            self._pause_s = HURRY_S
            self._due = self._clock() + (CALM_S if is_calm else HURRY_S)
        self._is_calm = is_calm or not has_jobs

    def hurry(self) -> None:
        """Something was just asked of the scheduler: look soon what came of it."""
        self._pause_s = HURRY_S
        self._due = min(self._due, self._clock() + HURRY_S)

    def heard(self) -> None:
        """A poll was answered."""
        self._silences = 0
        self._pause_s = min(SLOWEST_S, self._pause_s * GROWTH)
        self._due = self._clock() + (CALM_S if self._is_calm else self._pause_s) * _jitter()

    def silence(self) -> None:
        """The scheduler did not answer: leave it alone, longer each time."""
        self._silences += 1
        self._silent_until = self._clock() + min(LONGEST_SILENCE_S, 2.0 ** (self._silences - 1)) * _jitter()


def _jitter() -> float:
    return random.uniform(0.9, 1.1)  # noqa: S311 - spreads load
