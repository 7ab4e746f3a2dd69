from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert

from firstkit.accounting.grouping import Grouping
from firstkit.accounting.reports import UsageRow, usage_report
from firstkit.clock import now
from firstkit.store.database import Database
from firstkit.store.tables import projects, usage, users
from usage_entries import usage_entry

DAY = datetime(2026, 11, 1, 23, 59, 59, 999999, tzinfo=UTC)


@pytest.fixture
async def filled(db: Database) -> Database:
    rows: list[dict[str, Any]] = [
        {"model": "m"},
        {"model": "m", "estimated": True, "outcome": "lost", "cluster": None},
        {"model": "Z", "at": DAY + timedelta(microseconds=1), "user_id": "u2", "outcome": "cancelled"},
        {"model": "é", "at": DAY + timedelta(days=2), "project_id": "gone", "completion_tokens": 2**40},
    ]
    async with db.begin() as conn:
        await conn.execute(insert(users).values([{"id": "u1", "name": "ada", "created_at": now(), "is_admin": False}]))
        await conn.execute(insert(projects).values([{"id": "p1", "name": "climate", "created_at": now()}]))
        for number, row in enumerate(rows):
            entry = usage_entry(str(number), **{"at": DAY, **row})
            await conn.execute(insert(usage).values({c.name: getattr(entry, c.name) for c in usage.columns}))
    return db


async def test_without_grouping_all_is_summed(filled: Database) -> None:
    assert await usage_report(filled) == [UsageRow({}, 4, 40, 15 + 2**40, 1, 2)]


async def test_nothing_used_is_zero(db: Database) -> None:
    assert await usage_report(db) == [UsageRow({}, 0, 0, 0, 0, 0)]
    assert await usage_report(db, ["model"]) == []


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        ("day", ["2026-11-01", "2026-11-02", "2026-11-03"]),
        ("model", ["Z", "m", "é"]),
        ("user", ["ada", "u2"]),
        ("project", ["climate", "gone"]),
        ("key", ["abcdefghijkl"]),
        ("cluster", ["", "here"]),
    ],
)
async def test_groupings_are_ordered_alike_on_every_database(filled: Database, by: str, groups: list[str]) -> None:
    assert [row.group[by] for row in await usage_report(filled, [by])] == groups


async def test_several_groupings_in_the_order_asked_for(filled: Database) -> None:
    rows = await usage_report(filled, ["project", Grouping.DAY, "project"])
    assert [list(row.group.items()) for row in rows] == [
        [("project", "climate"), ("day", "2026-11-01")],
        [("project", "climate"), ("day", "2026-11-02")],
        [("project", "gone"), ("day", "2026-11-03")],
    ]
    assert [row.requests for row in rows] == [2, 1, 1]


async def test_from_and_until(filled: Database) -> None:
    midnight = datetime(2026, 11, 2, tzinfo=UTC)
    assert [row.requests for row in await usage_report(filled, since=midnight)] == [2]
    assert [row.requests for row in await usage_report(filled, until=midnight)] == [2]
    assert [row.requests for row in await usage_report(filled, (), midnight, midnight + timedelta(days=1))] == [1]


async def test_unknown_groupings_are_refused(db: Database) -> None:
    with pytest.raises(ValueError, match="colour"):
        await usage_report(db, ["colour"])


async def test_of_one_user_or_project_alone(filled: Database) -> None:
    assert [row.requests for row in await usage_report(filled, user_id="u1")] == [3]
    assert [row.requests for row in await usage_report(filled, project_id="p1")] == [3]
    assert [row.requests for row in await usage_report(filled, user_id="u1", project_id="p1")] == [2]
    assert await usage_report(filled, ["model"], user_id="nobody") == []
