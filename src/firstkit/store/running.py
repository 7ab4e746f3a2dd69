"""What runs, starts and waits now, in pages and as counts: living replicas, and of their jobs what users may see."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from firstkit.states import LIVE_JOB_STATES, LIVE_REPLICA_STATES, JobState, ReplicaState
from firstkit.store.tables import jobs, replicas


@dataclass(frozen=True, slots=True)
class Running:
    """A living replica, and its job as the scheduler shows it."""

    id: str
    job_id: str
    model: str
    cluster: str
    state: ReplicaState
    created_at: datetime
    started_at: datetime | None
    ready_at: datetime | None
    job_state: JobState
    job_reason: str
    job_started_at: datetime | None
    nodes: int
    position: int | None
    starts_at: datetime | None
    ends_at: datetime | None


_COLUMNS = [
    *(
        replicas.c[name]
        for name in ("id", "job_id", "model", "cluster", "state", "created_at", "started_at", "ready_at")
    ),
    *(jobs.c.state.label("job_state"), jobs.c.reason.label("job_reason"), jobs.c.started_at.label("job_started_at")),
    func.coalesce(jobs.c.spec["nodes"].as_integer(), 1).label("nodes"),
    *(jobs.c.position, jobs.c.starts_at, jobs.c.ends_at),
]


async def page(
    conn: AsyncConnection,
    models: Collection[str],
    clusters: Collection[str] | None,
    limit: int,
    after: str | None = None,
) -> list[Running] | None:
    """At most ``limit`` replicas of these models on these clusters, or on all; the oldest first.

    ``after``: those behind the replica of this id, which may have ended; None where there never was such a one.
    """
    is_in = _is_in(models, clusters)
    query = select(*_COLUMNS).join(jobs, jobs.c.id == replicas.c.job_id)
    query = query.where(is_in, replicas.c.state.in_(LIVE_REPLICA_STATES))
    if after is not None:
        came = await conn.execute(select(replicas.c.created_at).where(replicas.c.id == after, is_in))
        place = came.scalar_one_or_none()
        if place is None:
            return None
        beside = and_(replicas.c.created_at == place, replicas.c.id > after)
        query = query.where(or_(replicas.c.created_at > place, beside))
    found = await conn.execute(query.order_by(replicas.c.created_at, replicas.c.id).limit(limit))
    return [_row(stored) for stored in found.mappings()]


async def job_counts(
    conn: AsyncConnection, models: Collection[str], clusters: Collection[str] | None
) -> dict[tuple[str, JobState], int]:
    """Living jobs that have a living replica of these models on these clusters, by cluster and state."""
    query = (
        select(jobs.c.cluster, jobs.c.state, func.count(func.distinct(jobs.c.id)))
        .join(replicas, replicas.c.job_id == jobs.c.id)
        .where(_is_in(models, clusters), jobs.c.state.in_(LIVE_JOB_STATES), replicas.c.state.in_(LIVE_REPLICA_STATES))
        .group_by(jobs.c.cluster, jobs.c.state)
    )
    return {(cluster, JobState(state)): count for cluster, state, count in await conn.execute(query)}


def _is_in(models: Collection[str], clusters: Collection[str] | None) -> ColumnElement[bool]:
    is_of = replicas.c.model.in_(models)
    return is_of if clusters is None else and_(is_of, replicas.c.cluster.in_(clusters))


def _row(stored: Any) -> Running:
    values = {field.name: stored[field.name] for field in fields(Running)}
    states = {"state": ReplicaState(stored["state"]), "job_state": JobState(stored["job_state"])}
    return Running(**{**values, **states})
