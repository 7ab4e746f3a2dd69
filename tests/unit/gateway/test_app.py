"""The application: every answer in the agreed shape, and an API page that needs no network."""

from __future__ import annotations

import re
from typing import Any

import pytest
from starlette.types import ASGIApp

from firstkit.gateway.state import Gateway
from unit.gateway.support import ask


@pytest.mark.parametrize("path", ["/", "/nope", "/v1", "/v1/", "/v1/models/", "/v1/chat", "/docs/nope.js", "/health/"])
async def test_nothing_there(app: ASGIApp, path: str) -> None:
    answer = await ask(app, path)
    assert answer.status == 404, "and no redirect"
    assert answer.error["code"] in ("not_found", "model_not_found")
    assert answer.error["type"] == "not_found_error"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/v1/chat/completions", b"POST"), ("POST", "/v1/models", b"GET"), ("DELETE", "/health", b"GET")],
)
async def test_a_method_that_the_path_does_not_take(app: ASGIApp, method: str, path: str, allowed: bytes) -> None:
    answer = await ask(app, path, method)
    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
    assert answer.headers[b"allow"] == allowed


@pytest.mark.parametrize("lines", ["0", "1001", "x", ""])
async def test_a_wrong_value_in_the_query_names_its_parameter(app: ASGIApp, lines: str) -> None:
    answer = await ask(app, f"/admin/replicas/rep-1/log?lines={lines}")
    assert (answer.status, answer.error["param"], answer.error["type"]) == (400, "lines", "invalid_request_error")
    assert "lines" in answer.error["message"]


async def test_a_fault_of_ours_has_our_shape_and_not_its_text(
    gateway: Gateway, app: ASGIApp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(name: str) -> Any:
        raise ValueError("canary")

    monkeypatch.setattr(gateway.forecasts, "outlook", broken)
    answer = await ask(app, "/v1/models")
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert b"canary" not in answer.body
    assert len(caplog.records) == 1, "it is logged once"


async def test_the_api_page_fetches_nothing_from_a_network(app: ASGIApp) -> None:
    page = (await ask(app, "/docs")).body.decode()
    links = re.findall(r"(?:src|href)=[\"']([^\"']+)", page)
    assert len(links) >= 3
    assert "://" not in page
    for link in links:
        assert (await ask(app, f"/{link}")).status == 200, link
    assert "url: 'openapi.json'" in page


@pytest.mark.parametrize("name", ["..%2Fapp.py", "../app.py", "%2e%2e/app.py", "..", "__init__.py"])
async def test_the_files_of_the_page_are_all_that_it_serves(app: ASGIApp, name: str) -> None:
    assert (await ask(app, f"/docs/{name}")).status == 404


async def test_the_api_describes_every_route_of_it(app: ASGIApp) -> None:
    described = (await ask(app, "/openapi.json")).json
    assert {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models"} <= set(described["paths"])
    body = described["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["model", "messages"]
    assert "servers" not in described


async def test_the_api_says_how_to_authenticate(app: ASGIApp) -> None:
    document = (await ask(app, "/openapi.json")).json
    assert document["security"] == [{"key": []}]
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
