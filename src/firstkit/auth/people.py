"""People who log in: how they become users, and what they are at one moment."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sqlalchemy import Row
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from firstkit.auth.authority import Vouched
from firstkit.auth.names import fitted, is_name
from firstkit.auth.standing import Belonging, Person, Rules, Standing
from firstkit.clock import now
from firstkit.config.auth import Auth
from firstkit.errors import LoginRefused
from firstkit.ids import digest
from firstkit.store import identities as stored
from firstkit.store.audit import note
from firstkit.store.database import Database

if TYPE_CHECKING:
    from firstkit.config import Config

logger = logging.getLogger(__name__)

MOST_CLAIMED = 500
"""How many projects of one user a provider may tell; each becomes a row."""
SEEN_EVERY_S = 300.0
"""How old the time of the last login may be in the store: not every request is written down."""
SHUT_OUT = "This user is shut out; ask the operators."
_TRIES = 3
"""How often a login is written when another process writes the same at the same time."""


class People:
    """Users by what a provider says of them. One per process; safe to call from several tasks at once."""

    def __init__(self, db: Database, config: Config | None = None) -> None:
        """Without a configuration people are what the store says."""
        self._db = db
        self._project_ids: dict[str, str] = {}  # by name: a project keeps both for ever
        self.rules = Rules(Auth(), {}) if config is None else Rules(config.auth, config.projects)

    async def prepare(self) -> None:
        """Let the store know the projects of the configuration; at start. Raises StoreUnavailable."""
        wanted = {name: project.description for name, project in self.rules.projects.items()}
        if self.rules.auth.default_project is not None:
            wanted.setdefault(self.rules.auth.default_project, "")
        async with self._db.begin() as conn:
            await stored.ensure_projects(conn, wanted)

    async def came(self, vouched: Vouched) -> str:
        """Somebody has logged in: the id of the user that they are, made at their first login.

        Who they are is decided by issuer and subject alone. They get the name that the provider knows them by where no
        other user has it, else one that says where they are from; when it changes there, it does so here. Raises
        LoginRefused for users who are shut out, and StoreUnavailable.
        """
        told = Told(vouched, now())
        for _ in range(_TRIES - 1):
            with suppress(IntegrityError):  # another process made the same user, or took the name, just now
                return await self._note(told)
        return await self._note(told)

    async def standing(self, conn: AsyncConnection, user_id: str) -> Standing | None:
        """What a user is at this moment; None: there is no such user."""
        rows = await stored.user_by_id(conn, user_id)
        return await self.standing_of(conn, person_of(rows[0]), rows) if rows else None

    async def standing_of(self, conn: AsyncConnection, person: Person, rows: stored.Rows) -> Standing:
        """The same for one whose rows are at hand."""
        added = [Belonging(row.added_id, row.added_name, row.added_as) for row in rows if row.added_id is not None]
        named = self.rules.belongs(person).keys() - {each.project for each in added}
        if unknown := named - self._project_ids.keys():
            self._project_ids.update(await stored.project_ids(conn, unknown))
        others = [Belonging(self._project_ids[name], name, None) for name in named if name in self._project_ids]
        return self.rules.standing(person, added + others)

    async def _note(self, told: Told) -> str:
        async with self._db.read() as conn:
            row = await stored.user_by_subject(conn, told.issuer, told.subject)
            if row is not None and not await self._news(conn, row, told):
                return str(row.id)
        async with self._db.begin() as conn:
            row = await stored.user_by_subject(conn, told.issuer, told.subject, lock=True)
            await stored.ensure_projects(conn, dict.fromkeys(told.claimed, ""))
            if row is None:
                return await _make(conn, told)
            await _change(conn, row, await self._news(conn, row, told), told.issuer)
            return str(row.id)

    async def _news(self, conn: AsyncConnection, row: Row[Any], told: Told) -> dict[str, Any]:
        """The columns of a user that are to be changed; raises LoginRefused."""
        if row.disabled_at is not None:
            raise LoginRefused(SHUT_OUT)
        news = {name: value for name, value in told.columns.items() if getattr(row, name) != value}
        seen_every_s = min(SEEN_EVERY_S, self.rules.auth.personal_keys.login_within / 10)
        if row.seen_at is None or not 0 <= (told.at - row.seen_at).total_seconds() < seen_every_s:
            news["seen_at"] = told.at
        if row.name != told.names[0] and await stored.is_free(conn, told.names[0]):
            news["name"] = told.names[0]
        return news


class Told:
    """What a provider told of somebody, as the store takes it."""

    def __init__(self, vouched: Vouched, at: datetime) -> None:
        """Raises LoginRefused where the provider's name for them is none that could be kept."""
        if not _is_key(vouched.issuer) or not _is_key(vouched.subject):
            raise LoginRefused("The identity provider's name for you is longer than 300 characters, or not printable.")
        self.issuer, self.subject = vouched.issuer, vouched.subject
        self.at = at
        self.names = tuple(_names(vouched))
        self.claimed = sorted(filter(is_name, vouched.projects))[:MOST_CLAIMED]
        if len(vouched.projects) > len(self.claimed):
            logger.warning("an identity provider told more projects of a user than can be kept")
        self.columns: dict[str, Any] = {
            "email": (vouched.email and fitted(vouched.email)) or None,
            "groups": sorted(filter(is_name, vouched.groups)),
            "domains": sorted({domain.lower() for domain in vouched.domains if is_name(domain)}),
            "claimed_projects": self.claimed,
        }


def person_of(row: Row[Any]) -> Person:
    """A row of ``users``, perhaps with more in it."""
    told = (frozenset(row.groups), frozenset(row.domains), frozenset(row.claimed_projects))
    return Person(row.id, row.name, frozenset(row.roles), *told, row.default_project_id, row.seen_at, row.disabled_at)


async def _make(conn: AsyncConnection, told: Told) -> str:
    user_id, name = await stored.add_user(conn, told.names, {**told.columns, "seen_at": told.at})
    await stored.add_subject(conn, told.issuer, told.subject, user_id)
    await note(conn, name, "user.create", name, {"issuer": told.issuer})
    return user_id


async def _change(conn: AsyncConnection, row: Row[Any], news: dict[str, Any], issuer: str) -> None:
    if not news:
        return
    await stored.update_user(conn, row.id, news)
    if "name" in news:
        await note(conn, row.name, "user.rename", news["name"], {"from": row.name, "issuer": issuer})


def _names(vouched: Vouched) -> Iterator[str]:
    """Names for a user, the best one first; the last is nobody's."""
    own = fitted(vouched.name)
    code = digest(f"{vouched.issuer}\n{vouched.subject}")
    where = fitted(urlsplit(vouched.issuer).hostname or vouched.issuer)[:80]
    if own and not _is_ours(own):
        yield own
    own = own[:90].strip() or f"user {code[:8]}"
    yield f"{own} ({where})"
    for number in range(2, 10):
        yield f"{own} ({where} {number})"
    yield f"user {code}"


def _is_ours(name: str) -> bool:
    """Whether the audit log calls those so who come by the command line or the admin socket."""
    return name.startswith("cli:") or name == "local admin"


def _is_key(text: str) -> bool:
    """Whether a column of 300 characters takes it, and every database."""
    return 0 < len(text) <= 300 and text.isprintable()
