"""Nobody passes without an identity, and no identity passes without the scope of the route."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from firstkit.auth.permissions import Identity, Membership
from firstkit.errors import StoreUnavailable, Unauthenticated
from firstkit.gateway.app import build_app
from firstkit.gateway.doors import project_of
from firstkit.gateway.guard import Guard
from firstkit.gateway.identity import LOCAL_ADMIN, Identify, identity_of, local_admin
from firstkit.gateway.request import RequestHead
from firstkit.gateway.source import Sources
from firstkit.gateway.state import Gateway
from unit.gateway.support import HOST, Answer, Gated, ask, limits_of
from unit.gateway.upstreams import until

USER = Identity("u", "user", "p", "prefix", frozenset({"inference"}))
ROUTES = {"inference": ["/v1/models", "/openapi.json", "/docs"], "metrics": ["/metrics"], "admin": ["/admin/status"]}


async def nobody(head: RequestHead) -> Identity:
    raise Unauthenticated


async def silent(head: RequestHead) -> Identity:
    raise StoreUnavailable


async def get(gateway: Gateway, path: str, identify_head: Any, forged: Any = None) -> Answer:
    """Come as whoever ``identify_head`` finds, with an identity in the scope that nobody should believe."""
    return await ask(Guard(Identify(build_app(gateway), identify_head)), path, identity=forged)


@pytest.mark.parametrize("path", ["/health", "/ready", "/resource_server/health", "/resource_server/status"])
async def test_few_paths_are_open(gateway: Gateway, path: str) -> None:
    assert (await get(gateway, path, nobody)).status == 200


PATHS = ["/healthy", "/health/", "/HEALTH", "//health", "/ready/x", "/", "/v1/models", "/docs", "/metrics", "/nope"]


@pytest.mark.parametrize("path", PATHS)
async def test_no_other_path_is(gateway: Gateway, path: str) -> None:
    answer = await get(gateway, path, nobody)
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")


async def test_an_authority_that_is_silent_is_no_refusal(gateway: Gateway) -> None:
    answer = await get(gateway, "/v1/models", silent)
    assert (answer.status, answer.error["code"]) == (503, "store_unavailable")


@pytest.mark.parametrize("held", ROUTES)
async def test_a_scope_opens_its_routes_only(gateway: Gateway, held: str) -> None:
    async def somebody(head: RequestHead) -> Identity:
        return Identity("u", "user", "p", "prefix", frozenset({held}))

    for scope, paths in ROUTES.items():
        for path in paths:
            answer = await get(gateway, path, somebody)
            assert answer.status == (200 if scope == held else 403), path
            assert scope == held or answer.error["code"] == "insufficient_scope"


async def test_an_identity_that_came_from_elsewhere_is_replaced(gateway: Gateway) -> None:
    async def user(head: RequestHead) -> Identity:
        return USER

    assert (await get(gateway, "/admin/status", user, forged=LOCAL_ADMIN)).status == 403


@pytest.mark.parametrize("forged", [None, "root", {"scopes": ["admin"]}])
async def test_without_the_middleware_nobody_comes_in(gateway: Gateway, forged: Any) -> None:
    assert (await ask(Guard(build_app(gateway)), "/admin/status", identity=forged)).status == 401


async def test_whoever_opens_the_admin_socket_is_an_admin_but_asks_no_model(gateway: Gateway) -> None:
    assert LOCAL_ADMIN.scopes == {"metrics", "audit", "admin"}
    assert (await get(gateway, "/admin/status", local_admin)).status == 200
    assert (await get(gateway, "/v1/models", local_admin)).status == 403


async def test_requests_count_for_the_limits_of_their_key(gateway: Gateway) -> None:
    async def user(head: RequestHead) -> Identity:
        return USER

    limits = limits_of(requests_per_minute_per_key=2, concurrency_per_key=1)
    app = Guard(Identify(build_app(gateway), user, limits))
    assert [(await ask(app, "/v1/models")).status for _ in range(2)] == [200, 200]
    refused = await ask(app, "/v1/models")
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    assert refused.headers[b"x-ratelimit-remaining-requests"] == b"0"
    assert (await ask(app, "/health")).status == 200, "who needs no key has no limit"


async def test_a_request_that_fails_is_under_way_no_more(gateway: Gateway) -> None:
    async def user(head: RequestHead) -> Identity:
        return USER

    async def fails(*_: Any) -> None:
        raise ValueError

    app = Guard(Identify(fails, user, limits_of(concurrency_per_key=1)))
    assert [(await ask(app, "/x")).status for _ in range(3)] == [500] * 3


async def test_by_this_door_too_a_request_counts_for_the_project_that_it_names(gateway: Gateway) -> None:
    both = (Membership("p", "sun"), Membership("q", "moon"))
    somebody = replace(USER, project_id="p", project_name="sun", memberships=both)

    async def named(head: RequestHead) -> Identity:
        return somebody if (project := project_of(head)) is None else somebody.charged_to(project)

    app = Guard(Identify(build_app(gateway), named, limits_of(requests_per_minute_per_project=1)))
    moon, mars = (HOST, (b"x-first-project", b"moon")), (HOST, (b"x-first-project", b"mars"))
    assert [(await ask(app, "/v1/models")).status for _ in range(2)] == [200, 429]
    assert [(await ask(app, "/v1/models", headers=moon)).status for _ in range(2)] == [200, 429]
    answer = await ask(app, "/v1/models", headers=mars)
    assert (answer.status, answer.error["code"]) == (404, "project_not_found")


async def test_who_belongs_to_no_project_yet_may_look_around(gateway: Gateway) -> None:
    async def homeless(head: RequestHead) -> Identity:
        return replace(USER, project_id="", project_name="")

    app = Guard(Identify(build_app(gateway), homeless, limits_of(requests_per_minute_per_project=1)))
    assert [(await ask(app, "/v1/models")).status for _ in range(3)] == [200] * 3


# -- denials -----------------------------------------------------------------------------------------------------------


def denied(gateway: Gateway) -> list[tuple[str, str, str, str]]:
    """Who was denied what, from where and why, as the audit log will have it."""
    entries = gateway.audit._kinds.values()
    return [(entry.actor, entry.subject, entry.source, entry.details["code"]) for entry in entries]


async def test_who_does_not_come_in_is_written_down(gateway: Gateway) -> None:
    app = Guard(Identify(build_app(gateway), nobody, None, gateway.denied))
    await ask(app, "/admin/status")
    await ask(Guard(Identify(build_app(gateway), silent, None, gateway.denied)), "/admin/status")
    assert denied(gateway) == [("unknown", "GET /admin/status", "", "invalid_api_key")]


async def test_and_what_they_may_not(gateway: Gateway) -> None:
    async def user(head: RequestHead) -> Identity:
        return USER

    app = Guard(Identify(build_app(gateway), user, None, gateway.denied))
    assert (await ask(app, "/admin/status")).status == 403
    assert denied(gateway) == [("user", "GET /admin/status", "", "insufficient_scope")], "once"


@pytest.mark.parametrize(
    ("peer", "forwarded", "source"),
    [
        (("192.0.2.7", 1), [], "192.0.2.7"),
        (("192.0.2.7", 1), [b"198.51.100.1"], "192.0.2.7"),
        (("10.0.0.1", 1), [b"198.51.100.1"], "198.51.100.1"),
    ],
)
async def test_from_where_it_came_is_said_by_proxies_that_are_trusted(
    gateway: Gateway, peer: Any, forwarded: list[bytes], source: str
) -> None:
    gateway.sources = Sources(["10.0.0.0/8"])
    identify = Identify(build_app(gateway), nobody, None, gateway.denied)

    async def from_peer(scope: Scope, receive: Receive, send: Send) -> None:
        await identify({**scope, "client": peer}, receive, send)

    await ask(Guard(from_peer), "/metrics", headers=(HOST, *((b"x-forwarded-for", value) for value in forwarded)))
    assert denied(gateway) == [("unknown", "GET /metrics", source, "invalid_api_key")]


async def test_so_many_are_under_way_at_a_time(gateway: Gateway) -> None:
    async def user(head: RequestHead) -> Identity:
        return USER

    app = Gated()
    guarded = Guard(Identify(app, user, limits_of(concurrency_per_key=1)))
    first = asyncio.ensure_future(ask(guarded, "/x"))
    await until("it is under way", lambda: bool(app.paths))
    assert (await ask(guarded, "/x")).status == 429
    app.gate.set()
    assert (await first).status == 200
    assert (await ask(guarded, "/x")).status == 200


def test_the_route_sees_who_came() -> None:
    assert identity_of(Request({"type": "http", "state": {"identity": USER}})) is USER
    with pytest.raises(Unauthenticated):
        identity_of(Request({"type": "http", "state": {}}))
