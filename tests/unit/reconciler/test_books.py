from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Table, select
from sqlalchemy.exc import IntegrityError

from firstkit.links.messages import ReplicaReport
from firstkit.reconciler.backoff import failures
from firstkit.reconciler.books import FRESH_FOR, POLLS_KEPT, POLLS_SEEN, Books, Changes
from firstkit.reconciler.observe import USUAL
from firstkit.reconciler.seasons import shape_of
from firstkit.schedulers.scheduler import JobNews
from firstkit.states import JobState, ReplicaState
from firstkit.store import clusters as drains
from firstkit.store import jobs as stored
from firstkit.store import tables
from firstkit.store.database import Database
from firstkit.store.jobs import JobRow, NewReplica, Observation, ReplicaRow
from firstkit.store.polls import Polled, polled
from unit.reconciler.support import NOW, ONE_CORE, deployment, job, replica, report


def new(replica_id: str, job_id: str = "job-a", deployment: str = "m@here") -> NewReplica:
    return NewReplica(replica_id, job_id, "m", deployment, "here", 4, ONE_CORE)


def said(state: JobState, job_id: str = "job-a", **values: Any) -> JobNews:
    return JobNews(job_id, f"id-{job_id}", state, **values)


def ready(replica_id: str = "rep-a", load_s: float = 3.0) -> ReplicaReport:
    return ReplicaReport(replica_id, ReplicaState.READY, load_s=load_s)


def after(seconds: float) -> Changes:
    return Changes(NOW + timedelta(seconds=seconds))


async def rows(db: Database, table: Table) -> list[Any]:
    async with db.read() as conn:
        return list((await conn.execute(select(table).order_by(table.c.id))).all())


async def states(db: Database) -> dict[str, str]:
    return {row.id: row.state for table in (tables.jobs, tables.replicas) for row in await rows(db, table)}


async def submit(books: Books, job_id: str, *replicas: NewReplica) -> None:
    await books.add_job(job_id, "here", ONE_CORE, "digest", list(replicas))
    await books.move_job(job_id, JobState.SUBMITTING, submitted_at=NOW)


async def pilot_says(books: Books, changes: Changes, *replicas: ReplicaReport) -> None:
    """What the pilot of the only job reports, taken in and written."""
    (row,), living = await books.read()
    changes.report(row, living, report(row.id, *replicas))
    await books.write(changes)


@pytest.fixture
async def books(db: Database) -> Books:
    """Books with a job that was submitted and its replica."""
    made = Books(db, "here")
    await made.open({"m@here": deployment()})
    await submit(made, "job-a", new("rep-a"))
    return made


# -- changes -----------------------------------------------------------------------------------------------------------


def test_a_pass_without_news_has_nothing_to_write() -> None:
    changes = Changes(NOW)
    changes.report(job(), [replica()], report("job-a", ReplicaReport("rep-a", ReplicaState.READY)))
    assert not changes


def test_a_pilot_that_is_heard_proves_that_its_job_runs() -> None:
    for state in (JobState.SUBMITTING, JobState.PENDING):
        changes = Changes(NOW)
        changes.report(job(state=state, started_at=None), [], report())
        ((_, update),) = changes.jobs
        assert (update.state, update.facts["started_at"]) == (JobState.RUNNING, NOW)


def test_a_job_that_nobody_submitted_is_not_started_by_a_pilot() -> None:
    changes = Changes(NOW)
    changes.report(job(state=JobState.PLANNED), [], report())
    assert changes.jobs == []


def lost_submission() -> JobRow:
    long_ago = NOW - timedelta(hours=1)
    return job(state=JobState.SUBMITTING, submitted_at=long_ago, started_at=None, absent_polls=5, absent_since=long_ago)


def test_a_submission_that_nobody_finds_is_given_up() -> None:
    changes = Changes(NOW)
    changes.poll(lost_submission(), [replica(state=ReplicaState.QUEUED)], None, True)
    assert changes.given_up == ["job-a"]
    assert changes.replicas == [], "they end when the job has been cancelled"


def test_a_job_whose_pilot_is_heard_is_not_given_up() -> None:
    changes = Changes(NOW)
    changes.poll(lost_submission(), [], None, False)
    changes.report(lost_submission(), [], report())
    assert changes.given_up == []


@pytest.mark.parametrize(
    ("end", "becomes"),
    [(JobState.COMPLETED, "STOPPED"), (JobState.CANCELLED, "STOPPED"), (JobState.NODE_FAIL, "FAILED")],
)
def test_the_end_of_a_job_takes_its_replicas_along(end: JobState, becomes: str) -> None:
    living: Sequence[ReplicaRow] = [replica("rep-a"), replica("rep-b", ReplicaState.QUEUED)]
    polled, ended = Changes(NOW), Changes(NOW)
    polled.poll(job(), living, said(end, reason="words"), False)
    ended.end_job(job(), living, end, "words")
    for changes in (polled, ended):
        assert [(update.row.id, update.state.value) for update in changes.replicas] == [
            ("rep-a", becomes),
            ("rep-b", becomes),
        ]


def vanished(row: JobRow) -> list[str]:
    long_ago = NOW - timedelta(hours=1)
    changes = Changes(NOW)
    changes.poll(replace(row, absent_polls=5, absent_since=long_ago), [replica()], None, True)
    return [update.state.value for update in changes.replicas]


def test_a_job_that_was_ending_and_is_forgotten_has_failed_nobody() -> None:
    assert vanished(job(state=JobState.ENDING)) == ["STOPPED"]
    assert vanished(job()) == ["FAILED"]


def test_a_job_that_we_cancelled_has_stopped_however_it_ended() -> None:
    changes = Changes(NOW)
    changes.poll(job(state=JobState.ENDING), [replica()], said(JobState.FAILED), False, is_cancelled=True)
    assert [update.state.value for update in changes.replicas] == ["STOPPED"]


# -- a pass ------------------------------------------------------------------------------------------------------------


async def test_a_pass_is_written_whole(db: Database, books: Books) -> None:
    await pilot_says(books, after(7), ready())
    assert await states(db) == {"job-a": "RUNNING", "rep-a": "READY"}
    (row,), (living,) = await books.read()
    assert row.started_at == living.ready_at == NOW + timedelta(seconds=7)


async def test_a_pass_that_breaks_leaves_nothing_behind(db: Database, books: Books) -> None:
    await submit(books, "job-b", new("rep-b", "job-b"))
    jobs, replicas = await books.read()
    changes = after(5)
    for row in jobs:  # two jobs with one id of the scheduler: the schema refuses the second
        twice = JobNews(row.id, "77", JobState.RUNNING, started_at=NOW.timestamp() + 4)
        changes.poll(row, [], twice, False)
        changes.report(row, [one for one in replicas if one.job_id == row.id], report(row.id, ready("rep-a")))
    before = await states(db)
    with pytest.raises(IntegrityError):
        await books.write(changes)
    assert await states(db) == before
    assert await rows(db, tables.observations) == []


async def test_news_of_an_earlier_pass_changes_nothing(db: Database, books: Books) -> None:
    (row,), living = await books.read()
    late = after(5)
    late.report(row, living, report("job-a", ready()))
    await books.end_job("job-a", JobState.CANCELLED, "not needed")
    await books.write(late)
    assert await states(db) == {"job-a": "CANCELLED", "rep-a": "STOPPED"}
    assert await rows(db, tables.observations) == []
    assert books.known("m@here").loads == ()


async def test_a_poll_that_moves_nothing_is_noted(books: Books) -> None:
    (row,), _ = await books.read()
    changes = after(5)
    changes.poll(row, [], None, True)
    await books.write(changes)
    (row,), _ = await books.read()
    assert (row.state, row.absent_polls, row.absent_since) == (JobState.SUBMITTING, 1, NOW + timedelta(seconds=5))


async def test_a_job_vanishes_with_its_replicas(db: Database, books: Books) -> None:
    await books.move_job("job-a", JobState.PENDING)
    for seconds in (0.0, 5.0, USUAL.vanish, USUAL.vanish + 1):
        assert (await states(db))["job-a"] == "PENDING"
        (row,), living = await books.read()
        changes = after(seconds)
        changes.poll(row, living, None, True)
        await books.write(changes)
    assert await states(db) == {"job-a": "VANISHED", "rep-a": "FAILED"}


# -- what is learned ---------------------------------------------------------------------------------------------------


async def test_a_wait_is_learned_once_however_often_it_is_told(db: Database, books: Books) -> None:
    (row,), living = await books.read()
    for _ in range(2):  # the second from the same picture, as after a cut-off pass
        changes = after(9)
        changes.poll(row, living, said(JobState.RUNNING, started_at=NOW.timestamp() + 8), False)
        changes.report(row, living, report())
        await books.write(changes)
    (row,), living = await books.read()
    again = after(20)
    again.poll(row, living, said(JobState.RUNNING, started_at=NOW.timestamp() + 8), False)
    await books.write(again)
    (seen,) = await rows(db, tables.observations)
    assert (seen.kind, seen.subject, seen.seconds) == ("queue_wait", "here", 8.0)
    assert books.known("m@here").waits == (Observation(8.0, None, None, shape_of(ONE_CORE), NOW),)


async def test_a_wait_is_learned_with_what_was_forecast_for_it(books: Books) -> None:
    for number, promised in enumerate([None, 30.0, None]):
        if number:
            await submit(books, f"job-{number}")
        if promised is not None:
            books.promise(f"job-{number}", promised)
        jobs, _ = await books.read()
        changes = after(9)
        for row in jobs:
            started = JobNews(row.id, f"id-{row.id}", JobState.RUNNING, started_at=NOW.timestamp() + 8 + number)
            changes.poll(row, [], started, False)
        await books.write(changes)
    seen = [(one.seconds, one.forecast_s, one.late_s) for one in books.waits.waits]
    assert seen[2] == (8.0, None, None), "nobody knew"
    assert seen[1] == (9.0, 30.0, 30.0), "the scheduler said so"
    assert seen[0][:2] == (10.0, pytest.approx(8.5))
    assert books.waits.wait_error_s == pytest.approx((1.5 + 21.0) / 2)
    assert books.waits.wait_coverage == 0.5


async def test_what_another_controller_promised_is_not_made_up(db: Database, books: Books) -> None:
    (row,), living = await books.read()
    successor = Books(db, "here")
    await successor.open({"m@here": deployment()})
    changes = after(9)
    changes.poll(row, living, said(JobState.RUNNING, started_at=NOW.timestamp() + 8), False)
    await successor.write(changes)
    (seen,) = successor.waits.waits
    assert (seen.forecast_s, seen.late_s) == (None, None)


async def test_a_deployment_waits_as_jobs_of_its_shape_did(db: Database, books: Books) -> None:
    large = deployment("m@large", resources=replace(ONE_CORE, nodes=16, walltime_s=86400))
    async with db.begin() as conn:
        for number in range(20):
            for needs, seconds in ((ONE_CORE, 10.0), (large.resources, 1000.0)):
                seen = Observation(seconds, None, None, shape_of(needs), NOW - timedelta(days=number))
                await stored.add_observation(conn, "queue_wait", "here", seen, NOW)
    books = Books(db, "here", lambda: NOW)
    await books.open({"m@here": deployment(), "m@large": large})
    assert books.known("m@here").usual_wait_s < 100
    assert books.known("m@large").usual_wait_s > 900


# -- whether it answers ------------------------------------------------------------------------------------------------


async def test_polls_are_counted_once_a_minute(db: Database) -> None:
    at = [NOW]
    books = Books(db, "here", lambda: at[0])
    await books.open({})
    for seconds, good, failed in ((0, 3, 0), (30, 9, 1), (60, 10, 1), (120, 10, 4), (180, 10, 4), (3600, 11, 4)):
        at[0] = NOW + timedelta(seconds=seconds)
        await books.note_polls(good, failed)
    counted = [Polled(NOW, 2, 1), Polled(NOW + timedelta(hours=1), 1, 0)]
    assert books.polls == counted, "at 30 s it was too soon, at 180 s nothing had been asked"
    async with db.read() as conn:
        assert await polled(conn, "here", NOW) == counted
    successor = Books(db, "here", lambda: at[0])
    await successor.open({})
    assert successor.polls == counted


async def test_old_polls_are_told_of_and_kept_for_a_while(db: Database) -> None:
    at = [NOW]
    books = Books(db, "here", lambda: at[0])
    await books.open({})
    for good, passed in enumerate((timedelta(0), POLLS_SEEN + timedelta(hours=1), POLLS_KEPT + timedelta(hours=1)), 1):
        at[0] = NOW + passed
        await books.note_polls(good, 0)
    assert [one.hour for one in books.polls] == [at[0].replace(minute=0)]
    async with db.read() as conn:
        assert len(await polled(conn, "here", NOW)) == 2


async def test_with_the_rows_comes_what_is_drained(db: Database, books: Books) -> None:
    async with db.begin() as conn:
        await drains.drain(conn, "here", "op", "new cooling")
    assert books.drained == {}
    books.forget()
    await books.read()
    assert books.drained["here"].message == "new cooling"


async def test_rows_are_read_again_after_a_write_and_after_a_while(db: Database) -> None:
    at = [NOW]
    books = Books(db, "here", lambda: at[0])
    await books.open({"m@here": deployment()})
    async with db.begin() as conn:
        await stored.add_job(conn, "job-x", "here", ONE_CORE, "digest", NOW)
    assert await books.read() == ([], []), "by whom, if not by us?"
    at[0] += 2 * FRESH_FOR + timedelta(seconds=1)
    assert [row.id for row in (await books.read())[0]] == ["job-x"]
    await submit(books, "job-a", new("rep-a"))
    jobs, replicas = await books.read()
    assert ({row.id for row in jobs}, [row.id for row in replicas]) == ({"job-a", "job-x"}, ["rep-a"])


async def test_a_poll_that_says_nothing_new_is_written_seldom(db: Database, books: Books) -> None:
    for seconds, seen_at in ((5, 5), (20, 5), (35, 35)):
        (row,), _ = await books.read()
        changes = after(seconds)
        changes.poll(row, [], JobNews(row.id, "id-job-a", JobState.SUBMITTING), True)
        await books.write(changes)
        assert not changes.moves or seconds == 5
        (found,) = await rows(db, tables.jobs)
        assert found.observed_at == NOW + timedelta(seconds=seen_at)


async def test_what_was_spent_is_read_when_a_job_moved(books: Books) -> None:
    await books.read()
    (first,) = books.spent
    assert (first.job_id, first.deployment, first.nodes, first.started_at) == ("job-a", "m@here", 1, None)
    await pilot_says(books, after(5))
    await books.read()
    assert [one.started_at for one in books.spent] == [NOW + timedelta(seconds=5)]
    await submit(books, "job-b")
    await books.read()
    assert [one.job_id for one in books.spent] == ["job-a", "job-b"]
    await books.end_job("job-a", JobState.CANCELLED, "")
    await books.read()
    assert books.spent[0].ended_at is not None


async def test_a_start_before_the_submission_was_no_wait(books: Books) -> None:
    (row,), living = await books.read()
    changes = after(1)
    changes.poll(row, living, said(JobState.RUNNING, started_at=NOW.timestamp() - 3), False)
    await books.write(changes)
    assert [seen.seconds for seen in books.known("m@here").waits] == [0.0]


async def test_a_load_is_learned_once_with_what_was_forecast_for_it(db: Database, books: Books) -> None:
    await books.add_replica(new("rep-b"))
    await pilot_says(books, after(5), ready("rep-a", 3.0))
    await pilot_says(books, after(6), ready("rep-a", 3.0), ready("rep-b", 4.0))
    loads = books.known("m@here").loads
    assert loads == (Observation(4.0, 3.0), Observation(3.0, None))
    successor = Books(db, "here")
    await successor.open({"m@here": deployment()})
    assert successor.known("m@here") == books.known("m@here")


async def test_what_was_never_seen_is_not_known(books: Books) -> None:
    assert (books.known("m@here").loads, books.known("other@here").loads) == ((), ())


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_a_job_ends_with_the_replicas_that_it_still_has(db: Database, books: Books) -> None:
    await books.add_replica(new("rep-b"))
    await books.move_replica("rep-a", ReplicaState.FAILED, reason="died", ended_at=NOW)
    await books.end_job("job-a", JobState.REJECTED, "too large")
    assert await books.read() == ([], [])
    first, second = await rows(db, tables.replicas)
    assert (first.state, first.reason) == ("FAILED", "died")
    assert (second.state, second.reason) == ("FAILED", "its job ended as REJECTED: too large")


async def test_a_job_ends_once(db: Database, books: Books) -> None:
    await books.end_job("job-a", JobState.REJECTED, "too large")
    before = await rows(db, tables.jobs), await rows(db, tables.replicas)
    await books.end_job("job-a", JobState.CANCELLED, "again")
    assert (await rows(db, tables.jobs), await rows(db, tables.replicas)) == before


async def test_failures_count_for_the_next_start_at_once(books: Books) -> None:
    assert books.ended == {"m@here": []}
    await pilot_says(books, after(5), ReplicaReport("rep-a", ReplicaState.FAILED, reason="died"))
    assert [row.id for row in failures(books.ended["m@here"])] == ["rep-a"]
    await books.add_replica(new("rep-b"))
    await books.end_job("job-a", JobState.NODE_FAIL, "")
    assert {row.id for row in failures(books.ended["m@here"])} == {"rep-a", "rep-b"}


async def test_replicas_of_deployments_that_are_gone_are_not_kept(books: Books) -> None:
    await books.add_replica(new("rep-old", deployment="old@here"))
    await books.end_job("job-a", JobState.NODE_FAIL, "")
    assert list(books.ended) == ["m@here"]


async def test_what_was_there_is_found_at_the_start(db: Database, books: Books) -> None:
    await books.add_replica(new("rep-b"))
    await books.move_replica("rep-b", ReplicaState.FAILED, ended_at=NOW)
    successor = Books(db, "here")
    (row,), (living,) = await successor.open({"m@here": deployment()})
    assert (row.id, living.id) == ("job-a", "rep-a")
    assert [one.id for one in successor.ended["m@here"]] == ["rep-b"]
    assert await Books(db, "there").open({"m@there": deployment("m@there")}) == ([], [])


async def test_what_an_engine_said_last_is_kept_whatever_it_was(db: Database, books: Books) -> None:
    words = "\x00\x1b[31m\ufffd last"
    await pilot_says(books, after(5), ReplicaReport("rep-a", ReplicaState.FAILED, reason=words, log_tail=words))
    (row,) = await rows(db, tables.replicas)
    assert row.state == "FAILED"
    assert "last" in row.log_tail


async def test_what_was_not_written_is_not_learned_either(db: Database, books: Books) -> None:
    await submit(books, "job-b")
    jobs, _ = await books.read()
    changes = after(5)
    for row in jobs:
        changes.poll(row, [], JobNews(row.id, "77", JobState.RUNNING, started_at=NOW.timestamp() + 4), False)
    with pytest.raises(IntegrityError):
        await books.write(changes)
    assert books.known("m@here").waits == ()
