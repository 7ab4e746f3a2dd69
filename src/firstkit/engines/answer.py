"""What an engine's answer says while it passes: which bytes go on, what was used, how it ended. Pure: times come in.

An ending is COMPLETE only where the engine said so: a stream by the words of its protocol (of chunks a finish_reason
for every choice and ``[DONE]``), a plain answer by a whole JSON object. All else is FAILED (or TIMEOUT, CANCELLED: the
caller knows). What is accounted:

- the engine's own numbers, if they can be true;
- else, for what was delivered, an estimate that is flagged as one: a token for each piece of text of a stream, four
  bytes of the request for a token of the prompt;
- else nothing was delivered and the usage is exactly zero: a request that was refused, or broke before any text.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Optional

from firstkit.engines.body import Body, Plain, Product, Refusal, TaskJson
from firstkit.engines.named import MessageStream, ResponseStream
from firstkit.engines.stream import ChunkStream
from firstkit.links.messages import Head, Open, Outcome, Tail

COUNT_TOKENS = "/v1/messages/count_tokens"
_STREAMS = {"/v1/responses": ResponseStream, "/v1/messages": MessageStream}
_JSON_ONLY = frozenset(
    ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages", COUNT_TOKENS)
)


class AnswerMeter:
    """Reads one answer. Call ``head``, ``feed`` for each piece, then ``end`` or ``broken`` once, for the tail.

    ``is_over``: the answer said all that it will, whatever the connection still does. All times in seconds, of one
    monotonic clock.
    """

    __slots__ = ("_body", "_refusals", "_request", "_started", "_status")

    def __init__(self, request: Open, now: float, refusals: tuple[bytes, ...] = ()) -> None:
        """``refusals``: see ``Habits``."""
        self._request = request
        self._refusals = refusals
        self._started = now
        self._body: Body = Body()
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

    def _body_for(self, status: int, kind: str) -> Body:
        if status >= 400:
            return Refusal(self._refusals)
        if not 200 <= status < 300:
            return Body(f"the engine answered with status {status}")
        request = self._request
        if request.stream:
            if kind != "text/event-stream":
                return Body(_wrong_kind("a stream", kind))
            return _STREAMS.get(request.path, ChunkStream)(request)
        if request.path in _JSON_ONLY:
            is_free = request.path == COUNT_TOKENS
            return Plain(request, is_free) if kind.endswith("json") else Body(_wrong_kind("JSON", kind))
        return TaskJson(request) if kind.endswith("json") else Product(request)

    def feed(self, data: bytes, now: float) -> bytes:
        """What of ``data``, and of what was held back before it, may be passed on: for a stream only whole events."""
        body = self._body
        return b"" if body.is_over else body.feed(data, now)

    def end(self, now: float) -> Tail:
        """The body came to its end as HTTP counts it."""
        body = self._body
        failure = body.end()
        if self._status >= 400:
            is_theirs = self._status < 500 or (isinstance(body, Refusal) and body.is_of_request)
            outcome = Outcome.REJECTED if is_theirs else Outcome.FAILED
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


@lru_cache(maxsize=64)
def _read_head(status: int, content_type: str) -> tuple[Head, str]:
    """What passes on of a head, and the kind of its content; remembered, since they are few."""
    return Head(status, content_type), content_type.split(";")[0].strip().lower()


def _wrong_kind(wanted: str, kind: str) -> str:
    return f"the engine answered with {kind[:60] or 'no content-type'} where {wanted} was asked for"
