"""Clusters that were drained or are in maintenance, as the routing table learns of them."""

from __future__ import annotations

import asyncio

import pytest

from firstkit.errors import StoreUnavailable
from firstkit.gateway import closures
from firstkit.gateway.state import Gateway
from firstkit.store.clusters import drain, resume
from unit.gateway.support import route
from waiting import until


async def ended(running: asyncio.Future[None]) -> None:
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()


async def test_a_drained_cluster_gets_nothing_new_until_it_is_resumed(gateway: Gateway) -> None:
    gateway.table.add(here := route(most=9))
    room = gateway.room
    assert room.take("m") is here
    async with gateway.db.begin() as conn:
        await drain(conn, "here", "grace", "new cooling")
    await gateway.closures.refresh(gateway.db)
    assert gateway.closures.drained["here"].message == "new cooling"
    assert room.take("m") is None
    assert here.in_flight == 1, "it finishes what it has"
    assert "the cluster 'here' is drained: new cooling" in gateway.forecasts.not_ready("m", frozenset({"here"})).message
    ticket = room.join("m")
    async with gateway.db.begin() as conn:
        await resume(conn, "here", "grace")
    await gateway.closures.refresh(gateway.db)
    assert gateway.closures.drained == {}
    assert ticket.route.result() is here


async def test_it_looks_again_and_again(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closures, "READ_EVERY_S", 0.0)
    monkeypatch.setattr(closures, "PUMP_EVERY_S", 0.0)
    gateway.table.add(here := route())
    running = asyncio.ensure_future(gateway.closures.run(gateway.db))
    async with gateway.db.begin() as conn:
        await drain(conn, "here", "grace", "")
    while not gateway.closures.drained:
        await asyncio.sleep(0.001)
    ticket = gateway.room.join("m")
    gateway.table.calendar.drained = {}
    gateway.table.refresh()
    await until(ticket.route.done, "a pump")
    assert ticket.route.result() is here
    await ended(running)


async def test_while_the_store_is_silent_what_was_known_stands(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gateway.db.begin() as conn:
        await drain(conn, "here", "grace", "")
    await gateway.closures.refresh(gateway.db)
    asked = asyncio.Event()

    async def silent(conn: object) -> object:
        asked.set()
        raise StoreUnavailable

    monkeypatch.setattr(closures, "drained", silent)
    running = asyncio.ensure_future(gateway.closures.run(gateway.db))
    await asked.wait()
    await asyncio.sleep(0)
    assert not running.done()
    assert gateway.closures.drained.keys() == {"here"}
    await ended(running)
