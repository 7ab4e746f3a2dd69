"""Whom a budget covers, and the sentences in which people are told of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from firstkit.accounting.periods import Period, span_of
from firstkit.accounting.terms import Scope, Terms, number, spent, warning
from firstkit.errors import BudgetSpent

NOVEMBER = span_of(Period.MONTH, datetime(2026, 11, 27, tzinfo=UTC))


def terms(unit: Any = "tokens", period: Period = Period.MONTH, amount: float = 1000, **of_whom: Any) -> Terms:
    """A hard budget; by names, which are the ids too."""
    names = {name: of_whom.pop(name) for name in ("project", "user") if name in of_whom}
    scope = Scope(unit, period, names.get("project"), names.get("user"), **of_whom)
    return Terms(scope, amount, is_hard=True, warn_at=0.8, **names)


@pytest.mark.parametrize(
    ("scope", "covers"),
    [
        ({}, True),
        ({"project_id": "p"}, True),
        ({"project_id": "q"}, False),
        ({"user_id": "u"}, True),
        ({"user_id": "v"}, False),
        ({"model": "m"}, True),
        ({"model": "n"}, False),
        ({"project_id": "p", "user_id": "u", "model": "m"}, True),
        ({"project_id": "p", "user_id": "u", "model": "n"}, False),
        ({"project_id": "p", "user_id": "v", "model": "m"}, False),
        ({"project_id": "q", "user_id": "u", "model": "m"}, False),
    ],
)
def test_a_budget_covers_what_fits_all_that_it_names(scope: dict[str, str], covers: bool) -> None:
    assert Scope("tokens", Period.DAY, **scope).covers("p", "u", "m") is covers


def test_each_counts_apart() -> None:
    assert Scope("tokens", Period.DAY).subject("p", "u") == ""
    assert Scope("tokens", Period.DAY, each="user").subject("p", "u") == "u"
    assert Scope("tokens", Period.DAY, each="project").subject("p", "u") == "p"


@pytest.mark.parametrize(
    ("of_whom", "said", "said_to_ada"),
    [
        ({}, "everybody", "everybody"),
        ({"project": "fusion"}, "project 'fusion'", "project 'fusion'"),
        ({"user": "ada", "model": "m"}, "user 'ada' for model 'm'", "user 'ada' for model 'm'"),
        ({"user": "ada", "project": "fusion"}, "user 'ada' in project 'fusion'", "user 'ada' in project 'fusion'"),
        ({"each": "user"}, "each user", "user 'ada'"),
        ({"project": "fusion", "each": "user"}, "each user in project 'fusion'", "user 'ada' in project 'fusion'"),
        ({"user": "ada", "each": "project"}, "user 'ada' in each project", "user 'ada' in project 'climate'"),
        ({"each": "project", "model": "m"}, "each project for model 'm'", "project 'climate' for model 'm'"),
    ],
)
def test_it_says_whose_it_is(of_whom: dict[str, str], said: str, said_to_ada: str) -> None:
    assert terms(**of_whom).whose() == said
    assert terms(**of_whom).whose("ada", "climate") == said_to_ada


def test_it_says_what_there_is() -> None:
    assert terms().what == "1000 tokens a month"
    assert terms("node_hours", Period.TOTAL, 12.5).what == "12.50 node-hours in all"
    assert terms("node_hours", Period.DAY, 12).what == "12 node-hours a day"
    assert [number(amount) for amount in (0, 1e12, 0.126)] == ["0", "1000000000000", "0.13"]


def test_who_is_refused_hears_which_budget_of_whom_what_is_left_what_was_asked_for_and_when_it_begins_anew() -> None:
    error = spent(terms(project="fusion"), "project 'fusion'", NOVEMBER, 12, 530)
    assert isinstance(error, BudgetSpent)
    assert (error.status, error.code, error.retry_after_s) == (429, "insufficient_quota", None)
    assert error.message == (
        "This request may take 530 tokens, and of the budget of 1000 tokens a month of project 'fusion' 12 are left; "
        "it begins anew on 2026-12-01 at 00:00 UTC."
    )
    anew = "2026-12-01T00:00:00+00:00"
    assert error.details == {"should_retry": False, "left": 12, "needed": 530, "begins_anew_at": anew}


def test_a_total_does_not_begin_anew() -> None:
    of_ever = span_of(Period.TOTAL, NOVEMBER.begin)
    error = spent(terms("node_hours", Period.TOTAL), "everybody", of_ever, -3.5, None)
    assert error.message == ("The budget of 1000 node-hours in all of everybody is used up; it does not begin anew.")
    assert error.details == {"should_retry": False, "left": 0, "needed": None, "begins_anew_at": None}


def test_warnings_fit_into_a_header() -> None:
    said = warning(terms(project="späße\r\nx: y"), "project 'späße\r\nx: y'", NOVEMBER, 801)
    assert said == (
        "Of the budget of 1000 tokens a month of project 'sp??e??x: y' 801 are used or reserved; "
        "it begins anew on 2026-12-01 at 00:00 UTC."
    )
    assert warning(terms(), "everybody", NOVEMBER, 1001) == (
        "The budget of 1000 tokens a month of everybody is used up, 1001 are used or reserved; "
        "it begins anew on 2026-12-01 at 00:00 UTC."
    )
