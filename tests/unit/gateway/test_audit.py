"""Denials on their way into the audit log: none is lost, and no flood fills the disk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from firstkit.errors import Forbidden, ModelNotFound, StoreUnavailable, Unauthenticated
from firstkit.gateway.app import build_app
from firstkit.gateway.audit import MOST_KINDS, NOBODY, Audit
from firstkit.gateway.state import Gateway
from firstkit.store.audit import Entry, Sought, find
from firstkit.store.database import Database
from unit.gateway.support import IDENTITY, ask


class _Moody:
    """A database that can be silent."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.is_down = False

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Any]:
        if self.is_down:
            raise StoreUnavailable
        async with self._db.begin() as conn:
            yield conn


@pytest.fixture
def store(db: Database) -> _Moody:
    return _Moody(db)


@pytest.fixture
def audit(store: _Moody) -> Audit:
    return Audit(store)  # type: ignore[arg-type]


async def entries(db: Database) -> list[Entry]:
    async with db.read() as conn:
        return (await find(conn, Sought(), 5000))[::-1]


async def test_a_denial_says_who_what_and_from_where(db: Database, audit: Audit) -> None:
    audit.denied(Forbidden("no"), replace(IDENTITY, project_name="climate"), "GET /admin/users", "192.0.2.7")
    await audit.write()
    [entry] = await entries(db)
    assert (entry.actor, entry.action, entry.subject, entry.source) == (
        "user", "denied", "GET /admin/users", "192.0.2.7",
    )  # fmt: skip
    assert entry.details == {"code": "insufficient_scope", "message": "no", "project": "climate", "by": "prefix"}


async def test_those_that_are_alike_are_one(db: Database, audit: Audit) -> None:
    for i in range(500):
        audit.denied(Unauthenticated(), None, f"GET /{i}", "192.0.2.7")
        audit.denied(Unauthenticated(), None, "GET /", "192.0.2.8")
    audit.denied(ModelNotFound("the model 'a'"), IDENTITY, "POST /v1/chat/completions", "192.0.2.7")
    audit.denied(ModelNotFound("the model 'b'"), IDENTITY, "POST /v1/chat/completions", "192.0.2.7")
    await audit.write()
    found = await entries(db)
    assert [(entry.actor, entry.count) for entry in found] == [(NOBODY, 500), (NOBODY, 500), ("user", 1), ("user", 1)]


async def test_of_too_many_kinds_the_number_is_kept(db: Database, audit: Audit) -> None:
    for i in range(MOST_KINDS + 30):
        audit.denied(Unauthenticated(), None, "GET /", f"2001:db8::{i:x}")
    await audit.write()
    found = await entries(db)
    assert (len(found), found[-1].count) == (MOST_KINDS + 1, 30)
    await audit.write()
    assert len(await entries(db)) == MOST_KINDS + 1, "each is written once"


async def test_what_the_store_refuses_is_written_later(db: Database, store: _Moody, audit: Audit) -> None:
    store.is_down = True
    audit.denied(Unauthenticated(), None, "GET /", "192.0.2.7")
    await audit.write()
    audit.denied(Unauthenticated(), None, "GET /", "192.0.2.7")
    audit.denied(Forbidden(), IDENTITY, "GET /", "192.0.2.7")
    await audit.write()
    store.is_down = False
    await audit.write()
    assert sorted((entry.actor, entry.count) for entry in await entries(db)) == [(NOBODY, 2), ("user", 1)]


async def test_the_route_shows_also_what_was_denied_just_now(gateway: Gateway) -> None:
    gateway.audit.denied(Forbidden(), IDENTITY, "GET /x", "192.0.2.7")
    answer = (await ask(build_app(gateway), "/admin/audit?limit=1&actor=user")).json
    assert [row["subject"] for row in answer["data"]] == ["GET /x"]
    assert answer["has_more"] is False
    assert (await ask(build_app(gateway), "/admin/audit?limit=0")).status == 400
