"""What was used, by whom, summed up by the database."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, case, func, select

from firstkit.accounting.grouping import Grouping
from firstkit.links.messages import Outcome
from firstkit.store.database import Database
from firstkit.store.sql import utc_day
from firstkit.store.tables import projects, usage, users


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One line of a report: the values of its grouping, and sums.

    ``estimated``: requests whose tokens are an estimate of ours; ``failed``: requests that did not end complete, be it
    for the engine or for the client that went away.
    """

    group: dict[str, str]
    requests: int
    prompt_tokens: int
    completion_tokens: int
    estimated: int
    failed: int

    def as_row(self) -> dict[str, str | int]:
        """Plain values for JSON, CSV and tables, the grouping first."""
        numbers = asdict(self)
        return {**numbers.pop("group"), **numbers}


async def usage_report(
    db: Database,
    by: Collection[Grouping | str] = (),
    since: datetime | None = None,
    until: datetime | None = None,
    *,
    user_id: str | None = None,
    project_id: str | None = None,
) -> list[UsageRow]:
    """Usage of requests that arrived in [since, until), of one user or project or of all, broken down and ordered by
    ``by``; without it, one row of sums.

    Raises ValueError for a grouping that does not exist, StoreUnavailable.
    """
    groups = list(dict.fromkeys(Grouping(name) for name in by))
    query = _query({group.value: _column(group, db.dialect) for group in groups}, since, until)
    for column, value in ((usage.c.user_id, user_id), (usage.c.project_id, project_id)):
        if value is not None:
            query = query.where(column == value)
    async with db.read() as conn:
        found = (await conn.execute(query)).mappings().all()
    return await asyncio.to_thread(_rows, found, groups)  # they may be many


def _query(
    columns: dict[str, ColumnElement[str]], since: datetime | None, until: datetime | None
) -> Select[*tuple[Any, ...]]:
    labels = [column.label(name) for name, column in columns.items()]
    query = select(
        *labels,
        func.count().label("requests"),
        _sum(usage.c.prompt_tokens).label("prompt_tokens"),
        _sum(usage.c.completion_tokens).label("completion_tokens"),
        _sum(case((usage.c.estimated, 1), else_=0)).label("estimated"),
        _sum(case((usage.c.outcome == Outcome.COMPLETE.value, 0), else_=1)).label("failed"),
    ).select_from(
        usage.outerjoin(users, users.c.id == usage.c.user_id).outerjoin(projects, projects.c.id == usage.c.project_id)
    )
    if since is not None:
        query = query.where(usage.c.at >= since)
    if until is not None:
        query = query.where(usage.c.at < until)
    return query.group_by(*labels) if labels else query


def _sum(column: ColumnElement[Any]) -> ColumnElement[int]:
    return func.coalesce(func.sum(column), 0)


def _column(group: Grouping, dialect: str) -> ColumnElement[str]:
    """The name that people know; the id where a user or project has no row any more."""
    columns: dict[Grouping, ColumnElement[str]] = {
        Grouping.DAY: utc_day(usage.c.at, dialect),
        Grouping.PROJECT: func.coalesce(projects.c.name, usage.c.project_id),
        Grouping.USER: func.coalesce(users.c.name, usage.c.user_id),
        Grouping.KEY: usage.c.key_prefix,
        Grouping.MODEL: usage.c.model,
        Grouping.CLUSTER: func.coalesce(usage.c.cluster, ""),
    }
    return columns[group]


def _rows(found: Iterable[Any], groups: list[Grouping]) -> list[UsageRow]:
    """Ordered here, not by the database: PostgreSQL's collation would differ from SQLite's."""
    return sorted((_row(row, groups) for row in found), key=lambda row: tuple(row.group.values()))


def _row(row: Any, groups: list[Grouping]) -> UsageRow:
    return UsageRow(
        group={group.value: row[group.value] for group in groups},
        requests=row["requests"],
        prompt_tokens=int(row["prompt_tokens"]),
        completion_tokens=int(row["completion_tokens"]),
        estimated=int(row["estimated"]),
        failed=int(row["failed"]),
    )
