from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from firstkit.reconciler.autoscale import Demand, History, Need, Policy, forget, peak, remember

SAMPLES = st.lists(st.tuples(st.floats(0, 1000), st.integers(0, 50)), max_size=30)
POLICY = Policy(hot=0, most=3, max_in_flight=4, idle_timeout_s=60.0, sustain_s=10.0)


def history_of(samples: list[tuple[float, int]]) -> History:
    history: History = ()
    for at, requests in samples:
        history = remember(history, at, requests)
    return history


# -- histories ---------------------------------------------------------------------------------------------------------


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


# -- demand ------------------------------------------------------------------------------------------------------------


def needed(demand: Demand, at: float, policy: Policy = POLICY) -> int:
    return demand.need(at, None).by(policy)


def test_the_first_request_of_a_cold_model_counts_at_once() -> None:
    demand = Demand(0.0, [POLICY])
    demand.hear(5.0, 1, 0, 0.0)
    assert needed(demand, 5.0) == 1


def test_more_than_one_replica_is_for_what_lasts() -> None:
    demand = Demand(0.0, [POLICY])
    demand.hear(100.0, 9, 0, 0.0)
    assert needed(demand, 100.0) == 1
    assert needed(demand, 110.0) == 1
    assert needed(demand, 110.1) == 9


def test_of_a_window_the_lowest_number_counts() -> None:
    demand = Demand(0.0, [POLICY])
    demand.hear(100.0, 9, 0, 0.0)
    demand.hear(108.0, 5, 0, 0.0)
    demand.hear(109.0, 9, 0, 0.0)
    assert needed(demand, 115.0) == 5
    assert needed(demand, 119.1) == 9


def test_a_burst_that_is_over_before_the_window_wants_no_more() -> None:
    demand = Demand(0.0, [POLICY])
    demand.hear(100.0, 50, 0, 0.0)
    demand.hear(109.0, 0, 1, 0.0)
    assert max(needed(demand, 100.0 + i) for i in range(60)) == 1


def test_demand_counts_for_the_idle_timeout() -> None:
    demand = Demand(0.0, [POLICY])
    demand.hear(0.0, 0, 9, 0.0)
    assert needed(demand, 20.0) == 9
    demand.hear(30.0, 0, 0, 0.0)
    assert needed(demand, 90.0) == 9
    assert needed(demand, 90.1) == 0
    assert demand.is_over(90.1)


def test_each_policy_has_its_own_windows() -> None:
    patient = Policy(0, 3, 4, 60.0, sustain_s=30.0)
    demand = Demand(0.0, [POLICY, patient])
    demand.hear(0.0, 9, 0, 0.0)
    assert (needed(demand, 20.0), needed(demand, 20.0, patient)) == (9, 1)


def test_a_need_goes_where_it_may() -> None:
    assert Need().admits("a")
    assert Need(frozenset("ab")).admits("a")
    assert not Need(frozenset("b")).admits("a")


STEPS = st.lists(st.tuples(st.floats(0.1, 30), st.integers(0, 20)), min_size=1, max_size=20)


@given(STEPS, st.floats(0, 40), st.floats(0, 100))
def test_what_is_needed_is_the_highest_of_what_lasted(
    steps: list[tuple[float, int]], sustain_s: float, idle_timeout_s: float
) -> None:
    """Against a plain reckoning, looked at once a second."""
    policy = Policy(0, 3, 4, idle_timeout_s, sustain_s)
    demand, at = Demand(0.0, [policy]), 0.0
    values: list[tuple[float, int]] = [(0.0, 0)]
    lasting: list[tuple[float, int]] = []
    for pause_s, requests in steps:
        at += pause_s
        demand.hear(at, requests, 0, None)
        values.append((at, requests))
        at += 0.01
        began_at = at - sustain_s
        in_force = [n for i, (t, n) in enumerate(values) if i + 1 == len(values) or values[i + 1][0] >= began_at]
        lasting.append((at, min(in_force if began_at >= 0 else [0])))
        found = needed(demand, at, policy)
        since = at - idle_timeout_s
        lowest = max((n for t, n in lasting if t >= since), default=0)
        most = max((n for i, (t, n) in enumerate(values) if i + 1 == len(values) or values[i + 1][0] >= since))
        assert found >= max(lowest, min(1, requests))
        assert found <= max(most, 1)
