"""Nobody passes without an identity, and no identity passes without the scope of the route."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.requests import Request

from firstkit.auth.permissions import Identity
from firstkit.errors import StoreUnavailable, Unauthenticated
from firstkit.gateway.app import build_app
from firstkit.gateway.guard import Guard
from firstkit.gateway.identity import LOCAL_ADMIN, Identify, identity_of, local_admin
from firstkit.gateway.request import RequestHead
from firstkit.gateway.state import Gateway
from unit.gateway.support import Answer, ask

USER = Identity("u", "user", "p", "prefix", frozenset({"inference"}))
ROUTES = {"inference": ["/v1/models", "/openapi.json", "/docs"], "metrics": ["/metrics"], "admin": ["/admin/status"]}


async def nobody(head: RequestHead) -> Identity:
    raise Unauthenticated


async def silent(head: RequestHead) -> Identity:
    raise StoreUnavailable


async def get(gateway: Gateway, path: str, identify_head: Any, forged: Any = None) -> Answer:
    """Come as whoever ``identify_head`` finds, with an identity in the scope that nobody should believe."""
    return await ask(Guard(Identify(build_app(gateway), identify_head)), path, identity=forged)


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_two_paths_are_open(gateway: Gateway, path: str) -> None:
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
    assert LOCAL_ADMIN.scopes == {"metrics", "admin"}
    assert (await get(gateway, "/admin/status", local_admin)).status == 200
    assert (await get(gateway, "/v1/models", local_admin)).status == 403


def test_the_route_sees_who_came() -> None:
    assert identity_of(Request({"type": "http", "state": {"identity": USER}})) is USER
    with pytest.raises(Unauthenticated):
        identity_of(Request({"type": "http", "state": {}}))
