"""The short way to keys and usage gives the answers of the long one."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import insert

from firstkit.accounting.reports import usage_report
from firstkit.auth import api_keys
from firstkit.cli import keys, sqlite_lists
from firstkit.cli.usage import _fields
from firstkit.clock import now
from firstkit.store import schema, tables
from firstkit.store.database import Database
from usage_entries import usage_entry

GROUPINGS = [(), ("day",), ("project", "model"), ("user", "key", "cluster")]
MOMENTS = [None, datetime(2026, 11, 24, 12, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)]


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/first.db"

    async def fill() -> None:
        db = await Database.open(url)
        await api_keys.create(db, "b", user="ada", scopes=["metrics", "inference"], expires_in_s=90)
        await api_keys.create(db, "a", user="eve", project="p")
        await api_keys.create(db, "late", user="eve", expires_in_s=1e-6)
        await api_keys.create(db, "gone", user="eve")
        await api_keys.revoke(db, "gone", actor="x")
        async with db.begin() as conn:
            for number, model in enumerate(("m", "n", "m")):
                entry = usage_entry(f"r{number}", model=model)
                values = {c.name: getattr(entry, c.name) for c in tables.usage.columns}
                await conn.execute(insert(tables.usage).values(values))
        await db.close()

    asyncio.run(fill())
    return url


def ask(url: str, work: object) -> object:
    async def run() -> object:
        db = await Database.open(url)
        try:
            return await work(db)  # type: ignore[operator]
        finally:
            await db.close()

    return asyncio.run(run())


@pytest.mark.parametrize("include_dead", [False, True])
def test_keys(url: str, include_dead: bool) -> None:
    found = ask(url, lambda db: api_keys.list_keys(db, include_dead=include_dead))
    assert sqlite_lists.list_keys(url, now(), include_dead) == [keys._fields(info) for info in found]  # type: ignore[attr-defined]


@pytest.mark.parametrize("by", GROUPINGS)
@pytest.mark.parametrize("since", MOMENTS)
@pytest.mark.parametrize("until", MOMENTS)
def test_usage(url: str, by: tuple[str, ...], since: datetime | None, until: datetime | None) -> None:
    found = ask(url, lambda db: usage_report(db, by, since, until))
    assert sqlite_lists.usage_report(url, by, since, until) == [_fields(row) for row in found]  # type: ignore[attr-defined]


def test_it_knows_the_schema_of_this_version() -> None:
    assert schema.HEAD == sqlite_lists.SCHEMA


@pytest.mark.parametrize("url", ["postgresql://h/d", "sqlite:////nowhere/first.db", "sqlite:///{}?x=y", "sqlite:///{}"])
def test_what_it_does_not_know_is_left_to_the_long_way(tmp_path: Path, url: str) -> None:
    (tmp_path / "other.db").write_text(json.dumps("not a database"))
    assert sqlite_lists.list_keys(url.format(tmp_path / "other.db"), now(), True) is None
