from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.reconciler.autoscale import Need, Policy
from firstkit.reconciler.placement import Place, Queued, Share, allocate

POLICY = Policy(hot=0, most=3, max_in_flight=4, idle_timeout_s=60.0)


def place(cluster: str = "a", hot: int = 0, most: int = 3, **values: Any) -> Place:
    return Place(f"m@{cluster}", cluster, replace(POLICY, hot=hot, most=most), **values)


def asked(requests: int, *clusters: str) -> Need:
    return Need(frozenset(clusters) or None, waiting=requests)


def wanted(places: list[Place], *needs: Need) -> list[int]:
    shares = allocate(places, needs)
    return [shares[one.name].wanted for one in places]


def test_hot_ones_need_no_demand_and_one_request_wants_one_replica() -> None:
    assert wanted([place(hot=2)]) == [2]
    assert wanted([place()], asked(1)) == [1]


def test_what_exceeds_the_room_of_the_hot_ones_wants_more() -> None:
    assert wanted([place(hot=1)], asked(4)) == [1]
    assert wanted([place(hot=1)], asked(5)) == [2]


def test_the_next_place_takes_what_the_first_cannot() -> None:
    assert wanted([place(most=1), place("b")], asked(9)) == [1, 2]
    assert wanted([place(obstacle="back-off"), place("b")], asked(9)) == [0, 3]
    assert wanted([place(new=1, limit="enough"), place("b")], asked(9)) == [1, 2]


def test_what_others_serve_is_not_started_here() -> None:
    cloud = place("cloud", most=0, served=8, obstacle="not ours")
    assert wanted([cloud, place()], asked(8)) == [0, 0]
    assert wanted([cloud, place()], asked(9)) == [0, 1]


def test_new_ones_go_where_they_serve_soonest() -> None:
    late, soon = place(wait_s=600.0, load_s=30.0), place("b", wait_s=20.0, load_s=60.0)
    assert wanted([late, soon], asked(1)) == [0, 1]


def test_the_order_of_the_file_decides_between_equals() -> None:
    assert wanted([place(wait_s=12.0), place("b")], asked(1)) == [1, 0]
    assert wanted([place(wait_s=1050.0), place("b", wait_s=1000.0)], asked(1)) == [1, 0]


def test_a_cluster_whose_scheduler_is_often_silent_counts_as_slower() -> None:
    shaky = place(load_s=100.0, availability=0.5)
    assert wanted([shaky, place("b", load_s=150.0)], asked(1)) == [0, 1]
    assert wanted([shaky, place("b", load_s=250.0)], asked(1)) == [1, 0]
    assert wanted([place(load_s=100.0, availability=0.0)], asked(1)) == [1]


def test_a_first_load_is_taken_to_be_as_it_is_elsewhere() -> None:
    assert wanted([place(load_s=300.0), place("b", wait_s=60.0)], asked(1)) == [1, 0]


def test_what_is_there_comes_before_what_would_be_sooner() -> None:
    for there in (place("b", ready=1), place("b", loading=1), place("b", queued=(Queued(3000.0),))):
        assert wanted([place(), there], asked(1)) == [0, 1]


def test_what_serves_comes_before_what_loads_and_that_before_what_waits() -> None:
    queued, loading, ready = place(queued=(Queued(1.0),)), place("b", loading=1), place("c", ready=1)
    assert wanted([queued, loading, ready], asked(4)) == [0, 0, 1]
    assert wanted([queued, loading, ready], asked(8)) == [0, 1, 1]
    assert wanted([queued, loading, ready], asked(9)) == [1, 1, 1]


def test_one_that_is_overtaken_keeps_its_place_until_the_other_serves() -> None:
    late = place(queued=(Queued(left_s=600.0, waited_s=300.0, is_late=True),))
    assert wanted([late, place("b", wait_s=200.0)], asked(1)) == [1, 1]
    assert wanted([late, place("b", queued=(Queued(100.0, 5.0),))], asked(1)) == [1, 1]
    assert wanted([late, place("b", loading=1)], asked(1)) == [0, 1]


@pytest.mark.parametrize(
    ("queued", "wait_s"),
    [
        (Queued(600.0, 300.0, is_late=False), 0.0),
        (Queued(600.0, 300.0, is_late=True), 271.0),
        (Queued(59.0, 300.0, is_late=True), 0.0),
    ],
)
def test_one_that_is_as_forecast_or_hardly_later_is_not_overtaken(queued: Queued, wait_s: float) -> None:
    assert wanted([place(queued=(queued,)), place("b", wait_s=wait_s)], asked(1)) == [1, 0]


def test_nothing_more_is_put_into_a_queue_in_which_one_is_overtaken() -> None:
    late = place(queued=(Queued(600.0, 300.0, is_late=True),))
    assert wanted([late, place("b", most=1, wait_s=10.0)], asked(9)) == [1, 1]


def test_of_more_than_are_needed_those_that_wait_longest_are_kept() -> None:
    young, old = place(queued=(Queued(50.0, 1.0),)), place("b", queued=(Queued(50.0, 30.0),))
    assert wanted([young, old], asked(1)) == [0, 1]


def test_requests_that_may_go_to_few_clusters_come_first() -> None:
    places = [place(ready=1), place("b", ready=1)]
    assert wanted(places, asked(4), asked(4, "a")) == [1, 1]
    assert wanted(places, asked(2), asked(2, "b")) == [0, 1]
    assert wanted([place(), place("b")], asked(9, "b")) == [0, 3]


def test_what_is_asked_of_a_cluster_that_is_left_stays_unanswered() -> None:
    shares = allocate([place(is_closing=True, obstacle="drained"), place("b")], [asked(1, "a")])
    assert (shares["m@a"].wanted, shares["m@b"].wanted) == (0, 0)
    assert shares["m@a"].waits_for == ("drained",)


def test_hot_ones_of_a_cluster_that_is_left_move() -> None:
    left = place(hot=2, is_closing=True, obstacle="drained", leaving=2)
    assert wanted([left, place("b")]) == [0, 2]
    assert wanted([left, place("b", hot=1)]) == [0, 2], "what is hot there anyway counts"
    assert wanted([left, place("b", hot=2)]) == [0, 2]
    assert wanted([left, place("b", obstacle="silent")]) == [0, 0]


def test_those_that_leave_stand_in_until_others_serve() -> None:
    left = place(hot=1, is_closing=True, obstacle="drained", leaving=1)
    assert allocate([left, place("b", loading=1)], ())["m@a"].stand_in == 1
    assert allocate([left, place("b", ready=1)], ())["m@a"].stand_in == 0
    ending = place(hot=1, leaving=1)
    assert allocate([ending], ())["m@a"] == Share(
        1, 1, ("1 hot", "1 that will end go on until others serve"), (), False
    )
    assert allocate([replace(ending, ready=1)], ())["m@a"].stand_in == 0


def test_where_nobody_can_follow_those_that_end_serve_to_the_end() -> None:
    assert allocate([place(leaving=1, obstacle="back-off")], [asked(1)])["m@a"].stand_in == 1
    left = place(leaving=1, obstacle="drained", is_closing=True)
    assert allocate([left], [asked(1)])["m@a"].stand_in == 0, "nothing new is sent there anyway"


def test_one_too_many_serves_on_while_those_that_are_counted_on_do_not() -> None:
    assert wanted([place(hot=1, loading=1), place("b", ready=1)]) == [1, 1]
    assert wanted([place(hot=1, ready=1), place("b", ready=1)]) == [1, 0]


def test_what_ran_when_the_controller_started_is_kept_and_not_replaced() -> None:
    assert wanted([place(ready=2, kept=3)]) == [2]
    assert wanted([place(kept=3)]) == [0]


def test_reasons_come_with_the_decision() -> None:
    need = Need(None, waiting=4, in_flight=8)
    shares = allocate([place(hot=1, most=2), place("b", new=0, limit="at most 4 nodes may be used")], [need])
    assert shares["m@a"].why == ("1 hot", "demand: 12 requests, 4 wait")
    assert shares["m@a"].waits_for == ("at most 2 replicas may run here",)
    assert shares["m@b"].waits_for == ("at most 4 nodes may be used",)
    assert (shares["m@a"].is_considered, shares["m@b"].is_considered) == (True, False)


PLACES = st.builds(
    lambda cluster, hot, more, each, **values: Place(
        f"m@{cluster}", cluster, Policy(hot, hot + more, each, 60.0), **values
    ),
    st.just("a"),
    st.integers(0, 3),
    st.integers(0, 4),
    st.integers(1, 5),
    ready=st.integers(0, 3),
    loading=st.integers(0, 2),
    queued=st.lists(st.builds(Queued, st.floats(0, 1e4), st.floats(0, 1e4), st.booleans()), max_size=3).map(
        lambda found: tuple(sorted(found, key=lambda one: -one.waited_s))
    ),
    leaving=st.integers(0, 2),
    kept=st.integers(0, 3),
    new=st.integers(0, 4),
    obstacle=st.sampled_from(["", "", "silent"]),
    is_closing=st.booleans(),
    wait_s=st.floats(0, 1e4),
    load_s=st.none() | st.floats(0, 1e3),
).map(lambda one: replace(one, obstacle="left") if one.is_closing else one)
ALL_PLACES = st.lists(PLACES, min_size=1, max_size=4).map(
    lambda found: [replace(one, name=f"m@{c}", cluster=c) for one, c in zip(found, "abcd", strict=False)]
)
NEEDED = st.lists(
    st.builds(Need, st.none() | st.frozensets(st.sampled_from("abcd"), min_size=1), st.integers(0, 30)), max_size=3
)


@given(ALL_PLACES, NEEDED)
def test_limits_are_kept_whatever_is_asked(places: list[Place], needs: list[Need]) -> None:
    shares = allocate(places, needs)
    for one in places:
        share, policy = shares[one.name], one.policy
        assert share.wanted <= max(policy.most, one.alive)
        assert share.stand_in <= one.leaving
        started = share.wanted - one.alive
        if started > 0:
            assert not one.is_closing
            assert started <= max(one.new, policy.hot - one.alive)
            assert not one.obstacle or share.wanted <= policy.hot
        if not one.is_closing:
            assert share.wanted >= policy.hot


@given(ALL_PLACES, NEEDED)
def test_what_can_be_served_is_served(places: list[Place], needs: list[Need]) -> None:
    """Requests that may go anywhere lack room only where nothing more may run."""
    anywhere = [need for need in needs if need.clusters is None]
    shares = allocate(places, anywhere)
    room = sum(shares[one.name].wanted * one.policy.max_in_flight for one in places)
    if room < sum(need.waiting for need in anywhere):
        for one in places:
            share = shares[one.name]
            is_full = share.wanted >= min(one.policy.most, one.alive + one.new)
            assert one.obstacle or is_full or one.queued
