"""The model scheduler."""

from __future__ import annotations

import random
from typing import Any

from firstkit.schedulers.scheduler import Resources
from firstkit.simulator.batch import BatchSystem, whole
from firstkit.simulator.events import Events
from firstkit.simulator.nodes import Nodes
from firstkit.simulator.scenario import Spread
from firstkit.states import JobState

HOUR = 3600.0


class Lab:
    """A scheduler with four nodes of four GPUs, and what it said of our jobs."""

    def __init__(self, **values: Any) -> None:
        self.events = Events(0.0)
        self.started: dict[str, float] = {}
        self.ended: dict[str, tuple[float, JobState]] = {}
        self.batch = BatchSystem(self.events, Nodes(4, 16, 4, 64), random.Random(1), **values)
        self.batch.on_start = lambda job: self.started.update({job.id: self.events.now})
        self.batch.on_end = lambda job, state: self.ended.update({job.id: (self.events.now, state)})

    def submit(self, name: str, nodes: int = 1, walltime_s: float = HOUR, runs_s: float | None = None) -> None:
        self.batch.submit(name, whole(nodes, walltime_s), runs_s=runs_s)

    def run(self, until: float) -> None:
        self.events.run(until)


def test_jobs_start_in_their_order_as_nodes_become_free() -> None:
    lab = Lab(backfill=False)
    lab.submit("first", 4)
    lab.submit("second", 4)
    lab.submit("third", 1)
    lab.run(1.0)
    assert lab.started == {"first": 0.0}
    lab.run(3 * HOUR)
    assert lab.started == {"first": 0.0, "second": HOUR, "third": 2 * HOUR}
    assert lab.ended["first"] == (HOUR, JobState.TIMEOUT)


def test_a_short_job_is_filled_in_where_it_delays_nobody() -> None:
    lab = Lab()
    lab.submit("running", 3, HOUR)
    lab.submit("large", 4, HOUR)
    lab.submit("short", 1, HOUR / 2)
    lab.submit("long", 1, 2 * HOUR)
    lab.run(2 * HOUR)
    assert lab.started["short"] == 0.0
    assert lab.started["large"] == HOUR
    assert lab.started["long"] == 2 * HOUR


def test_a_job_that_ends_early_makes_room_early() -> None:
    lab = Lab()
    lab.submit("first", 4, HOUR, runs_s=60.0)
    lab.submit("second", 4)
    lab.run(HOUR)
    assert lab.ended["first"] == (60.0, JobState.COMPLETED)
    assert lab.started["second"] == 60.0


def test_parts_of_a_node_are_shared_and_whole_nodes_are_not() -> None:
    lab = Lab()
    part = Resources(cpus_per_node=4, gpus_per_node=2, memory_bytes=16, walltime_s=3600)
    for i in range(8):
        lab.batch.submit(f"part-{i}", part)
    lab.submit("whole", 1)
    lab.run(1.0)
    assert len(lab.started) == 8
    assert lab.batch.nodes.free()[2] == 0
    lab.run(HOUR)
    assert lab.started["whole"] == HOUR


def test_nothing_runs_into_a_maintenance() -> None:
    lab = Lab(closed=[(2 * HOUR, 4 * HOUR)])
    lab.submit("before", 1, HOUR)
    lab.submit("after", 1, 3 * HOUR)
    lab.run(5 * HOUR)
    assert lab.started == {"before": 0.0, "after": 4 * HOUR}


def test_a_node_that_fails_takes_its_job_along_and_comes_back() -> None:
    lab = Lab()
    lab.submit("victim", 4, 4 * HOUR)
    lab.run(10.0)
    lab.batch.fail(0, HOUR)
    lab.submit("next", 4)
    lab.run(2 * HOUR)
    assert lab.ended["victim"] == (10.0, JobState.NODE_FAIL)
    assert lab.started["next"] == 10.0 + HOUR


def test_the_estimate_is_when_it_would_start_at_the_latest() -> None:
    lab = Lab()
    lab.submit("first", 4, HOUR)
    lab.submit("second", 4, HOUR)
    lab.run(60.0)
    starts, more = lab.batch.starts(whole(1, HOUR))
    assert starts == {"second": (HOUR, 1)}
    assert more == 2 * HOUR
    lab.run(2 * HOUR + 1)
    assert lab.batch.starts(whole(1, HOUR)) == ({}, 2 * HOUR + 1)


def test_waits_that_are_drawn_come_before_the_queue() -> None:
    lab = Lab(wait=Spread(usual=600, late=600))
    lab.submit("job")
    lab.submit("gone")
    lab.batch.cancel("gone")
    lab.run(HOUR)
    assert lab.started == {"job": 600.0}
    assert lab.ended["gone"] == (0.0, JobState.CANCELLED)
    assert lab.batch.starts(whole(1, HOUR))[1] is None
