"""The OpenAI routes: what is shown of models, what becomes of a body, what no replica ever hears of."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.types import ASGIApp

from firstkit.gateway.app import build_app
from firstkit.gateway.call import CHAT, Call
from firstkit.gateway.guard import Guard
from firstkit.gateway.state import Gateway
from unit.gateway.support import HOST, IDENTITY, Answer, Calls, ask, route

CHAT_PATH = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def app(gateway: Gateway) -> ASGIApp:
    return Guard(build_app(gateway))


async def post(app: ASGIApp, path: str, body: Any, *headers: tuple[bytes, bytes]) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await ask(app, path, "POST", raw, (HOST, *headers))


def taken(gateway: Gateway) -> list[Call]:
    assert isinstance(gateway.relay, Calls)
    return gateway.relay.taken


async def test_models_are_listed_with_what_first_knows(gateway: Gateway, app: ASGIApp) -> None:
    gateway.forecasts.hear({"m": {"status": "starting", "eta_s": 60, "reason": "loading", "clusters": {}}})
    listed = (await ask(app, "/v1/models")).json
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["m", "org/embedder"]
    model = listed["data"][0]
    assert (model["object"], model["owned_by"], type(model["created"])) == ("model", "first", int)
    first = model["first"]
    assert 59 < first.pop("eta_s") <= 60
    assert first == {
        "status": "starting",
        "reason": "loading",
        "clusters": [
            {"name": "here", "status": "offline", "eta_s": None, "reason": ""},
            {"name": "outside", "status": "offline", "eta_s": None, "reason": ""},
        ],
        "replicas_ready": 0,
        "context_length": None,
        "capabilities": ["chat", "completions"],
        "aliases": ["alias"],
        "description": "a model",
    }


async def test_a_model_that_runs(gateway: Gateway, app: ASGIApp) -> None:
    running = route()
    running.context_length = 8192
    gateway.table.add(running)
    first = (await ask(app, "/v1/models/m")).json["first"]
    assert (first["status"], first["eta_s"], first["replicas_ready"], first["context_length"]) == ("live", 0.0, 1, 8192)
    assert [cluster["status"] for cluster in first["clusters"]] == ["live", "offline"]


@pytest.mark.parametrize(("name", "canonical"), [("m", "m"), ("alias", "m"), ("org/embedder", "org/embedder")])
async def test_a_model_is_found_by_each_of_its_names(app: ASGIApp, name: str, canonical: str) -> None:
    assert (await ask(app, f"/v1/models/{name}")).json["id"] == canonical


async def test_an_unknown_model(app: ASGIApp) -> None:
    for answer in (await ask(app, "/v1/models/nope"), await post(app, CHAT_PATH, {**BODY, "model": "nope"})):
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
        assert answer.error["message"] == "The model 'nope' does not exist or you do not have access to it."


async def test_a_call_is_what_was_asked(gateway: Gateway, app: ASGIApp) -> None:
    body = {**BODY, "model": "alias", "stream": True, "stream_options": {"include_usage": True}, "seed": 1}
    headers = [(b"x-first-hold", b"0"), (b"x-first-max-wait", b"9"), (b"x-first-on-cold", b"fail")]
    assert (await post(app, CHAT_PATH, body, *headers)).status == 200
    [call] = taken(gateway)
    assert (call.api, call.model, call.stream, call.wants_usage) == (CHAT, "m", True, True)
    patience = (call.patience.hold_s, call.patience.max_wait_s, call.patience.fails_when_cold)
    assert patience == (0.0, 9.0, True)
    account = call.account
    assert (account.identity, account.model, account.endpoint) == (IDENTITY, "m", "chat/completions")
    assert account.prompt_bytes == len(json.dumps(body))
    assert bytes(call.body["seed"]) == b"1"
    assert call.idle_timeout_s == gateway.config.server.idle_timeout


@pytest.mark.parametrize(
    ("path", "body", "served"),
    [
        ("/v1/embeddings", {"model": "m", "input": "x"}, "/v1/chat/completions, /v1/completions"),
        (CHAT_PATH, {**BODY, "model": "org/embedder"}, "/v1/embeddings"),
    ],
)
async def test_an_endpoint_that_the_model_does_not_serve(
    gateway: Gateway, app: ASGIApp, path: str, body: Any, served: str
) -> None:
    answer = await post(app, path, body)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "unsupported_endpoint", "model")
    assert answer.error["message"].endswith(f"it serves: {served}.")
    assert taken(gateway) == []


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b'{"model": "m",}', "invalid_json", None),
        (b"[]", "invalid_request", None),
        ({"messages": [{}]}, "invalid_request", "model"),
        ({**BODY, "chat_template": "x"}, "unsupported_field", "chat_template"),
        ({**BODY, "n": 0}, "invalid_request", "n"),
    ],
)
async def test_a_wrong_body_reaches_nobody(
    gateway: Gateway, app: ASGIApp, body: Any, code: str, param: str | None
) -> None:
    answer = await post(app, CHAT_PATH, body)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, code, param)
    assert taken(gateway) == []


async def test_a_wrong_header_names_itself(app: ASGIApp) -> None:
    answer = await post(app, CHAT_PATH, BODY, (b"x-first-hold", b"soon"))
    assert (answer.status, answer.error["param"]) == (400, "x-first-hold")
    answer = await post(app, CHAT_PATH, BODY, (b"x-first-hold", b"1"), (b"x-first-hold", b"2"))
    assert (answer.status, answer.error["param"]) == (400, "x-first-hold")


async def test_the_content_type_does_not_matter(gateway: Gateway, app: ASGIApp) -> None:
    for kind in (b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=x"):
        assert (await post(app, CHAT_PATH, BODY, (b"content-type", kind))).status == 200
    assert len(taken(gateway)) == 3
