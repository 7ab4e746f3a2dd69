"""How many replicas each deployment of a model should have: by policy, and by the demand of the last while."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

Sample = tuple[float, int]
"""A moment (monotonic seconds) and how many requests there were: waiting and at replicas."""
History = tuple[Sample, ...]
"""Samples in order of time whose requests fall: exactly those that are the peak of some window that ends now."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How one deployment scales. ``most``: fewer than its maximum while nothing can be started there."""

    hot: int
    most: int
    max_in_flight: int
    idle_timeout_s: float


def remember(history: History, at: float, requests: int) -> History:
    """``history`` with one more sample, not always the newest; what can never be a peak again is dropped."""
    if any(seen_at >= at and seen >= requests for seen_at, seen in history):
        return history
    before = tuple(sample for sample in history if sample[0] <= at and sample[1] > requests)
    return (*before, (at, requests), *(sample for sample in history if sample[0] > at))


def forget(history: History, before: float) -> History:
    """``history`` without what is older than ``before``; the newest sample stays."""
    return tuple(sample for sample in history[:-1] if sample[0] >= before) + history[-1:]


def peak(history: History, since: float) -> int:
    """Most requests at a time since ``since``."""
    return max((requests for at, requests in history if at >= since), default=0)


def wanted(policies: Sequence[Policy], history: History, now: float, elsewhere: int = 0) -> list[int]:
    """Replicas for each deployment of one model, in the order of preference in which ``policies`` stand.

    Each has its hot ones. What demand needs beyond those goes to the first that may have more, then to the next.
    ``elsewhere``: requests that services of others take at a time. Demand counts for ``idle_timeout_s`` after it was
    seen, so that replicas do not come and go with every request.
    """
    room = elsewhere + sum(policy.hot * policy.max_in_flight for policy in policies)
    counts = []
    for policy in policies:
        lacking = peak(history, now - policy.idle_timeout_s) - room
        more = min(ceil(max(0, lacking) / policy.max_in_flight), policy.most - policy.hot)
        room += more * policy.max_in_flight
        counts.append(policy.hot + more)
    return counts
