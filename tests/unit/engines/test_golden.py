"""Streams as engines send them: vLLM 0.32 by its source, llama.cpp (xllamacpp 2026.10.11549) as it was recorded."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from firstkit.engines.answer import AnswerMeter
from firstkit.links.messages import Outcome, Usage
from unit.engines.support import request

GOLDEN = Path(__file__).parent / "golden"
PIECES = (1, 2, 7, 64, 4096)


@dataclass(frozen=True)
class Recorded:
    """``last``: how many events at the end do not go on."""

    file: str
    path: str
    usage: Usage
    pieces: int
    last: int = 0


CHUNKS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
STREAMS = [
    Recorded("vllm.responses.sse", RESPONSES, Usage(33, 6), 6),
    Recorded("vllm.messages.sse", MESSAGES, Usage(33, 21), 6, last=1),
    Recorded("llamacpp.messages.sse", MESSAGES, Usage(34, 6), 6, last=1),
    Recorded("llamacpp.chat.sse", CHUNKS, Usage(34, 6), 6, last=1),
]
each = pytest.mark.parametrize("recorded", STREAMS, ids=lambda recorded: recorded.file)


def events(data: bytes) -> list[bytes]:
    return [event for event in data.split(b"\n\n") if event]


@each
@pytest.mark.parametrize("size", PIECES)
def test_a_recorded_stream(recorded: Recorded, size: int) -> None:
    stream = (GOLDEN / recorded.file).read_bytes()
    meter = AnswerMeter(request(path=recorded.path), 0.0)
    meter.head(200, "text/event-stream")
    passed = b"".join(meter.feed(stream[at : at + size], 1.0) for at in range(0, len(stream), size))
    assert events(passed) == events(stream)[: len(events(stream)) - recorded.last]
    tail = meter.end(2.0)
    assert (tail.outcome, tail.error, tail.usage) == (Outcome.COMPLETE, None, recorded.usage)


@each
def test_a_recorded_stream_that_is_cut_anywhere(recorded: Recorded) -> None:
    """It is never taken for whole, and each piece of text that went on is counted."""
    told = events((GOLDEN / recorded.file).read_bytes())
    for count in range(len(told)):
        meter = AnswerMeter(request(path=recorded.path), 0.0)
        meter.head(200, "text/event-stream")
        for event in told[:count]:
            meter.feed(event + b"\n\n", 1.0)
        tail = meter.end(2.0)
        if count < len(told) - max(recorded.last, 1):
            assert tail.outcome is Outcome.FAILED
        assert tail.usage is not None
        assert tail.usage.completion_tokens <= max(recorded.pieces, recorded.usage.completion_tokens)


@each
def test_events_come_in_the_order_of_their_protocol(recorded: Recorded) -> None:
    told = [event.split(b"data: ", 1)[1] for event in events((GOLDEN / recorded.file).read_bytes())]
    if recorded.path == CHUNKS:
        assert told[-1] == b"[DONE]"
        assert json.loads(told[-2])["choices"] == []
        return
    kinds = [json.loads(data)["type"] for data in told]
    if recorded.path == RESPONSES:
        assert kinds[:2] == ["response.created", "response.in_progress"]
        assert kinds[-1] == "response.completed"
    else:
        assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
    assert all(one != "message_stop" for one, _ in itertools.pairwise(kinds))
