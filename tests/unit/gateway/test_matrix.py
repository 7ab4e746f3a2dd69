"""Every route by everybody, for what is theirs and for what is a stranger's: the status is that of the table.

Nobody's identity is made up: keys and sessions are rows of a database, and requests come on connections.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Any

import pytest

from firstkit.auth.permissions import Identity
from firstkit.errors import ApiError
from firstkit.gateway import paths
from firstkit.gateway.audit import Audit
from firstkit.gateway.call import Call
from firstkit.store.database import Database
from unit.gateway.asking import Asking, filled
from unit.gateway.matrix import ALL, HIDING, HOT, OLDER, expected
from unit.gateway.residents import (
    AUDITOR,
    KEY_FOR_INFERENCE,
    NOBODY,
    OF_NONE,
    OPERATOR,
    OTHER_MANAGER,
    OURS,
    RESIDENTS,
    THEIRS,
    USER,
    Resident,
)
from unit.gateway.support import Calls
from unit.gateway.test_routes import all_routes


@dataclass(frozen=True)
class Denial:
    """What the audit log was told."""

    error: ApiError
    identity: Identity | None
    what: str


class Hearing(Audit):
    """The audit log of a gateway, which remembers what it was told."""

    def __init__(self, db: Database) -> None:
        super().__init__(db)
        self.heard: list[Denial] = []

    def denied(self, error: ApiError, identity: Identity | None, what: str, source: str) -> None:
        self.heard.append(Denial(error, identity, what))
        super().denied(error, identity, what, source)


@pytest.fixture
def audit(asking: Asking) -> Hearing:
    asking.gateway.audit = Hearing(asking.gateway.db)
    return asking.gateway.audit


# -- which routes there are --------------------------------------------------------------------------------------------


def routes_of_the_application() -> set[str]:
    found = set()
    for route in all_routes():
        path = re.sub(r":\w+}", "}", route.path)
        found |= {f"{method} {path}" for method in route.methods or ()}
    return found


def hot_routes(asking: Asking) -> set[str]:
    """The paths on which a request goes to a model without the application: each of its prefixes with each API."""
    prefixes = ("/v1/", "/v1/clusters/{cluster}/", "/api/federated/v1/", "/resource_server/{cluster}/{framework}/v1/")
    known = {value for name, value in vars(paths).items() if name.isupper() and isinstance(value, str)}
    assert known == {paths.PINNED, paths.FEDERATED, paths.RESOURCE_SERVER}, "one more prefix: let it be looked at"
    ends = [path.removeprefix("/v1/") for path in asking.gateway.reach.apis]
    found = {f"{prefix}{end}".replace("tasks/ocr", "tasks/{name}") for prefix in prefixes for end in ends}
    return {f"POST {path}" for path in found if asking.public.hot.api("POST", filled(path, USER, OURS))}


def test_every_route_has_a_row_and_every_row_a_route(asking: Asking) -> None:
    assert set(ALL) == routes_of_the_application() | hot_routes(asking)


# -- who gets what -----------------------------------------------------------------------------------------------------

ROUTES = pytest.mark.parametrize("route", ALL)


@ROUTES
async def test_who_gets_what_and_what_is_denied_is_written_down(asking: Asking, audit: Hearing, route: str) -> None:
    wrong = []
    for whose in ALL[route].sides:
        for who in RESIDENTS:
            answer = await asking.ask(route, who, whose)
            told, audit.heard = audit.heard, []
            status = status_of(route, who, whose)
            if answer.status != status:
                wrong.append(f"{who.name}, {whose}: {answer.status} {answer.body[:100]!r} and not {status}")
            if is_denial(route, whose, status) and not who.is_local and not told:
                wrong.append(f"{who.name}, {whose}: nothing of the {status} is in the audit log")
    assert wrong == []


def is_denial(route: str, whose: str, status: int) -> bool:
    is_hidden = whose == THEIRS and (route in HOT or any(place in route for place in HIDING))
    return status in (401, 403) or (status == 404 and is_hidden)


async def test_denials_are_in_the_audit_log(asking: Asking) -> None:
    assert (await asking.ask("GET /admin/status", USER)).status == 403
    assert (await asking.ask("POST /v1/chat/completions", USER, THEIRS)).status == 404
    assert (await asking.ask("GET /v1/projects/{name}", USER, THEIRS)).status == 404
    assert (await asking.ask("GET /v1/me", NOBODY)).status == 401
    entries = (await asking.ask("GET /admin/audit", AUDITOR)).json["data"]
    denied = {(each["actor"], each["subject"], each["details"]["code"]) for each in entries}
    assert denied == {
        ("ada", "GET /admin/status", "insufficient_scope"),
        ("ada", "POST /v1/chat/completions", "model_not_found"),
        ("ada", "GET /v1/projects/astro", "project_not_found"),
        ("unknown", "GET /v1/me", "invalid_api_key"),
    }
    assert {each["action"] for each in entries} == {"denied"}


# -- one token, every door ---------------------------------------------------------------------------------------------


def doors(token: str) -> list[tuple[str, ...]]:
    basic = base64.b64encode(f"anybody:{token}".encode()).decode()
    cookie = f"cookie: a=b; first_session={token}"
    return [
        (f"authorization: bearer {token}",),
        (f"x-api-key: {token}",),
        (f"authorization: Basic {basic}",),
        (cookie, "sec-fetch-site: same-origin"),
        (cookie, "origin: http://localhost"),
    ]


@ROUTES
async def test_a_token_decides_the_same_by_every_door(asking: Asking, route: str) -> None:
    for who in (OPERATOR, KEY_FOR_INFERENCE):
        for whose in ALL[route].sides:
            came = [(await asking.come(route, who, whose, *door)).status for door in doors(str(who.token))]
            assert came == [status_of(route, who, whose)] * len(came), (who.name, whose)


@ROUTES
async def test_a_page_of_another_site_does_nothing_with_the_login_of_a_browser(
    asking: Asking, audit: Hearing, route: str
) -> None:
    cookie = f"cookie: first_session={OPERATOR.token}"
    for proof in ((), ("sec-fetch-site: cross-site",), ("sec-fetch-site: none",), ("origin: https://evil.example",)):
        answer = await asking.come(route, OPERATOR, OURS, cookie, *proof)
        if route.startswith("GET "):
            assert answer.status == status_of(route, OPERATOR, OURS)
        elif route == "POST /auth/logout":
            assert answer.status == 403, "a session is looked at, though the path is open"
        else:
            assert answer.status == (401 if OLDER in route else 403)
            assert audit.heard[-1].error.code == "cross_site_request"


# -- nothing in a request raises a right -------------------------------------------------------------------------------

CLAIMS = (
    "x-first-actor: oto",
    "x-first-user: oto",
    "x-first-scopes: admin",
    "x-forwarded-for: 127.0.0.1",
    "x-forwarded-user: oto",
    "x-real-ip: 127.0.0.1",
    "x-remote-user: oto",
    "remote-user: oto",
    "forwarded: for=127.0.0.1;host=localhost",
    "openai-organization: astro",
    "openai-project: astro",
    "x-original-url: /health",
    "x-rewrite-url: /health",
    "x-http-method-override: GET",
)
FIELDS: dict[str, Any] = {
    "user": "oto",
    "user_id": "user-oto",
    "project_id": "project-astro",
    "x_first_project": "astro",
    "scopes": ["admin", "audit", "inference"],
    "roles": ["operator"],
    "is_admin": True,
    "is_personal": False,
    "actor": "oto",
}
QUERY = "user=oto&user_id=user-oto&project_id=project-astro&scopes=admin&is_admin=true&actor=oto&role=operator"
WEAK = (USER, OF_NONE, KEY_FOR_INFERENCE)


@ROUTES
async def test_no_header_raises_a_right(asking: Asking, route: str) -> None:
    for who in (NOBODY, *WEAK):
        for whose in ALL[route].sides:
            answer = await asking.ask(route, who, whose, *CLAIMS)
            assert answer.status == status_of(route, who, whose), (who.name, whose)
    check_who_was_served(asking)


@ROUTES
async def test_no_field_and_no_query_raises_a_right(asking: Asking, route: str) -> None:
    """What a route does not know it may refuse, and never heed."""
    for who in WEAK:
        for whose in ALL[route].sides:
            status = status_of(route, who, whose)
            allowed = {status, 400, 422} if status < 400 else {status, 400, 403, 404, 422}
            for more in ({"body": FIELDS}, {"query": QUERY}):
                answer = await asking.ask(route, who, whose, **more)
                assert answer.status in allowed, (who.name, whose, more)
    check_who_was_served(asking)


@ROUTES
async def test_a_project_of_others_opens_nothing(asking: Asking, route: str) -> None:
    for who in (USER, OPERATOR, KEY_FOR_INFERENCE):
        answer = await asking.ask(route, who, OURS, "x-first-project: astro")
        if not ALL[route].scopes and route != "GET /auth/account":
            assert answer.status == ALL[route].good
        elif route in HOT:
            assert answer.status == (404 if "inference" in who.scopes else 403)
        else:
            assert answer.status == 404
    check_who_was_served(asking)


async def test_a_project_of_ones_own_opens_what_is_for_it(asking: Asking) -> None:
    """And each request for itself: the next one without the header is as it was."""
    for route in ("POST /v1/chat/completions", "GET /v1/models/{model_id}", "GET /v1/clusters/{cluster}"):
        for _ in range(2):
            assert (await asking.ask(route, OTHER_MANAGER, THEIRS, "x-first-project: astro")).status == 200
            assert (await asking.ask(route, OTHER_MANAGER, THEIRS)).status == 404
    [*calls] = taken(asking)
    assert {(call.account.identity.user_name, call.account.identity.project_name) for call in calls} == {
        ("max", "astro")
    }


def check_who_was_served(asking: Asking) -> None:
    """Each request to a model was that of its sender, charged to the project of all."""
    for call in taken(asking):
        identity = call.account.identity
        assert identity.user_name in {who.user for who in RESIDENTS if "inference" in who.scopes} - {OF_NONE.user}
        assert (identity.project_name, identity.scopes & {"admin", "audit"}) == ("climate", frozenset())


def taken(asking: Asking) -> list[Call]:
    relay = asking.gateway.relay
    assert isinstance(relay, Calls)
    return relay.taken


def status_of(route: str, who: Resident, whose: str) -> int:
    return expected(route, who.name, who.scopes, who.refused, whose)
