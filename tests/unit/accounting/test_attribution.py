"""Node-hours are split by tokens, hour by hour, and nothing is lost whatever the numbers are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.accounting.attribution import HOUR, MILLION, Job, Part, Use, Uses, attribute, hour_of, split
from firstkit.accounting.months import day_after, month_after, month_of, parse_month

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
LONG_AGO, FAR = NOON - timedelta(days=1000), NOON + timedelta(days=1000)
_moments = st.timedeltas(timedelta(0), timedelta(hours=30)).map(lambda after: NOON + after)
_uses = st.lists(
    st.builds(
        Use, st.sampled_from("pqr"), st.sampled_from("mn"), st.integers(0, 2**40), st.integers(0, 9), st.integers(0, 9)
    ),
    max_size=4,
)


@st.composite
def _histories(draw: st.DrawFn) -> tuple[list[Job], Uses]:
    """Some jobs, and uses of them in hours of which a few are not theirs."""
    jobs = []
    for number in range(draw(st.integers(1, 3))):
        begin, end = sorted((draw(_moments), draw(_moments)))
        jobs.append(Job(f"job-{number}", draw(st.integers(1, 10_000)), begin, end))
    hours = st.integers(-2, 33).map(lambda after: NOON + after * HOUR)
    keys = st.tuples(st.sampled_from([job.id for job in jobs]), hours)
    return jobs, draw(st.dictionaries(keys, _uses, max_size=8))


def _millionths(parts: Iterable[Part]) -> Counter[str]:
    sums: Counter[str] = Counter()
    for part in parts:
        sums[part.job_id] += part.millionths
    return sums


def _of_projects(*parts: Part) -> dict[str, float]:
    sums: Counter[str] = Counter()
    for part in parts:
        sums[part.project_id] += part.millionths
    return {project: millionths / MILLION for project, millionths in sums.items() if millionths}


# -- whatever the numbers are ------------------------------------------------------------------------------------------


@given(_histories())
def test_the_parts_of_a_job_are_its_node_hours(history: tuple[list[Job], Uses]) -> None:
    jobs, uses = history
    sums = _millionths(attribute(jobs, uses, LONG_AGO, FAR, "idle"))
    for job in jobs:
        true = Fraction((job.ended_at - job.started_at) // timedelta(microseconds=1) * job.nodes, 3600)
        assert sums[job.id] == int(true), "in whole millionths of a node-hour"


@given(_histories(), st.lists(_moments, max_size=4))
def test_intervals_that_meet_add_up_to_the_whole(history: tuple[list[Job], Uses], cuts: list[datetime]) -> None:
    jobs, uses = history
    edges = [LONG_AGO, *sorted(cuts), FAR]
    sums: Counter[str] = Counter()
    for since, until in pairwise(edges):
        sums += _millionths(attribute(jobs, uses, since, until, "idle"))
    assert sums == +_millionths(attribute(jobs, uses, LONG_AGO, FAR, "idle"))


@given(_histories(), st.integers(-1, 31))
def test_intervals_that_meet_on_the_hour_add_up_for_each_project(history: tuple[list[Job], Uses], cut: int) -> None:
    jobs, uses = history
    middle = NOON + cut * HOUR
    pieces = [*attribute(jobs, uses, LONG_AGO, middle, "idle"), *attribute(jobs, uses, middle, FAR, "idle")]
    assert _of_projects(*pieces) == _of_projects(*attribute(jobs, uses, LONG_AGO, FAR, "idle"))


@given(_histories())
def test_all_tokens_and_requests_are_in_some_part(history: tuple[list[Job], Uses]) -> None:
    jobs, uses = history
    parts = list(attribute(jobs, uses, LONG_AGO, FAR, "idle"))
    of_uses = [use for of_hour in uses.values() for use in of_hour]
    assert sum(part.tokens for part in parts) == sum(use.tokens for use in of_uses)
    assert sum(part.requests for part in parts) == sum(use.requests for use in of_uses)


@given(st.integers(0, 10**15), st.lists(st.integers(0, 2**60), min_size=1, max_size=8).filter(any))
def test_no_share_is_wrong_by_more_than_rounding(total: int, weights: list[int]) -> None:
    shares = split(total, weights)
    assert sum(shares) == total
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - Fraction(total * weight, sum(weights))) < 1
        assert share >= 0
        assert weight or share == 0


@given(_histories())
def test_the_order_of_what_was_found_changes_nothing(history: tuple[list[Job], Uses]) -> None:
    jobs, uses = history
    turned = {key: of_hour[::-1] for key, of_hour in list(uses.items())[::-1]}
    once = attribute(jobs, uses, LONG_AGO, FAR, "idle")
    assert sorted(attribute(jobs[::-1], turned, LONG_AGO, FAR, "idle")) == sorted(once)


# -- one by one --------------------------------------------------------------------------------------------------------


def _job(minutes: int = 60, nodes: int = 4, begin: datetime = NOON) -> Job:
    return Job("job", nodes, begin, begin + timedelta(minutes=minutes))


def _used(project_id: str, tokens: int, model: str = "m", requests: int = 1) -> Use:
    return Use(project_id, model, tokens, tokens, requests)


def test_an_hour_is_split_as_its_tokens_are() -> None:
    uses = {("job", NOON): [_used("p", 300), _used("q", 100)]}
    assert _of_projects(*attribute([_job()], uses, LONG_AGO, FAR, "idle")) == {"p": 3.0, "q": 1.0}


def test_each_hour_has_its_own_split_and_one_without_tokens_is_idle() -> None:
    uses = {("job", NOON): [_used("p", 1)], ("job", NOON + HOUR): [_used("q", 10**9)]}
    parts = attribute([_job(minutes=210)], uses, LONG_AGO, FAR, "idle")
    assert _of_projects(*parts) == {"p": 4.0, "q": 4.0, "idle": 6.0}


def test_replicas_of_several_models_share_what_their_job_took() -> None:
    uses = {("job", NOON): [_used("p", 10, "big"), _used("p", 20, "small"), _used("q", 10, "small")]}
    parts = list(attribute([_job()], uses, LONG_AGO, FAR, "idle"))
    assert [(part.project_id, part.model, part.millionths) for part in parts] == [
        ("p", "big", MILLION),
        ("p", "small", 2 * MILLION),
        ("q", "small", MILLION),
    ]


def test_an_hour_of_requests_that_failed_is_idle_and_they_are_counted() -> None:
    parts = list(attribute([_job()], {("job", NOON): [_used("p", 0, requests=7)]}, LONG_AGO, FAR, "idle"))
    assert parts == [Part("job", NOON, "idle", "", 4 * MILLION, 0, 0), Part("job", NOON, "p", "m", 0, 0, 7)]


def test_requests_from_before_the_job_held_nodes_cost_nothing_and_are_counted() -> None:
    parts = list(attribute([_job()], {("job", NOON - HOUR): [_used("p", 5)]}, LONG_AGO, FAR, "idle"))
    assert _of_projects(*parts) == {"idle": 4.0}
    assert [(part.project_id, part.tokens) for part in parts if part.requests] == [("p", 5)]


def test_requests_of_a_job_that_never_started_cost_nothing() -> None:
    parts = list(attribute([], {("job", NOON): [_used("p", 5)]}, LONG_AGO, FAR, "idle"))
    assert [(part.project_id, part.millionths, part.tokens) for part in parts] == [("p", 0, 5)]


def test_an_interval_that_cuts_an_hour_splits_its_piece_as_the_whole_hour_is() -> None:
    uses = {("job", NOON): [Use("p", "m", 300, 0, 0), Use("q", "m", 100, 100, 1)]}
    parts = attribute([_job()], uses, NOON + timedelta(minutes=45), FAR, "idle")
    assert _of_projects(*parts) == {"p": 0.75, "q": 0.25}


def test_a_job_whose_end_is_before_its_start_took_nothing() -> None:
    """Two hosts need not have the same time."""
    assert list(attribute([_job(minutes=-1)], {}, LONG_AGO, FAR, "idle")) == []


@pytest.mark.parametrize("offset", [timedelta(hours=-9, minutes=-30), timedelta(hours=5, minutes=45)])
def test_hours_are_those_of_utc(offset: timedelta) -> None:
    moment = (NOON + timedelta(minutes=59)).astimezone(timezone(offset))
    assert hour_of(moment) == NOON
    assert hour_of(moment).tzinfo is UTC


# -- months ------------------------------------------------------------------------------------------------------------


def test_months_begin_at_midnight_of_utc() -> None:
    late = datetime(2026, 12, 31, 23, 30, tzinfo=timezone(timedelta(hours=-2)))
    assert month_of(late) == datetime(2027, 1, 1, tzinfo=UTC)
    assert month_after(late) == datetime(2027, 2, 1, tzinfo=UTC)
    assert month_after(datetime(2026, 12, 1, tzinfo=UTC)) == datetime(2027, 1, 1, tzinfo=UTC)
    assert day_after(late) == datetime(2027, 1, 2, tzinfo=UTC)


def test_a_month_as_people_write_it() -> None:
    assert parse_month(" 2026-12 ") == (datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    "text", ["", "2026", "2026-13", "2026-00", "0000-01", "9999-12", "26-11", "2026-11-01", "\u0662026-11"]
)
def test_what_is_no_month(text: str) -> None:
    with pytest.raises(ValueError, match="2026-11"):
        parse_month(text)
