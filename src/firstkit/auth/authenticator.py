"""Who holds this token? Answered from a short memory, else from the store; silence of the store is not a no."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from firstkit.auth.authority import Authority
from firstkit.auth.memory import Recent
from firstkit.auth.people import People
from firstkit.auth.permissions import Identity
from firstkit.auth.sources import Keys, Logins, Sessions, Source
from firstkit.auth.tokens import LONGEST, OURS, is_token
from firstkit.clock import monotonic
from firstkit.errors import ApiError, LoginRefused, StoreUnavailable, Unauthenticated
from firstkit.ids import digest
from firstkit.store.database import Database

__all__ = ["Authenticator", "Identity"]

FRESH_S = 5.0
"""How long an answer of the store is taken as still true: a revoked key works at most this much longer."""
GRACE_S = 300.0
"""How much longer a known token is good while the store does not answer."""
PATIENCE_S = 1.0
"""How long the holder of a known token waits for a store that may not answer, and the pause until it is asked again."""
REMEMBERED = 10_000
"""How many tokens are remembered, the known and the refused apart, so that guesses push out no known one."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A token that somebody vouched for. Times are monotonic seconds; ``good_until`` never exceeds its expiry."""

    identity: Identity
    fresh_until: float
    good_until: float


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A no. ``until``: monotonic seconds."""

    until: float
    kind: type[ApiError]
    message: str
    code: str

    def error(self) -> ApiError:
        return self.kind(self.message, code=self.code)


class Authenticator:
    """Finds the Identity behind a token. One per process and event loop.

    A token is only ever remembered by the SHA-256 of the whole of it, and refused by heart only after somebody said no:
    the store, an identity provider, or our rules.
    """

    def __init__(
        self,
        db: Database,
        people: People | None = None,
        authorities: Sequence[Authority] = (),
        clock: Callable[[], float] = monotonic,
        remembered: int = REMEMBERED,
    ) -> None:
        """Without ``people`` there is no configuration: who belongs to what is what the store says."""
        people = people or People(db)
        self.authorities = {each.name: each for each in authorities}
        self._clock = clock
        self._ours: tuple[Source, ...] = (Sessions(db, people), Keys(db, people))
        self._theirs: tuple[Source, ...] = tuple(Logins(db, people, each, clock, remembered) for each in authorities)
        self._known: Recent[_Known] = Recent(remembered)
        self._refused: Recent[_Refusal] = Recent(remembered)
        self._lookups: dict[str, asyncio.Task[_Known]] = {}

    def cached(self, token: str) -> Identity | None:
        """The identity if somebody vouched for this token within the last ``FRESH_S``; never waits."""
        return self.known(digest(token)) if len(token) <= LONGEST and token.isascii() else None

    def known(self, token_digest: str) -> Identity | None:
        """The same for those who only have the digest of the token."""
        known = self._known.get(token_digest)
        return known.identity if known is not None and self._clock() < known.fresh_until else None

    async def identify(self, token: str) -> Identity:
        """The identity behind ``token``; raises Unauthenticated, or LoginRefused where the rules do not admit its
        holder, and StoreUnavailable or ProviderUnavailable when nobody can say."""
        source = self._source_of(token)
        if source is None:
            raise Unauthenticated
        key = digest(token)
        if (identity := self.known(key)) is not None:
            return identity
        refusal = self._refused.get(key)
        if refusal is not None and self._clock() < refusal.until:
            raise refusal.error()
        return await self._ask(key, token, source)

    def forget(self, token: str) -> None:
        """Let the next request with ``token`` ask the store: its holder has just ended it."""
        self._known.drop(digest(token))

    def _source_of(self, token: str) -> Source | None:
        """Who may know ``token``. One that looks like ours, whole or not, is told to no identity provider."""
        if not is_token(token):
            return None
        sources = self._ours if token.startswith(OURS) else self._theirs
        return next((source for source in sources if source.may_know(token)), None)

    async def _ask(self, key: str, token: str, source: Source) -> Identity:
        """Ask, all who wait for the same token together; fall back on what was known while the store is silent."""
        known = self._known.get(key)
        lookup = self._lookups.get(key) or self._start(key, token, source)
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

    def _start(self, key: str, token: str, source: Source) -> asyncio.Task[_Known]:
        task = asyncio.create_task(self._look_up(key, token, source))
        self._lookups[key] = task
        task.add_done_callback(lambda done: self._ended(key, done))
        return task

    def _ended(self, key: str, task: asyncio.Task[_Known]) -> None:
        del self._lookups[key]
        if not task.cancelled():
            task.exception()  # every waiter may have left: then nobody else would look at it

    async def _look_up(self, key: str, token: str, source: Source) -> _Known:
        """Ask and remember what was said; raises what ``identify`` does. What is found is as old as the question."""
        asked = self._clock()
        try:
            identity, good_for_s = await source.find(token, key)
        except (Unauthenticated, LoginRefused) as no:
            self._known.drop(key)
            self._refused.put(key, _Refusal(self._clock() + FRESH_S, type(no), no.message, no.code))
            raise
        found = _Known(identity, asked + min(FRESH_S, good_for_s), asked + min(FRESH_S + GRACE_S, good_for_s))
        self._known.put(key, found)
        return found
