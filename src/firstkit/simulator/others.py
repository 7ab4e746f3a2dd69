"""What happens on a cluster without us: jobs of others, and nodes that fail."""

from __future__ import annotations

import random
from functools import cache
from math import cos, pi

from firstkit.simulator.batch import BatchSystem, whole
from firstkit.simulator.events import Events, drawn, mean_of
from firstkit.simulator.scenario import Background, NodeFailures

PEAK_HOUR = 15.0


class Others:
    """Their jobs: as many as make the load that is wanted, more by day."""

    def __init__(self, events: Events, batch: BatchSystem, wanted: Background, chance: random.Random) -> None:
        self._events = events
        self._batch = batch
        self._wanted = wanted
        self._chance = chance
        self._count = 0
        work_s = _mean_nodes(wanted.nodes.usual, wanted.nodes.late, batch.nodes.count) * mean_of(
            wanted.runs.usual, wanted.runs.late
        )
        self._rate = wanted.load * batch.nodes.count / work_s

    def begin(self) -> None:
        """At the start there are as many as there are in the mean, somewhere in their lives."""
        busy = 0
        while busy < min(1.0, self._wanted.load) * self._batch.nodes.count:
            busy += self._submit(self._chance.random())
        if self._rate:
            self._next()

    def _next(self) -> None:
        most = self._rate * (1 + self._wanted.swing)
        self._events.after(self._chance.expovariate(most), self._come, most)

    def _come(self, most: float) -> None:
        hour = self._events.now / 3600 % 24
        if self._chance.random() * most < self._rate * (1 + self._wanted.swing * cos((hour - PEAK_HOUR) * pi / 12)):
            self._submit()
        self._next()

    def _submit(self, left: float = 1.0) -> int:
        """A job, with so much of its life left; its nodes."""
        runs_s = drawn(self._chance, self._wanted.runs.usual, self._wanted.runs.late)
        walltime_s = runs_s * self._chance.uniform(1.0, self._wanted.overasked)
        nodes = self._nodes()
        self._count += 1
        needs = whole(nodes, max(60.0, walltime_s * left))
        self._batch.submit(f"other-{self._count}", needs, runs_s=runs_s * left, is_ours=False)
        return nodes

    def _nodes(self) -> int:
        wanted = self._wanted.nodes
        return _whole(drawn(self._chance, wanted.usual, wanted.late), self._batch.nodes.count)


@cache
def _mean_nodes(usual: int, late: int, most: int) -> float:
    """Of what is really drawn: whole numbers, within the cluster."""
    chance = random.Random(1)  # noqa: S311 - nothing secret is drawn
    return sum(_whole(drawn(chance, usual, late), most) for _ in range(2000)) / 2000


def _whole(nodes: float, most: int) -> int:
    return max(1, min(round(nodes), most))


class Failures:
    """Nodes that fail, each once in a while."""

    def __init__(self, events: Events, batch: BatchSystem, wanted: NodeFailures, chance: random.Random) -> None:
        self._events = events
        self._batch = batch
        self._wanted = wanted
        self._chance = chance

    def begin(self) -> None:
        self._events.after(self._chance.expovariate(self._batch.nodes.count / self._wanted.every), self._fail)

    def _fail(self) -> None:
        self._batch.fail(self._chance.randrange(self._batch.nodes.count), self._wanted.repair)
        self.begin()
