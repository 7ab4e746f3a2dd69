"""The audit log: what is written stays, and is found."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import delete, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from firstkit.clock import now
from firstkit.errors import StoreUnavailable
from firstkit.store.audit import Entry, Sought, add, find, note
from firstkit.store.database import Database
from firstkit.store.tables import audit


async def found(db: Database, limit: int = 100, **sought: object) -> list[str]:
    async with db.read() as conn:
        return [entry.subject for entry in await find(conn, Sought(**sought), limit)]  # type: ignore[arg-type]


@pytest.fixture
async def written(db: Database) -> None:
    async with db.begin() as conn:
        await note(conn, "ada", "key.create", "first-a", {"scopes": ["inference"]}, "192.0.2.1")
        await note(conn, "bob", "key.revoke", "first-b")
        await note(conn, "bob", "keys", "c")
        await add(conn, [Entry(now() - timedelta(days=2), "ada", "denied", "d", {}, count=7)])


async def test_entries_are_found_by_what_they_say(db: Database, written: None) -> None:
    assert await found(db) == ["d", "c", "first-b", "first-a"]
    assert await found(db, limit=2) == ["d", "c"]
    assert await found(db, actor="ada") == ["d", "first-a"]
    assert await found(db, action="key") == ["first-b", "first-a"], "a group of actions, by whole words"
    assert await found(db, action="key.revoke") == ["first-b"]
    assert await found(db, action="%") == []
    assert await found(db, subject="c") == ["c"]
    assert await found(db, since=now() - timedelta(days=1)) == ["c", "first-b", "first-a"]
    assert await found(db, until=now() - timedelta(days=1)) == ["d"]
    async with db.read() as conn:
        newest, second = await find(conn, Sought(), 2)
    assert newest.count == 7
    assert await found(db, before=second.id) == ["first-b", "first-a"]


async def test_an_entry_is_who_did_what_and_from_where(db: Database, written: None) -> None:
    async with db.read() as conn:
        [entry] = await find(conn, Sought(subject="first-a"), 10)
    row = entry.as_row()
    assert {name: row[name] for name in ("actor", "action", "source", "count")} == {
        "actor": "ada", "action": "key.create", "source": "192.0.2.1", "count": 1,
    }  # fmt: skip
    assert row["details"] == {"scopes": ["inference"]}


@pytest.mark.parametrize("change", [update(audit).values(actor="x"), delete(audit), text("UPDATE audit SET count = 2")])
async def test_nobody_changes_what_was_written(db: Database, written: None, change: object) -> None:
    with pytest.raises((IntegrityError, DBAPIError, StoreUnavailable)):
        async with db.begin() as conn:
            await conn.execute(change)  # type: ignore[call-overload]
    assert len(await found(db)) == 4


async def test_any_text_can_be_written(db: Database) -> None:
    async with db.begin() as conn:
        await note(conn, "a\0b\ud800" + "x" * 300, "denied", "y" * 500, {"message": "é"}, "z" * 200)
    async with db.read() as conn:
        [entry] = await find(conn, Sought(), 1)
    assert (entry.actor[:3], len(entry.actor), len(entry.subject), len(entry.source)) == ("ab?", 200, 300, 100)
