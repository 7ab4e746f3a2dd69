"""Nobody passes without an identity, and no identity passes without the scope of the route."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from starlette.responses import PlainTextResponse

from firstkit.auth.permissions import Identity, Scope
from firstkit.errors import StoreUnavailable, Unauthenticated
from firstkit.gateway.guard import Guard
from firstkit.gateway.identity import LOCAL_ADMIN, Identify, identity_of, local_admin, needs
from firstkit.gateway.request import RequestHead
from unit.gateway.support import ask

WHO = Identity("u", "user", "p", "prefix", frozenset({"inference"}))


def app(identify_head: Any) -> Guard:
    """Routes that show who came, behind the layers of the gateway."""
    routes = FastAPI(openapi_url=None)

    @routes.get("/health")
    @routes.get("/ready")
    @routes.get("/healthy")
    async def anybody() -> PlainTextResponse:
        return PlainTextResponse("open")

    @routes.get("/inference", dependencies=[needs(Scope.INFERENCE)])
    @routes.get("/admin", dependencies=[needs(Scope.ADMIN)])
    async def scoped() -> PlainTextResponse:
        return PlainTextResponse("in")

    return Guard(Identify(routes, identify_head))


async def nobody(head: RequestHead) -> Identity:
    raise Unauthenticated


async def user(head: RequestHead) -> Identity:
    return WHO


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_two_paths_are_open(path: str) -> None:
    assert (await ask(app(nobody), path, identity=None)).body == b"open"


@pytest.mark.parametrize(
    "path", ["/healthy", "/health/", "/HEALTH", "//health", "/ready/x", "/", "/inference", "/nope"]
)
async def test_no_other_path_is(path: str) -> None:
    answer = await ask(app(nobody), path, identity=None)
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")


async def test_an_authority_that_is_silent_is_no_refusal() -> None:
    async def silent(head: RequestHead) -> Identity:
        raise StoreUnavailable

    assert (await ask(app(silent), "/inference", identity=None)).status == 503


async def test_a_scope_opens_its_routes_only() -> None:
    assert (await ask(app(user), "/inference", identity=None)).body == b"in"
    answer = await ask(app(user), "/admin", identity=None)
    assert (answer.status, answer.error["code"]) == (403, "insufficient_scope")


async def test_an_identity_that_came_from_elsewhere_is_replaced() -> None:
    forged = Identity("root", "root", "p", "prefix", frozenset({"admin"}))
    assert (await ask(app(user), "/admin", identity=forged)).status == 403


async def test_a_route_without_the_middleware_lets_nobody_in() -> None:
    routes = FastAPI(openapi_url=None)
    routes.get("/x", dependencies=[needs(Scope.INFERENCE)])(lambda: "in")
    for forged in (None, "root", {"scopes": ["inference"]}):
        assert (await ask(Guard(routes), "/x", identity=forged)).status == 401  # type: ignore[arg-type]


async def test_whoever_opens_the_admin_socket_is_an_admin_but_asks_no_model() -> None:
    assert await local_admin(RequestHead("GET", "/", [])) is LOCAL_ADMIN
    assert LOCAL_ADMIN.scopes == {"metrics", "admin"}
    assert (await ask(app(local_admin), "/admin", identity=None)).body == b"in"
    assert (await ask(app(local_admin), "/inference", identity=None)).status == 403


async def test_the_route_sees_who_came() -> None:
    seen: list[Identity] = []
    routes = FastAPI(openapi_url=None)

    @routes.get("/x")
    async def who(request: Any) -> None: ...

    async def plain(scope: Any, receive: Any, send: Any) -> None:
        from starlette.requests import Request

        seen.append(identity_of(Request(scope)))
        await PlainTextResponse("")(scope, receive, send)

    await ask(Identify(plain, user), "/x", identity=None)
    assert seen == [WHO]
