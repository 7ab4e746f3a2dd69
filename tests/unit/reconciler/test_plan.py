from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from firstkit.links.messages import PilotReport, ReplicaReport
from firstkit.reconciler.backoff import retry_at
from firstkit.reconciler.observe import ending_of_replica, job_update, replica_updates
from firstkit.reconciler.plan import (
    CancelJob,
    Desired,
    ObservedJob,
    StartReplica,
    StopReplica,
    SubmitJob,
    plan,
)
from firstkit.schedulers.scheduler import Capacity, JobNews, Resources
from firstkit.states import JobState, ReplicaState
from firstkit.store.jobs import JobRow, ReplicaRow
from unit.reconciler.support import NOW, ONE_CORE, deployment, job, replica, report

ALONE = replace(ONE_CORE, exclusive=True)
NODE = Capacity(1, 4, 0, 400, 1, 4, 0, 400)


def linked(row: JobRow, *replicas: ReplicaReport, **values: Any) -> ObservedJob:
    return ObservedJob(row, report(row.id, *replicas, **values))


def ready(replica_id: str, in_flight: int = 0) -> ReplicaReport:
    return ReplicaReport(replica_id, ReplicaState.READY, in_flight)


# -- starting ----------------------------------------------------------------------------------------------------------


def test_each_missing_replica_gets_a_job() -> None:
    assert plan([Desired(deployment(), 2)], [], [], NOW) == [SubmitJob("m@here"), SubmitJob("m@here")]


def test_what_is_on_its_way_is_not_missing() -> None:
    for state in (ReplicaState.QUEUED, ReplicaState.STARTING, ReplicaState.READY):
        row = replica(state=state)
        assert plan([Desired(deployment(), 1)], [linked(job(), ready(row.id))], [row], NOW) == []


def test_a_draining_replica_is_replaced_before_it_is_gone() -> None:
    row = replica(state=ReplicaState.DRAINING)
    assert plan([Desired(deployment(), 1)], [linked(job(), ready(row.id))], [row], NOW) == [SubmitJob("m@here")]


def test_room_in_a_running_job_is_taken_before_a_new_job() -> None:
    jobs = [linked(job(), free_cpus=1, free_memory_bytes=100)]
    wanted = [Desired(deployment(), 2)]
    assert plan(wanted, jobs, [], NOW) == [StartReplica("m@here", "job-a"), SubmitJob("m@here")]


def test_jobs_that_have_a_node_alone_are_filled() -> None:
    wanted = [Desired(deployment(resources=ALONE), 6)]
    assert plan(wanted, [], [], NOW, cluster=NODE) == [SubmitJob("m@here", 4), SubmitJob("m@here", 2)]


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


# -- histories ---------------------------------------------------------------------------------------------------------

WANTED = {"a@here": 2, "b@here": 3}


class Histories(RuleBasedStateMachine):
    """A cluster of values, to which anything happens between passes: no twin ever, and in the end all is as wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.count = 0
        self.wanted = dict(WANTED)
        self.jobs: dict[str, JobRow] = {}
        self.replicas: dict[str, ReplicaRow] = {}
        self.scheduler: dict[str, JobNews] = {}
        self.pilots: dict[str, dict[str, ReplicaReport]] = {}
        self.links: set[str] = set()
        self.deployments = {
            "a@here": deployment("a@here"),
            "b@here": deployment("b@here", resources=ALONE),
        }

    # -- what happens --------------------------------------------------------------------------------------

    @rule(lost=st.booleans())
    def reconcile(self, lost: bool) -> None:
        """One pass: take in, plan, act. ``lost``: the answers of the scheduler, and calls to pilots, go astray."""
        self.take_in()
        rows = [row for row in self.replicas.values() if not row.state.is_final]
        desired = [
            Desired(known, self.wanted[name], retry_at(self.ended(name))) for name, known in self.deployments.items()
        ]
        for action in plan(desired, self.observed(), rows, self.now, cluster=NODE, orphan_timeout_s=600.0):
            self.act(action, lost)

    @rule(seconds=st.sampled_from([0.5, 2.0, 20.0, 200.0]))
    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(name=st.sampled_from(sorted(WANTED)), count=st.integers(0, 4))
    def want(self, name: str, count: int) -> None:
        self.wanted[name] = count

    @rule(data=st.data())
    @precondition(lambda self: self.scheduler)
    def job_changes(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.scheduler)))
        state = self.scheduler[job_id].state
        if state is JobState.PENDING:
            self.start_job(job_id)
        elif not state.is_final:
            self.end_job(job_id, data.draw(st.sampled_from([JobState.FAILED, JobState.TIMEOUT, JobState.NODE_FAIL])))

    @rule(data=st.data())
    @precondition(lambda self: self.pilots)
    def replica_changes(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.pilots)))
        pilot = self.pilots[job_id]
        if pilot:
            replica_id = data.draw(st.sampled_from(sorted(pilot)))
            self.advance_replica(pilot, replica_id, data.draw(st.booleans()))

    @rule(data=st.data())
    @precondition(lambda self: self.pilots)
    def link_changes(self, data: st.DataObject) -> None:
        self.links ^= {data.draw(st.sampled_from(sorted(self.pilots)))}

    # -- what must hold ------------------------------------------------------------------------------------

    @invariant()
    def nobody_takes_more_than_there_is(self) -> None:
        for pilot in self.pilots.values():
            assert len(alive(pilot)) <= 4

    @invariant()
    def there_are_never_more_than_were_ever_wanted(self) -> None:
        for name in WANTED:
            states = [row.state for row in self.replicas.values() if row.deployment == name]
            fresh = (ReplicaState.QUEUED, ReplicaState.STARTING, ReplicaState.READY)
            assert sum(state in fresh for state in states) <= 4

    def teardown(self) -> None:
        """Left in peace, the cluster becomes what it should be, and nothing else runs."""
        for _ in range(40):
            self.now += timedelta(seconds=400)
            self.links = set(self.pilots)
            self.reconcile(lost=False)
            for job_id, news in list(self.scheduler.items()):
                if news.state is JobState.PENDING:
                    self.start_job(job_id)
            for pilot in self.pilots.values():
                for replica_id in list(pilot):
                    self.advance_replica(pilot, replica_id, fails=False)
        self.take_in()
        serving = [row for row in self.replicas.values() if row.state is ReplicaState.READY]
        for name, count in self.wanted.items():
            assert sum(row.deployment == name for row in serving) == count
        running = {replica_id for pilot in self.pilots.values() for replica_id in alive(pilot)}
        assert running == {row.id for row in serving}
        living = {job_id for job_id, news in self.scheduler.items() if not news.state.is_final}
        assert living == {row.job_id for row in serving}

    # -- the cluster ---------------------------------------------------------------------------------------

    def new_id(self, kind: str) -> str:
        self.count += 1
        return f"{kind}-{self.count:04}"

    def start_job(self, job_id: str) -> None:
        self.scheduler[job_id] = replace(self.scheduler[job_id], state=JobState.RUNNING)
        rows = [row for row in self.replicas.values() if row.job_id == job_id]
        self.pilots[job_id] = {row.id: ReplicaReport(row.id, ReplicaState.STARTING) for row in rows}
        self.links.add(job_id)

    def end_job(self, job_id: str, state: JobState) -> None:
        self.scheduler[job_id] = replace(self.scheduler[job_id], state=state)
        self.pilots.pop(job_id, None)
        self.links.discard(job_id)

    def advance_replica(self, pilot: dict[str, ReplicaReport], replica_id: str, fails: bool) -> None:
        state = pilot[replica_id].state
        if fails and not state.is_final:
            pilot[replica_id] = ReplicaReport(replica_id, ReplicaState.FAILED, reason="died")
        elif state is ReplicaState.STARTING:
            pilot[replica_id] = ReplicaReport(replica_id, ReplicaState.READY, load_s=1.0)
        elif state is ReplicaState.DRAINING:
            pilot[replica_id] = ReplicaReport(replica_id, ReplicaState.STOPPED)

    def report_of(self, job_id: str) -> PilotReport | None:
        if job_id not in self.links or job_id not in self.pilots:
            return None
        pilot = self.pilots[job_id]
        total = 4 if self.jobs[job_id].resources.exclusive else 1
        free = total - len(alive(pilot))
        return PilotReport(job_id, tuple(pilot.values()), free_cpus=free, free_memory_bytes=100 * free)

    # -- the controller, without its I/O -------------------------------------------------------------------

    def observed(self) -> list[ObservedJob]:
        return [
            ObservedJob(row, self.report_of(row.id), 0.0 if self.report_of(row.id) else 1.0)
            for row in self.jobs.values()
            if not row.state.is_final
        ]

    def ended(self, name: str) -> list[ReplicaRow]:
        rows = [row for row in self.replicas.values() if row.deployment == name and row.state.is_final]
        return rows[::-1]

    def take_in(self) -> None:
        for row in list(self.jobs.values()):
            if row.state.is_final:
                continue
            rows = [r for r in self.replicas.values() if r.job_id == row.id and not r.state.is_final]
            update = job_update(row, self.scheduler.get(row.id), row.id not in self.links, self.now)
            state = JobState.CANCELLED if update.give_up else update.state
            facts = {"ended_at": self.now, **update.facts} if update.give_up else update.facts
            self.jobs[row.id] = replace(row, state=state or row.state, **facts)
            moves = []
            if state is not None and state.is_final:
                moves = [ending_of_replica(r, state, "", self.now) for r in rows]
            elif (said := self.report_of(row.id)) is not None:
                moves = replica_updates(rows, said, self.now)
            for move in moves:
                self.replicas[move.row.id] = replace(move.row, state=move.state, **move.facts)

    def act(self, action: object, lost: bool) -> None:
        if isinstance(action, SubmitJob):
            self.submit(action, lost)
        elif isinstance(action, CancelJob):
            if not lost:
                self.end_job(action.job_id, JobState.CANCELLED)
        elif isinstance(action, StartReplica):
            replica_id = action.replica_id or self.add_replica(action.deployment, action.job_id)
            if not lost:
                fresh = ReplicaReport(replica_id, ReplicaState.STARTING)
                self.pilots[action.job_id].setdefault(replica_id, fresh)
        elif isinstance(action, StopReplica) and not lost:
            pilot = self.pilots[action.job_id]
            if action.replica_id not in pilot:  # its pilot says so
                row = self.replicas[action.replica_id]
                self.replicas[row.id] = replace(row, state=ReplicaState.STOPPED, ended_at=self.now)
            elif not pilot[action.replica_id].state.is_final:
                pilot[action.replica_id] = ReplicaReport(action.replica_id, ReplicaState.DRAINING)

    def submit(self, action: SubmitJob, lost: bool) -> None:
        job_id = self.new_id("job")
        resources: Resources = self.deployments[action.deployment].resources
        row = job(job_id, JobState.SUBMITTING, resources=resources, submitted_at=self.now, created_at=self.now)
        self.jobs[job_id] = replace(row, started_at=None)
        for _ in range(action.count):
            self.add_replica(action.deployment, job_id)
        if not lost or self.count % 2:  # half of the lost ones did reach the scheduler
            self.scheduler[job_id] = JobNews(job_id, job_id, JobState.PENDING)

    def add_replica(self, name: str, job_id: str) -> str:
        replica_id = self.new_id("rep")
        row = replica(replica_id, ReplicaState.QUEUED, job_id=job_id, deployment=name, created_at=self.now)
        self.replicas[replica_id] = replace(row, started_at=None, needs=self.deployments[name].resources)
        return replica_id


def alive(pilot: dict[str, ReplicaReport]) -> list[str]:
    return [replica_id for replica_id, said in pilot.items() if not said.state.is_final]


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
