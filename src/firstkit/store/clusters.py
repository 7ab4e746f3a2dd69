"""Clusters that an operator drained, and why: they take no new requests and no new jobs until they are resumed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from firstkit.clock import now
from firstkit.store.audit import note
from firstkit.store.tables import drained_clusters


@dataclass(frozen=True, slots=True)
class Drained:
    """Since when, by whom, and what people are told."""

    at: datetime
    actor: str
    message: str


async def drained(conn: AsyncConnection) -> dict[str, Drained]:
    """By name: the clusters that are drained now."""
    rows = await conn.execute(select(drained_clusters))
    return {row.name: Drained(row.at, row.actor, row.message) for row in rows}


async def drain(conn: AsyncConnection, name: str, actor: str, message: str, source: str = "") -> None:
    """Drain a cluster; once more changes its message. The caller checks that there is such a cluster."""
    row = {"at": now(), "actor": actor, "message": message}
    again = update(drained_clusters).where(drained_clusters.c.name == name).values(**row)
    if (await conn.execute(again)).rowcount == 0:
        try:
            async with conn.begin_nested():
                await conn.execute(insert(drained_clusters).values(name=name, **row))
        except IntegrityError:  # somebody else drained it in the same moment
            await conn.execute(again)
    await note(conn, actor, "cluster.drain", name, {"message": message}, source)


async def resume(conn: AsyncConnection, name: str, actor: str, source: str = "") -> bool:
    """Take a cluster into service again; returns whether it was drained."""
    done = await conn.execute(delete(drained_clusters).where(drained_clusters.c.name == name))
    if done.rowcount:
        await note(conn, actor, "cluster.resume", name, {}, source)
    return bool(done.rowcount)
