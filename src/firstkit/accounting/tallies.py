"""What is used of budgets and what is reserved of them, in memory. Pure: times come in, and nothing waits.

A book counts for one scope, whatever budgets there are of it. It has a page for the period that is, and one for the
period before, with a tally for each user or project that is counted apart. Pages are fed with the lines that go to the
ledger. One that began before its book did is incomplete until somebody adds what the ledger had by then.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from datetime import datetime, timedelta
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from firstkit.accounting.periods import Period, Span, span_of
from firstkit.accounting.terms import Scope, Terms, Unit, spent, warning
from firstkit.errors import ApiError, StoreUnavailable

if TYPE_CHECKING:
    from firstkit.accounting.estimate import Estimate
    from firstkit.auth.permissions import Identity

UNKNOWN_RETRY_S = 1.0
AT_ONCE = 100
"""Budgets that are looked at in one step."""
INSTALLED_WITHIN = timedelta(seconds=10)
REMEMBERED = 50_000
"""So many combinations of project, user and model, of which it is remembered what covers them."""


class Tally:
    """Of one subject in one period: ``used``, and the tokens ``reserved`` for requests under way."""

    __slots__ = ("reserved", "used")

    def __init__(self) -> None:
        self.used: float = 0
        self.reserved = 0

    @property
    def taken(self) -> float:
        return self.used + self.reserved


class Page:
    """One period of a book. ``is_complete``: what its tallies say is all that was used."""

    __slots__ = ("begin", "end", "is_complete", "tallies")

    def __init__(self, span: Span, is_complete: bool) -> None:
        self.begin, self.end = span
        self.is_complete = is_complete
        self.tallies: dict[str, Tally] = {}

    @property
    def span(self) -> Span:
        return Span(self.begin, self.end)

    def of(self, subject: str) -> Tally:
        tally = self.tallies.get(subject)
        if tally is None:
            tally = self.tallies[subject] = Tally()
        return tally

    def begin_again(self) -> None:
        """Forget what was used: from now on it is counted, and what was before will be added."""
        for tally in self.tallies.values():
            tally.used = 0


class Book:
    """What is counted for one scope. ``since``: from when on it hears of every line."""

    __slots__ = ("_former", "_page", "is_of_tokens", "scope", "since")

    def __init__(self, scope: Scope, since: datetime, span: Span) -> None:
        """``span``: the period that it begins in."""
        self.scope = scope
        self.is_of_tokens = scope.unit == "tokens"
        self.since = since
        self._page = Page(span, is_complete=since <= span.begin)
        self._former: Page | None = None

    @property
    def pages(self) -> list[Page]:
        return [self._page] if self._former is None else [self._former, self._page]

    def page(self, at: datetime) -> Page | None:
        """That of the period in which a request arrived at ``at``; None where that is long over."""
        page = self._page
        if at >= page.end:
            span = span_of(self.scope.period, at)
            self._former, self._page = page, Page(span, is_complete=self.since <= span.begin)
            return self._page
        if at < page.begin:
            former = self._former
            return former if former is not None and at >= former.begin else None
        return page


class Cover(NamedTuple):
    """A budget that covers a request, and how it stands."""

    terms: Terms
    page: Page
    tally: Tally

    @property
    def left(self) -> float:
        return self.terms.amount - self.tally.taken


class Reservation:
    """What one request may use. ``most_completion``: so many tokens of its answer at most, all its choices together;
    None: as it likes. ``warning``: what its sender is to be told, in one line of ASCII."""

    __slots__ = ("most_completion", "tallies", "tokens", "warning")

    def __init__(self, tallies: list[Tally], tokens: int, most_completion: int | None, warning: str | None) -> None:
        self.tallies = tallies
        self.tokens = tokens
        self.most_completion = most_completion
        self.warning = warning
        for tally in tallies:
            tally.reserved += tokens

    def settle(self) -> None:
        """Give back what was reserved. Once more changes nothing."""
        for tally in self.tallies:
            tally.reserved -= self.tokens
        self.tallies = []


class Found(NamedTuple):
    """A book in which a request counts, the subject that it counts for there, and the budgets of the book."""

    book: Book
    subject: str
    terms: list[Terms]


class _Shelves:
    """Books, found by whom they cover: each stands on one shelf, by the first that its scope names."""

    def __init__(self) -> None:
        self.books: dict[Scope, Book] = {}
        self._terms: dict[Scope, list[Terms]] = {}
        self._by_project: dict[str, list[Book]] = {}
        self._by_user: dict[str, list[Book]] = {}
        self._by_model: dict[str, list[Book]] = {}
        self._of_all: list[Book] = []
        self._known: dict[tuple[str, str, str], tuple[Found, ...]] = {}

    def add(self, terms: Terms, book: Book) -> None:
        """A budget and the book of its scope."""
        scope = terms.scope
        if scope in self.books:
            self._terms[scope].append(terms)
            return
        self.books[scope], self._terms[scope] = book, [terms]
        if scope.project_id is not None:
            self._by_project.setdefault(scope.project_id, []).append(book)
        elif scope.user_id is not None:
            self._by_user.setdefault(scope.user_id, []).append(book)
        elif scope.model is not None:
            self._by_model.setdefault(scope.model, []).append(book)
        else:
            self._of_all.append(book)

    def covering(self, project_id: str, user_id: str, model: str) -> tuple[Found, ...]:
        found = self._known.get((project_id, user_id, model))
        if found is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            found = self._known[project_id, user_id, model] = tuple(self._look(project_id, user_id, model))
        return found

    def _look(self, project_id: str, user_id: str, model: str) -> Iterator[Found]:
        named = (self._by_project.get(project_id), self._by_user.get(user_id), self._by_model.get(model))
        for books in (*named, self._of_all):
            for book in books or ():
                if book.scope.covers(project_id, user_id, model):
                    yield Found(book, book.scope.subject(project_id, user_id), self._terms[book.scope])


class Books:
    """The books of all budgets."""

    def __init__(self) -> None:
        self.terms: list[Terms] = []
        self.is_empty = True
        self._shelves = _Shelves()

    def install(self, terms: list[Terms], at: datetime) -> Iterator[None]:
        """Have exactly these budgets, from the end of the iteration on, which begins ``at`` and of which each step is a
        millisecond. Books of scopes that were there before go on."""
        if (yield from _are_same(terms, self.terms)):
            return
        shelves, spans = _Shelves(), {period: span_of(period, at) for period in Period}
        since = at + INSTALLED_WITHIN
        for number, each in enumerate(terms):
            book = shelves.books.get(each.scope) or self._shelves.books.get(each.scope)
            shelves.add(each, book or Book(each.scope, since, spans[each.scope.period]))
            if number % AT_ONCE == AT_ONCE - 1:
                yield
        self.terms, self.is_empty, self._shelves = terms, not terms, shelves

    def covering(self, project_id: str, user_id: str, model: str) -> tuple[Found, ...]:
        """The books in which a request counts that is charged so."""
        return self._shelves.covering(project_id, user_id, model)

    def count(self, project_id: str, user_id: str, model: str, at: datetime, tokens: int) -> None:
        """A line of so many tokens goes to the ledger, of a request that arrived at ``at``."""
        for book, subject, _ in self._shelves.covering(project_id, user_id, model):
            if book.is_of_tokens and (page := book.page(at)) is not None:
                page.of(subject).used += tokens

    def reserve(self, identity: Identity, model: str, estimate: Estimate, at: datetime) -> Reservation | None:
        """What a request may use that arrived at ``at``; None where no budget covers it. Of several budgets all give
        what is reserved, or none does. Raises BudgetSpent; StoreUnavailable where it is not known yet what is left."""
        found = self._shelves.covering(identity.project_id, identity.user_id, model)
        if not found:
            return None
        tallies: list[Tally] = []
        tightest = warned = None
        least, highest = inf, 0.0
        for book, subject, budgets in found:
            page = book.page(at) or book.pages[0]
            tally = page.of(subject)
            if book.is_of_tokens:
                tallies.append(tally)
            taken = tally.used + tally.reserved
            for terms in budgets:
                left = terms.amount - taken
                if terms.is_hard:
                    if not page.is_complete or (left <= 0 and not book.is_of_tokens):
                        raise _refusal(Cover(terms, page, tally), identity)
                    if left < least and book.is_of_tokens:
                        least, tightest = left, Cover(terms, page, tally)
                if taken >= terms.warn_at * terms.amount and page.is_complete:
                    share = taken / terms.amount if terms.amount else inf
                    if share >= highest:
                        highest, warned = share, Cover(terms, page, tally)
        most = None if tightest is None else _most_of(tightest, identity, estimate)
        tokens = estimate.prompt + estimate.completion if most is None else estimate.most_prompt + most
        return Reservation(tallies, tokens, most, None if warned is None else _warning(warned, identity))

    def pages(self, at: datetime) -> Iterator[tuple[Terms, Page]]:
        """All budgets, each with the page of the period that ``at`` is in."""
        for terms in self.terms:
            if (page := self._shelves.books[terms.scope].page(at)) is not None:
                yield terms, page

    def of(self, unit: Unit) -> list[Book]:
        """The books that are kept in tokens, or in node-hours."""
        return [book for scope, book in self._shelves.books.items() if scope.unit == unit]

    def incomplete(self, unit: Unit, at: datetime) -> list[tuple[Book, Page]]:
        """Pages that lack what was used before their book began."""
        for book in self.of(unit):
            book.page(at)
        return [(book, page) for book in self.of(unit) for page in book.pages if not page.is_complete]


def _are_same(terms: list[Terms], others: list[Terms]) -> Generator[None, None, bool]:
    if len(terms) != len(others):
        return False
    for start in range(0, len(terms), AT_ONCE):
        if terms[start : start + AT_ONCE] != others[start : start + AT_ONCE]:
            return False
        yield
    return True


def _refusal(cover: Cover, identity: Identity) -> ApiError:
    """Why a hard budget gives nothing, whatever is asked for."""
    if not cover.page.is_complete:
        budget = f"the budget of {cover.terms.what} of {_whose(cover, identity)}"
        return StoreUnavailable(f"What is left of {budget} is not known yet.", retry_after_s=UNKNOWN_RETRY_S)
    return spent(cover.terms, _whose(cover, identity), cover.page.span, cover.left, None)


def _most_of(tightest: Cover, identity: Identity, estimate: Estimate) -> int:
    """How many tokens of an answer a hard budget allows; raises BudgetSpent."""
    most = most_completion(int(tightest.left), estimate)
    if most is None:
        needed = estimate.most_prompt + _least_completion(estimate)
        raise spent(tightest.terms, _whose(tightest, identity), tightest.page.span, tightest.left, needed)
    return most


def most_completion(left: int, estimate: Estimate) -> int | None:
    """How many tokens an answer may have, of all choices together, where so many are ``left`` for it and its prompt;
    None where what is asked for does not fit. Who asks for no number gets what there is, the same for each choice."""
    for_answer = left - estimate.most_prompt
    if for_answer >= estimate.completion:
        return estimate.completion
    if for_answer < _least_completion(estimate):
        return None
    return for_answer - for_answer % estimate.choices


def _least_completion(estimate: Estimate) -> int:
    return estimate.completion if estimate.given else min(estimate.completion, estimate.choices)


def _warning(cover: Cover, identity: Identity) -> str:
    return warning(cover.terms, _whose(cover, identity), cover.page.span, cover.tally.taken)


def _whose(cover: Cover, identity: Identity) -> str:
    return cover.terms.whose(identity.user_name, identity.project_name)
