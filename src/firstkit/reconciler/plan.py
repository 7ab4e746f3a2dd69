"""What to do now: desired against observed, as actions, one small step each. What is still off is seen next time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import inf

from firstkit.config import ResolvedDeployment
from firstkit.reconciler.budget import Budget
from firstkit.reconciler.handover import ENDLESS, end_of
from firstkit.reconciler.packing import Rooms, largest_first, new_job
from firstkit.reconciler.survey import ObservedJob, Survey
from firstkit.schedulers.scheduler import Resources
from firstkit.states import JobState, ReplicaState
from firstkit.store.jobs import ReplicaRow

HOLD = timedelta(seconds=30)
"""A job without a living replica is kept for a deployment that may start one in it so soon."""
SILENCE_MARGIN_S = 60.0
END_MOVED_S = 2.0
"""Schedulers count in whole seconds: ends that differ by less are the same."""
SHORTEST = 2.0
"""A job that ends within so many times of what a start takes is no place for another replica."""
_CANCELLABLE = (JobState.PENDING, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class SubmitJob:
    """A new job that holds one replica for each of ``deployments``, where a name may stand several times."""

    deployments: tuple[str, ...]
    resources: Resources


@dataclass(frozen=True, slots=True)
class StartReplica:
    """A replica in a job that is there: a new one, or with ``replica_id`` one that its pilot has not heard of. The
    pilot of a job that ``is_waiting`` hears of it when the job runs."""

    deployment: str
    job_id: str
    replica_id: str | None = None
    is_waiting: bool = False


@dataclass(frozen=True, slots=True)
class StopReplica:
    """The end of a replica, after the requests that it has. ``left_s``: until its job ends."""

    job_id: str
    replica_id: str
    left_s: float = inf


@dataclass(frozen=True, slots=True)
class MoveEnd:
    """The pilot of a job has to be told when its job ends, in seconds since 1970."""

    job_id: str
    ends_at: float


@dataclass(frozen=True, slots=True)
class EndPilot:
    """The end of a pilot whose job is over."""

    job_id: str


@dataclass(frozen=True, slots=True)
class CancelJob:
    """The end of a job."""

    job_id: str
    reason: str


Action = SubmitJob | StartReplica | StopReplica | MoveEnd | EndPilot | CancelJob


@dataclass(frozen=True, slots=True)
class Desired:
    """One deployment: how many replicas it should have that live on.

    ``retry_at``: no new one before, after failures. ``stand_in``: so many of those that are about to end serve on for
    now. ``warm_s``: how long a successor takes until it serves. ``is_left``: all that run are about to end.
    """

    deployment: ResolvedDeployment
    wanted: int
    retry_at: datetime | None = None
    stand_in: int = 0
    warm_s: float = 0.0
    is_left: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, and by deployment what keeps it from being done whole."""

    actions: list[Action]
    waits_for: dict[str, str]


@dataclass(slots=True)
class _Work:
    """The plan for one cluster while it is made."""

    survey: Survey
    rooms: Rooms
    budget: Budget
    orphan_timeout_s: float
    going: set[str] = field(default_factory=set)
    """Replicas that shall end."""
    joined: set[str] = field(default_factory=set)
    """Jobs that get one more."""
    unplaced: list[Desired] = field(default_factory=list)
    """One entry for each replica that no job has room for."""
    actions: list[Action] = field(default_factory=list)
    waits_for: dict[str, str] = field(default_factory=dict)

    def in_flight(self, row: ReplicaRow) -> int:
        job = self.survey.jobs.get(row.job_id)
        reports = job.report.replicas if job is not None and job.report is not None else ()
        return next((report.in_flight for report in reports if report.replica_id == row.id), 0)


def plan(
    desired: Sequence[Desired], survey: Survey, *, budget: Budget | None = None, orphan_timeout_s: float = inf
) -> Plan:
    """The next steps on one cluster."""
    work = _Work(survey, survey.rooms.copy(), budget or Budget(), orphan_timeout_s)
    known = {want.deployment.name for want in desired}
    lacking = [want for want in desired if _adjust(work, want, survey.by_deployment.get(want.deployment.name, []))]
    _submit(work)
    for name, rows in survey.by_deployment.items():
        if name not in known:
            _stop(work, [row for row in rows if row.state is not ReplicaState.DRAINING])
    _tell_again(work, known)
    _stop_strays(work)
    _move_ends(work)
    _cancel(work, lacking)
    return Plan(work.actions, work.waits_for)


# -- one deployment ----------------------------------------------------------------------------------------------------


def _adjust(work: _Work, want: Desired, rows: list[ReplicaRow]) -> bool:
    """Start or stop replicas of one deployment; whether it has fewer than it should."""
    alive = [row for row in rows if work.survey.is_alive(row)]
    staying, leaving = _parted(work, want, alive)
    missing = want.wanted - len(staying)
    if missing > 0 and not want.is_left and (want.retry_at is None or want.retry_at <= work.survey.now):
        _start(work, want, missing)
    elif missing < 0:
        _stop(work, _least_needed(work, staying)[:-missing])
    _hand_over(work, want, staying, leaving)
    return missing > 0


def _parted(work: _Work, want: Desired, alive: list[ReplicaRow]) -> tuple[list[ReplicaRow], list[ReplicaRow]]:
    """Replicas that live on, and those that will end before a successor that is started later could be warm.

    Of more than are wanted those go that would end before long anyway: forecasts that become a little shorter do not
    make a successor superfluous.
    """
    if want.is_left:
        return [], alive
    staying, leaving = list[ReplicaRow](), list[ReplicaRow]()
    for row in alive:
        life = work.survey.life(row)
        (leaving if life is not ENDLESS and life.is_leaving(want.warm_s) else staying).append(row)
    surplus = len(staying) - want.wanted
    if surplus > 0:
        nearly = [row for row in staying if work.survey.life(row).is_nearly_leaving(want.warm_s)]
        nearly = sorted(nearly, key=lambda row: work.survey.life(row).left_s)[:surplus]
        gone = {row.id for row in nearly}
        staying = [row for row in staying if row.id not in gone]
        leaving += nearly
    return staying, leaving


def _start(work: _Work, want: Desired, missing: int) -> None:
    """Fill the room that jobs have. What finds none goes into new jobs, once all deployments have been looked at."""
    deployment, needs = want.deployment, want.deployment.resources
    while missing and (room := work.rooms.take(needs, SHORTEST * want.warm_s)) is not None:
        work.joined.add(room.job_id)
        work.actions.append(StartReplica(deployment.name, room.job_id, is_waiting=room.is_waiting))
        missing -= 1
    if missing and needs.exclusive and work.survey.cluster is None:
        work.waits_for[deployment.name] = "the size of the cluster's nodes is not known yet"
    else:
        work.unplaced += [want] * missing


def _hand_over(work: _Work, want: Desired, staying: list[ReplicaRow], leaving: list[ReplicaRow]) -> None:
    """End replicas that are about to end, as soon as they are not needed to stand in for others any more."""
    if not leaving:
        return
    ready = sum(row.state is ReplicaState.READY for row in staying)
    stand_in = max(want.stand_in, 0 if want.is_left else want.wanted - ready)
    life = work.survey.life
    last_first = sorted(leaving, key=lambda row: (row.state is ReplicaState.READY, life(row).left_s), reverse=True)
    over = [row for i, row in enumerate(last_first) if i >= stand_in or life(row).is_over]
    _stop(work, over)


def _least_needed(work: _Work, rows: list[ReplicaRow]) -> list[ReplicaRow]:
    """Who goes first: what has not started, what loads; who has the fewest neighbours, so that jobs become empty; who
    has the fewest requests; of equals the youngest."""
    order = (ReplicaState.QUEUED, ReplicaState.STARTING, ReplicaState.READY)
    youngest_first = sorted(rows, key=lambda row: row.created_at, reverse=True)
    return sorted(
        youngest_first,
        key=lambda row: (order.index(row.state), len(work.survey.by_job.get(row.job_id, ())), work.in_flight(row)),
    )


def _stop(work: _Work, rows: Iterable[ReplicaRow]) -> None:
    """Ask for the end of replicas whose pilot is heard. The others leave with their job."""
    for row in rows:
        work.going.add(row.id)
        job = work.survey.jobs.get(row.job_id)
        if job is not None and job.report is not None:
            work.actions.append(StopReplica(row.job_id, row.id, work.survey.life(row).left_s))


# -- new jobs ----------------------------------------------------------------------------------------------------------


def _submit(work: _Work) -> None:
    """As few new jobs as hold what found no room; a job is charged to the first deployment in it."""
    found: dict[str, list[str]] = {}
    jobs: dict[str, Resources] = {}
    new = Rooms()
    for want in sorted(work.unplaced, key=lambda want: largest_first(want.deployment.resources)):
        name, needs = want.deployment.name, want.deployment.resources
        room = new.take(needs)
        if room is not None:
            found[room.job_id].append(name)
        elif refusal := work.budget.refusal(name, want.deployment.scale, needs):
            work.waits_for[name] = refusal
        else:
            work.budget = work.budget.with_job(name, needs)
            room = new_job(f"new {len(jobs)}", needs, work.survey.cluster)
            found[room.job_id], jobs[room.job_id] = [name], room.job
            new.add(room.without(needs))
    work.actions += [SubmitJob(tuple(names), jobs[job_id]) for job_id, names in found.items()]


# -- all jobs ----------------------------------------------------------------------------------------------------------


def _tell_again(work: _Work, known: set[str]) -> None:
    """Start once more what pilots of running jobs have not heard of."""
    for job in work.survey.jobs.values():
        if job.report is None or job.row.state is not JobState.RUNNING:
            continue
        for row in job.untold(work.survey.by_job.get(job.row.id, ())):
            if row.id not in work.going and row.deployment in known:
                work.actions.append(StartReplica(row.deployment, job.row.id, row.id))


def _stop_strays(work: _Work) -> None:
    """Replicas that run although, by our books, they have ended."""
    for job in work.survey.jobs.values():
        rows = work.survey.by_job.get(job.row.id, ())
        for report in job.report.replicas if job.report is not None else ():
            if not report.state.is_final and all(row.id != report.replica_id for row in rows):
                work.actions.append(StopReplica(job.row.id, report.replica_id))


def _move_ends(work: _Work) -> None:
    """Tell pilots what the scheduler says of the end of their job, where they think otherwise."""
    for job in work.survey.jobs.values():
        if job.report is None or job.row.ends_at is None or job.row.state is not JobState.RUNNING:
            continue
        ends_at = end_of(job.row, job.report)
        if ends_at is not None and (job.report.ends_at is None or abs(job.report.ends_at - ends_at) > END_MOVED_S):
            work.actions.append(MoveEnd(job.row.id, ends_at))


def _cancel(work: _Work, lacking: list[Desired]) -> None:
    """End jobs that nobody needs, and those whose pilot should have left long ago and is not heard."""
    soon = [want.deployment.resources for want in lacking if want.retry_at and want.retry_at <= work.survey.now + HOLD]
    for job in work.survey.jobs.values():
        if job.row.state not in _CANCELLABLE:
            continue
        room = work.rooms.get(job.row.id)
        if job.row.state is JobState.RUNNING and job.silent_s > work.orphan_timeout_s + SILENCE_MARGIN_S:
            work.actions.append(CancelJob(job.row.id, f"its pilot has been silent for {job.silent_s:.0f} s"))
        elif not _is_needed(work, job) and not (room and any(room.fits(needs) for needs in soon)):
            work.actions.append(CancelJob(job.row.id, "none of its replicas is needed any more"))


def _is_needed(work: _Work, job: ObservedJob) -> bool:
    """Whether a replica of the job shall live on, or has to be given the time to end well."""
    rows = work.survey.by_job.get(job.row.id, [])
    if job.row.id in work.joined or any(row.id not in work.going for row in rows):
        return True
    return bool(rows) and job.row.state is JobState.RUNNING and job.silent_s < HOLD.total_seconds()
