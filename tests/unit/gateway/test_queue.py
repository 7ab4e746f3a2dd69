"""Who waits for what: to users their own requests, to operators and auditors who has what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import insert
from starlette.types import ASGIApp

from firstkit.auth.permissions import Identity
from firstkit.clock import now
from firstkit.gateway import queue as module
from firstkit.gateway import waiting
from firstkit.gateway.state import Gateway
from firstkit.routing.admission import Claim
from firstkit.store.tables import projects, users
from unit.gateway.support import CHAT_BODY, IDENTITY, Answer, Served, ask, request, route
from waiting import until

ADA = replace(IDENTITY, user_id="u-ada", user_name="ada", scopes=frozenset({"inference", "account"}))
OPERATOR = replace(IDENTITY, user_id="u-op", scopes=frozenset({"admin"}))
AUDITOR = replace(IDENTITY, user_id="u-au", scopes=frozenset({"audit"}))
OF_ADA, OF_BEN = Claim("p-fusion", "u-ada", 100), Claim("p-fusion", "u-ben", 100)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock says; what is written there it says from then on."""
    said = [100.0]
    for each in (waiting, module):
        monkeypatch.setattr(each, "monotonic", lambda: said[0])
    return said


async def know(gateway: Gateway) -> None:
    """The names of a project and of two users."""
    async with gateway.db.begin() as conn:
        await conn.execute(insert(projects).values(id="p-fusion", name="fusion", description="", created_at=now()))
        for name in ("ada", "ben"):
            await conn.execute(insert(users).values(id=f"u-{name}", name=name, is_admin=False, created_at=now()))


async def own(app: ASGIApp, who: Identity = ADA) -> list[dict[str, Any]]:
    answer = await ask(app, "/v1/queue", identity=who)
    assert (answer.status, answer.json["object"]) == (200, "list")
    data: list[dict[str, Any]] = answer.json["data"]
    return data


async def whole(app: ASGIApp, who: Identity = OPERATOR) -> dict[str, Any]:
    answer = await ask(app, "/admin/queue", identity=who)
    assert (answer.status, answer.json["object"]) == (200, "list")
    return {model["model"]: model for model in answer.json["data"]}


async def test_a_user_sees_their_own_requests_in_line(gateway: Gateway, app: ASGIApp, at: list[float]) -> None:
    await know(gateway)
    assert await own(app) == []
    gateway.room.join("m", claim=OF_ADA)
    gateway.room.join("org/embedder", claim=OF_BEN)
    at[0] += 2.5
    gateway.room.join("m", claim=OF_BEN._replace(tokens=1))
    batch = gateway.room.join("m", claim=OF_ADA._replace(is_batch=True, project="p-unnamed"))
    batch.request_id = "req-1"
    told = {"model": "m", "project": "fusion", "priority": "interactive"}
    assert await own(app) == [
        {**told, "request": None, "position": 1, "waited_s": 2.5},
        {"request": "req-1", "model": "m", "position": 3, "waited_s": 0.0, "project": "p-unnamed", "priority": "batch"},
    ]
    assert [each["model"] for each in await own(app, replace(ADA, user_id="u-ben"))] == ["m", "org/embedder"]
    assert await own(app, replace(ADA, user_id="u-eve")) == []


async def test_one_that_is_served_while_names_are_read_is_left_out(
    gateway: Gateway, app: ASGIApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.room.join("m", claim=OF_ADA)
    names = module._names

    async def while_it_is_served(*args: Any) -> dict[str, str]:
        gateway.table.add(route())
        gateway.room.pump("m")
        return await names(*args)

    monkeypatch.setattr(module, "_names", while_it_is_served)
    assert await own(app) == []


async def test_operators_and_auditors_see_who_has_what(gateway: Gateway, app: ASGIApp) -> None:
    await know(gateway)
    nobody = {"waiting": 0, "in_flight": 0, "projects": []}
    assert await whole(app) == {name: {"model": name, **nobody} for name in ("m", "org/embedder")}
    gateway.table.add(route())
    gateway.room.share({"p-fusion": 2.0})
    assert gateway.room.take("m", claim=OF_BEN) is not None
    gateway.room.join("m", claim=OF_ADA)
    gateway.room.join("m", claim=OF_ADA)
    gateway.room.recall("m", "p-fusion", "u-ada", 1000.0, 0.0)
    gateway.room.recall("m", "p-old", "u-gone", 3000.0, 0.0)
    gateway.room.share({"p-fusion": 2.0})
    for who in (OPERATOR, AUDITOR):
        found = await whole(app, who)
        assert found["org/embedder"] == {"model": "org/embedder", **nobody}
        assert {name: found["m"][name] for name in ("waiting", "in_flight")} == {"waiting": 2, "in_flight": 1}
        fusion, old = found["m"]["projects"]
        people = fusion.pop("users")
        assert fusion == {
            "project": "fusion", "share": 2.0, "factor": 0.771, "used": 1000, "waiting": 2, "in_flight": 1
        }  # fmt: skip
        assert [(each["user"], each["waiting"], each["in_flight"]) for each in people] == [("ada", 2, 0), ("ben", 0, 1)]
        assert (people[0]["used"], people[0]["factor"]) == (1000, 0.25)
        assert (old["project"], old["used"], old["users"]) == ("p-old", 3000, [])


async def test_names_of_many_are_read_in_parts(gateway: Gateway, app: ASGIApp, monkeypatch: pytest.MonkeyPatch) -> None:
    await know(gateway)
    monkeypatch.setattr(module, "ASKED_AT_ONCE", 1)
    gateway.room.join("m", claim=OF_ADA)
    gateway.room.join("m", claim=OF_BEN)
    [fusion] = (await whole(app))["m"]["projects"]
    assert [each["user"] for each in fusion["users"]] == ["ada", "ben"]


async def test_who_may_see_it(app: ASGIApp) -> None:
    async def status(path: str, *scopes: str) -> int:
        answer: Answer = await ask(app, path, identity=replace(ADA, scopes=frozenset(scopes)))
        return answer.status

    assert await status("/v1/queue", "account") == 200
    assert await status("/v1/queue", "inference", "admin", "audit", "metrics") == 403
    assert await status("/admin/queue", "admin") == await status("/admin/queue", "audit") == 200
    assert await status("/admin/queue", "inference", "account", "metrics") == 403


async def test_the_id_of_a_request_that_waits_is_told(served: Served) -> None:
    """From the client's end: it is the one in the head of the stream."""
    [only] = served.gateway.room.table.pools["m"].routes
    only.max_in_flight = 1
    served.gateway.room.table.refresh()
    first, second = served.connect(), served.connect()
    first.say(request(body={**CHAT_BODY, "stream": True}))
    await served.replica.asked()
    second.say(request("x-first-hold: 0", body={**CHAT_BODY, "stream": True}))
    await until(lambda: len(second.answers) == 1 and second.answers[0].status == 200, "a comment")
    [(model, ticket)] = served.gateway.room.of_user(IDENTITY.user_id)
    assert model == "m"
    assert ticket.request_id == second.answers[0].headers[b"x-request-id"].decode()
    assert b"position=1" in bytes(second.answers[0].body)
    (await served.replica.asked()).answer()
    (await served.replica.asked(2)).complete()
    await second.answer()
    assert list(served.gateway.room.of_user(IDENTITY.user_id)) == []
    [standing] = served.gateway.room.standings()["m"]
    assert (standing.id, standing.in_flight, standing.waiting) == (IDENTITY.project_id, 0, 0)
    assert standing.use > 0, "what was used is charged"
