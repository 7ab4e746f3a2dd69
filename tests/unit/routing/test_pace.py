"""How fast replicas are, from what they answered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.links.messages import Outcome, Tail, Usage
from firstkit.routing.pace import EQUAL, FEW, REMEMBERED, SLOWEST, SPARE, STALE_S, USUAL_S, Durations, Pace, slowness

speeds = st.floats(0.001, 10)


def tail(tokens: int = 100, gap_s: float = 0.02, ttft_s: float = 0.1, is_stream: bool = True) -> Tail:
    duration_s = ttft_s + gap_s * tokens
    times = (ttft_s, gap_s) if is_stream else (None, None)
    return Tail(Outcome.COMPLETE, Usage(10, tokens), None, *times, duration_s)


def paced(gap_s: float, count: int = 50, tokens: int = 100) -> Pace:
    pace = Pace()
    for _ in range(count):
        pace.hear(0.0, tail(tokens, gap_s))
    return pace


def speed(pace: Pace, now: float = 0.0) -> float:
    found = pace.seconds_per_token(now)
    assert found is not None
    return found


def test_a_few_answers_say_nothing() -> None:
    assert Pace().seconds_per_token(0.0) is None
    assert paced(0.02, FEW - 1).seconds_per_token(0.0) is None
    assert paced(0.02, FEW).seconds_per_token(0.0) is not None


def test_half_the_speed_is_twice_the_time() -> None:
    assert speed(paced(0.04)) / speed(paced(0.02)) == pytest.approx(2, rel=0.05)


def test_short_and_long_answers_count_together() -> None:
    """One long answer among short ones does not make a replica slow."""
    mixed, long = Pace(), paced(0.02, tokens=1000)
    for turn in range(200):
        mixed.hear(0.0, tail(1000 if turn % 4 == 0 else 50))
    assert speed(mixed) / speed(long) == pytest.approx(1, rel=EQUAL)


def test_what_was_long_ago_counts_no_more() -> None:
    pace = paced(0.02)
    assert pace.seconds_per_token(STALE_S) is not None
    assert pace.seconds_per_token(STALE_S + 1) is None


def test_it_follows_what_changes() -> None:
    pace = paced(0.02)
    for _ in range(200):
        pace.hear(0.0, tail(gap_s=0.08))
    assert speed(pace) == pytest.approx(speed(paced(0.08)), rel=0.05)
    assert pace.gap_s == pytest.approx(0.08, rel=0.05)


def test_answers_without_tokens_or_usage_say_nothing_of_speed() -> None:
    pace = Pace()
    for _ in range(20):
        pace.hear(0.0, Tail(Outcome.COMPLETE, None, None, None, None, 1.0))
    assert pace.seconds_per_token(0.0) is None
    for _ in range(20):
        pace.hear(0.0, Tail(Outcome.COMPLETE, Usage(0, 0), None, None, None, 1.0))
    assert pace.seconds_per_token(0.0) is None


def test_prompts_count_where_there_is_no_answer() -> None:
    """Embeddings."""
    slow, fast = Pace(), Pace()
    for pace, duration_s in ((slow, 0.4), (fast, 0.1)):
        for _ in range(20):
            pace.hear(0.0, Tail(Outcome.COMPLETE, Usage(500, 0), None, None, None, duration_s))
    assert speed(slow) / speed(fast) == pytest.approx(4)


@given(st.integers(1, 10_000), st.floats(0.001, 1), st.floats(0, 5))
def test_a_bound_is_above_what_was_seen(tokens: int, gap_s: float, ttft_s: float) -> None:
    pace = Pace()
    assert pace.bound_s(tokens) is None
    pace.hear(0.0, tail(tokens, gap_s, ttft_s, is_stream=False))
    assert pace.bound_s(tokens) is None, "a plain answer has no first token"
    pace.hear(0.0, tail(tokens, gap_s, ttft_s))
    bound_s = pace.bound_s(tokens)
    assert bound_s is not None
    assert bound_s >= tail(tokens, gap_s, ttft_s).duration_s


# -- beside the others -------------------------------------------------------------------------------------------------


@given(st.lists(st.none() | speeds, max_size=10))
def test_nobody_is_left_without_any(found: list[float | None]) -> None:
    slow = slowness(found)
    assert len(slow) == len(found)
    assert all(1 / SLOWEST <= each <= SLOWEST for each in slow)
    assert all(each == 1 for each, speed in zip(slow, found, strict=True) if speed is None)


@given(speeds, st.lists(st.floats(1 - EQUAL / 3, 1 + EQUAL / 3), min_size=1, max_size=10))
def test_those_who_are_about_as_fast_are_equal(speed: float, factors: list[float]) -> None:
    assert slowness([speed * factor for factor in factors]) == [1.0] * len(factors)


def test_the_slower_counts_for_slower() -> None:
    fast, slow, unknown = slowness([0.02, 0.04, None])
    assert slow / fast == pytest.approx(2)
    assert fast < unknown < slow


# -- what requests need ------------------------------------------------------------------------------------------------


def test_before_anything_was_seen() -> None:
    assert Durations().need_s == USUAL_S


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=3 * REMEMBERED))
def test_as_long_as_the_longest_of_the_last_and_some_more(seen: list[float]) -> None:
    durations = Durations()
    for duration_s in seen:
        durations.hear(duration_s)
    assert durations.need_s == SPARE * max(seen[-REMEMBERED:])
