"""A circuit breaker through any history: who fails is left alone, then tried with one request at a time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from firstkit.routing.breaker import FAILURES, FIRST_WAIT_S, LONGEST_WAIT_S, Breaker, Circuit


def opened(breaker: Breaker | None = None) -> Breaker:
    """A breaker whose circuit has just opened."""
    breaker = breaker or Breaker()
    waits = [breaker.failed() for _ in range(FAILURES)]
    assert waits == [None] * (FAILURES - 1) + [FIRST_WAIT_S]
    return breaker


def test_it_lets_pass_at_first() -> None:
    breaker = Breaker()
    for _ in range(100):
        assert breaker.lets_pass
        breaker.passed()


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    breaker = opened()
    assert breaker.circuit is Circuit.OPEN
    assert not breaker.lets_pass


@pytest.mark.parametrize("failures", range(FAILURES))
def test_fewer_failures_are_forgotten_with_the_first_good_answer(failures: int) -> None:
    breaker = Breaker()
    for _ in range(10):
        for _ in range(failures):
            assert breaker.failed() is None
        breaker.succeeded()
    assert breaker.lets_pass


def test_clients_that_leave_say_nothing() -> None:
    breaker = Breaker()
    for _ in range(FAILURES - 1):
        breaker.failed()
        breaker.left()
    assert breaker.failed() == FIRST_WAIT_S


def test_after_the_wait_one_passes_and_decides() -> None:
    for is_good in (True, False):
        breaker = opened()
        breaker.try_again()
        assert breaker.lets_pass
        breaker.passed()
        assert not breaker.lets_pass
        if is_good:
            breaker.succeeded()
            assert breaker.circuit is Circuit.CLOSED
            assert [breaker.failed() for _ in range(FAILURES)][-1] == FIRST_WAIT_S
        else:
            assert breaker.failed() == 2 * FIRST_WAIT_S
            assert breaker.circuit is Circuit.OPEN


def test_if_its_client_leaves_the_next_one_passes() -> None:
    breaker = opened()
    breaker.try_again()
    breaker.passed()
    breaker.left()
    assert breaker.circuit is Circuit.TRYING
    assert breaker.lets_pass


def test_the_waits_grow_up_to_a_bound() -> None:
    breaker = opened()
    waits = []
    for _ in range(6):
        breaker.try_again()
        breaker.passed()
        waits.append(breaker.failed())
    assert waits == [10, 20, 40, LONGEST_WAIT_S, LONGEST_WAIT_S, LONGEST_WAIT_S]


def test_a_good_answer_to_one_that_was_sent_before_closes_it() -> None:
    breaker = opened()
    breaker.succeeded()
    assert breaker.lets_pass
    breaker.try_again()
    assert breaker.circuit is Circuit.CLOSED


def test_failures_of_those_that_were_sent_before_open_it_once() -> None:
    breaker = opened()
    assert [breaker.failed() for _ in range(100)] == [None] * 100


class Histories(RuleBasedStateMachine):
    """``waits``: the openings for which somebody owes a ``try_again``."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker()
        self.under_way = 0
        self.in_a_row = 0
        self.waits: list[int] = []

    @precondition(lambda self: self.breaker.lets_pass)
    @rule()
    def send(self) -> None:
        self.breaker.passed()
        self.under_way += 1

    @precondition(lambda self: self.under_way)
    @rule()
    def succeed(self) -> None:
        self.under_way -= 1
        self.in_a_row = 0
        self.breaker.succeeded()
        assert self.breaker.circuit is Circuit.CLOSED

    @precondition(lambda self: self.under_way)
    @rule()
    def leave(self) -> None:
        self.under_way -= 1
        before = self.breaker.circuit
        self.breaker.left()
        assert self.breaker.circuit is before

    @precondition(lambda self: self.under_way)
    @rule()
    def fail(self) -> None:
        self.under_way -= 1
        self.in_a_row += 1
        before = self.breaker.circuit
        wait_s = self.breaker.failed()
        assert (wait_s is not None) == (before is not Circuit.OPEN and self.breaker.circuit is Circuit.OPEN)
        if wait_s is not None:
            assert self.in_a_row >= FAILURES or before is Circuit.TRYING
            assert FIRST_WAIT_S <= wait_s <= LONGEST_WAIT_S
            self.waits.append(self.breaker.openings)
            assert self.waits == sorted(set(self.waits)), "each opening has a number of its own"

    @precondition(lambda self: self.waits)
    @rule(data=st.data())
    def wait_is_over(self, data: st.DataObject) -> None:
        opening = data.draw(st.sampled_from(self.waits))
        self.waits.remove(opening)
        if opening != self.breaker.openings:
            return  # it was closed and opened again meanwhile: that has a wait of its own
        before = self.breaker.circuit
        self.breaker.try_again()
        assert self.breaker.circuit is (Circuit.TRYING if before is Circuit.OPEN else before)

    @invariant()
    def nobody_is_left_alone_for_ever(self) -> None:
        """Where nothing passes, something is owed: a try, or the end of one."""
        assert self.breaker.lets_pass or self.breaker.openings in self.waits or self.under_way

    @invariant()
    def open_is_who_failed(self) -> None:
        assert self.breaker.circuit is not Circuit.OPEN or self.in_a_row
        assert self.breaker.circuit is not Circuit.CLOSED or self.in_a_row < FAILURES
        assert self.breaker.circuit is not Circuit.CLOSED or self.breaker.lets_pass


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=100, stateful_step_count=40)


@given(st.lists(st.sampled_from(["pass", "fail", "leave"]), max_size=30))
def test_while_it_is_tried_one_is_under_way(steps: list[str]) -> None:
    """Of those that were sent since the wait was over."""
    breaker = opened()
    under_way = 0
    for step in steps:
        if breaker.circuit is Circuit.OPEN:
            breaker.try_again()
        if step == "pass" and breaker.lets_pass:
            breaker.passed()
            under_way += 1
        elif step != "pass" and under_way:
            under_way -= 1
            if step == "leave":
                breaker.left()
            else:
                breaker.failed()
        assert under_way <= 1
