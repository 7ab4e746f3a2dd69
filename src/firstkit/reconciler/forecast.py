"""How long until a model answers: from how long its loads and its cluster's queue took before. Unknown is said so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import inf
from statistics import fmean, median, quantiles

from firstkit.reconciler.backoff import failures, retry_at
from firstkit.states import ModelStatus, ReplicaState
from firstkit.store.jobs import JobRow, Observation, ReplicaRow

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
    """What users are told of a model on one cluster, or of the best that it has. ``eta_s``: None if nobody can say."""

    status: ModelStatus = ModelStatus.OFFLINE
    eta_s: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Experience:
    """What one deployment's forecasts are made from: loads of its own, waits of its cluster, newest first."""

    loads: tuple[Observation, ...] = ()
    waits: tuple[Observation, ...] = ()

    @property
    def usual_load_s(self) -> float | None:
        """What the next load is forecast to take."""
        load = spread(self.loads)
        return load.usual if load is not None else None

    @property
    def usual_wait_s(self) -> float:
        """What a job is forecast to wait; nothing where none ever waited."""
        wait = spread(self.waits)
        return wait.usual if wait is not None else 0.0

    def load_left_s(self, elapsed_s: float) -> float | None:
        return _left_s(spread(self.loads), elapsed_s)

    def wait_left_s(self, elapsed_s: float) -> float | None:
        return _left_s(spread(self.waits), elapsed_s)

    @property
    def error_s(self) -> float | None:
        """Mean absolute error of the load times that were forecast."""
        errors = [abs(seen.forecast_s - seen.seconds) for seen in self.loads if seen.forecast_s is not None]
        return fmean(errors) if errors else None


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
) -> Outlook:
    """The outlook of one deployment: that of its best living replica, else why there is none.

    ``replicas``: its living ones; ``jobs``: by id, those of the replicas; ``ended``: its ended ones, newest first.
    """
    failed = failures(ended)
    alive = [_replica_outlook(row, jobs.get(row.job_id), known, failed, now) for row in replicas]
    return best(alive) if alive else _offline(failed, retry_at(ended), known, now)


def best(outlooks: Iterable[Outlook]) -> Outlook:
    """The most hopeful of several; offline when there are none."""
    return min(outlooks, key=_rank, default=Outlook())


def _rank(outlook: Outlook) -> tuple[int, float]:
    return _ORDER.index(outlook.status), inf if outlook.eta_s is None else outlook.eta_s


def _replica_outlook(
    row: ReplicaRow, job: JobRow | None, known: Experience, failed: Sequence[ReplicaRow], now: datetime
) -> Outlook:
    if row.state is ReplicaState.READY:
        return Outlook(ModelStatus.LIVE, 0.0)
    if row.state is ReplicaState.DRAINING:
        return Outlook(ModelStatus.OFFLINE, None, "its last replica is stopping")
    before = f"; {_failed_sentence(failed)}" if failed else ""
    if row.state is ReplicaState.STARTING:
        elapsed_s = _seconds(row.started_at or row.created_at, now)
        return Outlook(ModelStatus.STARTING, known.load_left_s(elapsed_s), f"the engine loads{before}")
    if job is not None and job.started_at is not None:
        return Outlook(ModelStatus.STARTING, known.usual_load_s, f"the job starts{before}")
    waits_for = f": {job.reason}" if job is not None and job.reason else ""
    eta_s = _sum(known.wait_left_s(_seconds(row.created_at, now)), known.usual_load_s)
    return Outlook(ModelStatus.QUEUED, eta_s, f"the job waits{waits_for}{before}")


def _offline(failed: Sequence[ReplicaRow], retry: datetime | None, known: Experience, now: datetime) -> Outlook:
    start_s = _sum(known.usual_wait_s, known.usual_load_s)
    if retry is None or not failed:
        return Outlook(ModelStatus.OFFLINE, start_s)
    pause_s = max(0.0, (retry - now).total_seconds())
    reason = f"{_failed_sentence(failed)}; the next attempt comes in {pause_s:.0f} s"
    return Outlook(ModelStatus.OFFLINE, _sum(pause_s, start_s), reason)


def _failed_sentence(failed: Sequence[ReplicaRow]) -> str:
    times = "failed to start" if len(failed) == 1 else f"failed to start {len(failed)} times"
    return f"{times}, last: {failed[0].reason or 'no reason was given'} ({failed[0].id})"


def _left_s(usual: Spread | None, elapsed_s: float) -> float | None:
    return usual.left_s(elapsed_s) if usual is not None else None


def _sum(*parts: float | None) -> float | None:
    return None if None in parts else sum(part for part in parts if part is not None)


def _seconds(since: datetime, now: datetime) -> float:
    return max(0.0, (now - since).total_seconds())
