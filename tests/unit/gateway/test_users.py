"""Users as operators look after them: roles are granted and taken, somebody is shut out and let in."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from firstkit.store import tables
from unit.gateway.asking import Asking
from unit.gateway.residents import AUDITOR, KEYS, LOCAL, OPERATOR, PASSER_BY, SHUT_OUT, STRANGER, USER, Resident

KEY_FOR_ADMIN = KEYS[4]


async def user(asking: Asking, name: str) -> dict[str, Any]:
    [found] = (await asking.get(f"/admin/users?user={name}", OPERATOR)).json["data"]
    assert isinstance(found, dict)
    return found


async def act(asking: Asking, what: str, who: Resident = OPERATOR, **body: Any) -> Any:
    answer = await asking.post(f"/admin/users/{what}", who, body)
    return answer.json if answer.status == 200 else (answer.status, answer.error["code"])


async def test_users_are_listed_with_what_they_are(asking: Asking) -> None:
    listed = {each["name"]: each for each in (await asking.get("/admin/users", OPERATOR)).json["data"]}
    assert list(listed) == sorted(listed)
    assert (listed["ann"]["roles"], listed["ann"]["projects"], listed["ann"]["disabled_at"]) == (
        ["auditor"],
        ["climate"],
        None,
    )
    assert listed["max"]["projects"] == ["astro", "climate"]
    assert listed[SHUT_OUT.user]["disabled_at"] is not None
    assert (listed["kim"]["keys"], listed[PASSER_BY]["keys"], listed[PASSER_BY]["seen_at"]) == (5, 0, None)
    assert (await asking.get("/admin/users?user=nobody", OPERATOR)).json == {"data": []}


async def test_a_role_is_granted_and_taken(asking: Asking) -> None:
    assert (await act(asking, "grant", user=USER.user, role="auditor"))["roles"] == ["auditor"]
    asking.gateway.authenticator.forget(str(USER.token))
    assert (await asking.get("/admin/usage", USER)).status == 200
    assert (await act(asking, "ungrant", user=USER.user, role="auditor"))["roles"] == []
    asking.gateway.authenticator.forget(str(USER.token))
    assert (await asking.get("/admin/usage", USER)).status == 403


async def test_nobody_grants_what_they_do_not_hold(asking: Asking) -> None:
    """A key for administration alone is no way to all the rest."""
    for role in ("operator", "auditor"):
        assert await act(asking, "grant", KEY_FOR_ADMIN, user="kim", role=role) == (403, "insufficient_scope")
        assert await act(asking, "grant", AUDITOR, user=AUDITOR.user, role=role) == (403, "insufficient_scope")
    assert (await user(asking, "kim"))["roles"] == []
    assert (await act(asking, "grant", LOCAL, user="kim", role="operator"))["roles"] == ["operator"]


async def test_an_operator_does_not_remove_their_own_way_in(asking: Asking) -> None:
    assert await act(asking, "disable", user=OPERATOR.user) == (400, "not_oneself")
    assert await act(asking, "ungrant", user=OPERATOR.user, role="operator") == (400, "not_oneself")
    assert await act(asking, "disable", KEY_FOR_ADMIN, user="kim") == (400, "not_oneself")
    found = await user(asking, OPERATOR.user)
    assert (found["roles"], found["disabled_at"]) == (["operator"], None)
    await act(asking, "grant", user=OPERATOR.user, role="auditor")
    assert (await act(asking, "ungrant", user=OPERATOR.user, role="auditor"))["roles"] == ["operator"]
    assert (await act(asking, "ungrant", LOCAL, user=OPERATOR.user, role="operator"))["roles"] == []


async def test_no_name_that_is_said_on_the_admin_socket_is_oneself(asking: Asking) -> None:
    lines = ("x-first-actor: oto",)
    answer = await asking.post("/admin/users/disable", LOCAL, {"user": "oto"}, *lines)
    assert answer.status == 200


async def test_who_is_shut_out_comes_in_by_no_way(asking: Asking) -> None:
    key = next(each for each in KEYS if each.name == "key for inference")
    assert (await asking.get("/v1/models", key)).status == 200
    assert (await act(asking, "disable", user="kim"))["disabled_at"] is not None
    assert (await act(asking, "disable", user=USER.user))["disabled_at"] is not None
    for who in (key, USER):
        asking.gateway.authenticator.forget(str(who.token))
        assert (await asking.get("/v1/models", who)).status == 401
    assert (await act(asking, "enable", user="kim"))["disabled_at"] is None
    asking.gateway.authenticator = type(asking.gateway.authenticator)(asking.gateway.db, asking.gateway.people)
    assert (await asking.get("/v1/models", key)).status == 200, "keys work as before"
    assert (await asking.get("/v1/models", USER)).status == 401, "a session has ended"


@pytest.mark.parametrize(
    ("what", "body", "code"),
    [
        ("grant", {"user": STRANGER, "role": "manager"}, "invalid_request"),
        ("grant", {"user": STRANGER, "role": "user"}, "invalid_request"),
        ("grant", {"user": STRANGER}, "invalid_request"),
        ("grant", {"user": "nobody", "role": "auditor"}, "user_not_found"),
        ("ungrant", {"user": "a\0b", "role": "auditor"}, "user_not_found"),
        ("disable", {"user": "nobody"}, "user_not_found"),
        ("disable", {"user": STRANGER, "until": "tomorrow"}, "invalid_request"),
        ("enable", {}, "invalid_request"),
    ],
)
async def test_what_cannot_be_done_is_told(asking: Asking, what: str, body: dict[str, Any], code: str) -> None:
    assert (await act(asking, what, **body))[1] == code


async def test_each_act_is_in_the_audit_log_with_who_and_from_where(asking: Asking) -> None:
    await act(asking, "grant", user=STRANGER, role="auditor")
    await act(asking, "grant", user=STRANGER, role="auditor")
    await act(asking, "ungrant", user=STRANGER, role="auditor")
    await act(asking, "disable", user=STRANGER)
    await asking.post("/admin/users/enable", LOCAL, {"user": STRANGER}, "x-first-actor: cli:root")
    async with asking.gateway.db.read() as conn:
        acts = (await conn.execute(select(tables.audit).order_by(tables.audit.c.id))).mappings().all()
    assert [(each["actor"], each["action"], each["subject"]) for each in acts] == [
        ("oto", "user.grant", STRANGER),
        ("oto", "user.ungrant", STRANGER),
        ("oto", "user.disable", STRANGER),
        ("cli:root", "user.enable", STRANGER),
    ], "what changes nothing is no act"
