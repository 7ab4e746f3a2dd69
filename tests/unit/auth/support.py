"""Shared by the tests of who somebody is: a clock that stands still, a database and a provider that can be silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, cast

import pytest
from sqlalchemy import insert, update

from firstkit.auth import people, sources
from firstkit.auth.authenticator import FRESH_S, Authenticator
from firstkit.auth.authority import Vouched
from firstkit.auth.people import People
from firstkit.auth.tokens import new_session
from firstkit.clock import now
from firstkit.config import parse_config
from firstkit.errors import ApiError, StoreUnavailable, Unauthenticated
from firstkit.ids import digest
from firstkit.store.database import Database
from firstkit.store.tables import members, projects, sessions, users

ISSUER = "https://login.example.org"
ADA = Vouched(ISSUER, "sub-1", "ada", "ada@example.org", frozenset(), frozenset(), frozenset(), 3600.0)


class Clock:
    """Monotonic seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds


class MoodyDatabase:
    """A database that counts its reading transactions and can be silent: raising, or not answering at all."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.asked = 0
        self.is_down = False
        self.hangs = False

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Any]:
        self.asked += 1
        await self._answers()
        async with self._db.read() as conn:
            yield conn

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Any]:
        await self._answers()
        async with self._db.begin() as conn:
            yield conn

    async def _answers(self) -> None:
        if self.is_down:
            raise StoreUnavailable
        if self.hangs:
            await asyncio.Event().wait()


class PlayedAuthority:
    """A provider that knows just the tokens that it was told, says no to all others, and fails on demand."""

    name = "oidc"

    def __init__(self, mark: str = "eyJ") -> None:
        self.mark = mark
        self.holders: dict[str, Vouched] = {}
        self.asked: list[str] = []
        self.error: Exception | None = None
        self.hangs = False
        self.no: type[ApiError] = Unauthenticated

    def may_know(self, token: str) -> bool:
        return token.startswith(self.mark)

    async def look_up(self, token: str) -> Vouched:
        self.asked.append(token)
        await asyncio.sleep(0)
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        if token not in self.holders:
            raise self.no()
        return self.holders[token]

    async def close(self) -> None:
        """There is nothing to close."""


class Setting:
    """A database, people by a configuration, a provider, and the authenticator over all of them."""

    def __init__(self, db: Database, config: str = "", remembered: int = 100) -> None:
        self.db = db
        self.store = MoodyDatabase(db)
        self.clock = Clock()
        self.authority = PlayedAuthority()
        parsed = parse_config(f"clusters: {{}}\nmodels: {{}}\n{config}")
        self.people = People(cast(Database, self.store), parsed)
        self.authenticator = Authenticator(
            cast(Database, self.store), self.people, [self.authority], self.clock, remembered
        )

    async def logged_in(self, vouched: Vouched = ADA, token: str = "eyJ.ada", **told: Any) -> str:
        """A token that the provider vouches for; ``told``: what it tells of its holder."""
        sets = {name: frozenset(value) for name, value in told.items() if name in ("groups", "domains", "projects")}
        self.authority.holders[token] = replace(vouched, **{**told, **sets})
        return token

    def later(self) -> None:
        """So much later that the store is asked again."""
        self.clock.pass_s(FRESH_S)

    async def user_id(self, vouched: Vouched = ADA, **told: Any) -> str:
        """The id of a user who has just logged in."""
        return await self.people.came(replace(vouched, **told))


async def add_project(db: Database, name: str, user_id: str | None = None, role: str = "member") -> str:
    """A project, and perhaps somebody who was added to it; its id."""
    project_id = f"project-{name}"
    async with db.begin() as conn:
        await conn.execute(insert(projects).values(id=project_id, name=name, description="", created_at=now()))
        if user_id is not None:
            row = {"user_id": user_id, "project_id": project_id, "role": role, "created_at": now()}
            await conn.execute(insert(members).values(row))
    return project_id


async def add_session(db: Database, user_id: str, lifetime_s: float = 3600.0) -> str:
    """A browser in which that user is logged in; its token."""
    token, at = new_session(), now()
    expires_at = at + timedelta(seconds=lifetime_s)
    row = {"sha256": digest(token), "user_id": user_id, "issuer": ISSUER, "created_at": at, "expires_at": expires_at}
    async with db.begin() as conn:
        await conn.execute(insert(sessions).values(row))
    return token


async def change_user(db: Database, user_id: str, **values: Any) -> None:
    """Let the row of a user be another."""
    async with db.begin() as conn:
        await conn.execute(update(users).where(users.c.id == user_id).values(values))


def wall_clock(monkeypatch: pytest.MonkeyPatch, ahead_s: float) -> None:
    """Let the clock on the wall go wrong, where expiries are judged."""

    def told() -> datetime:
        return now() + timedelta(seconds=ahead_s)

    for where in (sources, people):
        monkeypatch.setattr(where, "now", told)
