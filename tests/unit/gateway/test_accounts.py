"""The routes for operators: keys are made, listed and revoked, usage is summed, and bad input is named."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import insert, select
from starlette.types import ASGIApp

from firstkit.auth.api_keys import parse_key
from firstkit.auth.permissions import Identity
from firstkit.gateway.app import build_app
from firstkit.gateway.guard import Guard
from firstkit.gateway.identity import Identify, local_admin
from firstkit.gateway.state import Gateway
from firstkit.store import tables
from unit.gateway import residents
from unit.gateway.asking import Asking
from unit.gateway.support import HOST, Answer, ask
from usage_entries import usage_entry

JSON = (b"content-type", b"application/json")
OPERATOR = Identity("u", "grace", "p", "prefix", frozenset({"admin"}))


@pytest.fixture
def socket_app(gateway: Gateway) -> ASGIApp:
    """What is served on the admin socket."""
    return Guard(Identify(build_app(gateway), local_admin))


async def post(app: ASGIApp, path: str, body: Any, *headers: tuple[bytes, bytes], **options: Any) -> Answer:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await ask(app, path, "POST", content, headers=(HOST, *(headers or (JSON,))), **options)


async def test_a_key_from_creation_to_revocation(gateway: Gateway, app: ASGIApp) -> None:
    made = await post(app, "/admin/keys", {"name": "k", "user": "ada", "expires_in_s": 60})
    assert made.status == 201
    text = made.json["key"]
    assert made.json["prefix"] == f"first-{parse_key(text)}"
    assert (await gateway.authenticator.identify(text)).user_name == "ada"
    assert (await ask(app, "/admin/keys")).json["data"] == [
        {name: value for name, value in made.json.items() if name != "key"}
    ]
    assert (await post(app, "/admin/keys/revoke", {"name_or_prefix": text})).json["status"] == "revoked"
    assert (await ask(app, "/admin/keys")).json == {"data": []}
    assert [key["name"] for key in (await ask(app, "/admin/keys?include_dead=true")).json["data"]] == ["k"]
    for nobody in ("k", "", "a\0b", "\ud800", "x" * 1000):
        again = await post(app, "/admin/keys/revoke", {"name_or_prefix": nobody})
        assert (again.status, again.error["code"]) == (404, "key_not_found")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": "k"}, "user"),
        ({"name": "k", "user": "ada", "colour": "red"}, "colour"),
        ({"name": "k", "user": 7}, "user"),
        ({"name": "", "user": "ada"}, "name"),
        ({"name": "a\0b", "user": "ada"}, "name"),
        ({"name": "k", "user": "\ud800"}, "user"),
        ({"name": "k", "user": "ada", "project": f"first-{'a' * 12}-{'a' * 52}"}, "project"),
        ({"name": "k", "user": "ada", "scopes": []}, "scopes"),
        ({"name": "k", "user": "ada", "scopes": ["inference", "root"]}, "scopes"),
        ({"name": "k", "user": "ada", "projects": ["a\0b"]}, "projects"),
        ({"name": "k", "user": "ada", "is_personal": True}, "is_personal"),
        ({"name": "k", "user": "ada", "expires_in_s": -1}, "expires_in_s"),
        ({"name": "k", "user": "ada", "expires_in_s": float("inf")}, "expires_in_s"),
        ([], "body"),
        (b"{", "body"),
        (b"\xff", None),
        (b"", "body"),
    ],
)
async def test_a_bad_body_makes_no_key_and_is_told_what_is_wrong(app: ASGIApp, body: Any, param: str | None) -> None:
    answer = await post(app, "/admin/keys", body)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert (await ask(app, "/admin/keys?include_dead=true")).json == {"data": []}


async def test_a_page_of_a_stranger_cannot_post_a_form(app: ASGIApp) -> None:
    """Browsers send these types without asking us first, and with the key that they remember for ``/docs``."""
    for kind in (b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=x"):
        answer = await post(app, "/admin/keys", {"name": "k", "user": "ada"}, (b"content-type", kind))
        assert answer.status == 400
    assert (await ask(app, "/admin/keys")).json == {"data": []}


async def test_nobody_gives_away_more_than_they_hold(app: ASGIApp, socket_app: ASGIApp) -> None:
    wanted = {"name": "k", "user": "ada", "scopes": ["inference"]}
    answer = await post(app, "/admin/keys", wanted, identity=OPERATOR)
    assert (answer.status, "inference" in answer.error["message"]) == (403, True)
    assert (await post(app, "/admin/keys", {**wanted, "scopes": ["admin"]}, identity=OPERATOR)).status == 201
    everything = {**wanted, "name": "all", "scopes": ["inference", "metrics", "admin"]}
    assert (await post(socket_app, "/admin/keys", everything)).status == 201


async def test_the_audit_log_names_who_did_it(gateway: Gateway, app: ASGIApp, socket_app: ASGIApp) -> None:
    body, actor = {"name": "a", "user": "ada", "scopes": ["admin"]}, (b"x-first-actor", b"cli:root")
    await post(app, "/admin/keys", body, JSON, actor, identity=OPERATOR)
    await post(socket_app, "/admin/keys", {**body, "name": "b"}, JSON, actor)
    await post(socket_app, "/admin/keys", {**body, "name": "c"}, JSON)
    async with gateway.db.read() as conn:
        names = (await conn.execute(select(tables.audit.c.actor).order_by(tables.audit.c.id))).scalars().all()
    assert names == ["grace", "cli:root", "local admin"]


async def test_a_key_for_further_projects_and_some_models(gateway: Gateway, app: ASGIApp) -> None:
    body = {"name": "k", "user": "ada", "project": "one", "projects": ["two", "one"], "models": ["alias"]}
    made = (await post(app, "/admin/keys", body)).json
    assert (made["project"], made["projects"], made["models"]) == ("one", ["two"], ["m"])
    identity = await gateway.authenticator.identify(made["key"])
    assert identity.charged_to("two").project_name == "two"
    assert identity.models == {"m"}
    for models in (["nothing"], ["m", "nothing"]):
        answer = await post(app, "/admin/keys", {**body, "name": "x", "models": models})
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    for models in ([], ["m"] * 101):
        assert (await post(app, "/admin/keys", {**body, "name": "x", "models": models})).error["param"] == "models"


async def test_a_key_for_some_models_makes_none_for_others(app: ASGIApp) -> None:
    who = replace(OPERATOR, models=frozenset({"m"}))
    wanted = {"name": "k", "user": "ada", "scopes": ["admin"]}
    for models in (None, ["org/embedder"], ["m", "org/embedder"]):
        assert (await post(app, "/admin/keys", {**wanted, "models": models}, identity=who)).status == 403
    assert (await post(app, "/admin/keys", {**wanted, "models": ["m"]}, identity=who)).status == 201


async def test_a_key_of_an_operator_s_own_makes_none_that_outlives_it(asking: Asking) -> None:
    """By this route it would else be the way to a key that needs no login."""
    body = {"name": "own", "scopes": ["admin", "inference"], "expires_in_s": 3600}
    token = (await asking.post("/v1/keys", residents.OPERATOR, body)).json["key"]
    own = replace(residents.OPERATOR, token=token)
    for expires_in_s in (None, 3700):
        wanted = {"name": "k", "user": "ada", "expires_in_s": expires_in_s}
        assert (await asking.post("/admin/keys", own, wanted)).status == 403
    assert (await asking.post("/admin/keys", own, {"name": "k", "user": "ada", "expires_in_s": 60})).status == 201
    assert (await asking.post("/admin/keys", residents.OPERATOR, {"name": "l", "user": "ada"})).status == 201


async def test_usage(gateway: Gateway, app: ASGIApp) -> None:
    async with gateway.db.begin() as conn:
        for name, model in (("a", "m"), ("b", "m"), ("c", "n")):
            entry = usage_entry(name, model=model)
            values = {column.name: getattr(entry, column.name) for column in tables.usage.columns}
            await conn.execute(insert(tables.usage).values(values))
    sums = {"prompt_tokens": 10, "completion_tokens": 5, "estimated": 0, "failed": 0}
    by_model = (await ask(app, "/admin/usage?by=model&by=day&since=2026-11-24")).json["data"]
    assert [(row["model"], row["day"], row["requests"]) for row in by_model] == [
        ("m", "2026-11-24", 2),
        ("n", "2026-11-24", 1),
    ]
    assert by_model[1] == {"model": "n", "day": "2026-11-24", "requests": 1, **sums}
    assert [row["requests"] for row in (await ask(app, "/admin/usage")).json["data"]] == [3]
    assert (await ask(app, "/admin/usage?by=model&until=2026-11-24T00:00:00%2B02:00")).json == {"data": []}
