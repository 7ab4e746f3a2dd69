"""Node-hours from the store: exact sums on every database, and nothing where no job held nodes."""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction
from typing import Any

import pytest
from sqlalchemy import delete, insert, update

from firstkit.accounting import node_hours as module
from firstkit.accounting.node_hours import NodeHours, node_hours
from firstkit.accounting.reports import usage_report
from firstkit.schedulers.scheduler import Resources
from firstkit.states import JobState
from firstkit.store.database import Database
from firstkit.store.jobs import Charge, NewReplica, add_job, add_replicas, note_job
from firstkit.store.tables import jobs, projects, usage
from usage_entries import usage_entry

MIDNIGHT = datetime(2026, 11, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
NOW = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)
ASTRO = Charge("astro", "svc-first")


@pytest.fixture(autouse=True)
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "now", lambda: NOW)


@pytest.fixture
async def store(db: Database) -> Database:
    rows = [{"id": each, "name": f"project {each}", "created_at": MIDNIGHT} for each in "pq"]
    async with db.begin() as conn:
        await conn.execute(insert(projects), rows)
    return db


async def add(
    db: Database, job_id: str, begin: datetime | None, end: datetime | None = None, *models: str, **values: Any
) -> None:
    """A job with a replica of each of ``models``, called as the job and the model are."""
    job = {"cluster": "polaris", "charge": ASTRO, "nodes": 1, **values}
    at = begin or MIDNIGHT
    async with db.begin() as conn:
        await add_job(conn, job_id, job["cluster"], Resources(nodes=job["nodes"]), "digest", at, job["charge"])
        new = [NewReplica(f"{job_id}-{model}", job_id, model, "d", "c", 1, Resources()) for model in models or ("m",)]
        await add_replicas(conn, new, at)
        await note_job(conn, job_id, started_at=begin, ended_at=end, ends_at=job.get("ends_at"))


async def use(db: Database, replica_id: str, *entries: tuple[datetime, str, int]) -> None:
    """Requests: when they arrived, whose they are, and their tokens."""
    async with db.begin() as conn:
        for at, project_id, tokens in entries:
            spent = {"prompt_tokens": tokens - tokens // 3, "completion_tokens": tokens // 3}
            entry = usage_entry(f"{random.random()}", at=at, project_id=project_id, replica_id=replica_id, **spent)
            await conn.execute(insert(usage).values({c.name: getattr(entry, c.name) for c in usage.columns}))


def shares(rows: list[NodeHours]) -> dict[str, float]:
    return {row.project: row.node_hours for row in rows}


# -- what is in a row --------------------------------------------------------------------------------------------------


async def test_rows_name_whom_the_scheduler_charged_and_whom_first_does(store: Database) -> None:
    await add(store, "a", MIDNIGHT - HOUR, MIDNIGHT + 1.5 * HOUR, nodes=2)
    await use(store, "a-m", (MIDNIGHT - HOUR, "p", 300), (MIDNIGHT - HOUR / 2, "q", 100), (MIDNIGHT + HOUR, "q", 7))
    until = MIDNIGHT + 2 * HOUR
    who = ("polaris", "astro", "svc-first")
    assert await node_hours(store, None, until, "idle") == [
        NodeHours(None, until, *who, "", "idle", "", 2.0, 0, 0),
        NodeHours(None, until, *who, "p", "project p", "", 1.5, 300, 1),
        NodeHours(None, until, *who, "q", "project q", "", 1.5, 107, 2),
    ]


async def test_by_month_and_each_month_is_what_it_is_alone(store: Database) -> None:
    await add(store, "a", MIDNIGHT - HOUR, MIDNIGHT + HOUR)
    await use(store, "a-m", (MIDNIGHT - timedelta(microseconds=1), "p", 1), (MIDNIGHT, "q", 1))
    october = datetime(2026, 10, 1, tzinfo=UTC)
    rows = await node_hours(store, october, MIDNIGHT + timedelta(days=3), "idle", ["month"])
    assert [(row.since, row.until, row.project_id, row.node_hours) for row in rows] == [
        (october, MIDNIGHT, "p", 1.0),
        (MIDNIGHT, MIDNIGHT + timedelta(days=3), "q", 1.0),
    ]
    assert rows[:1] == await node_hours(store, october, MIDNIGHT, "idle")
    assert rows[1:] == await node_hours(store, MIDNIGHT, MIDNIGHT + timedelta(days=3), "idle")


async def test_by_model_where_one_job_serves_several(store: Database) -> None:
    await add(store, "a", MIDNIGHT, MIDNIGHT + 2 * HOUR, "m", "n", nodes=4)
    await use(store, "a-m", (MIDNIGHT, "p", 30))
    await use(store, "a-n", (MIDNIGHT, "p", 10))
    rows = await node_hours(store, MIDNIGHT, None, "idle", ["model"])
    assert [(row.project, row.model, row.node_hours) for row in rows] == [
        ("idle", "", 4.0),
        ("project p", "m", 3.0),
        ("project p", "n", 1.0),
    ]
    assert shares(await node_hours(store, MIDNIGHT, None, "idle")) == {"idle": 4.0, "project p": 4.0}


async def test_accounts_and_clusters_have_rows_of_their_own(store: Database) -> None:
    await add(store, "a", MIDNIGHT, MIDNIGHT + HOUR)
    await add(store, "b", MIDNIGHT, MIDNIGHT + HOUR, charge=Charge("climate", "svc-first"))
    await add(store, "c", MIDNIGHT, MIDNIGHT + HOUR, cluster="aurora", charge=Charge())
    for job in "abc":
        await use(store, f"{job}-m", (MIDNIGHT, "p", 5))
    rows = await node_hours(store, MIDNIGHT, None, "idle")
    assert [(row.cluster, row.account, row.submit_as, row.node_hours, row.tokens) for row in rows] == [
        ("aurora", "", "", 1.0, 5),
        ("polaris", "astro", "svc-first", 1.0, 5),
        ("polaris", "climate", "svc-first", 1.0, 5),
    ]


async def test_an_unknown_grouping_is_refused(db: Database) -> None:
    with pytest.raises(ValueError, match="colour"):
        await node_hours(db, None, None, "idle", ["colour"])


# -- how long ----------------------------------------------------------------------------------------------------------


async def test_a_running_job_counts_until_now(store: Database) -> None:
    await add(store, "a", NOW - 3 * HOUR, nodes=2)
    for until in (None, NOW + timedelta(days=30)):
        (row,) = await node_hours(store, NOW - timedelta(days=1), until, "idle")
        assert (row.node_hours, row.until) == (6.0, NOW)


async def test_nobody_noticed_the_end_and_still_no_job_outlives_its_walltime(store: Database) -> None:
    await add(store, "a", NOW - 5 * HOUR, ends_at=NOW - 2 * HOUR)
    await add(store, "b", NOW - 5 * HOUR, NOW - HOUR, ends_at=NOW - 3 * HOUR)
    await add(store, "c", NOW - 5 * HOUR, NOW - 4 * HOUR, ends_at=NOW + HOUR)
    (row,) = await node_hours(store, None, None, "idle")
    assert row.node_hours == 3.0 + 2.0 + 1.0


async def test_jobs_that_never_started_cost_nothing(store: Database) -> None:
    await add(store, "a", None)
    await add(store, "b", None, MIDNIGHT + HOUR)
    async with store.begin() as conn:
        await conn.execute(update(jobs).values(state=JobState.CANCELLED))
    assert await node_hours(store, None, None, "idle") == []


async def test_no_interval_and_no_jobs_are_no_rows(store: Database) -> None:
    assert await node_hours(store, None, None, "idle") == []
    await add(store, "a", MIDNIGHT, MIDNIGHT + HOUR)
    assert await node_hours(store, MIDNIGHT + HOUR, MIDNIGHT, "idle") == []
    assert await node_hours(store, NOW + HOUR, None, "idle") == []
    assert await node_hours(store, MIDNIGHT + HOUR, None, "idle") == []


async def test_external_services_take_no_node_hours(store: Database) -> None:
    await use(store, "external-m@cloud", (MIDNIGHT, "p", 5))
    assert await node_hours(store, None, None, "idle") == []


# -- whose -------------------------------------------------------------------------------------------------------------


async def test_an_hour_in_which_all_requests_failed_is_idle(store: Database) -> None:
    await add(store, "a", MIDNIGHT, MIDNIGHT + HOUR)
    await use(store, "a-m", (MIDNIGHT, "p", 0), (MIDNIGHT, "p", 0))
    rows = await node_hours(store, None, None, "idle")
    assert [(row.project, row.node_hours, row.requests) for row in rows] == [("idle", 1.0, 0), ("project p", 0.0, 2)]


async def test_a_project_has_the_name_that_it_has_now_and_its_id_when_it_is_gone(store: Database) -> None:
    await add(store, "a", MIDNIGHT, MIDNIGHT + HOUR)
    await use(store, "a-m", (MIDNIGHT, "p", 1), (MIDNIGHT, "q", 1))
    async with store.begin() as conn:
        await conn.execute(update(projects).where(projects.c.id == "p").values(name="renamed"))
        await conn.execute(delete(projects).where(projects.c.id == "q"))
    rows = await node_hours(store, None, None, "idle")
    assert [(row.project_id, row.project, row.node_hours) for row in rows] == [("q", "q", 0.5), ("p", "renamed", 0.5)]


async def test_an_idle_project_may_be_a_project(store: Database) -> None:
    await add(store, "a", MIDNIGHT, MIDNIGHT + 2 * HOUR)
    await use(store, "a-m", (MIDNIGHT, "p", 9))
    (row,) = await node_hours(store, None, None, "project p")
    assert (row.project_id, row.project, row.node_hours, row.tokens) == ("p", "project p", 2.0, 9)


async def test_what_was_asked_before_the_job_held_nodes_is_counted_and_free(store: Database) -> None:
    await add(store, "a", MIDNIGHT + HOUR / 2, MIDNIGHT + HOUR)
    await use(store, "a-m", (MIDNIGHT - HOUR / 2, "p", 9))
    (october,) = await node_hours(store, None, MIDNIGHT, "idle")
    assert (october.project, october.account, october.node_hours, october.tokens) == ("project p", "astro", 0.0, 9)
    assert shares(await node_hours(store, MIDNIGHT, None, "idle")) == {"idle": 0.5}


async def test_tokens_are_those_of_the_interval_and_shares_those_of_whole_hours(store: Database) -> None:
    await add(store, "a", MIDNIGHT, MIDNIGHT + HOUR)
    await use(store, "a-m", (MIDNIGHT, "p", 300), (MIDNIGHT + HOUR / 2, "q", 100))
    half = await node_hours(store, MIDNIGHT + HOUR / 2, MIDNIGHT + 0.75 * HOUR, "idle")
    assert [(row.project_id, row.node_hours, row.tokens, row.requests) for row in half] == [
        ("p", 0.1875, 0, 0),
        ("q", 0.0625, 100, 1),
    ]
    first = await node_hours(store, MIDNIGHT, MIDNIGHT + HOUR / 4, "idle")
    assert [(row.project_id, row.node_hours, row.tokens) for row in first] == [("p", 0.1875, 300), ("q", 0.0625, 0)]


# -- sums --------------------------------------------------------------------------------------------------------------


async def test_random_months_come_to_what_fractions_say(store: Database) -> None:
    chance = random.Random(6)
    true: defaultdict[str, Fraction] = defaultdict(Fraction)
    whole = Fraction()
    for number in range(6):
        begin = MIDNIGHT + timedelta(seconds=chance.randrange(40 * 3600))
        end = begin + timedelta(microseconds=chance.randrange(1, 30 * 3600 * 10**6))
        nodes = chance.randrange(1, 500)
        await add(store, f"job{number}", begin, end, nodes=nodes)
        entries = [
            (begin + (end - begin) * chance.random(), chance.choice("pq"), chance.randrange(5)) for _ in range(25)
        ]
        await use(store, f"job{number}-m", *entries)
        weights: defaultdict[datetime, Counter[str]] = defaultdict(Counter)
        for at, project, tokens in entries:
            weights[at.replace(minute=0, second=0, microsecond=0)][project] += tokens
        for hour, took in _hours(begin, end):
            whole += took * nodes
            of_hour = +weights[hour] or Counter({"": 1})
            for project, weight in of_hour.items():
                true[project] += took * nodes * Fraction(weight, of_hour.total())
    rows = await node_hours(store, None, None, "idle")
    assert {row.project_id for row in rows} == true.keys()
    for row in rows:
        assert abs(Fraction(row.node_hours) - true[row.project_id]) < Fraction(200, 10**6), "200 hours at most"
    assert abs(sum(Fraction(row.node_hours) for row in rows) - whole) < Fraction(6, 10**6), "6 jobs"
    days = [
        await node_hours(store, MIDNIGHT + timedelta(days=day), MIDNIGHT + timedelta(days=day + 1), "idle")
        for day in range(4)
    ]
    summed: Counter[str] = Counter()
    for row in (row for day in days for row in day):
        summed[row.project_id] += round(row.node_hours * 10**6)
    assert summed == {row.project_id: round(row.node_hours * 10**6) for row in rows}


def _hours(begin: datetime, end: datetime) -> Iterator[tuple[datetime, Fraction]]:
    hour = begin.replace(minute=0, second=0, microsecond=0)
    while hour < end:
        took = min(end, hour + HOUR) - max(begin, hour)
        yield hour, Fraction(took // timedelta(microseconds=1), 3600 * 10**6)
        hour += HOUR


async def test_the_tokens_of_all_rows_are_those_of_the_ledger(store: Database) -> None:
    await add(store, "a", MIDNIGHT, MIDNIGHT + 30 * HOUR, "m", "n")
    chance = random.Random(7)
    for replica in ("a-m", "a-n"):
        entries = [
            (MIDNIGHT + chance.random() * 40 * HOUR, chance.choice("pq"), chance.randrange(9)) for _ in range(40)
        ]
        await use(store, replica, *entries)
    for since, until in ((MIDNIGHT, NOW), (MIDNIGHT + 3.3 * HOUR, MIDNIGHT + 31.7 * HOUR)):
        rows = await node_hours(store, since, until, "idle")
        (ledger,) = await usage_report(store, (), since, until)
        assert sum(row.tokens for row in rows) == ledger.prompt_tokens + ledger.completion_tokens
        assert sum(row.requests for row in rows) == ledger.requests


async def test_hours_and_months_are_those_of_utc_whatever_the_zone(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The night in which Berlin's clocks go back, and an interval that is written in Nepal."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        begin = datetime(2026, 10, 25, tzinfo=UTC)
        await add(store, "a", begin, begin + 4 * HOUR)
        await use(
            store, "a-m", (begin + 0.5 * HOUR, "p", 1), (begin + 1.5 * HOUR, "q", 1), (begin + 2.5 * HOUR, "p", 1)
        )
        nepal = timezone(timedelta(hours=5, minutes=45))
        rows = await node_hours(store, begin.astimezone(nepal), (begin + 4 * HOUR).astimezone(nepal), "idle", ["month"])
        assert shares(rows) == {"idle": 1.0, "project p": 2.0, "project q": 1.0}
        assert rows[0].as_row()["since"] == "2026-10-25T00:00:00Z"
    finally:
        monkeypatch.undo()
        time.tzset()
