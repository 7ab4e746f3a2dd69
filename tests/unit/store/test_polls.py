from __future__ import annotations

from datetime import UTC, datetime, timedelta

from firstkit.store.database import Database
from firstkit.store.polls import Polled, add_minute, forget_polls, polled

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
ONE_O_CLOCK = NOON + timedelta(hours=1)


async def test_minutes_are_counted_by_cluster_and_hour(db: Database) -> None:
    async with db.begin() as conn:
        for hour, is_good in ((NOON, True), (NOON, True), (NOON, False), (ONE_O_CLOCK, False)):
            await add_minute(conn, "here", hour, is_good=is_good)
        await add_minute(conn, "there", NOON, is_good=True)
        assert await polled(conn, "here", NOON) == [Polled(NOON, 2, 1), Polled(ONE_O_CLOCK, 0, 1)]
        assert await polled(conn, "here", ONE_O_CLOCK) == [Polled(ONE_O_CLOCK, 0, 1)]
        assert await polled(conn, "there", NOON) == [Polled(NOON, 1, 0)]


async def test_old_hours_are_forgotten_of_one_cluster(db: Database) -> None:
    async with db.begin() as conn:
        for cluster in ("here", "there"):
            await add_minute(conn, cluster, NOON, is_good=True)
            await add_minute(conn, cluster, ONE_O_CLOCK, is_good=True)
        await forget_polls(conn, "here", ONE_O_CLOCK)
        assert [one.hour for one in await polled(conn, "here", NOON)] == [ONE_O_CLOCK]
        assert len(await polled(conn, "there", NOON)) == 2
