"""Records histories of queue waits from model schedulers, for tests of forecasts. The README beside it says the format.

PYTHONPATH=tests python -m unit.reconciler.histories.record
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import cos, pi
from pathlib import Path
from random import Random

from firstkit.reconciler.seasons import shape_of
from firstkit.schedulers.scheduler import Resources

HERE = Path(__file__).parent
BEGIN = datetime(2026, 8, 3, tzinfo=UTC)
"""A Monday."""
DAY_S, WEEK_S = 86400.0, 7 * 86400.0
WARM_UP_S = 3 * DAY_S
LONGEST_WAIT_S = 4 * DAY_S


@dataclass(frozen=True)
class Model:
    """A cluster, and the jobs that others submit to it. ``load``: of all its node-time, what those ask for on average;
    ``swing``, ``weekend``: how that goes with the hour of the day and falls on weekends; ``peak_h``: the fullest hour;
    ``shift``: what becomes of the load in the second half."""

    name: str
    nodes: int
    load: float
    swing: float = 0.0
    weekend: float = 1.0
    peak_h: float = 21.0
    shift: float = 1.0
    partition: str = "gpu"

    def rate(self, at_s: float, whole_s: float) -> float:
        """How much others ask for at a moment, beside the average."""
        day = 1 + self.swing * cos(2 * pi * (at_s / 3600 - self.peak_h) / 24)
        is_weekend = (at_s % WEEK_S) >= 5 * DAY_S
        return day * (self.weekend if is_weekend else 1.0) * (self.shift if at_s > whole_s / 2 else 1.0)


@dataclass(order=True)
class Job:
    submitted_s: float
    nodes: int = field(compare=False)
    limit_s: float = field(compare=False)
    runs_s: float = field(compare=False)
    shape: str = field(compare=False, default="")
    said_s: float = field(compare=False, default=0.0)
    begun_s: float = field(compare=False, default=-1.0)


class Queue:
    """First come, first served, with backfill: a job may overtake where it delays nobody before it, by what all said
    that they would take at most."""

    def __init__(self, nodes: int) -> None:
        self.free = self.nodes = nodes
        self.running: list[tuple[float, float, int]] = []
        """When it will have ended, when it says that it must have, and its nodes."""
        self.waiting: list[Job] = []

    def advance(self, to_s: float) -> None:
        """Let time pass; jobs end and begin."""
        while self.running and self.running[0][0] <= to_s:
            at_s, _, nodes = heapq.heappop(self.running)
            self.free += nodes
            self._begin(at_s)

    def submit(self, job: Job) -> None:
        self.advance(job.submitted_s)
        self.waiting.append(job)
        if job.shape:
            job.said_s = self._planned(job.submitted_s) - job.submitted_s
        self._begin(job.submitted_s)

    def _begin(self, at_s: float) -> None:
        while self.waiting and self.waiting[0].nodes <= self.free:
            self._run(self.waiting.pop(0), at_s)
        if not self.waiting:
            return
        reserved_s, spare = self._reservation(at_s)
        for job in list(self.waiting[1:]):
            ends_before = at_s + job.limit_s <= reserved_s
            if job.nodes <= self.free and (ends_before or job.nodes <= spare):
                self.waiting.remove(job)
                spare -= 0 if ends_before else job.nodes
                self._run(job, at_s)

    def _run(self, job: Job, at_s: float) -> None:
        job.begun_s = at_s
        self.free -= job.nodes
        heapq.heappush(self.running, (at_s + job.runs_s, at_s + job.limit_s, job.nodes))

    def _reservation(self, at_s: float) -> tuple[float, int]:
        """When the first that waits begins at the latest, and how many nodes are over then."""
        free, wanted = self.free, self.waiting[0].nodes
        for limit_s, nodes in sorted((limit_s, nodes) for _, limit_s, nodes in self.running):
            free += nodes
            if free >= wanted:
                return max(at_s, limit_s), free - wanted
        return at_s + LONGEST_WAIT_S, 0

    def _planned(self, at_s: float) -> float:
        """When the last that waits would begin if nobody came any more and all took as long as they may."""
        ends = [at_s] * self.free
        for _, limit_s, nodes in self.running:
            ends += [max(at_s, limit_s)] * nodes
        begins_s = at_s
        for job in self.waiting:
            ends.sort()
            begins_s = max(begins_s, ends[job.nodes - 1])
            ends[: job.nodes] = [begins_s + job.limit_s] * job.nodes
        return begins_s


SIZES = ((1, 40), (2, 20), (4, 15), (8, 10), (16, 5))
LIMITS_H = ((1, 20), (2, 20), (4, 20), (8, 15), (24, 10))
OURS = ((1, 4), (1, 12), (2, 4), (4, 6))
"""Nodes and hours of the jobs whose waits are recorded."""


def _chosen(random: Random, table: tuple[tuple[int, int], ...]) -> int:
    return random.choices([value for value, _ in table], [weight for _, weight in table])[0]


def of_others(model: Model, random: Random, whole_s: float) -> Iterator[Job]:
    """What others submit."""
    size = sum(value * weight for value, weight in SIZES) / sum(weight for _, weight in SIZES)
    hours = sum(value * weight for value, weight in LIMITS_H) / sum(weight for _, weight in LIMITS_H)
    usual_s = model.nodes * model.load / (size * hours * 3600 * 0.55)  # jobs a second; they take 55 % of what they may
    at_s = -WARM_UP_S
    while at_s < whole_s + LONGEST_WAIT_S:
        at_s += random.expovariate(2.5 * usual_s)
        if random.random() * 2.5 < model.rate(at_s, whole_s):
            limit_s = 3600.0 * _chosen(random, LIMITS_H)
            yield Job(at_s, _chosen(random, SIZES), limit_s, limit_s * random.uniform(0.1, 1.0))


def record(models: list[Model], days: int, each_day: float, seed: int) -> list[dict[str, object]]:
    """Waits of jobs that are submitted to all clusters at the same moments."""
    random, whole_s = Random(seed), days * DAY_S
    ours, at_s = list[tuple[float, int, int]](), 0.0
    while (at_s := at_s + random.expovariate(each_day / DAY_S)) < whole_s:
        ours.append((at_s, *random.choice(OURS)))
    found = []
    for model in models:
        queue, watched = Queue(model.nodes), list[Job]()
        for at_s, nodes, hours in ours:
            needs = Resources(nodes=nodes, gpus_per_node=4, walltime_s=3600 * hours, partition=model.partition)
            limit_s = 3600.0 * hours
            watched.append(Job(at_s, nodes, limit_s, limit_s * random.uniform(0.5, 1.0), shape_of(needs)))
        for job in sorted([*of_others(model, random, whole_s), *watched]):
            queue.submit(job)
        queue.advance(whole_s + 10 * LONGEST_WAIT_S)
        found += [_line(model, job) for job in watched if job.begun_s >= 0]
    return sorted(found, key=lambda line: (str(line["at"]), str(line["cluster"])))


def _line(model: Model, job: Job) -> dict[str, object]:
    return {
        "at": (BEGIN + timedelta(seconds=round(job.submitted_s))).isoformat(),
        "cluster": model.name,
        "shape": job.shape,
        "wait_s": round(job.begun_s - job.submitted_s),
        "said_s": round(job.said_s),
    }


HISTORIES = {
    "seasons": (
        [
            Model("polaris", 64, 0.80, swing=0.7, weekend=0.5, peak_h=22.0),
            Model("sophia", 32, 0.80, swing=0.7, weekend=0.6, peak_h=10.0),
            Model("aurora", 128, 0.93, swing=0.2, weekend=0.9, peak_h=16.0),
        ],
        56,
        10.0,
        21,
    ),
    "shift": ([Model("polaris", 64, 0.70, swing=0.3, shift=1.3), Model("sophia", 64, 0.95, shift=0.75)], 42, 10.0, 22),
}


def main() -> None:
    for name, (models, days, each_day, seed) in HISTORIES.items():
        lines = [json.dumps(line) + "\n" for line in record(models, days, each_day, seed)]
        (HERE / f"{name}.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()
