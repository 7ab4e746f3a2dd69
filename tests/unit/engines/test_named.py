"""Streams of Responses and Messages: what of them goes on, how they end, what is accounted."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.engines import named
from firstkit.engines.answer import AnswerMeter
from firstkit.engines.named import MessageStream, ResponseStream
from firstkit.links.messages import Open, Outcome, Tail, Usage
from unit.engines.support import data, request

SSE = "text/event-stream; charset=utf-8"
ESTIMATE = 100  # of the 400 bytes of support.request()
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"


def event(kind: str, **values: Any) -> bytes:
    """As vLLM and SGLang write it: a name, then compact JSON with the type in it."""
    return b"event: %b\n" % kind.encode() + data({**values, "type": kind})


def ask(path: str) -> Open:
    return request(path=path)


def run(body: bytes | list[bytes], path: str) -> tuple[bytes, Tail]:
    meter = AnswerMeter(ask(path), 10.0)
    meter.head(200, SSE)
    passed = b"".join(meter.feed(piece, 11.0) for piece in ([body] if isinstance(body, bytes) else body))
    return passed, meter.end(12.0)


# -- Responses -----------------------------------------------------------------------------------------------------

USAGE = {
    "input_tokens": 36,
    "input_tokens_details": {"cached_tokens": 16, "cache_write_tokens": 0},
    "output_tokens": 3,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 39,
}


def response(status: str, **more: Any) -> dict[str, Any]:
    return {"id": "resp_1", "object": "response", "status": status, "error": None, "output": [], **more}


def text_delta(text: str, number: int = 4) -> bytes:
    return event(
        "response.output_text.delta",
        content_index=0,
        delta=text,
        item_id="msg_1",
        logprobs=[],
        output_index=0,
        sequence_number=number,
    )


CREATED = event("response.created", response=response("in_progress", usage=None), sequence_number=0)
RUNNING = event("response.in_progress", response=response("in_progress", usage=None), sequence_number=1)
ITEM = event("response.output_item.added", item={"id": "msg_1", "type": "message"}, output_index=0, sequence_number=2)
COMPLETED = event("response.completed", response=response("completed", usage=USAGE), sequence_number=9)
INCOMPLETE = event("response.incomplete", response=response("incomplete", usage=USAGE), sequence_number=9)
WORDS = b"".join(text_delta(text, 3 + i) for i, text in enumerate(("The ", "capital", ".")))
START = CREATED + RUNNING + ITEM


@pytest.mark.parametrize("told", [{}, {"response": None}, {"response": "resp_1"}, {"response": []}])
def test_a_last_event_without_the_response_is_none(told: dict[str, Any]) -> None:
    passed, tail = run(START + WORDS + event("response.completed", sequence_number=9, **told), RESPONSES)
    assert passed == START + WORDS
    assert tail.outcome is Outcome.FAILED
    assert tail.error == "the engine sent response.completed without the response"
    assert tail.usage == Usage(ESTIMATE, 3, estimated=True)


def test_a_whole_response_goes_on_in_order() -> None:
    passed, tail = run(START + WORDS + COMPLETED, RESPONSES)
    assert passed == START + WORDS + COMPLETED
    assert tail == Tail(Outcome.COMPLETE, Usage(36, 3), None, 1.0, 0.0, 2.0)


def test_a_response_that_was_cut_for_length_ended_well() -> None:
    passed, tail = run(START + WORDS + INCOMPLETE, RESPONSES)
    assert (passed, tail.outcome, tail.usage) == (START + WORDS + INCOMPLETE, Outcome.COMPLETE, Usage(36, 3))


@pytest.mark.parametrize(
    "last",
    [
        COMPLETED.partition(b"\n")[2],
        b"event:response.completed\n" + COMPLETED.partition(b"\n")[2],
        b"id: 7\nevent: response.completed\nretry: 1\n" + COMPLETED.partition(b"\n")[2],
        COMPLETED.replace(b"\n", b"\r\n"),
    ],
    ids=["no name", "no blank", "more fields", "CRLF"],
)
def test_the_last_event_of_a_response_has_one_form(last: bytes) -> None:
    """The gateway knows it by its first line, at the start of an event."""
    passed, tail = run(START + WORDS + last, RESPONSES)
    assert passed == START + WORDS + COMPLETED
    assert tail.usage == Usage(36, 3)


def test_nothing_follows_the_last_event_of_a_response() -> None:
    for late in (data("[DONE]"), WORDS, event("error", message="late"), b"garbage\n\n"):
        passed, tail = run(START + COMPLETED + late, RESPONSES)
        assert (passed, tail.outcome) == (START + COMPLETED, Outcome.COMPLETE)
        passed, tail = run([START + COMPLETED, late], RESPONSES)
        assert (passed, tail.outcome) == (START + COMPLETED, Outcome.COMPLETE)


def test_a_response_without_usage_is_estimated_by_its_pieces() -> None:
    reasoning = event("response.reasoning_text.delta", delta="hm", item_id="rs_1", sequence_number=3)
    arguments = event("response.function_call_arguments.delta", delta='{"a"', item_id="fc_1", sequence_number=4)
    other = event("response.output_text.annotation.added", annotation={}, sequence_number=5)
    empty = text_delta("", 6)
    last = event("response.completed", response=response("completed", usage=None), sequence_number=9)
    _, tail = run(START + reasoning + arguments + other + empty + WORDS + last, RESPONSES)
    assert (tail.outcome, tail.usage) == (Outcome.COMPLETE, Usage(ESTIMATE, 5, estimated=True))


RESPONSE_FAILURES: list[tuple[str, bytes, str, Usage | None]] = [
    (
        "failed",
        event("response.failed", response=response("failed", error={"code": "server_error", "message": "no memory"})),
        "no memory",
        Usage(ESTIMATE, 3, True),
    ),
    ("failed without words", event("response.failed", response=response("failed")), "reported an error", None),
    ("an error event", event("error", code="server_error", message="no memory", param=None), "no memory", None),
    ("an error without a name", event("error", message="no memory").partition(b"\n")[2], "no memory", None),
    ("an error as others say it", data({"error": {"message": "no memory", "code": 500}}), "no memory", None),
    ("no type", b"event: response.output_text.delta\n" + data({"delta": "x"}), "without a type", None),
    ("no JSON", b"event: response.output_text.delta\n" + data("{nope"), "not a JSON object", None),
    ("no UTF-8", b"event: x\xff\n" + data({"type": "x"}), "not UTF-8", None),
    ("[DONE] instead", data("[DONE]"), "without response.completed", None),
    ("nothing", b"", "without response.completed", Usage(ESTIMATE, 3, True)),
    ("half of the last event", COMPLETED[:-9], "without response.completed", Usage(ESTIMATE, 3, True)),
]


@pytest.mark.parametrize(
    ("last", "error", "usage"), [f[1:] for f in RESPONSE_FAILURES], ids=[f[0] for f in RESPONSE_FAILURES]
)
def test_responses_that_fail(last: bytes, error: str, usage: Usage | None) -> None:
    passed, tail = run(START + WORDS + last + COMPLETED * (error != "without response.completed"), RESPONSES)
    assert passed == START + WORDS
    assert tail.outcome is Outcome.FAILED
    assert error in (tail.error or "")
    assert usage is None or tail.usage == usage


def test_a_response_of_which_nothing_was_said_used_nothing() -> None:
    assert run(CREATED + RUNNING, RESPONSES)[1].usage == Usage(0, 0)


def test_what_broke_after_the_last_event_is_whole() -> None:
    for path, good in ((RESPONSES, START + WORDS + COMPLETED), (MESSAGES, HELLO + STOP)):
        meter = AnswerMeter(ask(path), 0.0)
        meter.head(200, SSE)
        meter.feed(good, 1.0)
        assert meter.is_over
        assert meter.broken(Outcome.FAILED, "reset", 2.0).outcome is Outcome.COMPLETE


# -- Messages ------------------------------------------------------------------------------------------------------


def message_start(**usage: Any) -> bytes:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "stop_reason": None}
    return event("message_start", message={**message, "usage": usage})


def block_delta(text: str, kind: str = "text", index: int = 0) -> bytes:
    delta = {"type": {"text": "text_delta", "thinking": "thinking_delta", "partial_json": "input_json_delta"}[kind]}
    return event("content_block_delta", index=index, delta={**delta, kind: text})


def message_delta(reason: str | None = "end_turn", **usage: Any) -> bytes:
    return event("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage=usage)


BLOCK = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
BLOCK_STOP = event("content_block_stop", index=0)
PING = event("ping")
STOP = event("message_stop")
SAID = BLOCK + block_delta("Hel") + block_delta("lo") + BLOCK_STOP
HELLO = message_start(input_tokens=20, output_tokens=0) + PING + SAID + message_delta(input_tokens=20, output_tokens=5)


def test_a_whole_message_goes_on_but_for_its_end() -> None:
    """The gateway says message_stop itself, when what was used is written down."""
    passed, tail = run(HELLO + STOP, MESSAGES)
    assert passed == HELLO
    assert tail == Tail(Outcome.COMPLETE, Usage(20, 5), None, 1.0, 0.0, 2.0)


@pytest.mark.parametrize(
    ("start", "delta", "expected"),
    [
        ({"input_tokens": 20, "output_tokens": 0}, {"output_tokens": 5}, Usage(20, 5)),
        ({"input_tokens": 4, "cache_read_input_tokens": 16, "output_tokens": 0}, {"output_tokens": 5}, Usage(20, 5)),
        (
            {"input_tokens": 0, "output_tokens": 0},
            {"input_tokens": 4, "output_tokens": 5, "cache_read_input_tokens": 10, "cache_creation_input_tokens": 6},
            Usage(20, 5),
        ),
        ({"input_tokens": 20, "output_tokens": 1}, {"input_tokens": None, "output_tokens": 5}, Usage(20, 5)),
        ({"input_tokens": 20, "output_tokens": 1}, {}, Usage(ESTIMATE, 2, estimated=True)),
        ({}, {}, Usage(ESTIMATE, 2, estimated=True)),
        ({"input_tokens": 10**9}, {"output_tokens": 5}, Usage(ESTIMATE, 2, estimated=True)),
        ({"input_tokens": 20}, {"output_tokens": -5}, Usage(ESTIMATE, 2, estimated=True)),
        ({"input_tokens": 20}, {"output_tokens": True}, Usage(ESTIMATE, 2, estimated=True)),
    ],
)
def test_usage_of_messages_comes_in_two_parts(start: dict[str, Any], delta: dict[str, Any], expected: Usage) -> None:
    _, tail = run(message_start(**start) + SAID + message_delta(**delta) + STOP, MESSAGES)
    assert (tail.outcome, tail.usage) == (Outcome.COMPLETE, expected)


def test_usage_of_a_message_that_was_cut_is_estimated() -> None:
    """What its start says of the answer is no more than that it has begun."""
    _, tail = run(message_start(input_tokens=20, output_tokens=1) + SAID, MESSAGES)
    assert (tail.outcome, tail.usage) == (Outcome.FAILED, Usage(ESTIMATE, 2, estimated=True))
    assert run(message_start(input_tokens=20, output_tokens=1) + PING, MESSAGES)[1].usage == Usage(0, 0)


def test_tokens_of_messages_are_text_thoughts_and_arguments() -> None:
    pieces = block_delta("hm", "thinking") + block_delta('{"a":', "partial_json", 1) + block_delta("", "text")
    signature = event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "abc"})
    _, tail = run(message_start() + pieces + signature + message_delta() + STOP, MESSAGES)
    assert tail.usage == Usage(ESTIMATE, 2, estimated=True)


MESSAGE_FAILURES: list[tuple[str, bytes, str]] = [
    ("overloaded", event("error", error={"type": "overloaded_error", "message": "too much"}), "too much"),
    ("without a name", event("error", error={"type": "api_error", "message": "too much"}).partition(b"\n")[2], "too m"),
    ("no stop_reason", message_delta(None, output_tokens=2) + STOP, "without a stop_reason"),
    ("no reason and no numbers", STOP, "without a stop_reason"),
    ("no message_stop", message_delta(output_tokens=2), "without message_stop"),
    ("half of it", message_delta(output_tokens=2) + STOP[:-3], "without message_stop"),
    ("[DONE]", message_delta(output_tokens=2) + data("[DONE]"), "without message_stop"),
    ("nothing", b"", "without message_stop"),
]


@pytest.mark.parametrize(("last", "error"), [f[1:] for f in MESSAGE_FAILURES], ids=[f[0] for f in MESSAGE_FAILURES])
def test_messages_that_fail(last: bytes, error: str) -> None:
    passed, tail = run(message_start(input_tokens=9) + SAID + last, MESSAGES)
    assert tail.outcome is Outcome.FAILED
    assert error in (tail.error or "")
    assert passed.startswith(message_start(input_tokens=9) + SAID)
    assert b"error" not in passed
    assert b"message_stop" not in passed


def test_what_comes_after_message_stop_reaches_nobody() -> None:
    for late in (data("[DONE]"), PING, block_delta("late")):
        assert run([HELLO + STOP, late], MESSAGES)[0] == run(HELLO + STOP + late, MESSAGES)[0] == HELLO


# -- any split -----------------------------------------------------------------------------------------------------

TRICKY = ['"sequence_number":7', '\\"sequence_number\\":7', '"delta"', "delta", "response.completed", "message_stop",
          "event: error", "\n\n", "event: error\ndata: {}\n\n", "[DONE]", '"', "\\", "é", "😀", "\u2028", "0", "",
          '"type":"error"', "text", "msg_1"]  # fmt: skip
texts = st.lists(st.sampled_from(TRICKY) | st.text(max_size=10), max_size=12)
cuts = st.lists(st.integers(0, 5000), max_size=10)


def split(wire: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(wire) + 1) for cut in cuts), len(wire)]
    return [wire[a:b] for a, b in itertools.pairwise(edges)]


@given(texts, cuts, st.booleans(), st.booleans())
def test_a_response_in_any_split(texts: list[str], cuts: list[int], is_crlf: bool, has_usage: bool) -> None:
    words = b"".join(text_delta(text, i * 37) for i, text in enumerate(texts))
    last = event("response.completed", response=response("completed", usage=USAGE if has_usage else None))
    stream = START + words + last
    passed, tail = run(split(stream.replace(b"\n", b"\r\n") if is_crlf else stream, cuts), RESPONSES)
    assert passed == stream
    said = sum(map(bool, texts))
    assert (tail.outcome, tail.error) == (Outcome.COMPLETE, None)
    assert tail.usage == (Usage(36, 3) if has_usage else Usage(ESTIMATE, said, estimated=True))


@given(texts, cuts, st.booleans(), st.booleans())
def test_a_message_in_any_split(texts: list[str], cuts: list[int], is_crlf: bool, has_usage: bool) -> None:
    usage = {"input_tokens": 20, "output_tokens": 5} if has_usage else {}
    good = message_start() + BLOCK + b"".join(map(block_delta, texts)) + BLOCK_STOP + message_delta(**usage)
    stream = good + STOP
    passed, tail = run(split(stream.replace(b"\n", b"\r\n") if is_crlf else stream, cuts), MESSAGES)
    assert passed == good
    assert tail.outcome is Outcome.COMPLETE
    assert tail.usage == (Usage(20, 5) if has_usage else Usage(ESTIMATE, sum(map(bool, texts)), estimated=True))


pieces = st.binary(max_size=40) | st.sampled_from([CREATED, WORDS, COMPLETED, SAID, STOP, HELLO, PING, b"data: {}\n\n"])


@given(st.lists(pieces, max_size=12), st.sampled_from([RESPONSES, MESSAGES]))
def test_garbage_is_never_raised_and_partial_events_never_pass(pieces: list[bytes], path: str) -> None:
    whole, tail = run(b"".join(pieces), path)
    passed, same = run(pieces, path)
    assert (passed, same.outcome, same.usage) == (whole, tail.outcome, tail.usage)
    assert passed == b"" or passed.endswith(b"\n\n")


# -- the short cut -------------------------------------------------------------------------------------------------


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The types of the events that were parsed."""
    seen: list[str] = []
    for kind in (ResponseStream, MessageStream):
        really: Callable[..., Any] = kind._token

        def token(self: Any, kind: str, data: dict[str, Any], really: Callable[..., Any] = really) -> Any:
            seen.append(kind)
            return really(self, kind, data)

        monkeypatch.setattr(kind, "_token", token)
    return seen


def test_tokens_that_differ_in_text_and_number_are_parsed_once(parsed: list[str]) -> None:
    events = [text_delta(f" word{i}", i) for i in range(1, 2000)]
    passed, tail = run([START, *events, COMPLETED.replace(b'"usage"', b'"x"')], RESPONSES)
    assert b"".join(events) in passed
    assert tail.usage == Usage(ESTIMATE, 1999, estimated=True)
    assert parsed.count("response.output_text.delta") == 1


def test_tokens_of_messages_are_parsed_once_for_each_block(parsed: list[str]) -> None:
    blocks = [[block_delta(f" word{i}", kind, n) for i in range(200)] for n, kind in enumerate(("thinking", "text"))]
    _, tail = run([message_start(), *blocks[0], *blocks[1], message_delta(), STOP], MESSAGES)
    assert tail.usage == Usage(ESTIMATE, 400, estimated=True)
    assert parsed.count("content_block_delta") == 2


@pytest.mark.parametrize(
    "number", [b"", b"007", b"-1", b"1.5", b"4e2", b'"4"', b"null", b" 4", b"4 ", b"4]", b'4,"delta":"x"']
)
def test_an_event_with_another_number_is_looked_at(number: bytes, parsed: list[str]) -> None:
    other = text_delta("b", 12345).replace(b"12345", number)
    passed, tail = run([text_delta("a", 1), text_delta("b", 2), other], RESPONSES)
    try:
        json.loads(other.partition(b"data: ")[2])
    except ValueError:
        assert other not in passed
        assert tail.error == "the engine sent an event that is not a JSON object"
    else:
        assert parsed.count("response.output_text.delta") == 2


@pytest.mark.parametrize("number", [0, 7, 10, 123456789])
def test_a_number_is_taken_out_where_there_is_one(number: int) -> None:
    assert named._unnumbered(b'{"sequence_number":%d,"a":1}' % number) == b'{"sequence_number":0,"a":1}'
    assert named._unnumbered(b'{"a":1}') == b'{"a":1}'
    assert named._unnumbered(b'"sequence_number":') == b'"sequence_number":'


@given(st.integers(0, 10**12), st.text(min_size=1, max_size=8), st.text(max_size=8), st.integers(0, 10**12))
def test_what_fits_is_the_same_but_for_text_and_number(first: int, learnt: str, text: str, number: int) -> None:
    stream = ResponseStream(ask(RESPONSES))
    stream.feed(text_delta(learnt, first), 1.0)
    event = text_delta(text, number)
    assert stream.feed(event, 2.0) == event
    assert stream.usage(Outcome.FAILED) == Usage(ESTIMATE, 1 + bool(text), estimated=True)
