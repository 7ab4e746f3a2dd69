"""Where a request goes, against an oracle that looks at every replica."""

from __future__ import annotations

from collections import Counter
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from firstkit.routing.choose import choose

SHARES = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, inf]
loads = st.lists(st.sampled_from(SHARES) | st.floats(0, 2), max_size=12)


def oracle(loads: list[float], first: int) -> int | None:
    """The first of the least loaded with room, from ``first`` on and round the end."""
    order = [(first + step) % len(loads) for step in range(len(loads))] if loads else []
    eligible = [index for index in order if loads[index] < 1.0]
    return min(eligible, key=lambda index: loads[index], default=None)


@given(loads, st.integers(0, 40))
def test_it_is_the_least_loaded_with_room(loads: list[float], first: int) -> None:
    assert choose(loads, first) == oracle(loads, first)


@given(loads, st.integers(0, 40))
def test_nobody_is_chosen_exactly_when_nobody_has_room(loads: list[float], first: int) -> None:
    index = choose(loads, first)
    assert (index is None) == all(load >= 1.0 for load in loads)
    if index is not None:
        assert loads[index] == min(loads) < 1.0


@given(st.lists(st.sampled_from([0.5, 1.0, inf]), min_size=1, max_size=8), st.integers(1, 5))
def test_equals_take_turns(loads: list[float], rounds: int) -> None:
    equals = [index for index, load in enumerate(loads) if load < 1.0]
    first, chosen = 0, Counter[int]()
    for _ in range(rounds * len(equals)):
        index = choose(loads, first)
        assert index is not None
        chosen[index] += 1
        first = index + 1
    assert chosen == dict.fromkeys(equals, rounds)


@given(loads, st.integers(0, 40))
def test_loads_are_only_read(loads: list[float], first: int) -> None:
    before = list(loads)
    choose(loads, first)
    assert loads == before
