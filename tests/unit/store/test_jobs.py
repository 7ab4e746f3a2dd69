from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import product

import pytest
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from firstkit.clock import now
from firstkit.ids import digest
from firstkit.schedulers.scheduler import Resources
from firstkit.states import LIVE_JOB_STATES, JobState, ReplicaState, advance
from firstkit.store import jobs as stored
from firstkit.store import tables
from firstkit.store.database import Database
from firstkit.store.jobs import NewReplica, Observation, Refused, admit_pilot

TAKEN = Refused("another pilot has this job", for_good=True)
OVER = Refused("this job is over", for_good=True)
RESOURCES = Resources(cpus_per_node=3, memory_bytes=2**40, account="proj")


async def add(db: Database, job_id: str = "job-a", token: str = "token", replicas: int = 1) -> None:
    new = [NewReplica(f"rep-{job_id[4:]}{i}", job_id, "m", "m@here", "here", 4, Resources()) for i in range(replicas)]
    async with db.begin() as conn:
        await stored.add_job(conn, job_id, "here", RESOURCES, digest(token), now())
        await stored.add_replicas(conn, new, now())


async def move(db: Database, state: JobState, job_id: str = "job-a") -> bool:
    async with db.begin() as conn:
        return await stored.move_job(conn, job_id, state)


async def test_a_job_is_read_as_it_was_written(db: Database) -> None:
    await add(db)
    async with db.read() as conn:
        (job,) = await stored.live_jobs(conn, "here")
        (replica,) = await stored.live_replicas(conn, "here")
    assert (job.id, job.state, job.resources) == ("job-a", JobState.PLANNED, RESOURCES)
    assert (replica.job_id, replica.state, replica.max_in_flight) == ("job-a", ReplicaState.QUEUED, 4)


async def test_other_clusters_are_not_read(db: Database) -> None:
    await add(db)
    async with db.read() as conn:
        assert await stored.live_jobs(conn, "there") == []
        assert await stored.live_replicas(conn, "there") == []


async def test_a_replica_needs_its_job(db: Database) -> None:
    async def add_one() -> None:
        async with db.begin() as conn:
            new = NewReplica("rep-x", "job-x", "m", "m@here", "here", 4, Resources())
            await stored.add_replicas(conn, [new], now())

    with pytest.raises(IntegrityError):
        await add_one()


async def test_every_move_is_that_of_states(db: Database) -> None:
    """All pairs in one database: making one takes longer than all of them."""
    pairs = [(f"job-{i}", state, news) for i, (state, news) in enumerate(product(JobState, JobState))]
    async with db.begin() as conn:
        for job_id, state, news in pairs:
            await stored.add_job(conn, job_id, "here", RESOURCES, "digest", now())
            await conn.execute(tables.jobs.update().where(tables.jobs.c.id == job_id).values(state=state))
            assert await stored.move_job(conn, job_id, news) == (advance(state, news) is not state), (state, news)
        found = {row.id: row.state for row in await conn.execute(select(tables.jobs.c.id, tables.jobs.c.state))}
    assert found == {job_id: advance(state, news).value for job_id, state, news in pairs}


async def test_late_news_changes_no_fact_either(db: Database) -> None:
    await add(db)
    async with db.begin() as conn:
        assert await stored.move_replica(conn, "rep-a0", ReplicaState.FAILED, reason="died")
        assert not await stored.move_replica(conn, "rep-a0", ReplicaState.READY, reason="")
        (row,) = await stored.replicas_of(conn, "job-a")
    assert (row.state, row.reason) == (ReplicaState.FAILED, "died")


async def test_what_engines_and_schedulers_say_can_be_stored(db: Database) -> None:
    await add(db)
    async with db.begin() as conn:
        await stored.note_job(conn, "job-a", reason="\0no room\ud800")
        assert await stored.move_replica(conn, "rep-a0", ReplicaState.STARTING, log_tail="\x1b[31m\0\ufffd\ud800")
        jobs, replicas = await stored.recent(conn, now())
    assert (jobs[0].reason, replicas[0].log_tail) == ("no room?", "\x1b[31m\ufffd?")


async def test_recent_is_what_lives_or_ended_lately(db: Database) -> None:
    at = now()
    for job_id in ("job-a", "job-b", "job-c"):
        await add(db, job_id)
    async with db.begin() as conn:
        for job_id, ago in (("job-b", timedelta(minutes=5)), ("job-c", timedelta(hours=5))):
            await stored.move_job(conn, job_id, JobState.CANCELLED, ended_at=at - ago)
            await stored.move_replica(conn, f"rep-{job_id[4:]}0", ReplicaState.STOPPED, ended_at=at - ago)
        jobs, replicas = await stored.recent(conn, at - timedelta(hours=1))
        assert [job.id for job in jobs] == ["job-a", "job-b"]
        assert [row.id for row in replicas] == ["rep-a0", "rep-b0"]
        assert [job.id for job in await stored.live_jobs(conn, "here")] == ["job-a"]


async def test_ended_replicas_come_newest_first_and_are_bounded(db: Database) -> None:
    for i in range(stored.REMEMBERED + 5):
        await add(db, f"job-{i:02}")
    async with db.begin() as conn:
        for i in range(stored.REMEMBERED + 5):
            await stored.move_replica(conn, f"rep-{i:02}0", ReplicaState.FAILED, ended_at=now())
        ended = await stored.ended_replicas(conn, "m@here")
    assert [row.id for row in ended][:2] == [f"rep-{stored.REMEMBERED + 4}0", f"rep-{stored.REMEMBERED + 3}0"]
    assert len(ended) == stored.REMEMBERED


async def test_observations_by_subject_newest_first(db: Database) -> None:
    async with db.begin() as conn:
        for i, subject in enumerate(["m@here", "other", "m@here"]):
            at = now() + timedelta(seconds=i)
            seen = Observation(float(i), None if i == 0 else 9.0)
            await stored.add_observation(conn, "load_time", subject, seen, at)
        await stored.add_observation(conn, "load_time", "negative", Observation(-0.1, None), now())
        found = await stored.observed(conn, "load_time", "m@here")
        assert [(one.seconds, one.forecast_s) for one in found] == [(2.0, 9.0), (0.0, None)]
        assert (await stored.observed(conn, "load_time", "negative"))[0].seconds == 0.0
        assert await stored.observed(conn, "queue_wait", "m@here") == []


async def test_every_move_of_a_replica_is_that_of_states(db: Database) -> None:
    pairs = [(f"rep-{i}", state, news) for i, (state, news) in enumerate(product(ReplicaState, ReplicaState))]
    await add(db, replicas=0)
    async with db.begin() as conn:
        new = [NewReplica(replica_id, "job-a", "m", "m@here", "here", 4, Resources()) for replica_id, _, _ in pairs]
        await stored.add_replicas(conn, new, now())
        for replica_id, state, news in pairs:
            await conn.execute(tables.replicas.update().where(tables.replicas.c.id == replica_id).values(state=state))
            assert await stored.move_replica(conn, replica_id, news) == (advance(state, news) is not state)
        found = {row.id: row.state for row in await stored.replicas_of(conn, "job-a")}
    assert found == {replica_id: advance(state, news) for replica_id, state, news in pairs}


async def test_who_is_not_there_does_not_move(db: Database) -> None:
    async with db.begin() as conn:
        assert not await stored.move_job(conn, "job-x", JobState.CANCELLED)
        assert not await stored.move_replica(conn, "rep-x", ReplicaState.STOPPED)


async def test_facts_are_noted_without_a_move(db: Database) -> None:
    await add(db)
    await add(db, "job-b")
    at = now()
    async with db.begin() as conn:
        await stored.note_job(conn, "job-a", node="n1", absent_polls=2, absent_since=at)
        noted, other = await stored.live_jobs(conn, "here")
    assert (noted.state, noted.node, noted.absent_polls, noted.absent_since) == (JobState.PLANNED, "n1", 2, at)
    assert (other.node, other.absent_polls) == (None, 0)


async def test_the_living_come_oldest_first_and_of_equals_by_id(db: Database) -> None:
    at = now()
    async with db.begin() as conn:
        for job_id, ago_s in (("job-c", 0), ("job-b", 5), ("job-a", 5)):
            created_at = at - timedelta(seconds=ago_s)
            await stored.add_job(conn, job_id, "here", RESOURCES, "digest", created_at)
            new = NewReplica(f"rep-{job_id[4:]}", job_id, "m", "m@here", "here", 4, Resources())
            await stored.add_replicas(conn, [new], created_at)
        assert [row.id for row in await stored.live_jobs(conn, "here")] == ["job-a", "job-b", "job-c"]
        assert [row.id for row in await stored.live_replicas(conn, "here")] == ["rep-a", "rep-b", "rep-c"]


async def test_ended_replicas_are_those_of_one_deployment(db: Database) -> None:
    await add(db, replicas=2)
    async with db.begin() as conn:
        other = NewReplica("rep-x", "job-a", "m", "m@there", "there", 4, Resources())
        await stored.add_replicas(conn, [other], now())
        for replica_id in ("rep-a0", "rep-x"):
            await stored.move_replica(conn, replica_id, ReplicaState.STOPPED)
        assert [row.id for row in await stored.ended_replicas(conn, "m@here")] == ["rep-a0"]


async def test_only_the_last_observations_are_remembered(db: Database) -> None:
    at = now()
    async with db.begin() as conn:
        for kind, most in (("load_time", stored.REMEMBERED), ("queue_wait", stored.WAITS)):
            for i in range(most + 5):  # all at one moment: the order of writing decides
                await stored.add_observation(conn, kind, "here", Observation(float(i), None), at)
            seen = await stored.observed(conn, kind, "here")
            assert [one.seconds for one in seen] == [float(i) for i in range(most + 4, 4, -1)]


async def test_a_wait_is_remembered_with_its_shape_and_when_it_began(db: Database) -> None:
    at = now()
    seen = Observation(60.0, 50.0, 90.0, "nodes=1 gpus=4 walltime=1h queue=gpu", at - timedelta(seconds=61))
    async with db.begin() as conn:
        await stored.add_observation(conn, "queue_wait", "here", seen, at)
        assert await stored.observed(conn, "queue_wait", "here") == [seen]


async def test_a_wait_of_earlier_versions_began_when_it_must_have(db: Database) -> None:
    at = now()
    old = {"kind": "queue_wait", "subject": "here", "seconds": 60.0, "at": at}
    async with db.begin() as conn:
        await conn.execute(insert(tables.observations).values(old))
        (seen,) = await stored.observed(conn, "queue_wait", "here")
    assert (seen.shape, seen.late_s, seen.began_at) == ("", None, at - timedelta(seconds=60))


# -- pilots ------------------------------------------------------------------------------------------------------------


async def test_a_token_is_traded_once_for_a_secret(db: Database) -> None:
    await add(db)
    assert await admit_pilot(db, "job-a", "secret", "token") is None
    assert await admit_pilot(db, "job-a", "secret", "token") is None, "the answer may have been lost"
    assert await admit_pilot(db, "job-a", "secret", "") is None
    assert await admit_pilot(db, "job-a", "another", "token") == TAKEN


@pytest.mark.parametrize(
    ("job_id", "secret", "token"),
    [
        ("job-x", "secret", "token"),
        ("job-a", "secret", "wrong"),
        ("job-a", "secret", ""),
        ("job-a", "", "token"),
        ("job-a\0", "secret", "token"),
        ("\ud800", "secret", "token"),
    ],
)
async def test_who_is_not_the_pilot_of_the_job_is_refused_and_audited(
    db: Database, job_id: str, secret: str, token: str
) -> None:
    await add(db)
    refusal = await admit_pilot(db, job_id, secret, token)
    assert refusal
    async with db.read() as conn:
        (row,) = (await conn.execute(select(tables.audit))).all()
        assert await conn.scalar(select(tables.jobs.c.secret_sha256)) is None
    subject = job_id if job_id.isprintable() else ascii(job_id)
    assert (row.action, row.subject, row.details) == ("pilot.refuse", subject, {"reason": refusal.reason})
    assert not refusal.for_good


async def test_a_job_that_is_over_takes_no_pilot(db: Database) -> None:
    await add(db)
    await move(db, JobState.CANCELLED)
    assert await admit_pilot(db, "job-a", "secret", "token") == OVER


async def test_of_two_pilots_at_once_one_wins(db: Database) -> None:
    await add(db)
    answers = await asyncio.gather(*(admit_pilot(db, "job-a", f"secret-{i}", "token") for i in range(4)))
    assert sorted(answers, key=bool) == [None, *[TAKEN] * 3]


async def test_a_pilot_that_dials_twice_at_once_is_welcome(db: Database) -> None:
    await add(db)
    answers = await asyncio.gather(*(admit_pilot(db, "job-a", "secret", "token") for _ in range(4)))
    assert answers == [None] * 4


async def test_the_pilot_of_a_job_stays_welcome_until_its_end(db: Database) -> None:
    await add(db)
    await admit_pilot(db, "job-a", "secret", "token")
    for state in LIVE_JOB_STATES[1:]:
        await move(db, state)
        assert await admit_pilot(db, "job-a", "secret", "token") is None
    await move(db, JobState.COMPLETED)
    assert await admit_pilot(db, "job-a", "secret", "token") == OVER


async def test_a_token_opens_only_its_own_job(db: Database) -> None:
    await add(db, "job-a", "token-a")
    await add(db, "job-b", "token-b")
    assert await admit_pilot(db, "job-b", "secret", "token-a") == Refused("the enrolment token is not of this job")
    assert await admit_pilot(db, "job-b", "secret", "token-b") is None


async def test_who_is_admitted_is_not_audited(db: Database) -> None:
    await add(db)
    await admit_pilot(db, "job-a", "secret", "token")
    async with db.read() as conn:
        assert (await conn.execute(select(tables.audit))).all() == []


async def test_no_secret_is_stored_in_clear(db: Database) -> None:
    await add(db, token="canary-token")
    await admit_pilot(db, "job-a", "canary-secret", "canary-token")
    await admit_pilot(db, "job-a", "canary-other", "canary-token")
    async with db.read() as conn:
        for table in (tables.jobs, tables.replicas, tables.audit):
            assert "canary" not in str((await conn.execute(select(table))).all())


async def test_what_was_spent_is_of_jobs_that_live_or_ended_within_the_time(db: Database) -> None:
    at = now()
    for job_id in ("job-old", "job-new", "job-live"):
        await add(db, job_id)
    async with db.begin() as conn:
        await stored.add_job(conn, "job-there", "there", RESOURCES, digest("token"), at)
        for job_id, ended_at in (("job-old", at - timedelta(hours=25)), ("job-new", at - timedelta(hours=1))):
            await stored.move_job(conn, job_id, JobState.SUBMITTING, started_at=at - timedelta(hours=30))
            await stored.move_job(conn, job_id, JobState.COMPLETED, ended_at=ended_at)
        found = await stored.spent(conn, "here", at - timedelta(days=1))
    assert [(one.job_id, one.deployment, one.nodes, one.walltime_s) for one in found] == [
        ("job-new", "m@here", 1, None),
        ("job-live", "m@here", 1, None),
    ]
    assert found[0].ended_at == at - timedelta(hours=1)


async def test_a_job_is_charged_to_whom_it_was_submitted_for(db: Database) -> None:
    await add(db, replicas=0)
    for replica_id, deployment in (("rep-x", "z@here"), ("rep-y", "a@here")):
        async with db.begin() as conn:
            new = NewReplica(replica_id, "job-a", "m", deployment, "here", 4, Resources())
            await stored.add_replicas(conn, [new], now())
    async with db.read() as conn:
        (found,) = await stored.spent(conn, "here", now() - timedelta(days=1))
    assert found.deployment == "z@here", "the first"
