"""What past queue waits say of the next one: those of jobs like it, at such hours, not long ago, weigh most.

All times are UTC: where the clocks of a centre change twice a year, its days shift by an hour against these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from math import exp, log, log2

from firstkit.reconciler.forecast import Spread, spread
from firstkit.schedulers.scheduler import Resources
from firstkit.store.jobs import Observation
from firstkit.store.polls import Polled

USUAL, LATE = 0.5, 0.9
"""The quantiles of a forecast."""
AIM = 0.92
"""What is taken from past waits for the higher one: they are few, and the longest is yet to come."""
HALF_LIFE = timedelta(days=7)
"""A wait that ended so long ago weighs half: queues change with the seasons of a centre."""
FRESH, FRESH_HALF_LIFE = 16.0, timedelta(hours=6)
"""One that has just ended says how the queue is now: it weighs so many times more, and after so long half of that."""
DAY_S = 86400.0
_FADES, _FRESH_FADES = (log(2) / span.total_seconds() for span in (HALF_LIFE, FRESH_HALF_LIFE))
HOURS = 4.0
"""Standard deviation: how near in the day another hour is."""
OTHER_DAY = 0.5
"""What a wait on a weekday says of weekends, and one on a weekend of weekdays."""
PRIOR = 2.0
"""All waits of a cluster together weigh as much as so many of the very kind and hour that is asked for."""
UNKNOWN_SHAPE = 0.5
WALLTIMES_S = (1800, 3600, 7200, 14400, 28800, 43200, 86400, 172800)


def shape_of(resources: Resources) -> str:
    """What queues tell jobs apart by, as one printable key: ``nodes=2 gpus=4 walltime=8h queue=gpu qos=high``.

    ``gpus``: of each node. ``walltime``: rounded up to one of a few. Queue and qos only where they are named.
    """
    words = [f"nodes={resources.nodes}", f"gpus={resources.gpus_per_node}", f"walltime={_walltime(resources)}"]
    words += [f"queue={_word(resources.partition)}"] if resources.partition else []
    words += [f"qos={_word(resources.qos)}"] if resources.qos else []
    return " ".join(words)


def _word(name: str) -> str:
    """A name as one word, no longer than the store takes."""
    return "_".join(name.split())[:200]


def _walltime(resources: Resources) -> str:
    if resources.walltime_s is None:
        return "any"
    rounded_s = next((limit for limit in WALLTIMES_S if resources.walltime_s <= limit), None)
    if rounded_s is None:
        return "longer"
    return f"{rounded_s // 3600}h" if rounded_s >= 3600 else f"{rounded_s // 60}min"


@lru_cache(maxsize=10_000)
def likeness(one: str, other: str) -> float:
    """How much the wait of a job of one shape says of a job of another, from 0 to 1; either may be unknown: ""."""
    if not one or not other:
        return UNKNOWN_SHAPE
    a, b = _parsed(one), _parsed(other)
    apart = abs(log2(a.nodes / b.nodes)) + abs(log2((a.gpus + 1) / (b.gpus + 1))) / 2
    apart += abs(a.walltime - b.walltime) / 2 + 3 * (a.queue != b.queue) + (a.qos != b.qos)
    return float(2**-apart)


@dataclass(frozen=True, slots=True)
class _Shape:
    nodes: int
    gpus: int
    walltime: int
    """The number of its bucket."""
    queue: str
    qos: str


_BUCKETS = ("30min", "1h", "2h", "4h", "8h", "12h", "24h", "48h", "longer", "any")


@lru_cache(maxsize=1000)
def _parsed(shape: str) -> _Shape:
    words = dict(word.split("=", 1) for word in shape.split())
    bucket = _BUCKETS.index(words["walltime"])
    return _Shape(int(words["nodes"]), int(words["gpus"]), bucket, words.get("queue", ""), words.get("qos", ""))


def forecast(waits: Sequence[Observation], shape: str, at: datetime) -> Spread | None:
    """What a job of ``shape`` waits that is submitted at ``at``: half of them at most ``usual``, nine of ten at most
    ``late``. None without any observation.

    Where few of its kind waited, all waits of the cluster count. Observations that do not say when they began are
    taken as they come: then it is the median of all.
    """
    dated = [(one, one.began_at.timestamp()) for one in waits if one.began_at is not None]
    if not dated:
        return spread(waits)
    now_s = at.timestamp()
    ages = [_freshness(now_s - began_s - one.seconds) for one, began_s in dated]
    share = PRIOR / sum(ages)
    weights = [
        age * (share + likeness(one.shape, shape) * _season(began_s, now_s))
        for (one, began_s), age in zip(dated, ages, strict=True)
    ]
    usual, late = weighted_quantiles([one.seconds for one, _ in dated], weights, (USUAL, AIM))
    return Spread(usual, max(usual, late) if len(dated) > 1 else 2 * usual)


def weighted_quantiles(values: Sequence[float], weights: Sequence[float], levels: Sequence[float]) -> list[float]:
    """At each of ``levels``, which rise: the value below which so much of the weight lies, on a line between the two
    values nearest to it. ``values`` may not be empty."""
    pairs = sorted(zip(values, weights, strict=True))
    whole, below, before, found = sum(weights), 0.0, (0.0, pairs[0][0]), list[float]()
    for value, weight in pairs:
        here = ((below + weight / 2) / whole, value)
        while len(found) < len(levels) and levels[len(found)] <= here[0]:
            found.append(_between(before, here, levels[len(found)]))
        below, before = below + weight, here
    return found + [pairs[-1][0]] * (len(levels) - len(found))


def _between(low: tuple[float, float], high: tuple[float, float], level: float) -> float:
    width = high[0] - low[0]
    return high[1] if width <= 0 else min(high[1], low[1] + (high[1] - low[1]) * (level - low[0]) / width)


def _freshness(age_s: float) -> float:
    """How much a wait weighs that ended so long ago."""
    age_s = max(0.0, age_s)
    return exp(-age_s * _FADES) + FRESH * exp(-age_s * _FRESH_FADES)


def _season(one_s: float, other_s: float) -> float:
    """How much one hour and kind of day say of another, from 0 to 1; both in seconds since 1970."""
    apart_s = abs(one_s - other_s) % DAY_S
    hours = min(apart_s, DAY_S - apart_s) / 3600
    near = exp(-0.5 * (hours / HOURS) ** 2)
    return near if _is_weekend(one_s) == _is_weekend(other_s) else near * OTHER_DAY


def _is_weekend(moment_s: float) -> bool:
    return (moment_s // DAY_S + 3) % 7 >= 5  # the first day was a Thursday


def availability(polled: Iterable[Polled], since: datetime) -> float | None:
    """The share of the minutes since then in which a scheduler answered, of those in which it was asked; None: it was
    not asked. The hour in which ``since`` lies counts whole."""
    counted = [one for one in polled if one.hour + timedelta(hours=1) > since]
    asked = sum(one.good + one.failed for one in counted)
    return sum(one.good for one in counted) / asked if asked else None
