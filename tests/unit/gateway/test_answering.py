"""What is added to answers, and what of them is held back: wherever a stream is cut."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from anthropic.types import RawMessageStopEvent
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from firstkit.engines.answer import AnswerMeter
from firstkit.engines.sse import EVENT_LIMIT_BYTES
from firstkit.errors import EngineFailed
from firstkit.gateway.answering import HeldEnd, Signed, SignedChunks, Straight, Timed, WholeEvents
from firstkit.gateway.dialects import CHUNKS, MESSAGES
from firstkit.links.messages import Open, Outcome, Tail, Usage

TAIL = Tail(Outcome.COMPLETE, Usage(3, 2), duration_s=0.5)
ORIGIN: dict[str, str | None] = {
    "cluster": "here", "replica": "rep-1", "engine": "vLLM 0.32", "revision": None, "model": "m",
}  # fmt: skip
KEPT: dict[str, bool | str | None] = {"store": True, "previous_response_id": "resp_0"}


def named(name: str, **data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()


def events_of(data: bytes) -> list[Any]:
    return [json.loads(event.partition(b"data: ")[2]) for event in data.split(b"\n\n") if event]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(ends)]


class Upper:
    """An inner one that is particular: it takes whole events and nothing else."""

    def events(self, data: bytes) -> bytes:
        assert data.endswith(b"\n\n")
        return data.upper()

    def last(self, tail: Tail) -> bytes:
        return b"last"

    def whole(self, body: bytes, tail: Tail) -> bytes:
        return body.upper()


# -- whole events ------------------------------------------------------------------------------------------------------

LETTERS = st.lists(st.text("ab:\n{", min_size=1, max_size=12).map(lambda t: t.replace("\n\n", "\n").strip("\n") or "a"))


@given(LETTERS, st.lists(st.integers(0, 400), max_size=20))
def test_whole_events_however_they_are_cut(said: list[str], places: list[int]) -> None:
    data = "".join(f"{event}\n\n" for event in said).encode()
    answering = WholeEvents(Upper())
    told = b"".join(answering.events(piece) for piece in cut(data, places))
    assert told == data.upper()
    assert answering.last(TAIL) == b"last"


def test_an_event_that_never_ends() -> None:
    answering = WholeEvents(Upper())
    assert answering.events(b"data: x") == b""
    with pytest.raises(EngineFailed):
        answering.last(TAIL)
    for _ in range(EVENT_LIMIT_BYTES // 2**20 - 1):
        assert answering.events(b"x" * 2**20) == b""
    with pytest.raises(EngineFailed):
        answering.events(b"x" * 2**20)


# -- responses ---------------------------------------------------------------------------------------------------------


def response(**more: Any) -> dict[str, Any]:
    return {"id": "resp_1", "store": False, "previous_response_id": None, **more}


CREATED = named("response.created", response=response())
DELTA = named("response.output_text.delta", delta='"response": complete\n\nevent: response.completed\n', item_id="i")
LASTS = (
    named("response.completed", response=response(output=[{"text": "x" * 99}])),
    named("response.incomplete", response=response()),
)


@given(st.sampled_from(LASTS), st.lists(st.integers(0, 2000), max_size=20))
def test_the_last_event_waits_however_the_stream_is_cut(last: bytes, places: list[int]) -> None:
    before = CREATED + b": working\n\n" + DELTA + DELTA
    answering = WholeEvents(HeldEnd(KEPT))
    told = b"".join(answering.events(piece) for piece in cut(before + last, places))
    assert b"event: response.completed\nd" not in told
    assert b"event: response.incomplete\nd" not in told
    end = answering.last(TAIL)
    assert end.startswith(last.partition(b"\n")[0])
    assert told.count(DELTA) == 2
    assert b": working\n\n" in told
    created, completed = events_of(told.replace(b": working\n\n", b""))[0], events_of(end)[0]
    assert created["response"] == response(**KEPT)
    assert completed["response"] == {**events_of(last)[0]["response"], **KEPT}


@pytest.mark.parametrize("last", LASTS)
def test_what_the_meter_passes_on_is_held(last: bytes) -> None:
    """The meter gives the last event in one form, however the engine wrote it."""
    meter = AnswerMeter(Open("r", "POST", "/v1/responses", 100, stream=True), 0.0)
    meter.head(200, "text/event-stream")
    written = last.replace(b"event: ", b"event:").replace(b"\n", b"\r\n")
    passed = meter.feed(CREATED + DELTA + written + b"data: [DONE]\n\n", 0.0)
    answering = WholeEvents(HeldEnd(KEPT))
    told = answering.events(passed)
    assert b"\nevent: response.completed\nd" not in told
    assert answering.last(TAIL).startswith(last.partition(b"\n")[0])
    assert meter.end(0.0).outcome is Outcome.COMPLETE


def test_nothing_goes_before_the_last_event() -> None:
    answering = HeldEnd(KEPT)
    assert answering.events(LASTS[0]) == b""
    assert answering.events(b"data: more\n\n") == b""
    assert answering.last(TAIL).endswith(b"data: more\n\n")


def test_a_plain_response_says_what_is_kept() -> None:
    assert json.loads(HeldEnd(KEPT).whole(json.dumps(response()).encode(), TAIL)) == response(**KEPT)
    for nonsense in (b"", b"[]", b"{", b'{"a":\xff}'):
        with pytest.raises(EngineFailed):
            HeldEnd(KEPT).whole(nonsense, TAIL)


# -- where it comes from -----------------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.text() | st.lists(st.text())), st.booleans())
def test_an_object_is_signed_and_nothing_else_of_it_changes(answer: dict[str, Any], is_wide: bool) -> None:
    answer.pop("x_first", None)
    said = json.dumps(answer, indent=2 if is_wide else None, ensure_ascii=is_wide).encode("utf-8", "surrogatepass")
    told = Signed(Straight(), ORIGIN).whole(said, TAIL)
    assert json.loads(told) == {**answer, "x_first": ORIGIN}


@pytest.mark.parametrize("said", [b"", b"1\n00:00 {there}\n", b"[{}]", b"{", b"a } b", b"\xff}", b"[" * 10_000])
def test_what_is_no_object_stays_as_it_is(said: bytes) -> None:
    assert Signed(Straight(), ORIGIN).whole(said, TAIL) == said


class Translated(Upper):
    """An inner one that tells the end itself."""

    def last(self, tail: Tail) -> bytes:
        return b"last" + MESSAGES.done


def test_the_last_event_of_messages_is_signed() -> None:
    assert Straight(None, MESSAGES.done).last(TAIL) == MESSAGES.done
    for inner, before in ((Straight(None, MESSAGES.done), b""), (Translated(), b"last")):
        end = Signed(inner, ORIGIN).last(TAIL)
        assert end.startswith(before)
        [stop] = events_of(end.removeprefix(before))
        assert stop == {"type": "message_stop", "x_first": ORIGIN}
        assert RawMessageStopEvent.model_validate(stop).to_dict() == stop


def test_the_last_event_of_responses_is_signed() -> None:
    answering = WholeEvents(Signed(HeldEnd(KEPT), ORIGIN))
    assert answering.events(DELTA + LASTS[0]) == DELTA
    [last] = events_of(answering.last(TAIL))
    assert last["x_first"] == ORIGIN
    assert last["response"] == {**events_of(LASTS[0])[0]["response"], **KEPT}


def chunk(text: str | None = "x", **more: Any) -> bytes:
    choices = [] if text is None else [{"index": 0, "delta": {"content": text}}]
    return f"data: {json.dumps({'id': 'c', 'choices': choices, **more})}\n\n".encode()


@given(st.booleans(), st.booleans(), st.lists(st.integers(0, 1000), max_size=12))
def test_chunks_get_one_more_or_the_one_with_usage_is_signed(
    has_usage: bool, has_early: bool, places: list[int]
) -> None:
    usage = chunk(None, usage={"prompt_tokens": 3}) if has_usage else b""
    early = chunk(None, prompt_filter_results=[]) if has_early else b""
    said = early + chunk() + chunk('"choices":[]') + usage
    answering = WholeEvents(SignedChunks(ORIGIN, "chat.completion.chunk", CHUNKS.done))
    told = b"".join(answering.events(piece) for piece in cut(said, places))
    end = answering.last(TAIL)
    assert end.endswith(CHUNKS.done)
    [last] = events_of(end.removesuffix(CHUNKS.done))
    assert told == said.removesuffix(usage)
    assert (last["choices"], last["x_first"]) == ([], ORIGIN)
    assert last.get("usage") == ({"prompt_tokens": 3} if has_usage else None)


def test_a_chunk_of_ours_is_one_to_the_sdk() -> None:
    [ours] = events_of(SignedChunks(ORIGIN, "chat.completion.chunk", b"").last(TAIL))
    assert ChatCompletionChunk.model_validate(ours, strict=True).to_dict() == ours
    [ours] = events_of(SignedChunks(ORIGIN, "text_completion", b"").last(TAIL))
    assert Completion.model_validate(ours, strict=True).to_dict() == ours


# -- how fast ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tail", "speed"), [(TAIL, 10.0), (Tail(Outcome.COMPLETE, duration_s=0.5), 0.0), (Tail(Outcome.COMPLETE), 0.0)]
)
def test_a_plain_answer_says_how_fast_it_came(tail: Tail, speed: float) -> None:
    for inner in (None, Signed(Straight(), ORIGIN)):
        for body in (b'{"id": "a"}\n', b"{ }"):
            told = json.loads(Timed(inner).whole(body, tail))
            assert told["response_time"] == tail.duration_s
            assert told["throughput_tokens_per_second"] == speed
            assert ("x_first" in told) == (inner is not None)
