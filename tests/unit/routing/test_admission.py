"""A line: who may stand in it, whose turn it is, what positions say; and what an aggressive user costs the others."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Hashable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from firstkit.routing import fairness
from firstkit.routing.admission import NOBODY, STALE, Claim, Full, Line

KINDS = ["any", "a", "b"]
CLAIMS = [
    Claim(project, user, tokens, is_batch)
    for project in ("p", "q")
    for user in ("u", "v")
    for tokens in (1, 70, 1000)
    for is_batch in (False, True)
]


class Lines(RuleBasedStateMachine):
    """Against a plain list of those who wait: ticket, kind and claim in the order in which they came."""

    @initialize(bound=st.integers(1, 9), per_user=st.integers(1, 9))
    def open(self, bound: int, per_user: int) -> None:
        self.bound, self.per_user = bound, per_user
        self.line: Line[int] = Line(bound, per_user, {"p": 1.0, "q": 3.0}.__getitem__, half_life_s=10.0)
        self.waiting: list[tuple[int, str, Claim]] = []
        self.running: list[Claim] = []
        self.number = 0
        self.at = 0.0

    @rule(kind=st.sampled_from(KINDS), claim=st.sampled_from(CLAIMS))
    def join(self, kind: str, claim: Claim) -> None:
        theirs = sum(each.user == claim.user for _, _, each in self.waiting)
        expected = None
        if len(self.waiting) == self.bound:
            expected = Full.LINE
        elif theirs >= self.per_user:
            expected = Full.USER
        elif theirs and len(self.waiting) >= self.bound - self.bound // 4:
            expected = Full.LAST_PLACES
        self.number += 1
        assert self.line.join(self.number, kind, claim) is expected
        if expected is None:
            self.waiting.append((self.number, kind, claim))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def join_again(self, data: st.DataObject) -> None:
        ticket, _, _ = data.draw(st.sampled_from(self.waiting))
        assert self.line.join(ticket, "b", NOBODY) is None, "it keeps its place"

    @rule(claim=st.sampled_from(CLAIMS))
    def begin(self, claim: Claim) -> None:
        self.line.begin(claim)
        self.running.append(claim)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.waiting))
        self.line.leave(gone[0])
        self.line.leave(gone[0])
        self.waiting.remove(gone)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def serve(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.line.heads()))
        [served] = [each for each in self.waiting if each[0] == ticket]
        self.line.serve(ticket)
        self.waiting.remove(served)
        self.running.append(served[2])

    @precondition(lambda self: self.running)
    @rule(data=st.data(), part=st.floats(0, 1), later_s=st.floats(0, 100))
    def end(self, data: st.DataObject, part: float, later_s: float) -> None:
        claim = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.at += later_s
        self.line.used(claim, round(claim.tokens * part), self.at)

    @invariant()
    def is_as_expected(self) -> None:
        assert len(self.line) == len(self.waiting) <= self.bound
        assert bool(self.line) == bool(self.waiting)
        counts = Counter(kind for _, kind, _ in self.waiting)
        assert self.line.counts() == counts
        assert all(self.line.count(kind) == counts[kind] for kind in KINDS)
        for user in ("u", "v"):
            assert sorted(self.line.of_user(user)) == [t for t, _, claim in self.waiting if claim.user == user]

    @invariant()
    def there_is_one_head_of_each_kind_and_it_is_the_first_of_its_user(self) -> None:
        about = {ticket: (kind, claim) for ticket, kind, claim in self.waiting}
        heads = [about[ticket] for ticket in self.line.heads()]
        kinds = {(kind, claim.is_batch) for _, kind, claim in self.waiting}
        assert sorted((kind, claim.is_batch) for kind, claim in heads) == sorted(kinds)
        are_batches = [claim.is_batch for _, claim in heads]
        assert are_batches == sorted(are_batches), "batches come last"
        for ticket, (kind, claim) in zip(self.line.heads(), heads, strict=True):
            before = [
                t for t, k, c in self.waiting if k == kind and c[:2] == claim[:2] and c.is_batch == claim.is_batch
            ]
            assert before[0] == ticket, "a user's own requests are served in the order in which they came"

    @invariant()
    def what_is_told_of_it_is_so(self) -> None:
        told = {(project.id, user.id): user for project in self.line.standings(self.at) for user in project.members}
        for project in ("p", "q"):
            for user in ("u", "v"):
                waiting = sum(claim[:2] == (project, user) for _, _, claim in self.waiting)
                running = sum(claim[:2] == (project, user) for claim in self.running)
                known = told.get((project, user))
                assert (known.waiting, known.in_flight) == (waiting, running) if known else waiting == running == 0

    @invariant()
    def everybody_has_a_position_of_their_own(self) -> None:
        for is_batch in (False, True):
            theirs = [t for t, _, claim in self.waiting if claim.is_batch is is_batch]
            before = len(self.waiting) - len(theirs) if is_batch else 0
            assert sorted(map(self.line.position, theirs)) == [before + 1 + i for i in range(len(theirs))]


TestLines = Lines.TestCase
TestLines.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_its_name_says_how_full_it_is() -> None:
    line: Line[int] = Line(3)
    line.join(1)
    assert repr(line) == "<Line 1 of 3>"
    assert line.heads() == [1]


def test_those_of_nobody_are_served_as_they_came() -> None:
    """Without a claim there is nothing to share by, and no bound but that of the line."""
    line: Line[int] = Line(8, bound_per_user=1)
    assert [line.join(i) for i in range(9)] == [None] * 8 + [Full.LINE]
    assert drain(line) == list(range(8))


def drain(line: Line[int]) -> list[int]:
    """All in the order in which they are served where the first head always is."""
    order = []
    while line:
        order.append(line.heads()[0])
        line.serve(order[-1])
    return order


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_one_user_may_have_so_many_and_others_come_all_the_same() -> None:
    line: Line[int] = Line(100, bound_per_user=3)
    greedy = [line.join(i, "any", Claim("p", "greedy")) for i in range(5)]
    assert greedy == [None, None, None, Full.USER, Full.USER]
    assert line.join(9, "any", Claim("q", "greedy")) is Full.USER, "in whatever project"
    assert line.join(10, "any", Claim("p", "polite")) is None


def test_the_last_places_are_for_those_who_have_none() -> None:
    line: Line[int] = Line(8)
    assert [line.join(i, "any", Claim("p", "u")) for i in range(7)] == [None] * 6 + [Full.LAST_PLACES]
    assert line.join(10, "any", Claim("p", "v")) is None
    assert line.join(11, "any", Claim("p", "v")) is Full.LAST_PLACES
    assert line.join(12, "any", Claim("p", "w")) is None
    assert line.join(13, "any", Claim("p", "x")) is Full.LINE


# -- whose turn it is --------------------------------------------------------------------------------------------------


def test_projects_share_and_in_each_its_users() -> None:
    """One user of a small project gets as much as the three of a large one together."""
    line: Line[int] = Line(10_000)
    claims = [Claim("large", "a", 10), Claim("large", "b", 10), Claim("large", "c", 10), Claim("small", "d", 10)]
    for i in range(400):
        line.join(i, None, claims[i % 4])
    served = Counter(claims[ticket % 4].user for ticket in drain(line)[:120])
    assert served == {"a": 20, "b": 20, "c": 20, "d": 60}


def test_batches_get_what_nobody_else_can_use() -> None:
    line: Line[str] = Line(10)
    line.join("batch", "any", Claim("p", "u", is_batch=True))
    line.join("interactive", "here", Claim("p", "v"))
    assert line.heads() == ["interactive", "batch"], "whoever has room for the second only, serves it"
    line.join("later", "any", Claim("q", "w"))
    assert line.heads()[-1] == "batch"
    assert len(line.heads()) == 3


def test_what_one_gets_by_several_kinds_counts_once() -> None:
    """A user who pins requests to each cluster has no more turns than one who does not."""
    line: Line[str] = Line(1000)
    kinds = ["any", "a", "b", "c"]
    for i in range(100):
        for kind in kinds:
            line.join(f"many {kind} {i}", kind, Claim("p", "many", 10))
        line.join(f"one {i}", "any", Claim("p", "one", 10))
    order = []
    for _ in range(100):
        order.append(line.heads()[0])
        line.serve(order[-1])
    assert 48 <= sum(ticket.startswith("one") for ticket in order) <= 52


def test_one_who_used_less_before_does_not_shut_out_one_who_used_more() -> None:
    line: Line[int] = Line(10_000)
    for _ in range(200):
        line.begin(Claim("p", "veteran", 100))
        line.used(Claim("p", "veteran", 100), 100, 0.0)
    for i in range(500):
        line.join(i, None, Claim("p", "newcomer", 100))
    line.join(1000, None, Claim("p", "veteran", 100))
    assert drain(line).index(1000) <= 4, "its weight is less, by what it used, but it had no debt"


def test_past_use_is_recalled_with_its_age() -> None:
    line: Line[int] = Line(10, half_life_s=100.0)
    line.recall("old", "u", 8000.0, age_s=300.0, at=0.0)
    line.recall("new", "u", 1000.0, age_s=0.0, at=0.0)
    line.reshare()
    old, new = line.standings(0.0)
    assert (old.use, new.use) == pytest.approx((1000.0, 1000.0))
    assert old.factor == new.factor == 0.5
    assert [each.use for each in line.standings(100.0)] == pytest.approx([500.0, 500.0])


def test_use_is_measured_for_any_time() -> None:
    """A measure that doubles and doubles would not last for ever."""
    line: Line[int] = Line(10, half_life_s=1.0)
    for second in range(0, 5000, 7):
        line.begin(Claim("p", "u", 10))
        line.used(Claim("p", "u", 10), 10, float(second))
    [standing] = line.standings(float(second))
    assert standing.use == pytest.approx(10.0, rel=0.01)


# -- an aggressive user ------------------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**32), st.booleans(), st.booleans())
@settings(max_examples=100, deadline=None)
def test_an_aggressive_user_adds_one_request_to_the_wait_of_another(
    slots: int, polite: int, seed: int, of_one_project: bool, are_alike: bool
) -> None:
    """While a polite user waits, one who has hundreds of requests in line is served once; where requests are not alike,
    with as many tokens as the polite one's last request and one more may have had, the bound of start-time fair
    queueing (Goyal, Vin and Cheng 1996)."""
    chance = random.Random(seed)
    line: Line[int] = Line(10_000)
    claims: dict[int, Claim] = {}
    running: list[int] = []
    passed: dict[int, list[int]] = {}
    used: dict[int, int] = {}

    def ask(user: str) -> None:
        ticket = len(claims)
        claims[ticket] = Claim("p" if of_one_project else user, user, 100 if are_alike else chance.randint(50, 100))
        assert line.join(ticket, None, claims[ticket]) is None
        passed[ticket] = []

    def serve() -> None:
        while line and len(running) < slots:
            [ticket] = line.heads()
            line.serve(ticket)
            running.append(ticket)
            if claims[ticket].user == "aggressive":
                for other in waiting():
                    passed[other].append(ticket)

    def waiting() -> list[int]:
        return [ticket for i in range(polite) for ticket in line.of_user(f"polite {i}")]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fairness, "LEAST_FACTOR", 1.0)
        for _ in range(300):
            ask("aggressive")
        serve()
        for i in range(polite):
            ask(f"polite {i}")
        for _ in range(200):
            ended = running.pop(chance.randrange(len(running)))
            expected = claims[ended].tokens
            used[ended] = expected if are_alike else chance.randint(50, expected)
            line.used(claims[ended], used[ended], 0.0)
            if claims[ended].user != "aggressive":
                ask(claims[ended].user)
            serve()
    of_polite = [tickets for ticket, tickets in passed.items() if claims[ticket].user != "aggressive"]
    tokens = [sum(used.get(ticket, claims[ticket].tokens) for ticket in tickets) for tickets in of_polite]
    assert max(tokens) <= (100 if are_alike else 200)


@given(st.lists(st.tuples(st.sampled_from("pq"), st.sampled_from("uvw"), st.integers(1, 999)), max_size=60))
def test_positions_are_the_order_in_which_all_are_served(asked: list[tuple[str, str, int]]) -> None:
    line: Line[int] = Line(100)
    for ticket, (project, user, tokens) in enumerate(asked):
        line.join(ticket, None, Claim(project, user, 1000 * tokens + ticket))
    positions = [line.position(ticket) for ticket in range(len(asked))]
    order = drain(copy.deepcopy(line))
    assert positions == [1 + order.index(ticket) for ticket in range(len(asked))]


def test_positions_are_those_of_now() -> None:
    line: Line[str] = Line(100)
    for i in range(5):
        line.join(f"greedy {i}", None, Claim("p", "greedy", 100))
    assert [line.position(f"greedy {i}") for i in range(5)] == [1, 2, 3, 4, 5]
    line.join("polite", None, Claim("p", "polite", 100))
    assert line.position("polite") == 2
    assert line.position("greedy 4") == 6
    line.serve("greedy 0")
    assert line.position("polite") == 1
    line.leave("polite")
    assert (line.position("polite"), line.position("greedy 4"), line.position("stranger")) == (0, 4, 0)


def test_positions_change_when_it_is_known_what_was_used() -> None:
    line: Line[str] = Line(100)
    for user, tokens in (("ada", 1000), ("ben", 500)):
        line.begin(Claim("p", user, tokens))
        line.join(user, None, Claim("p", user))
    assert (line.position("ada"), line.position("ben")) == (2, 1)
    line.used(Claim("p", "ada", 1000), 10, 0.0)
    assert (line.position("ada"), line.position("ben")) == (1, 2)


def test_in_a_long_line_positions_may_be_a_little_old() -> None:
    line: Line[int] = Line(1000)
    for i in range(10 * STALE):
        line.join(i, None, Claim("p", f"user {i}"))
    assert line.position(100) == 101
    for i in range(9):
        line.leave(i)
        assert line.position(100) == 101
    line.leave(9)
    assert line.position(100) == 91


def test_only_rivals_are_before_somebody() -> None:
    def are_rivals(kind: Hashable, other: Hashable) -> bool:
        return "any" in (kind, other) or kind == other

    line: Line[int] = Line(100, are_rivals=are_rivals)
    for ticket, kind in enumerate(["a", "b", "a", "b", "any", "a"]):
        line.join(ticket, kind, Claim("p", "u"))
    assert [line.position(ticket) for ticket in range(6)] == [1, 1, 2, 2, 5, 4]
    line.join(6, "b", Claim("p", "u", is_batch=True))
    line.join(7, "b", Claim("p", "v"))
    assert line.position(6) == 5, "behind both others of its kind, the new one and those who go anywhere"
