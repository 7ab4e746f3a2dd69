"""Two clusters and the real controller in virtual time: hand-over, drains, maintenance, placement, limits."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from firstkit.states import JobState
from unit.reconciler.modelled import BEGAN_AT, Federation, ModelledJob, on


class Steady(Federation):
    """Once the model has served, it serves at every moment."""

    has_served = False
    least = 10**6

    def watch(self) -> None:
        serving = self.serving("m")
        self.has_served = self.has_served or serving > 0
        if self.has_served:
            self.least = min(self.least, serving)
            assert serving >= 1, f"nobody serves at {self.time.at}"


def content(*deployments: dict[str, Any], **clusters: dict[str, Any]) -> dict[str, Any]:
    used = {one["cluster"]: clusters.get(one["cluster"], {}) for one in deployments}
    return {"clusters": used, "models": {"m": {"deployments": list(deployments)}}}


@pytest.fixture
def made(tmp_path: Path) -> Any:
    def make(*deployments: dict[str, Any], **clusters: dict[str, Any]) -> Steady:
        return Steady(tmp_path, content(*deployments, **clusters))

    return make


def timed(seconds: int) -> dict[str, Any]:
    return {"walltime": seconds}


def all_jobs(federation: Federation, name: str) -> list[ModelledJob]:
    return list(federation.clusters[name].jobs.values())


# -- hand-over ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("walltime_s", [60, 600])
async def test_a_hot_model_serves_on_across_the_ends_of_its_jobs(made: Any, walltime_s: int) -> None:
    there = made(on("a", resources=timed(walltime_s), scale={"hot": 1}))
    await there.start()
    await there.live(walltime_s * 6)
    jobs = all_jobs(there, "a")
    assert 5 <= len(jobs) <= 13, "each lives for at least half of its time"
    assert there.least == 1


async def test_a_cold_model_is_handed_over_while_it_is_asked_and_ends_when_it_is_not(made: Any) -> None:
    there = made(on("a", resources=timed(600), scale={"idle_timeout": 120}))
    await there.start()
    await there.live(60)
    assert all_jobs(there, "a") == []
    there.ask("m", 1)
    await there.live(1500)
    assert len(all_jobs(there, "a")) >= 3
    there.ask("m", 0)
    there.has_served = False
    there.watch = lambda: None
    await there.live(300)
    assert there.clusters["a"].living() == {}


async def test_a_controller_that_restarts_makes_no_second_successor(made: Any) -> None:
    there = made(on("a", resources=timed(600), scale={"hot": 1}))
    there.clusters["a"].wait_s = 30.0
    await there.start()
    for _ in range(40):
        await there.live(25)
        await there.restart()
        assert len(there.clusters["a"].living()) <= 2
    assert there.least == 1


async def test_a_time_limit_that_is_changed_is_heard_and_told(made: Any) -> None:
    there = made(on("a", resources=timed(3600), scale={"hot": 1}))
    await there.start()
    await there.live(60)
    (job,) = all_jobs(there, "a")
    assert job.pilot_ends_at == pytest.approx(job.ends_at, abs=1)
    job.ends_at = there.time.at + 120
    await there.live(100)
    assert job.pilot_ends_at == pytest.approx(job.ends_at, abs=1)
    assert len(all_jobs(there, "a")) == 2
    await there.live(300)
    assert there.serving("m") == 1


async def test_the_successor_starts_on_the_other_cluster_before_maintenance(made: Any) -> None:
    start = BEGAN_AT + timedelta(seconds=1000)
    window = {"start": start.isoformat(), "end": (start + timedelta(hours=2)).isoformat()}
    there = made(
        on("a", resources=timed(7200), scale={"hot": 1}),
        on("b", resources=timed(7200)),
        a={"maintenance": [window]},
    )
    await there.start()
    await there.live(60)
    assert (there.serving("m", "a"), there.serving("m", "b")) == (0, 1), "too soon before the maintenance"
    assert all_jobs(there, "a") == []
    await there.live(1200)
    assert there.serving("m", "b") == 1


async def test_what_runs_moves_before_maintenance_begins(made: Any) -> None:
    start = BEGAN_AT + timedelta(seconds=8000)
    window = {"start": start.isoformat(), "end": (start + timedelta(hours=2)).isoformat()}
    there = made(
        on("a", resources=timed(7200), scale={"hot": 1}),
        on("b", resources=timed(7200)),
        a={"maintenance": [window]},
    )
    there.clusters["b"].load_s = 60.0
    await there.start()
    await there.live(60)
    assert there.serving("m", "a") == 1
    await there.live(7940, 20)
    assert (there.serving("m", "a"), there.serving("m", "b")) == (0, 1)
    assert there.clusters["a"].living() == {}


async def test_a_drained_cluster_is_left_once_others_serve(made: Any) -> None:
    there = made(on("a", scale={"hot": 1}), on("b"))
    there.clusters["b"].load_s = 40.0
    await there.start()
    await there.live(30)
    assert there.serving("m", "a") == 1
    there.paper.drain("a", "new cooling", there.time.now())
    await there.live(30)
    assert (there.serving("m", "a"), there.serving("m", "b")) == (1, 0), "until the other one serves"
    await there.live(60)
    assert (there.serving("m", "a"), there.serving("m", "b")) == (0, 1)
    assert there.clusters["a"].living() == {}
    said = there.controller.teller.model("m")["clusters"]
    assert "the cluster is drained: new cooling" in said["a"]["waits_for"]
    del there.paper.drained["a"]
    await there.live(60)
    assert there.serving("m", "a") == 1, "it is hot there again"


async def test_a_drained_cluster_without_another_is_left_at_once(made: Any) -> None:
    there = made(on("a", scale={"hot": 1}))
    await there.start()
    await there.live(30)
    there.watch = lambda: None
    there.paper.drain("a", "", there.time.now())
    await there.live(30)
    assert there.clusters["a"].living() == {}


# -- placement ---------------------------------------------------------------------------------------------------------


async def test_a_cold_model_starts_where_it_is_predicted_to_start_soonest(made: Any) -> None:
    there = made(on("a"), on("b"))
    there.clusters["a"].wait_s, there.clusters["a"].foretells = 3600.0, True
    there.clusters["b"].foretells = True
    await there.start()
    there.ask("m", 1)
    await there.live(300)
    assert there.serving("m", "b") == 1
    assert there.clusters["a"].living() == {}, "what was overtaken gives up its place once others serve"


async def test_a_silent_cluster_is_passed_over_and_loses_nothing(made: Any) -> None:
    there = made(on("a", scale={"max": 2, "max_in_flight": 4}), on("b", scale={"max_in_flight": 4}))
    await there.start()
    there.ask("m", 1)
    await there.live(60)
    assert there.serving("m", "a") == 1
    there.clusters["a"].answers = "silent"
    await there.live(60)
    there.ask("m", 8)
    await there.live(60)
    assert (there.serving("m", "a"), there.serving("m", "b")) == (1, 1)
    assert there.clusters["a"].submits.total() == 1
    said = there.controller.teller.model("m")["clusters"]["a"]
    assert said["waits_for"] == [], "it is live"


async def test_pinned_requests_start_where_they_may_go(made: Any) -> None:
    there = made(on("a"), on("b"))
    await there.start()
    there.ask("m", 1, ["b"])
    await there.live(30)
    assert (there.serving("m", "a"), there.serving("m", "b")) == (0, 1)
    there.ask("m", 1)
    await there.live(30)
    assert there.serving("m", "a") == 0, "what may go anywhere uses the room that is left"


async def test_limits_of_a_cluster_hold_and_the_rest_goes_elsewhere(made: Any) -> None:
    scale = {"max": 4, "max_in_flight": 1, "sustain": 0}
    there = made(on("a", scale=scale), on("b", scale=scale), a={"limits": {"nodes": 2}})
    await there.start()
    there.ask("m", 3)
    await there.live(60)
    assert (there.serving("m", "a"), there.serving("m", "b")) == (2, 1)
    there.ask("m", 7)
    await there.live(60)
    assert (there.serving("m", "a"), there.serving("m", "b")) == (2, 4)
    said = there.controller.teller.model("m")["clusters"]["a"]
    assert said["wanted"] == 2


async def test_a_day_of_node_hours_is_not_exceeded(made: Any) -> None:
    there = made(on("a", resources=timed(3600), scale={"idle_timeout": 60}), a={"limits": {"node_hours_per_day": 2.5}})
    await there.start()
    there.watch = lambda: None
    there.ask("m", 1)
    await there.live(4 * 3600, 30)
    hours = sum(3600 - 5 for _ in all_jobs(there, "a")) / 3600
    assert len(all_jobs(there, "a")) == 2
    assert hours <= 2.5
    assert there.controller.teller.model("m")["clusters"]["a"]["waits_for"] == [
        "at most 2.5 node-hours may be used on this cluster in a day"
    ]


async def test_an_engine_that_dies_at_load_burns_no_allocation(made: Any) -> None:
    there = made(on("a", scale={"hot": 1, "submissions_per_hour": 6}))
    await there.start()
    for _ in range(360):
        await there.live(9, 9)
        for job in there.clusters["a"].living().values():
            there.clusters["a"].end(job, JobState.FAILED)
    assert there.clusters["a"].submits.total() <= 6


async def test_polls_keep_their_interval_at_rest_and_while_scaling(made: Any) -> None:
    there = made(
        on("a", resources=timed(300), scale={"hot": 1, "max": 4, "max_in_flight": 1}),
        a={"scheduler": {"kind": "slurm"}},
    )
    await there.start()
    for i in range(20):
        there.ask("m", i % 5)
        await there.live(15, 1.5)
    polls = there.clusters["a"].polls
    assert len(polls) > 8
    assert min(later - earlier for earlier, later in pairwise(polls)) >= 10.0


# -- any history in which forecasts are kept ---------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    walltime_s=st.integers(60, 900),
    wait_s=st.floats(0, 20),
    load_s=st.floats(1, 15),
    restarts=st.lists(st.floats(1, 300), max_size=3),
    drains_a=st.booleans(),
    silent_s=st.floats(0, 120),
)
async def test_where_forecasts_are_kept_somebody_always_serves(
    tmp_path: Path,
    walltime_s: int,
    wait_s: float,
    load_s: float,
    restarts: list[float],
    drains_a: bool,
    silent_s: float,
) -> None:
    # A successor is never started in the first half of a life, and the pilot leaves before its end.
    assume(wait_s + load_s + 8 <= walltime_s / 2 - min(15, walltime_s / 4))
    there = Steady(
        tmp_path,
        content(on("a", resources=timed(walltime_s), scale={"hot": 1}), on("b", resources=timed(walltime_s))),
    )
    for cluster in there.clusters.values():
        cluster.wait_s, cluster.load_s = wait_s, load_s
    await there.start()
    there.ask("m", 1)
    await there.live(wait_s + load_s + 5, 2)
    for pause_s in restarts:
        await there.live(pause_s, 2)
        await there.restart()
    if drains_a:
        while len(there.clusters["a"].living()) > 1:  # a drain in the middle of a hand-over stops the successor, too
            await there.live(2, 2)
        there.paper.drain("a", "", there.time.now())
    await there.live(walltime_s / 2, 2)
    there.clusters["a" if drains_a else "b"].answers = "silent"
    await there.live(silent_s, 2)
    there.clusters["a"].answers = there.clusters["b"].answers = "yes"
    await there.live(walltime_s, 2)
    await there.close()
    for cluster in there.clusters.values():
        assert cluster.killed_serving == []
        assert max(cluster.submits.values(), default=0) <= 1
