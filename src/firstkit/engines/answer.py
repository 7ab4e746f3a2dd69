"""What an engine's answer says while it passes: which bytes go on, what was used, how it ended. Pure: times come in.

An ending is COMPLETE only where the engine said so: a stream by a finish_reason for every choice and ``[DONE]``, a
plain answer by a whole JSON object. All else is FAILED (or TIMEOUT, CANCELLED: the caller knows). What is accounted:

- the engine's own numbers, if they can be true;
- else, for what was delivered, an estimate that is flagged as one: a token for each piece of text of a stream, four
  bytes of the request for a token of the prompt;
- else nothing was delivered and the usage is exactly zero: a request that was refused, or broke before any text.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from math import ceil
from typing import Any, Optional, Union

from firstkit.engines.shape import TokenShape
from firstkit.engines.sse import EventSplitter, EventTooLong, is_named_error, payload_of
from firstkit.links.messages import Head, Open, Outcome, Tail, Usage

try:
    import msgspec  # a third of the cost; not there on clusters
except ImportError:
    msgspec = None  # type: ignore[assignment]

BODY_LIMIT_BYTES = 64 * 1024 * 1024
REFUSAL_LIMIT_BYTES = 1024 * 1024
"""Of the body of an error status, of which little is used."""
PARSED_WHOLE_BYTES = 256 * 1024
"""A plain answer up to this size is parsed (about 2 ms); of a larger one only the ends and the usage are looked at."""
MOST_CHOICES = 1024
MOST_COMPLETION_TOKENS = 10_000_000
TEMPLATE_TOKENS = 100_000
"""A prompt has at most a token for each byte of the request and this many that templates and tools add."""
BYTES_PER_TOKEN = 4
ERROR_CHARS = 500
KEPT_BYTES = 8192
"""So much of a large answer is kept until the next piece comes: a usage object and what stands before it."""

FIRST_LESSONS = 16
"""So many tokens of a stream may be parsed before it counts whether that served to recognise others."""

NOTHING = Usage(0, 0)
_QUICK = None if msgspec is None else msgspec.json.Decoder()

_NO_TEXT = "the engine sent an event that is not UTF-8"
_NO_CHUNK = "the engine sent an event that is not a JSON object"
_NO_OBJECT = "the engine's answer is not a JSON object"
_DECODER = json.JSONDecoder()
_OBJECT_START = re.compile(rb"[ \t\r\n]*\{")
_USAGE_OBJECT = re.compile(rb'"usage"\s*:\s*(?=\{)')
_PIECES = ("content", "text", "reasoning", "reasoning_content", "tool_calls", "function_call", "refusal", "audio")


class AnswerMeter:
    """Reads one answer. Call ``head``, ``feed`` for each piece, then ``end`` or ``broken`` once, for the tail.

    ``is_over``: the answer said all that it will, whatever the connection still does. All times in seconds, of one
    monotonic clock.
    """

    __slots__ = ("_body", "_request", "_started", "_status")

    def __init__(self, request: Open, now: float) -> None:
        self._request = request
        self._started = now
        self._body: _Body = _Body()
        self._status = 0

    @property
    def is_over(self) -> bool:
        return self._body.is_over

    def head(self, status: int, content_type: str) -> Optional[Head]:
        """What to pass on of the head; None when nothing of this answer shall be."""
        self._status = status
        head, kind = _read_head(status, content_type)
        self._body = self._body_for(status, kind)
        return None if self._body.failure else head

    def _body_for(self, status: int, kind: str) -> _Body:
        if status >= 400:
            return _Refusal()
        if not 200 <= status < 300:
            return _Body(f"the engine answered with status {status}")
        if self._request.stream:
            return _Stream(self._request) if kind == "text/event-stream" else _Body(_wrong_kind("a stream", kind))
        return _Plain(self._request) if kind.endswith("json") else _Body(_wrong_kind("JSON", kind))

    def feed(self, data: bytes, now: float) -> bytes:
        """What of ``data``, and of what was held back before it, may be passed on: for a stream only whole events."""
        body = self._body
        return b"" if body.is_over else body.feed(data, now)

    def end(self, now: float) -> Tail:
        """The body came to its end as HTTP counts it."""
        failure = self._body.end()
        if self._status >= 400:
            outcome = Outcome.REJECTED if self._status < 500 else Outcome.FAILED
            return self._tail(outcome, failure or f"the engine answered with status {self._status}", now)
        if failure is not None:
            return self._tail(Outcome.FAILED, failure, now)
        return self._tail(Outcome.COMPLETE, None, now)

    def broken(self, outcome: Outcome, error: str, now: float) -> Tail:
        """The answer stopped before its end. If it had said all that counts, or failed by itself, that stands."""
        if self.is_over and outcome is not Outcome.CANCELLED:
            return self.end(now)
        return self._tail(outcome, error, now)

    def _tail(self, outcome: Outcome, error: Optional[str], now: float) -> Tail:
        body = self._body
        return Tail(
            outcome=outcome,
            usage=body.usage(outcome),
            error=error,
            ttft_s=None if body.first_at is None else body.first_at - self._started,
            gap_s=body.gap_s,
            duration_s=now - self._started,
        )


class _Body:
    """A body that says nothing: none came yet, or it is of a kind that is not passed on (then ``failure`` says why)."""

    failure: Optional[str] = None
    is_over = False
    first_at: Optional[float] = None

    def __init__(self, failure: Optional[str] = None) -> None:
        if failure is not None:
            self._fail(failure)

    @property
    def gap_s(self) -> Optional[float]:
        return None

    def feed(self, data: bytes, now: float) -> bytes:  # noqa: ARG002 - others count the time
        return self._fail(f"the engine sent {len(data)} bytes before a head")

    def _fail(self, failure: str) -> bytes:
        """Nothing more passes, and that is why."""
        self.failure = failure
        self.is_over = True
        return b""

    def end(self) -> Optional[str]:
        """Why this is no success; None when it is one."""
        return self.failure or "the engine ended the answer before it began"

    def usage(self, outcome: Outcome) -> Usage:  # noqa: ARG002 - nothing was delivered
        return NOTHING


class _Refusal(_Body):
    """The body of an error status: passed on as it is, up to the limit."""

    _size = 0

    def feed(self, data: bytes, now: float) -> bytes:  # noqa: ARG002
        self._size += len(data)
        return data if self._size <= REFUSAL_LIMIT_BYTES else self._fail(_too_long(REFUSAL_LIMIT_BYTES))

    def end(self) -> Optional[str]:
        return self.failure


class _Plain(_Body):
    """One JSON object, passed on as it comes; read when it is whole. Of a large one only the end is kept."""

    _held: Union[bytes, bytearray] = b""
    _size = 0
    _is_large = False
    _reported: Any = None
    _usage: Optional[Usage] = None

    def __init__(self, request: Open) -> None:
        super().__init__()
        self._request = request

    def feed(self, data: bytes, now: float) -> bytes:  # noqa: ARG002
        self._size += len(data)
        if self._size > BODY_LIMIT_BYTES:
            self._held = b""
            return self._fail(_too_long(BODY_LIMIT_BYTES))
        held: Union[bytes, bytearray] = data
        if self._held:
            held = self._held if isinstance(self._held, bytearray) else bytearray(self._held)
            held += data
        self._held = held if len(held) <= PARSED_WHOLE_BYTES else self._end_of(held)
        return data

    def _end_of(self, held: Union[bytes, bytearray]) -> bytes:
        """The end of what is held of a large answer, after a look at the rest."""
        if not self._is_large and not _OBJECT_START.match(held):
            self._fail(_NO_OBJECT)
        self._is_large = True
        self._reported = _last_usage(held) or self._reported
        return bytes(held[-KEPT_BYTES:])

    def end(self) -> Optional[str]:
        if self.failure is None:
            held, self._held = self._held, b""
            self.failure = self._glance(held) if self._is_large else self._read(held)
            self.is_over = True
        return self.failure

    def _read(self, body: Union[bytes, bytearray]) -> Optional[str]:
        data = _object(body)
        if data is None:
            return _NO_OBJECT
        if (error := _error_in(data)) is not None:
            return error
        self._usage = read_usage(data.get("usage"), self._request) or _estimate(self._request, _said(data))
        return None

    def _glance(self, rest: Union[bytes, bytearray]) -> Optional[str]:
        if not rest.rstrip().endswith(b"}"):
            return _NO_OBJECT
        reported = _last_usage(rest) or self._reported
        self._usage = read_usage(reported, self._request) or _estimate(self._request, 0)
        return None

    def usage(self, outcome: Outcome) -> Usage:
        return self._usage if outcome is Outcome.COMPLETE and self._usage is not None else NOTHING


class _Stream(_Body):
    """Server-sent events: whole ones go on, ``[DONE]`` and errors never, a usage chunk only to those who asked."""

    def __init__(self, request: Open) -> None:
        super().__init__()
        self._request = request
        self._splitter = EventSplitter()
        self._shape = TokenShape()
        self._is_done = False
        self._seen: set[int] = set()
        self._finished: set[int] = set()
        self._usage: Optional[Usage] = None
        self._tokens = 0
        self._parsed = 0
        self._last_at = 0.0

    @property
    def gap_s(self) -> Optional[float]:
        if self.first_at is None or self._tokens < 2:
            return None
        return (self._last_at - self.first_at) / (self._tokens - 1)

    def feed(self, data: bytes, now: float) -> bytes:
        if self._splitter.is_between and self._shape.fits(data):  # one token, as nearly always
            self._count(now)
            return data
        try:
            events = self._splitter.feed(data)
        except EventTooLong:
            return self._fail("the engine sent an event that is too long")
        passed = []
        for event in events:
            if (kept := self._event(event, now)) is not None:
                passed.append(kept)
            if self.is_over:
                break
        return b"\n\n".join([*passed, b""]) if passed else b""

    def _event(self, event: bytes, now: float) -> Optional[bytes]:
        """What of one event goes on; None: nothing."""
        if self._shape.fits(event + b"\n\n"):
            self._count(now)
            return event
        payload = payload_of(event)
        if payload == b"[DONE]":
            self._is_done = self.is_over = True
            return None
        if payload is not None:
            return self._read(event, payload, now)
        return event if _is_text(event) else self._refuse(_NO_TEXT)

    def _read(self, event: bytes, payload: bytes, now: float) -> Optional[bytes]:
        chunk = _object(payload)
        if chunk is None or (b"\n" in event and not _is_text(event)):
            return self._refuse(_NO_CHUNK if _is_text(event) else _NO_TEXT)
        if (error := _error_in(chunk)) is not None or is_named_error(event):
            return self._refuse(error or _message(chunk))
        choices, usage = chunk.get("choices"), chunk.get("usage")
        token: Any = None
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict) or not self._see(choice):
                return self._refuse("the engine sent an event that is no chunk of an answer")
            if token := _piece_of(choice):
                self._count(now)
        if isinstance(usage, dict):
            return self._pass_usage(event, chunk, usage)
        if isinstance(token, str) and isinstance(choices, list) and len(choices) == 1:
            self._learn(event, token, choices[0])
        return event

    def _see(self, choice: dict[str, Any]) -> bool:
        """Take note of which choice this is and whether it is finished; False where that cannot be."""
        index = choice.get("index", 0)
        if type(index) is not int or not 0 <= index < MOST_CHOICES:
            return False
        self._seen.add(index)
        if choice.get("finish_reason"):
            self._finished.add(index)
        return True

    def _learn(self, event: bytes, token: str, choice: dict[str, Any]) -> None:
        """Events like this one, which is one token of one choice, need not be parsed; unless each differs from all
        others also in something else, which shows when most had to be."""
        self._parsed += 1
        if not choice.get("finish_reason") and 2 * self._parsed <= self._tokens + FIRST_LESSONS:
            self._shape.learn(event, token)

    def _pass_usage(self, event: bytes, chunk: dict[str, Any], usage: dict[str, Any]) -> Optional[bytes]:
        self._usage = read_usage(usage, self._request) or self._usage
        if not self._request.hide_usage:
            return event
        return _without_usage(chunk) if chunk.get("choices") else None

    def _refuse(self, failure: str) -> Optional[bytes]:
        self._fail(failure)
        return None

    def _count(self, now: float) -> None:
        self._tokens += 1
        self._last_at = now
        if self.first_at is None:
            self.first_at = now

    def end(self) -> Optional[str]:
        if self.failure is None:
            if not self._is_done and self._splitter.rest.strip() in (b"data: [DONE]", b"data:[DONE]"):
                self._is_done = True
            self.failure = self._lacks()
            self.is_over = True
        return self.failure

    def _lacks(self) -> Optional[str]:
        if not self._is_done:
            return "the engine ended the stream without [DONE]"
        if not self._seen or self._finished < self._seen:
            return "the engine ended the stream without a finish_reason"
        return None

    def usage(self, outcome: Outcome) -> Usage:  # noqa: ARG002 - what was delivered counts, however it ended
        if self._usage is not None:
            return self._usage
        if self._tokens == 0 and not self._finished:
            return NOTHING
        return Usage(ceil(self._request.body_bytes / BYTES_PER_TOKEN), self._tokens, estimated=True)


@lru_cache(maxsize=64)
def _read_head(status: int, content_type: str) -> tuple[Head, str]:
    """What passes on of a head, and the kind of its content; remembered, since they are few."""
    return Head(status, content_type), content_type.split(";")[0].strip().lower()


def read_usage(data: Any, request: Open) -> Optional[Usage]:
    """An engine's usage object; None when it is none or cannot be true."""
    if not isinstance(data, dict):
        return None
    prompt, completion = data.get("prompt_tokens"), data.get("completion_tokens") or 0
    if type(prompt) is not int or type(completion) is not int:
        return None
    if not 0 <= prompt <= request.body_bytes + TEMPLATE_TOKENS or not 0 <= completion <= MOST_COMPLETION_TOKENS:
        return None
    return Usage(prompt, completion)


def _estimate(request: Open, said_bytes: int) -> Usage:
    return Usage(ceil(request.body_bytes / BYTES_PER_TOKEN), ceil(said_bytes / BYTES_PER_TOKEN), estimated=True)


def _object(data: Union[bytes, bytearray]) -> Optional[dict[str, Any]]:
    if _QUICK is not None:
        try:
            value = _QUICK.decode(data)
        except (msgspec.DecodeError, ValueError, RecursionError):
            pass  # json reads some that are not quite JSON, as with NaN, and has the last word
        else:
            return value if isinstance(value, dict) else None
    try:
        text = data.decode().strip(" \t\r\n")
        value, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return value if end == len(text) and isinstance(value, dict) else None


def _error_in(data: dict[str, Any]) -> Optional[str]:
    """The message of an error that came with a good status, in any of the shapes in use; None: no error."""
    return _message(data) if data.get("error") or data.get("object") == "error" else None


def _message(data: dict[str, Any]) -> str:
    error = data.get("error") or data
    message = error.get("message") if isinstance(error, dict) else error
    return message[:ERROR_CHARS] if isinstance(message, str) and message else "the engine reported an error"


def _piece_of(choice: dict[str, Any]) -> Any:
    """What a choice of a chunk brings: text, reasoning, a part of a tool call; None for nothing."""
    delta = choice.get("delta", choice)
    if isinstance(delta, dict):
        for key in _PIECES:
            if piece := delta.get(key):
                return piece
    return None


def _said(data: dict[str, Any]) -> int:
    """Bytes of text in the choices of a plain answer."""
    choices = data.get("choices")
    said = [c.get("message", c) for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
    pieces = [s[key] for s in said if isinstance(s, dict) for key in _PIECES if s.get(key)]
    return sum(len(p.encode("utf-8", "replace") if isinstance(p, str) else json.dumps(p)) for p in pieces)


def _without_usage(chunk: dict[str, Any]) -> bytes:
    rest = {key: value for key, value in chunk.items() if key != "usage"}
    return b"data: " + json.dumps(rest, separators=(",", ":")).encode()


def _last_usage(body: Union[bytes, bytearray]) -> Any:
    """The last usage object in the text of a large answer, or None."""
    found = None
    for found in _USAGE_OBJECT.finditer(body):  # noqa: B007 - the last one is wanted
        pass
    if found is None:
        return None
    try:
        return _DECODER.raw_decode(body[found.end() : found.end() + 4096].decode("utf-8", "replace"))[0]
    except (ValueError, RecursionError):
        return None


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _wrong_kind(wanted: str, kind: str) -> str:
    return f"the engine answered with {kind[:60] or 'no content-type'} where {wanted} was asked for"


def _too_long(limit_bytes: int) -> str:
    return f"the engine's answer is longer than {limit_bytes // 1024**2} MiB"
