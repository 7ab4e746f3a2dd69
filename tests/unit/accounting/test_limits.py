"""What a key may do: so many at once, then as many as time frees, and never more; and what it is told of that."""

from __future__ import annotations

import re
from itertools import pairwise
from math import ceil, inf, isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.accounting.limits import BUSY_RETRY_S, WINDOW_S, KeyLimits, Standing, rate_headers, rate_lines
from firstkit.errors import RateLimited

LIMITS = st.integers(1, 200)
MOMENTS = st.lists(st.floats(0, 300, allow_nan=False), max_size=120).map(sorted)
"""When requests come, monotonic seconds."""


def enters(limits: KeyLimits, at: float, key: str = "key") -> bool:
    """Whether a request comes in; if so it ends at once."""
    try:
        limits.enter(key, at)
    except RateLimited:
        return False
    limits.leave(key)
    return True


# -- requests per minute -----------------------------------------------------------------------------------------------


@given(LIMITS, MOMENTS)
def test_never_more_than_a_burst_and_what_time_frees(per_minute: int, moments: list[float]) -> None:
    """In any span of time: a minute's requests, and one for each step that is in the span."""
    limits = KeyLimits(per_minute)
    taken = [at for at in moments if enters(limits, at)]
    for first, start in enumerate(taken):
        for last in range(first, len(taken)):
            span_s = taken[last] - start
            assert last - first + 1 <= per_minute + span_s * per_minute / WINDOW_S + 1e-6


@given(LIMITS, MOMENTS)
def test_who_is_within_the_limit_is_never_refused(per_minute: int, moments: list[float]) -> None:
    """Requests for which the last minute has room all come in."""
    limits = KeyLimits(per_minute)
    taken: list[float] = []
    for at in moments:
        if sum(before > at - WINDOW_S - 1e-6 for before in taken) < per_minute:
            assert enters(limits, at)
            taken.append(at)


@given(LIMITS)
def test_a_minute_s_requests_may_come_at_once(per_minute: int) -> None:
    limits = KeyLimits(per_minute)
    assert [enters(limits, 5.0) for _ in range(per_minute + 1)] == [True] * per_minute + [False]
    assert not enters(limits, 5.0 + 0.99 * WINDOW_S / per_minute)
    assert enters(limits, 5.0 + 1.01 * WINDOW_S / per_minute)


@given(LIMITS)
def test_an_evenly_spread_client_is_never_refused(per_minute: int) -> None:
    limits = KeyLimits(per_minute)
    for count in range(3 * per_minute):
        assert enters(limits, count * WINDOW_S / per_minute)


@given(LIMITS, MOMENTS)
def test_who_waits_as_long_as_is_said_comes_in(per_minute: int, moments: list[float]) -> None:
    limits = KeyLimits(per_minute)
    for at in moments:
        try:
            limits.enter("key", at)
        except RateLimited as error:
            wait_s = error.retry_after_s
            assert wait_s is not None
            assert 0 < wait_s <= WINDOW_S / per_minute + 1e-6
            assert not enters(limits, at + 0.99 * wait_s - 1e-6)
            assert enters(limits, at + wait_s + 1e-6)
            return
        limits.leave("key")


@given(LIMITS, MOMENTS)
def test_what_a_key_is_told_is_what_happens(per_minute: int, moments: list[float]) -> None:
    limits = KeyLimits(per_minute)
    for at in moments:
        try:
            said = limits.enter("key", at)
        except RateLimited as error:
            told = dict(error.headers)
            assert told[b"x-ratelimit-remaining-requests"] == b"0"
            assert told[b"x-ratelimit-limit-requests"] == b"%d" % per_minute
            continue
        limits.leave("key")
        assert said is not None
        assert said.limit == per_minute
        assert 0 <= said.remaining < per_minute
        assert 0 < said.reset_s <= WINDOW_S + 1e-6
        in_use = said.reset_s * per_minute / WINDOW_S
        assert isclose(said.remaining, per_minute - ceil(in_use - 1e-6), abs_tol=1e-6)


@given(LIMITS, st.integers(0, 200))
def test_remaining_requests_are_there(per_minute: int, more: int) -> None:
    limits = KeyLimits(per_minute)
    used = 1 + more % per_minute
    said = [limits.enter("key", 7.0) for _ in range(used)]
    left = per_minute - used
    assert said[-1] is not None
    assert (said[-1].limit, said[-1].remaining) == (per_minute, left)
    assert isclose(said[-1].reset_s, used * WINDOW_S / per_minute)
    assert [enters(limits, 7.0) for _ in range(left + 1)] == [True] * left + [False]


@given(LIMITS, MOMENTS)
def test_all_are_free_again_when_it_is_said(per_minute: int, moments: list[float]) -> None:
    limits = KeyLimits(per_minute)
    said = None
    for at in moments:
        try:
            said = limits.enter("key", at)
        except RateLimited:
            break
        limits.leave("key")
    if said is not None:
        later = moments[-1] + WINDOW_S + said.reset_s
        assert [enters(limits, later) for _ in range(per_minute + 1)] == [True] * per_minute + [False]


def test_refused_requests_do_not_count() -> None:
    limits = KeyLimits(2)
    assert [enters(limits, 0.0) for _ in range(50)] == [True, True] + [False] * 48
    assert enters(limits, 30.1)


def test_keys_do_not_share() -> None:
    limits = KeyLimits(1, 1)
    limits.enter("a", 0.0)
    limits.enter("b", 0.0)
    for key in ("a", "b"):
        with pytest.raises(RateLimited):
            limits.enter(key, 0.0)


# -- requests at a time ------------------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.lists(st.booleans(), max_size=40))
def test_so_many_at_a_time(at_a_time: int, comings: list[bool]) -> None:
    """``comings``: whether a request comes, else one leaves."""
    limits = KeyLimits(at_a_time=at_a_time)
    running = 0
    for comes in comings:
        if not comes:
            if running:
                limits.leave("key")
                running -= 1
        elif running < at_a_time:
            assert limits.enter("key", 0.0) is None
            running += 1
        else:
            with pytest.raises(RateLimited, match=f"{at_a_time} are allowed at a time") as caught:
                limits.enter("key", 0.0)
            assert caught.value.retry_after_s == BUSY_RETRY_S
            assert caught.value.headers == ()


def test_who_is_refused_for_one_reason_is_not_charged_for_the_other() -> None:
    limits = KeyLimits(per_minute=2, at_a_time=1)
    limits.enter("key", 0.0)
    for _ in range(5):
        with pytest.raises(RateLimited, match="at a time") as caught:
            limits.enter("key", 0.0)
        assert dict(caught.value.headers)[b"x-ratelimit-remaining-requests"] == b"1"
    limits.leave("key")
    limits.enter("key", 0.0)
    limits.leave("key")
    for _ in range(5):
        with pytest.raises(RateLimited, match="2 requests a minute"):
            limits.enter("key", 0.0)
    limits.enter("key", 30.1)  # and none of those counts as under way
    with pytest.raises(RateLimited, match="at a time"):
        limits.enter("key", 60.1)


def test_without_limits_there_are_none() -> None:
    limits = KeyLimits()
    assert [limits.enter("key", 0.0) for _ in range(1000)] == [None] * 1000


# -- what is said ------------------------------------------------------------------------------------------------------


def test_the_headers() -> None:
    headers = rate_headers(Standing(60, 59, 1.0))
    assert headers == (
        (b"x-ratelimit-limit-requests", b"60"),
        (b"x-ratelimit-remaining-requests", b"59"),
        (b"x-ratelimit-reset-requests", b"1.000s"),
    )
    assert rate_lines(Standing(60, 59, 1.0)) == b"".join(b"%b: %b\r\n" % header for header in headers)
    assert (rate_headers(None), rate_lines(None)) == ((), b"")


@given(LIMITS, st.integers(0, 200), st.floats(0, 60))
def test_lines_are_lines(limit: int, remaining: int, reset_s: float) -> None:
    lines = rate_lines(Standing(limit, remaining, reset_s))
    assert re.fullmatch(rb"(x-ratelimit-(limit|remaining|reset)-requests: [0-9.]+s?\r\n){3}", lines)


def test_time_only_moves_forward_for_the_reset() -> None:
    limits = KeyLimits(10)
    resets = []
    for _ in range(10):
        said = limits.enter("key", 3.0)
        assert said is not None
        resets.append(said.reset_s)
        limits.leave("key")
    assert all(before < after < inf for before, after in pairwise(resets))
