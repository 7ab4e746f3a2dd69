"""The budget of retries: a tenth of all requests, and a few that were saved."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from firstkit.routing.retries import MOST_SAVED, SHARE, RetryBudget


def test_some_are_there_at_the_start() -> None:
    budget = RetryBudget()
    assert [budget.spend() for _ in range(12)] == [True] * int(MOST_SAVED) + [False, False]


def test_ten_requests_earn_one() -> None:
    budget = RetryBudget()
    while budget.spend():
        pass
    for _ in range(9):
        budget.earn()
        assert not budget.spend()
    budget.earn()
    budget.earn()  # a tenth is no sum of tenths
    assert budget.spend()
    assert not budget.spend()


def test_only_so_many_are_saved() -> None:
    budget = RetryBudget()
    for _ in range(10_000):
        budget.earn()
    assert [budget.spend() for _ in range(12)] == [True] * int(MOST_SAVED) + [False, False]


@given(st.lists(st.booleans(), max_size=400))
def test_never_more_than_the_share_and_what_was_saved(steps: list[bool]) -> None:
    """``steps``: whether a request comes, else one is sent again. In any span of them."""
    budget = RetryBudget()
    balance = lowest = 0.0
    for comes in steps:
        if comes:
            budget.earn()
            balance -= SHARE
        elif budget.spend():
            balance += 1
        lowest = min(lowest, balance)
        assert balance - lowest <= MOST_SAVED + 1e-6


@given(st.lists(st.booleans(), max_size=400))
def test_what_is_there_may_be_spent(steps: list[bool]) -> None:
    budget = RetryBudget()
    saved = MOST_SAVED
    for comes in steps:
        if comes:
            budget.earn()
            saved = min(MOST_SAVED, saved + SHARE)
        else:
            may = budget.spend()
            assert may == (saved >= 1) or abs(saved - 1) < 1e-6
            saved -= may
