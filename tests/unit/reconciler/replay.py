"""Replays recorded queue waits: each forecast is made from what had been seen when the job was submitted, no more."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from firstkit.reconciler import seasons
from firstkit.reconciler.autoscale import Need, Policy
from firstkit.reconciler.forecast import Spread, spread, wait_s
from firstkit.reconciler.placement import Place, allocate
from firstkit.store.jobs import REMEMBERED, WAITS, Observation

HISTORIES = Path(__file__).parent / "histories"
POLICY = Policy(hot=0, most=1, max_in_flight=1, idle_timeout_s=0.0)
Rule = Callable[[Sequence[Observation], str, datetime], Spread | None]
"""What is forecast, from waits (the newest first), for a shape at a moment."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a history."""

    at: datetime
    cluster: str
    shape: str
    wait_s: float
    said_s: float | None

    @property
    def started_at(self) -> datetime:
        return self.at + timedelta(seconds=self.wait_s)


@dataclass(frozen=True, slots=True)
class Told:
    """What was forecast for a line, and what came of it."""

    line: Line
    forecast: Spread

    @property
    def usual_s(self) -> float:
        """With what the scheduler said, as placement decides."""
        made_s = wait_s(self.line.said_s, self.forecast.usual)
        assert made_s is not None
        return made_s


def history(name: str) -> list[Line]:
    """The lines of a history, in the order of submission."""
    rows: list[dict[str, Any]] = [json.loads(text) for text in (HISTORIES / f"{name}.jsonl").read_text().splitlines()]
    lines = [Line(**{**row, "at": datetime.fromisoformat(row["at"])}) for row in rows]
    return sorted(lines, key=lambda line: line.at)


def as_before(waits: Sequence[Observation], _shape: str, _at: datetime) -> Spread | None:
    """The rule of earlier versions: the last twenty waits of the cluster, whatever waited."""
    return spread(waits[:REMEMBERED])


def replay(lines: Sequence[Line], rule: Rule) -> Iterator[Told]:
    """All forecasts that could be made, in the order of submission."""
    for cluster in sorted({line.cluster for line in lines}):
        ours = [line for line in lines if line.cluster == cluster]
        by_start = sorted(ours, key=lambda line: line.started_at)
        seen: list[Observation] = []
        for line in ours:
            while by_start and by_start[0].started_at <= line.at:
                done = by_start.pop(0)
                seen.insert(0, Observation(done.wait_s, None, None, done.shape, done.at))
            made = rule(seen[:WAITS], line.shape, line.at)
            if made is not None:
                yield Told(line, made)


def error_s(told: Sequence[Told]) -> float:
    """Mean absolute error of what was called usual."""
    return fmean(abs(one.forecast.usual - one.line.wait_s) for one in told)


def coverage(told: Sequence[Told]) -> float:
    """The share of waits that nine of ten should not exceed, and did not."""
    return fmean(one.line.wait_s <= one.forecast.late for one in told)


def late_loss_s(told: Sequence[Told]) -> float:
    """How bad the 90 % quantiles are, as quantiles: the lower the better, and no lower than for the true ones."""
    misses = [one.line.wait_s - one.forecast.late for one in told]
    return fmean(max(seasons.LATE * miss, (seasons.LATE - 1) * miss) for miss in misses)


def regret_s(told: Sequence[Told], usual_s: Callable[[Told], float]) -> float:
    """How much longer jobs wait where ``allocate`` puts them by such forecasts than where they would have waited least,
    on average. Of moments at which all clusters had a forecast."""
    clusters = {one.line.cluster for one in told}
    regrets = []
    for _, group in groupby(sorted(told, key=lambda one: (one.line.at, one.line.cluster)), key=lambda one: one.line.at):
        there = {one.line.cluster: one for one in group}
        if there.keys() == clusters:
            waited_s = {name: one.line.wait_s for name, one in there.items()}
            chosen = _chosen({name: usual_s(one) for name, one in there.items()})
            regrets.append(waited_s[chosen] - min(waited_s.values()))
    return fmean(regrets)


def _chosen(waits_s: Mapping[str, float]) -> str:
    """The cluster on which one request starts a replica."""
    places = [Place(name, name, POLICY, wait_s=seconds, load_s=0.0) for name, seconds in waits_s.items()]
    (found,) = [name for name, share in allocate(places, [Need(waiting=1)]).items() if share.wanted]
    return found
