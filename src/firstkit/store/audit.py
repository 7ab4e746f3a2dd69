"""The audit log in the store: rows that are added and never changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from firstkit.clock import now
from firstkit.store.tables import audit, storable

DENIED = "denied"
"""The action of all that somebody was refused."""
_SIZES = {"actor": 200, "action": 100, "subject": 300, "source": 100}


@dataclass(frozen=True, slots=True)
class Entry:
    """Who did what, to what, and from where. ``source``: an address; empty for this machine. ``count``: so many alike
    within seconds, the first of them ``at``."""

    at: datetime
    actor: str
    action: str
    subject: str
    details: dict[str, Any]
    source: str = ""
    count: int = 1
    id: int = 0

    def as_row(self) -> dict[str, Any]:
        """Plain values for JSON and tables; the time as ISO 8601."""
        return {
            "id": self.id,
            "at": self.at.isoformat(),
            "actor": self.actor,
            "action": self.action,
            "subject": self.subject,
            "source": self.source,
            "count": self.count,
            "details": self.details,
        }


@dataclass(frozen=True, slots=True)
class Sought:
    """Which entries are sought: those in [since, until), of the actor, the action or a group of them (``key`` for
    ``key.create`` and ``key.revoke``), the subject; and older than the entry ``before``."""

    since: datetime | None = None
    until: datetime | None = None
    actor: str | None = None
    action: str | None = None
    subject: str | None = None
    before: int | None = None


async def note(
    conn: AsyncConnection,
    actor: str,
    action: str,
    subject: str,
    details: dict[str, Any] | None = None,
    source: str = "",
) -> None:
    """Write down an act of an administrator, in the transaction that does it: who, what (``key.revoke``), on what, and
    the address that it came from; empty for this machine."""
    await add(conn, [Entry(now(), actor, action, subject, details or {}, source)])


async def add(conn: AsyncConnection, entries: Sequence[Entry]) -> None:
    """Add rows; what is too long for its column is cut."""
    if entries:
        await conn.execute(insert(audit), [_values(entry) for entry in entries])


async def find(conn: AsyncConnection, sought: Sought, limit: int) -> list[Entry]:
    """The newest entries that are sought, newest first."""
    query = select(audit).order_by(audit.c.id.desc()).limit(limit)
    if sought.since is not None:
        query = query.where(audit.c.at >= sought.since)
    if sought.until is not None:
        query = query.where(audit.c.at < sought.until)
    if sought.before is not None:
        query = query.where(audit.c.id < sought.before)
    if sought.action is not None:
        group = audit.c.action.startswith(f"{sought.action}.", autoescape=True)
        query = query.where((audit.c.action == sought.action) | group)
    for column, value in ((audit.c.actor, sought.actor), (audit.c.subject, sought.subject)):
        if value is not None:
            query = query.where(column == storable(value))
    return [Entry(**row) for row in (await conn.execute(query)).mappings()]


def _values(entry: Entry) -> dict[str, Any]:
    texts = {name: storable(getattr(entry, name))[:size] for name, size in _SIZES.items()}
    return {**texts, "at": entry.at, "details": entry.details, "count": entry.count}
