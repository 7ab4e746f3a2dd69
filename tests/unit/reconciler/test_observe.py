from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.links.messages import ReplicaReport
from firstkit.reconciler.observe import (
    POLLS,
    USUAL,
    ending_of_replica,
    job_update,
    replica_updates,
    submit_grace_s,
)
from firstkit.schedulers.scheduler import JobNews
from firstkit.states import JobState, ReplicaState, may_move
from firstkit.store.jobs import JobRow
from unit.reconciler.support import NOW, job, replica, report


def news(state: JobState, **values: object) -> JobNews:
    return JobNews("job-a", "77", state, **values)  # type: ignore[arg-type]


def absent(row: JobRow, after_s: float, *, polls: int = 1, silent: bool = True) -> JobState | str | None:
    """What a further poll makes of a job that was first missed ``after_s`` ago."""
    since = NOW - timedelta(seconds=after_s)
    row = replace(row, absent_polls=polls, absent_since=since, submitted_at=since)
    update = job_update(row, None, silent, NOW)
    return "give up" if update.give_up else update.state


def test_news_moves_a_job_and_is_written_down() -> None:
    said = news(JobState.RUNNING, node="n1", started_at=NOW.timestamp(), ends_at=NOW.timestamp() + 60)
    update = job_update(job(state=JobState.PENDING, started_at=None, absent_polls=3), said, False, NOW)
    assert update.state is JobState.RUNNING
    assert update.facts["started_at"] == NOW
    assert update.facts["ends_at"] == NOW + timedelta(seconds=60)
    assert (update.facts["node"], update.facts["absent_polls"], update.facts["observed_at"]) == ("n1", 0, NOW)


def test_late_news_moves_nothing() -> None:
    assert job_update(job(state=JobState.ENDING), news(JobState.RUNNING), False, NOW).state is None


def test_one_bad_poll_is_nothing() -> None:
    for state in (JobState.SUBMITTING, JobState.PENDING, JobState.RUNNING):
        assert absent(job(state=state), 1e6, polls=0) is None


def test_a_submission_that_nobody_finds_is_given_up_after_its_grace() -> None:
    row = job(state=JobState.SUBMITTING)
    assert absent(row, USUAL.submit - 1) is None
    assert absent(row, USUAL.submit + 1) == "give up"


def test_the_grace_of_a_submission_is_longer_than_two_polls() -> None:
    assert submit_grace_s(USUAL, 0.5) == USUAL.submit
    assert submit_grace_s(USUAL, 600.0) > POLLS * 600.0
    row = job(state=JobState.SUBMITTING, submitted_at=NOW - timedelta(seconds=24), absent_polls=5, absent_since=NOW)
    assert not job_update(row, None, True, NOW, 10.0).give_up
    assert job_update(row, None, True, NOW + timedelta(seconds=2), 10.0).give_up


def test_after_a_clock_was_set_back_only_polls_are_counted() -> None:
    later = NOW + timedelta(hours=1)
    row = job(state=JobState.SUBMITTING, submitted_at=later, absent_since=later)
    assert not job_update(replace(row, absent_polls=0), None, True, NOW).give_up
    assert job_update(replace(row, absent_polls=1), None, True, NOW).give_up


def test_the_end_of_a_job_that_waits_is_a_guess_that_nobody_keeps() -> None:
    said = news(JobState.PENDING, ends_at=NOW.timestamp(), starts_at=NOW.timestamp(), position=3)
    facts = job_update(job(state=JobState.PENDING), said, True, NOW).facts
    assert "ends_at" not in facts
    assert (facts["starts_at"], facts["position"]) == (NOW, 3)
    facts = job_update(job(state=JobState.PENDING), news(JobState.RUNNING), True, NOW).facts
    assert (facts["starts_at"], facts["position"]) == (None, None)


@pytest.mark.parametrize("state", [JobState.PENDING, JobState.RUNNING, JobState.ENDING])
def test_a_job_vanishes_only_on_evidence(state: JobState) -> None:
    row = job(state=state)
    assert absent(row, USUAL.vanish - 1) is None
    assert absent(row, USUAL.vanish + 1, silent=False) is None, "its pilot is heard"
    assert absent(row, USUAL.vanish + 1) is JobState.VANISHED


def test_an_answer_ends_the_absence() -> None:
    row = job(absent_polls=9, absent_since=NOW - timedelta(days=1))
    row = replace(row, **job_update(row, news(JobState.RUNNING), True, NOW).facts)
    assert (row.absent_polls, row.absent_since) == (0, None)
    assert job_update(row, None, True, NOW).state is None, "the next absence is counted anew"


def test_a_start_is_written_down_once() -> None:
    first = NOW - timedelta(seconds=9)
    update = job_update(job(started_at=first), news(JobState.RUNNING, started_at=NOW.timestamp()), False, NOW)
    assert update.facts["started_at"] == first


def test_what_the_news_does_not_say_stays_as_it_was() -> None:
    update = job_update(job(), news(JobState.RUNNING), False, NOW)
    assert not {"node", "exit_code", "ends_at", "ended_at", "reason"} & update.facts.keys()


def test_replicas_become_what_their_pilot_says() -> None:
    rows = [replica("rep-a", ReplicaState.STARTING), replica("rep-b"), replica("rep-c", ReplicaState.QUEUED)]
    said = report(
        "job-a",
        ReplicaReport("rep-a", ReplicaState.READY, load_s=3.0),
        ReplicaReport("rep-b", ReplicaState.FAILED, reason="died", log_tail="last words"),
        ReplicaReport("rep-stranger", ReplicaState.READY),
    )
    first, second = replica_updates(rows, said, NOW)
    assert (first.state, first.facts["load_s"], first.facts["ready_at"]) == (ReplicaState.READY, 3.0, NOW)
    assert (second.state, second.facts["log_tail"], second.facts["ended_at"]) == (
        ReplicaState.FAILED,
        "last words",
        NOW,
    )


def test_a_replica_that_its_pilot_has_forgotten_is_gone() -> None:
    (update,) = replica_updates([replica()], report("job-a"), NOW)
    assert update.state is ReplicaState.FAILED


def test_the_end_of_a_job_is_the_end_of_its_replicas() -> None:
    assert ending_of_replica(replica(), JobState.CANCELLED, "", NOW).state is ReplicaState.STOPPED
    update = ending_of_replica(replica(), JobState.NODE_FAIL, "restarted", NOW)
    assert update.state is ReplicaState.FAILED
    assert update.facts["reason"] == "its job ended as NODE_FAIL: restarted"


def test_what_we_ended_has_stopped_whatever_the_scheduler_calls_it() -> None:
    assert ending_of_replica(replica(), JobState.FAILED, "", NOW, is_ours=True).state is ReplicaState.STOPPED


@given(st.sampled_from(JobState), st.lists(st.none() | st.sampled_from(JobState), max_size=12), st.booleans())
def test_whatever_is_heard_jobs_only_move_forward(first: JobState, heard: list[JobState | None], silent: bool) -> None:
    row = job(state=first)
    for i, state in enumerate(heard):
        at = NOW + timedelta(seconds=40 * i)
        update = job_update(row, None if state is None else news(state), silent, at)
        assert update.state is None or may_move(row.state, update.state)
        row = replace(row, state=update.state or row.state, **update.facts)


@given(st.lists(st.none() | st.sampled_from(ReplicaState), max_size=12))
def test_whatever_pilots_say_replicas_only_move_forward(heard: list[ReplicaState | None]) -> None:
    row = replica(state=ReplicaState.QUEUED)
    for state in heard:
        said = report("job-a", *([] if state is None else [ReplicaReport(row.id, state)]))
        for update in replica_updates([] if row.state.is_final else [row], said, NOW):
            assert may_move(row.state, update.state)
            row = replace(row, state=update.state, **update.facts)
