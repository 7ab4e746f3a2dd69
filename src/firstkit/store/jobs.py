"""Jobs and replicas in the store: rows as values, and moves that the database itself refuses when they come late."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, Table, and_, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from firstkit.ids import digest
from firstkit.schedulers.scheduler import Resources
from firstkit.states import LIVE_JOB_STATES, LIVE_REPLICA_STATES, JobState, ReplicaState, earlier_states
from firstkit.store.audit import note
from firstkit.store.database import Database
from firstkit.store.tables import jobs, observations, replicas
from firstkit.wire import from_dict, to_dict

REMEMBERED = 20
"""Observations of one subject that forecasts are made from, and replicas of one deployment that back-off looks at."""
WAITS = 400
"""Queue waits of one cluster that forecasts are made from: a few weeks of some ten jobs a day."""
LONGEST_JOB = timedelta(days=60)
"""Jobs whose rows are older have long ended: what was spent is not looked for there."""


@dataclass(frozen=True, slots=True)
class JobRow:
    """One job as the store knows it. ``resources``: what was asked for."""

    id: str
    cluster: str
    state: JobState
    reason: str
    scheduler_id: str | None
    resources: Resources
    exit_code: int | None
    node: str | None
    created_at: datetime
    submitted_at: datetime | None
    started_at: datetime | None
    ends_at: datetime | None
    ended_at: datetime | None
    observed_at: datetime | None
    absent_polls: int
    absent_since: datetime | None
    starts_at: datetime | None = None
    """While it waits: when the scheduler means to start it."""
    position: int | None = None
    """While it waits: its place in the scheduler's queue, 1 for the next."""
    address: str | None = None
    """Where its pilot can be dialled, with a ``direct`` link."""


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    """One replica as the store knows it. ``load_s``: seconds from start to READY, once it was."""

    id: str
    job_id: str
    model: str
    deployment: str
    cluster: str
    state: ReplicaState
    reason: str
    log_tail: str
    max_in_flight: int
    needs: Resources
    load_s: float | None
    created_at: datetime
    started_at: datetime | None
    ready_at: datetime | None
    ended_at: datetime | None
    observed_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewReplica:
    """A replica that is about to be asked for."""

    id: str
    job_id: str
    model: str
    deployment: str
    cluster: str
    max_in_flight: int
    needs: Resources


@dataclass(frozen=True, slots=True)
class Charge:
    """Whom the scheduler of a cluster charges: the account of jobs that name none of their own, and the user under
    whose name jobs are submitted. None: nobody said."""

    account: str | None = None
    submit_as: str | None = None


NOBODY = Charge()


@dataclass(frozen=True, slots=True)
class Observation:
    """How long something took, in seconds, and what had been forecast for it: usually, and nine times of ten at most.

    Of a queue wait also the shape of the job (see ``seasons.shape_of``; "": nobody knows) and when it was submitted.
    """

    seconds: float
    forecast_s: float | None
    late_s: float | None = None
    shape: str = ""
    began_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """What one job takes of its cluster. ``deployment``: the first that it was for; None: nobody knows."""

    job_id: str
    deployment: str | None
    nodes: int
    walltime_s: int | None
    created_at: datetime
    started_at: datetime | None
    ends_at: datetime | None
    ended_at: datetime | None

    @classmethod
    def of(cls, row: JobRow, deployment: str | None) -> Spent:
        asked = row.resources
        times = (row.created_at, row.started_at, row.ends_at, row.ended_at)
        return cls(row.id, deployment, asked.nodes, asked.walltime_s, *times)


Row = TypeVar("Row", JobRow, ReplicaRow)


# -- reading -----------------------------------------------------------------------------------------------------------


async def live_jobs(conn: AsyncConnection, cluster: str) -> list[JobRow]:
    """Jobs of a cluster that have not ended, oldest first."""
    query = select(*_JOB).where(jobs.c.cluster == cluster, jobs.c.state.in_(LIVE_JOB_STATES))
    return await _read(conn, JobRow, query.order_by(jobs.c.created_at, jobs.c.id))


async def live_replicas(conn: AsyncConnection, cluster: str) -> list[ReplicaRow]:
    """Replicas on a cluster that have not ended, oldest first."""
    query = select(*_REPLICA).where(replicas.c.cluster == cluster, replicas.c.state.in_(LIVE_REPLICA_STATES))
    return await _read(conn, ReplicaRow, query.order_by(replicas.c.created_at, replicas.c.id))


async def ended_replicas(conn: AsyncConnection, deployment: str) -> list[ReplicaRow]:
    """The last REMEMBERED replicas of a deployment that have ended, newest first."""
    ended = and_(replicas.c.deployment == deployment, replicas.c.state.not_in(LIVE_REPLICA_STATES))
    query = select(*_REPLICA).where(ended).order_by(replicas.c.created_at.desc(), replicas.c.id).limit(REMEMBERED)
    return await _read(conn, ReplicaRow, query)


async def replicas_of(conn: AsyncConnection, job_id: str) -> list[ReplicaRow]:
    """All replicas of one job, in any state."""
    return await _read(conn, ReplicaRow, select(*_REPLICA).where(replicas.c.job_id == job_id))


async def ended_jobs(conn: AsyncConnection, cluster: str, job_ids: Collection[str]) -> list[str]:
    """Those of ``job_ids`` that were of a cluster and have ended."""
    is_one = and_(jobs.c.id.in_(job_ids), jobs.c.cluster == cluster, jobs.c.state.not_in(LIVE_JOB_STATES))
    return [row.id for row in await conn.execute(select(jobs.c.id).where(is_one).order_by(jobs.c.id))]


async def recent(conn: AsyncConnection, since: datetime) -> tuple[list[JobRow], list[ReplicaRow]]:
    """Jobs and replicas that live, or ended after ``since``; oldest first."""
    return (
        await _read(
            conn,
            JobRow,
            select(*_JOB).where(_lived(jobs, LIVE_JOB_STATES, since)).order_by(jobs.c.created_at, jobs.c.id),
        ),
        await _read(
            conn,
            ReplicaRow,
            select(*_REPLICA)
            .where(_lived(replicas, LIVE_REPLICA_STATES, since))
            .order_by(replicas.c.created_at, replicas.c.id),
        ),
    )


async def spent(conn: AsyncConnection, cluster: str, since: datetime) -> list[Spent]:
    """Jobs of a cluster that live, or ended after ``since``, as what they cost; oldest first."""
    of_it = and_(jobs.c.cluster == cluster, jobs.c.created_at > since - LONGEST_JOB)
    counts = or_(jobs.c.ended_at.is_(None), jobs.c.ended_at > since)
    columns = (jobs.c.id, jobs.c.spec, jobs.c.created_at, jobs.c.started_at, jobs.c.ends_at, jobs.c.ended_at)
    found = list(await conn.execute(select(*columns).where(of_it, counts).order_by(jobs.c.created_at, jobs.c.id)))
    query = select(replicas.c.job_id, replicas.c.deployment).where(replicas.c.job_id.in_([row.id for row in found]))
    last_first = query.order_by(replicas.c.created_at.desc(), replicas.c.id.desc())
    whose: dict[str, str] = {row.job_id: row.deployment for row in await conn.execute(last_first)} if found else {}
    return [
        Spent(
            row.id,
            whose.get(row.id),
            int(row.spec.get("nodes", 1)),
            row.spec.get("walltime_s"),
            row.created_at,
            row.started_at,
            row.ends_at,
            row.ended_at,
        )
        for row in found
    ]


async def observed(conn: AsyncConnection, kind: str, subject: str) -> list[Observation]:
    """The last observations of a ``queue_wait`` (of a cluster; WAITS) or ``load_time`` (of a deployment; REMEMBERED),
    newest first. Old waits that do not say when they began are taken to have ended when they were written."""
    query = select(observations).where(observations.c.kind == kind, observations.c.subject == subject)
    newest = query.order_by(observations.c.at.desc(), observations.c.id.desc())
    found = await conn.execute(newest.limit(WAITS if kind == "queue_wait" else REMEMBERED))
    return [Observation(row.seconds, row.forecast_s, row.late_s, row.shape, _began_at(row)) for row in found]


def _began_at(row: Any) -> datetime | None:
    began_at: datetime | None = row.began_at
    if row.kind == "queue_wait" and began_at is None:
        began_at = row.at - timedelta(seconds=min(row.seconds, LONGEST_JOB.total_seconds()))
    return began_at


def _lived(table: Table, live: Collection[str], since: datetime) -> ColumnElement[bool]:
    return or_(table.c.state.in_(live), table.c.ended_at > since)


async def _read(conn: AsyncConnection, kind: type[Row], query: Select[Any]) -> list[Row]:
    """Rows of a query for the columns of ``kind``, in the order of its fields: many are read many times a second."""
    names = [field.name for field in fields(kind)]
    state, resources = names.index("state"), names.index("resources" if kind is JobRow else "needs")
    states = JobState if kind is JobRow else ReplicaState
    found = []
    for row in await conn.execute(query):
        values = list(row)
        values[state] = states(values[state])
        values[resources] = _resources(values[resources])
        found.append(kind(*values))
    return found


def _resources(stored: Any) -> Resources:
    """What is stored as JSON. Most rows have the same few."""
    key = repr(stored)
    known = _RESOURCES.get(key)
    if known is None:
        if len(_RESOURCES) >= SHAPES:
            _RESOURCES.clear()
        known = _RESOURCES[key] = from_dict(Resources, stored, "resources")
    return known


SHAPES = 1000
_RESOURCES: dict[str, Resources] = {}
_JOB = [jobs.c["spec" if field.name == "resources" else field.name] for field in fields(JobRow)]
_REPLICA = [replicas.c[field.name] for field in fields(ReplicaRow)]


# -- writing -----------------------------------------------------------------------------------------------------------


async def add_job(
    conn: AsyncConnection,
    job_id: str,
    cluster: str,
    resources: Resources,
    token_sha256: str,
    at: datetime,
    charge: Charge = NOBODY,
) -> None:
    """A job in state PLANNED: its row is there before any scheduler hears of it."""
    await conn.execute(
        insert(jobs).values(
            id=job_id,
            cluster=cluster,
            state=JobState.PLANNED,
            spec=to_dict(resources),
            account=resources.account or charge.account,
            submit_as=charge.submit_as,
            token_sha256=token_sha256,
            created_at=at,
        )
    )


async def add_replicas(conn: AsyncConnection, new: Sequence[NewReplica], at: datetime) -> None:
    """Replicas in state QUEUED; their jobs must be there."""
    rows = [
        {
            "id": replica.id,
            "job_id": replica.job_id,
            "model": replica.model,
            "deployment": replica.deployment,
            "cluster": replica.cluster,
            "state": ReplicaState.QUEUED,
            "max_in_flight": replica.max_in_flight,
            "needs": to_dict(replica.needs),
            "created_at": at,
        }
        for replica in new
    ]
    if rows:
        await conn.execute(insert(replicas), rows)


async def move_job(conn: AsyncConnection, job_id: str, state: JobState, **facts: Any) -> bool:
    """Move a job to ``state`` and note ``facts``, unless it is there or beyond already; returns whether it moved."""
    return await _move(conn, jobs, job_id, state, facts)


async def move_replica(conn: AsyncConnection, replica_id: str, state: ReplicaState, **facts: Any) -> bool:
    """Move a replica to ``state`` and note ``facts``, unless it is there or beyond; returns whether it moved."""
    return await _move(conn, replicas, replica_id, state, facts)


async def note_job(conn: AsyncConnection, job_id: str, **facts: Any) -> None:
    """Write down what was seen of a job without moving it."""
    await conn.execute(update(jobs).where(jobs.c.id == job_id).values(**facts))


async def note_seen(conn: AsyncConnection, job_ids: Sequence[str], at: datetime) -> None:
    """Write down that jobs were seen as they are known."""
    await conn.execute(update(jobs).where(jobs.c.id.in_(job_ids)).values(observed_at=at))


async def add_observation(conn: AsyncConnection, kind: str, subject: str, seen: Observation, at: datetime) -> None:
    """Remember how long something took."""
    values = {"kind": kind, "subject": subject, "at": at, **asdict(seen), "seconds": max(0.0, seen.seconds)}
    await conn.execute(insert(observations).values(values))


async def _move(
    conn: AsyncConnection, table: Table, key: str, state: JobState | ReplicaState, facts: dict[str, Any]
) -> bool:
    is_earlier = and_(table.c.id == key, table.c.state.in_(earlier_states(state)))
    done = await conn.execute(update(table).where(is_earlier).values(state=state, **facts))
    return done.rowcount == 1


# -- pilots ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a pilot is not let in; ``for_good``: it never will be."""

    reason: str
    for_good: bool = False


async def admit_pilot(db: Database, job_id: str, secret: str, token: str) -> Refused | None:
    """None when this is the pilot of its job, else why not; refusals are audited. Raises StoreUnavailable.

    The first pilot that shows the enrolment token binds its own secret to the job; from then on only that secret opens,
    whoever comes with the token.
    """
    if not job_id.isprintable():
        job_id = ascii(job_id)  # no job of ours, and nothing that every database could be asked for
    async with db.begin() as conn:
        locked = select(jobs).where(jobs.c.id == job_id).with_for_update()  # one pilot at a time, also on PostgreSQL
        job = (await conn.execute(locked)).mappings().one_or_none()
        refusal = _refusal(job, secret, token)
        if refusal is None and job is not None and job["secret_sha256"] is None:
            is_unbound = and_(jobs.c.id == job_id, jobs.c.secret_sha256.is_(None))
            bound = await conn.execute(update(jobs).where(is_unbound).values(secret_sha256=digest(secret)))
            refusal = None if bound.rowcount == 1 else _USED
        if refusal is not None:
            await note(conn, "pilot", "pilot.refuse", job_id, {"reason": refusal.reason})
    return refusal


_USED = Refused("another pilot has this job", for_good=True)


def _refusal(job: Any, secret: str, token: str) -> Refused | None:
    if job is None or not secret:
        return Refused("there is no such job")
    if JobState(job["state"]).is_final:
        return Refused("this job is over", for_good=True)
    if job["secret_sha256"] is not None:
        return None if hmac.compare_digest(job["secret_sha256"], digest(secret)) else _USED
    is_ours = hmac.compare_digest(job["token_sha256"], digest(token))
    return None if is_ours else Refused("the enrolment token is not of this job")
