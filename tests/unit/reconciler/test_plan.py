from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from firstkit.config import Scale
from firstkit.config.clusters import Spending
from firstkit.links.messages import ReplicaReport
from firstkit.reconciler.budget import Account, Budget
from firstkit.reconciler.plan import (
    Action,
    CancelJob,
    Desired,
    MoveEnd,
    Plan,
    StartReplica,
    StopReplica,
    SubmitJob,
)
from firstkit.reconciler.plan import plan as plan_of
from firstkit.reconciler.survey import ObservedJob, Survey
from firstkit.schedulers.scheduler import Capacity
from firstkit.states import JobState, ReplicaState
from firstkit.store.jobs import JobRow, ReplicaRow
from unit.reconciler.support import NOW, ONE_CORE, deployment, job, replica, report

HOUR = timedelta(hours=1)
ALONE = replace(ONE_CORE, exclusive=True)
NODE = Capacity(1, 4, 0, 400, 1, 4, 0, 400, 4, 0, 400)
WHOLE = replace(ALONE, cpus_per_node=4, memory_bytes=0)
ONE = SubmitJob(("m@here",), ONE_CORE)


def whole_plan(
    wants: Sequence[Desired],
    jobs: Sequence[ObservedJob],
    rows: Sequence[ReplicaRow],
    now: datetime,
    *,
    cluster: Capacity | None = None,
    leaves_at: datetime | None = None,
    **values: Any,
) -> Plan:
    return plan_of(wants, Survey.of(jobs, rows, now, cluster=cluster, leaves_at=leaves_at), **values)


def plan(*args: Any, **values: Any) -> list[Action]:
    return whole_plan(*args, **values).actions


def linked(row: JobRow, *replicas: ReplicaReport, **values: Any) -> ObservedJob:
    return ObservedJob(row, report(row.id, *replicas, **values))


def ready(replica_id: str, in_flight: int = 0) -> ReplicaReport:
    return ReplicaReport(replica_id, ReplicaState.READY, in_flight)


# -- starting ----------------------------------------------------------------------------------------------------------


def test_each_missing_replica_gets_a_job() -> None:
    assert plan([Desired(deployment(), 2)], [], [], NOW) == [ONE, ONE]


def test_what_is_on_its_way_is_not_missing() -> None:
    for state in (ReplicaState.QUEUED, ReplicaState.STARTING, ReplicaState.READY):
        row = replica(state=state)
        assert plan([Desired(deployment(), 1)], [linked(job(), ready(row.id))], [row], NOW) == []


def test_a_draining_replica_is_replaced_before_it_is_gone() -> None:
    row = replica(state=ReplicaState.DRAINING)
    assert plan([Desired(deployment(), 1)], [linked(job(), ready(row.id))], [row], NOW) == [ONE]


def test_room_in_a_running_job_is_taken_before_a_new_job() -> None:
    jobs = [linked(job(), free_cpus=1, free_memory_bytes=100)]
    wanted = [Desired(deployment(), 2)]
    assert plan(wanted, jobs, [], NOW) == [StartReplica("m@here", "job-a"), ONE]


def test_jobs_that_have_a_node_alone_are_filled() -> None:
    wanted = [Desired(deployment(resources=ALONE), 6)]
    assert plan(wanted, [], [], NOW, cluster=NODE) == [
        SubmitJob(("m@here",) * 4, WHOLE),
        SubmitJob(("m@here",) * 2, WHOLE),
    ]


def test_small_replicas_of_several_models_share_a_new_job() -> None:
    large = replace(ALONE, cpus_per_node=3)
    wants = [Desired(deployment(name, resources=needs), 1) for name, needs in (("m@here", ALONE), ("n@here", large))]
    others = [Desired(deployment("o@here", resources=large), 1), Desired(deployment("p@here"), 1)]
    made = plan([*wants, *others], [], [], NOW, cluster=NODE)
    assert made == [SubmitJob(("n@here", "m@here"), WHOLE), SubmitJob(("o@here", "p@here"), WHOLE)]


def test_a_job_that_waits_is_filled_before_another_is_asked_for() -> None:
    jobs = [ObservedJob(job(state=JobState.PENDING, resources=WHOLE))]
    inside = replica(state=ReplicaState.QUEUED, needs=ALONE)
    wants = [Desired(deployment(resources=ALONE), 1), Desired(deployment("n@here", resources=ALONE), 4)]
    made = plan(wants, jobs, [inside], NOW, cluster=NODE)
    assert made == [*[StartReplica("n@here", "job-a", is_waiting=True)] * 3, SubmitJob(("n@here",), WHOLE)]


def test_who_came_while_the_job_waited_is_started_when_it_runs() -> None:
    first, second = replica(needs=ALONE), replica("rep-b", ReplicaState.QUEUED, needs=ALONE)
    runs = linked(job(resources=WHOLE), ready("rep-a"), free_cpus=3, free_memory_bytes=300)
    made = plan([Desired(deployment(resources=ALONE), 2)], [runs], [first, second], NOW, cluster=NODE)
    assert made == [StartReplica("m@here", "job-a", "rep-b")]


def test_of_more_than_are_wanted_those_go_whose_jobs_become_empty() -> None:
    shared = linked(job(resources=WHOLE), ready("rep-a"), ready("rep-b", in_flight=0))
    own = linked(job("job-b", resources=WHOLE), ready("rep-c", in_flight=2))
    rows = [replica(needs=ALONE), replica("rep-b", needs=ALONE), replica("rep-c", job_id="job-b", needs=ALONE)]
    made = plan([Desired(deployment(resources=ALONE), 2)], [shared, own], rows, NOW, cluster=NODE)
    assert [action for action in made if isinstance(action, StopReplica)] == [StopReplica("job-b", "rep-c")]


def test_while_the_size_of_nodes_is_unknown_nobody_gets_one_alone() -> None:
    assert plan([Desired(deployment(resources=ALONE), 2)], [], [], NOW) == []


def test_nothing_is_started_during_back_off_and_its_room_is_held_for_a_while() -> None:
    jobs = [linked(job(), free_cpus=1, free_memory_bytes=100)]
    soon = Desired(deployment(), 1, NOW + timedelta(seconds=5))
    assert plan([soon], jobs, [], NOW) == []
    late = Desired(deployment(), 1, NOW + timedelta(minutes=5))
    assert [type(action) for action in plan([late], jobs, [], NOW)] == [CancelJob]


def test_a_start_that_the_pilot_did_not_hear_is_said_again() -> None:
    row = replica(state=ReplicaState.QUEUED)
    assert plan([Desired(deployment(), 1)], [linked(job())], [row], NOW) == [StartReplica("m@here", "job-a", "rep-a")]


def test_nobody_can_be_told_anything_while_there_is_no_link() -> None:
    row = replica(state=ReplicaState.QUEUED)
    assert plan([Desired(deployment(), 1)], [ObservedJob(job())], [row], NOW) == []


# -- stopping ----------------------------------------------------------------------------------------------------------


def test_the_least_needed_replica_is_stopped() -> None:
    rows = [replica("rep-a"), replica("rep-b", job_id="job-b")]
    jobs = [linked(job("job-a"), ready("rep-a", in_flight=3)), linked(job("job-b"), ready("rep-b", in_flight=1))]
    assert plan([Desired(deployment(), 1)], jobs, rows, NOW) == [StopReplica("job-b", "rep-b")]


def test_a_job_that_still_waits_for_nobody_is_cancelled() -> None:
    row = replica(state=ReplicaState.QUEUED)
    (action,) = plan([Desired(deployment(), 0)], [ObservedJob(job(state=JobState.PENDING))], [row], NOW)
    assert isinstance(action, CancelJob)


def test_a_job_is_cancelled_once_its_last_replica_has_ended() -> None:
    (action,) = plan([Desired(deployment(), 0)], [linked(job())], [], NOW)
    assert isinstance(action, CancelJob)


def test_a_job_whose_submission_is_unanswered_is_left_alone() -> None:
    for state in (JobState.PLANNED, JobState.SUBMITTING, JobState.ENDING):
        assert plan([], [ObservedJob(job(state=state))], [], NOW) == []


def test_a_surplus_replica_behind_a_link_that_just_broke_keeps_its_job() -> None:
    jobs = [ObservedJob(job(), None, silent_s=2.0)]
    assert plan([Desired(deployment(), 0)], jobs, [replica()], NOW) == []


def test_what_the_configuration_does_not_name_any_more_is_stopped() -> None:
    assert plan([], [linked(job(), ready("rep-a"))], [replica()], NOW) == [StopReplica("job-a", "rep-a")]


def test_a_replica_that_runs_but_has_ended_by_our_books_is_stopped() -> None:
    jobs = [linked(job(), ready("rep-a"), ready("rep-stray"))]
    assert plan([Desired(deployment(), 1)], jobs, [replica()], NOW) == [StopReplica("job-a", "rep-stray")]


def test_a_pilot_that_should_have_left_long_ago_loses_its_job() -> None:
    jobs = [ObservedJob(job(), None, silent_s=100.0)]
    wanted = [Desired(deployment(), 1)]
    assert plan(wanted, jobs, [replica()], NOW, orphan_timeout_s=50.0) == []
    (action,) = plan(wanted, jobs, [replica()], NOW, orphan_timeout_s=30.0)
    assert isinstance(action, CancelJob)


def test_a_replica_whose_job_is_ending_is_replaced() -> None:
    jobs = [linked(job(state=JobState.ENDING), ready("rep-a"))]
    assert plan([Desired(deployment(), 1)], jobs, [replica()], NOW) == [ONE]


# -- limits ------------------------------------------------------------------------------------------------------------


def test_what_may_not_be_spent_is_not_submitted() -> None:
    budget = Budget(Spending(nodes=2), Account(nodes=1))
    made = whole_plan([Desired(deployment(), 3)], [], [], NOW, budget=budget)
    assert made.actions == [ONE]
    assert made.waits_for == {"m@here": "at most 2 nodes may be used on this cluster"}


def test_room_in_a_running_job_costs_nothing() -> None:
    jobs = [linked(job(), free_cpus=1, free_memory_bytes=100)]
    budget = Budget(Spending(nodes=1), Account(nodes=1))
    assert plan([Desired(deployment(), 1)], jobs, [], NOW, budget=budget) == [StartReplica("m@here", "job-a")]


def test_submissions_of_an_hour_are_counted_for_each_deployment() -> None:
    scale = Scale(max=4, submissions_per_hour=5)
    budget = Budget(deployments={"m@here": Account(submissions=5)})
    wants = [Desired(deployment(scale=scale), 1), Desired(deployment("n@here", scale=scale), 1)]
    assert plan(wants, [], [], NOW, budget=budget) == [SubmitJob(("n@here",), ONE_CORE)]


# -- hand-over ---------------------------------------------------------------------------------------------------------

WARM_S = 600.0
LEAD_S = WARM_S + 45.0


def ending(left_s: float, job_id: str = "job-a", replica_id: str = "rep-a", **values: Any) -> ObservedJob:
    """A job of six hours with a replica that serves, whose end is near."""
    ends_at = NOW + timedelta(seconds=left_s)
    row = job(job_id, started_at=ends_at - 6 * HOUR, ends_at=ends_at, **values)
    return linked(row, ready(replica_id), ends_at=ends_at.timestamp())


def want(count: int = 1, **values: Any) -> Desired:
    return Desired(deployment(), count, warm_s=WARM_S, **values)


def test_a_successor_is_submitted_when_it_is_time_and_the_old_one_serves_on() -> None:
    assert plan([want()], [ending(LEAD_S + 1)], [replica()], NOW) == []
    assert plan([want()], [ending(LEAD_S - 1)], [replica()], NOW) == [ONE]


def test_a_successor_is_submitted_once() -> None:
    heir = replica("rep-b", ReplicaState.QUEUED, job_id="job-b")
    jobs = [ending(LEAD_S - 1), ObservedJob(job("job-b", JobState.PENDING))]
    assert plan([want()], jobs, [replica(), heir], NOW) == []


def test_the_old_one_is_drained_once_the_successor_serves() -> None:
    heir = replica("rep-b", job_id="job-b")
    jobs = [ending(100.0), linked(job("job-b"), ready("rep-b"))]
    assert plan([want()], jobs, [replica(), heir], NOW) == [StopReplica("job-a", "rep-a", 100.0)]


def test_the_old_one_is_drained_in_time_though_no_successor_serves() -> None:
    heir = replica("rep-b", ReplicaState.STARTING, job_id="job-b")
    others = [linked(job("job-b"), ReplicaReport("rep-b", ReplicaState.STARTING))]
    assert plan([want()], [ending(16.0), *others], [replica(), heir], NOW) == []
    (stop,) = plan([want()], [ending(14.0), *others], [replica(), heir], NOW)
    assert stop == StopReplica("job-a", "rep-a", 14.0)


def test_nobody_succeeds_where_nobody_is_wanted() -> None:
    assert plan([want(0)], [ending(100.0)], [replica()], NOW) == [StopReplica("job-a", "rep-a", 100.0)]


def test_one_that_stands_in_for_another_cluster_serves_on() -> None:
    assert plan([want(0, stand_in=1)], [ending(100.0)], [replica()], NOW) == []


def test_on_a_cluster_that_is_left_nothing_is_started_and_the_rest_stands_in() -> None:
    jobs = [linked(job(), ready("rep-a"))]
    assert plan([want(1, is_left=True, stand_in=1)], jobs, [replica()], NOW) == []
    assert plan([want(0, is_left=True)], jobs, [replica()], NOW) == [StopReplica("job-a", "rep-a")]


def test_maintenance_ends_every_job() -> None:
    jobs = [linked(job(started_at=NOW - HOUR), ready("rep-a"))]
    soon = NOW + timedelta(seconds=LEAD_S - 1)
    assert plan([want()], jobs, [replica()], NOW, leaves_at=soon) == [ONE]


def test_in_the_first_half_of_its_life_nobody_makes_room() -> None:
    ends_at = NOW + timedelta(seconds=61)
    short = job(started_at=NOW - timedelta(seconds=59), ends_at=ends_at)
    jobs = [linked(short, ready("rep-a"), ends_at=ends_at.timestamp())]
    assert plan([want()], jobs, [replica()], NOW) == []
    assert plan([want()], jobs, [replica()], NOW + timedelta(seconds=2)) == [ONE]


def test_a_job_that_ends_soon_is_no_place_for_a_successor() -> None:
    needs = replace(ONE_CORE, walltime_s=600)
    ends_at = NOW + timedelta(seconds=1100)
    host = linked(job("job-b", ends_at=ends_at), ends_at=ends_at.timestamp(), free_cpus=1, free_memory_bytes=100)
    wanted = Desired(deployment(resources=needs), 1, warm_s=WARM_S)
    submit, _ = plan([wanted], [host], [], NOW)
    assert isinstance(submit, SubmitJob)
    assert plan([replace(wanted, warm_s=500.0)], [host], [], NOW) == [StartReplica("m@here", "job-b")]


def test_each_replica_of_a_job_is_handed_over_and_the_job_ends_when_it_is_empty() -> None:
    old = [replica("rep-a"), replica("rep-b")]
    row = ending(100.0)
    assert row.report is not None
    job_a = replace(row, report=replace(row.report, replicas=(ready("rep-a"), ready("rep-b"))))
    heirs = [replica("rep-c", job_id="job-c"), replica("rep-d", ReplicaState.STARTING, job_id="job-d")]
    others = [linked(job("job-c"), ready("rep-c")), linked(job("job-d"), ReplicaReport("rep-d", ReplicaState.STARTING))]
    (stop,) = plan([want(2)], [job_a, *others], [*old, *heirs], NOW)
    assert isinstance(stop, StopReplica)
    assert stop.job_id == "job-a"
    (cancel,) = plan([want(2)], [job_a, *others], heirs, NOW)[-1:]
    assert isinstance(cancel, CancelJob)


def test_a_forecast_that_shrinks_does_not_make_the_successor_superfluous() -> None:
    heir = replica("rep-b", ReplicaState.QUEUED, job_id="job-b")
    jobs = [ending(LEAD_S - 1), ObservedJob(job("job-b", JobState.PENDING))]
    assert plan([replace(want(), warm_s=0.9 * WARM_S)], jobs, [replica(), heir], NOW) == []


def test_an_end_that_moved_far_away_needs_no_successor() -> None:
    heir = replica("rep-b", ReplicaState.QUEUED, job_id="job-b")
    jobs = [ending(5 * 3600.0), ObservedJob(job("job-b", JobState.PENDING))]
    (cancel,) = plan([want()], jobs, [replica(), heir], NOW)
    assert isinstance(cancel, CancelJob)
    assert cancel.job_id == "job-b"


def test_a_pilot_is_told_when_the_end_of_its_job_has_moved() -> None:
    row = job(ends_at=NOW + HOUR)
    for said in (None, (NOW + 2 * HOUR).timestamp()):
        jobs = [linked(row, ready("rep-a"), ends_at=said)]
        assert plan([want()], jobs, [replica()], NOW) == [MoveEnd("job-a", (NOW + HOUR).timestamp())]
    jobs = [linked(row, ready("rep-a"), ends_at=(NOW + HOUR).timestamp() + 1)]
    assert plan([want()], jobs, [replica()], NOW) == [], "schedulers count in whole seconds"


def test_the_pilot_knows_an_end_that_no_poll_has_shown() -> None:
    row = job(started_at=NOW - 6 * HOUR)
    jobs = [linked(row, ready("rep-a"), ends_at=NOW.timestamp() + 100)]
    assert plan([want()], jobs, [replica()], NOW) == [ONE]
