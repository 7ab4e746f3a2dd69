"""States move forward only, whatever news comes in whatever order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.states import (
    LIVE_JOB_STATES,
    LIVE_REPLICA_STATES,
    JobState,
    ReplicaState,
    advance,
    earlier_states,
    may_move,
)

KINDS: list[Any] = [JobState, ReplicaState]
ORDER: dict[Any, tuple[Any, ...]] = {JobState: LIVE_JOB_STATES, ReplicaState: LIVE_REPLICA_STATES}


def rank(state: Any) -> int:
    """The oracle: the place of a living state in the life, or one beyond all for those that end it."""
    order = ORDER[type(state)]
    return order.index(state) if state in order else len(order)


histories = st.sampled_from(KINDS).flatmap(lambda kind: st.lists(st.sampled_from(list(kind)), min_size=1, max_size=20))


@given(histories)
def test_any_news_moves_forward_or_changes_nothing(news: list[Any]) -> None:
    state = news[0]
    for heard in news[1:]:
        after = advance(state, heard)
        assert after in (state, heard)
        assert after is state or rank(after) > rank(state)
        assert advance(after, heard) is after, "hearing it twice is hearing it once"
        state = after


@given(histories)
def test_what_is_final_never_changes(news: list[Any]) -> None:
    final = [state for state in type(news[0]) if state.is_final]
    for end in final:
        state = end
        for heard in news:
            state = advance(state, heard)
        assert state is end


@pytest.mark.parametrize("kind", KINDS)
def test_late_news_changes_nothing(kind: Any) -> None:
    for current in kind:
        for news in kind:
            if rank(news) <= rank(current):
                assert advance(current, news) is current


@pytest.mark.parametrize("kind", KINDS)
def test_the_guard_of_an_update_is_may_move(kind: Any) -> None:
    for state in kind:
        guard = earlier_states(state)
        assert set(guard) == {earlier for earlier in kind if may_move(earlier, state)}
        assert state not in guard
        assert not any(earlier.is_final for earlier in guard)


@pytest.mark.parametrize("kind", KINDS)
def test_living_and_final_are_all_states(kind: Any) -> None:
    assert set(ORDER[kind]) == {state for state in kind if not state.is_final}
    assert ORDER[kind][0] is next(iter(kind)), "a life begins with the first"


def test_a_job_that_no_scheduler_had_is_submitted_or_ended_by_us() -> None:
    allowed = {state for state in JobState if may_move(JobState.PLANNED, state)}
    assert allowed == {JobState.SUBMITTING, JobState.CANCELLED, JobState.REJECTED}


def test_steps_that_nobody_saw_may_be_skipped() -> None:
    assert advance(JobState.SUBMITTING, JobState.RUNNING) is JobState.RUNNING
    assert advance(JobState.PENDING, JobState.VANISHED) is JobState.VANISHED
    assert advance(ReplicaState.QUEUED, ReplicaState.READY) is ReplicaState.READY
