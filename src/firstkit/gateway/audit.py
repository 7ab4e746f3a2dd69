"""What was denied to whom, on its way into the audit log."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from firstkit.auth.permissions import Identity
from firstkit.clock import now
from firstkit.errors import ApiError, StoreUnavailable
from firstkit.store.audit import DENIED, Entry, add
from firstkit.store.database import Database

logger = logging.getLogger("firstkit.gateway")
EVERY_S = 2.0
MOST_KINDS = 1000
"""Denials of so many kinds are kept until they are written; of more only the number."""
NOBODY = "unknown"
"""Who it was where nobody knows."""
_Kind = tuple[str, str, str, str]


class Audit:
    """Collects denials and writes them down every few seconds, those that are alike as one: whoever tries a million
    keys fills no disk. Acts of administrators are written by whoever does them, in the same transaction."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._kinds: dict[_Kind, Entry] = {}
        self._uncounted = 0

    def denied(self, error: ApiError, identity: Identity | None, what: str, source: str) -> None:
        """``identity``: None where nobody knows who it was; ``what``: method and path; ``source``: the address."""
        actor = NOBODY if identity is None else identity.user_name
        kind = (actor, error.code, source, "" if identity is None else error.message)
        known = self._kinds.get(kind)
        if known is not None:
            self._kinds[kind] = replace(known, count=known.count + 1)
        elif len(self._kinds) >= MOST_KINDS:
            self._uncounted += 1
        else:
            self._kinds[kind] = Entry(now(), actor, DENIED, what, _details(error, identity), source)

    async def run(self) -> None:
        """Write again and again; returns only when cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            await self.write()

    async def write(self) -> None:
        """Write what was collected; where the store refuses it is kept for the next time."""
        kinds, self._kinds = self._kinds, {}
        uncounted, self._uncounted = self._uncounted, 0
        entries = list(kinds.values())
        if uncounted:
            entries.append(Entry(now(), NOBODY, DENIED, "many more, of other kinds", {}, count=uncounted))
        if not entries:
            return
        try:
            async with self._db.begin() as conn:
                await add(conn, entries)
        except StoreUnavailable:
            logger.warning("denials cannot be written to the audit log now", extra={"action": "audit"})
            self._take_back(kinds, uncounted)

    def _take_back(self, kinds: dict[_Kind, Entry], uncounted: int) -> None:
        self._uncounted += uncounted
        for kind, entry in self._kinds.items():
            older = kinds.get(kind)
            kinds[kind] = entry if older is None else replace(older, count=older.count + entry.count)
        self._kinds = kinds


def _details(error: ApiError, identity: Identity | None) -> dict[str, str]:
    details = {"code": error.code, "message": error.message}
    return details if identity is None else {**details, "project": identity.project_name, "by": identity.key_prefix}
