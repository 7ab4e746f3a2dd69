"""Forecasts of queue waits: what jobs are alike, which waits count, and what comes out on recorded histories."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.reconciler.forecast import Spread
from firstkit.reconciler.seasons import availability, forecast, likeness, shape_of, weighted_quantiles
from firstkit.schedulers.scheduler import Resources
from firstkit.store.jobs import Observation
from firstkit.store.polls import Polled
from unit.reconciler import replay
from unit.reconciler.replay import Told, history

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
"""A Tuesday."""
NEEDS = Resources(gpus_per_node=4, walltime_s=4 * 3600, partition="gpu")
SHAPE = shape_of(NEEDS)


def shape(**values: Any) -> str:
    return shape_of(replace(NEEDS, **values))


def wait(seconds: float, ago: timedelta, of: str = SHAPE) -> Observation:
    """One that ended so long before noon."""
    return Observation(seconds, None, None, of, NOON - ago - timedelta(seconds=seconds))


def usual_s(waits: list[Observation], of: str = SHAPE, at: datetime = NOON) -> float:
    made = forecast(waits, of, at)
    assert made is not None
    return made.usual


# -- shapes ------------------------------------------------------------------------------------------------------------


def test_a_shape_is_a_key_that_people_can_read() -> None:
    assert SHAPE == "nodes=1 gpus=4 walltime=4h queue=gpu"
    assert shape_of(Resources()) == "nodes=1 gpus=0 walltime=any"
    assert shape(qos="high prio", walltime_s=1200) == "nodes=1 gpus=4 walltime=30min queue=gpu qos=high_prio"
    assert shape(walltime_s=7 * 86400) == "nodes=1 gpus=4 walltime=longer queue=gpu"


def test_the_less_alike_the_less_it_says() -> None:
    assert likeness(SHAPE, SHAPE) == 1
    falling = [SHAPE, shape(nodes=2), shape(nodes=8), shape(nodes=8, partition="cpu")]
    assert all(likeness(SHAPE, more) > likeness(SHAPE, less) for more, less in pairwise(falling))
    assert 0 < likeness(SHAPE, "") < 1, "nobody knows"


RESOURCES = st.builds(
    Resources,
    nodes=st.integers(1, 1000),
    gpus_per_node=st.integers(0, 16),
    walltime_s=st.none() | st.integers(1, 10**7),
    partition=st.none() | st.text(max_size=20),
    qos=st.none() | st.text(max_size=20),
)


@given(RESOURCES, RESOURCES)
def test_any_two_shapes_can_be_compared(one: Resources, other: Resources) -> None:
    a, b = shape_of(one), shape_of(other)
    assert likeness(a, a) == 1
    assert 0 <= likeness(a, b) <= 1
    assert likeness(a, b) == pytest.approx(likeness(b, a))


# -- which waits count -------------------------------------------------------------------------------------------------


def test_without_any_wait_nothing_is_made_up() -> None:
    assert forecast([], SHAPE, NOON) is None


def test_one_wait_is_usual_and_twice_that_is_late() -> None:
    assert forecast([wait(60, timedelta(hours=1))], SHAPE, NOON) == Spread(60, 120)


def test_waits_that_do_not_say_when_they_began_count_as_they_come() -> None:
    assert forecast([Observation(one, None) for one in (10.0, 20.0, 60.0)], SHAPE, NOON) == Spread(20, 52)


def test_jobs_of_its_shape_count_most() -> None:
    large = shape(nodes=32)
    waits = [wait(s, timedelta(days=d), of) for d in range(1, 15) for s, of in ((60, SHAPE), (6000, large))]
    assert usual_s(waits) == 60
    assert usual_s(waits, large) == 6000


def test_of_a_shape_that_never_waited_all_waits_are_told() -> None:
    waits = [wait(60, timedelta(days=days), SHAPE) for days in range(1, 15)]
    assert usual_s(waits, shape(nodes=64, partition="other")) == 60


def test_the_hour_of_the_day_counts() -> None:
    waits = [wait(s, timedelta(days=d, hours=h)) for d in range(1, 15) for s, h in ((60, 0), (6000, 12))]
    assert usual_s(waits) == 60
    assert usual_s(waits, at=NOON + timedelta(hours=12)) > 3000


def test_the_weekend_counts() -> None:
    saturday = NOON + timedelta(days=4)
    at = [one for days in range(1, 22) if (one := NOON - timedelta(days=days)).weekday() in (2, 3, 5, 6)]
    waits = [Observation(60.0 if one.weekday() >= 5 else 6000.0, None, None, SHAPE, one) for one in at]
    assert usual_s(waits, at=saturday) < usual_s(waits, at=saturday - timedelta(days=2))


def test_what_was_seen_of_late_counts_more() -> None:
    waits = [wait(6000, timedelta(days=days)) for days in range(1, 15)]
    assert usual_s(waits) == 6000
    fresh = [wait(60, timedelta(minutes=30 * number)) for number in range(3)]
    assert usual_s([*fresh, *waits]) < 3000


WAITS = st.lists(
    st.builds(
        lambda seconds, hours, of: wait(seconds, timedelta(hours=hours), of),
        st.floats(0, 1e6),
        st.floats(0, 10_000),
        st.sampled_from(["", SHAPE, shape(nodes=16), shape(partition="cpu")]),
    ),
    max_size=30,
)


@given(WAITS, st.sampled_from([SHAPE, ""]))
def test_a_forecast_lies_among_the_waits_and_late_is_never_before_usual(waits: list[Observation], of: str) -> None:
    made = forecast(waits, of, NOON)
    assert (made is None) == (not waits)
    if made is not None and len(waits) > 1:
        seconds = [one.seconds for one in waits]
        assert min(seconds) <= made.usual <= made.late <= max(seconds)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(1e-6, 1e3)), min_size=1, max_size=30))
def test_quantiles_rise_and_stay_among_the_values(pairs: list[tuple[float, float]]) -> None:
    values = [value for value, _ in pairs]
    found = weighted_quantiles(values, [weight for _, weight in pairs], [0.0, 0.1, 0.5, 0.9, 1.0])
    assert found == sorted(found)
    assert min(values) <= found[0]
    assert found[-1] <= max(values)


def test_weight_counts_as_so_many_values() -> None:
    assert weighted_quantiles([1.0, 2.0, 3.0], [1, 1, 1], [0.5]) == [2.0]
    assert weighted_quantiles([1.0, 2.0, 3.0], [1, 1, 8], [0.5]) == [pytest.approx(2 + 7 / 9)]


# -- whether it answers ------------------------------------------------------------------------------------------------


def test_availability_is_the_share_of_minutes_that_were_answered() -> None:
    hours = [Polled(NOON - timedelta(hours=number), 50, 10) for number in range(48)]
    hours[0] = Polled(NOON, 0, 60)
    assert availability(hours, NOON - timedelta(days=7)) == pytest.approx(47 * 50 / (48 * 60))
    assert availability(hours, NOON) == 0
    assert availability(hours, NOON + timedelta(hours=2)) is None, "it was not asked"


# -- recorded histories ------------------------------------------------------------------------------------------------


@cache
def told(name: str, *, is_new: bool) -> tuple[Told, ...]:
    return tuple(replay.replay(history(name), forecast if is_new else replay.as_before))


def of_cluster(name: str, cluster: str, *, is_new: bool) -> list[Told]:
    return [one for one in told(name, is_new=is_new) if one.line.cluster == cluster]


STEADY = [("seasons", "polaris"), ("seasons", "sophia"), ("seasons", "aurora"), ("shift", "sophia")]
ALL = [*STEADY, ("shift", "polaris")]


def test_a_forecast_is_made_from_the_past_alone() -> None:
    seen: list[tuple[datetime, datetime]] = []

    def rule(waits: Any, _shape: str, at: datetime) -> Spread:
        seen.extend((one.began_at + timedelta(seconds=one.seconds), at) for one in waits)
        return Spread(0, 0)

    assert len(list(replay.replay(history("shift")[:200], rule))) == 200
    assert seen
    assert all(ended <= at for ended, at in seen)


@pytest.mark.parametrize(("name", "cluster"), STEADY)
def test_what_is_usual_is_nearer_than_the_median_of_the_last_twenty(name: str, cluster: str) -> None:
    new, before = (of_cluster(name, cluster, is_new=is_new) for is_new in (True, False))
    assert replay.error_s(new) < replay.error_s(before)


@pytest.mark.parametrize(("name", "cluster"), ALL)
def test_nine_of_ten_are_closer_to_nine_of_ten_than_before(name: str, cluster: str) -> None:
    new, before = (of_cluster(name, cluster, is_new=is_new) for is_new in (True, False))
    assert abs(replay.coverage(new) - 0.9) < abs(replay.coverage(before) - 0.9)
    assert replay.late_loss_s(new) < replay.late_loss_s(before)


@pytest.mark.parametrize(("name", "cluster"), STEADY)
def test_nine_of_ten_are_about_nine_of_ten(name: str, cluster: str) -> None:
    assert 0.87 <= replay.coverage(of_cluster(name, cluster, is_new=True)) <= 0.94


def test_where_the_load_jumps_eight_of_ten_are_within() -> None:
    new, before = (of_cluster("shift", "polaris", is_new=is_new) for is_new in (True, False))
    assert replay.coverage(new) >= 0.78
    assert replay.error_s(new) < 1.2 * replay.error_s(before), "the last twenty are quicker to forget"


def test_the_cluster_that_is_chosen_by_what_was_learned_is_the_better_one() -> None:
    new, before = (told("seasons", is_new=is_new) for is_new in (True, False))
    assert replay.regret_s(new, lambda one: one.forecast.usual) < 0.75 * replay.regret_s(
        before, lambda one: one.forecast.usual
    )


@pytest.mark.parametrize("name", ["seasons", "shift"])
def test_with_what_schedulers_say_no_worse_cluster_is_chosen(name: str) -> None:
    new, before = (told(name, is_new=is_new) for is_new in (True, False))
    by_both, by_learning = (replay.regret_s(new, rule) for rule in (_both, _learned))
    assert by_both <= 1.05 * replay.regret_s(before, _both)
    assert by_both < by_learning


def _both(one: Told) -> float:
    return one.usual_s


def _learned(one: Told) -> float:
    return one.forecast.usual


def test_the_histories_are_those_that_the_program_records() -> None:
    from unit.reconciler.histories.record import HISTORIES, record

    models, days, each_day, seed = HISTORIES["shift"]
    made = [{**line, "at": datetime.fromisoformat(str(line["at"]))} for line in record(models, days, each_day, seed)]
    assert made == [
        {name: getattr(line, name) for name in ("at", "cluster", "shape", "wait_s", "said_s")}
        for line in history("shift")
    ]
