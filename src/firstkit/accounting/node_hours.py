"""Node-hours of jobs, attributed to projects, and summed up as a centre accounts them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from itertools import islice
from typing import NamedTuple

from firstkit.accounting.attribution import MILLION, Job, Part, attribute
from firstkit.accounting.grouping import NodeHourGrouping
from firstkit.accounting.months import day_after, month_after, month_of
from firstkit.accounting.periods import Span
from firstkit.accounting.served import (
    Charged,
    charged_for,
    first_moment,
    jobs_within,
    names_of,
    project_id_of,
    uses_within,
)
from firstkit.clock import now
from firstkit.store.database import Database

AT_ONCE = 200
"""Parts that are summed up before others have their turn: a millisecond."""


@dataclass(frozen=True, slots=True)
class NodeHours:
    """What one project used in [since, until) of the jobs of one account, by FIRST's own attribution.

    ``account`` and ``submit_as``: whom the scheduler charged; empty where nobody said. ``project_id`` is empty for an
    idle project that has no row; a project that is gone is named by its id. ``model``: only where asked for; empty for
    idle time. ``node_hours`` has six decimals. ``since`` None: since ever.
    """

    since: datetime | None
    until: datetime
    cluster: str
    account: str
    submit_as: str
    project_id: str
    project: str
    model: str
    node_hours: float
    tokens: int
    requests: int

    def as_row(self) -> dict[str, str | int | float | None]:
        """Plain values for JSON, CSV and tables, with the times in UTC as ISO 8601."""
        row = {field.name: getattr(self, field.name) for field in fields(self)}  # asdict takes ten times as long
        return {**row, "since": None if self.since is None else _iso(self.since), "until": _iso(self.until)}


async def node_hours(
    db: Database,
    since: datetime | None,
    until: datetime | None,
    idle_project: str,
    by: Collection[NodeHourGrouping | str] = (),
) -> list[NodeHours]:
    """The node-hours of all jobs in [since, until), at most until now, attributed and ordered; ``idle_project``: the
    name of the project that time without tokens goes to.

    Intervals that meet on the hour add up exactly. An hour changes until its last request has ended. Raises ValueError
    for a grouping that does not exist, StoreUnavailable.
    """
    groups = frozenset(NodeHourGrouping(name) for name in by)
    at, first = now(), await first_moment(db)
    end = at if until is None else min(until, at)
    if first is None or end <= (since or first):
        return []
    idle_id = await project_id_of(db, idle_project) or ""
    sums = await _sums(db, Span(first if since is None else max(first, since), end), groups, idle_id)
    names = {**await names_of(db, {key.project_id for key in sums}), idle_id: idle_project}
    return await asyncio.to_thread(_rows, sums, since, end, names)  # they may be many


class _Key(NamedTuple):
    """What a row is of. ``month``: when it began; None where months are not told apart."""

    month: datetime | None
    charged: Charged
    project_id: str
    model: str


_Total = tuple[int, int, int]
"""Millionths of node-hours, tokens, requests."""


async def _sums(db: Database, span: Span, groups: frozenset[NodeHourGrouping], idle_id: str) -> dict[_Key, _Total]:
    """Day by day, so that neither a statement nor what it finds grows with the interval."""
    found = await jobs_within(db, span)
    charged = {job.id: to for job, to in found}
    sums: dict[_Key, _Total] = {}
    for day, jobs in _by_day((job for job, _ in found), span):
        uses = await uses_within(db, day)
        charged |= await charged_for(db, {job_id for job_id, _ in uses} - charged.keys())
        month = month_of(day.begin) if NodeHourGrouping.MONTH in groups else None
        parts = attribute(jobs, uses, *day, idle_id)
        while some := list(islice(parts, AT_ONCE)):
            _add(sums, some, charged, month, NodeHourGrouping.MODEL in groups)
            await asyncio.sleep(0)
    return sums


def _add(
    sums: dict[_Key, _Total], parts: list[Part], charged: dict[str, Charged], month: datetime | None, by_model: bool
) -> None:
    for part in parts:
        key = _Key(month, charged[part.job_id], part.project_id, part.model if by_model else "")
        millionths, tokens, requests = sums.get(key, (0, 0, 0))
        sums[key] = (millionths + part.millionths, tokens + part.tokens, requests + part.requests)


def _by_day(jobs: Iterable[Job], span: Span) -> Iterator[tuple[Span, list[Job]]]:
    """The days of ``span``, each with the jobs that hold nodes in it."""
    later = deque(sorted(jobs, key=lambda job: job.started_at))
    holding: list[Job] = []
    begin = span.begin
    while begin < span.end:
        end = min(day_after(begin), span.end)
        holding = [job for job in holding if job.ended_at > begin]
        while later and later[0].started_at < end:
            holding.append(later.popleft())
        yield Span(begin, end), holding
        begin = end


def _rows(
    sums: Mapping[_Key, _Total], since: datetime | None, until: datetime, names: Mapping[str, str]
) -> list[NodeHours]:
    """Ordered here, not by the database: PostgreSQL's collation would differ from SQLite's."""
    rows = [_row(key, total, since, until, names) for key, total in sums.items() if any(total)]
    return sorted(rows, key=_order)


def _row(key: _Key, total: _Total, since: datetime | None, until: datetime, names: Mapping[str, str]) -> NodeHours:
    millionths, tokens, requests = total
    if key.month is not None:
        since, until = max(since or key.month, key.month), min(until, month_after(key.month))
    project = names.get(key.project_id, key.project_id)
    return NodeHours(
        since, until, *key.charged, key.project_id, project, key.model, millionths / MILLION, tokens, requests
    )


def _order(row: NodeHours) -> tuple[object, ...]:
    return (row.until, row.cluster, row.account, row.submit_as, row.project, row.project_id, row.model)


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
