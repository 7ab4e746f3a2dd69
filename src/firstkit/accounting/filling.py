"""Fills the books of budgets with what was used before they were opened: tokens of the ledger, node-hours of jobs."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta

from firstkit.accounting.attribution import hour_of
from firstkit.accounting.grouping import NodeHourGrouping
from firstkit.accounting.node_hours import node_hours
from firstkit.accounting.periods import Span
from firstkit.accounting.tallies import Book, Books, Page, Tally
from firstkit.accounting.terms import Scope
from firstkit.store.budgets import Column, used_tokens
from firstkit.store.database import Database

SETTLES_AFTER = timedelta(days=2)
"""Node-hours of what is longer ago change no more: all requests have ended, and all ends of jobs are known."""
MOST_NAMED = 500
AT_ONCE = 500
"""Rows that are taken in the loop at once: a millisecond."""


async def complete(db: Database, books: Books, pages: Iterable[tuple[Book, Page]]) -> None:
    """Complete ``pages`` by what the ledger has of their periods, the shortest first. Raises StoreUnavailable, and then
    a part of it may be there already in those that are not complete."""
    by_span: defaultdict[Span, dict[Scope, Page]] = defaultdict(dict)
    for book, page in pages:
        by_span[page.span][book.scope] = page
    for span in sorted(by_span, reverse=True):
        wanted = by_span[span]
        async with db.read() as conn:
            async for rows in used_tokens(conn, *span, _told_apart(wanted), _only(wanted)):
                for project_id, user_id, model, tokens in rows:
                    for book, subject, _ in books.covering(project_id, user_id, model):
                        if (found := wanted.get(book.scope)) is not None:
                            found.of(subject).used += tokens
                await asyncio.sleep(0)
        for page in wanted.values():
            page.is_complete = True


def _told_apart(scopes: Collection[Scope]) -> set[Column]:
    """The columns of the ledger by which what counts for any of ``scopes`` is told from other use."""
    named: set[Column] = {name for name in _COLUMNS if any(getattr(scope, name) is not None for scope in scopes)}
    return named | {_OF_EACH[scope.each] for scope in scopes if scope.each is not None}


def _only(scopes: Collection[Scope]) -> dict[Column, Collection[str]]:
    """What the ledger may be asked for alone: values of the columns of which each scope names one."""
    named = {name: {getattr(scope, name) for scope in scopes} for name in _COLUMNS}
    return {name: values for name, values in named.items() if None not in values and len(values) <= MOST_NAMED}


_COLUMNS: tuple[Column, ...] = ("project_id", "user_id", "model")
_OF_EACH: dict[str, Column] = {"user": "user_id", "project": "project_id"}


class Meter:
    """Node-hours since ``since``, by project and model. What can change no more is asked for only once."""

    def __init__(self, since: datetime) -> None:
        self._until = since
        self._settled: Counter[tuple[str, str]] = Counter()

    async def read(self, db: Database, at: datetime, idle_project: str) -> Counter[tuple[str, str]]:
        """Node-hours until ``at``, by ids of projects and names of models. Raises StoreUnavailable."""
        border = hour_of(at - SETTLES_AFTER)
        if border > self._until:
            self._settled += await _sums(db, self._until, border, idle_project)
            self._until = border
        return self._settled + await _sums(db, self._until, at, idle_project)


async def _sums(db: Database, since: datetime, until: datetime, idle_project: str) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for row in await node_hours(db, since, until, idle_project, [NodeHourGrouping.MODEL]):
        found[row.project_id, row.model] += row.node_hours  # type: ignore[assignment]  # counters count in floats too
    return found


class NodeHourFiller:
    """Writes node-hours into the books of budgets that are in them."""

    def __init__(self, idle_project: str) -> None:
        self._idle_project = idle_project
        self._meters: dict[Span, Meter] = {}

    async def fill(self, db: Database, books: Books, at: datetime) -> None:
        """Read how many node-hours were used until ``at``. Raises StoreUnavailable, and then what was known stands."""
        wanted = {book.scope: page for book in books.of("node_hours") if (page := book.page(at)) is not None}
        spans = {page.span for page in wanted.values()}
        self._meters = {span: self._meters.get(span) or Meter(span.begin) for span in spans}
        for span, meter in self._meters.items():
            pages = {scope: page for scope, page in wanted.items() if page.span == span}
            await _write(books, pages, await meter.read(db, at, self._idle_project))


async def _write(books: Books, pages: dict[Scope, Page], sums: Counter[tuple[str, str]]) -> None:
    written: dict[Scope, dict[str, Tally]] = {scope: {} for scope in pages}
    for number, ((project_id, model), hours) in enumerate(sums.items()):
        for book, subject, _ in books.covering(project_id, "", model):
            if (tallies := written.get(book.scope)) is not None:
                tallies.setdefault(subject, Tally()).used += hours
        if number % AT_ONCE == AT_ONCE - 1:
            await asyncio.sleep(0)
    for scope, page in pages.items():
        page.tallies = written[scope]
        page.is_complete = True
