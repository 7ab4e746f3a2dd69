from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from firstkit.reconciler.autoscale import History, Policy, forget, peak, remember, wanted

SAMPLES = st.lists(st.tuples(st.floats(0, 1000), st.integers(0, 50)), max_size=30)


def policy(hot: int = 0, most: int = 3, max_in_flight: int = 4, idle_timeout_s: float = 60.0) -> Policy:
    return Policy(hot, most, max_in_flight, idle_timeout_s)


def history_of(samples: list[tuple[float, int]]) -> History:
    history: History = ()
    for at, requests in samples:
        history = remember(history, at, requests)
    return history


@given(SAMPLES, st.floats(0, 1000))
def test_a_history_knows_the_peak_of_every_window(samples: list[tuple[float, int]], since: float) -> None:
    expected = max((requests for at, requests in samples if at >= since), default=0)
    assert peak(history_of(samples), since) == expected


@given(SAMPLES)
def test_a_history_holds_only_what_may_matter(samples: list[tuple[float, int]]) -> None:
    history = history_of(samples)
    assert [at for at, _ in history] == sorted(at for at, _ in history)
    falling = [requests for _, requests in history]
    assert falling == sorted(set(falling), reverse=True)


@given(SAMPLES, st.floats(0, 1000), st.floats(0, 1000))
def test_forgetting_changes_no_window_after_it(samples: list[tuple[float, int]], before: float, later: float) -> None:
    history = history_of(samples)
    assert peak(forget(history, before), before + later) == peak(history, before + later)


def test_hot_ones_need_no_demand() -> None:
    assert wanted([policy(hot=2)], (), 0.0) == [2]


def test_one_request_wants_one_replica() -> None:
    assert wanted([policy()], ((10.0, 1),), 10.0) == [1]


def test_what_exceeds_the_room_of_the_hot_ones_wants_more() -> None:
    assert wanted([policy(hot=1)], ((10.0, 4),), 10.0) == [1]
    assert wanted([policy(hot=1)], ((10.0, 5),), 10.0) == [2]


def test_demand_counts_for_the_idle_timeout() -> None:
    assert wanted([policy()], ((10.0, 9),), 70.0) == [3]
    assert wanted([policy()], ((10.0, 9),), 70.1) == [0]


def test_what_others_serve_is_not_started_here() -> None:
    assert wanted([policy()], ((10.0, 8),), 10.0, elsewhere=8) == [0]


def test_the_next_deployment_takes_what_the_first_cannot() -> None:
    assert wanted([policy(most=1), policy()], ((10.0, 9),), 10.0) == [1, 2]
    assert wanted([policy(most=0), policy()], ((10.0, 9),), 10.0) == [0, 3]


POLICIES = st.builds(
    lambda hot, more, *rest: Policy(hot, hot + more, *rest),
    st.integers(0, 4),
    st.integers(0, 5),
    st.integers(1, 16),
    st.floats(0, 100),
)


@given(st.lists(POLICIES, max_size=4), SAMPLES, st.floats(0, 2000), st.integers(0, 20))
def test_policy_is_always_kept(
    policies: list[Policy], samples: list[tuple[float, int]], now: float, elsewhere: int
) -> None:
    counts = wanted(policies, history_of(samples), now, elsewhere)
    for one, count in zip(policies, counts, strict=True):
        assert one.hot <= count <= one.most


@given(POLICIES, st.integers(0, 60), st.integers(0, 60))
def test_more_demand_never_wants_less(one: Policy, requests: int, more: int) -> None:
    fewer, most = (wanted([one], ((0.0, n),), 0.0)[0] for n in (requests, requests + more))
    assert fewer <= most
