"""What a waiting room is told of the time before it."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import insert

from firstkit.clock import now
from firstkit.config import Config, parse_config
from firstkit.errors import StoreUnavailable
from firstkit.gateway import fair_share
from firstkit.gateway.waiting import WaitingRoom
from firstkit.routing.table import RoutingTable
from firstkit.store.database import Database
from firstkit.store.tables import projects, usage
from usage_entries import usage_entry
from waiting import until

CONFIG = """
accounting: {half_life: 100h}
projects: {fusion: {share: 3}, unknown: {share: 9}}
clusters: {outside: {kind: external}}
models: {m: {deployments: [{cluster: outside, engine: {kind: external, url: "http://x/v1"}}]}}
"""
AT = now()
FUSION = {"project_id": "p1", "user_id": "ada", "model": "m", "prompt_tokens": 100, "completion_tokens": 300}


@pytest.fixture
def config() -> Config:
    return parse_config(CONFIG)


@pytest.fixture
def room(config: Config) -> WaitingRoom:
    table = RoutingTable({"m": "m"})
    return WaitingRoom(table, 9, lambda urgent: None, half_life_s=config.accounting.half_life)


async def fill(db: Database, *entries: dict[str, Any]) -> None:
    async with db.begin() as conn:
        for id_, name in (("p1", "fusion"), ("p2", "climate")):
            await conn.execute(insert(projects).values(id=id_, name=name, description="", created_at=AT))
        for number, changes in enumerate(entries):
            entry = usage_entry(f"req-{number}", **changes)
            await conn.execute(insert(usage).values({c.name: getattr(entry, c.name) for c in usage.columns}))


def hours_ago(hours: float) -> dict[str, Any]:
    return {**FUSION, "at": AT - timedelta(hours=hours)}


async def test_the_shares_of_the_configuration_are_known_by_id(db: Database, config: Config) -> None:
    await fill(db)
    assert await fair_share.shares(db, config) == {"p1": 3.0}


async def test_past_use_counts_by_its_age(db: Database, config: Config, room: WaitingRoom) -> None:
    await fill(db, hours_ago(0), hours_ago(1), hours_ago(212), {**hours_ago(1), "project_id": "p2", "user_id": "ben"})
    await fair_share.learn(room, db, config, AT)
    standings = {standing.id: standing for standing in room.standings()["m"]}
    recent, old = 400 * 2 ** (-0.125), 400 * 2 ** (-2.125)
    assert standings["p1"].use == pytest.approx(recent + old, rel=0.01), "the one of this moment is not of the past"
    assert standings["p2"].use == pytest.approx(recent, rel=0.01)
    assert (standings["p1"].share, standings["p2"].share) == (3.0, 1.0)
    assert standings["p1"].factor > standings["p2"].factor, "by its share it used less"


async def test_what_is_too_old_or_of_another_model_does_not_count(
    db: Database, config: Config, room: WaitingRoom
) -> None:
    await fill(db, hours_ago(801), {**hours_ago(1), "model": "gone"})
    await fair_share.learn(room, db, config, AT)
    assert room.standings() == {}


async def test_it_is_learnt_as_soon_as_the_store_answers(
    db: Database, config: Config, room: WaitingRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(db, hours_ago(1))
    monkeypatch.setattr(fair_share, "TRY_EVERY_S", 0.01)
    answering = asyncio.Event()
    asked = []
    read = db.read

    def maybe() -> AbstractAsyncContextManager[Any]:
        asked.append(1)
        if not answering.is_set() and len(asked) % 7 == 0:  # half way through
            raise StoreUnavailable
        return read()

    monkeypatch.setattr(db, "read", maybe)
    learning = asyncio.ensure_future(fair_share.learn(room, db, config, AT))
    await until(lambda: len(asked) > 14, "two attempts")
    assert room.standings() == {}
    answering.set()
    await learning
    assert room.standings()["m"][0].use == pytest.approx(400 * 2 ** (-0.125), rel=0.01), "once and not twice"
