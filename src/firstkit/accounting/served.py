"""What the store knows of jobs and of what was used of them, in a form that can be attributed.

Every function raises StoreUnavailable.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, Select, and_, case, cast, func, literal_column, or_, select

from firstkit.accounting.attribution import HOUR, Job, Use, Uses, hour_of
from firstkit.accounting.periods import Span
from firstkit.auth.permissions import ProjectNotFound
from firstkit.store.database import Database
from firstkit.store.sql import utc_hour
from firstkit.store.tables import jobs, projects, replicas, usage

AT_ONCE = 200
"""Rows that are worked on before others have their turn: a millisecond."""


class Charged(NamedTuple):
    """Whom the scheduler charged for a job: an account, as it is called there, and a user. Empty: nobody said."""

    cluster: str
    account: str
    submit_as: str


async def first_moment(db: Database) -> datetime | None:
    """Before this no job held nodes and no request arrived."""
    async with db.read() as conn:
        moments = [await conn.scalar(select(func.min(column))) for column in (jobs.c.started_at, usage.c.at)]
    return min((moment for moment in moments if moment is not None), default=None)


async def jobs_within(db: Database, span: Span) -> list[tuple[Job, Charged]]:
    """The jobs that held nodes in ``span``, each until its end or that of ``span``."""
    who = (jobs.c.cluster, jobs.c.account, jobs.c.submit_as)
    nodes = func.coalesce(jobs.c.spec["nodes"].as_integer(), 1).label("nodes")
    query = select(jobs.c.id, *who, nodes, jobs.c.started_at, jobs.c.ends_at, jobs.c.ended_at)
    query = query.where(jobs.c.started_at < span.end, or_(jobs.c.ended_at.is_(None), jobs.c.ended_at > span.begin))
    found = []
    async with db.read() as conn:
        for rows in (await conn.execute(query)).partitions(AT_ONCE):
            await asyncio.sleep(0)
            for row in rows:
                # Ends are noticed late, much so after a pause of the controller. When a job must end, or in the end
                # did, is the scheduler's own word.
                ends = (row.ends_at, row.ended_at, span.end)
                end = min(moment for moment in ends if moment is not None)
                found.append((Job(row.id, row.nodes, row.started_at, end), _charged(row)))
    return found


async def charged_for(db: Database, job_ids: Collection[str]) -> dict[str, Charged]:
    """Whom the scheduler charged for those of ``job_ids`` that there are."""
    query = select(jobs.c.id, jobs.c.cluster, jobs.c.account, jobs.c.submit_as)
    return {row.id: _charged(row) for row in await _of_ids(db, query, jobs.c.id, job_ids)}


async def names_of(db: Database, project_ids: Collection[str]) -> dict[str, str]:
    """The names of those of ``project_ids`` that there are."""
    rows = await _of_ids(db, select(projects.c.id, projects.c.name), projects.c.id, project_ids)
    return {row.id: row.name for row in rows}


async def project_id_of(db: Database, name: str) -> str | None:
    """The id of a project; None: there is none of this name."""
    if not name.isprintable():  # no project of ours, and nothing that every database could be asked for
        return None
    async with db.read() as conn:
        found: str | None = await conn.scalar(select(projects.c.id).where(projects.c.name == name))
    return found


async def known_project_id(db: Database, name: str) -> str:
    """The id of a project; raises ProjectNotFound."""
    project_id = await project_id_of(db, name)
    if project_id is None:
        raise ProjectNotFound(f"There is no project '{name[:100]}'.")
    return project_id


async def uses_within(db: Database, span: Span) -> Uses:
    """What was used of jobs in the whole hours that ``span`` touches, and of that in ``span``."""
    uses: defaultdict[tuple[str, datetime], list[Use]] = defaultdict(list)
    hours: dict[str, datetime] = {}
    async with db.read() as conn:
        for rows in (await conn.execute(_uses(db.dialect, span))).partitions(AT_ONCE):
            await asyncio.sleep(0)
            for job_id, hour, *use in rows:
                if hour not in hours:
                    hours[hour] = datetime.fromisoformat(f"{hour}:00:00+00:00")
                uses[job_id, hours[hour]].append(Use(*use))
    return uses


def _uses(dialect: str, span: Span) -> Select[*tuple[Any, ...]]:
    """One row for each job, hour, project and model, with the fields of a Use."""
    first, last = hour_of(span.begin), _whole_hour(span.end)
    edges = [*([usage.c.at >= span.begin] * (first < span.begin)), *([usage.c.at < span.end] * (span.end < last))]
    tokens = usage.c.prompt_tokens + usage.c.completion_tokens
    hour = utc_hour(usage.c.at, dialect).label("hour")
    groups = (replicas.c.job_id, hour, usage.c.project_id, replicas.c.model)
    sums = (_sum(tokens), _sum(_where(edges, tokens)), _sum(_where(edges, literal_column("1"))))
    query = select(*groups, *sums).select_from(usage.join(replicas, replicas.c.id == usage.c.replica_id))
    return query.where(usage.c.at >= first, usage.c.at < last).group_by(*groups)


def _whole_hour(moment: datetime) -> datetime:
    """``moment``, or when its hour ends."""
    hour = hour_of(moment)
    return moment if hour == moment else hour + HOUR


def _where(conditions: list[ColumnElement[bool]], value: ColumnElement[Any]) -> ColumnElement[Any]:
    return case((and_(*conditions), value), else_=0) if conditions else value


def _sum(column: ColumnElement[Any]) -> ColumnElement[int]:
    """PostgreSQL would give a number of any length."""
    return cast(func.sum(column), BigInteger)


def _charged(row: Any) -> Charged:
    return Charged(row.cluster, row.account or "", row.submit_as or "")


async def _of_ids(db: Database, query: Select[*tuple[Any, ...]], column: Any, ids: Collection[str]) -> list[Any]:
    """Rows of some ids, which may be more than a statement takes."""
    wanted = sorted(ids)
    found: list[Any] = []
    async with db.read() as conn:
        for first in range(0, len(wanted), AT_ONCE):
            found += await conn.execute(query.where(column.in_(wanted[first : first + AT_ONCE])))
    return found
