from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import insert, select
from sqlalchemy.exc import StatementError

from firstkit.store.database import Database
from firstkit.store.sql import insert_new, utc_day, utc_hour
from firstkit.store.tables import projects


async def test_insert_new_leaves_a_row_alone_that_is_there(db: Database) -> None:
    first = {"id": "p1", "name": "p", "description": "first", "created_at": datetime(2026, 1, 1, tzinfo=UTC)}
    for row in (first, {**first, "description": "second"}, {**first, "id": "p2"}):
        async with db.begin() as conn:
            await conn.execute(insert_new(projects, db.dialect).values(row))
    async with db.read() as conn:
        assert (await conn.execute(select(projects.c.id, projects.c.description))).all() == [("p1", "first")]


@pytest.mark.parametrize("hours", [-12, 0, 12])
async def test_days_are_those_of_utc(db: Database, hours: int) -> None:
    at = datetime(2026, 3, 1, 0, 30, tzinfo=UTC).astimezone(timezone(timedelta(hours=hours)))
    async with db.begin() as conn:
        await conn.execute(insert(projects).values(id="p", name="p", created_at=at))
    async with db.read() as conn:
        assert await conn.scalar(select(utc_day(projects.c.created_at, db.dialect))) == "2026-03-01"


@pytest.mark.parametrize("minutes", [-570, 0, 345])
async def test_hours_are_those_of_utc(db: Database, minutes: int) -> None:
    at = datetime(2026, 3, 1, 0, 59, 59, 999999, tzinfo=UTC).astimezone(timezone(timedelta(minutes=minutes)))
    async with db.begin() as conn:
        await conn.execute(insert(projects).values(id="p", name="p", created_at=at))
    async with db.read() as conn:
        assert await conn.scalar(select(utc_hour(projects.c.created_at, db.dialect))) == "2026-03-01 00"


async def test_times_without_a_zone_are_refused(db: Database) -> None:
    with pytest.raises(StatementError, match="aware"):
        async with db.begin() as conn:
            await conn.execute(insert(projects).values(id="p", name="p", created_at=datetime(2026, 1, 1)))
