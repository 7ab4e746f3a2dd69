"""What a waiting room has to know of the time before it: shares of projects, and what was used."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import func, select

from firstkit.config import Config
from firstkit.errors import StoreUnavailable
from firstkit.gateway.waiting import WaitingRoom
from firstkit.store.database import Database
from firstkit.store.tables import projects, usage

logger = logging.getLogger("firstkit.gateway")
HALF_LIVES = 8
"""What is older counts for less than a two hundredth."""
PARTS = 4
"""Of each half life; what was used within a part counts as used in the middle of it."""
TRY_EVERY_S = 5.0


class Past(NamedTuple):
    """So many tokens were used of a model so long ago."""

    model: str
    project: str
    user: str
    tokens: int
    age_s: float


async def learn(room: WaitingRoom, db: Database, config: Config, until: datetime) -> None:
    """Tell ``room`` all that, of requests that came before ``until``; as soon as the store says it."""
    while True:
        try:
            known, past = await shares(db, config), await used(db, config.accounting.half_life, until)
            break
        except StoreUnavailable:
            logger.debug("what was used before cannot be read now", extra={"action": "read_past_use"})
            await asyncio.sleep(TRY_EVERY_S)
    for each in past:
        if each.model in room.table.pools:
            room.recall(*each)
    room.share(known)


async def shares(db: Database, config: Config) -> Mapping[str, float]:
    """By id the shares that the configuration gives to projects. Raises StoreUnavailable."""
    async with db.read() as conn:
        rows = (await conn.execute(select(projects.c.id, projects.c.name))).all()
    return {row.id: config.projects[row.name].share for row in rows if row.name in config.projects}


async def used(db: Database, half_life_s: float, until: datetime) -> list[Past]:
    """What the ledger has of the last half lives before ``until``. Raises StoreUnavailable."""
    part = timedelta(seconds=half_life_s / PARTS)
    tokens = func.sum(usage.c.prompt_tokens + usage.c.completion_tokens)
    columns = (usage.c.model, usage.c.project_id, usage.c.user_id)
    found: list[Past] = []
    for i in range(HALF_LIVES * PARTS):
        newest, age_s = until - i * part, (i + 0.5) * part.total_seconds()
        within = (usage.c.at >= newest - part) & (usage.c.at < newest)
        async with db.read() as conn:
            rows = (await conn.execute(select(*columns, tokens).where(within).group_by(*columns))).all()
        found += (Past(model, project, user, int(count), age_s) for model, project, user, count in rows)
    return found
