"""Whatever comes: requests of any shape, and answers cut into any pieces."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstkit.errors import ApiError, EngineFailed, InvalidRequest
from firstkit.translation import messages, responses
from firstkit.translation.chat import Translator
from firstkit.translation.counting import estimated_tokens
from firstkit.translation.responses_answer import described
from unit.translation.support import (
    TAIL,
    call,
    chunk,
    message_answer,
    message_events,
    plain,
    raw,
    response_answer,
    response_events,
    stream,
)

WORDS = st.sampled_from(
    ["message", "function_call", "function_call_output", "custom_tool_call", "reasoning", "input_text", "input_image",
     "output_text", "text", "image", "document", "tool_result", "tool_use", "thinking", "base64", "function", "custom",
     "namespace", "allowed_tools", "json_schema", "user", "assistant", "system", "developer", "auto", "tool", ""]
)  # fmt: skip
KEYS = st.sampled_from(
    ["type", "role", "content", "text", "name", "tools", "input", "output", "call_id", "arguments", "summary", "source",
     "data", "media_type", "image_url", "id", "tool_use_id", "thinking", "input_schema", "parameters", "format", "mode",
     "namespace", "schema", "effort", "is_error", "title", "definition", "syntax", "description"]
)  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5))
SAME_NAMES = {"messages", "tools", "tool_choice", "top_logprobs"}
"""Fields of chat completions, too."""
DEEP = b"[" * 5000 + b"]" * 5000


@pytest.mark.parametrize("protocol", [responses, messages])
@settings(deadline=None)
@given(st.data())
def test_any_request_is_translated_or_refused(protocol: Any, data: st.DataObject) -> None:
    fields = [*sorted(protocol.TRANSLATED), "n", "stream", "unknown"]
    asked = data.draw(st.dictionaries(st.sampled_from(fields), VALUES, max_size=6))
    body = raw(model="m", **asked)
    try:
        chat = protocol.to_chat(body)
        if protocol is responses:
            responses.names_of(body)
    except InvalidRequest as refusal:
        assert refusal.status == 400
        assert refusal.message
        return
    sent = plain(chat)
    assert isinstance(sent["messages"], list)
    assert not (protocol.TRANSLATED - SAME_NAMES) & sent.keys()
    assert all(message["role"] in ("system", "user", "assistant", "tool") for message in sent["messages"])
    assert [message["role"] for message in sent["messages"][1:]].count("system") == 0


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["messages", "system", "tools"]), VALUES))
def test_any_request_is_counted(asked: dict[str, Any]) -> None:
    assert estimated_tokens(raw(model="m", **asked)) >= 0


@pytest.mark.parametrize("value", [DEEP, b"1e999", b'{"a":' + DEEP + b"}"])
def test_what_cannot_be_read_is_refused(value: bytes) -> None:
    for protocol in (responses, messages):
        for field in protocol.TRANSLATED:
            with pytest.raises(InvalidRequest):
                protocol.to_chat({**raw(model="m", input="x", messages=[]), field: msgspec.Raw(value)})
    with pytest.raises(InvalidRequest):
        responses.names_of({"tools": msgspec.Raw(value)})
    with pytest.raises(InvalidRequest):
        estimated_tokens({"messages": msgspec.Raw(value)})


# -- answers -----------------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
NAMES = st.sampled_from(["f", "g"])
SAYINGS = st.lists(
    st.one_of(
        st.tuples(st.just("content"), TEXTS),
        st.tuples(st.just("reasoning"), TEXTS),
        st.tuples(NAMES, st.dictionaries(TEXTS, TEXTS | st.integers(), max_size=2).map(json.dumps)),
    ),
    max_size=6,
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[tuple[str, str]], list[bytes]]:
    """What a model says, and the same as chunks of any sizes, several of which may come at once."""
    said = draw(SAYINGS)
    chunks: list[bytes] = []
    calls = 0
    for kind, text in said:
        cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=3)) | {0, len(text)})
        pieces = [text[start:end] for start, end in pairwise(cuts)]
        if kind in ("content", "reasoning"):
            chunks += [chunk(**{kind: piece}) for piece in pieces]
        else:
            chunks.append(chunk(tool_calls=[call(calls, "", kind, f"id-{calls}")]))
            chunks += [chunk(tool_calls=[call(calls, piece)]) for piece in pieces]
            calls += 1
    chunks.append(chunk("tool_calls" if calls else "stop"))
    cuts = sorted(draw(st.sets(st.integers(0, len(chunks)))) | {0, len(chunks)})
    return _merged(said), [b"".join(chunks[start:end]) for start, end in pairwise(cuts)]


def _merged(said: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What is said without a pause is one thing, but for calls."""
    merged: list[tuple[str, str]] = []
    for kind, text in said:
        if merged and merged[-1][0] == kind and kind in ("content", "reasoning"):
            merged[-1] = (kind, merged[-1][1] + text)
        else:
            merged.append((kind, text))
    return merged or [("content", "")]


@settings(deadline=None, max_examples=60)
@given(streams())
def test_any_chunks_tell_the_same_response(drawn: tuple[list[tuple[str, str]], list[bytes]]) -> None:
    said, pieces = drawn
    events = response_events(stream(response_answer(), pieces))
    output = events[-1].response.output
    assert [_item(item) for item in output] == said
    for place, item in enumerate(output):
        deltas = [each.delta for each in events if each.type.endswith(".delta") and each.output_index == place]
        assert "".join(deltas) == _item(item)[1]
        of_item = [each.type for each in events if getattr(each, "output_index", None) == place]
        assert (of_item[0], of_item[-1]) == ("response.output_item.added", "response.output_item.done")


def _item(item: Any) -> tuple[str, str]:
    if item.type == "function_call":
        return item.name, item.arguments
    return "reasoning" if item.type == "reasoning" else "content", item.content[0].text


@settings(deadline=None, max_examples=60)
@given(streams())
def test_any_chunks_tell_the_same_message(drawn: tuple[list[tuple[str, str]], list[bytes]]) -> None:
    said, pieces = drawn
    blocks: list[tuple[str, list[str]]] = []
    for each in message_events(stream(message_answer(), pieces)):
        if each.type == "content_block_start":
            assert each.index == len(blocks)
            kind = getattr(each.content_block, "name", each.content_block.type)
            blocks.append(({"text": "content", "thinking": "reasoning"}.get(kind, kind), []))
        elif each.type == "content_block_delta" and each.delta.type != "signature_delta":
            assert each.index == len(blocks) - 1
            delta = each.delta
            blocks[-1][1].append(
                getattr(delta, {"text_delta": "text", "thinking_delta": "thinking"}.get(delta.type, "partial_json"))
            )
    assert [(kind, "".join(texts)) for kind, texts in blocks] == said


FIELDS = st.sampled_from(
    ["choices", "delta", "message", "content", "tool_calls", "function", "name", "arguments", "index", "finish_reason",
     "usage", "logprobs", "token", "id", "reasoning"]
)  # fmt: skip
ANSWERS = st.recursive(LEAVES, lambda of: st.lists(of, max_size=2) | st.dictionaries(FIELDS, of, max_size=4))


@pytest.mark.parametrize("answer", [response_answer, message_answer])
@settings(deadline=None)
@given(value=ANSWERS, rest=st.binary(max_size=8))
def test_any_answer_is_told_or_the_engines_fault(answer: Any, value: Any, rest: bytes) -> None:
    said = json.dumps(value).encode()
    for data in (said, said + rest, rest):
        translator: Translator = answer()
        try:
            told = translator.events(b"data: " + data + b"\n\n") + translator.last(TAIL)
            (response_events if answer is response_answer else message_events)(told)
        except ApiError as fault:
            assert isinstance(fault, EngineFailed)
        try:
            json.loads(answer().whole(data, TAIL))
        except ApiError as fault:
            assert isinstance(fault, EngineFailed)


def test_what_a_response_repeats_does_not_keep_the_request() -> None:
    body = raw(model="m", input="x" * 100_000, instructions="short")
    assert len(described(body)["instructions"]) == len(b'"short"')
