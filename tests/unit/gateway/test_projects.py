"""Projects: members see theirs, managers look after them, operators make them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import select

from firstkit.config import parse_config
from firstkit.store import tables
from firstkit.store.people import add_member, create_project
from unit.gateway.asking import Asking
from unit.gateway.residents import (
    CONFIG,
    KEYS,
    LOCAL,
    MANAGER,
    OPERATOR,
    OTHER_MANAGER,
    PASSER_BY,
    USER,
    Resident,
)

CLIMATE = "/v1/projects/climate"
KEY_FOR_ADMIN = KEYS[4]


async def members(asking: Asking, who: Resident = OPERATOR, path: str = CLIMATE) -> dict[str, str]:
    told = (await asking.get(path, who)).json["members"]
    return {member["user"]: member["role"] for member in told}


async def test_whoever_belongs_to_projects_sees_them(asking: Asking) -> None:
    assert (await asking.get("/v1/projects", OTHER_MANAGER)).json["data"] == [
        {"name": "astro", "role": "manager", "default": False, "description": "about astro"},
        {"name": "climate", "role": "member", "default": True, "description": "about climate"},
    ]
    told = (await asking.get(CLIMATE, USER)).json
    assert told == {
        "name": "climate",
        "description": "about climate",
        "share": 1.0,
        "budgets": [],
        "role": "member",
        "default": True,
    }


async def test_managers_and_operators_see_who_belongs_to_it(asking: Asking) -> None:
    for who in (MANAGER, OPERATOR, KEY_FOR_ADMIN, LOCAL):
        found = await members(asking, who)
        assert (found["ada"], found["mia"]) == ("member", "manager")
    assert "members" not in (await asking.get(CLIMATE, OTHER_MANAGER)).json, "they manage another"
    assert (await members(asking, OTHER_MANAGER, "/v1/projects/astro"))["max"] == "manager"


async def test_what_the_configuration_says_of_it_is_told(asking: Asking) -> None:
    entry = "{users: [olga], groups: [g], domains: [example.org], managers: [ada], share: 3}"
    asking.gateway.config = parse_config(f"{CONFIG}\nprojects: {{climate: {entry}}}")
    told = (await asking.get(CLIMATE, MANAGER)).json
    assert told["share"] == 3
    assert told["configuration"] == {
        "users": ["olga"],
        "groups": ["g"],
        "domains": ["example.org"],
        "managers": ["ada"],
    }
    listed = {each["name"]: each for each in (await asking.get("/admin/projects", OPERATOR)).json["data"]}
    assert (listed["climate"]["configured"], listed["climate"]["share"]) == (True, 3)
    assert (listed["astro"]["configured"], listed["astro"]["share"]) == (False, 1)


async def test_a_budget_is_shown_to_whom_it_covers(asking: Asking) -> None:
    await asking.post("/admin/budgets", OPERATOR, {"project": "climate", "tokens": 5000})
    await asking.post("/admin/budgets", OPERATOR, {"project": "climate", "user": "mia", "tokens": 70})
    await asking.post("/admin/budgets", OPERATOR, {"project": "astro", "tokens": 6000})
    seen = {who.user: (await asking.get(CLIMATE, who)).json["budgets"] for who in (USER, MANAGER)}
    assert sorted(budget["tokens"] for budget in seen["ada"]) == [5000]
    assert sorted(budget["tokens"] for budget in seen["mia"]) == [70, 5000]


async def test_a_manager_adds_promotes_and_removes(asking: Asking) -> None:
    added = await asking.post(f"{CLIMATE}/members", MANAGER, {"user": PASSER_BY})
    assert (added.status, added.json["user"], added.json["role"]) == (200, PASSER_BY, "member")
    assert (await members(asking))[PASSER_BY] == "member"
    await asking.post(f"{CLIMATE}/members", MANAGER, {"user": PASSER_BY, "role": "manager"})
    assert (await members(asking))[PASSER_BY] == "manager"
    removed = await asking.post(f"{CLIMATE}/members/remove", MANAGER, {"user": PASSER_BY})
    assert (removed.status, removed.json["role"]) == (200, "manager")
    assert PASSER_BY not in await members(asking)
    async with asking.gateway.db.read() as conn:
        acts = (await conn.execute(select(tables.audit).order_by(tables.audit.c.id))).mappings().all()
    assert [(act["actor"], act["action"], act["subject"]) for act in acts] == [
        ("mia", "project.add", "climate"),
        ("mia", "project.add", "climate"),
        ("mia", "project.remove", "climate"),
    ]


async def test_a_new_member_is_charged_to_it_within_seconds(asking: Asking) -> None:
    key = "x-first-project: astro"
    assert (await asking.get("/v1/models/hidden", USER, key)).status == 404
    await asking.post("/v1/projects/astro/members", OTHER_MANAGER, {"user": USER.user})
    asking.gateway.authenticator.forget(str(USER.token))
    assert (await asking.get("/v1/models/hidden", USER, key)).status == 200
    await asking.post("/v1/projects/astro/members/remove", OTHER_MANAGER, {"user": USER.user})
    asking.gateway.authenticator.forget(str(USER.token))
    assert (await asking.get("/v1/models/hidden", USER, key)).status == 404


@pytest.mark.parametrize("end", ["members", "members/remove"])
async def test_who_is_no_manager_changes_nothing(asking: Asking, end: str) -> None:
    before = await members(asking)
    for who in (USER, OTHER_MANAGER):
        answer = await asking.post(f"{CLIMATE}/{end}", who, {"user": MANAGER.user})
        assert (answer.status, answer.error["code"]) == (403, "not_manager")
    answer = await asking.post(f"/v1/projects/astro/{end}", MANAGER, {"user": MANAGER.user})
    assert (answer.status, answer.error["code"]) == (404, "project_not_found")
    assert await members(asking) == before


async def test_a_key_for_one_project_manages_no_other(asking: Asking) -> None:
    """Though its user does."""
    await add_member(asking.gateway.db, "climate", OTHER_MANAGER.user, "manager", actor="test")
    body = {"name": "k", "project": "astro", "scopes": ["account"]}
    made = await asking.post("/v1/keys", OTHER_MANAGER, body)
    key = replace(OTHER_MANAGER, token=made.json["key"])
    assert (await asking.post("/v1/projects/astro/members", key, {"user": PASSER_BY})).status == 200
    assert (await asking.post(f"{CLIMATE}/members", key, {"user": PASSER_BY})).status == 404
    assert (await asking.post(f"{CLIMATE}/members", OTHER_MANAGER, {"user": PASSER_BY})).status == 200


@pytest.mark.parametrize(
    ("end", "body", "code"),
    [
        ("members", {"user": "nobody"}, "user_not_found"),
        ("members", {"user": "a\0b"}, "user_not_found"),
        ("members", {"user": PASSER_BY, "role": "owner"}, "invalid_request"),
        ("members", {"role": "member"}, "invalid_request"),
        ("members", {"user": PASSER_BY, "project": "astro"}, "invalid_request"),
        ("members/remove", {"user": PASSER_BY}, "member_not_found"),
        ("members/remove", {"user": "nobody"}, "user_not_found"),
    ],
)
async def test_what_cannot_be_done_is_told(asking: Asking, end: str, body: dict[str, Any], code: str) -> None:
    assert (await asking.post(f"{CLIMATE}/{end}", MANAGER, body)).error["code"] == code


async def test_an_operator_makes_a_project(asking: Asking) -> None:
    made = await asking.post("/admin/projects", OPERATOR, {"name": "fusion", "description": "plasma"})
    assert (made.status, made.json["name"], made.json["members"]) == (201, "fusion", 0)
    again = await asking.post("/admin/projects", OPERATOR, {"name": "fusion"})
    assert (again.status, again.error["code"]) == (400, "project_name_taken")
    assert (await asking.post("/admin/projects", OPERATOR, {"name": " "})).error["param"] == "name"
    listed = (await asking.get("/admin/projects", OPERATOR)).json["data"]
    assert [each["name"] for each in listed] == ["astro", "climate", "fusion"]
    assert (await asking.get("/v1/projects/fusion", OPERATOR)).json["members"] == []
    assert (await asking.get("/v1/projects/fusion", USER)).status == 404


NAMES = ["a/b", "a/members", "members/remove", "a/members/remove", "100 %", "ä ö?x=1#y", "..", "%2F", "+"]


@pytest.mark.parametrize("name", NAMES)
async def test_a_name_is_one_segment_whatever_it_holds(asking: Asking, name: str) -> None:
    await create_project(asking.gateway.db, name, actor="test")
    path = f"/v1/projects/{quote(name, safe='')}"
    assert (await asking.get(path, OPERATOR)).json["name"] == name
    assert (await asking.post(f"{path}/members", OPERATOR, {"user": PASSER_BY})).status == 200
    assert await members(asking, OPERATOR, path) == {PASSER_BY: "member"}
    assert (await asking.post(f"{path}/members/remove", OPERATOR, {"user": PASSER_BY})).status == 200
    assert await members(asking, OPERATOR, path) == {}


@pytest.mark.parametrize("path", ["climate/", "climate/x", "/climate", "climate/members/", "climate/members/x"])
async def test_more_than_a_segment_is_no_project(asking: Asking, path: str) -> None:
    answer = await asking.get(f"/v1/projects/{path}", OPERATOR)
    assert (answer.status, answer.error["code"]) == (404, "not_found")
    assert (await asking.post(f"/v1/projects/{path}/members", OPERATOR, {"user": PASSER_BY})).status == 404
