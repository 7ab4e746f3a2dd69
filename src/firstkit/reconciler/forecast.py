"""How long until a model answers: from how long its loads and its cluster's queue took before. Unknown is said so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import inf
from statistics import fmean, median, quantiles

from firstkit.reconciler.backoff import failures, retry_at
from firstkit.states import ModelStatus, ReplicaState
from firstkit.store.jobs import JobRow, Observation, ReplicaRow

AT_ONCE_S = 15.0
"""A job that its scheduler means to start within so little time finds its resources free."""
STALE_S = 60.0
"""What a scheduler planned for a time that is so long past is no plan any more."""
_ORDER = (ModelStatus.LIVE, ModelStatus.STARTING, ModelStatus.QUEUED, ModelStatus.OFFLINE)


@dataclass(frozen=True, slots=True)
class Spread:
    """What is usual, and what nine of ten do not exceed; seconds."""

    usual: float
    late: float

    def left_s(self, elapsed_s: float) -> float | None:
        """Seconds still to wait when ``elapsed_s`` have passed; None when it takes longer than it ever should."""
        return next((end - elapsed_s for end in (self.usual, self.late) if end > elapsed_s), None)


@dataclass(frozen=True, slots=True)
class Outlook:
    """What users are told of a model on one cluster, or of the best that it has. ``eta_s``: None if nobody can say.

    ``waits_for``: in a few words, what keeps it from being live.
    """

    status: ModelStatus = ModelStatus.OFFLINE
    eta_s: float | None = None
    reason: str = ""
    position: int | None = None
    """Of the job that starts first: its place in the scheduler's queue."""
    start_in_s: float | None = None
    """Until that job starts."""
    waits_for: str = ""
    late_s: float | None = None
    """Of what is on its way: what nine of ten would not exceed from now."""


@dataclass(frozen=True, slots=True)
class Experience:
    """What one deployment's forecasts are made from: loads of its own, waits of its cluster, newest first."""

    loads: tuple[Observation, ...] = ()
    waits: tuple[Observation, ...] = ()
    wait: Spread | None = None
    """What a job of its shape waits that is submitted now, see seasons.py; None: as all ``waits`` say."""

    @property
    def usual_load_s(self) -> float | None:
        """What the next load is forecast to take."""
        load = spread(self.loads)
        return load.usual if load is not None else None

    @property
    def usual_wait_s(self) -> float:
        """What a job is forecast to wait; nothing where none ever waited."""
        wait = self._wait
        return wait.usual if wait is not None else 0.0

    @property
    def late_wait_s(self) -> float | None:
        """What nine of ten jobs are forecast not to wait longer than; None where none ever waited."""
        wait = self._wait
        return wait.late if wait is not None else None

    @property
    def late_load_s(self) -> float | None:
        """What nine of ten loads are forecast not to exceed."""
        load = spread(self.loads)
        return load.late if load is not None else None

    @property
    def warm_s(self) -> float | None:
        """How long a new replica takes at most until it serves, nine times of ten; None before the first load."""
        load, wait = spread(self.loads), self._wait
        return None if load is None else load.late + (wait.late if wait is not None else 0.0)

    def load_left_s(self, elapsed_s: float) -> float | None:
        return _left_s(spread(self.loads), elapsed_s)

    def wait_left_s(self, elapsed_s: float) -> float | None:
        return _left_s(self._wait, elapsed_s)

    @property
    def _wait(self) -> Spread | None:
        return spread(self.waits) if self.wait is None else self.wait

    @property
    def error_s(self) -> float | None:
        """Mean absolute error of the load times that were forecast."""
        return _error_s(self.loads)

    @property
    def wait_error_s(self) -> float | None:
        """Mean absolute error of the queue waits that were forecast."""
        return _error_s(self.waits)

    @property
    def wait_coverage(self) -> float | None:
        """The share of the queue waits that were no longer than nine of ten were forecast to be; None: no such
        forecast was made. 0.9 is right; less: they were too hopeful, more: too careful."""
        kept = [one.seconds <= one.late_s for one in self.waits if one.late_s is not None]
        return sum(kept) / len(kept) if kept else None


def _error_s(seen: Iterable[Observation]) -> float | None:
    errors = [abs(one.forecast_s - one.seconds) for one in seen if one.forecast_s is not None]
    return fmean(errors) if errors else None


def wait_s(said_s: float | None, learned_s: float | None) -> float | None:
    """How long a job waits: by what its scheduler says and by what was learned; None where neither is known.

    The later of the two. A scheduler plans with the jobs that it has: those that will come and overtake are missing
    from its plan, and in what was learned they are there; a queue that is longer than ever is in the plan alone. Only
    when it says that resources are free now does it know better than any experience.
    """
    if said_s is None or learned_s is None:
        return learned_s if said_s is None else said_s
    return said_s if said_s <= AT_ONCE_S else max(said_s, learned_s)


def spread(seen: Sequence[Observation]) -> Spread | None:
    """Median and 90th percentile; None without any observation."""
    seconds = [observation.seconds for observation in seen]
    if not seconds:
        return None
    late = quantiles(seconds, n=10, method="inclusive")[-1] if len(seconds) > 1 else seconds[0] * 2
    return Spread(median(seconds), late)


def deployment_outlook(
    replicas: Iterable[ReplicaRow],
    jobs: dict[str, JobRow],
    ended: Sequence[ReplicaRow],
    known: Experience,
    now: datetime,
    start_s: float | None = None,
    doing: Mapping[str, str] | None = None,
) -> Outlook:
    """The outlook of one deployment: that of its best living replica, else why there is none.

    ``replicas``: its living ones; ``jobs``: by id, those of the replicas; ``ended``: its ended ones, newest first;
    ``start_s``: how long a start now would take, where more is known than what was learned; ``doing``: by replica, what
    their pilots say that those that start are doing.
    """
    failed, doing = failures(ended), doing or {}
    alive = [_replica_outlook(row, jobs.get(row.job_id), known, failed, now, doing.get(row.id)) for row in replicas]
    return best(alive) if alive else _offline(failed, retry_at(ended, now), known, start_s, now)


def best(outlooks: Iterable[Outlook]) -> Outlook:
    """The most hopeful of several; offline when there are none."""
    return min(outlooks, key=_rank, default=Outlook())


def _rank(outlook: Outlook) -> tuple[int, float]:
    return _ORDER.index(outlook.status), inf if outlook.eta_s is None else outlook.eta_s


def _replica_outlook(
    row: ReplicaRow,
    job: JobRow | None,
    known: Experience,
    failed: Sequence[ReplicaRow],
    now: datetime,
    doing: str | None,
) -> Outlook:
    if row.state is ReplicaState.READY:
        return Outlook(ModelStatus.LIVE, 0.0)
    if row.state is ReplicaState.DRAINING:
        words = "its last replica is stopping"
        return Outlook(ModelStatus.OFFLINE, None, words, waits_for=words)
    before = f"; {_failed_sentence(failed)}" if failed else ""
    if row.state is ReplicaState.STARTING:
        elapsed_s = _seconds(row.started_at or row.created_at, now)
        left_s, words = known.load_left_s(elapsed_s), doing or "the engine loads"
        late_s = _at_latest_s(known.late_load_s, elapsed_s)
        return Outlook(ModelStatus.STARTING, left_s, f"{words}{before}", waits_for=words, late_s=late_s)
    if job is not None and job.started_at is not None:
        load_s, late_s, words = known.usual_load_s, known.late_load_s, "the job starts"
        return Outlook(ModelStatus.STARTING, load_s, f"{words}{before}", waits_for=words, late_s=late_s)
    late_start_s = _at_latest_s(known.late_wait_s, _seconds(row.created_at, now))
    start_in_s = job_left_s(row, job, known, now)
    place = f"position {job.position}" if job is not None and job.position is not None else ""
    why = ", ".join(part for part in (place, job.reason if job is not None else "") if part)
    return Outlook(
        ModelStatus.QUEUED,
        _sum(start_in_s, known.usual_load_s),
        f"the job waits{f': {why}' if why else ''}{before}",
        position=None if job is None else job.position,
        start_in_s=start_in_s,
        waits_for=f"queue: {why}" if why else "queue",
        late_s=_sum(None if late_start_s is None else max(late_start_s, start_in_s or 0.0), known.late_load_s),
    )


def job_left_s(row: ReplicaRow, job: JobRow | None, known: Experience, now: datetime) -> float | None:
    """Seconds until the job of a replica that waits starts; None when it takes longer than anybody would say."""
    learned_s = known.wait_left_s(_seconds(row.created_at, now))
    if job is None or job.starts_at is None:
        return learned_s
    said_s = (job.starts_at - now).total_seconds()
    return learned_s if said_s < -STALE_S else wait_s(max(0.0, said_s), learned_s)


def _offline(
    failed: Sequence[ReplicaRow], retry: datetime | None, known: Experience, start_s: float | None, now: datetime
) -> Outlook:
    start_s = _sum(known.usual_wait_s, known.usual_load_s) if start_s is None else start_s
    if retry is None or not failed:
        return Outlook(ModelStatus.OFFLINE, start_s)
    pause_s = max(0.0, (retry - now).total_seconds())
    reason = f"{_failed_sentence(failed)}; the next attempt comes in {pause_s:.0f} s"
    return Outlook(ModelStatus.OFFLINE, _sum(pause_s, start_s), reason)


def back_off(ended: Sequence[ReplicaRow], now: datetime) -> str:
    """Why nothing is started for now, after failures; "" where it may be."""
    retry = retry_at(ended, now)
    if retry is None or retry <= now:
        return ""
    return f"back-off until {retry:%H:%M:%S %Z}: {_failed_sentence(failures(ended))}"


def _failed_sentence(failed: Sequence[ReplicaRow]) -> str:
    times = "failed to start" if len(failed) == 1 else f"failed to start {len(failed)} times"
    return f"{times}, last: {failed[0].reason or 'no reason was given'} ({failed[0].id})"


def _at_latest_s(late_s: float | None, elapsed_s: float) -> float | None:
    """What is left of what nine of ten do not exceed; None: it has, or nobody knows."""
    return late_s - elapsed_s if late_s is not None and late_s > elapsed_s else None


def _left_s(usual: Spread | None, elapsed_s: float) -> float | None:
    return usual.left_s(elapsed_s) if usual is not None else None


def _sum(*parts: float | None) -> float | None:
    return None if None in parts else sum(part for part in parts if part is not None)


def _seconds(since: datetime, now: datetime) -> float:
    return max(0.0, (now - since).total_seconds())
