"""How fast replicas answer, measured on the answers that they gave whole. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from firstkit.links.messages import Tail

_MANY = 32
WEIGHT = 1 / _MANY
"""Of the last answer in the moving means."""
FEW = 8
"""So many answers are needed until a replica counts as measured."""
STALE_S = 60.0
"""A replica that was not heard for so long counts as not measured: one that was slow is tried again."""
PROMPT_WORK = 0.01
"""What a token of the prompt takes, in tokens of the answer: prompts are read many tokens at a time."""
EQUAL = 0.15
"""Replicas whose speed is so near to the mean count as equal."""
SLOWEST = 4.0
"""Nobody counts as more than so many times slower or faster than the mean."""
REMEMBERED = 128
USUAL_S = 30.0
"""What a request is taken to need while no answer was measured."""
SPARE = 1.25
"""Requests are given so many times what was measured."""


class Pace:
    """Moving means of one replica. ``gap_s``: between two tokens of a stream; ``ttft_s``: until its first one."""

    __slots__ = ("_count", "_heard_at", "_seconds", "_work", "gap_s", "ttft_s")

    def __init__(self) -> None:
        self._count = 0
        self._heard_at = 0.0
        self._seconds = 0.0
        self._work = 0.0
        self.gap_s: float | None = None
        self.ttft_s = 0.0

    def hear(self, now: float, tail: Tail) -> None:
        """An answer was given whole."""
        usage, gap_s, ttft_s = tail.usage, tail.gap_s, tail.ttft_s
        if usage is not None:
            self._count = count = self._count + 1
            self._heard_at = now
            share = WEIGHT if count > _MANY else 1 / count
            self._seconds += share * (tail.duration_s - self._seconds)
            self._work += share * (usage.completion_tokens + PROMPT_WORK * usage.prompt_tokens - self._work)
        if gap_s is None or ttft_s is None:
            return
        if self.gap_s is None:
            self.ttft_s, self.gap_s = ttft_s, gap_s
        else:
            self.ttft_s += WEIGHT * (ttft_s - self.ttft_s)
            self.gap_s += WEIGHT * (gap_s - self.gap_s)

    def seconds_per_token(self, now: float) -> float | None:
        """Of what it answered lately, all together: the mix of short and long ones counts little. None: not known."""
        if self._count < FEW or self._work <= 0 or now - self._heard_at > STALE_S:
            return None
        return self._seconds / self._work

    def bound_s(self, tokens: int) -> float | None:
        """How long an answer of so many tokens may take; None: no stream was measured yet."""
        return None if self.gap_s is None else SPARE * (2 * self.ttft_s + tokens * self.gap_s)


class Durations:
    """The last answers of one model, and what the next one is therefore taken to need."""

    __slots__ = ("_next", "_seconds")

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._next = 0

    def hear(self, duration_s: float) -> None:
        if len(self._seconds) < REMEMBERED:
            self._seconds.append(duration_s)
        else:
            self._seconds[self._next] = duration_s
            self._next = (self._next + 1) % REMEMBERED

    @property
    def need_s(self) -> float:
        """As much as the longest of the last, and some more."""
        return SPARE * max(self._seconds) if self._seconds else USUAL_S


def slowness(speeds: Sequence[float | None]) -> list[float]:
    """How much slower than the mean each is, from the seconds that each needs for a token: 1 for those that are about
    as fast, and for those of whom nothing is known, which are so taken to be like the others and get their share."""
    known = [speed for speed in speeds if speed is not None]
    if len(known) < 2:
        return [1.0] * len(speeds)
    mean = sum(known) / len(known)
    return [1.0 if speed is None or mean <= 0 else _ratio(speed / mean) for speed in speeds]


def _ratio(ratio: float) -> float:
    if abs(ratio - 1.0) <= EQUAL:
        return 1.0
    return min(SLOWEST, max(1 / SLOWEST, ratio))
