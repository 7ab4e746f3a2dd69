"""Budgets in the store: set, changed, removed, each with its line in the audit log; and sums of the ledger."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert, select

from firstkit.auth.permissions import ProjectNotFound
from firstkit.clock import now
from firstkit.store import budgets as module
from firstkit.store.budgets import (
    SLICE,
    BudgetNotFound,
    NewBudget,
    StoredBudget,
    Used,
    ids_of,
    names_of,
    remove_budget,
    set_budget,
    slices,
    stored_budgets,
    used_tokens,
)
from firstkit.store.database import Database
from firstkit.store.people import UserNotFound
from firstkit.store.tables import audit, projects, usage, users
from usage_entries import AT, usage_entry

WHO = {"actor": "grace", "source": "192.0.2.7"}


@pytest.fixture
async def people(db: Database) -> Database:
    """A store with a user and two projects, whose ids are not their names."""
    async with db.begin() as conn:
        await conn.execute(insert(users).values(id="u1", name="ada", is_admin=False, created_at=now()))
        for number, name in enumerate(("fusion", "climate"), 1):
            await conn.execute(insert(projects).values(id=f"p{number}", name=name, description="", created_at=now()))
    return db


def new(**values: Any) -> NewBudget:
    usual: dict[str, Any] = dict.fromkeys(NewBudget._fields)
    return NewBudget(**{**usual, "tokens": 1000, "period": "month", "stop": "hard", "warn_at": 0.8, **values})


async def all_of(db: Database) -> list[StoredBudget]:
    async with db.read() as conn:
        return [row async for rows in stored_budgets(conn) for row in rows]


async def acts(db: Database) -> list[Any]:
    async with db.read() as conn:
        found = await conn.execute(select(audit).order_by(audit.c.id))
        return [row for row in found if row.action.startswith("budget.")]


async def test_a_budget_comes_back_as_it_was_set(people: Database) -> None:
    made = await set_budget(people, new(project="fusion", user="ada", model="m", warn_at=0.5), **WHO)
    assert await all_of(people) == [made]
    assert (made.project_id, made.user_id, made.project, made.user) == ("p1", "u1", "fusion", "ada")
    [act] = await acts(people)
    assert (act.actor, act.action, act.subject, act.source) == ("grace", "budget.set", made.id, "192.0.2.7")
    assert act.details == made.as_row()
    assert act.details.keys() == {*NewBudget._fields, "id"}


async def test_what_is_set_again_is_changed(people: Database) -> None:
    made = await set_budget(people, new(project="fusion"), **WHO)
    changed = await set_budget(people, new(project="fusion", tokens=5, stop="soft"), **WHO)
    assert changed == made._replace(tokens=5, stop="soft")
    assert await all_of(people) == [changed]
    assert len(await acts(people)) == 2


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"project": "climate"},
        {"project": "fusion", "user": "ada"},
        {"project": "fusion", "model": "m"},
        {"project": "fusion", "each": "user"},
        {"project": "fusion", "period": "day"},
        {"project": "fusion", "tokens": None, "node_hours": 2.5},
    ],
)
async def test_budgets_of_other_use_units_or_periods_stand_beside_it(people: Database, other: dict[str, Any]) -> None:
    first = await set_budget(people, new(project="fusion"), **WHO)
    second = await set_budget(people, new(**other), **WHO)
    assert await all_of(people) == [first, second]


async def test_two_who_set_the_same_at_once_make_one(people: Database) -> None:
    await asyncio.gather(*(set_budget(people, new(project="fusion", tokens=number), **WHO) for number in range(5)))
    assert len(await all_of(people)) == 1


async def test_who_is_not_there_gets_no_budget(people: Database) -> None:
    for name in ("nobody", "a\0b", "\ud800", ""):
        with pytest.raises(ProjectNotFound):
            await set_budget(people, new(project=name), **WHO)
        with pytest.raises(UserNotFound):
            await set_budget(people, new(user=name), **WHO)
    assert await acts(people) == []


async def test_a_removed_budget_is_gone(people: Database) -> None:
    made = await set_budget(people, new(), **WHO)
    assert await remove_budget(people, made.id, **WHO) == made
    assert await all_of(people) == []
    assert [(act.action, act.subject) for act in await acts(people)][1:] == [("budget.remove", made.id)]
    for nobody in (made.id, "", "a\0b", "\ud800", "x" * 1000):
        with pytest.raises(BudgetNotFound):
            await remove_budget(people, nobody, **WHO)


async def test_a_budget_ends_with_its_project(people: Database) -> None:
    await set_budget(people, new(project="climate"), **WHO)
    async with people.begin() as conn:
        await conn.execute(projects.delete().where(projects.c.name == "climate"))
    assert await all_of(people) == []


async def test_names_and_ids(people: Database) -> None:
    async with people.read() as conn:
        assert await ids_of(conn, projects, {"fusion", "nobody"}) == {"fusion": "p1"}
        assert await ids_of(conn, users, set()) == {}
        assert await names_of(conn, projects, {"p1", "p2", "p9"}) == {"p1": "fusion", "p2": "climate"}


# -- the ledger --------------------------------------------------------------------------------------------------------


async def note(db: Database, request_id: str, **values: Any) -> None:
    entry = usage_entry(request_id, **values)
    async with db.begin() as conn:
        await conn.execute(insert(usage).values({c.name: getattr(entry, c.name) for c in usage.columns}))


async def sums(db: Database, *span: datetime, **only: Any) -> dict[tuple[str, str, str], int]:
    found: dict[tuple[str, str, str], int] = {}
    async with db.read() as conn:
        async for rows in used_tokens(conn, *span, **only):
            for row in rows:
                assert isinstance(row, Used)
                assert type(row.tokens) is int
                found[row[:3]] = found.get(row[:3], 0) + row.tokens
    return found


async def test_sums_by_whom_and_of_what(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 2)
    later = AT + timedelta(days=40)
    for number, outcome in enumerate(("complete", "failed", "lost")):
        await note(db, f"a{number}", outcome=outcome)
    await note(db, "b", user_id="u2", prompt_tokens=2**40)
    await note(db, "c", project_id="p2", model="n", at=later)
    await note(db, "before", at=AT - timedelta(microseconds=1))
    await note(db, "after", at=later + timedelta(microseconds=1))
    of_u1, of_u2, of_p2 = ("p1", "u1", "m"), ("p1", "u2", "m"), ("p2", "u1", "n")
    span = (AT, later + timedelta(microseconds=1))
    assert await sums(db, *span) == {of_u1: 45, of_u2: 2**40 + 5, of_p2: 15}
    assert await sums(db, *span, only={"project_id": {"p2", "p3"}}) == {of_p2: 15}
    assert await sums(db, *span, only={"user_id": {"u2"}}) == {of_u2: 2**40 + 5}
    assert await sums(db, *span, only={"user_id": {"u2"}, "project_id": {"p2"}}) == {}
    assert await sums(db, *span, by={"user_id"}) == {("", "u1", ""): 60, ("", "u2", ""): 2**40 + 5}
    assert await sums(db, *span, by=()) == {("", "", ""): 2**40 + 65}
    assert await sums(db, *span, by=(), only={"model": {"no such"}}) == {("", "", ""): 0}
    assert await sums(db, later + timedelta(days=1), datetime.max.replace(tzinfo=UTC)) == {}
    assert sum((await sums(db, datetime(1970, 1, 1, tzinfo=UTC), datetime.max.replace(tzinfo=UTC))).values()) == (
        15 * 6 + 2**40 + 5
    )


def test_slices_make_up_the_whole() -> None:
    end = AT + timedelta(days=365)
    found = list(slices(AT, end, AT + timedelta(days=20)))
    assert found[0] == (AT, AT + SLICE)
    assert [since for since, _ in found[1:]] == [until for _, until in found[:-1]]
    assert (len(found), found[-1][1]) == (3, end)
    assert list(slices(AT, end, AT)) == [(AT, end)]
    assert list(slices(AT, AT + SLICE, end)) == [(AT, AT + SLICE)]
    assert len(list(slices(AT, AT + 2 * SLICE, end))) == 2
