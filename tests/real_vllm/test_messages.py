"""The Messages of vLLM, which FIRST passes on as they are, by the official ``anthropic`` package and its types."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import anthropic
import pytest
from anthropic.types import TextBlock, ToolUseBlock

SAID: Any = [{"role": "user", "content": "Name three fruits."}]
ASK: Any = {"model": "smollm2", "messages": SAID, "max_tokens": 12, "extra_body": {"temperature": 0}}
ORDER = [
    "message_start",
    "content_block_start",
    "content_block_delta",
    "content_block_stop",
    "message_delta",
    "message_stop",
]
WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Chicago", "Lyon"]}},
        "required": ["city"],
    },
}


def test_a_plain_message(claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(**ASK)
    assert _text(answer)
    assert answer.role == "assistant"
    assert answer.model == "smollm2"
    assert answer.stop_reason == "max_tokens"
    assert answer.usage.output_tokens == 12


def test_events_in_their_order(claude: anthropic.Anthropic) -> None:
    whole = claude.messages.create(**ASK)
    events = list(claude.messages.create(**ASK, stream=True))
    assert [kind for kind, _ in groupby(event.type for event in events)] == ORDER
    with claude.messages.stream(**ASK) as stream:
        streamed = stream.get_final_message()
    assert _text(streamed) == _text(whole)
    assert streamed.stop_reason == "max_tokens"
    assert streamed.usage.input_tokens == whole.usage.input_tokens
    assert streamed.usage.output_tokens == whole.usage.output_tokens


def test_a_system_text_and_a_word_that_ends_it(claude: anthropic.Anthropic) -> None:
    counting: Any = [
        {"role": "user", "content": "Count from 1 to 9."},
        {"role": "assistant", "content": "1, 2, 3, 4, 5, 6,"},
    ]
    asked = {**ASK, "messages": counting, "max_tokens": 30}
    answer = claude.messages.create(**asked, system="You count.", stop_sequences=["9"])
    assert answer.stop_reason in ("stop_sequence", "end_turn", "max_tokens")
    if answer.stop_reason == "stop_sequence":
        assert answer.stop_sequence == "9"
        assert "9" not in _text(answer)


def test_tokens_are_counted_as_they_are_used(claude: anthropic.Anthropic) -> None:
    counted = claude.messages.count_tokens(model="smollm2", messages=SAID).input_tokens
    assert counted == claude.messages.create(**ASK).usage.input_tokens
    more = claude.messages.count_tokens(model="smollm2", messages=SAID, system="You are polite.").input_tokens
    assert more != counted


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}], ids=["any", "named"])
def test_a_tool_is_used(claude: anthropic.Anthropic, choice: Any) -> None:
    """In form, and as a stream: plainly, vLLM refuses its own answer when such a small model names no arguments."""
    asked = {**ASK, "max_tokens": 60, "tools": [WEATHER], "tool_choice": choice}
    with claude.messages.stream(**asked) as stream:
        kinds = [kind for kind, _ in groupby(event.type for event in stream)]
        answer = stream.get_final_message()
    assert "input_json" in kinds
    [use] = [block for block in answer.content if isinstance(block, ToolUseBlock)]
    assert use.name == "get_weather"
    assert use.id
    assert answer.stop_reason == "tool_use"


def test_errors_are_those_of_the_sdk(claude: anthropic.Anthropic) -> None:
    long: Any = [{"role": "user", "content": "word " * 4000}]
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(**{**ASK, "messages": long})
    with pytest.raises(anthropic.BadRequestError), claude.messages.stream(**{**ASK, "messages": long}) as stream:
        stream.get_final_message()
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(**{**ASK, "model": "unknown"})


def _text(answer: Any) -> str:
    [block] = answer.content
    assert isinstance(block, TextBlock)
    return block.text
