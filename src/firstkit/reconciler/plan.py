"""What to do now: desired against observed, as actions, one small step each. What is still off is seen next time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import inf

from firstkit.config import ResolvedDeployment
from firstkit.links.messages import PilotReport
from firstkit.reconciler.placement import Room, choose_room, replicas_per_job
from firstkit.schedulers.scheduler import Capacity
from firstkit.states import JobState, ReplicaState
from firstkit.store.jobs import JobRow, ReplicaRow

HOLD = timedelta(seconds=30)
"""A job without a living replica is kept for a deployment that may start one in it so soon."""
SILENCE_MARGIN_S = 60.0
_CANCELLABLE = (JobState.PENDING, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class SubmitJob:
    """A new job for ``count`` replicas of a deployment."""

    deployment: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class StartReplica:
    """A replica in a job that runs: a new one, or with ``replica_id`` one that its pilot has not heard of."""

    deployment: str
    job_id: str
    replica_id: str | None = None


@dataclass(frozen=True, slots=True)
class StopReplica:
    """The end of a replica, after the requests that it has."""

    job_id: str
    replica_id: str


@dataclass(frozen=True, slots=True)
class CancelJob:
    """The end of a job."""

    job_id: str
    reason: str


Action = SubmitJob | StartReplica | StopReplica | CancelJob


@dataclass(frozen=True, slots=True)
class Desired:
    """One deployment: how many replicas it should have; ``retry_at``: no new one before, after failures."""

    deployment: ResolvedDeployment
    wanted: int
    retry_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ObservedJob:
    """A living job. ``report``: of its pilot, while there is a link; ``silent_s``: for how long there is none."""

    row: JobRow
    report: PilotReport | None = None
    silent_s: float = 0.0


@dataclass(slots=True)
class _Work:
    """One cluster's picture while the plan for it is made."""

    jobs: dict[str, ObservedJob]
    by_job: dict[str, list[ReplicaRow]]
    rooms: dict[str, Room]
    cluster: Capacity | None
    orphan_timeout_s: float
    now: datetime
    leaving: set[str] = field(default_factory=set)
    """Replicas that shall end."""
    joined: set[str] = field(default_factory=set)
    """Jobs that get one more."""
    actions: list[Action] = field(default_factory=list)

    def in_flight(self, row: ReplicaRow) -> int:
        job = self.jobs.get(row.job_id)
        reports = job.report.replicas if job is not None and job.report is not None else ()
        return next((report.in_flight for report in reports if report.replica_id == row.id), 0)


def plan(
    desired: Sequence[Desired],
    jobs: Sequence[ObservedJob],
    replicas: Sequence[ReplicaRow],
    now: datetime,
    *,
    cluster: Capacity | None = None,
    orphan_timeout_s: float = inf,
) -> list[Action]:
    """The next steps on one cluster. ``jobs`` and ``replicas``: those that live; ``cluster``: None if not known."""
    by_job = _grouped(replicas, "job_id")
    rooms = (_room(job, by_job.get(job.row.id, []), now) for job in jobs)
    work = _Work(
        jobs={job.row.id: job for job in jobs},
        by_job=by_job,
        rooms={room.job_id: room for room in rooms if room is not None},
        cluster=cluster,
        orphan_timeout_s=orphan_timeout_s,
        now=now,
    )
    by_deployment = _grouped(replicas, "deployment")
    lacking = [(want, _adjust(work, want, by_deployment.pop(want.deployment.name, []))) for want in desired]
    for rows in by_deployment.values():  # of deployments that are not wanted any more
        _stop(work, [row for row in rows if row.state is not ReplicaState.DRAINING])
    _tell_again(work, {want.deployment.name for want in desired})
    _stop_strays(work)
    _cancel(work, [want for want, missing in lacking if missing])
    return work.actions


def _grouped(replicas: Iterable[ReplicaRow], key: str) -> dict[str, list[ReplicaRow]]:
    groups: dict[str, list[ReplicaRow]] = defaultdict(list)
    for row in replicas:
        groups[getattr(row, key)].append(row)
    return groups


def _room(job: ObservedJob, rows: list[ReplicaRow], now: datetime) -> Room | None:
    """What further replicas may take of a job; None where there is none, or while nobody could be told."""
    report, ends_at = job.report, job.row.ends_at
    if report is None or report.free_cpus < 1 or job.row.state is not JobState.RUNNING:
        return None
    left_s = inf if ends_at is None else (ends_at - now).total_seconds()
    room = Room(job.row.id, report.free_cpus, report.free_gpus, report.free_memory_bytes, job.row.resources, left_s)
    for row in _untold(report, rows):
        room = room.without(row.needs)
    return room


def _untold(report: PilotReport, rows: list[ReplicaRow]) -> list[ReplicaRow]:
    """Replicas of a job that its pilot has not heard of: the call that started them was lost, or is under way."""
    heard = {said.replica_id for said in report.replicas}
    return [row for row in rows if row.state is ReplicaState.QUEUED and row.id not in heard]


def _adjust(work: _Work, want: Desired, rows: list[ReplicaRow]) -> bool:
    """Start or stop replicas of one deployment; whether it has fewer than it should."""
    alive = [row for row in rows if row.state is not ReplicaState.DRAINING]
    missing = want.wanted - len(alive)
    if missing > 0 and (want.retry_at is None or want.retry_at <= work.now):
        _start(work, want.deployment, missing)
    elif missing < 0:
        _stop(work, _least_needed(work, alive)[:-missing])
    return missing > 0


def _start(work: _Work, deployment: ResolvedDeployment, missing: int) -> None:
    needs = deployment.resources
    while missing and (room := choose_room(work.rooms.values(), needs)) is not None:
        work.rooms[room.job_id] = room.without(needs)
        work.joined.add(room.job_id)
        work.actions.append(StartReplica(deployment.name, room.job_id))
        missing -= 1
    per_job = replicas_per_job(needs, work.cluster)
    while missing > 0 and per_job:
        work.actions.append(SubmitJob(deployment.name, min(missing, per_job)))
        missing -= per_job


def _least_needed(work: _Work, rows: list[ReplicaRow]) -> list[ReplicaRow]:
    """Who goes first: what has not started, what loads, who has the fewest requests; of equals the youngest."""
    order = (ReplicaState.QUEUED, ReplicaState.STARTING, ReplicaState.READY)
    youngest_first = sorted(rows, key=lambda row: row.created_at, reverse=True)
    return sorted(youngest_first, key=lambda row: (order.index(row.state), work.in_flight(row)))


def _stop(work: _Work, rows: Iterable[ReplicaRow]) -> None:
    """Ask for the end of replicas whose pilot is heard. The others leave with their job."""
    for row in rows:
        work.leaving.add(row.id)
        job = work.jobs.get(row.job_id)
        if job is not None and job.report is not None:
            work.actions.append(StopReplica(row.job_id, row.id))


def _tell_again(work: _Work, known: set[str]) -> None:
    """Start once more what pilots of running jobs have not heard of."""
    for job in work.jobs.values():
        if job.report is None or job.row.state is not JobState.RUNNING:
            continue
        for row in _untold(job.report, work.by_job.get(job.row.id, [])):
            if row.id not in work.leaving and row.deployment in known:
                work.actions.append(StartReplica(row.deployment, job.row.id, row.id))


def _stop_strays(work: _Work) -> None:
    """Replicas that run although, by our books, they have ended."""
    for job in work.jobs.values():
        alive = {row.id for row in work.by_job.get(job.row.id, [])}
        for report in job.report.replicas if job.report is not None else ():
            if not report.state.is_final and report.replica_id not in alive:
                work.actions.append(StopReplica(job.row.id, report.replica_id))


def _cancel(work: _Work, lacking: list[Desired]) -> None:
    """End jobs that nobody needs, and those whose pilot should have left long ago and is not heard."""
    soon = [want.deployment.resources for want in lacking if want.retry_at and want.retry_at <= work.now + HOLD]
    for job in work.jobs.values():
        if job.row.state not in _CANCELLABLE:
            continue
        room = work.rooms.get(job.row.id)
        if job.row.state is JobState.RUNNING and job.silent_s > work.orphan_timeout_s + SILENCE_MARGIN_S:
            work.actions.append(CancelJob(job.row.id, f"its pilot has been silent for {job.silent_s:.0f} s"))
        elif not _is_needed(work, job) and not (room and any(room.fits(needs) for needs in soon)):
            work.actions.append(CancelJob(job.row.id, "none of its replicas is needed any more"))


def _is_needed(work: _Work, job: ObservedJob) -> bool:
    """Whether a replica of the job shall live on, or has to be given the time to end well."""
    rows = work.by_job.get(job.row.id, [])
    if job.row.id in work.joined or any(row.id not in work.leaving for row in rows):
        return True
    return bool(rows) and job.row.state is JobState.RUNNING and job.silent_s < HOLD.total_seconds()
