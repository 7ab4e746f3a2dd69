from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.reconciler.forecast import (
    Experience,
    Outlook,
    Spread,
    back_off,
    best,
    deployment_outlook,
    spread,
    wait_s,
)
from firstkit.states import JobState, ModelStatus, ReplicaState
from firstkit.store.jobs import Observation, ReplicaRow
from unit.reconciler.support import NOW, job, replica


def seen(*seconds: float) -> tuple[Observation, ...]:
    return tuple(Observation(one, None) for one in seconds)


KNOWN = Experience(loads=seen(10, 12, 14), waits=seen(100, 100))


def outlook(*rows: ReplicaRow, known: Experience = KNOWN, ended: list[ReplicaRow] | None = None, **values: object):  # type: ignore[no-untyped-def]
    jobs = {row.job_id: job(row.job_id, **values) for row in rows}  # type: ignore[arg-type]
    return deployment_outlook(rows, jobs, ended or [], known, NOW)


def ago(seconds: float) -> dict[str, object]:
    return {"started_at": NOW - timedelta(seconds=seconds), "created_at": NOW - timedelta(seconds=seconds)}


def test_a_ready_replica_makes_it_live() -> None:
    rows = [replica(state=ReplicaState.STARTING), replica("rep-b")]
    assert outlook(*rows) == Outlook(ModelStatus.LIVE, 0.0)


def test_the_eta_of_a_load_falls_with_time() -> None:
    assert outlook(replica(state=ReplicaState.STARTING, **ago(0))).eta_s == 12
    assert outlook(replica(state=ReplicaState.STARTING, **ago(5))).eta_s == 7


def test_what_its_pilot_says_that_it_does_is_told() -> None:
    row = replica(state=ReplicaState.STARTING, **ago(5))
    words = "copies its weights: 3.1 of 12.6 GB"
    found = deployment_outlook([row], {row.job_id: job()}, [], KNOWN, NOW, doing={row.id: words})
    assert (found.status, found.eta_s, found.reason, found.waits_for) == (ModelStatus.STARTING, 7, words, words)


def test_a_load_that_takes_longer_than_usual_is_measured_by_the_slow_ones() -> None:
    eta_s = outlook(replica(state=ReplicaState.STARTING, **ago(13))).eta_s
    assert 0 < eta_s < 1


def test_what_takes_longer_than_it_ever_should_has_no_eta() -> None:
    assert outlook(replica(state=ReplicaState.STARTING, **ago(60))).eta_s is None


def test_without_experience_nothing_is_made_up() -> None:
    for row in (replica(state=ReplicaState.STARTING), replica(state=ReplicaState.QUEUED)):
        assert outlook(row, known=Experience()).eta_s is None
    assert outlook(known=Experience()) == Outlook(ModelStatus.OFFLINE, None)


def test_a_waiting_job_waits_and_then_loads() -> None:
    row = replica(state=ReplicaState.QUEUED, **ago(40))
    found = outlook(row, state=JobState.PENDING, started_at=None, reason="waits for cores")
    assert (found.status, found.eta_s) == (ModelStatus.QUEUED, 60 + 12)
    assert "waits for cores" in found.reason


@pytest.mark.parametrize(
    ("said_s", "learned_s", "waits_s"),
    [
        (None, None, None),
        (None, 60.0, 60.0),
        (600.0, None, 600.0),
        (600.0, 60.0, 600.0),
        (30.0, 60.0, 60.0),
        (5.0, 60.0, 5.0),
    ],
)
def test_of_two_forecasts_the_later_holds_unless_resources_are_free(
    said_s: float | None, learned_s: float | None, waits_s: float | None
) -> None:
    assert wait_s(said_s, learned_s) == waits_s


def test_a_waiting_job_says_its_place_and_when_it_starts() -> None:
    row = replica(state=ReplicaState.QUEUED, **ago(40))
    starts_at = NOW + timedelta(seconds=300)
    found = outlook(row, state=JobState.PENDING, started_at=None, reason="Resources", position=3, starts_at=starts_at)
    assert (found.position, found.start_in_s, found.eta_s) == (3, 300, 312)
    assert found.reason == "the job waits: position 3, Resources"
    assert found.waits_for == "queue: position 3, Resources"


def test_a_plan_for_a_time_that_is_long_past_is_no_plan() -> None:
    row = replica(state=ReplicaState.QUEUED, **ago(40))
    for late_s, left_s in ((61, 60), (59, 0)):
        starts_at = NOW - timedelta(seconds=late_s)
        assert outlook(row, state=JobState.PENDING, started_at=None, starts_at=starts_at).start_in_s == left_s


def test_a_successor_is_warm_when_nine_of_ten_were() -> None:
    assert Experience().warm_s is None
    assert Experience(loads=seen(10, 10)).warm_s == 10
    assert Experience(loads=seen(10, 10), waits=seen(60, 160)).warm_s == 10 + 150


def test_the_waits_of_its_shape_are_told_where_they_are_known() -> None:
    known = Experience(loads=seen(10, 10), waits=seen(60, 160), wait=Spread(20, 30))
    assert (known.usual_wait_s, known.late_wait_s, known.warm_s) == (20, 30, 40)
    assert (known.wait_left_s(5), known.wait_left_s(25), known.wait_left_s(31)) == (15, 5, None)


def test_what_is_on_its_way_says_what_nine_of_ten_would_not_exceed() -> None:
    known = Experience(loads=seen(10, 10), waits=seen(100, 200))
    loading, overdue = (replica(state=ReplicaState.STARTING, **ago(seconds)) for seconds in (4, 11))
    assert (outlook(loading, known=known).late_s, outlook(overdue, known=known).late_s) == (6, None)
    row = replica(state=ReplicaState.QUEUED, **ago(40))
    waiting = {"state": JobState.PENDING, "started_at": None}
    assert outlook(row, known=known, **waiting).late_s == 190 - 40 + 10
    planned = outlook(row, known=known, starts_at=NOW + timedelta(seconds=900), **waiting)
    assert planned.late_s == 900 + 10, "nobody believes in less than the scheduler says"
    assert outlook(replica(state=ReplicaState.QUEUED), known=known).late_s == 10
    assert outlook(row, known=Experience(), **waiting).late_s is None


def test_coverage_is_the_share_of_waits_that_were_not_late() -> None:
    waits = (Observation(10, 5, 9), Observation(10, 5, 10), Observation(10, 5, 30), Observation(10, None))
    assert Experience(waits=waits).wait_coverage == pytest.approx(2 / 3)
    assert Experience(waits=seen(10)).wait_coverage is None


def test_back_off_is_said_while_it_lasts() -> None:
    row = replica("rep-x", ReplicaState.FAILED, ended_at=NOW, reason="exit status 3")
    assert back_off([row, row], NOW) == (
        "back-off until 12:00:02 UTC: failed to start 2 times, last: exit status 3 (rep-x)"
    )
    assert back_off([row, row], NOW + timedelta(seconds=2)) == ""


def test_a_job_that_started_only_loads() -> None:
    found = outlook(replica(state=ReplicaState.QUEUED))
    assert (found.status, found.eta_s) == (ModelStatus.STARTING, 12)


def test_offline_says_what_a_start_would_take() -> None:
    assert outlook() == Outlook(ModelStatus.OFFLINE, 112)


def test_failures_are_said_with_the_next_attempt() -> None:
    row = replica("rep-x", ReplicaState.FAILED, ended_at=NOW, reason="exit status 3")
    found = outlook(ended=[row, row])
    assert found.status is ModelStatus.OFFLINE
    assert found.reason == "failed to start 2 times, last: exit status 3 (rep-x); the next attempt comes in 2 s"
    assert "failed to start" in outlook(replica(state=ReplicaState.STARTING), ended=[row]).reason


def test_the_best_of_several() -> None:
    queued, slow, quick = (
        Outlook(ModelStatus.QUEUED, 1.0),
        Outlook(ModelStatus.STARTING, None),
        Outlook(ModelStatus.STARTING, 9.0),
    )
    assert best([queued, slow, quick]) is quick
    assert best([queued, slow]) is slow
    assert best([]).status is ModelStatus.OFFLINE


def test_the_error_is_that_of_forecasts_that_were_made() -> None:
    loads = (Observation(10, 12), Observation(10, 9), Observation(10, None))
    assert Experience(loads).error_s == pytest.approx(1.5)
    assert Experience(seen(1, 2)).error_s is None


TIMES = st.lists(st.floats(0, 1e6).map(lambda s: Observation(s, None)), max_size=20).map(tuple)


@given(TIMES, TIMES, st.sampled_from(ReplicaState), st.sampled_from(JobState), st.floats(0, 1e6))
def test_an_eta_is_never_negative(
    loads: tuple[Observation, ...], waits: tuple[Observation, ...], state: ReplicaState, of: JobState, age: float
) -> None:
    found = outlook(replica(state=state, **ago(age)), known=Experience(loads, waits), state=of)
    assert found.eta_s is None or found.eta_s >= 0
    if loads:
        typical = spread(loads)
        assert typical is not None
        assert min(one.seconds for one in loads) <= typical.usual


@given(TIMES, st.lists(st.floats(0, 1e6), min_size=2, max_size=2))
def test_an_eta_falls_as_fast_as_time_passes_until_it_is_overdue(
    loads: tuple[Observation, ...], ages: list[float]
) -> None:
    typical = spread(loads)
    earlier, later = sorted(ages)
    left = Experience(loads).load_left_s(earlier), Experience(loads).load_left_s(later)
    if typical is None or later >= typical.late:
        assert left[1] is None
    elif later < typical.usual or earlier >= typical.usual:
        assert left[0] is not None
        assert left[1] == pytest.approx(left[0] - (later - earlier), abs=1e-6)
    else:
        assert left[1] == typical.late - later, "it takes long: the slow ones are the measure now"


@given(st.lists(st.tuples(st.sampled_from([ReplicaState.STOPPED, ReplicaState.FAILED]), st.floats(0, 1e6))), TIMES)
def test_an_offline_model_never_has_less_than_no_time_to_wait(
    ends: list[tuple[ReplicaState, float]], loads: tuple[Observation, ...]
) -> None:
    ended = [replica(f"rep-{i}", state, ended_at=NOW - timedelta(seconds=ago)) for i, (state, ago) in enumerate(ends)]
    found = outlook(known=Experience(loads), ended=ended)
    assert found.status is ModelStatus.OFFLINE
    assert (found.eta_s is None) == (not loads)
    assert found.eta_s is None or found.eta_s >= 0
