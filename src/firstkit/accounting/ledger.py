"""From the spool to the ledger: each request once, whoever dies when; and whether an engine's numbers can be true."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from firstkit.accounting.entries import OPENED, UsageEntry, read_line
from firstkit.accounting.spool import BAD_LINES, Spool, full_segments, lines_of
from firstkit.errors import StoreUnavailable
from firstkit.links.messages import Usage
from firstkit.store.database import Database
from firstkit.store.sql import insert_new, stored_time
from firstkit.store.tables import usage as usage_table

logger = logging.getLogger("firstkit.accounting")
EVERY_S = 1.0
LONGEST_PAUSE_S = 30.0
CHUNK_LINES = 500
"""Lines that are read, decoded (in a thread that holds the interpreter for a millisecond) and committed together."""
BYTES_PER_TOKEN = 4
FRAMING_EVENTS = 3
"""Events of a stream without a single token: the role, the finish reason, the usage."""
_AT = [column.name for column in usage_table.columns].index("at")
_values_of = attrgetter(*(column.name for column in usage_table.columns))


def plausible(usage: Usage, relayed_bytes: int, events: int = 0) -> Usage:
    """``usage`` where what was relayed allows it, else our own estimate, flagged as one.

    ``events``: those of a stream that were relayed, 0 where it is not known. No token is shorter than a byte, so more
    completion tokens than bytes were never delivered; and a stream of more than its framing holds some.
    """
    is_too_much = usage.completion_tokens > relayed_bytes
    is_too_little = usage.completion_tokens == 0 and events > FRAMING_EVENTS
    if not is_too_much and not is_too_little and min(usage.prompt_tokens, usage.completion_tokens) >= 0:
        return usage
    estimate = min(relayed_bytes, events) or -(-relayed_bytes // BYTES_PER_TOKEN)
    return Usage(max(0, usage.prompt_tokens), estimate, estimated=True)


@dataclass(frozen=True, slots=True)
class _Row:
    """A row for the ledger, and the line that it came from."""

    line: bytes
    values: tuple[Any, ...]


class Loader:
    """Moves the lines of the spool in ``folder``, which a gateway owns, to the ledger. Two may do so at a time.

    ``malformed`` counts lines that were put aside in usage-bad.jsonl.
    """

    def __init__(self, folder: Path, db: Database) -> None:
        self._folder = folder
        self._db = db
        self._statement = db.text_of(insert_new(usage_table, db.dialect))
        self.malformed = 0

    async def load_once(self) -> int:
        """Load the full files of the spool; returns how many requests that were. Raises StoreUnavailable, losing
        nothing."""
        return sum([await self._load(path) for path in full_segments(self._folder)])

    async def run(self) -> None:
        """Load every second, for ever."""
        await again_and_again(self.load_once)

    async def last(self) -> None:
        """Load before the process ends; where the database is away, the next start does."""
        try:
            await self.load_once()
        except (StoreUnavailable, OSError) as exc:
            logger.warning("usage stays in the spool: %s", exc, extra={"action": "load"})

    async def _load(self, path: Path) -> int:
        """Load one file and remove it after the COMMIT: a crash between the two only loads it again, for nothing."""
        lines = (line for line in lines_of(path) if not line.startswith(OPENED))
        loaded = 0
        with contextlib.suppress(FileNotFoundError):  # then another has loaded it
            while (chunk := await asyncio.to_thread(_rows, lines, self._db.dialect)) is not None:
                rows, bad = chunk
                bad += await self._insert(rows)
                if bad:
                    await asyncio.to_thread(self._put_aside, bad)
                loaded += len(rows)
            await asyncio.to_thread(path.unlink)
        return loaded

    async def _insert(self, rows: list[_Row]) -> list[bytes]:
        """Insert ``rows``; when the database will not have one of them, each alone. Returns the lines of those."""
        if not rows:
            return []
        try:
            async with self._db.begin() as conn:
                await conn.exec_driver_sql(self._statement, [row.values for row in rows])
        except (IntegrityError, DataError):
            if len(rows) == 1:
                return [rows[0].line]
            return [line for row in rows for line in await self._insert([row])]
        except SQLAlchemyError as exc:  # a missing table or privilege says nothing against the lines
            raise StoreUnavailable("The ledger does not take usage.") from exc
        return []

    def _put_aside(self, lines: list[bytes]) -> None:
        """Keep lines that will never load where somebody can look at them."""
        self.malformed += len(lines)
        logger.error("put aside %d malformed lines of usage", len(lines), extra={"action": "put-aside"})
        try:
            with open(self._folder / BAD_LINES, "ab", opener=_private) as file:
                file.write(b"\n".join(lines) + b"\n")
        except OSError as exc:
            raise StoreUnavailable("Malformed lines of usage cannot be put aside.") from exc


class TurnOver:
    """Makes what was written to a spool part of full files, every second, so that a loader may take it.

    While it is ``held``, nothing that is written reaches the ledger.
    """

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Turn over every second, for ever."""
        await again_and_again(self._once)

    async def _once(self) -> None:
        async with self._lock:
            self.spool.turn_over()

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[Spool]:
        """The spool, which only the caller turns over until the end of the block."""
        async with self._lock:
            yield self.spool


async def entry_of(db: Database, request_id: str) -> UsageEntry | None:
    """What the ledger has of a request. Raises StoreUnavailable."""
    async with db.read() as conn:
        found = await conn.execute(select(usage_table).where(usage_table.c.request_id == request_id))
        row = found.mappings().one_or_none()
    return None if row is None else UsageEntry(**row)


async def again_and_again(work: Callable[[], Awaitable[object]]) -> None:
    """Do this every second, for ever; while the store or the disk refuses, ever more seldom."""
    pause_s = EVERY_S
    while True:
        await asyncio.sleep(pause_s)
        try:
            await work()
            pause_s = EVERY_S
        except (StoreUnavailable, OSError) as exc:
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            logger.warning("usage stays in the spool for now: %s", exc, extra={"action": "load", "pause_s": pause_s})


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _rows(lines: Iterator[bytes], dialect: str) -> tuple[list[_Row], list[bytes]] | None:
    """The rows that the next lines hold, and those of them that are malformed; None when there are no more."""
    entries = [(line, read_line(line)) for line in islice(lines, CHUNK_LINES)]
    if not entries:
        return None
    rows = [_Row(line, _values(entry, dialect)) for line, entry in entries if isinstance(entry, UsageEntry)]
    return rows, [line for line, entry in entries if entry is None]


def _values(entry: UsageEntry, dialect: str) -> tuple[Any, ...]:
    values = _values_of(entry)
    return (*values[:_AT], stored_time(values[_AT], dialect), *values[_AT + 1 :])
