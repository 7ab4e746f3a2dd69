from __future__ import annotations

import asyncio

from sqlalchemy import select

from firstkit.store.clusters import drain, drained, resume
from firstkit.store.database import Database
from firstkit.store.tables import audit


async def say(db: Database, message: str) -> None:
    async with db.begin() as conn:
        await drain(conn, "alpha", "an operator", message)


async def test_drained_resumed_and_audited(db: Database) -> None:
    await say(db, "new cooling")
    await say(db, "newer cooling")
    async with db.begin() as conn:
        found = await drained(conn)
        assert {name: (entry.actor, entry.message) for name, entry in found.items()} == {
            "alpha": ("an operator", "newer cooling")
        }
        assert await resume(conn, "alpha", "another")
        assert not await resume(conn, "alpha", "another")
        assert await drained(conn) == {}
        rows = (await conn.execute(select(audit).order_by(audit.c.id))).all()
    said = [(row.action, row.actor, row.details.get("message", "")) for row in rows]
    assert said == [
        ("cluster.drain", "an operator", "new cooling"),
        ("cluster.drain", "an operator", "newer cooling"),
        ("cluster.resume", "another", ""),
    ]


async def test_two_operators_at_once(db: Database) -> None:
    await asyncio.gather(*(say(db, "a storm") for _ in range(4)))
    async with db.read() as conn:
        assert list(await drained(conn)) == ["alpha"]
        assert len((await conn.execute(select(audit))).all()) == 4
