"""How answers end, what of them goes on, what is accounted."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.engines.answer import AnswerMeter
from firstkit.engines.body import PARSED_WHOLE_BYTES, SIGNED_BYTES
from firstkit.engines.reported import ERROR_CHARS
from firstkit.links.messages import Head, Open, Outcome, Tail, Usage
from unit.engines.support import DONE, chunk, data, request, usage_chunk

SSE = "text/event-stream; charset=utf-8"
FIRST = data({"id": "c-1", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
FINISH = chunk(None, "stop")
ESTIMATE = 100  # of the 400 bytes of support.request()


def run(body: bytes | list[bytes], given: Open | None = None, status: int = 200, kind: str = SSE) -> tuple[bytes, Tail]:
    meter = AnswerMeter(given or request(), 10.0)
    meter.head(status, kind)
    passed = b"".join(meter.feed(piece, 11.0) for piece in ([body] if isinstance(body, bytes) else body))
    return passed, meter.end(12.0)


def plain(body: Any, path: str = "/v1/chat/completions", status: int = 200) -> tuple[bytes, Tail]:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return run([text[:5], text[5:]], request(stream=False, path=path), status, "application/json")


# -- streams -------------------------------------------------------------------------------------------------------


def test_a_whole_stream() -> None:
    good = FIRST + chunk("a") + chunk("b") + FINISH + usage_chunk()
    assert run(good + DONE) == (good, Tail(Outcome.COMPLETE, Usage(7, 2), None, 1.0, 0.0, 2.0))


def test_times() -> None:
    meter = AnswerMeter(request(), 100.0)
    meter.head(200, SSE)
    for now, piece in ((101.0, FIRST), (102.0, chunk("a")), (103.0, chunk("b")), (106.0, chunk("c") + FINISH)):
        meter.feed(piece, now)
    tail = meter.broken(Outcome.CANCELLED, "cancelled", 107.0)
    assert (tail.ttft_s, tail.gap_s, tail.duration_s) == (2.0, 2.0, 7.0)
    assert tail.usage == Usage(ESTIMATE, 3, estimated=True)


ENDINGS = [
    ("no [DONE]", chunk("a") + FINISH, Outcome.FAILED, "without [DONE]", Usage(ESTIMATE, 1, True)),
    ("no finish_reason", chunk("a") + DONE, Outcome.FAILED, "without a finish_reason", Usage(ESTIMATE, 1, True)),
    ("neither", chunk("a"), Outcome.FAILED, "without [DONE]", Usage(ESTIMATE, 1, True)),
    ("nothing", b"", Outcome.FAILED, "without [DONE]", Usage(0, 0)),
    ("only a role", FIRST, Outcome.FAILED, "without [DONE]", Usage(0, 0)),
    ("only [DONE]", DONE, Outcome.FAILED, "without a finish_reason", Usage(0, 0)),
    ("usage but no [DONE]", chunk("a") + FINISH + usage_chunk(), Outcome.FAILED, "without [DONE]", Usage(7, 2)),
    ("one of two choices", chunk("a") + chunk("b", index=1) + FINISH + DONE, Outcome.FAILED, "finish", None),
    ("both choices", chunk("a") + chunk("b", "stop", 1) + FINISH + DONE, Outcome.COMPLETE, None, Usage(100, 2, True)),
    ("no text at all", FIRST + FINISH + DONE, Outcome.COMPLETE, None, Usage(ESTIMATE, 0, True)),
    ("[DONE] without its blank line", chunk("a") + FINISH + DONE[:-2], Outcome.COMPLETE, None, Usage(100, 1, True)),
    ("cut in an event", chunk("a") + chunk("b")[:-9], Outcome.FAILED, "without [DONE]", Usage(ESTIMATE, 1, True)),
    ("an error", chunk("a") + data({"error": {"message": "full"}}) + DONE, Outcome.FAILED, "full", None),
    ("an error as text", data({"error": "full"}), Outcome.FAILED, "full", Usage(0, 0)),
    ("an error object", data({"object": "error", "message": "full", "code": 5}), Outcome.FAILED, "full", None),
    ("an error event", b"event: error\n" + data({"message": "full"}), Outcome.FAILED, "full", None),
    ("an error without words", data({"error": {"code": 5}}), Outcome.FAILED, "reported an error", None),
    ("null is no error", chunk("a", error=None) + FINISH + DONE, Outcome.COMPLETE, None, None),
    ("not JSON", chunk("a") + data("{nope") + FINISH + DONE, Outcome.FAILED, "not a JSON object", None),
    ("deep JSON", data("[" * 100_000), Outcome.FAILED, "not a JSON object", None),
    ("a list", data([1]), Outcome.FAILED, "not a JSON object", None),
    ("half UTF-8", chunk("x").replace(b"x", b"\xe2\x82"), Outcome.FAILED, "not UTF-8", Usage(0, 0)),
    ("choices of text", data({"choices": ["a"]}), Outcome.FAILED, "no chunk", None),
    ("a wrong index", data({"choices": [{"index": [], "delta": {}}]}), Outcome.FAILED, "no chunk", None),
    ("a large index", data({"choices": [{"index": 10**9, "delta": {}}]}), Outcome.FAILED, "no chunk", None),
    ("too long", b"data: " + b"x" * (8 * 1024 * 1024), Outcome.FAILED, "too long", Usage(0, 0)),
    ("lies", chunk("a") + FINISH + usage_chunk(10**12, -5) + DONE, Outcome.COMPLETE, None, Usage(100, 1, True)),
    ("a lying true", chunk("a") + FINISH + usage_chunk(True, 1) + DONE, Outcome.COMPLETE, None, Usage(100, 1, True)),
]


@pytest.mark.parametrize(("body", "outcome", "error", "usage"), [e[1:] for e in ENDINGS], ids=[e[0] for e in ENDINGS])
def test_endings(body: bytes, outcome: Outcome, error: str | None, usage: Usage | None) -> None:
    passed, tail = run(body)
    assert tail.outcome is outcome
    assert (tail.error is None) == (error is None)
    assert error is None or error in (tail.error or "")
    assert usage is None or tail.usage == usage
    assert b"[DONE]" not in passed
    assert b'"error":{' not in passed
    assert passed == b"" or passed.endswith(b"\n\n")


def test_nothing_passes_after_the_end_or_an_error() -> None:
    assert run(chunk("a") + FINISH + DONE + chunk("late"))[0] == chunk("a") + FINISH
    assert run([chunk("a"), data({"error": {"message": "x"}}), chunk("late")])[0] == chunk("a")


@pytest.mark.parametrize("hidden", [b": ping\r" + DONE, b"\xef\xbb\xbf" + DONE, b"id: 1\r\n" + DONE, b"\r" + DONE])
def test_an_end_is_seen_wherever_clients_would_see_it(hidden: bytes) -> None:
    passed, tail = run(hidden + chunk("a"))
    assert passed == b""
    assert tail.outcome is Outcome.FAILED


@pytest.mark.parametrize("eol", [b"\n", b"\r\n", b"\r"])
def test_comments_and_other_fields_pass(eol: bytes) -> None:
    body = b": ping\n\nid: 7\n" + chunk("a") + FINISH
    passed, tail = run((body + DONE).replace(b"\n", eol))
    assert passed == body
    assert tail == Tail(Outcome.COMPLETE, Usage(ESTIMATE, 1, True), None, 1.0, None, 2.0)


def test_usage_is_hidden_from_those_who_did_not_ask() -> None:
    hidden = request(hide_usage=True)
    assert run(chunk("a") + FINISH + usage_chunk() + DONE, hidden)[0] == chunk("a") + FINISH
    assert run(chunk("a") + FINISH + usage_chunk(-1) + DONE, hidden)[0] == chunk("a") + FINISH
    last = chunk(None, "stop", usage={"prompt_tokens": 3, "completion_tokens": 4})
    passed, tail = run(chunk("a") + last + DONE, hidden)
    assert passed == chunk("a") + FINISH
    assert tail.usage == Usage(3, 4)
    assert run(chunk("a", usage=None) + FINISH + DONE, hidden)[0] == chunk("a", usage=None) + FINISH


@pytest.mark.parametrize("piece", ["content", "reasoning", "reasoning_content", "tool_calls", "refusal"])
def test_every_kind_of_piece_is_a_token(piece: str) -> None:
    said: Any = [{"index": 0}] if piece == "tool_calls" else "x"
    _, tail = run(data({"choices": [{"index": 0, "delta": {piece: said}}]}) * 3)
    assert tail.usage == Usage(ESTIMATE, 3, True)


def test_events_that_come_together_go_on_together() -> None:
    pieces = [FIRST + chunk("a"), chunk("b") + chunk("c") + chunk('"'), chunk("d") + FINISH + usage_chunk() + DONE]
    for hides in (False, True):
        passed, tail = run(pieces, request(hide_usage=hides))
        assert passed == b"".join(pieces).replace(DONE, b"").replace(usage_chunk() if hides else DONE, b"")
        assert tail.usage == Usage(7, 2)
    _, tail = run([*pieces[:2], FINISH + DONE])
    assert tail.usage == Usage(ESTIMATE, 4, estimated=True)


def test_choices_are_told_apart() -> None:
    """However alike their chunks: each has to finish."""
    said = [chunk(text, index=i) for text in ("a", "b", "c") for i in range(6)]
    ends = [chunk(None, "stop", i) for i in range(6)]
    passed, tail = run([*said, *ends, DONE])
    assert passed == b"".join(said + ends)
    assert (tail.outcome, tail.usage) == (Outcome.COMPLETE, Usage(ESTIMATE, 18, estimated=True))
    assert run([*said, *ends[1:], DONE])[1].outcome is Outcome.FAILED


@pytest.mark.parametrize("late", [chunk("a", "stop"), chunk("a", usage={"prompt_tokens": 1, "completion_tokens": 1})])
def test_what_a_chunk_says_beside_its_text_is_read(late: bytes) -> None:
    """After any number of chunks that only differed in their text."""
    _, tail = run([*[chunk("a")] * 5, late, FINISH, DONE])
    assert tail.usage == (Usage(1, 1) if b"usage" in late else Usage(ESTIMATE, 6, estimated=True))
    assert run([*[chunk("a")] * 5, chunk("a", "stop"), DONE])[1].outcome is Outcome.COMPLETE
    assert run([*[chunk("a")] * 5, chunk("a", error={"message": "full"}), FINISH, DONE])[1].error == "full"


def test_completions_have_text() -> None:
    body = data({"choices": [{"index": 0, "text": "x", "finish_reason": None}]})
    _, tail = run(body + data({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}) + DONE)
    assert (tail.outcome, tail.usage) == (Outcome.COMPLETE, Usage(ESTIMATE, 1, True))


TRICKY = ['"usage"', "usage", '{"usage":{"prompt_tokens":1}}', '"error"', "finish_reason", "[DONE]",
          "data: [DONE]\n\n", '"finish_reason":"stop"', "\n\n", "\\", '"', "é", "😀", "\u2028", "stop", "c-1", "",
          '\\"usage\\"', "index"]  # fmt: skip


@given(
    texts=st.lists(st.sampled_from(TRICKY) | st.text(max_size=10), max_size=12),
    cuts=st.lists(st.integers(0, 5000), max_size=10),
    is_ascii=st.booleans(),
    crlf=st.booleans(),
    hide=st.booleans(),
)
def test_any_text_in_any_split_gives_the_same(
    texts: list[str], cuts: list[int], is_ascii: bool, crlf: bool, hide: bool
) -> None:
    def event(text: str) -> bytes:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        chunk = {"id": "c-1", "object": "chat.completion.chunk", "choices": [choice]}
        return b"data: " + json.dumps(chunk, ensure_ascii=is_ascii).encode("utf-8", "replace") + b"\n\n"

    good = b"".join(map(event, texts)) + FINISH
    stream = good + usage_chunk() + DONE
    wire = stream.replace(b"\n", b"\r\n") if crlf else stream
    edges = [0, *sorted(c % (len(wire) + 1) for c in cuts), len(wire)]
    pieces = [wire[a:b] for a, b in itertools.pairwise(edges)]
    passed, tail = run(pieces, request(hide_usage=hide))
    assert passed == (good if hide else good + usage_chunk())
    assert (tail.outcome, tail.usage) == (Outcome.COMPLETE, Usage(7, 2))
    _, broken = run(pieces[:-1] or [b""])
    assert broken.outcome in (Outcome.COMPLETE, Outcome.FAILED)
    _, unaccounted = run(good + DONE)
    assert unaccounted.usage == Usage(ESTIMATE, sum(map(bool, texts)), estimated=True)


@given(st.lists(st.binary(max_size=40) | st.sampled_from([chunk("a"), FINISH, DONE, b"data: {}\n\n"]), max_size=12))
def test_garbage_is_never_raised_and_partial_events_never_pass(pieces: list[bytes]) -> None:
    whole, tail = run(b"".join(pieces))
    passed, same = run(pieces)
    assert (passed, same.outcome, same.usage) == (whole, tail.outcome, tail.usage)
    assert passed == b"" or passed.endswith(b"\n\n")


# -- plain answers -------------------------------------------------------------------------------------------------


def test_a_plain_answer() -> None:
    body = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}
    passed, tail = plain(body)
    assert json.loads(passed) == body
    assert tail == Tail(Outcome.COMPLETE, Usage(3, 4), None, None, None, 2.0)


def test_embeddings_have_no_completion_tokens() -> None:
    _, tail = plain({"data": [], "usage": {"prompt_tokens": 3, "total_tokens": 3}}, "/v1/embeddings")
    assert tail.usage == Usage(3, 0)


def test_without_usage_the_text_is_measured() -> None:
    said = {"choices": [{"message": {"content": "x" * 20}}, {"message": {"content": None, "tool_calls": [1]}}]}
    assert plain(said)[1].usage == Usage(ESTIMATE, 6, estimated=True)
    assert plain({"choices": [{"text": "ä" * 4}]})[1].usage == Usage(ESTIMATE, 2, estimated=True)
    assert plain({"choices": "?"})[1].usage == Usage(ESTIMATE, 0, estimated=True)


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"<html>", b'{"a": \xff}', b"[" * 100_000])
def test_what_is_no_object_failed(body: bytes) -> None:
    _, tail = plain(body)
    assert (tail.outcome, tail.usage) == (Outcome.FAILED, Usage(0, 0))


def test_an_error_with_a_good_status_failed() -> None:
    assert plain({"error": {"message": "full"}})[1].error == "full"
    assert plain({"object": "error", "message": "m" * 9999})[1].error == "m" * ERROR_CHARS


def test_of_large_answers_only_the_ends_and_the_usage_are_read() -> None:
    large = b'{"usage":"x","data":[' + b"1," * PARSED_WHOLE_BYTES + b'1],"usage": {"prompt_tokens":3}}'
    assert plain(large)[1] == Tail(Outcome.COMPLETE, Usage(3, 0), None, None, None, 2.0)
    assert plain(large[:-2])[1].outcome is Outcome.FAILED
    assert plain(b'{"data":"' + b"1" * PARSED_WHOLE_BYTES + b'"}')[1].usage == Usage(ESTIMATE, 0, estimated=True)


def test_an_answer_without_end_is_refused() -> None:
    meter = AnswerMeter(request(stream=False), 0.0)
    meter.head(200, "application/json")
    fed = len(meter.feed(b"{", 0.0))
    while not meter.is_over:
        fed += len(meter.feed(b"x" * 1024 * 1024, 0.0))
    assert fed == 63 * 1024 * 1024 + 1
    assert "longer than 64 MiB" in (meter.end(1.0).error or "")


def test_a_large_answer_that_is_no_object_is_not_waited_for() -> None:
    meter = AnswerMeter(request(stream=False), 0.0)
    meter.head(200, "application/json")
    fed = 0
    while not meter.is_over:
        fed += len(meter.feed(b"x" * 1024, 0.0))
    assert fed <= PARSED_WHOLE_BYTES + 1024
    assert meter.end(1.0).error == "the engine's answer is not a JSON object"


USAGE = b'"usage":{"prompt_tokens":3,"completion_tokens":4}'


@pytest.mark.parametrize("size", [1, 1000, 65536, 10**7])
@pytest.mark.parametrize(
    "body",
    [
        b'{"data":"' + b"x" * PARSED_WHOLE_BYTES * 4 + b'",' + USAGE + b"}",
        b"{" + USAGE + b',"data":"' + b"x" * PARSED_WHOLE_BYTES * 4 + b'"}',
        b'{"data":"'
        + b"x" * (PARSED_WHOLE_BYTES - 20)
        + b'",'
        + USAGE
        + b',"more":"'
        + b"x" * PARSED_WHOLE_BYTES
        + b'"}\n',
    ],
    ids=["at the end", "at the start", "where it is cut"],
)
def test_the_usage_of_a_large_answer_is_found_wherever_it_is(body: bytes, size: int) -> None:
    assert len(body) > PARSED_WHOLE_BYTES
    meter = AnswerMeter(request(stream=False), 0.0)
    meter.head(200, "application/json")
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    assert b"".join(meter.feed(piece, 1.0) for piece in pieces) == body
    assert meter.end(2.0) == Tail(Outcome.COMPLETE, Usage(3, 4), None, None, None, 2.0)


# -- heads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "status", "kind", "outcome", "is_passed"),
    [
        (True, 400, "application/json", Outcome.REJECTED, True),
        (False, 404, "text/plain", Outcome.REJECTED, True),
        (True, 500, "application/json", Outcome.FAILED, True),
        (True, 302, "text/event-stream", Outcome.FAILED, False),
        (False, 301, "application/json", Outcome.FAILED, False),
        (True, 200, "text/html", Outcome.FAILED, False),
        (True, 200, "application/json", Outcome.FAILED, False),
        (False, 200, "text/html", Outcome.FAILED, False),
        (False, 200, "", Outcome.FAILED, False),
        (False, 200, "Application/JSON; charset=utf-8", Outcome.COMPLETE, True),
    ],
)
def test_heads(stream: bool, status: int, kind: str, outcome: Outcome, is_passed: bool) -> None:
    meter = AnswerMeter(request(stream=stream), 0.0)
    assert meter.head(status, kind) == (Head(status, kind) if is_passed else None)
    assert meter.feed(b'{"error": 0}', 1.0) == (b'{"error": 0}' if is_passed else b"")
    tail = meter.end(2.0)
    assert tail.outcome is outcome
    assert tail.usage == (Usage(ESTIMATE, 0, True) if outcome is Outcome.COMPLETE else Usage(0, 0))


@pytest.mark.parametrize(
    ("status", "text", "outcome"),
    [
        (500, b'{"error": {"message": "image input is not supported"}}', Outcome.REJECTED),
        (500, b'{"error": {"message": "out of memory"}}', Outcome.FAILED),
        (500, b" " * SIGNED_BYTES + b"input is not supported", Outcome.FAILED),
        (400, b"out of memory", Outcome.REJECTED),
    ],
)
def test_what_a_request_asks_in_vain_is_no_failure_of_its_engine(status: int, text: bytes, outcome: Outcome) -> None:
    meter = AnswerMeter(request(stream=False), 0.0, (b"is too large", b" input is not supported"))
    meter.head(status, "application/json")
    assert b"".join(meter.feed(piece, 1.0) for piece in (text[:30], text[30:])) == text
    assert meter.end(2.0).outcome is outcome


@pytest.mark.parametrize("outcome", [Outcome.TIMEOUT, Outcome.FAILED, Outcome.CANCELLED])
def test_what_broke_before_a_head_used_nothing(outcome: Outcome) -> None:
    tail = AnswerMeter(request(), 5.0).broken(outcome, "it broke", 7.0)
    assert tail == Tail(outcome, Usage(0, 0), "it broke", None, None, 2.0)


def test_an_answer_that_said_all_is_not_undone() -> None:
    meter = AnswerMeter(request(), 0.0)
    meter.head(200, SSE)
    meter.feed(chunk("a") + FINISH + DONE, 1.0)
    assert meter.is_over
    assert meter.broken(Outcome.FAILED, "reset", 2.0).outcome is Outcome.COMPLETE
