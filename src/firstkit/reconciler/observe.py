"""What follows from what schedulers and pilots say: which rows move, and how. Silence moves nothing by itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import inf
from typing import Any

from firstkit.config.clusters import Graces
from firstkit.links.messages import PilotReport, ReplicaReport
from firstkit.schedulers.scheduler import JobNews
from firstkit.states import JobState, ReplicaState, may_move
from firstkit.store.jobs import JobRow, ReplicaRow

POLLS = 2
"""So many good polls in a row must miss a job before its absence says anything; see also ``Graces``."""
USUAL = Graces()
_STOPPED_BY_US = (JobState.CANCELLED, JobState.COMPLETED)


@dataclass(frozen=True, slots=True)
class JobUpdate:
    """What to write down of a job; ``state`` None: no move. ``give_up``: cancel it by name, then it is CANCELLED."""

    job_id: str
    state: JobState | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    give_up: bool = False


@dataclass(frozen=True, slots=True)
class ReplicaUpdate:
    """A replica's move to ``state``, with what is known of it now."""

    row: ReplicaRow
    state: ReplicaState
    facts: dict[str, Any]


def submit_grace_s(graces: Graces, poll_interval_s: float) -> float:
    """How long an unanswered submission may take to show up: where polls are rare, as long as POLLS and a half."""
    return max(graces.submit, (POLLS + 0.5) * poll_interval_s)


def job_update(
    job: JobRow,
    news: JobNews | None,
    is_pilot_silent: bool,
    now: datetime,
    poll_interval_s: float = 0.0,
    graces: Graces = USUAL,
) -> JobUpdate:
    """What a good poll that began after the job was submitted says of it; ``news`` None: the job is absent.

    ``is_pilot_silent``: the gateway answers, and says that there is no link to the pilot.
    """
    if news is not None:
        state = news.state if may_move(job.state, news.state) else None
        return JobUpdate(job.id, state, _facts(job, news, now))
    absent_since = job.absent_since or now
    facts = {"absent_polls": job.absent_polls + 1, "absent_since": absent_since}
    is_absent = job.absent_polls + 1 >= POLLS
    if job.state is JobState.SUBMITTING:
        asked_s = _seconds(job.submitted_at or job.created_at, now)
        return JobUpdate(job.id, None, facts, give_up=is_absent and asked_s > submit_grace_s(graces, poll_interval_s))
    may_vanish = is_pilot_silent and may_move(job.state, JobState.VANISHED)
    if is_absent and may_vanish and _seconds(absent_since, now) > graces.vanish:
        gone = {"reason": "the scheduler does not know it any more, and its pilot is silent", "ended_at": now}
        return JobUpdate(job.id, JobState.VANISHED, {**facts, **gone})
    return JobUpdate(job.id, None, facts)


def replica_updates(rows: Iterable[ReplicaRow], report: PilotReport, now: datetime) -> list[ReplicaUpdate]:
    """Moves that follow from a pilot's report; ``rows`` are the living replicas of its job."""
    reported = {replica.replica_id: replica for replica in report.replicas}
    updates = (_replica_update(row, reported.get(row.id), now) for row in rows)
    return [update for update in updates if update is not None]


def ending_of_replica(
    row: ReplicaRow, job_state: JobState, reason: str, now: datetime, *, is_ours: bool = False
) -> ReplicaUpdate:
    """What becomes of a living replica when its job has ended; ``is_ours``: because we said so, whatever it is called
    by its scheduler."""
    if is_ours or job_state in _STOPPED_BY_US:
        return ReplicaUpdate(row, ReplicaState.STOPPED, {"ended_at": now})
    words = f"its job ended as {job_state.value}" + (f": {reason}" if reason else "")
    return ReplicaUpdate(row, ReplicaState.FAILED, {"ended_at": now, "reason": words})


def _facts(job: JobRow, news: JobNews, now: datetime) -> dict[str, Any]:
    known: dict[str, Any] = {
        "scheduler_id": news.scheduler_id,
        "reason": news.reason or None,
        "exit_code": news.exit_code,
        "node": news.node,
        "address": news.address,
        "started_at": job.started_at or _time(news.started_at),
        # Of a job that waits this is a guess, and would be taken for the truth once the job runs.
        "ends_at": None if news.state is JobState.PENDING else _time(news.ends_at),
    }
    if news.state is JobState.RUNNING and may_move(job.state, news.state):
        known |= {"reason": news.reason, "started_at": known["started_at"] or now}  # what it waited for is over
    facts = {name: value for name, value in known.items() if value is not None}
    if news.state.is_final and not job.state.is_final:
        facts["ended_at"] = now
    waits = {"starts_at": _time(news.starts_at), "position": news.position}  # nothing, once it waits no more
    return {**facts, **waits, "observed_at": now, "absent_polls": 0, "absent_since": None}


def _replica_update(row: ReplicaRow, report: ReplicaReport | None, now: datetime) -> ReplicaUpdate | None:
    if report is None:
        if row.state is ReplicaState.QUEUED:
            return None  # the pilot has not been told of it yet
        lost = {"ended_at": now, "reason": "its pilot does not know it any more"}
        return ReplicaUpdate(row, ReplicaState.FAILED, lost)
    if not may_move(row.state, report.state):
        return None
    facts: dict[str, Any] = {"reason": report.reason, "observed_at": now}
    if row.started_at is None and report.state is not ReplicaState.QUEUED:
        facts["started_at"] = now
    if report.load_s is not None:
        facts["load_s"] = report.load_s
    if report.state is ReplicaState.READY:
        facts["ready_at"] = now
    if report.state.is_final:
        facts |= {"ended_at": now, "log_tail": report.log_tail}
    return ReplicaUpdate(row, report.state, facts)


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _seconds(since: datetime, now: datetime) -> float:
    """Seconds that have passed. A clock that was set back says nothing of them: then only polls are counted."""
    passed_s = (now - since).total_seconds()
    return passed_s if passed_s >= 0 else inf
