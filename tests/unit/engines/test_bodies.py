"""Answers of tasks, and those that only count."""

from __future__ import annotations

import json
from typing import Any

import pytest

from firstkit.engines.answer import COUNT_TOKENS, AnswerMeter
from firstkit.engines.body import BODY_LIMIT_BYTES, PARSED_WHOLE_BYTES
from firstkit.links.messages import Open, Outcome, Tail, Usage
from unit.engines.support import request

JSON = "application/json"
ESTIMATE = 100  # of the 400 bytes of support.request()
TRANSCRIPTIONS, RERANK, TASK = "/v1/audio/transcriptions", "/v1/rerank", "/v1/tasks/detect"


def upload(path: str = TRANSCRIPTIONS, body_bytes: int = 400_000) -> Open:
    opened = request(stream=False, path=path, body_bytes=body_bytes)
    opened.headers["content-type"] = "multipart/form-data; boundary=x"
    return opened


def run(body: Any, given: Open, kind: str = JSON, status: int = 200) -> tuple[bytes, Tail]:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    meter = AnswerMeter(given, 10.0)
    meter.head(status, kind)
    passed = b"".join(meter.feed(piece, 11.0) for piece in (text[:5], text[5:]))
    return passed, meter.end(12.0)


def task(path: str) -> Open:
    return request(stream=False, path=path)


# -- products ------------------------------------------------------------------------------------------------------

SUBTITLES = b"1\n00:00:00,000 --> 00:00:02,000\nHello.\n"


@pytest.mark.parametrize("kind", ["text/plain; charset=utf-8", "application/x-subrip", "image/png", ""])
@pytest.mark.parametrize("body", [SUBTITLES, b"\x89PNG\r\n\x1a\n\xff", b""])
def test_a_product_passes_whatever_it_is(kind: str, body: bytes) -> None:
    passed, tail = run(body, upload(), kind)
    assert passed == body
    assert tail == Tail(Outcome.COMPLETE, Usage(0, 0, estimated=True), None, None, None, 2.0)


def test_a_product_of_json_is_estimated_by_what_was_asked() -> None:
    assert run(SUBTITLES, task(TASK), "text/plain")[1].usage == Usage(ESTIMATE, 0, estimated=True)


def test_a_product_that_broke_used_nothing() -> None:
    meter = AnswerMeter(upload(), 0.0)
    meter.head(200, "image/png")
    assert meter.feed(b"\x89PNG", 1.0) == b"\x89PNG"
    assert not meter.is_over
    assert meter.broken(Outcome.FAILED, "reset", 2.0) == Tail(Outcome.FAILED, Usage(0, 0), "reset", None, None, 2.0)


def test_a_product_without_end_is_refused() -> None:
    meter = AnswerMeter(upload(), 0.0)
    meter.head(200, "image/png")
    fed = 0
    while not meter.is_over:
        fed += len(meter.feed(b"x" * 1024**2, 0.0))
    assert fed == BODY_LIMIT_BYTES
    tail = meter.end(1.0)
    assert (tail.outcome, tail.usage) == (Outcome.FAILED, Usage(0, 0))
    assert "longer than 64 MiB" in (tail.error or "")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages", COUNT_TOKENS])
def test_what_has_to_be_json_is_no_product(path: str) -> None:
    passed, tail = run(SUBTITLES, task(path), "text/plain")
    assert (passed, tail.outcome) == (b"", Outcome.FAILED)
    assert tail.error == "the engine answered with text/plain where JSON was asked for"


# -- tasks that answer in JSON -------------------------------------------------------------------------------------


def test_a_ranking_says_what_it_used() -> None:
    ranked = {"id": "rerank-1", "results": [{"index": 0, "relevance_score": 0.9}]}
    assert run({**ranked, "usage": {"prompt_tokens": 9, "total_tokens": 9}}, task(RERANK))[1].usage == Usage(9, 0)
    assert run({**ranked, "usage": {"total_tokens": 9}}, task(RERANK))[1].usage == Usage(9, 0)
    assert run(ranked, task(RERANK))[1].usage == Usage(ESTIMATE, 0, estimated=True)


def test_a_transcript_is_measured_in_seconds_and_so_its_tokens_are_estimated() -> None:
    passed, tail = run({"text": "Eight by", "usage": {"type": "duration", "seconds": 3}}, upload())
    assert json.loads(passed)["text"] == "Eight by"
    assert (tail.outcome, tail.usage) == (Outcome.COMPLETE, Usage(0, 2, estimated=True))


@pytest.mark.parametrize("body", [[], [{"index": 0, "score": 0.9}], b" \n[1]"])
def test_a_task_may_answer_with_a_list(body: Any) -> None:
    for path in (RERANK, TASK):
        passed, tail = run(body, task(path))
        assert passed == (body if isinstance(body, bytes) else json.dumps(body).encode())
        assert (tail.outcome, tail.usage) == (Outcome.COMPLETE, Usage(ESTIMATE, 0, estimated=True))
    assert run(body, task("/v1/embeddings"))[1].outcome is Outcome.FAILED


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"[1", "not JSON"),
        (b"<html>", "not a JSON object"),
        (b"", "not a JSON object"),
        (b'{"a"', "not a JSON object"),
        ({"error": {"message": "full"}}, "full"),
        ({"object": "error", "message": "full"}, "full"),
    ],
)
def test_a_task_that_fails(body: Any, error: str) -> None:
    _, tail = run(body, task(TASK))
    assert (tail.outcome, tail.usage) == (Outcome.FAILED, Usage(0, 0))
    assert error in (tail.error or "")


@pytest.mark.parametrize(
    ("start", "end", "outcome"),
    [(b"[", b"1]\n", Outcome.COMPLETE), (b"[", b"1", Outcome.FAILED), (b"<", b"]", Outcome.FAILED)],
)
def test_of_a_large_list_the_ends_are_looked_at(start: bytes, end: bytes, outcome: Outcome) -> None:
    assert run(start + b"1," * PARSED_WHOLE_BYTES + end, task(TASK))[1].outcome is outcome
    meter = AnswerMeter(task("/v1/embeddings"), 0.0)
    meter.head(200, JSON)
    meter.feed(start + b"1," * PARSED_WHOLE_BYTES + end, 0.0)
    assert meter.end(1.0).outcome is Outcome.FAILED


def test_a_refused_task_is_passed_on() -> None:
    passed, tail = run(b'{"detail":"no"}', upload(), JSON, 422)
    assert (passed, tail.outcome, tail.usage) == (b'{"detail":"no"}', Outcome.REJECTED, Usage(0, 0))


# -- counting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [{"input_tokens": 9}, {"input_tokens": 9, "usage": {"input_tokens": 9}}])
def test_counting_tokens_uses_none(body: Any) -> None:
    passed, tail = run(body, task(COUNT_TOKENS))
    assert json.loads(passed) == body
    assert tail == Tail(Outcome.COMPLETE, Usage(0, 0), None, None, None, 2.0)


def test_a_count_that_is_none_failed() -> None:
    assert run(b"[9]", task(COUNT_TOKENS))[1].outcome is Outcome.FAILED
    assert run({"type": "error", "error": {"message": "full"}}, task(COUNT_TOKENS))[1].error == "full"
