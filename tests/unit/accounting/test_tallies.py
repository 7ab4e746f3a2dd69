"""The arithmetic of reservations, and pages that turn over with their periods. All in memory, with times by hand."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.accounting.estimate import Estimate
from firstkit.accounting.periods import Period
from firstkit.accounting.tallies import INSTALLED_WITHIN, Books, Reservation, most_completion
from firstkit.accounting.terms import Scope, Terms
from firstkit.auth.permissions import Identity
from firstkit.errors import BudgetSpent, StoreUnavailable

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
DAY = timedelta(days=1)
ADA = Identity("ada", "Ada", "fusion", "k" * 12, frozenset({"inference"}), "Fusion")
BOB = Identity("bob", "Bob", "fusion", "l" * 12, frozenset({"inference"}), "Fusion")
EVE = Identity("eve", "Eve", "climate", "m" * 12, frozenset({"inference"}), "Climate")


def budget(amount: float, hard: bool = True, unit: Any = "tokens", period: Period = Period.DAY, **scope: Any) -> Terms:
    return Terms(Scope(unit, period, **scope), amount, hard, 0.8)


def asks(completion: int, prompt: int = 10, most_prompt: int = 20, given: bool = True, choices: int = 1) -> Estimate:
    return Estimate(prompt, most_prompt, completion, given, choices)


def books_of(*terms: Terms, at: datetime = NOW, is_complete: bool = True) -> Books:
    books = Books()
    install(books, *terms, at=at)
    if is_complete:
        complete(books, at)
    return books


def install(books: Books, *terms: Terms, at: datetime = NOW) -> None:
    for _ in books.install(list(terms), at):
        pass


def complete(books: Books, at: datetime = NOW) -> None:
    for unit in ("tokens", "node_hours"):
        for _, page in books.incomplete(unit, at):
            page.is_complete = True


def reserve(books: Books, estimate: Estimate, who: Identity = ADA, at: datetime = NOW, model: str = "m") -> Reservation:
    made = books.reserve(who, model, estimate, at)
    assert made is not None
    return made


def use(books: Books, tokens: int, who: Identity = ADA, at: datetime = NOW, model: str = "m") -> None:
    """A line of the ledger."""
    books.count(who.project_id, who.user_id, model, at, tokens)


def taken(books: Books, subject: str = "", at: datetime = NOW) -> list[float]:
    """What is used or reserved, by budget."""
    return [page.of(subject).taken for _, page in books.pages(at)]


# -- what is reserved --------------------------------------------------------------------------------------------------


def test_no_budget_no_reservation() -> None:
    assert books_of().reserve(ADA, "m", asks(5), NOW) is None
    assert books_of(budget(100, user_id="bob")).reserve(ADA, "m", asks(5), NOW) is None


def test_a_hard_budget_reserves_the_most_and_says_how_much_may_be_answered() -> None:
    books = books_of(budget(100))
    reservation = reserve(books, asks(50))
    assert (reservation.tokens, reservation.most_completion) == (70, 50)
    assert taken(books) == [70]


def test_a_soft_budget_reserves_what_is_probable_and_limits_nothing() -> None:
    books = books_of(budget(100, hard=False))
    reservation = reserve(books, asks(5000))
    assert (reservation.tokens, reservation.most_completion) == (5010, None)


def test_who_asks_for_more_than_is_left_is_refused_and_nothing_is_reserved() -> None:
    books = books_of(budget(100))
    with pytest.raises(BudgetSpent, match=r"may take 101 tokens, and of the budget .* 100 are left"):
        reserve(books, asks(81))
    assert taken(books) == [0]
    assert reserve(books, asks(80)).most_completion == 80


def test_who_names_no_number_gets_the_rest() -> None:
    books = books_of(budget(100))
    assert reserve(books, asks(4096, given=False)).most_completion == 80
    assert taken(books) == [100]
    with pytest.raises(BudgetSpent, match=r"may take 21 tokens, and of the budget .* 0 are left"):
        reserve(books, asks(4096, given=False))


@pytest.mark.parametrize(
    ("left", "estimate", "most"),
    [
        (70, asks(50), 50),
        (69, asks(50), None),
        (69, asks(50, given=False), 49),
        (21, asks(50, given=False), 1),
        (20, asks(50, given=False), None),
        (0, asks(50, given=False), None),
        (20, asks(0), 0),
        (19, asks(0), None),
        (20, asks(0, given=False), 0),
        (30, asks(60, given=False, choices=3), 9),
        (23, asks(60, given=False, choices=3), 3),
        (22, asks(60, given=False, choices=3), None),
        (-5, asks(1), None),
    ],
)
def test_most_completion(left: int, estimate: Estimate, most: int | None) -> None:
    assert most_completion(left, estimate) == most


def test_the_tightest_budget_decides_and_all_give_the_same() -> None:
    books = books_of(
        budget(1000), budget(100, user_id="ada"), budget(500, model="m"), budget(10, hard=False, each="user")
    )
    assert reserve(books, asks(4096, given=False)).most_completion == 80
    assert [page.of("ada" if terms.scope.each else "").taken for terms, page in books.pages(NOW)] == [100] * 4


def test_of_several_budgets_all_give_or_none_does() -> None:
    books = books_of(budget(1000), budget(50, user_id="ada"), budget(1000, project_id="fusion"))
    with pytest.raises(BudgetSpent, match="50 are left"):
        reserve(books, asks(31))
    assert taken(books) == [0, 0, 0]
    reserve(books, asks(31), BOB)
    assert taken(books) == [51, 0, 51]


def test_two_budgets_of_the_same_use_are_counted_once() -> None:
    books = books_of(budget(100, hard=False), budget(200))
    reservation = reserve(books, asks(30))
    use(books, 40)
    assert taken(books) == [90, 90]
    reservation.settle()
    assert taken(books) == [40, 40]


def test_each_user_has_as_much() -> None:
    books = books_of(budget(50, project_id="fusion", each="user"))
    for who in (ADA, BOB):
        reserve(books, asks(30), who)
        with pytest.raises(BudgetSpent, match=f"of user '{who.user_name}'"):
            reserve(books, asks(30), who)
    assert books.reserve(EVE, "m", asks(1000), NOW) is None


def test_a_reservation_is_settled_once() -> None:
    books = books_of(budget(100))
    reservation = reserve(books, asks(80))
    reservation.settle()
    reservation.settle()
    assert taken(books) == [0]


def test_what_is_used_is_what_lines_say_whoever_reserved_it() -> None:
    """Those that began before there was a budget count, too, and none of others does."""
    books = books_of(budget(100, project_id="fusion", model="m"))
    use(books, 60)
    use(books, 30, BOB)
    use(books, 1000, EVE)
    use(books, 1000, model="n")
    assert taken(books) == [90]
    with pytest.raises(BudgetSpent, match="10 are left"):
        reserve(books, asks(1))


@given(
    st.integers(0, 500),
    st.lists(
        st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 100), st.booleans(), st.integers(1, 3)),
        max_size=40,
    ),
    st.data(),
)
def test_a_hard_budget_is_never_overrun_by_those_who_use_at_most_what_they_reserved(
    amount: int, requests: list[tuple[int, int, int, bool, int]], data: st.DataObject
) -> None:
    books = books_of(budget(amount), budget(amount, each="user"))
    under_way: list[Reservation] = []
    used = 0
    for prompt, more, answer, is_given, choices in requests:
        estimate = Estimate(prompt, prompt + more, answer * choices, is_given, choices)
        left = amount - taken(books)[0]
        try:
            under_way.append(reserve(books, estimate))
        except BudgetSpent as refusal:
            assert refusal.details["needed"] > refusal.details["left"] == left, "who is refused needs more than is left"
        assert taken(books)[0] == used + sum(each.tokens for each in under_way) <= amount
        if under_way and data.draw(st.booleans()):
            ended = under_way.pop(data.draw(st.integers(0, len(under_way) - 1)))
            tokens = data.draw(st.integers(0, ended.tokens))
            use(books, tokens)
            ended.settle()
            used += tokens
    for reservation in under_way:
        reservation.settle()
    assert taken(books)[0] == used <= amount


# -- warnings ----------------------------------------------------------------------------------------------------------


def test_people_are_warned_from_the_given_part_on() -> None:
    books = books_of(budget(1000, hard=False))
    use(books, 799)
    assert reserve(books, asks(1)).warning is None
    assert reserve(books, asks(1)).warning is not None, "the first took eleven"


def test_soft_budgets_only_warn() -> None:
    books = books_of(budget(100, hard=False, project_id="fusion"))
    use(books, 150)
    reservation = reserve(books, asks(10_000))
    assert reservation.most_completion is None
    assert str(reservation.warning).startswith("The budget of 100 tokens a day of everybody is used up, 150 are used")


def test_the_warning_is_about_the_budget_that_is_used_up_the_most() -> None:
    books = books_of(budget(1000), budget(200, hard=False, user_id="ada"), budget(0, hard=False, model="other"))
    use(books, 900)
    assert "of 200 tokens a day" in str(reserve(books, asks(1)).warning)
    assert "of 0 tokens a day" in str(reserve(books, asks(1), model="other").warning)


# -- node-hours --------------------------------------------------------------------------------------------------------


def test_node_hours_stop_when_they_are_used_up() -> None:
    books = books_of(budget(2.5, unit="node_hours", each="project"))
    [(_, page)] = books.pages(NOW)
    page.of("fusion").used = 2.4
    reservation = reserve(books, asks(10_000))
    assert (reservation.tallies, reservation.most_completion) == ([], None)
    assert "2.40 are used or reserved" in str(reservation.warning)
    use(books, 10**9)
    assert page.of("fusion").used == 2.4, "tokens are none"
    page.of("fusion").used = 2.5
    with pytest.raises(BudgetSpent, match=r"of 2\.50 node-hours a day of project 'Fusion' is used up"):
        reserve(books, asks(1))
    assert reserve(books, asks(1), EVE).warning is None


# -- periods -----------------------------------------------------------------------------------------------------------


def test_with_a_new_period_all_is_there_again() -> None:
    books = books_of(budget(100))
    late = reserve(books, asks(80), at=NOW)
    assert reserve(books, asks(80), at=NOW + DAY).most_completion == 80
    use(books, 90, at=NOW)
    late.settle()
    assert taken(books, at=NOW + DAY) == [100], "a request counts in the period in which it arrived"
    assert taken(books, at=NOW) == [90]


def test_a_request_that_arrived_before_midnight_and_begins_behind_it_takes_of_the_day_before() -> None:
    books = books_of(budget(100))
    reserve(books, asks(80), at=NOW + DAY)
    with pytest.raises(BudgetSpent):
        reserve(books, asks(81), at=NOW)
    reserve(books, asks(80), at=NOW)
    assert taken(books, at=NOW) == [100]


def test_lines_of_periods_that_are_long_over_count_nowhere() -> None:
    books = books_of(budget(100))
    reserve(books, asks(80), at=NOW + 2 * DAY)
    use(books, 50, at=NOW - DAY)
    assert taken(books, at=NOW + 2 * DAY) == [100]


# -- what is not known -------------------------------------------------------------------------------------------------


def test_until_it_is_known_what_was_used_hard_budgets_refuse_and_soft_ones_do_not() -> None:
    books = books_of(budget(100, user_id="ada"), budget(1, hard=False), is_complete=False)
    with pytest.raises(StoreUnavailable, match=r"budget of 100 tokens a day .* is not known yet") as refused:
        reserve(books, asks(1))
    assert refused.value.retry_after_s == 1.0
    use(books, 5)
    assert reserve(books, asks(1), BOB).warning is None
    complete(books)
    assert reserve(books, asks(1)).most_completion == 1


def test_a_period_that_begins_under_our_eyes_is_known() -> None:
    books = books_of(budget(100, period=Period.DAY), budget(100, period=Period.MONTH), is_complete=False)
    tomorrow = NOW + DAY
    assert [terms.scope.period.value for terms, page in books.pages(tomorrow) if page.is_complete] == ["day"]
    assert [book.scope.period.value for book, _ in books.incomplete("tokens", tomorrow)] == ["day", "month"]


def test_a_period_that_begins_while_budgets_are_read_is_not() -> None:
    midnight = NOW.replace(hour=0)
    books = books_of(budget(100), at=midnight - timedelta(seconds=1), is_complete=False)
    assert not any(page.is_complete for _, page in books.pages(midnight))
    later = books_of(budget(100), at=midnight - INSTALLED_WITHIN, is_complete=False)
    assert all(page.is_complete for _, page in later.pages(midnight))


# -- other budgets -----------------------------------------------------------------------------------------------------


def test_other_amounts_keep_what_was_used() -> None:
    books = books_of(budget(100))
    open_one = reserve(books, asks(30))
    use(books, 40)
    install(books, budget(1000), budget(70, user_id="bob"))
    assert taken(books) == [90, 0]
    open_one.settle()
    assert taken(books) == [40, 0]
    assert reserve(books, asks(900)).most_completion == 900


def test_what_was_removed_refuses_nobody() -> None:
    books = books_of(budget(100), budget(100, user_id="ada"))
    kept = reserve(books, asks(80))
    install(books)
    assert books.is_empty
    assert books.reserve(ADA, "m", asks(1000), NOW) is None
    kept.settle()


def test_many_budgets_are_read_in_steps_and_nothing_changes_before_the_last() -> None:
    many = [budget(100 + number, user_id=f"u{number}") for number in range(1000)]
    books = books_of(budget(5))
    steps = books.install(many, NOW)
    assert sum(1 for _ in steps) >= 10
    assert len(list(books.pages(NOW))) == 1000
    again = books.install(many[:-1], NOW)
    next(again)
    assert len(list(books.pages(NOW))) == 1000


@dataclass
class _Case:
    scope: dict[str, Any]
    who: list[Identity]


@pytest.mark.parametrize(
    "case",
    [
        _Case({}, [ADA, BOB, EVE]),
        _Case({"project_id": "fusion"}, [ADA, BOB]),
        _Case({"user_id": "eve"}, [EVE]),
        _Case({"model": "m"}, [ADA, BOB, EVE]),
        _Case({"model": "n"}, []),
        _Case({"project_id": "fusion", "user_id": "bob", "model": "m"}, [BOB]),
        _Case({"project_id": "fusion", "model": "n"}, []),
        _Case({"each": "project", "user_id": "ada"}, [ADA]),
    ],
)
def test_budgets_are_found_by_all_that_they_name(case: _Case) -> None:
    books = books_of(budget(100, **case.scope))
    assert [who for who in (ADA, BOB, EVE) if books.reserve(who, "m", asks(1), NOW)] == case.who
