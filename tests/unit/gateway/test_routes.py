"""Every route names its scope; only those of health and status are open."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.routing import APIRoute

from firstkit.gateway.app import routes
from firstkit.gateway.identity import OPEN_PATHS, needs

SCOPE_CHECK = needs.__qualname__


def all_routes() -> list[APIRoute]:
    return list(_flat(routes().routes))


def _flat(routes: Any) -> Any:
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        else:
            assert hasattr(route, "original_router"), f"{route} is of a kind whose scope nobody checks"
            yield from _flat(route.original_router.routes)


def scopes(route: APIRoute) -> list[str]:
    found = [dependency.call.__qualname__ for dependency in route.dependant.dependencies if dependency.call]
    return [name for name in found if name.startswith(SCOPE_CHECK)]


def test_open_routes_are_those_that_need_no_key() -> None:
    found = all_routes()
    assert len(found) >= 10
    unscoped = {route.path for route in found if not scopes(route)}
    assert unscoped == OPEN_PATHS


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models"])
def test_api_is_there(path: str) -> None:
    assert path in {route.path for route in all_routes()}
