"""A line against a plain list: first come, first served, never longer than its bound."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from firstkit.routing.admission import Line

people = st.integers(0, 7)


class Lines(RuleBasedStateMachine):
    @initialize(bound=st.integers(1, 5))
    def open(self, bound: int) -> None:
        self.bound = bound
        self.line: Line[int] = Line(bound)
        self.model: list[int] = []

    @rule(who=people)
    def join(self, who: int) -> None:
        has_place = who in self.model or len(self.model) < self.bound
        assert self.line.join(who) is has_place
        if has_place and who not in self.model:
            self.model.append(who)

    @rule(who=people)
    def leave(self, who: int) -> None:
        self.line.leave(who)
        if who in self.model:
            self.model.remove(who)

    @rule()
    def serve(self) -> None:
        if self.model:
            assert self.line.next() == self.model.pop(0)
        else:
            with pytest.raises(LookupError):
                self.line.next()

    @invariant()
    def is_as_expected(self) -> None:
        assert len(self.line) == len(self.model) <= self.bound
        assert bool(self.line) == bool(self.model)
        for who in range(8):
            assert self.line.position(who) == (self.model.index(who) + 1 if who in self.model else 0)


TestLines = Lines.TestCase
TestLines.settings = settings(max_examples=60, stateful_step_count=30)


def test_its_name_says_how_full_it_is() -> None:
    line: Line[str] = Line(3)
    line.join("a")
    assert repr(line) == "<Line 1 of 3>"
