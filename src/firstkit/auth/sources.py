"""Where identities come from: keys and sessions in the store, and logins that an identity provider vouches for."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from firstkit.auth.authority import Authority
from firstkit.auth.memory import Recent
from firstkit.auth.people import SHUT_OUT, People, person_of
from firstkit.auth.permissions import Identity
from firstkit.auth.standing import Key, Standing, key_identity, login_identity
from firstkit.auth.tokens import is_session, parse_key
from firstkit.clock import now
from firstkit.errors import LoginRefused, ProviderUnavailable, Unauthenticated
from firstkit.store import identities as stored
from firstkit.store.database import Database

PROVIDER_S = 20.0
"""How long an identity provider may take; after that it does not answer."""


class Found(NamedTuple):
    """Who holds a token, and for how many seconds more that can be said without asking anybody."""

    identity: Identity
    good_for_s: float


class Source(Protocol):
    """One kind of tokens."""

    def may_know(self, token: str) -> bool:
        """Whether a token has the form of this kind; asks nobody."""

    async def find(self, token: str, token_digest: str) -> Found:
        """Who holds ``token``. Raises Unauthenticated or LoginRefused when the answer is no, StoreUnavailable or
        ProviderUnavailable when there is none."""


class Keys:
    """API keys: found by their prefix, and the holder's when the whole has the right digest."""

    def __init__(self, db: Database, people: People) -> None:
        self._db = db
        self._people = people

    def may_know(self, token: str) -> bool:
        return parse_key(token) is not None

    async def find(self, token: str, token_digest: str) -> Found:
        async with self._db.read() as conn:
            rows = await stored.user_by_key(conn, parse_key(token) or "")
            if not rows or not hmac.compare_digest(rows[0].key_secret_sha256, token_digest):
                raise Unauthenticated
            row, at = rows[0], now()
            person = self._people.rules.current(person_of(row), at)
            standing = await self._people.standing_of(conn, person, rows)
        left_s = _until(row.key_expires_at, at)
        if row.key_is_personal:
            left_s = min(left_s, self._people.rules.seen_for_s(person, at))
        return Found(_holder(standing, row, left_s), left_s)


class Sessions:
    """Browsers in which somebody has logged in."""

    def __init__(self, db: Database, people: People) -> None:
        self._db = db
        self._people = people

    def may_know(self, token: str) -> bool:
        return is_session(token)

    async def find(self, token: str, token_digest: str) -> Found:
        del token
        async with self._db.read() as conn:
            rows = await stored.user_by_session(conn, token_digest)
            left_s = _until(rows[0].expires_at, now()) if rows else 0.0
            if left_s <= 0:
                raise Unauthenticated("You are logged in no more: log in again.")
            standing = await self._people.standing_of(conn, person_of(rows[0]), rows)
        return Found(_logged_in(standing, "session"), left_s)


@dataclass(frozen=True, slots=True)
class _Vouch:
    """A provider has vouched for a user, until this monotonic time in seconds."""

    user_id: str
    until: float


class Logins:
    """Tokens of an identity provider, which is asked again when what it said is older than ``auth.cache`` or the token
    has ended. What its user may do is read anew whenever it is asked for."""

    def __init__(
        self, db: Database, people: People, authority: Authority, clock: Callable[[], float], remembered: int
    ) -> None:
        self._db = db
        self._people = people
        self._authority = authority
        self._clock = clock
        self._vouches: Recent[_Vouch] = Recent(remembered)

    def may_know(self, token: str) -> bool:
        return self._authority.may_know(token)

    async def find(self, token: str, token_digest: str) -> Found:
        vouch = self._vouches.get(token_digest)
        if vouch is None or self._clock() >= vouch.until:
            vouch = await self._ask(token, token_digest)
        async with self._db.read() as conn:
            standing = await self._people.standing(conn, vouch.user_id)
        if standing is None:
            self._vouches.drop(token_digest)
            raise Unauthenticated
        return Found(_logged_in(standing, self._authority.name), vouch.until - self._clock())

    async def _ask(self, token: str, token_digest: str) -> _Vouch:
        self._vouches.drop(token_digest)
        asked = self._clock()
        try:
            async with asyncio.timeout(PROVIDER_S):
                vouched = await self._authority.look_up(token)
        except TimeoutError:
            raise ProviderUnavailable from None
        if not vouched.good_for_s > 0:
            raise Unauthenticated
        user_id = await self._people.came(vouched)
        vouch = _Vouch(user_id, asked + min(vouched.good_for_s, self._people.rules.auth.cache))
        self._vouches.put(token_digest, vouch)
        return vouch


def _until(expires_at: datetime | None, at: datetime) -> float:
    """Seconds from ``at``; endless without an expiry."""
    return float("inf") if expires_at is None else (expires_at - at).total_seconds()


def _holder(standing: Standing, row: Any, left_s: float) -> Identity:
    """Who holds the key of ``row``, and may do so for so many seconds more; raises Unauthenticated, which tells them
    why: they have shown that the key is theirs."""
    if standing.person.disabled_at is not None:
        raise Unauthenticated(SHUT_OUT)
    if row.key_expires_at is not None and row.key_expires_at <= now():
        raise Unauthenticated("This key has expired.")
    if left_s <= 0:
        raise Unauthenticated("Its user has not logged in for too long: this key is good again after a login.")
    identity = key_identity(standing, _key(row))
    if identity is None:
        raise Unauthenticated("The user of this key does not belong to its project any more.")
    return identity


def _key(row: Any) -> Key:
    return Key(
        row.key_prefix,
        row.key_project_id,
        frozenset(row.key_scopes),
        frozenset(row.key_projects or ()),
        None if row.key_models is None else frozenset(row.key_models),
        row.key_is_personal,
    )


def _logged_in(standing: Standing, kind: str) -> Identity:
    if standing.person.disabled_at is not None:
        raise LoginRefused(SHUT_OUT)
    return login_identity(standing, kind)
