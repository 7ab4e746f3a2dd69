"""Fuzz target for answers of engines: any bytes, cut anywhere, never raise, and mean the same however they are cut.

Streams are read a second time with every event parsed: the short cut for tokens may not change what is passed on, how
it ended, or what it cost.
"""

from __future__ import annotations

import json
import random
import re
from unittest import mock

from firstkit.engines import body, stream
from firstkit.engines.answer import AnswerMeter
from firstkit.engines.sse import EventSplitter, EventTooLong
from firstkit.links.messages import Open, Outcome, Usage
from fuzz.driver import Target, damaged, pieces, some

LIMIT_BYTES = 64
STATUSES = [200, 200, 200, 200, 201, 204, 302, 400, 500]
KINDS = ["text/event-stream", "application/json", "text/html"]
Seen = tuple[bytes, Outcome, Usage | None, str | None]


class NoShape:
    """In the place of TokenShape: nothing fits, so every event is parsed."""

    def learn(self, event: bytes, text: str) -> None:
        pass

    def fits(self, data: bytes) -> bool:
        return False


def run_one(data: bytes) -> None:
    """The first three bytes say how to cut the rest, and what was asked and answered."""
    if len(data) < 3:
        return
    step, asked, answered, data = data[0] + 1, data[1], data[2], data[3:]
    seen = read(data, step, asked, answered)
    if asked % 2 == 0 and STATUSES[answered % len(STATUSES)] < 400:
        look_as_clients_do(seen[0])
    assert seen == read(data, len(data) or 1, asked, answered)
    with mock.patch.object(stream, "TokenShape", NoShape):
        assert seen == read(data, step, asked, answered)
    with mock.patch.multiple(body, PARSED_WHOLE_BYTES=50, KEPT_BYTES=20, BODY_LIMIT_BYTES=500):
        read(data, step, asked, answered)
    split(data, step)


def read(data: bytes, step: int, asked: int, answered: int) -> Seen:
    """What is passed on of an answer, and its tail."""
    request = Open("rep-1", "POST", "/v1/x", 400, {}, stream=asked % 2 == 0, hide_usage=asked % 4 < 2)
    meter = AnswerMeter(request, 0.0)
    head = meter.head(STATUSES[answered % len(STATUSES)], KINDS[answered // len(STATUSES) % len(KINDS)])
    passed = b""
    for piece in pieces(data, step):
        passed += meter.feed(piece, 1.0)
        if meter.is_over:
            break
    assert head is not None or not passed
    tail = meter.broken(Outcome.CANCELLED, "", 2.0) if asked & 16 else meter.end(2.0)
    assert tail.usage is not None
    assert tail.usage.prompt_tokens >= 0
    assert tail.usage.completion_tokens >= 0
    assert tail.outcome is not Outcome.COMPLETE or head is not None
    return passed, tail.outcome, tail.usage, tail.error


def look_as_clients_do(passed: bytes) -> None:
    """To whoever reads by the rules of server-sent events, all that was passed on is whole objects, and never an end:
    that is ours to say."""
    for event in re.split(rb"(?:\r\n|\n|\r){2}", passed):
        lines = [line[5:] for line in re.split(rb"\r\n|\n|\r", event) if line.startswith(b"data:")]
        assert not lines or isinstance(json.loads(b"\n".join(lines)), dict)


def split(data: bytes, step: int) -> None:
    """Never more is kept than the limit says, and no byte of an event is lost."""
    splitter = EventSplitter(LIMIT_BYTES)
    try:
        for piece in pieces(data, step):
            events = splitter.feed(piece)
            assert all(events)
            assert not any(b"\n\n" in event for event in events)
            assert len(splitter.rest) <= LIMIT_BYTES
    except EventTooLong:
        pass


def _chunk(delta: object, **more: object) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return b"data: " + json.dumps({"id": "x", "choices": [choice], **more}).encode()


EVENTS = [
    *[_chunk({"content": text}) for text in ("a", "bc", "é", "\n", '"', "content", "x", "0")],
    _chunk({"content": "é"}).replace(b"\\u00e9", "é".encode()),
    *[_chunk({"content": "y"}, **{key: {"message": "no"}}).replace(b'"y"}', b'"\\u0079"}') for key in ("y", "error")],
    b": ping\rdata: [DONE]",
    _chunk({"role": "assistant", "content": None}),
    _chunk({"tool_calls": [{"function": {"arguments": "{"}}]}),
    _chunk({}, usage={"prompt_tokens": 3, "completion_tokens": 2}),
    _chunk({}, usage={"prompt_tokens": -3, "completion_tokens": 10**30}),
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}',
    b'data: {"choices":[{"index":7,"text":"a","finish_reason":"length"}]}',
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}',
    b'data: {"error":{"message":"no"}}',
    b'data: {"object":"error","message":7}',
    b'event: error\ndata: {"message":"no"}',
    b"data: [DONE]",
    b"data: {}",
    b"data: [1]",
    b"data: " + b'{"a":' * 30,
    b"data: \xe2\x82",
    b": ping",
    b"event: ping",
    b"data",
    b"id: 1\ndata: {\ndata: }",
]
ENDS = [b"\n\n", b"\n\n", b"\n\n", b"\r\n\r\n", b"\n\r\n", b"\n", b"\r"]
WHOLE = [
    b'{"choices":[{"index":0,"message":{"content":"hello"}}],"usage":{"prompt_tokens":3,"completion_tokens":2}}',
    b'{"choices":[{"text":"hello"}]}',
    b'{"error":"no"}',
    b'{"data":[{"embedding":[0.1]}],"usage":{"prompt_tokens":3}}',
    b"[]",
    b"NaN",
]


def random_input(chance: random.Random) -> bytes:
    """Mostly a stream of events, as engines write them or nearly so; sometimes one object."""
    start = chance.randbytes(3)
    if chance.random() < 0.2:
        return start + some(chance, WHOLE, 2)
    events = [damaged(event, chance) if chance.random() < 0.1 else event for event in chance.choices(EVENTS, k=6)]
    stream = b"".join(event + chance.choice(ENDS) for event in chance.choices(events, k=chance.randrange(14)))
    return start + stream


TARGET = Target(run_one, random_input)

if __name__ == "__main__":
    TARGET.main(__doc__)
