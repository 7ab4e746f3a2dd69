"""The OpenAI routes: what is shown of models, what becomes of a body, what no replica ever hears of."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from starlette.types import ASGIApp

from firstkit.gateway.apis import APIS, CHAT
from firstkit.gateway.call import Call
from firstkit.gateway.openai import NotHere
from firstkit.gateway.relay import Relay
from firstkit.gateway.state import Gateway
from unit.gateway.support import (
    CHAT_BODY,
    CHAT_PATH,
    IDENTITY,
    Answer,
    Calls,
    Keys,
    Port,
    Served,
    ask,
    request,
    route,
    talk,
    talk_bytewise,
)
from unit.gateway.upstreams import until


@pytest.fixture
def port(gateway: Gateway) -> Port:
    """The public port of ``gateway``; what is asked of models is kept by ``Calls``."""
    gateway.authenticator = Keys()  # type: ignore[assignment]
    return Port(gateway)


async def post(port: Port, path: str, body: Any, *lines: str) -> Answer:
    [answer] = await talk(port, request(*lines, path=path, body=body))
    return answer


def taken(port: Port) -> list[Call]:
    relay: Relay = port.gateway.relay
    assert isinstance(relay, Calls)
    return relay.taken


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
            {"name": "here", "status": "offline", "eta_s": None, "position": None, "reason": ""},
            {"name": "outside", "status": "offline", "eta_s": None, "position": None, "reason": ""},
        ],
        "replicas_ready": 0,
        "context_length": None,
        "capabilities": ["chat", "completions", "count_tokens", "messages", "responses"],
        "aliases": ["alias"],
        "description": "a model",
        "privacy": {
            "stores_prompts": False,
            "kept_s": 0.0,
            "leaves": True,
            "rule": "Prompts and answers are not stored; who asked, when, and how many tokens it took, is. "
            "Requests may go to a service that others run, by its own rules.",
        },
    }


async def test_the_rule_of_privacy_is_that_which_is_in_force(gateway: Gateway, app: ASGIApp) -> None:
    embedder = (await ask(app, "/v1/models/org/embedder")).json["first"]["privacy"]
    assert (embedder["leaves"], embedder["stores_prompts"]) == (False, False)
    assert embedder["rule"] == "Prompts and answers are not stored; who asked, when, and how many tokens it took, is."
    gateway.stored.keep_s = 3600.0
    told = (await ask(app, "/v1/models/m")).json["first"]["privacy"]
    assert (told["kept_s"], told["stores_prompts"]) == (3600.0, True)
    assert "kept for 3600 s with their prompts, unless 'store' is false" in told["rule"]


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


async def test_an_unknown_model(app: ASGIApp, port: Port) -> None:
    for answer in (await ask(app, "/v1/models/nope"), await post(port, CHAT_PATH, {**CHAT_BODY, "model": "nope"})):
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
        assert answer.error["message"] == "The model 'nope' does not exist or you do not have access to it."


async def test_a_call_is_what_was_asked(port: Port) -> None:
    body = {**CHAT_BODY, "model": "alias", "stream": True, "stream_options": {"include_usage": True}, "seed": 1}
    lines = ["x-first-hold: 0", "x-first-max-wait: 9", "x-first-on-cold: fail"]
    assert (await post(port, CHAT_PATH, body, *lines)).status == 200
    [call] = taken(port)
    assert (call.api, call.model, call.stream, call.wants_usage) == (CHAT, "m", True, True)
    patience = (call.patience.hold_s, call.patience.max_wait_s, call.patience.fails_when_cold)
    assert patience == (0.0, 9.0, True)
    account = call.account
    assert (account.identity, account.model, account.endpoint) == (IDENTITY, "m", "chat/completions")
    assert account.prompt_bytes == len(json.dumps(body))
    assert bytes(call.body["seed"]) == b"1"
    server = port.gateway.config.server
    assert (call.idle_timeout_s, call.timeout_s) == (server.idle_timeout, server.total_timeout)


async def test_the_answer_has_the_id_by_which_it_is_accounted(port: Port) -> None:
    answer = await post(port, CHAT_PATH, CHAT_BODY)
    assert answer.headers[b"x-request-id"].decode() == taken(port)[0].account.request_id


async def test_who_says_nothing_waits_as_long_as_is_usual(port: Port) -> None:
    await post(port, CHAT_PATH, CHAT_BODY)
    [call] = taken(port)
    server = port.gateway.config.server
    assert (call.patience.hold_s, call.patience.max_wait_s) == (server.hold, server.max_wait)
    assert not call.patience.fails_when_cold


@pytest.mark.parametrize(
    ("path", "body", "served"),
    [
        (
            "/v1/embeddings",
            {"model": "m", "input": "x"},
            f"{CHAT_PATH}, /v1/completions, /v1/messages, /v1/messages/count_tokens, /v1/responses",
        ),
        (CHAT_PATH, {**CHAT_BODY, "model": "org/embedder"}, "/v1/embeddings"),
    ],
)
async def test_an_endpoint_that_the_model_does_not_serve(port: Port, path: str, body: Any, served: str) -> None:
    answer = await post(port, path, body)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "unsupported_endpoint", "model")
    assert answer.error["message"].endswith(f"it serves: {served}.")
    assert taken(port) == []


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b'{"model": "m",}', "invalid_json", None),
        (b"[]", "invalid_request", None),
        ({"messages": [{}]}, "invalid_request", "model"),
        ({**CHAT_BODY, "chat_template": "x"}, "unsupported_field", "chat_template"),
        ({**CHAT_BODY, "n": 0}, "invalid_request", "n"),
    ],
)
async def test_a_wrong_body_reaches_nobody(port: Port, body: Any, code: str, param: str | None) -> None:
    answer = await post(port, CHAT_PATH, body)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, code, param)
    assert taken(port) == []


async def test_a_wrong_header_names_itself(port: Port) -> None:
    answer = await post(port, CHAT_PATH, CHAT_BODY, "x-first-hold: soon")
    assert (answer.status, answer.error["param"]) == (400, "x-first-hold")
    answer = await post(port, CHAT_PATH, CHAT_BODY, "x-first-hold: 1", "x-first-hold: 2")
    assert (answer.status, answer.error["param"]) == (400, "x-first-hold")


# -- the routes that are only there for the schema ---------------------------------------------------------------------

STUBS = sorted([*APIS, *(path.replace("/v1/", "/v1/clusters/here/") for path in APIS)])


def targets(path: str) -> list[str]:
    """Ways to write ``path`` that lead to it, or that a sloppy router would take for it."""
    last = path.rpartition("/")[2]
    return [
        path,
        f"{path}?x=y",
        f"{path}?",
        f"{path}?x=/../y%0a",
        f"{path}#x",
        path.replace("c", "%63").replace("e", "%65"),
        path.replace("/v1", "/%76%31"),
        path.replace(last, last.replace("s", "%73")),
        f"http://localhost{path}",
        f"https://other:1{path}?x=y",
        f"HTTP://LOCALHOST{path}",
        path.replace("/v1/", "/v1%2f"),
        f"{path}/",
        f"/{path}",
        f"/.{path}",
        f"/x/..{path}",
        f"{path}%00",
        f"{path}%20",
        f"{path};x=y",
        path.upper(),
    ]


TARGETS = [(path, target) for path in STUBS for target in targets(path)]


async def never_a_stub(served: Served, data: bytes, caplog: pytest.LogCaptureFixture, bytewise: bool = False) -> Answer:
    with caplog.at_level(logging.ERROR):
        [answer] = await (talk_bytewise if bytewise else talk)(served.port, data)
    assert answer.status < 500
    assert caplog.records == []
    return answer


@pytest.mark.parametrize(("path", "target"), TARGETS)
async def test_no_request_reaches_a_stub(
    served: Served, caplog: pytest.LogCaptureFixture, path: str, target: str
) -> None:
    """What is written otherwise is the same request, or is not there."""
    data = request(path=target, body=b"{")
    answer = await never_a_stub(served, data, caplog)
    again = await never_a_stub(served, data, caplog)  # now that it has been seen before
    assert (answer.status, answer.error) == (again.status, again.error)
    is_hot = answer.error["code"] == "invalid_json"
    assert is_hot or answer.status in (400, 404)
    if "%2f" not in target and target.count(path) == 1 and target.partition(path)[2][:1] in ("", "?"):
        assert is_hot == (target.partition(path)[0] in ("", "http://localhost", "https://other:1", "HTTP://LOCALHOST"))


@pytest.mark.parametrize("path", STUBS)
async def test_nor_does_one_with_an_escaped_line_end(
    served: Served, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    assert (await never_a_stub(served, request(path=f"{path}%0a"), caplog)).status == 400


@pytest.mark.parametrize("path", STUBS)
async def test_nor_byte_by_byte(served: Served, caplog: pytest.LogCaptureFixture, path: str) -> None:
    assert (await never_a_stub(served, request(path=path, body=b"{"), caplog, bytewise=True)).status == 400


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", STUBS)
async def test_nor_with_another_method(
    served: Served, caplog: pytest.LogCaptureFixture, path: str, method: str
) -> None:
    with caplog.at_level(logging.ERROR):
        visit = served.connect()
        visit.say(request("connection: close", "content-length: 0", path=path, method=method, body=None))
        await until("the answer", lambda: visit.is_closed)
    assert visit.transport.written.startswith(b"HTTP/1.1 405 ")
    assert b"\r\nallow: POST\r\n" in visit.transport.written
    assert caplog.records == []


@pytest.mark.parametrize("path", STUBS)
async def test_nor_by_the_admin_socket(gateway: Gateway, path: str) -> None:
    """Its door has no hot routes, but whoever comes by it has no scope for these either."""
    [answer] = await talk(Port(gateway, is_admin=True), request(path=path, key=None))
    assert (answer.status, answer.error["code"]) == (403, "insufficient_scope")


async def test_a_stub_that_was_reached_would_say_so(app: ASGIApp, caplog: pytest.LogCaptureFixture) -> None:
    for path in STUBS:
        assert (await ask(app, path, "POST")).status == 500
    assert {type(record.exc_info[1]) for record in caplog.records if record.exc_info} == {NotHere}
