"""How many requests replicas are wanted for: by what was asked over the last while. Up when it lasts, down when it is
long gone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Sample = tuple[float, int]
"""A moment (monotonic seconds) and a number of requests."""
History = tuple[Sample, ...]
"""Samples in order of time whose requests fall: exactly those that are the peak of some window that ends now."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How one deployment scales. ``max_in_flight``: requests that one replica takes at a time."""

    hot: int
    most: int
    max_in_flight: int
    idle_timeout_s: float
    sustain_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Need:
    """What one model is asked for by requests that may go to the same clusters; None: to any.

    ``requests``: by (sustain_s, idle_timeout_s), for how many at a time there should be room.
    """

    clusters: frozenset[str] | None = None
    waiting: int = 0
    in_flight: int = 0
    requests: Mapping[tuple[float, float], int] | None = None

    def by(self, policy: Policy) -> int:
        """Requests that replicas of a deployment with that policy are wanted for."""
        now = self.waiting + self.in_flight
        return now if self.requests is None else self.requests.get((policy.sustain_s, policy.idle_timeout_s), now)

    def admits(self, cluster: str) -> bool:
        return self.clusters is None or cluster in self.clusters


class Demand:
    """What was asked of one model over the last while, by requests that may go to the same clusters.

    A first replica is worth starting for any request. More are for what was asked throughout a window: the lowest
    number in it, and of that the highest within the idle time, so that replicas do not come and go with every burst.
    """

    def __init__(self, at: float, policies: Iterable[Policy]) -> None:
        self.waiting = 0
        self.in_flight = 0
        self._keys = {(policy.sustain_s, policy.idle_timeout_s) for policy in policies}
        self._longest_sustain_s = max((sustain_s for sustain_s, _ in self._keys), default=0.0)
        self._longest_idle_s = max((idle_s for _, idle_s in self._keys), default=0.0)
        self._any: History = ()
        self._lows: History = ((at, 0),)
        """Negated: their peak is the lowest number of a window."""
        self._lasting: dict[float, History] = {sustain_s: () for sustain_s, _ in self._keys}

    def hear(self, at: float, waiting: int, in_flight: int, idle_s: float | None) -> None:
        """Take over what is asked now; ``idle_s``: since the last request."""
        self.look(at)  # what was so far, was so up to now
        self.waiting, self.in_flight = waiting, in_flight
        if idle_s is not None:
            self._any = remember(self._any, at - idle_s, 1)
        self.look(at)

    def look(self, at: float) -> None:
        """Note that nothing has changed up to ``at``."""
        requests = self.waiting + self.in_flight
        self._any = forget(remember(self._any, at, min(1, requests)), at - self._longest_idle_s)
        self._lows = forget(remember(self._lows, at, -requests), at - self._longest_sustain_s)
        for sustain_s, history in self._lasting.items():
            lasting = remember(history, at, -peak(self._lows, at - sustain_s, default=-requests))
            self._lasting[sustain_s] = forget(lasting, at - self._longest_idle_s)

    def need(self, at: float, clusters: frozenset[str] | None) -> Need:
        """What replicas are wanted for at this moment."""
        self.look(at)
        found = {key: self._needed(at, *key) for key in self._keys}
        return Need(clusters, self.waiting, self.in_flight, found)

    def is_over(self, at: float) -> bool:
        """Whether it counts no more: nothing was asked for longer than any idle time."""
        return not self.waiting + self.in_flight and not peak(self._any, at - self._longest_idle_s)

    def _needed(self, at: float, sustain_s: float, idle_timeout_s: float) -> int:
        since = at - idle_timeout_s
        return max(peak(self._lasting[sustain_s], since), peak(self._any, since))


def remember(history: History, at: float, requests: int) -> History:
    """``history`` with one more sample, not always the newest; what can never be a peak again is dropped."""
    if history and history[-1][0] <= at and history[-1][1] > requests:
        return (*history, (at, requests))
    if any(seen_at >= at and seen >= requests for seen_at, seen in history):
        return history
    before = tuple(sample for sample in history if sample[0] <= at and sample[1] > requests)
    return (*before, (at, requests), *(sample for sample in history if sample[0] > at))


def forget(history: History, before: float) -> History:
    """``history`` without what is older than ``before``; the newest sample stays."""
    if not history or history[0][0] >= before:
        return history
    return tuple(sample for sample in history[:-1] if sample[0] >= before) + history[-1:]


def peak(history: History, since: float, default: int = 0) -> int:
    """The most at a time since ``since``."""
    return max((requests for at, requests in history if at >= since), default=default)
