"""What ByteEngine writes: raw bytes that break HTTP, server-sent events or good manners, by name.

Those that are ``endless`` offer a gigabyte, lazily: whoever reads them has to hang up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Union

from firstkit.testing.fake_answer import Answer, event

Step = Union[bytes, float]
"""Bytes to write, or seconds to wait."""
Script = Callable[[], Iterable[Step]]

ENDLESS_BYTES = 1024**3
ENDLESS_S = float("inf")
PIECE = b"x" * 65536
JSON, EVENTS, CHUNKED = (
    "content-type: application/json",
    "content-type: text/event-stream",
    "transfer-encoding: chunked",
)
POISON = "this belongs to nobody"

_ANSWER = Answer(True, "fake-model", 1, 2, 1, "stop", False)
TOKEN = _ANSWER.token(0, "word0 ")
STREAM = TOKEN + _ANSWER.token(0, None, "stop") + event("[DONE]")
_POISONED = json.dumps({"choices": [{"index": 0, "message": {"content": POISON}, "finish_reason": "stop"}]}).encode()
WHOLE = json.dumps(_ANSWER.whole({"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3})).encode()


def head(*lines: str, status: str = "200 OK", version: str = "1.1") -> bytes:
    return "".join(f"{line}\r\n" for line in (f"HTTP/{version} {status}", *lines, "")).encode("latin-1")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def endless(start: bytes, piece: bytes) -> Iterator[bytes]:
    """``start``, then ``piece`` again and again."""
    yield start
    for _ in range(ENDLESS_BYTES // len(piece)):
        yield piece


def _slowly(start: bytes, piece: bytes, every_s: float) -> Iterator[Step]:
    for data in endless(start, piece):
        yield data
        yield every_s


def _length(body: bytes) -> str:
    return f"content-length: {len(body)}"


BROKEN: dict[str, Script] = {
    "long-body": lambda: [head(JSON, "content-length: 20") + WHOLE],
    "long-stream": lambda: [head(EVENTS, _length(TOKEN + b"data:")) + STREAM],
    "short-body": lambda: [head(JSON, "content-length: 100000") + WHOLE],
    "short-stream": lambda: [head(EVENTS, "content-length: 100000") + TOKEN],
    "two-lengths": lambda: [head(JSON, _length(WHOLE), "content-length: 20") + WHOLE],
    "negative-length": lambda: [head(JSON, "content-length: -1") + WHOLE],
    "length-and-chunks": lambda: [head(EVENTS, _length(STREAM), "transfer-encoding: gzip, chunked") + STREAM],
    "bad-chunk": lambda: [head(EVENTS, CHUNKED) + chunk(TOKEN) + b"zz\r\n" + STREAM],
    "huge-chunk": lambda: [head(EVENTS, CHUNKED) + chunk(TOKEN) + b"f" * 20 + b"\r\ndata: "],
    "cut-chunk": lambda: [head(EVENTS, CHUNKED) + chunk(STREAM)[:-30]],
    "no-body": lambda: [head(EVENTS, status="204 No Content")],
    "switching": lambda: [head("upgrade: h2c", "connection: upgrade", status="101 Switching Protocols") + STREAM],
    "nul-header": lambda: [head(EVENTS, "x-\0: y", _length(STREAM)) + STREAM],
    "compressed": lambda: [head(EVENTS, "content-encoding: gzip", _length(STREAM)) + STREAM],
    "no-status": lambda: [head(EVENTS, _length(STREAM), status="ok") + STREAM],
    "nothing": list,
}
"""Answers that are none. Those which begin as a stream bring one token of it."""

ENDLESS: dict[str, Script] = {
    "endless-line": lambda: endless(head(EVENTS, CHUNKED) + chunk(TOKEN) + chunk(b"data: "), chunk(PIECE)),
    "endless-json": lambda: endless(head(JSON, CHUNKED) + chunk(b'{"choices":"'), chunk(PIECE)),
    "endless-refusal": lambda: endless(head(JSON, CHUNKED, status="400 Bad Request"), chunk(PIECE)),
    "endless-failure": lambda: endless(head(JSON, CHUNKED, status="500 Oops"), chunk(PIECE)),
    "endless-header": lambda: endless(b"HTTP/1.1 200 OK\r\nx: ", PIECE),
    "endless-headers": lambda: endless(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 1000),
    "endless-hints": lambda: endless(b"", head("link: x", status="103 Early Hints") * 1000),
    "endless-chunk-head": lambda: endless(head(EVENTS, CHUNKED) + chunk(TOKEN) + b"1;", PIECE),
    "endless-trailers": lambda: endless(head(EVENTS, CHUNKED) + chunk(TOKEN) + b"0\r\n", b"x: y\r\n" * 1000),
}
"""Each is too long in another place."""

TIRELESS: dict[str, Script] = {
    "tireless-tokens": lambda: _slowly(head(EVENTS, CHUNKED) + chunk(TOKEN), chunk(TOKEN), 0.05),
    "tireless-comments": lambda: _slowly(head(EVENTS, CHUNKED) + chunk(TOKEN), chunk(b": ping\n\n"), 0.05),
    "tireless-head": lambda: _slowly(b"HTTP/1.1 200 OK\r\nx: ", b"y", 0.05),
}
"""Never silent and never at an end."""

SILENT: dict[str, Script] = {"silent": lambda: [ENDLESS_S]}

GOOD: dict[str, Script] = {
    "until-close": lambda: [head(EVENTS) + STREAM],
    "old-http": lambda: [head(EVENTS, version="1.0") + STREAM],
    "byte-by-byte": lambda: (bytes([byte]) for byte in head(EVENTS, _length(STREAM)) + STREAM),
    "closes-anyway": lambda: [head(EVENTS, CHUNKED, "connection: keep-alive") + chunk(STREAM) + chunk(b"")],
    "second-answer": lambda: [head(EVENTS, _length(STREAM)) + STREAM + head(JSON, _length(_POISONED)) + _POISONED],
}
"""Strange, but streams that are whole. The last is followed by an answer that nobody asked for."""

SCRIPTS: dict[str, Script] = {**BROKEN, **ENDLESS, **TIRELESS, **SILENT, **GOOD}
