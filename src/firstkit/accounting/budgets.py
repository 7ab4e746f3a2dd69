"""Budgets as the gateway has them: definitions and what was used are kept true, and requests ask in memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import datetime
from typing import TYPE_CHECKING, Any

from firstkit.accounting import standing
from firstkit.accounting.definitions import read_terms
from firstkit.accounting.entries import UsageEntry
from firstkit.accounting.filling import NodeHourFiller, complete
from firstkit.accounting.ledger import Loader, TurnOver
from firstkit.accounting.tallies import UNKNOWN_RETRY_S, Books, Reservation
from firstkit.accounting.terms import Terms
from firstkit.clock import monotonic, now
from firstkit.config import Config
from firstkit.errors import StoreUnavailable
from firstkit.store.database import Database

if TYPE_CHECKING:
    from firstkit.accounting.estimate import Estimate
    from firstkit.auth.permissions import Identity

logger = logging.getLogger("firstkit.accounting")
READ_EVERY_S = 5.0
RETRY_EVERY_S = 1.0
NODE_HOURS_EVERY_S = 60.0
PREPARED_WITHIN_S = 3.0
"""So long a gateway that starts waits to know what was used. Then it serves, and whom it is about is told to wait."""


class Budgets:
    """The budgets of a gateway. Before ``prepare`` there are none."""

    def __init__(self, config: Config, db: Database, turn_over: TurnOver) -> None:
        self._config = config
        self._db = db
        self._turn_over = turn_over
        self._books = Books()
        self._are_known = True
        self._is_silent = False
        self._node_hours = NodeHourFiller(config.accounting.idle_project)
        self._node_hours_due = float("-inf")
        self._reading = asyncio.Lock()
        self._news = asyncio.Event()

    # -- requests ----------------------------------------------------------------------------------------------

    def reserve(
        self, identity: Identity, model: str, estimate: Estimate, at: datetime | None = None
    ) -> Reservation | None:
        """What a request may use that arrived ``at`` (default: now); None where no budget covers it. It has to be
        settled, on every ending. Raises BudgetSpent and StoreUnavailable, and then nothing is reserved."""
        if not self._are_known:
            raise StoreUnavailable("Which budgets there are is not known yet.", retry_after_s=UNKNOWN_RETRY_S)
        return None if self._books.is_empty else self._books.reserve(identity, model, estimate, at or now())

    def settle(self, reservation: Reservation | None) -> None:
        """A request has ended. What it used was counted with its line of the spool; what was reserved is given back.
        Once more changes nothing."""
        if reservation is not None:
            reservation.settle()

    def _count(self, entry: UsageEntry) -> None:
        if not self._books.is_empty:
            tokens = entry.prompt_tokens + entry.completion_tokens
            self._books.count(entry.project_id, entry.user_id, entry.model, entry.at, tokens)

    # -- what is told ------------------------------------------------------------------------------------------

    def standing(self, project_id: str, user_id: str = "") -> list[dict[str, Any]]:
        """The budgets that cover requests of a user that are charged to a project, and how they stand."""
        return standing.of_request(self._books, now(), project_id, user_id)

    async def rows(self) -> list[dict[str, Any]]:
        """All budgets and how they stand, for those who run the service. Raises StoreUnavailable."""
        return await standing.named(self._db, await standing.of_all(self._books, now()))

    # -- what is kept true -------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Find out which budgets there are and what was used of them, before the first request. What cannot be found
        out soon is left to ``run``; until then those whom it is about get StoreUnavailable."""
        self._are_known = False
        self._turn_over.spool.on_ended = self._count
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PREPARED_WITHIN_S):
                await self._look()

    async def run(self) -> None:
        """Look every few seconds, and at once after ``refresh``, for ever."""
        while True:
            pause_s = READ_EVERY_S if await self._look() else RETRY_EVERY_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._news.wait()
            self._news.clear()

    async def refresh(self) -> None:
        """Read which budgets there are. Raises StoreUnavailable, and then those that were known stand."""
        async with self._reading:
            await _install(self._books, await read_terms(self._db, self._config))
            self._are_known = True
        self._news.set()

    async def _look(self) -> bool:
        """Make all true that can be; returns whether that is all."""
        try:
            await self.refresh()
            self._news.clear()
            await self._fill()
            await self._read_node_hours()
        except (StoreUnavailable, OSError) as exc:
            if not self._is_silent:
                logger.warning("what is left of budgets cannot be read now: %s", exc, extra={"action": "read_budgets"})
            self._is_silent = True
            return False
        self._is_silent = False
        return True

    async def _fill(self) -> None:
        """Complete the pages of budgets that are new, or of a gateway that is. From one moment on lines are counted as
        they come, and all that came before is in the ledger when it is summed up."""
        pages = self._books.incomplete("tokens", now())
        if not pages:
            return
        async with self._turn_over.held() as spool:
            loader = Loader(spool.folder, self._db)
            await loader.load_once()  # so that no full file is in the way of another
            spool.turn_over()
            for _, page in pages:
                page.begin_again()
            await loader.load_once()
            await complete(self._db, self._books, pages)

    async def _read_node_hours(self) -> None:
        if monotonic() >= self._node_hours_due or self._books.incomplete("node_hours", now()):
            await self._node_hours.fill(self._db, self._books, now())
            self._node_hours_due = monotonic() + NODE_HOURS_EVERY_S


async def _install(books: Books, terms: list[Terms]) -> None:
    for _ in books.install(terms, now()):
        await asyncio.sleep(0)


async def rows_of_store(db: Database, config: Config) -> list[dict[str, Any]]:
    """All budgets and how they stand, where no gateway runs. Raises StoreUnavailable."""
    books, at = Books(), now()
    await _install(books, await read_terms(db, config))
    await complete(db, books, books.incomplete("tokens", at))
    await NodeHourFiller(config.accounting.idle_project).fill(db, books, at)
    return await standing.named(db, await standing.of_all(books, at))
