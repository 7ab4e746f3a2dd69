"""What is refused before any route, how bodies of ASGI routes are counted, how errors look."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from firstkit.errors import (
    ApiError,
    HeadersTooLarge,
    HttpVersionRefused,
    InvalidRequest,
    ModelNotReady,
    Overloaded,
    RateLimited,
    TooLarge,
    Unauthenticated,
)
from firstkit.gateway.guard import CountedBody, Guard, error_head_and_body
from firstkit.gateway.request import (
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    SMALL_BODY_BYTES,
    RequestHead,
    guard,
)
from unit.gateway.support import HOST, ask

TEN = (b"content-length", b"10")
CHUNKED = (b"transfer-encoding", b"chunked")


class App:
    """Reads the whole body, then answers or raises."""

    def __init__(self, fault: Exception | None = None, starts: bool = False) -> None:
        self.fault = fault
        self.starts = starts
        self.got: bytes | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.got = b""
        while True:
            message = await receive()
            self.got += message.get("body", b"")
            if not message.get("more_body"):
                break
        if self.starts or self.fault is None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        if self.fault is not None:
            raise self.fault
        await send({"type": "http.response.body", "body": b"fine"})


REFUSED = [
    ("no host", (), 400, "host"),
    ("two hosts", (HOST, HOST), 400, "host"),
    ("two different hosts", (HOST, (b"host", b"other")), 400, "host"),
    ("a host with a path", ((b"host", b"localhost/x?"),), 400, "host"),
    ("a host with a user", ((b"host", b"a@b"),), 400, "host"),
    ("a host with a line break", ((b"host", b"localhost\n"),), 400, "host"),
    ("a host in Latin-1", ((b"host", b"\xe4"),), 400, "host"),
    ("two equal lengths", (HOST, TEN, TEN), 400, "content-length"),
    ("a length and chunks", (HOST, TEN, (b"transfer-encoding", b"chunked")), 400, "content-length"),
    ("a length that is none", (HOST, (b"content-length", b"+5")), 400, "content-length"),
    ("a length beyond all", (HOST, (b"content-length", b"9" * 20)), 400, "content-length"),
    ("a length beyond the limit", (HOST, (b"content-length", b"33554433")), 413, None),
    ("gzip", (HOST, (b"content-encoding", b"gzip")), 400, "content-encoding"),
    ("identity, said aloud", (HOST, (b"content-encoding", b"identity")), 400, "content-encoding"),
    ("many headers", (HOST, *[(b"x", b"")] * MAX_HEADERS), 431, None),
    ("large headers", (HOST, (b"x", b"y" * MAX_HEADER_BYTES)), 431, None),
    ("many small headers", (HOST, *[(b"%d" % i, b"y" * 400) for i in range(90)]), 431, None),
    ("a coding of another name", (HOST, (b"transfer-encoding", b"gzip")), 400, "transfer-encoding"),
    ("two codings", (HOST, (b"transfer-encoding", b"gzip, chunked")), 400, "transfer-encoding"),
    ("chunks twice", (HOST, CHUNKED, CHUNKED), 400, "transfer-encoding"),
    ("chunks and more", (HOST, (b"transfer-encoding", b"chunked;x=y")), 400, "transfer-encoding"),
    ("another expectation", (HOST, (b"expect", b"200-ok")), 417, "expect"),
    ("two expectations", (HOST, (b"expect", b"100-continue"), (b"expect", b"x")), 417, "expect"),
]


@pytest.mark.parametrize(("headers", "status", "param"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_the_table_of_heads(headers: tuple[tuple[bytes, bytes], ...], status: int, param: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        guard(RequestHead("GET", "/health", list(headers)))
    assert (caught.value.status, caught.value.param) == (status, param)


@pytest.mark.parametrize("version", ["0.9", "1.2", "2.0", ""])
def test_other_versions_are_not_spoken(version: str) -> None:
    with pytest.raises(HttpVersionRefused):
        guard(RequestHead("GET", "/", [HOST], version))


def test_chunks_are_not_for_old_clients() -> None:
    guard(RequestHead("POST", "/", [HOST, CHUNKED]))
    with pytest.raises(InvalidRequest, match=r"in HTTP/1\.1"):
        guard(RequestHead("POST", "/", [HOST, CHUNKED], "1.0"))


def test_how_much_a_body_may_be_is_the_route_s() -> None:
    head = RequestHead("POST", "/", [HOST, (b"content-length", b"1000")])
    guard(head, 1000)
    with pytest.raises(TooLarge, match="larger than 999 bytes"):
        guard(head, 999)


@pytest.mark.parametrize("value", [b"100-continue", b"100-Continue"])
def test_the_one_expectation(value: bytes) -> None:
    guard(RequestHead("POST", "/", [HOST, (b"expect", value)]))


@given(st.lists(st.tuples(st.sampled_from([b"host", b"x", b"content-length"]), st.binary(max_size=30)), max_size=6))
def test_any_headers_pass_or_are_refused(headers: list[tuple[bytes, bytes]]) -> None:
    hosts = [value for name, value in headers if name == b"host"]
    try:
        guard(RequestHead("GET", "/", headers))
    except ApiError as error:
        assert error.status in (400, 413, 431)
    else:
        assert len(hosts) == 1
        assert not set(hosts[0]) & set(b"/?#@ \r\n\t\\")


def test_headers_up_to_the_limits_pass() -> None:
    guard(RequestHead("GET", "/", [HOST, *[(b"x", b"y")] * (MAX_HEADERS - 1)]))
    size = len(HOST[0] + HOST[1]) + 4
    guard(RequestHead("GET", "/", [HOST, (b"x", b"y" * (MAX_HEADER_BYTES - size - 5))]))
    with pytest.raises(HeadersTooLarge):
        guard(RequestHead("GET", "/", [HOST, (b"x", b"y" * (MAX_HEADER_BYTES - size - 4))]))


async def test_a_good_request_passes_untouched() -> None:
    app = App()
    answer = await ask(Guard(app), "/x", "POST", [b"ab", b"", b"cd"])
    assert (answer.status, answer.body, app.got) == (200, b"fine", b"abcd")


async def test_a_body_is_counted_as_it_arrives() -> None:
    piece = b"x" * 64 * 1024
    whole = SMALL_BODY_BYTES // len(piece)
    assert (await ask(Guard(App()), "/x", "POST", [piece] * whole)).status == 200
    app = App()
    answer = await ask(Guard(app), "/x", "POST", [piece] * whole + [b"x"] * 10)
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert app.got is not None
    assert len(app.got) == SMALL_BODY_BYTES < MAX_BODY_BYTES


async def test_the_piece_that_is_too_much_is_not_handed_over() -> None:
    pieces = [b"12345", b"67890", b"1"]

    async def receive() -> Message:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": True}

    counted = CountedBody(receive, 10)
    assert [(await counted())["body"] for _ in range(2)] == [b"12345", b"67890"]
    with pytest.raises(TooLarge, match="larger than 10 bytes"):
        await counted()


async def test_a_fault_of_ours_is_a_500_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        answer = await ask(Guard(App(ValueError("canary"))), "/x")
    assert answer.status == 500
    assert answer.error["code"] == "internal_error"
    assert b"canary" not in answer.body
    assert b"ValueError" not in answer.body
    [record] = caplog.records
    assert record.exc_info is not None


async def test_an_error_after_the_head_is_never_a_clean_end(caplog: pytest.LogCaptureFixture) -> None:
    """The server that sees the exception cuts the connection: what began is not ended as if it were whole."""
    for fault in (Overloaded(), ValueError("x")):
        with pytest.raises(type(fault)):
            await ask(Guard(App(fault, starts=True)), "/x")


async def test_other_kinds_of_scope_get_nothing() -> None:
    app = App()

    async def never(*_: object) -> Message:
        raise AssertionError("nothing is said")

    for kind in ("websocket", "lifespan"):
        await Guard(app)({"type": kind}, never, never)
    assert app.got is None


def test_the_head_of_an_error() -> None:
    headers, body = error_head_and_body(Overloaded(retry_after_s=4.6))
    assert dict(headers) == {
        b"content-type": b"application/json",
        b"retry-after": b"5",
        b"content-length": str(len(body)).encode(),
    }
    assert json.loads(body) == Overloaded().body()


def test_an_error_may_bring_headers_of_its_own() -> None:
    error = RateLimited(retry_after_s=1, headers=((b"x-ratelimit-limit-requests", b"5"),))
    headers, _ = error_head_and_body(error)
    assert dict(headers)[b"x-ratelimit-limit-requests"] == b"5"
    assert len(dict(headers)) == len(headers)


def test_nobody_is_asked_back_in_zero_seconds() -> None:
    assert dict(error_head_and_body(Overloaded(retry_after_s=0.01))[0])[b"retry-after"] == b"1"


def test_browsers_are_asked_for_the_key() -> None:
    assert dict(error_head_and_body(Unauthenticated())[0])[b"www-authenticate"].startswith(b"Basic")


@pytest.mark.parametrize(("should", "said"), [(True, b"true"), (False, b"false")])
def test_sdks_are_told_whether_to_try_again(should: bool, said: bytes) -> None:
    headers, body = error_head_and_body(ModelNotReady(details={"should_retry": should}))
    assert dict(headers)[b"x-should-retry"] == said
    assert json.loads(body)["error"]["should_retry"] is should
