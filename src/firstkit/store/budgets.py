"""Budgets in the store, beside those of the configuration; and what the ledger has of their periods."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, Select, Table, and_, delete, func, insert, literal, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from firstkit.auth.names import is_name
from firstkit.clock import now
from firstkit.errors import NotFound
from firstkit.ids import new_id
from firstkit.store.audit import note
from firstkit.store.database import Database
from firstkit.store.people import UserNotFound, project_id_of
from firstkit.store.tables import budgets, projects, usage, users

AT_ONCE = 200
"""Rows that are taken at once: a millisecond."""
SLICE = timedelta(days=7)
"""Of the ledger, that is summed up by one statement."""


class BudgetNotFound(NotFound):
    """There is no such budget among those that were set: those of the configuration are changed there."""

    code = "budget_not_found"


class StoredBudget(NamedTuple):
    """A row of the table, with the names of its project and user. One of ``tokens`` and ``node_hours`` is there."""

    id: str
    project_id: str | None
    user_id: str | None
    model: str | None
    each: str | None
    tokens: int | None
    node_hours: float | None
    period: str
    stop: str
    warn_at: float
    project: str | None
    user: str | None

    def as_row(self) -> dict[str, Any]:
        """Plain values for JSON, without ids of others."""
        values = self._asdict()
        return {name: value for name, value in values.items() if name not in ("project_id", "user_id")}


class NewBudget(NamedTuple):
    """A budget to be made, by names; values as of the configuration, which has checked them."""

    project: str | None
    user: str | None
    model: str | None
    each: str | None
    tokens: int | None
    node_hours: float | None
    period: str
    stop: str
    warn_at: float


class Used(NamedTuple):
    """Tokens of the ledger, by whom and of what; empty where that was not asked for."""

    project_id: str
    user_id: str
    model: str
    tokens: int


Column = Literal["project_id", "user_id", "model"]


# -- definitions -------------------------------------------------------------------------------------------------------


async def stored_budgets(conn: AsyncConnection) -> AsyncIterator[list[StoredBudget]]:
    """All budgets of the table, oldest first, some at a time."""
    found = await conn.stream(_budgets().order_by(budgets.c.created_at, budgets.c.id))
    async for rows in found.partitions(AT_ONCE):
        yield [StoredBudget(*row) for row in rows]


async def ids_of(conn: AsyncConnection, table: Table, names: Collection[str]) -> dict[str, str]:
    """By name: the ids of the projects, or users, of ``names`` that are there."""
    return {row.name: row.id for row in await conn.execute(_named(table, table.c.name, names))} if names else {}


async def names_of(conn: AsyncConnection, table: Table, ids: Collection[str]) -> dict[str, str]:
    """By id: the names of projects, or users."""
    return {row.id: row.name for row in await conn.execute(_named(table, table.c.id, ids))} if ids else {}


def _named(table: Table, column: ColumnElement[str], wanted: Collection[str]) -> Select[Any]:
    return select(table.c.id, table.c.name).where(column.in_(wanted))


async def set_budget(db: Database, new: NewBudget, *, actor: str, source: str = "") -> StoredBudget:
    """Make a budget; one for the same use, unit and period takes the new values instead. Raises ProjectNotFound,
    UserNotFound."""
    async with db.begin() as conn:
        of_whom = await _of_whom(conn, new)
        values = {"tokens": new.tokens, "node_hours": new.node_hours, "stop": new.stop, "warn_at": new.warn_at}
        if db.dialect == "postgresql":  # on SQLite there is one writer anyway
            await conn.execute(text("LOCK TABLE budgets IN SHARE ROW EXCLUSIVE MODE"))
        is_same = and_(*(budgets.c[name].is_not_distinct_from(value) for name, value in of_whom.items()))
        has_unit = (budgets.c.tokens if new.node_hours is None else budgets.c.node_hours).is_not(None)
        budget_id = (await conn.execute(select(budgets.c.id).where(is_same, has_unit))).scalars().first()
        if budget_id is None:
            budget_id = new_id("budget")
            await conn.execute(insert(budgets).values(id=budget_id, **of_whom, **values, created_at=now()))
        else:
            await conn.execute(update(budgets).where(budgets.c.id == budget_id).values(**values))
        made = await _budget(conn, budget_id)
        await note(conn, actor, "budget.set", made.id, made.as_row(), source)
    return made


async def remove_budget(db: Database, budget_id: str, *, actor: str, source: str = "") -> StoredBudget:
    """Remove a budget of the table; returns what it was. Raises BudgetNotFound."""
    async with db.begin() as conn:
        gone = await _budget(conn, budget_id)
        if (await conn.execute(delete(budgets).where(budgets.c.id == gone.id))).rowcount == 0:
            raise BudgetNotFound  # somebody else was faster
        await note(conn, actor, "budget.remove", gone.id, gone.as_row(), source)
    return gone


async def _of_whom(conn: AsyncConnection, new: NewBudget) -> dict[str, str | None]:
    """What a budget is for, in the columns of the table."""
    user_id = None
    if new.user is not None:
        user_id = (await ids_of(conn, users, [new.user])).get(new.user) if is_name(new.user) else None
        if user_id is None:
            raise UserNotFound(f"There is no user '{new.user[:100]}'.")
    project_id = None if new.project is None else await project_id_of(conn, new.project)
    kind = {"model": new.model, "each": new.each, "period": new.period}
    return {"project_id": project_id, "user_id": user_id, **kind}


def _budgets() -> Select[Any]:
    columns = [budgets.c[name] for name in StoredBudget._fields if name not in ("project", "user")]
    joined = budgets.outerjoin(projects, projects.c.id == budgets.c.project_id)
    joined = joined.outerjoin(users, users.c.id == budgets.c.user_id)
    return select(*columns, projects.c.name, users.c.name).select_from(joined)


async def _budget(conn: AsyncConnection, budget_id: str) -> StoredBudget:
    query = _budgets().where(budgets.c.id == budget_id)
    found = (await conn.execute(query)).one_or_none() if is_name(budget_id) else None
    if found is None:
        raise BudgetNotFound
    return StoredBudget(*found)


# -- the ledger --------------------------------------------------------------------------------------------------------


async def used_tokens(
    conn: AsyncConnection,
    begin: datetime,
    end: datetime,
    by: Collection[Column] = ("project_id", "user_id", "model"),
    only: Mapping[Column, Collection[str]] | None = None,
) -> AsyncIterator[list[Used]]:
    """Sums of tokens of requests that arrived in [begin, end), broken down by some columns, some rows at a time. A sum
    may come in several parts. ``only``: of rows with these values."""
    first = (await conn.execute(select(func.min(usage.c.at)).where(usage.c.at >= begin))).scalar_one()
    if first is None:
        return
    columns = [usage.c[name] if name in by else literal("").label(name) for name in _WHO]
    tokens = func.sum(usage.c.prompt_tokens + usage.c.completion_tokens)
    sums = select(*columns, tokens).group_by(*(usage.c[name] for name in _WHO if name in by))
    sums = sums.where(*(usage.c[name].in_(values) for name, values in (only or {}).items()))
    for since, until in slices(max(begin, first), end, now()):
        result = await conn.stream(sums.where(usage.c.at >= since, usage.c.at < until))
        async for rows in result.partitions(AT_ONCE):
            yield [Used(row[0], row[1], row[2], int(row[3] or 0)) for row in rows]


def slices(begin: datetime, end: datetime, at: datetime) -> Iterable[tuple[datetime, datetime]]:
    """[begin, end) in intervals of a SLICE; in the last is all that comes after ``at``."""
    while begin + SLICE < min(at, end):
        yield begin, begin + SLICE
        begin += SLICE
    yield begin, end


_WHO: tuple[Column, ...] = ("project_id", "user_id", "model")
