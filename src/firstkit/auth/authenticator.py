"""Who holds this token? Answered from a short memory, else from the store; silence of the store is not a no."""

from __future__ import annotations

import asyncio
import hmac
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import and_, select

from firstkit.auth.api_keys import parse_key
from firstkit.auth.permissions import Identity
from firstkit.clock import monotonic, now
from firstkit.errors import StoreUnavailable, Unauthenticated
from firstkit.ids import digest
from firstkit.store.database import Database
from firstkit.store.tables import api_keys, members, projects, users

__all__ = ["Authenticator", "Identity"]

FRESH_S = 5.0
"""How long an answer of the store is taken as still true: a revoked key works at most this much longer."""
GRACE_S = 300.0
"""How much longer a known key is good while the store does not answer."""
PATIENCE_S = 1.0
"""How long the holder of a known key waits for a store that may not answer, and the pause until it is asked again."""
REMEMBERED = 10_000
"""How many tokens are remembered, the known and the refused apart, so that guesses push out no known one."""

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class _Known:
    """A key that the store vouched for. Times are monotonic seconds; ``good_until`` never exceeds the key's expiry."""

    identity: Identity
    fresh_until: float
    good_until: float


class _Recent(Generic[V]):
    """A mapping that forgets what was least recently used."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[str, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> V | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: str, value: V) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._size:
            self._values.popitem(last=False)

    def drop(self, key: str) -> None:
        self._values.pop(key, None)


class Authenticator:
    """Finds the Identity behind a token. One per process and event loop."""

    def __init__(self, db: Database, clock: Callable[[], float] = monotonic, remembered: int = REMEMBERED) -> None:
        self._db = db
        self._clock = clock
        self._known: _Recent[_Known] = _Recent(remembered)
        self._refused: _Recent[float] = _Recent(remembered)
        self._lookups: dict[str, asyncio.Task[_Known]] = {}

    def cached(self, token: str) -> Identity | None:
        """The identity if the store vouched for this token within the last ``FRESH_S``; never waits."""
        return self.known(digest(token))

    def known(self, token_digest: str) -> Identity | None:
        """The same for those who only have the digest of the token."""
        known = self._known.get(token_digest)
        return known.identity if known is not None and self._clock() < known.fresh_until else None

    async def identify(self, token: str) -> Identity:
        """The identity behind ``token``; raises Unauthenticated, or StoreUnavailable when nobody can say."""
        prefix = parse_key(token)
        if prefix is None:
            raise Unauthenticated
        key = digest(token)
        if (identity := self.cached(token)) is not None:
            return identity
        if self._clock() < (self._refused.get(key) or 0.0):
            raise Unauthenticated
        return await self._ask(key, prefix)

    async def _ask(self, key: str, prefix: str) -> Identity:
        """Ask the store, all who wait for the same key together; fall back on what was known while it is silent."""
        known = self._known.get(key)
        lookup = self._lookups.get(key) or self._start(key, prefix)
        patience_s = PATIENCE_S if known is not None and self._clock() < known.good_until else None
        try:
            async with asyncio.timeout(patience_s):
                found = await asyncio.shield(lookup)
        except (StoreUnavailable, TimeoutError):
            if known is None or self._clock() >= known.good_until:
                raise StoreUnavailable from None
            found = _Known(known.identity, min(self._clock() + PATIENCE_S, known.good_until), known.good_until)
            self._known.put(key, found)
        return found.identity

    def _start(self, key: str, prefix: str) -> asyncio.Task[_Known]:
        task = asyncio.create_task(self._look_up(key, prefix))
        self._lookups[key] = task
        task.add_done_callback(lambda done: self._ended(key, done))
        return task

    def _ended(self, key: str, task: asyncio.Task[_Known]) -> None:
        del self._lookups[key]
        if not task.cancelled():
            task.exception()  # every waiter may have left: then nobody else would look at it

    async def _look_up(self, key: str, prefix: str) -> _Known:
        """Ask the store and remember what it said; raises Unauthenticated or StoreUnavailable."""
        row = await self._row(prefix)
        asked = self._clock()
        left_s = _seconds_left(row, key)
        if row is None or left_s <= 0:
            self._known.drop(key)
            self._refused.put(key, asked + FRESH_S)
            raise Unauthenticated
        identity = Identity(
            row.user_id, row.user_name, row.project_id, row.prefix, frozenset(row.scopes), row.project_name
        )
        found = _Known(identity, asked + min(FRESH_S, left_s), asked + min(FRESH_S + GRACE_S, left_s))
        self._known.put(key, found)
        return found

    async def _row(self, prefix: str) -> Any:
        query = (
            select(api_keys, users.c.name.label("user_name"), projects.c.name.label("project_name"))
            .join(users, users.c.id == api_keys.c.user_id)
            .join(projects, projects.c.id == api_keys.c.project_id)
            .join(members, and_(members.c.user_id == users.c.id, members.c.project_id == api_keys.c.project_id))
            .where(api_keys.c.prefix == prefix, api_keys.c.revoked_at.is_(None))
        )
        async with self._db.read() as conn:
            return (await conn.execute(query)).one_or_none()


def _seconds_left(row: Any, key: str) -> float:
    """How long the key of ``row`` is still good for a token with digest ``key``; 0 when it never was."""
    if row is None or not hmac.compare_digest(row.secret_sha256, key):
        return 0.0
    return float("inf") if row.expires_at is None else (row.expires_at - now()).total_seconds()
