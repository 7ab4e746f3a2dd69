"""Clusters that take nothing new: what the configuration and the store say of it, kept true in the routing table."""

from __future__ import annotations

import asyncio
import logging

from firstkit.clock import monotonic
from firstkit.config import Config
from firstkit.errors import StoreUnavailable
from firstkit.gateway.waiting import WaitingRoom
from firstkit.routing.calendar import Window
from firstkit.store.clusters import Drained, drained
from firstkit.store.database import Database

logger = logging.getLogger("firstkit.gateway")
READ_EVERY_S = 5.0
PUMP_EVERY_S = 1.0


class Closures:
    """``drained``: the clusters that an operator drained, as of the last look at the store."""

    def __init__(self, config: Config, room: WaitingRoom) -> None:
        self.drained: dict[str, Drained] = {}
        self._room = room
        room.table.calendar.windows = {
            name: [
                Window(window.start.timestamp(), window.end.timestamp(), window.message)
                for window in cluster.maintenance
            ]
            for name, cluster in config.clusters.items()
            if cluster.maintenance
        }

    async def refresh(self, db: Database) -> None:
        """Read what is drained, and act on it at once; raises StoreUnavailable, and then what was known stands."""
        async with db.read() as conn:
            found = await drained(conn)
        if found != self.drained:
            self.drained = found
            self._room.table.calendar.drained = {name: entry.message for name, entry in found.items()}
            self._room.table.refresh()
            self._room.pump_all()

    async def run(self, db: Database) -> None:
        """Look again and again, and let those in line have what time alone has opened; returns only when cancelled."""
        read_at = 0.0
        while True:
            if monotonic() >= read_at:
                await self._refresh_or_keep(db)
                read_at = monotonic() + READ_EVERY_S
            self._room.pump_all()
            await asyncio.sleep(PUMP_EVERY_S)

    async def _refresh_or_keep(self, db: Database) -> None:
        try:
            await self.refresh(db)
        except StoreUnavailable:
            logger.debug("which clusters are drained cannot be read now", extra={"action": "read_drained"})
