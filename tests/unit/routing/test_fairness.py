"""Fair shares by themselves: who is next, what past use counts, and how much is remembered."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.routing import fairness
from firstkit.routing.fairness import FEW, LEAD_STEPS, LEAST_FACTOR, Kind, Sharing, factor

ANY, HERE, THERE = (False, "any"), (False, "here"), (False, "there")


class Market(Sharing):
    """Those who share, each with as much waiting as was said, and what was given to them."""

    def __init__(self, share_of: Callable[[str], float] = lambda _: 1.0, slots: int = 1) -> None:
        super().__init__(share_of)
        self.slots = slots
        self.wanted: dict[tuple[Kind, str], int] = {}
        self.running: list[tuple[str, int, int]] = []
        self.got: dict[str, int] = {}

    def want(self, name: str, tokens: int, kind: Kind = ANY) -> None:
        """From now on ``name`` always has a request with so many tokens waiting."""
        if (kind, name) not in self.wanted:
            self.enter(self.party(name), kind)
        self.wanted[kind, name] = tokens

    def give(self, kind: Kind = ANY, used: int | None = None) -> str:
        """To the next; it will use so many tokens, or all that are expected."""
        party = self.turns[kind].first().party
        tokens = self.wanted[kind, party.id]
        self.serve(party, kind, tokens, stays=True)
        self.running.append((party.id, tokens, tokens if used is None else used))
        self.got[party.id] = self.got.get(party.id, 0) + tokens
        return party.id

    def finish(self, which: int = 0, grown: float = 1.0) -> None:
        name, expected, used = self.running.pop(which)
        self.end(self.party(name), expected, used, grown)

    def turn(self, kind: Kind = ANY) -> str:
        """One after the other, as with one slot."""
        name = self.give(kind)
        self.finish()
        return name


@pytest.fixture
def evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past use does not count."""
    monkeypatch.setattr(fairness, "LEAST_FACTOR", 1.0)


# -- whose turn it is --------------------------------------------------------------------------------------------------


def test_tokens_are_shared_not_requests(evenly: None) -> None:
    market = Market()
    market.want("long", 900)
    market.want("short", 100)
    order = [market.turn() for _ in range(100)]
    assert order.count("short") == 9 * order.count("long") == 90


def test_shares_are_weights(evenly: None) -> None:
    market = Market({"large": 3.0, "small": 1.0}.__getitem__)
    market.want("large", 10)
    market.want("small", 10)
    order = [market.turn() for _ in range(400)]
    assert order.count("large") == 3 * order.count("small")


def test_who_was_away_has_saved_up_nothing(evenly: None) -> None:
    market = Market()
    market.want("busy", 100)
    for _ in range(1000):
        market.turn()
    market.want("new", 100)
    order = [market.turn() for _ in range(20)]
    assert order.count("busy") == order.count("new") == 10


def test_who_comes_back_is_not_behind_for_what_nobody_else_wanted(evenly: None) -> None:
    """What was used while nobody waited was taken from nobody."""
    market = Market()
    user, other = market.party("user"), market.party("other")
    for _ in range(50):
        market.begin(user, 100)
    market.begin(other, 100)
    for _ in range(50):
        market.end(user, 100, 100, 1.0)
    market.end(other, 100, 100, 1.0)
    market.want("user", 100)
    market.want("other", 100)
    order = [market.turn() for _ in range(10)]
    assert order.count("user") == order.count("other")


def test_what_one_got_is_forgotten_when_nobody_waits_any_more(evenly: None) -> None:
    """Then everybody has what they wanted."""
    market = Market()
    market.want("much", 100)
    market.want("little", 1)
    for _ in range(200):
        market.turn()
    for name in ("much", "little"):
        market.exit(market.party(name), ANY)
    market.wanted.clear()
    market.want("little", 100)
    market.want("much", 100)
    market.want("new", 100)
    assert sorted(market.turn() for _ in range(3)) == ["little", "much", "new"]


def test_what_is_under_way_counts_until_it_is_known(evenly: None) -> None:
    """One holds all of ten slots when another comes: that one gets those that come free until both hold five."""
    market = Market()
    market.want("first", 1000)
    for _ in range(10):
        market.give(used=10)
    market.want("second", 1000)
    order = []
    for _ in range(10):
        market.finish()
        order.append(market.give())
    assert order == ["second"] * 5 + ["first"] * 5


def test_who_used_less_than_expected_comes_sooner(evenly: None) -> None:
    market = Market()
    market.want("modest", 1000)
    market.want("other", 1000)
    market.give(used=10)
    market.give(used=1000)
    market.finish(0)
    market.finish(0)
    order = []
    for _ in range(110):
        order.append(market.give(used=10 if market.turns[ANY].first().party.id == "modest" else 1000))
        market.finish()
    assert order[:50] == ["modest"] * 50
    assert "other" in order


def test_less_used_than_expected_is_no_credit_beyond_the_others(evenly: None) -> None:
    """However much too much was expected of what is under way: who came meanwhile does not wait for it."""
    market = Market()
    market.want("greedy", 100_000)
    for _ in range(20):
        market.give(used=1)
    market.want("polite", 100)
    market.want("greedy", 10)
    for _ in range(20):
        market.finish()
    order = [market.turn() for _ in range(12)]
    assert "polite" in order[:2]


def test_a_large_request_that_took_long_and_used_little_is_no_credit_either(evenly: None) -> None:
    market = Market()
    market.want("slow", 100_000)
    assert market.give(used=1) == "slow"
    market.want("slow", 100)
    market.want("other", 100)
    for _ in range(500):
        assert market.give() == "other"
        market.finish(1)
    market.finish(0)
    order = [market.turn() for _ in range(20)]
    assert 9 <= order.count("slow") <= 11


@given(
    st.lists(st.tuples(st.integers(1, 500), st.sampled_from([0.5, 1.0, 4.0])), min_size=2, max_size=5),
    st.integers(1, 4),
    st.integers(0, 2**32),
    st.integers(1, 150),
)
def test_over_any_time_those_who_always_wait_differ_by_two_requests(
    parties: list[tuple[int, float]], slots: int, seed: int, before: int
) -> None:
    """By weight. Others come and go meanwhile; requests have any size up to that of their party."""
    chance = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fairness, "LEAST_FACTOR", 1.0)
        market = Market(lambda name: parties[int(name)][1] if name.isdigit() else 1.0)
        for i, (tokens, _) in enumerate(parties):
            market.want(str(i), tokens)
        history: list[dict[str, int]] = []
        for step in range(before + 100):
            if len(market.running) == slots:
                market.finish(chance.randrange(slots))
            if step % 7 == 0:
                market.want(f"guest {step}", chance.randint(1, 500))
            name = market.give()
            market.wanted[ANY, name] = chance.randint(1, parties[int(name)][0]) if name.isdigit() else 1
            history.append(dict(market.got))
        for (i, (most, weight)), (j, (others, other)) in itertools.combinations(enumerate(parties), 2):
            for since in history[:: len(history) // 5]:
                gained = (market.got.get(str(i), 0) - since.get(str(i), 0)) / weight
                other_gained = (market.got.get(str(j), 0) - since.get(str(j), 0)) / other
                assert abs(gained - other_gained) <= 2 * max(most / weight, others / other) + 1e-6


# -- kinds -------------------------------------------------------------------------------------------------------------


def test_what_somebody_gets_by_one_kind_counts_for_the_others(evenly: None) -> None:
    market = Market()
    for kind in (HERE, THERE, ANY):
        market.want("many", 100, kind)
    market.want("one", 100, ANY)
    for _ in range(30):
        market.turn(HERE)
        market.turn(THERE)
    assert [market.turn(ANY) for _ in range(20)] == ["one"] * 20


def test_who_gets_much_elsewhere_is_let_in_all_the_same(evenly: None) -> None:
    market = Market()
    market.want("everywhere", 100, HERE)
    market.want("everywhere", 100, THERE)
    market.want("here", 100, HERE)
    order = []
    for _ in range(50 * LEAD_STEPS):
        market.turn(THERE)
        market.turn(THERE)
        order.append(market.turn(HERE))
    assert 20 <= order.count("everywhere") <= 50


def test_what_could_not_be_served_does_not_hold_up_all_others_when_it_can(evenly: None) -> None:
    """Nobody could be served here while others were there: now both kinds take turns, and nothing is made up for."""
    market = Market()
    market.want("waiting", 100, HERE)
    market.want("served", 100, THERE)
    for _ in range(1000):
        market.turn(THERE)
    order = []
    for _ in range(40):
        kind = min((HERE, THERE), key=market.effective)
        order.append(market.turn(kind))
    assert 18 <= order.count("served") <= 21


def test_who_comes_to_a_kind_that_lags_stands_beside_its_others(evenly: None) -> None:
    market = Market()
    market.want("old", 100, HERE)
    market.want("served", 100, THERE)
    for _ in range(1000):
        market.turn(THERE)
    market.turn(HERE)
    market.want("new", 100, HERE)
    order = [market.turn(HERE) for _ in range(10)]
    assert order.count("new") == 5


def test_who_comes_to_a_kind_for_which_nobody_waits_has_saved_up_nothing(evenly: None) -> None:
    market = Market()
    market.want("busy", 100, THERE)
    for _ in range(100):
        market.turn(THERE)
    market.want("busy", 100, HERE)
    market.want("new", 100, HERE)
    order = [market.turn(HERE) for _ in range(10)]
    assert order.count("busy") == 5


def test_nor_have_others_whatever_was_used_there_while_there_was_room(evenly: None) -> None:
    """Somebody waits for something else all the time."""
    market = Market()
    market.want("waits", 100, HERE)
    old = market.party("old")
    for _ in range(200):
        market.begin(old, 100)
        market.end(old, 100, 100, 1.0)
    market.want("old", 100, THERE)
    market.want("new", 100, THERE)
    order = [market.turn(THERE) for _ in range(10)]
    assert 4 <= order.count("old") <= 5


# -- what was used -----------------------------------------------------------------------------------------------------


def test_the_factor_says_what_past_use_makes_of_a_share() -> None:
    assert factor(0.0, 0.5) == 1.0
    assert factor(0.5, 0.5) == 0.5
    assert factor(1.0, 0.5) == 0.25
    assert factor(1.0, 1e-9) == LEAST_FACTOR


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.001, 1))
def test_more_use_is_never_more_weight(use: float, more: float, share: float) -> None:
    assert LEAST_FACTOR <= factor(max(use, more), share) <= factor(min(use, more), share) <= 1


def test_who_used_more_gets_less_and_still_something() -> None:
    market = Market()
    market.recall(market.party("heavy"), 1e9)
    market.recall(market.party("light"), 0.0)
    market.reshare()
    market.want("heavy", 10)
    market.want("light", 10)
    order = [market.turn() for _ in range(500)]
    assert 90 <= order.count("heavy") <= 110, "a fourth of the weight of the other"


def test_weights_follow_what_is_used() -> None:
    market = Market()
    market.recall(market.party("before"), 1000.0)
    market.want("before", 10)
    assert market.party("before").weight == 0.5, "as soon as it waits"
    market.want("now", 10)
    assert market.party("now").weight == 1.0
    for _ in range(3000):
        market.turn()
    assert 0.4 < market.party("now").weight < 0.6, "it had no need to come anew"


def test_use_fades() -> None:
    market = Market()
    market.recall(market.party("once"), 1000.0)
    market.recall(market.party("now"), 0.0)
    once, now = market.party("once"), market.party("now")
    market.reshare()
    assert once.weight < now.weight
    for half_lives in range(20):
        market.begin(now, 1000)
        market.end(now, 1000, 1000, 2.0**half_lives)
    market.reshare()
    assert once.weight > 0.99
    assert now.weight < 0.3


def test_the_measure_of_use_may_begin_anew() -> None:
    market = Market()
    market.recall(market.party("a"), 3e100)
    market.recall(market.party("b"), 1e100)
    market.reshare()
    before = [market.party(name).weight for name in ("a", "b")]
    market.shrink(1e-100)
    market.reshare()
    assert [market.party(name).weight for name in ("a", "b")] == pytest.approx(before)


def test_shares_may_change() -> None:
    shares = {"a": 1.0}
    market = Market(lambda name: shares.get(name, 1.0))
    assert market.party("a").weight == market.party("b").weight
    shares["a"] = 5.0
    market.reshare()
    assert market.party("a").weight == 5 * market.party("b").weight


# -- memory ------------------------------------------------------------------------------------------------------------


def test_those_of_whom_nothing_is_left_are_forgotten() -> None:
    market = Market()
    market.want("waits", 1)
    market.begin(market.party("in flight"), 1)
    for i in range(10_000):
        passer = market.party(f"passer {i}")
        market.begin(passer, 10)
        market.end(passer, 10, 10, 2.0 ** (i / 100))
    assert {"waits", "in flight"} <= set(market.parties)
    assert len(market.parties) < FEW + 700, "those of the last few half lives are remembered, and no others"
    last = market.party("passer 9999")
    market.weigh(last)
    whole = sum(party.use for party in market.parties.values())
    assert last.weight == pytest.approx(factor(last.use / whole, 1 / len(market.parties))), "nor do they count"


def test_nobody_is_forgotten_to_whom_past_use_makes_a_difference() -> None:
    market = Market()
    for i in range(1000):
        market.begin(market.party(f"{i}"), 10)
        market.end(market.party(f"{i}"), 10, 10, 1.0)
    assert len(market.parties) == 1000


@given(st.integers(1, 40), st.integers(0, 2**32))
def test_what_is_remembered_of_turns_grows_with_those_who_wait_not_with_time(size: int, seed: int) -> None:
    chance = random.Random(seed)
    market = Market()
    for i in range(size):
        market.want(f"{i}", chance.randint(1, 1000))
    for _ in range(500):
        market.give(used=1)
        market.finish(chance.randrange(len(market.running)))
    assert len(market.turns[ANY].entries) <= 2 * size + FEW + 1
    assert len(list(market.turns[ANY].places())) == size
