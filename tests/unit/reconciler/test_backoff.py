from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from firstkit.reconciler.backoff import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_AFTER_READY_S,
    LONGEST_PAUSE_S,
    STABLE_S,
    failures,
    retry_at,
)
from firstkit.states import ReplicaState
from firstkit.store.jobs import ReplicaRow
from unit.reconciler.support import NOW, replica


def failed(ago_s: float = 0.0, served_s: float | None = None) -> ReplicaRow:
    ended_at = NOW - timedelta(seconds=ago_s)
    ready_at = None if served_s is None else ended_at - timedelta(seconds=served_s)
    return replica(state=ReplicaState.FAILED, ended_at=ended_at, ready_at=ready_at)


STOPPED = replica(state=ReplicaState.STOPPED, ended_at=NOW)


def test_without_a_failure_nothing_waits() -> None:
    assert retry_at([]) is None
    assert retry_at([STOPPED]) is None


def test_a_replica_that_served_is_replaced_at_once() -> None:
    assert retry_at([failed(served_s=STABLE_S)]) is None


def test_one_that_failed_soon_after_it_was_ready_has_failed() -> None:
    assert retry_at([failed(served_s=STABLE_S - 1)]) == NOW + timedelta(seconds=FIRST_PAUSE_S)


def test_each_further_failure_waits_twice_as_long() -> None:
    pauses = [(retry_at([failed()] * n) or NOW) - NOW for n in range(1, 6)]
    assert [pause.total_seconds() for pause in pauses] == [1, 2, 4, 8, 16]


def test_what_ended_well_breaks_the_row() -> None:
    assert len(failures([failed(), failed(), STOPPED, failed()])) == 2


def test_one_that_loads_well_is_tried_again_sooner() -> None:
    retry = retry_at([failed(served_s=1.0)] * 12)
    assert retry == NOW + timedelta(seconds=LONGEST_PAUSE_AFTER_READY_S)


@given(st.integers(1, 10_000))
def test_the_pause_is_bounded(count: int) -> None:
    retry = retry_at([failed()] * count)
    assert retry is not None
    assert FIRST_PAUSE_S <= (retry - NOW).total_seconds() <= LONGEST_PAUSE_S
