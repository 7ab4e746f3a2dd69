"""The routes about budgets: they are set, changed, seen and removed, and are in force at once."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import insert, select
from starlette.types import ASGIApp

from firstkit.accounting.budgets import Budgets
from firstkit.accounting.estimate import Estimate
from firstkit.auth.permissions import Identity
from firstkit.clock import now
from firstkit.errors import BudgetSpent, StoreUnavailable
from firstkit.gateway.app import build_app
from firstkit.gateway.guard import Guard
from firstkit.gateway.identity import Identify, local_admin
from firstkit.gateway.state import Gateway
from firstkit.store import tables
from unit.gateway.support import HOST, Answer, ask
from usage_entries import usage_entry

JSON = (b"content-type", b"application/json")
OPERATOR = Identity("u", "grace", "p", "prefix", frozenset({"admin"}))
AUDITOR = replace(OPERATOR, user_name="alan", scopes=frozenset({"audit"}))
ADA = Identity("u1", "ada", "p1", "k" * 12, frozenset({"inference"}), "fusion")


@pytest.fixture
async def app(gateway: Gateway) -> ASGIApp:
    """A gateway that knows a user, ada, and her project, fusion."""
    async with gateway.db.begin() as conn:
        user = {"id": "u1", "name": "ada", "is_admin": False, "created_at": now()}
        await conn.execute(insert(tables.users).values(**user))
        await conn.execute(insert(tables.projects).values(id="p1", name="fusion", description="", created_at=now()))
    await gateway.budgets.prepare()
    return Guard(build_app(gateway))


async def post(app: ASGIApp, path: str, body: Any, identity: Identity = OPERATOR) -> Answer:
    return await ask(app, path, "POST", json.dumps(body).encode(), headers=(HOST, JSON), identity=identity)


async def listed(app: ASGIApp, identity: Identity = OPERATOR) -> list[dict[str, Any]]:
    answer = await ask(app, "/admin/budgets", identity=identity)
    assert answer.status == 200
    rows: list[dict[str, Any]] = answer.json["data"]
    return rows


async def test_a_budget_from_the_beginning_to_the_end(gateway: Gateway, app: ASGIApp) -> None:
    made = await post(app, "/admin/budgets", {"project": "fusion", "tokens": "1k", "model": "alias"})
    assert made.status == 201
    fields = {"project": "fusion", "user": None, "model": "m", "each": None, "tokens": 1000, "node_hours": None}
    terms = {"period": "month", "stop": "hard", "warn_at": 0.8}
    assert made.json == {"id": made.json["id"], **fields, **terms}
    with pytest.raises(StoreUnavailable, match="is not known yet"):
        gateway.budgets.reserve(ADA, "m", Estimate(1, 1, 999, True))
    await gateway.budgets._look()
    with pytest.raises(BudgetSpent):
        gateway.budgets.reserve(ADA, "m", Estimate(1, 1, 1000, True))
    gateway.relay.spool.ended(usage_entry("a", at=now()))
    [row] = await listed(app)
    assert (row["id"], row["used"], row["reserved"], row["left"]) == (made.json["id"], 15, 0, 985)

    changed = await post(app, "/admin/budgets", {"project": "fusion", "tokens": 10, "model": "m", "stop": "soft"})
    assert changed.json == made.json | {"tokens": 10, "stop": "soft"}
    assert "is used up" in str(gateway.budgets.reserve(ADA, "m", Estimate(1, 1, 1000, True)).warning)  # type: ignore[union-attr]

    gone = await post(app, "/admin/budgets/remove", {"id": made.json["id"]})
    assert (gone.status, gone.json) == (200, changed.json)
    assert await listed(app) == []
    assert gateway.budgets.reserve(ADA, "m", Estimate(1, 1, 1000, True)) is None
    again = await post(app, "/admin/budgets/remove", {"id": made.json["id"]})
    assert (again.status, again.error["code"]) == (404, "budget_not_found")

    async with gateway.db.read() as conn:
        acts = [(row.actor, row.action) for row in await conn.execute(select(tables.audit))]
    assert acts == [("grace", "budget.set")] * 2 + [("grace", "budget.remove")]


async def test_those_of_the_configuration_are_seen_and_not_changed(gateway: Gateway, app: ASGIApp) -> None:
    config = gateway.config.model_copy(update={"budgets": (_budget(tokens=5, each="user"),)})
    gateway.budgets = Budgets(config, gateway.db, gateway.budgets._turn_over)
    await gateway.budgets.prepare()
    gateway.relay.spool.ended(usage_entry("a", at=now()))
    [row] = await listed(app, AUDITOR)
    assert (row["id"], row["each"], row["left"]) == (None, "user", 0)
    assert row["subjects"] == [{"name": "ada", "used": 15, "reserved": 0, "left": 0}]
    assert (await post(app, "/admin/budgets/remove", {"id": ""})).status == 404


def _budget(**values: Any) -> Any:
    from firstkit.config import Budget

    return Budget.model_validate(values)


@pytest.mark.parametrize(
    ("body", "status", "param", "says"),
    [
        ({}, 400, None, "one of tokens and node_hours is needed"),
        ({"tokens": 5, "node_hours": 1}, 400, None, "and not both"),
        ({"tokens": "many"}, 400, "tokens", "whole number"),
        ({"tokens": -1}, 400, "tokens", "greater than or equal to 0"),
        ({"node_hours": 1, "user": "ada"}, 400, None, "of projects, not of users"),
        ({"tokens": 5, "each": "user", "user": "ada"}, 400, None, "the user is named"),
        ({"tokens": 5, "period": "century"}, 400, "period", "'day', 'week', 'month', 'year' or 'total'"),
        ({"tokens": 5, "stop": "now"}, 400, "stop", "'hard' or 'soft'"),
        ({"tokens": 5, "warn_at": 2}, 400, "warn_at", "less than or equal to 1"),
        ({"tokens": 5, "colour": "red"}, 400, "colour", "not permitted"),
        ({"tokens": 5, "project": "climate"}, 404, None, "no project 'climate'"),
        ({"tokens": 5, "user": "eve"}, 404, None, "no user 'eve'"),
        ({"tokens": 5, "model": "gpt"}, 404, None, "'gpt' does not exist"),
    ],
)
async def test_bad_input_is_named(
    gateway: Gateway, app: ASGIApp, body: dict[str, Any], status: int, param: str | None, says: str
) -> None:
    answer = await post(app, "/admin/budgets", body)
    assert answer.status == status
    assert says in answer.error["message"]
    assert param is None or answer.error["param"] == param
    assert await listed(app) == []


async def test_auditors_look_and_do_not_touch(app: ASGIApp) -> None:
    assert await listed(app, AUDITOR) == []
    for path, body in (("/admin/budgets", {"tokens": 5}), ("/admin/budgets/remove", {"id": "x"})):
        assert (await post(app, path, body, AUDITOR)).status == 403
    stranger = replace(OPERATOR, scopes=frozenset({"inference", "account", "metrics"}))
    assert (await ask(app, "/admin/budgets", identity=stranger)).status == 403


async def test_who_may_open_the_admin_socket_sets_budgets_under_their_name(gateway: Gateway, app: ASGIApp) -> None:
    socket_app = Guard(Identify(build_app(gateway), local_admin))
    headers = (HOST, JSON, (b"x-first-actor", b"cli:root"))
    body = json.dumps({"tokens": 5}).encode()
    assert (await ask(socket_app, "/admin/budgets", "POST", body, headers=headers)).status == 201
    async with gateway.db.read() as conn:
        [act] = (await conn.execute(select(tables.audit))).all()
    assert (act.actor, act.source) == ("cli:root", "")


async def test_a_budget_is_set_though_it_cannot_be_read_back_now(
    gateway: Gateway, app: ASGIApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuses(*_: Any) -> None:
        raise StoreUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(Budgets, "refresh", refuses)
        assert (await post(app, "/admin/budgets", {"tokens": 5})).status == 201
    assert await listed(app) == []
    await gateway.budgets._look()
    assert [row["tokens"] for row in await listed(app)] == [5]
