"""What runs now, in pages and as counts, and only of what is asked for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from firstkit.ids import digest
from firstkit.schedulers.scheduler import Resources
from firstkit.states import JobState, ReplicaState
from firstkit.store.database import Database
from firstkit.store.jobs import NewReplica, add_job, add_replicas, move_job, move_replica, note_job
from firstkit.store.running import job_counts, page

START = datetime(2026, 11, 24, 12, tzinfo=UTC)
ALL = ["m", "other"]


async def add(db: Database, name: str, cluster: str = "polaris", model: str = "m", after_s: float = 0.0) -> None:
    """A job with one replica, both of this name."""
    at = START + timedelta(seconds=after_s)
    new = NewReplica(f"rep-{name}", f"job-{name}", model, f"{model}@{cluster}", cluster, 4, Resources())
    async with db.begin() as conn:
        await add_job(conn, f"job-{name}", cluster, Resources(), digest(name), at)
        await add_replicas(conn, [new], at)


@pytest.fixture
async def four(db: Database) -> None:
    await add(db, "b")
    await add(db, "a", after_s=1)
    await add(db, "c", "sophia", after_s=1)
    await add(db, "d", model="other", after_s=2)


async def ids(
    db: Database, models: list[str], clusters: list[str] | None, limit: int = 9, after: str | None = None
) -> str:
    async with db.read() as conn:
        found = await page(conn, models, clusters, limit, after)
    return "?" if found is None else "".join(row.id[-1] for row in found)


async def test_a_row_has_what_is_known_of_the_job(db: Database) -> None:
    await add(db, "a")
    async with db.begin() as conn:
        await move_job(conn, "job-a", JobState.SUBMITTING)
        await move_job(conn, "job-a", JobState.PENDING, reason="Priority")
        await note_job(conn, "job-a", position=3, starts_at=START)
    async with db.read() as conn:
        found = await page(conn, ALL, None, 9)
    assert found is not None
    [row] = found
    assert (row.model, row.cluster, row.state, row.created_at) == ("m", "polaris", ReplicaState.QUEUED, START)
    assert (row.job_state, row.job_reason, row.position, row.starts_at) == (JobState.PENDING, "Priority", 3, START)


@pytest.mark.parametrize(
    ("models", "clusters", "found"),
    [(ALL, None, "bacd"), (["m"], None, "bac"), (ALL, ["polaris"], "bad"), (["m"], ["sophia"], "c"), ([], None, "")],
)
async def test_only_what_is_asked_for(
    db: Database, four: None, models: list[str], clusters: list[str] | None, found: str
) -> None:
    assert await ids(db, models, clusters) == found


async def test_pages_follow_each_other(db: Database, four: None) -> None:
    pages, after = [], None
    while found := await ids(db, ALL, None, 2, after):
        pages.append(found)
        after = f"rep-{found[-1]}"
    assert pages == ["ba", "cd"]


async def test_a_page_may_begin_behind_what_has_ended(db: Database, four: None) -> None:
    async with db.begin() as conn:
        await move_replica(conn, "rep-a", ReplicaState.STOPPED, ended_at=START)
    assert await ids(db, ALL, None) == "bcd"
    assert await ids(db, ALL, None, after="rep-a") == "cd"


async def test_nobody_learns_by_it_what_they_may_not_see(db: Database, four: None) -> None:
    assert await ids(db, ["m"], None, after="rep-d") == await ids(db, ["m"], None, after="rep-z") == "?"


async def test_counts(db: Database, four: None) -> None:
    async with db.begin() as conn:
        await move_job(conn, "job-a", JobState.SUBMITTING)
        await move_job(conn, "job-a", JobState.RUNNING)
        await move_replica(conn, "rep-c", ReplicaState.STOPPED, ended_at=START)
        second = NewReplica("rep-a2", "job-a", "m", "m@polaris", "polaris", 4, Resources())
        await add_replicas(conn, [second], START)
    async with db.read() as conn:
        counts = await job_counts(conn, ALL, None)
        assert counts == {("polaris", JobState.PLANNED): 2, ("polaris", JobState.RUNNING): 1}
        assert await job_counts(conn, ["other"], ["polaris"]) == {("polaris", JobState.PLANNED): 1}
        assert await job_counts(conn, ALL, ["sophia"]) == {}
