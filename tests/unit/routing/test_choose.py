"""Where a request goes, against an oracle that looks at every replica."""

from __future__ import annotations

from collections import Counter
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from firstkit.links.messages import END_MARGIN_S
from firstkit.onsite import pilot
from firstkit.routing.choose import NEARLY_FULL, REFRESH_S, burden, choose, expected_finish, prefer, time_left

SHARES = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, inf]
lists = st.lists(st.sampled_from(SHARES) | st.floats(0, 2), max_size=12)
seconds = st.floats(0, 1e6)


def oracle(finishes: list[float], first: int) -> int | None:
    """The first of the earliest, from ``first`` on and round the end."""
    order = [(first + step) % len(finishes) for step in range(len(finishes))] if finishes else []
    eligible = [index for index in order if finishes[index] < inf]
    return min(eligible, key=lambda index: finishes[index], default=None)


@given(lists, st.integers(0, 40))
def test_it_is_the_one_that_finishes_first(finishes: list[float], first: int) -> None:
    assert choose(finishes, first) == oracle(finishes, first)


@given(lists, st.integers(0, 40))
def test_nobody_is_chosen_exactly_when_nobody_takes_any(finishes: list[float], first: int) -> None:
    index = choose(finishes, first)
    assert (index is None) == all(finish == inf for finish in finishes)
    if index is not None:
        assert finishes[index] == min(finishes) < inf


@given(st.lists(st.sampled_from([0.5, inf]), min_size=1, max_size=8), st.integers(1, 5))
def test_equals_take_turns(finishes: list[float], rounds: int) -> None:
    equals = [index for index, finish in enumerate(finishes) if finish < inf]
    first, chosen = 0, Counter[int]()
    for _ in range(rounds * len(equals)):
        index = choose(finishes, first)
        assert index is not None
        chosen[index] += 1
        first = index + 1
    assert chosen == dict.fromkeys(equals, rounds)


@given(lists, st.integers(0, 40))
def test_finishes_are_only_read(finishes: list[float], first: int) -> None:
    before = list(finishes)
    choose(finishes, first)
    assert finishes == before


# -- what is expected --------------------------------------------------------------------------------------------------


@given(st.integers(0, 20), st.integers(1, 20), st.floats(0.25, 4))
def test_more_requests_and_slower_replicas_finish_later(in_flight: int, room: int, slowness: float) -> None:
    finish = expected_finish(in_flight, room, slowness)
    assert (finish == inf) == (in_flight >= room)
    if finish < inf:
        assert finish < expected_finish(in_flight + 1, room, slowness)
        assert finish < expected_finish(in_flight, room, slowness * 1.1)
        assert expected_finish(2 * in_flight + 1, 2 * room, slowness) == finish, "twice the room takes twice as many"


shares = st.floats(0, 1)
few = st.integers(0, 100)


@given(st.integers(1, 64), few, few, shares)
def test_an_engine_that_says_it_is_busy_finishes_later(room: int, others: int, waiting: int, cache_use: float) -> None:
    assert burden(room, 0, 0, min(cache_use, NEARLY_FULL)) == 0, "a cache that is used does no harm"
    found = burden(room, others, waiting, cache_use)
    assert 0 <= found <= 2 * room
    assert found >= min(2 * room, others + waiting)
    assert found <= burden(room, others + 1, waiting, cache_use) <= found + 1 + 1e-9
    assert found <= burden(room, others, waiting + 1, cache_use)
    assert found <= burden(room, others, waiting, 1.0) <= found + room / 2 + 1e-9


@given(st.integers(0, 20), st.integers(1, 20), st.floats(0.25, 4), st.floats(0, 40) | st.integers(0, 20).map(float))
def test_a_burden_takes_no_room(in_flight: int, room: int, slowness: float, burdened: float) -> None:
    """It may be gone already: a replica that has room for us is late at most, never closed."""
    finish, free = expected_finish(in_flight, room, slowness, burdened), expected_finish(in_flight, room, slowness)
    assert (finish == inf) == (free == inf)
    assert finish >= free
    if burdened == int(burdened) and in_flight + burdened < room:
        assert finish == expected_finish(in_flight + int(burdened), room, slowness), "it counts like requests of ours"


def test_a_full_cache_is_as_bad_as_half_of_the_room() -> None:
    assert [burden(16, 0, 0, share) for share in (0.0, 0.8, 1.0)] == [0, 0, 8]
    assert 3.9 < burden(16, 0, 0, 0.9) < 4.1


def test_a_pilot_leaves_when_we_think_it_does() -> None:
    assert END_MARGIN_S == pilot.END_MARGIN_S


@given(seconds, seconds, seconds, seconds)
def test_who_goes_is_given_nothing_that_it_cannot_finish(born: float, life: float, now: float, need: float) -> None:
    left, needed = time_left(born, born + life, now, need)
    assert needed <= need
    if needed <= left and needed == need:
        assert now + need <= born + life - min(END_MARGIN_S, life / 4) - REFRESH_S + 1e-6


@given(st.floats(8, 1e6), seconds)
def test_every_replica_takes_requests_for_nearly_half_of_its_life(life: float, need: float) -> None:
    """However long requests take: else none would be served where no job is long enough."""
    left, needed = time_left(0.0, life, life * 0.25 - REFRESH_S, need)
    assert needed <= left


def test_without_an_end_there_is_time_for_all() -> None:
    assert time_left(0.0, inf, 1e12, 1e9) == (inf, 1e9)


def test_on_a_closed_cluster_there_is_none() -> None:
    left, needed = time_left(5.0, -inf, 10.0, 0.0)
    assert left == -inf < needed


# -- affinity ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(SHARES), min_size=1, max_size=8), st.data())
def test_the_one_that_knows_is_preferred_unless_it_is_clearly_busier(
    finishes: list[float], data: st.DataObject
) -> None:
    chosen = choose(finishes, 0)
    if chosen is None:
        return
    known = data.draw(st.lists(st.integers(0, len(finishes) - 1)))
    bonus = data.draw(st.sampled_from([0.0, 0.25, 0.5]))
    best = prefer(finishes, chosen, known, bonus)
    near = [index for index in known if finishes[index] <= finishes[chosen] + bonus]
    assert (best is None) == (not near)
    if best is not None:
        assert best in near
        assert finishes[best] == min(finishes[index] for index in known) < inf
