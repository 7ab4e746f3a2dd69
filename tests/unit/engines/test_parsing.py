"""Both parsers read the same answers alike, whole or byte by byte, and refuse the same ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.engines import parsing
from firstkit.engines.parsing import HEAD_LIMIT_BYTES, ResponseHead, ResponseParser, is_strict, response_parser
from firstkit.engines.parsing_h11 import H11Parser
from firstkit.engines.parsing_httptools import HttptoolsParser

Maker = Callable[[], ResponseParser]
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
FIVE = OK + b"Content-Length: 5\r\n\r\n"
WHOLE, KEPT, BROKEN, MORE = "whole", "whole and kept", "broken", "waits for more"


def read(maker: Maker, *pieces: bytes, at_end: bool = False) -> tuple[str, bytes]:
    """How an answer ended, and its body."""
    parser = maker()
    body = b""
    for piece in pieces:
        if parser.is_over:
            break
        body += parser.feed(piece)
    if at_end:
        parser.end()
    is_whole, is_over = parser.is_whole, parser.is_over
    if parser.renew():
        return KEPT, body
    return WHOLE if is_whole else BROKEN if is_over else MORE, body


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


GOOD = [
    ("a length", FIVE + b"abcde", KEPT, b"abcde"),
    ("chunks", CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", KEPT, b"abcde"),
    ("a chunk's extension", CHUNKED + b'5;a=b;c="d"\r\nabcde\r\n0;e\r\n\r\n', KEPT, b"abcde"),
    ("trailers", CHUNKED + b"5\r\nabcde\r\n0\r\nx: y\r\ncontent-type: z\r\n\r\n", KEPT, b"abcde"),
    ("no reason", b"HTTP/1.1 200\r\ncontent-length: 5\r\n\r\nabcde", KEPT, b"abcde"),
    ("no body", OK + b"content-length: 0\r\n\r\n", KEPT, b""),
    ("no content", b"HTTP/1.1 204 No Content\r\n\r\n", KEPT, b""),
    ("not modified", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", KEPT, b""),
    (
        "continue first",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nlink: x\r\n\r\n" + FIVE + b"abcde",
        KEPT,
        b"abcde",
    ),
    ("it is the last", OK + b"connection: close\r\ncontent-length: 5\r\n\r\nabcde", WHOLE, b"abcde"),
    ("HTTP/1.0", b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nabcde", WHOLE, b"abcde"),
    (
        "HTTP/1.0, alive",
        b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\nabcde",
        WHOLE,
        b"abcde",
    ),
    ("until the end", OK + b"\r\nabcde", MORE, b"abcde"),
    ("too short", FIVE + b"abc", MORE, b"abc"),
    ("chunks without end", CHUNKED + b"3\r\nabc\r\n", MORE, b"abc"),
    (
        "upgrade is offered",
        OK + b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: 5\r\n\r\nabcde",
        KEPT,
        b"abcde",
    ),
]

MORE_THAN_ONE = [
    ("a second answer", FIVE + b"abcde" + FIVE + b"fghij"),
    ("one byte of it", FIVE + b"abcdeH"),
    ("a byte like the last", FIVE + b"aaaaaa"),
    ("bytes", FIVE + b"abcde\0"),
    ("line ends", FIVE + b"abcde\r\n"),
    ("line ends after chunks", CHUNKED + b"5\r\nabcde\r\n0\r\n\r\n\r\n"),
    ("bytes after chunks", CHUNKED + b"5\r\nabcde\r\n0\r\n\r\nx"),
    ("a body where none may be", b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\nabcde"),
]

BAD = [
    ("a length and chunks", OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"),
    ("chunks and a length", OK + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"),
    ("two lengths", OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nabcdef"),
    ("a negative length", OK + b"content-length: -5\r\n\r\nabcde"),
    ("a signed length", OK + b"content-length: +5\r\n\r\nabcde"),
    ("a length in two parts", OK + b"content-length: 5 5\r\n\r\nabcde"),
    ("a hexadecimal length", OK + b"content-length: 0x5\r\n\r\nabcde"),
    ("an empty length", OK + b"content-length:\r\n\r\nabcde"),
    ("a huge length", OK + b"content-length: " + b"9" * 5000 + b"\r\n\r\nabcde"),
    ("chunked twice", OK + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"),
    ("zipped chunks", OK + b"transfer-encoding: gzip, chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"),
    ("another coding", OK + b"transfer-encoding: gzip\r\n\r\nabcde"),
    ("almost chunked", OK + b"transfer-encoding: xchunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"),
    ("identity", OK + b"transfer-encoding: identity\r\n\r\nabcde"),
    ("chunks of HTTP/1.0", b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"),
    ("no hexadecimal size", CHUNKED + b"zz\r\nabc\r\n0\r\n\r\n"),
    ("a negative size", CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n"),
    ("a huge size", CHUNKED + b"f" * 21 + b"\r\nabc\r\n0\r\n\r\n"),
    ("an empty size", CHUNKED + b"\r\nabc\r\n0\r\n\r\n"),
    ("a size that is too small", CHUNKED + b"3\r\nabcde\r\n0\r\n\r\n"),
    ("a size that is too large", CHUNKED + b"6\r\nabcde\r\n0\r\n\r\n"),
    ("a chunk that ends in LF", CHUNKED + b"5\r\nabcde\n0\r\n\r\n"),
    ("a size that ends in LF", CHUNKED + b"5\nabcde\r\n0\r\n\r\n"),
    ("switching protocols", b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"),
    ("continue with a body", b"HTTP/1.1 100 Continue\r\ncontent-length: 5\r\n\r\nabcde" + FIVE + b"abcde"),
    ("HTTP/0.9", b"HTTP/0.9 200 OK\r\ncontent-length: 5\r\n\r\nabcde"),
    ("HTTP/1.2", b"HTTP/1.2 200 OK\r\ncontent-length: 5\r\n\r\nabcde"),
    ("HTTP/2.0", b"HTTP/2.0 200 OK\r\ncontent-length: 5\r\n\r\nabcde"),
    ("a status of two digits", b"HTTP/1.1 20 OK\r\ncontent-length: 5\r\n\r\nabcde"),
    ("a status of four digits", b"HTTP/1.1 2000 OK\r\ncontent-length: 5\r\n\r\nabcde"),
    ("a status below all", b"HTTP/1.1 099 OK\r\ncontent-length: 5\r\n\r\nabcde"),
    ("a space before the colon", OK + b"content-length : 5\r\n\r\nabcde"),
    ("no colon", OK + b"nonsense\r\ncontent-length: 5\r\n\r\nabcde"),
    ("NUL", OK + b"x: a\0b\r\ncontent-length: 5\r\n\r\nabcde"),
    ("a bare CR", OK + b"x: a\rb\r\ncontent-length: 5\r\n\r\nabcde"),
    ("a request", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"),
    ("another protocol", b"SSH-2.0-OpenSSH_9.9\r\n"),
]

LENIENT = [
    ("LF in the head", b"HTTP/1.1 200 OK\ncontent-length: 5\n\nabcde"),
    ("the same length twice", OK + b"content-length: 5\r\ncontent-length: 5\r\n\r\nabcde"),
    ("a folded header", OK + b"x: a\r\n b\r\ncontent-length: 5\r\n\r\nabcde"),
    ("a control character", OK + b"x: a\x01b\r\ncontent-length: 5\r\n\r\nabcde"),
    ("empty lines first", b"\r\n\r\n" + FIVE + b"abcde"),
    ("a space after a size", CHUNKED + b"5 \r\nabcde\r\n0\r\n\r\n"),
    ("streaming protocol", b"RTSP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nabcde"),
]
"""Where the two differ, and nobody can lose the place: refused, or read as it is meant."""


@pytest.mark.parametrize(("data", "how", "body"), [case[1:] for case in GOOD], ids=[case[0] for case in GOOD])
def test_good(parser: Maker, data: bytes, how: str, body: bytes) -> None:
    assert read(parser, data) == (how, body)
    assert read(parser, *bytewise(data)) == (how, body)


@pytest.mark.parametrize("data", [case[1] for case in MORE_THAN_ONE], ids=[case[0] for case in MORE_THAN_ONE])
def test_what_comes_after_an_answer_forbids_another(parser: Maker, data: bytes) -> None:
    how, body = read(parser, data)
    assert (how, body[:5]) in [(WHOLE, b"abcde"), (WHOLE, b"aaaaa"), (WHOLE, b"")]
    assert len(body) <= 5


@pytest.mark.parametrize("data", [case[1] for case in BAD], ids=[case[0] for case in BAD])
def test_bad(parser: Maker, data: bytes) -> None:
    for pieces in ([data], bytewise(data)):
        how, body = read(parser, *pieces, at_end=True)
        assert how == BROKEN
        assert body in (b"", b"abc", b"abcde", b"abcde\r")


@pytest.mark.parametrize("data", [case[1] for case in LENIENT], ids=[case[0] for case in LENIENT])
def test_lenient(parser: Maker, data: bytes) -> None:
    for pieces in ([data], bytewise(data)):
        assert read(parser, *pieces, at_end=True) in [(BROKEN, b""), (WHOLE, b"abcde"), (KEPT, b"abcde")]


def test_the_end_of_the_connection(parser: Maker) -> None:
    assert read(parser, at_end=True) == (BROKEN, b"")
    assert read(parser, OK, at_end=True) == (BROKEN, b"")
    assert read(parser, OK + b"\r\nab", b"cde", at_end=True) == (WHOLE, b"abcde")
    assert read(parser, OK + b"\r\n", at_end=True) == (WHOLE, b"")
    assert read(parser, FIVE + b"abcd", at_end=True) == (BROKEN, b"abcd")
    assert read(parser, CHUNKED + b"5\r\nabcde\r\n", at_end=True) == (BROKEN, b"abcde")
    assert read(parser, FIVE + b"abcde", at_end=True) == (WHOLE, b"abcde")


def test_one_after_the_other(parser: Maker) -> None:
    reader = parser()
    for data in (
        FIVE + b"abcde",
        CHUNKED + b"5\r\nabcde\r\n0\r\n\r\n",
        OK + b"content-type: a/B\r\ncontent-length: 5\r\n\r\nabcde",
    ):
        assert reader.head is None
        assert reader.feed(data) == b"abcde"
        assert reader.is_over
        assert reader.is_whole
        head = reader.head
        assert reader.renew()
    assert head == ResponseHead(200, "a/B", "", False, False)


def test_heads(parser: Maker) -> None:
    reader = parser()
    reader.feed(b"HTTP/1.1 429 Slow Down\r\nCONTENT-TYPE:  text/\xe9 \r\nContent-Encoding: GZIP\r\n")
    assert reader.head is None
    reader.feed(b"content-type: other\r\ntransfer-Encoding:\tChunked \r\n\r\n")
    assert reader.head == ResponseHead(429, "text/\xe9", "gzip", True, False)


LONG = b"x" * 1000
FLOODS = {
    "status line": (b"HTTP/1.1 200 ", LONG),
    "header": (OK + b"x: ", LONG),
    "name": (OK, LONG),
    "headers": (OK, b"x: " + LONG + b"\r\n"),
    "small headers": (OK, b"x:\r\n" * 250),
    "informational": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 40),
    "empty lines": (b"", b"\r\n" * 500),
    "extension": (CHUNKED + b"5;", LONG),
    "trailer": (CHUNKED + b"0\r\nx: ", LONG),
    "trailers": (CHUNKED + b"0\r\n", b"x: " + LONG + b"\r\n"),
    "digits": (OK + b"content-length: ", b"0" * 1000),
}


@pytest.mark.parametrize("name", FLOODS)
def test_what_never_ends_is_refused(parser: Maker, name: str) -> None:
    start, more = FLOODS[name]
    reader = parser()
    fed = reader.feed(start)
    sent = 0
    while not reader.is_over:
        fed += reader.feed(more)
        sent += len(more)
        assert sent <= HEAD_LIMIT_BYTES + 2 * len(more)
    assert fed == b""
    assert not reader.is_whole


def test_a_long_head_in_one_piece_is_refused_too(parser: Maker) -> None:
    for headers in (b"x: " + b"y" * 70_000 + b"\r\n", b"x: yz\r\n" * 40_000):
        assert read(parser, OK + headers + b"content-length: 5\r\n\r\nabcde") == (BROKEN, b"")
    good = OK + b"x: " + b"y" * 60_000 + b"\r\ncontent-length: 5\r\n\r\nabcde"
    assert read(parser, good) == (KEPT, b"abcde")


def test_many_small_chunks_are_no_flood(parser: Maker) -> None:
    piece = bytewise(b"1\r\na\r\n")
    how, body = read(parser, CHUNKED, *piece * 30_000)
    assert (how, len(body)) == (MORE, 30_000)


WORDS = [
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 C\r\n\r\n",
    b"content-length: 5\r\n",
    b"transfer-encoding: chunked\r\n",
    b"\r\n",
    b"abcde",
    b"5\r\n",
    b"0\r\n\r\n",
    b"connection: close\r\n",
    b"\n",
    b"HTTP/1.1 204 N\r\n",
    b"x: y\r\n",
]


@given(st.lists(st.sampled_from(WORDS) | st.binary(max_size=8), max_size=14), st.lists(st.integers(0, 200), max_size=8))
def test_any_bytes_in_any_split(words: list[bytes], cuts: list[int]) -> None:
    """Nothing is raised; the two agree unless one refuses; where bytes are split changes no body."""
    data = b"".join(words)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(edges) if a < b]
    results = []
    for maker in (HttptoolsParser, H11Parser):
        how, body = read(maker, data, at_end=True)
        again, same = read(maker, *pieces, at_end=True)
        assert same == body
        assert (again == BROKEN) == (how == BROKEN)
        results.append((how == BROKEN, body))
    if not results[0][0] and not results[1][0]:
        assert results[0] == results[1]


CHUNKS = st.sampled_from(
    [
        b"1\r\na\r\n", b"b\r\ndata: xyz\n\n\r\n", b"B\r\ndata: xyz\n\n\r\n", b"0b\r\ndata: xyz\n\n\r\n",
        b"2\r\n\r\n\r\n", b"2;x\r\nab\r\n", b"0x2\r\nab\r\n", b"2\r\nabc\r\n", b"3\r\nab\r\n", b"2 \r\nab\r\n",
        b"+2\r\nab\r\n", b"100\r\n" + bytes(256) + b"\r\n", b"1", b"2\r\na", b"\r\n", b"b\r\n",
        b"0\r\n\r\n", b"0\r\nx: y\r\n\r\n",
    ]
)  # fmt: skip


@given(st.lists(CHUNKS, max_size=8))
def test_chunks_that_come_one_by_one_are_the_same_as_bytes_that_do(pieces: list[bytes]) -> None:
    """Whole chunks are known at a glance: all that only looks like one must not be."""
    data = [CHUNKED, *pieces]
    assert read(HttptoolsParser, *data) == read(HttptoolsParser, *bytewise(b"".join(data)))


def test_httptools_is_used_where_it_is_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing, "is_strict", lambda parser: False)
    assert response_parser.__wrapped__() is H11Parser
    monkeypatch.undo()
    assert is_strict(HttptoolsParser)
    assert response_parser.__wrapped__() is HttptoolsParser


def test_a_parser_that_takes_anything_is_not_strict() -> None:
    class Lenient(HttptoolsParser):
        def __init__(self) -> None:
            super().__init__()
            self._http.set_dangerous_leniencies(lenient_optional_cr_before_lf=True)

    assert not is_strict(Lenient)


def test_h11_does_where_there_is_no_httptools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "firstkit.engines.parsing_httptools", None)
    assert response_parser.__wrapped__() is H11Parser
