"""What a request looks like on the wire, and what never gets there."""

from __future__ import annotations

import pytest

from firstkit.engines.engine import Habits
from firstkit.engines.heads import MOST_REMEMBERED, Heads, Unsayable
from firstkit.links.messages import Open

CHAT = "/v1/chat/completions"


def heads(key: str | None = None, habits: Habits | None = None) -> Heads:
    return Heads("engine:80", lambda path: path, key, habits or Habits())


def request(method: str = "POST", path: str = CHAT, stream: bool = False, **headers: str) -> Open:
    return Open("r", method, path, 7, {name.replace("_", "-"): value for name, value in headers.items()}, stream)


def lines(head: bytes) -> list[bytes]:
    assert head.endswith(b"\r\n\r\n")
    return sorted(head[:-4].split(b"\r\n")[1:])


def test_a_head() -> None:
    head = heads().head(request(), 7)
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\nhost: engine:80\r\n")
    assert lines(head) == [
        b"accept-encoding: identity",
        b"accept: application/json",
        b"connection: keep-alive",
        b"content-length: 7",
        b"content-type: application/json",
        b"host: engine:80",
    ]


def test_headers_of_a_request_pass_but_for_those_of_the_connection() -> None:
    made = heads("canary")
    for _ in range(2):
        given = {"X_Tag": "a b", "Accept": "text/x", "CONTENT_type": "x/y", "te": "z", "Authorization": "Bearer other"}
        assert lines(made.head(request(**given, transfer_encoding="chunked", connection="close", empty=""), 0)) == [
            b"accept-encoding: identity",
            b"accept: text/x",
            b"authorization: Bearer canary",
            b"connection: keep-alive",
            b"content-length: 0",
            b"content-type: x/y",
            b"empty: ",
            b"host: engine:80",
            b"x-tag: a b",
        ]
        assert b"accept: text/event-stream" in lines(made.head(request(stream=True), 0))


@pytest.mark.parametrize(
    ("habits", "plain", "stream"),
    [
        (Habits(), b"keep-alive", b"keep-alive"),
        (Habits(closes_after_stream=True), b"keep-alive", b"close"),
        (Habits(keeps_alive=False), b"close", b"close"),
    ],
)
def test_the_last_request_of_a_connection_says_so(habits: Habits, plain: bytes, stream: bytes) -> None:
    made = heads(habits=habits)
    for is_stream, word in ((False, plain), (True, stream)):
        assert b"connection: " + word in lines(made.head(request(stream=is_stream), 0))
        assert made.is_last(request(stream=is_stream)) == (word == b"close")


@pytest.mark.parametrize(
    "bad",
    [
        request(x="a\r\nb: c"),
        request(x="a\nb"),
        request(x="a\rb"),
        request(x="a\0b"),
        request(x="\x7f"),
        request(x="ä"),
        request(**{"a b": "c"}),
        request(**{"a\n": "c"}),
        request(**{"a:b": "c"}),
        request(**{"": "c"}),
        request(**{"ä": "c"}),
        request(path="/v1/\r\nx: y"),
        request(path="/v1/a b"),
        request(path="/ä"),
        request(path=""),
        request(path="v1"),
        request(path="http://other/"),
        request(method=""),
        request(method="GE T"),
        request(method="POST\r\n"),
        request(method="HEAD"),
        request(method="CONNECT"),
    ],
)
def test_what_http_cannot_carry_is_refused(bad: Open) -> None:
    made = heads()
    for _ in range(2):
        with pytest.raises(Unsayable):
            made.head(bad, 0)


def test_a_key_that_http_cannot_carry_is_refused() -> None:
    with pytest.raises(Unsayable):
        heads("a\r\nb").head(request(), 0)


def test_what_is_remembered_is_bounded() -> None:
    made = heads()
    for i in range(3 * MOST_REMEMBERED):
        head = made.head(request(path=f"/{i}", **{f"x-{i}": f"{i}"}), i)
        assert head.startswith(f"POST /{i} HTTP".encode())
        assert f"x-{i}: {i}".encode() in lines(head)
    assert len(made._starts) == len(made._names) == MOST_REMEMBERED
