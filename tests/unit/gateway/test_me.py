"""Oneself: who one is, what one is charged to, and keys that go no further than whoever makes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, update

from firstkit.auth.api_keys import parse_key
from firstkit.store import tables
from unit.gateway.asking import Asking
from unit.gateway.residents import (
    AUDITOR,
    KEYS,
    MANAGER,
    OF_NONE,
    OPERATOR,
    OTHER_MANAGER,
    STRANGER,
    USER,
    Resident,
    response_id,
)

HOUR_S = 3600.0
KEY_FOR_ACCOUNT = KEYS[1]


async def made(asking: Asking, who: Resident, **wanted: Any) -> Resident:
    """The same somebody with a new key of their own, of which ``wanted`` says what it is for."""
    answer = await asking.post("/v1/keys", who, {"name": "made", **wanted})
    assert answer.status == 201, answer.body
    return replace(who, token=answer.json["key"])


async def refusal(asking: Asking, who: Resident, **wanted: Any) -> tuple[int, str]:
    """Why ``who`` gets no such key."""
    answer = await asking.post("/v1/keys", who, {"name": "refused", **wanted})
    assert "refused" not in [key["name"] for key in await keys(asking, who)]
    return answer.status, answer.error["code"]


async def keys(asking: Asking, who: Resident) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = (await asking.get("/v1/keys", who)).json["data"]
    return listed


# -- who one is --------------------------------------------------------------------------------------------------------


async def test_whoever_is_logged_in_is_told_who_they_are(asking: Asking) -> None:
    assert (await asking.get("/v1/me", USER)).json == {
        "object": "user",
        "id": "user-ada",
        "name": "ada",
        "came_by": "session",
        "key": None,
        "project": "climate",
        "projects": [{"name": "climate", "role": "member", "default": True}],
        "roles": ["user"],
        "scopes": ["inference", "account"],
        "models": None,
        "groups": [],
        "domains": [],
    }


async def test_a_key_says_whose_it_is_and_what_it_is_for(asking: Asking) -> None:
    key = await made(asking, OPERATOR, scopes=["account"], models=["m"])
    told = (await asking.get("/v1/me", key)).json
    assert (told["name"], told["came_by"], told["key"]) == ("oto", "api_key", f"first-{parse_key(str(key.token))}")
    assert (told["roles"], told["scopes"], told["models"]) == (["user", "operator"], ["account"], ["m"])


async def test_roles_are_told(asking: Asking) -> None:
    for who, roles in (
        (MANAGER, ["user", "manager"]),
        (OTHER_MANAGER, ["user", "manager"]),
        (AUDITOR, ["user", "auditor"]),
        (OPERATOR, ["user", "operator"]),
        (OF_NONE, ["user"]),
    ):
        assert (await asking.get("/v1/me", who)).json["roles"] == roles
    assert [each["role"] for each in (await asking.get("/v1/me", OTHER_MANAGER)).json["projects"]] == [
        "manager",
        "member",
    ]


async def test_what_one_is_charged_to_is_chosen(asking: Asking) -> None:
    async def chosen() -> Any:
        asking.gateway.authenticator.forget(str(OTHER_MANAGER.token))
        return (await asking.get("/v1/me", OTHER_MANAGER)).json["project"]

    assert await chosen() == "climate"
    answer = await asking.post("/v1/me", OTHER_MANAGER, {"default_project": "astro"})
    assert (answer.status, answer.json) == (200, {"default_project": "astro"})
    assert await chosen() == "astro"
    assert (await asking.post("/v1/me", OTHER_MANAGER, {"default_project": None})).status == 200
    assert await chosen() is None, "they belong to two"
    assert (await asking.post("/v1/me", OTHER_MANAGER, {"default_project": "elsewhere"})).status == 404
    assert (await asking.post("/v1/me", OTHER_MANAGER, {})).error["param"] == "default_project"
    async with asking.gateway.db.read() as conn:
        acts = (await conn.execute(select(tables.audit).order_by(tables.audit.c.id))).mappings().all()
    assert [(act["actor"], act["action"], act["details"]["project"]) for act in acts] == [
        ("max", "user.default_project", "astro"),
        ("max", "user.default_project", None),
    ]


# -- keys of one's own -------------------------------------------------------------------------------------------------


async def test_a_key_from_creation_to_revocation(asking: Asking) -> None:
    answer = await asking.post("/v1/keys", USER, {"name": "laptop", "expires_in_s": HOUR_S})
    told = answer.json
    key = replace(USER, token=told.pop("key"))
    assert (told["user"], told["project"], told["scopes"]) == ("ada", "climate", ["inference"])
    assert told["is_personal"] is True
    assert await keys(asking, USER) == [told]
    assert (await asking.get("/v1/models", key)).status == 200
    assert (await asking.get("/v1/me", key)).status == 403, "it has no more than it was made with"
    answer = await asking.post("/v1/keys/revoke", USER, {"name_or_prefix": "laptop"})
    assert (answer.status, answer.json["status"]) == (200, "revoked")
    assert await keys(asking, USER) == []
    assert [each["name"] for each in (await asking.get("/v1/keys?include_dead=true", USER)).json["data"]] == ["laptop"]
    asking.gateway.authenticator.forget(str(key.token))
    assert (await asking.get("/v1/models", key)).status == 401


async def test_keys_of_others_are_not_there(asking: Asking) -> None:
    key = await made(asking, MANAGER, scopes=["inference"])
    for name in ("made", key.token, str(key.token)[:18]):
        answer = await asking.post("/v1/keys/revoke", USER, {"name_or_prefix": name})
        assert (answer.status, answer.error["code"]) == (404, "key_not_found")
    assert await keys(asking, USER) == []
    assert (await asking.get("/v1/models", key)).status == 200
    await made(asking, USER, scopes=["inference"])
    assert (await asking.post("/v1/keys/revoke", USER, {"name_or_prefix": "made"})).json["user"] == "ada"


async def test_a_login_makes_keys_for_its_user_and_no_more(asking: Asking) -> None:
    assert await refusal(asking, USER, scopes=["admin"]) == (403, "insufficient_scope")
    assert await refusal(asking, AUDITOR, scopes=["audit", "admin"]) == (403, "insufficient_scope")
    assert await refusal(asking, USER, project="astro") == (404, "project_not_found")
    assert await refusal(asking, USER, projects=["astro"]) == (404, "project_not_found")
    assert await refusal(asking, USER, models=["hidden"]) == (404, "model_not_found")
    assert await refusal(asking, USER, models=["m", "of nobody"]) == (404, "model_not_found")
    assert await refusal(asking, USER, expires_in_s=1e9) == (400, "invalid_request")
    assert await refusal(asking, OF_NONE) == (403, "no_project")
    assert (await asking.get("/v1/me", await made(asking, AUDITOR, scopes=["account", "audit"]))).json["scopes"] == [
        "account",
        "audit",
    ]


@pytest.mark.parametrize("field", ["user", "user_id", "is_personal", "actor", "held", "project_id"])
async def test_nothing_in_the_body_says_for_whom_a_key_is(asking: Asking, field: str) -> None:
    answer = await asking.post("/v1/keys", USER, {"name": "k", field: STRANGER})
    assert (answer.status, answer.error["param"]) == (400, field)
    assert await keys(asking, USER) == []


async def test_a_key_makes_no_key_that_goes_further(asking: Asking) -> None:
    """Neither by what is said, nor by what is left out."""
    scopes = ["account", "inference"]
    narrow = await made(asking, OTHER_MANAGER, scopes=scopes, project="astro", models=["hidden"], expires_in_s=HOUR_S)
    assert await refusal(asking, narrow, scopes=["metrics"]) == (403, "insufficient_scope")
    assert await refusal(asking, narrow, project="climate") == (404, "project_not_found")
    assert await refusal(asking, narrow, projects=["climate"]) == (404, "project_not_found")
    assert await refusal(asking, narrow, models=["m"]) == (404, "model_not_found")
    assert await refusal(asking, narrow, expires_in_s=2 * HOUR_S) == (400, "invalid_request")
    answer = await asking.post("/v1/keys", narrow, {"name": "child"})
    own = next(key for key in await keys(asking, OTHER_MANAGER) if key["name"] == "made")
    assert (answer.json["project"], answer.json["projects"], answer.json["models"]) == ("astro", [], ["hidden"])
    assert answer.json["expires_at"] <= own["expires_at"]
    child = replace(narrow, token=answer.json["key"])
    assert (await asking.get("/v1/models", child)).json["data"][0]["id"] == "hidden"


async def test_a_key_that_an_operator_made_makes_keys_of_its_user_alone(asking: Asking) -> None:
    answer = await asking.post("/v1/keys", KEY_FOR_ACCOUNT, {"name": "k", "scopes": ["account"]})
    assert (answer.status, answer.json["user"], answer.json["is_personal"]) == (201, "kim", True)
    assert await refusal(asking, KEY_FOR_ACCOUNT) == (403, "insufficient_scope"), "it is not for inference itself"


async def test_who_has_not_logged_in_makes_no_keys(asking: Asking) -> None:
    async with asking.gateway.db.begin() as conn:
        await conn.execute(update(tables.users).where(tables.users.c.name == "kim").values(seen_at=None))
    assert await refusal(asking, KEY_FOR_ACCOUNT, scopes=["account"]) == (403, "login_needed")


async def test_nobody_has_too_many_keys(asking: Asking) -> None:
    most = asking.gateway.config.auth.personal_keys.most
    answers = [await asking.post("/v1/keys", USER, {"name": f"key {n}"}) for n in range(most + 1)]
    assert [answer.status for answer in answers] == [201] * most + [400]
    assert answers[-1].error["code"] == "too_many_keys"
    assert (await asking.post("/v1/keys/revoke", USER, {"name_or_prefix": "key 0"})).status == 200
    assert (await asking.post("/v1/keys", USER, {"name": "one more"})).status == 201


async def test_a_key_is_charged_to_what_its_maker_named(asking: Asking) -> None:
    line = "x-first-project: astro"
    assert (await asking.post("/v1/keys", OTHER_MANAGER, {"name": "a"}, line)).json["project"] == "astro"
    body = {"name": "b", "project": "climate", "projects": ["astro"]}
    key = replace(OTHER_MANAGER, token=(await asking.post("/v1/keys", OTHER_MANAGER, body)).json["key"])
    assert (await asking.get("/v1/models/hidden", key)).status == 404
    assert (await asking.get("/v1/models/hidden", key, line)).status == 200
    assert (await asking.get(f"/v1/responses/{response_id('max')}", key)).status == 200


async def test_the_audit_log_names_who_made_a_key_and_never_its_text(asking: Asking) -> None:
    key = await made(asking, USER, scopes=["inference"])
    await asking.post("/v1/keys/revoke", USER, {"name_or_prefix": key.token})
    async with asking.gateway.db.read() as conn:
        acts = (await conn.execute(select(tables.audit).order_by(tables.audit.c.id))).mappings().all()
    subject = f"first-{parse_key(str(key.token))}"
    assert [(act["actor"], act["action"], act["subject"]) for act in acts] == [
        ("ada", "key.create", subject),
        ("ada", "key.revoke", subject),
    ]
    assert str(key.token) not in str(acts)
