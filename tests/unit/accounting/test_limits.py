"""What is allowed at a time and a minute: so much at once, then as much as time frees, and never more; whom it counts
for; and what people are told of that."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from itertools import pairwise
from math import ceil, inf, isclose
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.accounting.estimate import Estimate
from firstkit.accounting.limits import BUSY_RETRY_S, KEPT, WINDOW_S, Limits, OverLimit, Stay
from firstkit.auth.permissions import Identity
from firstkit.config import Limits as Configured
from firstkit.config import ModelLimits
from firstkit.errors import RateLimited

LIMITS = st.integers(1, 200)
MOMENTS = st.lists(st.floats(0, 300, allow_nan=False), max_size=120).map(sorted)
"""When requests come, monotonic seconds."""
ADA = Identity("u-ada", "ada", "p-sun", "ada-s-key-12", frozenset({"inference"}), "sun")
BEN = Identity("u-ben", "ben", "p-sun", "ben-s-key-12", frozenset({"inference"}), "sun")
CLEO = Identity("u-cleo", "cleo", "p-moon", "cleo-s-key-1", frozenset({"inference"}), "moon")


def limits_of(models: dict[str, dict[str, int]] | None = None, /, **limits: int) -> Limits:
    """As a configuration has them; ``models``: those of the models in it."""
    of_models = {name: ModelLimits.model_validate(entry) for name, entry in (models or {}).items()}
    return Limits(Configured.model_validate(limits), of_models)


def per_minute(limit: int) -> Limits:
    return limits_of(requests_per_minute_per_key=limit)


def needing(tokens: int, prompt: int = 0, given: bool = True) -> Estimate:
    """Of so many tokens in all."""
    return Estimate(prompt, prompt, tokens - prompt, given)


def come(limits: Limits, at: float, who: Identity = ADA) -> Stay:
    """Come in where something is limited."""
    stay = limits.enter(who, at)
    assert stay is not None
    return stay


def charged(limits: Limits, at: float, tokens: int, who: Identity = ADA, model: str = "m") -> Stay:
    """Come in, and be charged."""
    stay = come(limits, at, who)
    try:
        stay.charge(model, needing(tokens), at)
    except RateLimited:
        stay.leave(0, at)
        raise
    return stay


def enters(limits: Limits, at: float, who: Identity = ADA) -> bool:
    """Whether a request comes in; if so it ends at once."""
    try:
        come(limits, at, who).leave(0, at)
    except RateLimited:
        return False
    return True


def told(lines: bytes | tuple[tuple[bytes, bytes], ...]) -> dict[str, str]:
    """Header lines by what comes behind ``x-ratelimit-``."""
    pairs = lines if isinstance(lines, tuple) else [line.split(b": ") for line in lines.split(b"\r\n")[:-1]]
    return {name.decode().removeprefix("x-ratelimit-"): value.decode() for name, value in pairs}


def standing(stay: Stay, at: float, unit: str = "requests") -> tuple[int, int, float]:
    """Limit, remaining and reset as they are told."""
    said = told(stay.lines(at))
    return int(said[f"limit-{unit}"]), int(said[f"remaining-{unit}"]), float(said[f"reset-{unit}"].removesuffix("s"))


def held(limits: Limits) -> dict[str, dict[str, tuple[float, float, int]]]:
    """What is in memory, by kind and by whom: when requests and tokens are free again, how many are under way."""
    kinds = [*limits._kinds, *(kind for kinds in limits._of_models.values() for kind in kinds)]
    assert all(sorted(each.who for each in kind._order) == sorted(kind.subjects) for kind in kinds)
    return {
        kind._names["requests at a time"]: {
            who: (subject.requests_due, subject.tokens_due, subject.running) for who, subject in kind.subjects.items()
        }
        for kind in kinds
    }


def under_way(limits: Limits) -> dict[str, dict[str, int]]:
    """The last of it, where there are any."""
    return {
        kind.removeprefix("limits.concurrency_per_"): {
            who: running for who, (_, _, running) in found.items() if running
        }
        for kind, found in held(limits).items()
    }


# -- requests per minute -----------------------------------------------------------------------------------------------


@given(LIMITS, MOMENTS)
def test_never_more_than_a_burst_and_what_time_frees(limit: int, moments: list[float]) -> None:
    """In any span of time: a minute's requests, and one for each step that is in the span."""
    limits = per_minute(limit)
    taken = [at for at in moments if enters(limits, at)]
    for first, start in enumerate(taken):
        for last in range(first, len(taken)):
            span_s = taken[last] - start
            assert last - first + 1 <= limit + span_s * limit / WINDOW_S + 1e-4


@given(LIMITS, MOMENTS)
def test_who_is_within_the_limit_is_never_refused(limit: int, moments: list[float]) -> None:
    """Requests for which the last minute has room all come in."""
    limits = per_minute(limit)
    taken: list[float] = []
    for at in moments:
        if sum(before > at - WINDOW_S - 1e-6 for before in taken) < limit:
            assert enters(limits, at)
            taken.append(at)


@given(LIMITS)
def test_a_minute_s_requests_may_come_at_once(limit: int) -> None:
    limits = per_minute(limit)
    assert [enters(limits, 5.0) for _ in range(limit + 1)] == [True] * limit + [False]
    assert not enters(limits, 5.0 + 0.99 * WINDOW_S / limit)
    assert enters(limits, 5.0 + 1.01 * WINDOW_S / limit)


@given(LIMITS)
def test_an_evenly_spread_client_is_never_refused(limit: int) -> None:
    limits = per_minute(limit)
    for count in range(3 * limit):
        assert enters(limits, count * WINDOW_S / limit)


@given(LIMITS, MOMENTS)
def test_who_waits_as_long_as_is_said_comes_in(limit: int, moments: list[float]) -> None:
    limits = per_minute(limit)
    for at in moments:
        try:
            come(limits, at)
        except RateLimited as error:
            wait_s = error.retry_after_s
            assert wait_s is not None
            assert 0 < wait_s <= WINDOW_S / limit + 1e-6
            assert not enters(limits, at + 0.99 * wait_s - 1e-5)
            assert enters(limits, at + wait_s + 1e-6)
            return


@given(LIMITS, MOMENTS)
def test_what_somebody_is_told_is_what_happens(limit: int, moments: list[float]) -> None:
    limits = per_minute(limit)
    for at in moments:
        try:
            stay = come(limits, at)
        except RateLimited as error:
            said = told(error.headers)
            assert (said["limit-requests"], said["remaining-requests"]) == (str(limit), "0")
            continue
        of_all, remaining, reset_s = standing(stay, at)
        assert of_all == limit
        assert 0 <= remaining < limit
        assert 0 < reset_s <= WINDOW_S + 1e-3
        assert isclose(remaining, limit - ceil(reset_s * limit / WINDOW_S - 1e-2), abs_tol=1)


@given(LIMITS, st.integers(0, 200))
def test_remaining_requests_are_there(limit: int, more: int) -> None:
    limits = per_minute(limit)
    used = 1 + more % limit
    stays = [come(limits, 7.0) for _ in range(used)]
    left = limit - used
    assert standing(stays[-1], 7.0)[:2] == (limit, left)
    assert isclose(standing(stays[-1], 7.0)[2], used * WINDOW_S / limit, abs_tol=1e-3)
    assert [enters(limits, 7.0) for _ in range(left + 1)] == [True] * left + [False]


@given(LIMITS, MOMENTS)
def test_all_are_free_again_when_it_is_said(limit: int, moments: list[float]) -> None:
    limits = per_minute(limit)
    reset_s = inf
    for at in moments:
        try:
            reset_s = standing(come(limits, at), at)[2]
        except RateLimited:
            break
    if reset_s < inf:
        later = moments[-1] + WINDOW_S + reset_s
        assert [enters(limits, later) for _ in range(limit + 1)] == [True] * limit + [False]


def test_refused_requests_do_not_count() -> None:
    limits = per_minute(2)
    assert [enters(limits, 0.0) for _ in range(50)] == [True, True] + [False] * 48
    assert enters(limits, 30.1)


def test_without_limits_there_are_none() -> None:
    assert [limits_of().enter(ADA, 0.0) for _ in range(1000)] == [None] * 1000
    assert limits_of({"m": {}}).enter(ADA, 0.0) is None


# -- requests at a time ------------------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.lists(st.booleans(), max_size=40))
def test_so_many_at_a_time(at_a_time: int, comings: list[bool]) -> None:
    """``comings``: whether a request comes, else one leaves."""
    limits = limits_of(concurrency_per_key=at_a_time)
    running: list[Stay] = []
    for comes in comings:
        if not comes:
            if running:
                running.pop().leave(0, 0.0)
        elif len(running) < at_a_time:
            running.append(come(limits, 0.0))
            assert running[-1].lines(0.0) == b""
        else:
            with pytest.raises(RateLimited, match=f"{at_a_time} requests at a time") as caught:
                come(limits, 0.0)
            assert caught.value.retry_after_s == BUSY_RETRY_S
            assert caught.value.headers == ()


def test_who_is_refused_for_one_reason_is_not_charged_for_the_other() -> None:
    limits = limits_of(requests_per_minute_per_key=2, concurrency_per_key=1)
    stay = come(limits, 0.0)
    for _ in range(5):
        with pytest.raises(RateLimited, match="at a time") as caught:
            come(limits, 0.0)
        assert told(caught.value.headers)["remaining-requests"] == "1"
    stay.leave(0, 0.0)
    come(limits, 0.0).leave(0, 0.0)
    for _ in range(5):
        with pytest.raises(RateLimited, match="2 requests a minute"):
            come(limits, 0.0)
    come(limits, 30.1)  # and none of those counts as under way
    with pytest.raises(RateLimited, match="at a time"):
        come(limits, 60.2)


# -- whom it counts for ------------------------------------------------------------------------------------------------

SECOND_KEY = replace(ADA, key_prefix="ada-s-key-13")
ELSEWHERE = replace(ADA, project_id="p-moon", project_name="moon")


@pytest.mark.parametrize(
    ("of", "same", "others"),
    [
        ("key", [ELSEWHERE], [SECOND_KEY, BEN, CLEO]),
        ("user", [SECOND_KEY, ELSEWHERE], [BEN, CLEO]),
        ("project", [SECOND_KEY, BEN], [ELSEWHERE, CLEO]),
    ],
)
@pytest.mark.parametrize("what", ["requests_per_minute", "tokens_per_minute", "concurrency"])
def test_keys_users_and_projects_do_not_share(of: str, same: list[Identity], others: list[Identity], what: str) -> None:
    for also in same:
        limits = limits_of(**{f"{what}_per_{of}": 1})
        charged(limits, 0.0, 1)
        with pytest.raises(RateLimited, match=f"^This {of} may have 1 ") as caught:
            charged(limits, 0.0, 1, also)
        assert caught.value.details == {"limit": f"limits.{what}_per_{of}"}
    for other in others:
        limits = limits_of(**{f"{what}_per_{of}": 1})
        charged(limits, 0.0, 1)
        charged(limits, 0.0, 1, other)


@pytest.mark.parametrize(
    ("of", "same", "others", "whose"),
    [
        ("", [SECOND_KEY, BEN, CLEO], [], "The model 'm'"),
        ("_per_user", [SECOND_KEY, ELSEWHERE], [BEN, CLEO], "This user"),
        ("_per_project", [BEN, SECOND_KEY], [CLEO, ELSEWHERE], "This project"),
    ],
)
@pytest.mark.parametrize("what", ["requests_per_minute", "tokens_per_minute", "concurrency"])
def test_nor_do_models(of: str, same: list[Identity], others: list[Identity], whose: str, what: str) -> None:
    for also in same:
        limits = limits_of({"m": {f"{what}{of}": 1}})
        charged(limits, 0.0, 1)
        charged(limits, 0.0, 1, model="other")
        with pytest.raises(RateLimited, match=f"^{whose} may have 1 .*") as caught:
            charged(limits, 0.0, 1, also)
        assert "the model 'm'" in caught.value.message.lower()
        assert caught.value.details == {"limit": f"models.m.limits.{what}{of}"}
    for other in others:
        limits = limits_of({"m": {f"{what}{of}": 1}})
        charged(limits, 0.0, 1)
        charged(limits, 0.0, 1, other)


def test_logins_of_one_user_count_as_one_key() -> None:
    """And those of two users as two, though their keys are both called by the provider."""
    limits = per_minute(1)
    ada, ben = replace(ADA, key_prefix="oidc"), replace(BEN, key_prefix="oidc")
    assert [enters(limits, 0.0, who) for who in (ada, ada, ben)] == [True, False, True]


def test_who_is_charged_to_no_project_counts_for_none() -> None:
    limits = limits_of(requests_per_minute_per_project=1)
    nobody = replace(ADA, project_id="", project_name="")
    assert [enters(limits, 0.0, nobody) for _ in range(3)] == [True] * 3


# -- several limits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tightest", "said"),
    [
        ({"requests_per_minute_per_key": 1}, "key may have 1 requests a minute"),
        ({"requests_per_minute_per_user": 1}, "user may have 1 requests a minute"),
        ({"requests_per_minute_per_project": 1}, "project may have 1 requests a minute"),
        ({"tokens_per_minute_per_key": 10}, "key may have 10 tokens a minute"),
        ({"tokens_per_minute_per_user": 10}, "user may have 10 tokens a minute"),
        ({"tokens_per_minute_per_project": 10}, "project may have 10 tokens a minute"),
        ({"concurrency_per_key": 1}, "key may have 1 requests at a time"),
        ({"concurrency_per_user": 1}, "user may have 1 requests at a time"),
        ({"concurrency_per_project": 1}, "project may have 1 requests at a time"),
        ({"m": {"requests_per_minute": 1}}, "model 'm' may have 1 requests a minute"),
        ({"m": {"requests_per_minute_per_user": 1}}, "user may have 1 requests a minute of the model 'm'"),
        ({"m": {"tokens_per_minute_per_project": 10}}, "project may have 10 tokens a minute of the model 'm'"),
        ({"m": {"concurrency": 1}}, "model 'm' may have 1 requests at a time"),
    ],
)
def test_who_is_refused_by_one_limit_is_charged_by_none(tightest: dict[str, Any], said: str) -> None:
    of_model = tightest.pop("m", {})
    ample: dict[str, int] = {
        f"{what}_per_{of}": 1000
        for what in ("requests_per_minute", "tokens_per_minute", "concurrency")
        for of in ("key", "user", "project")
    }
    of_models = {
        f"{what}{of}": 1000 for what in ("requests_per_minute", "tokens_per_minute") for of in ("", "_per_user")
    }
    limits = limits_of({"m": {**of_models, **of_model}}, **{**ample, **tightest})
    stay = charged(limits, 0.0, 10)
    before = held(limits)
    for _ in range(5):
        with pytest.raises(RateLimited, match=said):
            charged(limits, 0.0, 10)
        assert [*map(rounded, held(limits).values())] == [*map(rounded, before.values())]
    stay.leave(0, 0.0)
    assert all(found == {} for found in under_way(limits).values())
    charged(limits, 60.0, 10)


def rounded(found: dict[str, tuple[float, float, int]]) -> list[tuple[str, float, float, int]]:
    """Without what floats make of a sum and a difference."""
    return [(who, round(due, 6), round(tokens, 6), running) for who, (due, tokens, running) in found.items()]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["come", "come", "leave", "wait"]),
        st.sampled_from([ADA, BEN, CLEO, SECOND_KEY]),
        st.integers(0, 40),
        st.integers(0, 60),
    ),
    max_size=60,
)
"""What happens, to whom; tokens that may be needed; tokens that were used, or seconds."""


@given(STEPS)
def test_what_is_counted_is_what_came_in(steps: list[tuple[str, Identity, int, int]]) -> None:
    """By every limit, in any history; and when all have left and time has passed, nothing is."""
    limits = limits_of(
        {"m": {"tokens_per_minute_per_project": 150, "concurrency": 4}},
        tokens_per_minute_per_user=100, concurrency_per_user=2, requests_per_minute_per_user=1000,
    )  # fmt: skip
    at, inside = 0.0, list[tuple[Stay, str]]()
    for step, who, tokens, used in steps:
        if step == "wait":
            at += used
        elif step == "leave" and inside:
            stay, _ = inside.pop(tokens % len(inside))
            stay.leave(used, at)
        elif step == "come":
            with contextlib.suppress(RateLimited):
                inside.append((charged(limits, at, tokens, who), who.user_id))
        users = [user for _, user in inside]
        running = {user: users.count(user) for user in users}
        assert under_way(limits)["user"] == running
        assert under_way(limits)["models.m.limits.concurrency"] == ({"all": len(inside)} if inside else {})
        assert max([0, *running.values()]) <= 2
        assert len(inside) <= 4
    for stay, _ in inside:
        stay.leave(0, at)
    assert all(found == {} for found in under_way(limits).values())
    assert standing(charged(limits, at + 60 * WINDOW_S, 100), at + 60 * WINDOW_S, "tokens")[:2] == (100, 0)


def test_of_several_refusals_the_longest_wait_is_told() -> None:
    limits = limits_of({"m": {"requests_per_minute": 1}}, tokens_per_minute_per_key=60)
    charged(limits, 0.0, 30)
    with pytest.raises(RateLimited, match="The model 'm' may have 1 requests a minute") as caught:
        charged(limits, 0.0, 40, ADA)
    assert caught.value.retry_after_s is not None
    assert isclose(caught.value.retry_after_s, 60.0)


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_tokens_are_charged_as_they_may_be_needed_and_settled_as_they_were_used() -> None:
    limits = limits_of(tokens_per_minute_per_user=1000)
    stay = charged(limits, 0.0, 900)
    assert standing(stay, 0.0, "tokens")[:2] == (1000, 100)
    with pytest.raises(RateLimited, match="This user may have 1000 tokens a minute") as caught:
        charged(limits, 0.0, 200)
    assert caught.value.retry_after_s is not None
    assert isclose(caught.value.retry_after_s, 6.0)
    assert told(caught.value.headers) == {"limit-tokens": "1000", "remaining-tokens": "100", "reset-tokens": "54.000s"}
    stay.leave(50, 3.0)
    assert standing(come(limits, 3.0), 3.0, "tokens")[:2] == (1000, 1000)
    charged(limits, 3.0, 1000)


def test_who_used_more_than_was_charged_waits_until_it_is_made_good() -> None:
    limits = limits_of(tokens_per_minute_per_user=1000)
    stay = charged(limits, 0.0, 100)
    stay.leave(3000, 10.0)
    with pytest.raises(RateLimited) as caught:
        charged(limits, 10.0, 100)
    assert caught.value.retry_after_s is not None
    assert isclose(caught.value.retry_after_s, 2900 * 0.06 - 60.0 + 100 * 0.06)
    assert told(caught.value.headers)["remaining-tokens"] == "0"
    charged(limits, 10.0 + caught.value.retry_after_s + 1e-3, 100)


def test_what_is_settled_late_gives_nobody_more_than_a_minute_s() -> None:
    limits = limits_of(tokens_per_minute_per_user=1000)
    stay = charged(limits, 0.0, 1000)
    stay.leave(0, 500.0)
    charged(limits, 500.0, 1000)
    with pytest.raises(RateLimited):
        charged(limits, 500.0, 1)


def test_a_request_is_settled_once() -> None:
    limits = limits_of(tokens_per_minute_per_user=1000)
    stay, other = charged(limits, 0.0, 400), charged(limits, 0.0, 400)
    for _ in range(3):
        stay.leave(400, 0.0)
    stay.leave(0, 0.0)
    assert standing(other, 0.0, "tokens")[1] == 200


def test_what_a_whole_minute_does_not_give_is_told_and_not_waited_for() -> None:
    limits = limits_of({"m": {"tokens_per_minute": 5000}}, tokens_per_minute_per_user=1000)
    stay = come(limits, 0.0)
    with pytest.raises(OverLimit) as caught:
        stay.charge("m", needing(1001, prompt=11), 0.0)
    assert caught.value.status == 400
    assert caught.value.retry_after_s is None
    assert caught.value.message == (
        "This user may have 1000 tokens a minute. This request may need 1001 alone: 11 for its prompt, "
        "990 for its answer."
    )
    stay.leave(0, 0.0)
    assert standing(charged(limits, 0.0, 1000), 0.0, "tokens")[1] == 0, "nothing of it was charged"


def test_who_does_not_say_how_long_the_answer_may_be_is_charged_a_minute_s_at_most() -> None:
    """By each limit. What it comes to in the end is settled as ever."""
    limits = limits_of(tokens_per_minute_per_user=1000, tokens_per_minute_per_project=1200)
    stay = come(limits, 0.0)
    stay.charge("m", needing(8500, prompt=10, given=False), 0.0)
    assert standing(stay, 0.0, "tokens") == (1000, 0, 60.0)
    other = come(limits, 0.0, BEN)
    with pytest.raises(RateLimited, match="project"):
        other.charge("m", needing(1, given=False), 0.0)
    stay.leave(300, 0.0)
    other.charge("m", needing(900), 0.0)
    with pytest.raises(OverLimit):
        come(limits, 0.0, CLEO).charge("m", needing(9000, prompt=1000, given=False), 0.0)


def test_what_reads_nothing_is_not_refused_for_tokens() -> None:
    limits = limits_of(tokens_per_minute_per_user=1000)
    charged(limits, 0.0, 1).leave(5000, 0.0)
    stay = come(limits, 0.0)
    stay.charge("m", needing(0), 0.0)
    assert standing(stay, 0.0, "tokens")[1] == 0


# -- many --------------------------------------------------------------------------------------------------------------


def remembered(limits: Limits) -> int:
    """Of how many something is in memory."""
    return sum(map(len, held(limits).values()))


def test_who_has_all_free_again_is_forgotten() -> None:
    limits = limits_of(
        {"m": {"requests_per_minute_per_user": 5}},
        requests_per_minute_per_user=60, tokens_per_minute_per_user=6000, concurrency_per_user=3,
    )  # fmt: skip
    most = 0
    for count in range(12_000):  # four hundred new ones a second, who need ten and twelve seconds
        at = count / 400
        charged(limits, at, 1000, replace(ADA, user_id=f"u-{count}")).leave(1000, at)
        most = max(most, remembered(limits)) if count % 100 == 0 else most
    who_is_not_free = 400 * (10 + 12)
    assert who_is_not_free <= most < 2 * who_is_not_free + 2 * KEPT
    for count in range(12_000):
        charged(limits, 1e6 + count, 1, replace(ADA, user_id=f"v-{count}")).leave(1, 1e6 + count)
    assert remembered(limits) <= 2 * (KEPT + 1)


def test_who_is_not_free_is_remembered_among_many() -> None:
    limits = per_minute(1)
    assert enters(limits, 0.0)
    for count in range(3 * KEPT):
        enters(limits, 30.0 + count / KEPT, replace(ADA, key_prefix=f"key-{count:08}"))
    assert not enters(limits, 59.9)
    assert enters(limits, 60.1)


# -- what is said ------------------------------------------------------------------------------------------------------


def test_the_headers() -> None:
    limits = limits_of({"m": {"tokens_per_minute": 3000}}, requests_per_minute_per_key=60)
    assert charged(limits, 0.0, 100).lines(0.0) == (
        b"x-ratelimit-limit-requests: 60\r\nx-ratelimit-remaining-requests: 59\r\n"
        b"x-ratelimit-reset-requests: 1.000s\r\n"
        b"x-ratelimit-limit-tokens: 3000\r\nx-ratelimit-remaining-tokens: 2900\r\n"
        b"x-ratelimit-reset-tokens: 2.000s\r\n"
    )


def test_the_tightest_limit_is_told() -> None:
    limits = limits_of(
        {"m": {"requests_per_minute": 100, "tokens_per_minute_per_user": 50}},
        requests_per_minute_per_key=60, requests_per_minute_per_project=62, tokens_per_minute_per_key=1000,
    )  # fmt: skip
    assert standing(charged(limits, 0.0, 1), 0.0) == (60, 59, 1.0)
    for _ in range(5):
        stay = charged(limits, 0.0, 1, BEN)
    assert standing(stay, 0.0)[:2] == (60, 55)
    fresh = charged(limits, 0.0, 1, SECOND_KEY)
    assert standing(fresh, 0.0)[:2] == (62, 55)
    assert standing(fresh, 0.0, "tokens")[:2] == (50, 48)


@given(LIMITS, st.integers(0, 200), st.floats(0, 60))
def test_lines_are_lines(limit: int, tokens: int, at: float) -> None:
    limits = limits_of({"m": {"tokens_per_minute": 200}}, requests_per_minute_per_key=limit)
    lines = charged(limits, at, tokens).lines(at)
    line = rb"x-ratelimit-(limit|remaining|reset)-%b: [0-9.]+s?\r\n"
    assert re.fullmatch(rb"(%b){3}(%b){3}" % (line % b"requests", line % b"tokens"), lines)


def test_time_only_moves_forward_for_the_reset() -> None:
    limits = per_minute(10)
    resets = [standing(come(limits, 3.0), 3.0)[2] for _ in range(10)]
    assert all(before < after < inf for before, after in pairwise(resets))


def test_large_limits_are_exact() -> None:
    limits = limits_of(tokens_per_minute_per_key=10**9)
    assert standing(charged(limits, 1e6, 1), 1e6, "tokens")[1] == 10**9 - 1
