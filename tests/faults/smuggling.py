"""Requests of which one reader could take for the body what another takes for the next request.

Each carries a whole request whose prompt is ``smuggled``, with a good key, where the readers could disagree.
"""

from __future__ import annotations

from faults.malformed import CASES
from faults.wire import chat_request

CHUNKED = b"transfer-encoding: chunked"
WEBSOCKET = (b"upgrade: websocket", b"connection: upgrade")
H2C = (b"upgrade: h2c", b"connection: upgrade, http2-settings", b"http2-settings: AAMAAABkAAQAAP__")


def shapes(key: str) -> dict[str, bytes]:
    """All of them, by name."""
    return {**_lengths(key), **_places(key), **_odd_answers(key), **_codings(key), **_beside_the_length(key)}


def _post(key: str, *lines: bytes, version: bytes = b"1.1", kind: bytes = b"application/json") -> bytes:
    """The head of a request for a model."""
    first = b"POST /v1/chat/completions HTTP/%b\r\nhost: x\r\nauthorization: Bearer %b\r\n" % (version, key.encode())
    return first + b"content-type: %b\r\n" % kind + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def _page(*lines: bytes, method: bytes = b"GET") -> bytes:
    return method + b" /health HTTP/1.1\r\nhost: x\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def _length(data: bytes) -> bytes:
    return b"content-length: %d" % len(data)


def _inner(key: str) -> bytes:
    return chat_request(key, "smuggled")


def _chunk(data: bytes) -> bytes:
    """The only one of a body."""
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)


def _behind_last_chunk(key: str) -> bytes:
    return b"0\r\n\r\n" + _inner(key)


def _lengths(key: str) -> dict[str, bytes]:
    """Two ways to say how long the body is."""
    inner, behind = _inner(key), _behind_last_chunk(key)
    none = b"content-length: 0"
    return {
        "length covers chunks": _post(key, _length(behind), CHUNKED) + behind,
        "length of the first chunk's head": _post(key, b"content-length: 4", CHUNKED) + _chunk(inner),
        "length behind chunks": _post(key, CHUNKED, _length(behind)) + behind,
        "two lengths, small first": _post(key, none, _length(inner)) + inner,
        "two lengths, large first": _post(key, _length(inner), none) + inner,
        "lengths in a list": _post(key, b"content-length: 0, %d" % len(inner)) + inner,
        "a line end in a header": _post(key, b"x: y\nz: w", _length(inner)) + inner,
    }


def _places(key: str) -> dict[str, bytes]:
    """Where a body has room for a request."""
    inner, behind = _inner(key), _behind_last_chunk(key)
    on_one_line = inner.replace(b"\r\n", b"")
    return {
        "a body": _post(key, _length(inner)) + inner,
        "a chunk": _post(key, CHUNKED) + _chunk(inner),
        "an extension": _post(key, CHUNKED) + b"2;x=%b\r\n{}\r\n0\r\n\r\n" % on_one_line,
        "behind a bare LF in an extension": _post(key, CHUNKED) + b"2;\n{}\r\n" + behind,
        "a trailer": _post(key, CHUNKED) + b"0\r\n" + inner + b"\r\n",
        "a body of GET": _page(_length(inner)) + inner,
        "chunks of GET": _page(CHUNKED) + _chunk(inner),
        "a body of HEAD": _page(_length(inner), method=b"HEAD") + inner,
        "behind chunks of HTTP 1.0": _post(key, CHUNKED, version=b"1.0") + behind,
        "a length that is longer than the body": _post(key, b"content-length: 5000") + inner,
        "a chunk that is longer than the body": _post(key, CHUNKED) + b"5000\r\n" + inner,
    }


def _odd_answers(key: str) -> dict[str, bytes]:
    """Where a proxy might think that the answer ended, or that it is a tunnel now."""
    inner = _inner(key)
    return {
        "behind an upgrade": _page(*WEBSOCKET) + inner,
        "behind h2c": _page(*H2C) + inner,
        "behind an expectation": _post(key, b"expect: 100-continue", _length(inner)) + inner,
        "behind another expectation": _post(key, b"expect: x", _length(inner)) + inner,
        "behind a refused key": _post("x", _length(inner)) + inner,
        "behind a refused kind": _post(key, _length(inner), kind=b"text/plain") + inner,
    }


def _codings(key: str) -> dict[str, bytes]:
    """Every transfer encoding of the table of malformed requests, with a length and without."""
    behind = _behind_last_chunk(key)
    found = {}
    for case in CASES:
        if case.name.startswith("coding: "):
            head = case.bytes_for(key).partition(b"\r\n\r\n")[0] + b"\r\n"
            found[f"{case.name}, with a length"] = head + _length(behind) + b"\r\n\r\n" + behind
            found[f"{case.name}, without"] = head + b"\r\n" + behind
    return found


def _beside_the_length(key: str) -> dict[str, bytes]:
    """What a careless reader takes for another header."""
    behind = _behind_last_chunk(key)
    lines = {
        "an underscore": b"transfer_encoding: chunked",
        "a NUL first": b"\0transfer-encoding: chunked",
        "a letter with an accent": b"transf\xc3\xa9r-encoding: chunked",
        "behind a bare CR": b"x: y\rtransfer-encoding: chunked",
        "behind a bare LF": b"x: y\ntransfer-encoding: chunked",
        "an underscore in the length": b"content_length: 0",
        "a space in the length": b"content-length : 0",
        "a length that is dropped": b"connection: content-length",
        "a coding that is dropped": CHUNKED + b"\r\nconnection: transfer-encoding",
    }
    return {f"beside the length, {name}": _post(key, line, _length(behind)) + behind for name, line in lines.items()}
