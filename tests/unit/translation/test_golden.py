"""Recorded answers of chat engines, and what is told of them, event by event.

``PYTHONPATH=tests python -m unit.translation.test_golden`` writes the golden files anew: look at the difference before
you keep it.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from firstkit.links.messages import Outcome, Tail, Usage
from unit.translation.support import (
    FIXTURES,
    anthropic_final,
    message,
    message_answer,
    message_events,
    normalised,
    openai_final,
    recorded,
    response,
    response_answer,
    response_events,
    stream,
)

WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}, "strict": None}
PATCH = {"type": "custom", "name": "apply_patch"}
SOURCES = sorted(path.name for path in FIXTURES.glob("*.chat.*"))
STREAMS = [name for name in SOURCES if name.endswith(".sse")]
WHOLE = [name for name in SOURCES if name.endswith(".json")]


def tail_of(said: bytes) -> Tail:
    """What a pilot says at the end: the numbers of the engine."""
    usage = json.loads(said).get("usage")
    return Tail(Outcome.COMPLETE, Usage(usage["prompt_tokens"], usage["completion_tokens"]) if usage else Usage(9, 9))


def told_of(name: str) -> tuple[bytes, bytes]:
    """A recording as Responses and as Messages."""
    by_response, by_message = response_answer(tools=[WEATHER, PATCH]), message_answer()
    if name.endswith(".sse"):
        events = recorded(name)
        tail = tail_of(events[-1][len(b"data: ") :])
        return stream(by_response, events, tail), stream(by_message, events, tail)
    said = (FIXTURES / name).read_bytes()
    return by_response.whole(said, tail_of(said)), by_message.whole(said, tail_of(said))


def golden(name: str, protocol: str) -> str:
    """The name of the file with what is told of a recording."""
    return name.replace(".chat.", f".{protocol}.")


def test_there_are_recordings_of_each_kind() -> None:
    assert len(STREAMS) >= 8
    assert len(WHOLE) >= 4


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_told_stays_the_same(name: str) -> None:
    for protocol, told in zip(("responses", "messages"), told_of(name), strict=True):
        assert normalised(told) == (FIXTURES / golden(name, protocol)).read_bytes()


@pytest.mark.parametrize("name", STREAMS)
def test_each_event_has_all_that_its_type_needs(name: str) -> None:
    by_response, by_message = told_of(name)
    events = response_events(by_response)
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert events[-1].response.status == events[-1].type.removeprefix("response.")
    events = message_events(by_message)
    assert [events[0].type, events[-2].type, events[-1].type] == ["message_start", "message_delta", "message_stop"]


@pytest.mark.parametrize("name", STREAMS)
def test_the_sdks_build_the_answer_that_was_told(name: str) -> None:
    by_response, by_message = told_of(name)
    last = response_events(by_response)[-1].response
    if last.status == "completed":  # of others this SDK has no final response
        final = openai_final(by_response, tools=[WEATHER, PATCH])
        assert _without_parsed(final.to_dict()) == last.to_dict()
    final_message = anthropic_final(by_message)
    assert message(final_message.model_dump_json(exclude={"parsed_output"}).encode()).stop_reason is not None
    texts = [block.text for block in final_message.content if block.type == "text"]
    assert "".join(texts) == last.output_text
    calls = [(block.name, block.input) for block in final_message.content if block.type == "tool_use"]
    assert calls == [_call(item) for item in last.output if item.type in ("function_call", "custom_tool_call")]


@pytest.mark.parametrize("name", WHOLE)
def test_plain_answers_have_all_that_their_types_need(name: str) -> None:
    by_response, by_message = told_of(name)
    assert response(by_response).output
    assert message(by_message).content


def _call(item: Any) -> tuple[str, Any]:
    return item.name, json.loads(item.arguments) if item.type == "function_call" else {"input": item.input}


def _without_parsed(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_parsed(each) for each in value]
    if isinstance(value, dict):
        return {key: _without_parsed(each) for key, each in value.items() if key not in ("parsed", "parsed_arguments")}
    return value


if __name__ == "__main__":
    for source in SOURCES:
        for protocol, told in zip(("responses", "messages"), told_of(source), strict=True):
            (FIXTURES / golden(source, protocol)).write_bytes(normalised(told))
