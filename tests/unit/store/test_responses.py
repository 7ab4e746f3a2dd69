"""Answers that are kept: found by their owner alone, until they expire."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from firstkit.clock import now
from firstkit.store.database import Database
from firstkit.store.responses import Kept, add_response, delete_expired, delete_response, response_of
from firstkit.store.tables import responses

AT = now().replace(microsecond=0)
HOUR = timedelta(hours=1)
KEPT = Kept("ada", "resp_1", "m", AT, AT + HOUR, '[{"role":"user","content":"h\\u0000i"}]', '{"id":"resp_1","x":"ü"}')


async def keep(db: Database, *kept: Kept) -> None:
    async with db.begin() as conn:
        for each in kept:
            await add_response(conn, each)


async def found(db: Database, user_id: str, response_id: str = "resp_1", after: timedelta = timedelta()) -> Kept | None:
    async with db.read() as conn:
        return await response_of(conn, user_id, response_id, AT + after)


async def count(db: Database) -> int:
    async with db.read() as conn:
        return int(await conn.scalar(select(func.count()).select_from(responses)) or 0)


async def test_it_comes_back_as_it_was(db: Database) -> None:
    await keep(db, KEPT)
    assert await found(db, "ada") == KEPT
    assert await found(db, "ada", "resp_2") is None


async def test_an_id_is_one_of_its_owner(db: Database) -> None:
    theirs = replace(KEPT, user_id="bob", response="{}")
    await keep(db, KEPT, theirs)
    assert await found(db, "bob") == theirs
    assert await found(db, "eve") is None
    async with db.begin() as conn:
        assert not await delete_response(conn, "eve", "resp_1", AT)
        assert await delete_response(conn, "bob", "resp_1", AT)
        assert not await delete_response(conn, "bob", "resp_1", AT)
    assert await found(db, "ada") == KEPT


async def test_an_id_is_taken_once(db: Database) -> None:
    await keep(db, KEPT)
    with pytest.raises(IntegrityError):
        await keep(db, replace(KEPT, response="{}"))
    assert await found(db, "ada") == KEPT


async def test_what_has_expired_is_not_there(db: Database) -> None:
    await keep(db, KEPT)
    assert await found(db, "ada", after=HOUR - timedelta(seconds=1)) == KEPT
    assert await found(db, "ada", after=HOUR) is None
    async with db.begin() as conn:
        assert not await delete_response(conn, "ada", "resp_1", AT + HOUR)


async def test_what_has_expired_is_deleted_in_parts(db: Database) -> None:
    later = [replace(KEPT, id=f"later_{i}", expires_at=AT + 2 * HOUR) for i in range(2)]
    await keep(db, *(replace(KEPT, id=f"resp_{i}", user_id=f"u{i % 2}") for i in range(5)), *later)
    deleted = []
    for _ in range(4):
        async with db.begin() as conn:
            deleted.append(await delete_expired(conn, AT + HOUR, 2))
    assert deleted == [2, 2, 1, 0]
    assert await count(db) == 2
