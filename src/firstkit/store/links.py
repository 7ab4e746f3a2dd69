"""What links need to know of jobs."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from firstkit.states import JobState
from firstkit.store.tables import jobs


async def addresses(conn: AsyncConnection, clusters: Collection[str]) -> dict[str, str]:
    """Where the pilots of the jobs that run on these clusters can be dialled, by job, as far as it is known."""
    is_there = jobs.c.cluster.in_(clusters) & (jobs.c.state == JobState.RUNNING) & jobs.c.address.is_not(None)
    return {row.id: row.address for row in await conn.execute(select(jobs.c.id, jobs.c.address).where(is_there))}
