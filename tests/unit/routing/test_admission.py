"""A line against a plain list: first come, first served within a kind, never longer than its bound."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from firstkit.routing.admission import Line

people = st.integers(0, 7)
KINDS = ["any", "a", "b"]


class Lines(RuleBasedStateMachine):
    @initialize(bound=st.integers(1, 5))
    def open(self, bound: int) -> None:
        self.bound = bound
        self.line: Line[int] = Line(bound)
        self.model: list[tuple[int, str]] = []

    @property
    def who(self) -> list[int]:
        return [who for who, _ in self.model]

    @rule(who=people, kind=st.sampled_from(KINDS))
    def join(self, who: int, kind: str) -> None:
        has_place = who in self.who or len(self.model) < self.bound
        assert self.line.join(who, kind) is has_place
        if has_place and who not in self.who:
            self.model.append((who, kind))

    @rule(who=people)
    def leave(self, who: int) -> None:
        self.line.leave(who)
        self.model = [each for each in self.model if each[0] != who]

    @rule(data=st.data())
    def serve(self, data: st.DataObject) -> None:
        firsts = [self.model[[kind for _, kind in self.model].index(kind)] for kind in self.kinds]
        assert self.line.heads() == [who for who, _ in sorted(firsts, key=self.model.index)]
        if firsts:
            served = data.draw(st.sampled_from(firsts))
            self.line.leave(served[0])
            self.model.remove(served)

    @property
    def kinds(self) -> set[str]:
        return {kind for _, kind in self.model}

    @invariant()
    def is_as_expected(self) -> None:
        assert len(self.line) == len(self.model) <= self.bound
        assert bool(self.line) == bool(self.model)
        for who in range(8):
            assert self.line.position(who) == (self.who.index(who) + 1 if who in self.who else 0)
        counts = {kind: [each for _, each in self.model].count(kind) for kind in self.kinds}
        assert self.line.counts() == counts
        assert all(self.line.count(kind) == counts.get(kind, 0) for kind in KINDS)

    @invariant()
    def only_rivals_are_before_somebody(self) -> None:
        for at, (who, kind) in enumerate(self.model):
            before = [each for _, each in self.model[:at]]
            assert self.line.position(who, lambda other, kind=kind: other == kind) == before.count(kind) + 1


TestLines = Lines.TestCase
TestLines.settings = settings(max_examples=60, stateful_step_count=30)


def test_its_name_says_how_full_it_is() -> None:
    line: Line[str] = Line(3)
    line.join("a")
    assert repr(line) == "<Line 1 of 3>"
