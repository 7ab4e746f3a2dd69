"""Whether schedulers answered when they were asked: a row for each cluster and hour."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import and_, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from firstkit.store.tables import polls


@dataclass(frozen=True, slots=True)
class Polled:
    """One hour of a cluster: the minutes in which its scheduler was asked and answered, and those in which it did not.
    ``hour``: when it began."""

    hour: datetime
    good: int
    failed: int


async def polled(conn: AsyncConnection, cluster: str, since: datetime) -> list[Polled]:
    """The hours of a cluster that began at ``since`` or later, oldest first."""
    is_one = and_(polls.c.cluster == cluster, polls.c.hour >= since)
    found = await conn.execute(select(polls.c.hour, polls.c.good, polls.c.failed).where(is_one).order_by(polls.c.hour))
    return [Polled(*row) for row in found]


async def add_minute(conn: AsyncConnection, cluster: str, hour: datetime, *, is_good: bool) -> None:
    """Count one more minute of an hour. One process writes: the controller."""
    count = polls.c.good if is_good else polls.c.failed
    is_one = and_(polls.c.cluster == cluster, polls.c.hour == hour)
    done = await conn.execute(update(polls).where(is_one).values({count.name: count + 1}))
    if done.rowcount == 0:
        values = {"cluster": cluster, "hour": hour, "good": int(is_good), "failed": int(not is_good)}
        await conn.execute(insert(polls).values(values))


async def forget_polls(conn: AsyncConnection, cluster: str, before: datetime) -> None:
    """Remove the hours of a cluster that began before then."""
    await conn.execute(delete(polls).where(polls.c.cluster == cluster, polls.c.hour < before))
