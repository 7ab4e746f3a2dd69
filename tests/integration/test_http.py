"""A gateway as clients meet it: a real process, raw sockets, and external services of every temper behind it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from docs import source
from docs.markdown import Page
from firstkit.auth import api_keys
from firstkit.store.tables import usage
from firstkit.testing.background import Background
from firstkit.testing.fake_engine import BEHAVIOURS, GarbageEngine, QuickEngine, parse
from firstkit.testing.tiny_http import Request
from lab import Lab, wait_for
from unit.gateway.support import error_in

UPSTREAM_KEY = "canary-upstream-key"
CHAT = "/v1/chat/completions"
MESSAGES: Any = [{"role": "user", "content": "two words"}]
LARGEST = 32 * 1024**2


class Fakes:
    """Fake engines as models of a configuration, and the requests that they got."""

    def __init__(self, background: Background) -> None:
        self.engines: dict[str, QuickEngine] = {}
        self.requests: list[Request] = []
        self._background = background

    def add(self, name: str, behaviour: str, **options: object) -> dict[str, Any]:
        """Start a fake; returns the model that it serves, for the configuration."""
        argv = ["--behaviour", behaviour, "--port", "0", "--model", f"their-{name}", "--load-delay", "0"]
        for option, value in options.items():
            argv += [f"--{option.replace('_', '-')}", str(value)]
        engine = self.engines[name] = BEHAVIOURS[behaviour](parse(argv))

        async def handle(request: Request, connection: Any) -> None:
            self.requests.append(request)
            await engine.handle(request, connection)

        url = self._background.serve(handle)
        key = {"api_key_env": "CANARY_KEY"} if engine.key else {}
        spec = {"kind": "external", "url": url, "model": f"their-{name}", **key}
        return {"deployments": [{"cluster": "outside", "engine": spec}]}


@pytest.fixture(scope="module")
def fakes() -> Iterator[Fakes]:
    with Background() as background:
        yield Fakes(background)


@pytest.fixture(scope="module")
def lab(fakes: Fakes) -> Iterator[Lab]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CANARY_KEY", UPSTREAM_KEY)
        models = {
            "m": fakes.add("m", "QuickEngine", tokens=3, key_env="CANARY_KEY") | {"aliases": ["alias"]},
            "slow": fakes.add("slow", "SlowEngine", tokens=10_000, token_delay=0.01),
            "silent": fakes.add("silent", "SilentEngine"),
            "stalls": fakes.add("stalls", "StallingEngine", after=2),
            "nobody": {"deployments": [external("http://127.0.0.1:1/v1")]},
            "locked": fakes.add("locked", "QuickEngine", key_env="CANARY_KEY"),
        }
        models["locked"]["deployments"][0]["engine"].pop("api_key_env")
        for variant in GarbageEngine.variants:
            models[variant] = fakes.add(variant, "GarbageEngine", variant=variant, after=2)
        lab = Lab.make(models, idle_timeout=5, hold=60)
        try:
            lab.start()
            yield lab
        finally:
            lab.close()


def external(url: str) -> dict[str, Any]:
    return {"cluster": "outside", "engine": {"kind": "external", "url": url}}


# -- clients -----------------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return error_in(self.headers["content-type"], self.json)

    @property
    def events(self) -> list[Any]:
        """What a stream said, ``[DONE]`` as text."""
        assert self.headers["content-type"].startswith("text/event-stream")
        assert self.body.endswith(b"\n\n")
        said = [event[6:] for event in self.body.split(b"\n\n") if event.startswith(b"data: ")]
        return [event.decode() if event == b"[DONE]" else json.loads(event) for event in said]


def ask(lab: Lab, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
    """One request with the lab's key, unless ``headers`` say otherwise."""
    connection = http.client.HTTPConnection("127.0.0.1", lab.port, timeout=30)
    raw = json.dumps(body).encode() if isinstance(body, dict) else body
    with contextlib.closing(connection):
        given = {"authorization": f"Bearer {lab.key}"} if headers is None else headers
        connection.request(method, path, raw, {"content-type": "application/json"} | given)
        answer = connection.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())


def chat(lab: Lab, model: str, **fields: Any) -> Answer:
    return ask(lab, "POST", CHAT, {"model": model, "messages": MESSAGES, **fields})


class Raw:
    """A connection on which bytes are sent as they are, and answers read one after the other."""

    def __init__(self, lab: Lab) -> None:
        self.socket = socket.create_connection(("127.0.0.1", lab.port), timeout=30)
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *exc: object) -> None:
        self.file.close()
        self.socket.close()

    def answer(self) -> Answer:
        """The next answer; raises EOFError when it does not come whole."""
        line = self.line()
        headers = {}
        while header := self.line():
            name, _, value = header.partition(": ")
            headers[name.lower()] = value
        length = headers.get("content-length")
        body = b"".join(self.chunks()) if length is None else self.exactly(int(length))
        return Answer(int(line.split()[1]), headers, body)

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.line(), 16):
            yield self.exactly(size)
            self.line()
        self.line()

    def exactly(self, size: int) -> bytes:
        data = self.file.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def line(self) -> str:
        return self.until(b"\r\n").decode("latin-1").rstrip("\r\n")

    def until(self, text: bytes) -> bytes:
        """The first line that comes with ``text`` in it; raises EOFError when none does."""
        while text not in (line := self.file.readline()):
            if not line:
                raise EOFError
        return line


def head(lab: Lab, method: str, path: str, *lines: str, host: str = "host: x\r\n") -> bytes:
    more = "".join(f"{line}\r\n" for line in (*lines, "content-type: application/json"))
    return f"{method} {path} HTTP/1.1\r\n{host}authorization: Bearer {lab.key}\r\n{more}\r\n".encode("latin-1")


def raw(lab: Lab, data: bytes) -> Answer:
    with Raw(lab) as connection:
        connection.socket.sendall(data)
        return connection.answer()


def usage_of(lab: Lab, answer: Answer) -> Any:
    """The row of the ledger for an answer, once it is there."""
    request_id = answer.headers["x-request-id"]
    return wait_for(
        "the usage is in the ledger", lambda: [r for r in lab.rows(usage) if r["request_id"] == request_id]
    )[0]


# -- who comes in ------------------------------------------------------------------------------------------------------

ROUTES = sorted(route for route, scope in source.routes().items() if scope != "open")
UNKNOWN = ["GET /", "GET /nope", "POST /v1/nope", "GET /health/", "GET //health", "PUT /v1/models", "GET /v1/../health"]


@pytest.mark.parametrize("route", [*ROUTES, *UNKNOWN])
def test_without_a_key_every_path_is_a_401(lab: Lab, route: str) -> None:
    method, path = re.sub(r"{\w+}", "x", route).split()
    for headers in ({}, {"authorization": "Bearer first-wrong"}, {"x-api-key": lab.key[:-1]}):
        answer = ask(lab, method, path, headers=headers)
        assert answer.status == 401
        code = "unauthorized" if path.startswith("/resource_server/") else "invalid_api_key"
        assert (answer.error["type"], answer.error["code"]) == ("authentication_error", code)
        assert answer.headers["www-authenticate"].startswith("Basic")


def test_health_and_ready_are_open(lab: Lab) -> None:
    assert ask(lab, "GET", "/health", headers={}).json == {"status": "ok"}
    assert ask(lab, "GET", "/ready", headers={}).json == {"status": "ready"}


def test_a_key_comes_by_one_of_three_doors(lab: Lab) -> None:
    basic = base64.b64encode(f"anybody:{lab.key}".encode()).decode()
    doors = [{"authorization": f"Bearer {lab.key}"}, {"x-api-key": lab.key}, {"authorization": f"Basic {basic}"}]
    assert [ask(lab, "GET", "/v1/models", headers=door).status for door in doors] == [200, 200, 200]


def test_a_revoked_key_is_refused_within_six_seconds(lab: Lab) -> None:
    key = {"x-api-key": lab.make_key("revoked", ("inference",))}
    assert ask(lab, "GET", "/v1/models", headers=key).status == 200

    async def revoke() -> None:
        async with lab.database() as db:
            await api_keys.revoke(db, "revoked", actor="test")

    asyncio.run(revoke())
    wait_for("it is refused", lambda: ask(lab, "GET", "/v1/models", headers=key).status == 401, limit_s=6)


def test_an_expired_key_is_refused(lab: Lab) -> None:
    async def create(name: str, expires_in_s: float) -> str:
        async with lab.database() as db:
            return (await api_keys.create(db, name, user="tester", expires_in_s=expires_in_s))[0]

    long, short = asyncio.run(create("long", 3600)), asyncio.run(create("short", 0.001))
    wait_for("it is refused", lambda: ask(lab, "GET", "/v1/models", headers={"x-api-key": short}).status == 401, 6)
    assert ask(lab, "GET", "/v1/models", headers={"x-api-key": long}).status == 200


def test_a_scope_opens_no_other_route(lab: Lab) -> None:
    key = {"x-api-key": lab.make_key("metrics only", ("metrics",))}
    assert ask(lab, "GET", "/metrics", headers=key).status == 200
    for path in ("/v1/models", "/openapi.json", "/docs", "/admin/status"):
        assert ask(lab, "GET", path, headers=key).error["code"] == "insufficient_scope"


# -- pages and metrics -------------------------------------------------------------------------------------------------


def test_the_api_page_needs_no_network(lab: Lab) -> None:
    page = ask(lab, "GET", "/docs").body.decode()
    assert "://" not in page
    for link in re.findall(r"(?:src|href)=[\"']([^\"']+)", page):
        assert ask(lab, "GET", f"/{link}").status == 200, link
    assert CHAT in ask(lab, "GET", "/openapi.json").json["paths"]


def test_metrics_are_those_of_the_reference(lab: Lab) -> None:
    chat(lab, "m")
    answer = ask(lab, "GET", "/metrics")
    families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
    documented = Page("docs/reference/metrics.md").rows()
    for name, cells in documented.items():
        family = families[name.removesuffix("_total")]
        assert family.type == cells[1], name
    assert {name.removesuffix("_total") for name in documented} == families.keys()
    assert any(sample.labels.get("model") == "m" for sample in families["first_requests"].samples)
    assert "two words" not in answer.body.decode()


@pytest.mark.parametrize("path", ["/v1/models/", "/docs/", "/health/", "/v1/", "/nope", "/docs/../app.py"])
def test_what_is_not_there_is_a_404_and_no_redirect(lab: Lab, path: str) -> None:
    answer = ask(lab, "GET", path)
    assert (answer.status, answer.error["type"]) == (404, "not_found_error")
    assert "location" not in answer.headers


def test_a_method_that_a_path_does_not_take(lab: Lab) -> None:
    answer = ask(lab, "GET", CHAT)
    assert (answer.status, answer.error["code"], answer.headers["allow"]) == (405, "method_not_allowed", "POST")


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["", "host: a\r\nhost: a\r\n", "host: a\r\nhost: b\r\n", "host: localhost/x?\r\n"])
def test_exactly_one_valid_host(lab: Lab, host: str) -> None:
    answer = raw(lab, head(lab, "GET", "/health", host=host))
    assert (answer.status, answer.error["param"]) == (400, "host")


@pytest.mark.parametrize(
    "lines",
    [
        ["content-length: 2", "transfer-encoding: chunked"],
        ["content-length: 2", "content-length: 3"],
        ["content-length: +2"],
        ["transfer-encoding: xchunked"],
        ["x : y"],
    ],
)
def test_what_parsers_disagree_about(lab: Lab, lines: list[str]) -> None:
    assert raw(lab, head(lab, "POST", CHAT, *lines) + b"{}").status == 400


def test_headers_without_end(lab: Lab) -> None:
    many = raw(lab, head(lab, "GET", "/health", *[f"x-{i}: y" for i in range(10_000)]))
    large = raw(lab, head(lab, "GET", "/health", "x: " + "y" * 256 * 1024))
    assert (many.status, large.status) == (431, 431)
    assert many.error["code"] == large.error["code"] == "headers_too_large"


def test_a_body_that_says_that_it_is_too_large_is_not_waited_for(lab: Lab) -> None:
    answer = raw(lab, head(lab, "POST", CHAT, f"content-length: {LARGEST + 1}"))
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")


def test_a_body_that_grows_too_large_is_cut_off_as_it_arrives(lab: Lab) -> None:
    piece = b"100000\r\n" + b" " * 1024**2 + b"\r\n"
    with Raw(lab) as connection:
        connection.socket.sendall(head(lab, "POST", CHAT, "transfer-encoding: chunked"))
        for _ in range(LARGEST // 1024**2):
            connection.socket.sendall(piece)
        connection.socket.sendall(b"1\r\nx\r\n")  # and its end never comes
        answer = connection.answer()
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")


def test_a_body_up_to_the_limit_is_read(lab: Lab) -> None:
    body = json.dumps({"model": "m", "messages": MESSAGES, "filler": ""}).encode()
    filled = body.replace(b'"filler": ""', b'"filler": "%s"' % (b"x" * (LARGEST - len(body))))
    assert len(filled) == LARGEST
    assert ask(lab, "POST", CHAT, filled).status == 200


def test_a_compressed_body(lab: Lab) -> None:
    answer = raw(lab, head(lab, "POST", CHAT, "content-encoding: gzip", "content-length: 2") + b"{}")
    assert (answer.status, answer.error["param"]) == (400, "content-encoding")


def test_wrong_json_names_the_byte(lab: Lab) -> None:
    answer = ask(lab, "POST", CHAT, b'{"model": "m",}')
    assert (answer.status, answer.error["code"]) == (400, "invalid_json")
    assert "byte 14" in answer.error["message"]


def test_an_unknown_model(lab: Lab) -> None:
    answer = chat(lab, "gpt-99")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")


# -- connections -------------------------------------------------------------------------------------------------------


def test_two_requests_at_once_on_one_connection_are_answered_in_order(lab: Lab) -> None:
    bodies = [
        json.dumps({"model": "m", "messages": MESSAGES, "stream": stream, "max_tokens": tokens}).encode()
        for stream, tokens in ((True, 2), (False, 1))
    ]
    requests = [head(lab, "POST", CHAT, f"content-length: {len(body)}") + body for body in bodies]
    with Raw(lab) as connection:
        connection.socket.sendall(b"".join(requests) + head(lab, "GET", "/health"))
        stream, plain, health = (connection.answer() for _ in range(3))
    assert stream.events[-1] == "[DONE]"
    assert plain.json["choices"][0]["message"]["content"] == "word0 "
    assert health.json == {"status": "ok"}


def test_a_connection_goes_on_after_an_error(lab: Lab) -> None:
    with Raw(lab) as connection:
        for _ in range(2):
            connection.socket.sendall(head(lab, "GET", "/nope"))
            assert connection.answer().status == 404


# -- external services -------------------------------------------------------------------------------------------------


def test_a_chat(lab: Lab) -> None:
    answer = chat(lab, "alias")
    assert answer.status == 200
    assert answer.json["choices"][0]["message"]["content"] == "word0 word1 word2 "
    row = usage_of(lab, answer)
    assert (row["model"], row["endpoint"], row["cluster"], row["outcome"]) == (
        "m",
        "chat/completions",
        "outside",
        "complete",
    )
    assert (row["prompt_tokens"], row["completion_tokens"], row["estimated"]) == (2, 3, False)


@pytest.mark.parametrize("wants_usage", [False, True])
def test_a_stream(lab: Lab, wants_usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if wants_usage else {}
    answer = chat(lab, "m", stream=True, **options)
    *chunks, done = answer.events
    assert done == "[DONE]"
    said = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
    assert "".join(said) == "word0 word1 word2 "
    assert any("usage" in chunk for chunk in chunks) == wants_usage
    row = usage_of(lab, answer)
    assert (row["prompt_tokens"], row["completion_tokens"], row["estimated"]) == (2, 3, False)
    assert row["ttft_s"] > 0


def test_a_completion_and_an_embedding(lab: Lab) -> None:
    answer = ask(lab, "POST", "/v1/completions", {"model": "m", "prompt": "one", "max_tokens": 1})
    assert answer.json["choices"][0]["text"] == "word0 "
    answer = ask(lab, "POST", "/v1/embeddings", {"model": "m", "input": ["a b", "c"]})
    assert [row["embedding"] for row in answer.json["data"]] == [[0.6, 0.8]] * 2
    row = usage_of(lab, answer)
    assert (row["endpoint"], row["prompt_tokens"], row["completion_tokens"]) == ("embeddings", 3, 0)


def test_no_key_crosses_the_gateway(lab: Lab, fakes: Fakes) -> None:
    fakes.requests.clear()
    mine = {
        "authorization": f"Bearer {lab.key}",
        "x-api-key": lab.key,
        "cookie": f"session={lab.key}",
        "x-first-hold": "1",
    }
    answer = ask(lab, "POST", CHAT, {"model": "m", "messages": MESSAGES, "user": "ada"}, mine)
    [request] = fakes.requests
    assert request.headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert lab.key not in str(request.headers)
    assert "cookie" not in request.headers
    assert request.headers["x-request-id"] == answer.headers["x-request-id"]
    assert request.json()["model"] == "their-m"
    assert request.json()["user"] == "ada"
    refused = chat(lab, "locked")
    assert (refused.status, refused.error["code"]) == (502, "engine_failed")
    for told in (answer, refused):
        assert UPSTREAM_KEY not in str(told)
    assert UPSTREAM_KEY not in lab.logs()
    assert lab.key not in lab.logs()


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_of_the_engine_keeps_its_sentence(lab: Lab, stream: bool) -> None:
    answer = ask(lab, "POST", "/v1/completions", {"model": "m", "prompt": "", "stream": stream})
    assert (answer.status, answer.error["code"]) == (400, "engine_refused")
    assert answer.error["message"] == "messages or prompt is missing"
    row = usage_of(lab, answer)
    assert (row["outcome"], row["prompt_tokens"], row["completion_tokens"]) == ("rejected", 0, 0)


def test_a_client_that_hangs_up_is_heard_by_the_engine(lab: Lab, fakes: Fakes) -> None:
    stats = fakes.engines["slow"].stats
    before = stats.aborted
    body = json.dumps({"model": "slow", "messages": MESSAGES, "stream": True}).encode()
    with Raw(lab) as connection:
        connection.socket.sendall(head(lab, "POST", CHAT, f"content-length: {len(body)}") + body)
        connection.until(b"word0")
    wait_for("the engine heard it", lambda: stats.aborted == before + 1)
    row = wait_for("it is accounted", lambda: [r for r in lab.rows(usage) if r["model"] == "slow"])[-1]
    assert row["outcome"] == "cancelled"
    assert row["completion_tokens"] >= 1


# -- endings -----------------------------------------------------------------------------------------------------------


def assert_broken(answer: Answer, code: str) -> None:
    """It ended as an error before the stream, or in it as its last event, and never as if it were whole."""
    if answer.status == 200:
        assert "[DONE]" not in answer.events
        error = answer.events[-1]["error"]
        assert error.keys() >= {"message", "type", "param", "code"}
        assert [event for event in answer.events if "error" in event] == [answer.events[-1]]
    else:
        error = answer.error
    assert error["code"] == code


@pytest.mark.parametrize("variant", GarbageEngine.variants)
def test_garbage_is_an_error_and_never_an_end(lab: Lab, variant: str) -> None:
    answer = chat(lab, variant, stream=True)
    assert_broken(answer, "engine_failed")
    row = usage_of(lab, answer)
    assert row["outcome"] == "failed"
    chunks = [event for event in answer.events if "choices" in event] if answer.status == 200 else []
    said = sum("content" in chunk["choices"][0]["delta"] for chunk in chunks)
    assert row["completion_tokens"] == said, "what was delivered is charged"
    plain = chat(lab, variant)
    assert (plain.status, plain.error["code"]) == (502, "engine_failed")


@pytest.mark.parametrize(("model", "delivered"), [("stalls", 2), ("silent", 0)])
def test_silence_is_an_error(lab: Lab, model: str, delivered: int) -> None:
    answer = chat(lab, model, stream=True)
    assert answer.status == (200 if delivered else 504)
    assert_broken(answer, "engine_timeout")
    row = usage_of(lab, answer)
    assert (row["outcome"], row["completion_tokens"]) == ("timeout", delivered)
    assert chat(lab, model).status == 504


def test_nobody_there(lab: Lab) -> None:
    answer = chat(lab, "nobody", stream=True)
    assert (answer.status, answer.error["code"]) == (502, "engine_failed")
    assert "127.0.0.1" not in answer.error["message"]


@pytest.mark.parametrize("model", ["stalls", "no-done", "no-finish", "half-event", "error-object"])
def test_the_openai_package_notices_every_broken_stream(lab: Lab, model: str) -> None:
    """Among them shapes that it takes for a good end when they come as engines send them."""
    with openai.OpenAI(base_url=lab.base_url, api_key=lab.key, max_retries=0) as client:
        stream = iter(client.chat.completions.create(model=model, messages=MESSAGES, stream=True))
        assert "word0" in str(next(stream))
        with pytest.raises(openai.APIError):
            list(stream)


def test_a_gateway_that_dies_resets_and_accounts_later(lab: Lab) -> None:
    body = json.dumps({"model": "slow", "messages": MESSAGES, "stream": True}).encode()
    with Raw(lab) as connection:
        connection.socket.sendall(head(lab, "POST", CHAT, f"content-length: {len(body)}") + body)
        request_id = connection.until(b"x-request-id").split()[1].decode()
        connection.until(b"word0")
        lab.kill_gateway()
        rest = b""
        with contextlib.suppress(ConnectionError):
            rest = connection.file.read()
        assert not rest.endswith(b"0\r\n\r\n"), "HTTP says that this is not the end"
        assert b"[DONE]" not in rest
    lab.start_gateway()
    row = usage_of(lab, Answer(200, {"x-request-id": request_id}, b""))
    assert (row["outcome"], row["estimated"]) == ("lost", True)
    assert chat(lab, "m").status == 200
