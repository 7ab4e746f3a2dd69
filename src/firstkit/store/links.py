"""What links need to know of jobs."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from firstkit.states import JobState
from firstkit.store.tables import jobs


async def is_over(conn: AsyncConnection, job_id: str) -> bool:
    """Whether the job is in the books and has ended there."""
    state = (await conn.execute(select(jobs.c.state).where(jobs.c.id == job_id))).scalar_one_or_none()
    return state is not None and JobState(state).is_final


async def addresses(conn: AsyncConnection, clusters: Collection[str]) -> dict[str, str]:
    """Where the pilots of the jobs that run on these clusters can be dialled, by job, as far as it is known."""
    is_there = jobs.c.cluster.in_(clusters) & (jobs.c.state == JobState.RUNNING) & jobs.c.address.is_not(None)
    return {row.id: row.address for row in await conn.execute(select(jobs.c.id, jobs.c.address).where(is_there))}
