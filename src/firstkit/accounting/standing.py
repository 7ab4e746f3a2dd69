"""How budgets stand, in plain values for JSON and tables."""

from __future__ import annotations

import asyncio
import heapq
from datetime import datetime
from typing import Any

from firstkit.accounting.tallies import Books, Page, Tally
from firstkit.accounting.terms import Terms, moment
from firstkit.store.budgets import names_of
from firstkit.store.database import Database
from firstkit.store.tables import projects, users

Row = dict[str, Any]
MOST_SUBJECTS = 100
"""Of a budget of each user or project so many are shown, those that used the most."""
AT_ONCE = 50
"""Rows that are made in the loop at once: a millisecond."""
_NOTHING = Tally()


def of_request(books: Books, at: datetime, project_id: str, user_id: str) -> list[Row]:
    """The budgets that cover requests of a user that are charged to a project, with what is used and left of them;
    those of each user without it where ``user_id`` is empty."""
    rows = []
    for terms, page in books.pages(at):
        scope = terms.scope
        if scope.covers(project_id, user_id, scope.model or ""):
            subject = scope.subject(project_id, user_id)
            is_known = page.is_complete and (bool(subject) or scope.each is None)
            rows.append(_row(terms, page, page.tallies.get(subject, _NOTHING) if is_known else None))
    return rows


async def of_all(books: Books, at: datetime) -> list[Row]:
    """All budgets. For those of each user or project, what is used and left is that of whoever used the most, and
    ``subjects`` has the ids and numbers of MOST_SUBJECTS of them."""
    rows = []
    for number, (terms, page) in enumerate(list(books.pages(at))):
        rows.append(_whole_row(terms, page))
        if number % AT_ONCE == AT_ONCE - 1:
            await asyncio.sleep(0)
    return rows


def _whole_row(terms: Terms, page: Page) -> Row:
    if terms.scope.each is None:
        return _row(terms, page, page.tallies.get("", _NOTHING) if page.is_complete else None)
    most = heapq.nlargest(MOST_SUBJECTS, page.tallies.items(), key=_taken)
    row = _row(terms, page, (most[0][1] if most else _NOTHING) if page.is_complete else None)
    return {**row, "subjects": [{"name": subject, **_numbers(terms, tally)} for subject, tally in most]}


def _taken(item: tuple[str, Tally]) -> float:
    return item[1].taken


async def named(db: Database, rows: list[Row]) -> list[Row]:
    """The same rows, with names of subjects in place of their ids, where they have one. Raises StoreUnavailable."""
    async with db.read() as conn:
        for each, table in (("user", users), ("project", projects)):
            subjects = [subject for row in rows if row["each"] == each for subject in row["subjects"]]
            names = await names_of(conn, table, {subject["name"] for subject in subjects})
            for subject in subjects:
                subject["name"] = names.get(subject["name"], subject["name"])
    return rows


def _row(terms: Terms, page: Page, tally: Tally | None) -> Row:
    """``tally``: None where it is not known."""
    numbers = _numbers(terms, tally) if tally is not None else {"used": None, "reserved": None, "left": None}
    return {
        **terms.as_row(),
        "begins_at": moment(page.span.begin),
        "ends_at": moment(page.span.end),
        **numbers,
    }


def _numbers(terms: Terms, tally: Tally) -> Row:
    left = max(0, terms.amount - tally.taken)
    if terms.scope.unit == "tokens":
        return {"used": int(tally.used), "reserved": tally.reserved, "left": int(left)}
    return {"used": round(tally.used, 6), "reserved": 0, "left": round(left, 6)}
