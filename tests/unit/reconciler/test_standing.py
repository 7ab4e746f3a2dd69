from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from firstkit.config.clusters import Maintenance, Spending
from firstkit.reconciler.budget import Account, Budget
from firstkit.reconciler.closing import Site, site
from firstkit.reconciler.forecast import Experience
from firstkit.reconciler.placement import Place, Queued
from firstkit.reconciler.standing import UNKNOWN_LOAD_S, Picture, desired, places
from firstkit.reconciler.survey import ObservedJob, Survey
from firstkit.states import JobState, ReplicaState
from firstkit.store.jobs import Observation
from unit.reconciler.support import NOW, ONE_CORE, deployment, job, replica, report

HOUR = timedelta(hours=1)
OURS = deployment(resources=replace(ONE_CORE, walltime_s=3600))


def seen(*seconds: float) -> tuple[Observation, ...]:
    return tuple(Observation(one, None) for one in seconds)


KNOWN = Experience(loads=seen(10, 10), waits=seen(100, 100))


def picture(**values: Any) -> Picture:
    jobs, replicas, leaves_at = values.pop("jobs", ()), values.pop("replicas", ()), values.get("site", Site()).leaves_at
    known = {"survey": Survey.of(jobs, replicas, NOW, leaves_at=leaves_at), "known": {"m@here": KNOWN}}
    return Picture(**{**known, **values})


def place(**values: Any) -> Place:
    return places(picture(**values), [OURS])["m@here"]


def test_replicas_are_counted_by_what_they_do() -> None:
    rows = [
        replica("rep-a"),
        replica("rep-b", ReplicaState.STARTING),
        replica("rep-c", ReplicaState.QUEUED),
        replica("rep-d", ReplicaState.QUEUED, job_id="job-b"),
        replica("rep-e", ReplicaState.DRAINING),
        replica("rep-f", job_id="job-c"),
    ]
    jobs = [
        ObservedJob(job()),
        ObservedJob(job("job-b", JobState.PENDING, started_at=None)),
        ObservedJob(job("job-c", JobState.ENDING)),
    ]
    found = place(jobs=jobs, replicas=rows)
    assert (found.ready, found.loading, len(found.queued), found.leaving) == (1, 2, 1, 0)


def test_replicas_of_a_job_that_ends_soon_are_leaving() -> None:
    ending = job(started_at=NOW - HOUR, ends_at=NOW + timedelta(seconds=150))
    found = place(jobs=[ObservedJob(ending)], replicas=[replica("rep-a"), replica("rep-b", ReplicaState.STARTING)])
    assert (found.ready, found.loading, found.leaving) == (0, 0, 1)
    found = place(jobs=[ObservedJob(replace(ending, ends_at=NOW + HOUR))], replicas=[replica()])
    assert (found.ready, found.leaving) == (1, 0)


def test_a_successor_that_has_to_come_from_elsewhere_takes_as_long_as_it_takes_there() -> None:
    ending = job(started_at=NOW - HOUR, ends_at=NOW + timedelta(seconds=400))
    values: dict[str, Any] = {
        "jobs": [ObservedJob(ending)],
        "replicas": [replica()],
        "elsewhere": {"m@here": 1000.0},
    }
    assert place(**values).leaving == 0
    assert place(**values, silent_s=3.0).leaving == 1


def test_where_requests_take_long_the_successor_comes_so_much_earlier() -> None:
    ending = job(started_at=NOW - HOUR, ends_at=NOW + timedelta(seconds=300))
    values: dict[str, Any] = {"jobs": [ObservedJob(ending)], "replicas": [replica()]}
    assert place(**values).successor_s == 110.0
    assert place(**values, finish_s={"m": 30.0}).leaving == 0
    assert place(**values, finish_s={"m": 200.0}).successor_s == 280.0
    assert place(**values, finish_s={"m": 200.0}).leaving == 1


def test_on_a_cluster_that_is_left_all_are_leaving() -> None:
    found = place(jobs=[ObservedJob(job())], replicas=[replica()], site=site([], "", NOW), kept={"m@here": 1})
    assert (found.ready, found.leaving, found.kept, found.is_closing) == (0, 1, 0, True)
    assert found.obstacle == "the cluster is drained"


def test_maintenance_that_comes_soon_closes_the_door_and_leaves_who_is_inside() -> None:
    window = Maintenance(start=NOW + HOUR / 4, end=NOW + HOUR)
    found = place(jobs=[ObservedJob(job())], replicas=[replica()], site=site([window], None, NOW))
    assert (found.ready, found.is_closing) == (1, True)


def queued(known: Experience = KNOWN, **values: Any) -> Queued:
    row = replica("rep-a", ReplicaState.QUEUED, created_at=NOW - timedelta(seconds=60))
    waits = job(state=JobState.PENDING, started_at=None, **values)
    (found,) = place(jobs=[ObservedJob(waits)], replicas=[row], known={"m@here": known}).queued
    return found


def test_what_waits_is_forecast_by_what_was_learned_and_what_its_scheduler_says() -> None:
    assert queued() == Queued(50.0, 60.0, False)
    assert queued(starts_at=NOW + HOUR).left_s == 3610.0
    assert queued(starts_at=NOW + timedelta(seconds=5)).left_s == 15.0, "its resources are free"
    assert queued(Experience(waits=seen(20))) == Queued(60.0, 60.0, True), "longer than ever: as long again"


@pytest.mark.parametrize(("said_s", "waits_s"), [(None, 100.0), (7.0, 7.0), (50.0, 100.0), (500.0, 500.0)])
def test_a_start_is_predicted_by_the_later_of_two_forecasts(said_s: float | None, waits_s: float) -> None:
    found = place(said={"m@here": said_s}, handicap_s=1000.0)
    assert (found.wait_s, found.load_s) == (1000.0 + waits_s, 10.0)


def test_in_the_room_of_a_running_job_nobody_waits() -> None:
    host = ObservedJob(job(ends_at=NOW + HOUR), report(free_cpus=1, free_memory_bytes=100))
    full = Budget(Spending(nodes=1), Account(nodes=1))
    found = place(jobs=[host], budget=full)
    assert (found.wait_s, found.new) == (0.0, 1)
    assert place(budget=full).new == 0
    assert place(budget=full).limit == "at most 1 nodes may be used on this cluster"


def test_what_keeps_a_start_from_being_made_is_said() -> None:
    failed = replica(state=ReplicaState.FAILED, ended_at=NOW, reason="exit status 3")
    assert place(ended={"m@here": [failed]}).obstacle.startswith("back-off until 12:00:01 UTC: failed to start")
    assert place(silent_s=42.0).obstacle == "the scheduler has been silent for 42 s"
    assert place().obstacle == ""


def test_a_failure_that_is_yet_to_come_by_a_clock_that_was_set_back_holds_up_nobody() -> None:
    failed = replica(state=ReplicaState.FAILED, ended_at=NOW + HOUR)
    now = picture(ended={"m@here": [failed]})
    assert places(now, [OURS])["m@here"].obstacle == ""
    assert desired(now, OURS, place(), 1, 0).retry_at is None


def test_before_the_first_load_a_successor_is_thought_to_take_a_while() -> None:
    assert place(known={}).warm_s == UNKNOWN_LOAD_S
    assert place().warm_s == 110.0
    assert place(said={"m@here": 5000.0}).warm_s == 5010.0


def test_a_plan_is_asked_for_what_stands() -> None:
    want = desired(picture(), OURS, place(), 3, 1)
    assert (want.wanted, want.stand_in, want.warm_s, want.is_left) == (3, 1, 110.0, False)


def test_where_a_running_job_has_room_a_start_takes_no_longer_than_a_load() -> None:
    host = ObservedJob(job(), report(free_cpus=1, free_memory_bytes=100))
    needs_no_walltime = deployment()
    assert picture(jobs=[host]).start_s(needs_no_walltime) == 10
    assert picture().start_s(needs_no_walltime) == 110
