"""The Responses of vLLM, which FIRST passes on as they are, by the official ``openai`` package and its types."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any, Literal

import openai
import pytest
from openai.types.responses import ResponseCompletedEvent, ResponseFunctionToolCall
from pydantic import BaseModel

ASK: Any = {"model": "smollm2", "input": "Name three fruits.", "temperature": 0, "max_output_tokens": 12}
ORDER = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Chicago", "Lyon"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


class Fruit(BaseModel):
    name: Literal["apple", "pear", "plum"]


def test_a_plain_response(client: openai.OpenAI) -> None:
    answer = client.responses.create(**ASK)
    assert answer.model == "smollm2"
    assert answer.output_text
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None
    assert answer.usage.output_tokens == 12
    assert answer.usage.total_tokens == answer.usage.input_tokens + 12
    # It says the same as chat does.
    messages: Any = [{"role": "user", "content": ASK["input"]}]
    chat = client.chat.completions.create(model="smollm2", messages=messages, temperature=0, max_tokens=12)
    assert answer.output_text == chat.choices[0].message.content
    assert chat.usage is not None
    assert answer.usage.input_tokens == chat.usage.prompt_tokens


def test_events_in_their_order(client: openai.OpenAI) -> None:
    whole = client.responses.create(**ASK)
    events = list(client.responses.create(**ASK, stream=True))
    assert [kind for kind, _ in groupby(event.type for event in events)] == ORDER
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    last = events[-1]
    assert isinstance(last, ResponseCompletedEvent)
    assert last.response.output_text == whole.output_text
    assert last.response.usage is not None
    assert whole.usage is not None
    assert last.response.usage.output_tokens == whole.usage.output_tokens


def test_a_conversation_in_items(client: openai.OpenAI) -> None:
    items: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "Say hello."}]},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "And now goodbye."},
    ]
    answer = client.responses.create(**{**ASK, "input": items}, instructions="You are polite.")
    alone = client.responses.create(**{**ASK, "input": "And now goodbye."})
    assert answer.output_text
    assert answer.usage is not None
    assert alone.usage is not None
    assert answer.usage.input_tokens > alone.usage.input_tokens


def test_a_response_of_the_form_that_was_asked_for(client: openai.OpenAI) -> None:
    asked = {**ASK, "max_output_tokens": 60, "input": "Describe a fruit as JSON."}
    fruit = client.responses.parse(**asked, text_format=Fruit).output_parsed
    assert isinstance(fruit, Fruit)
    with client.responses.stream(**asked, text_format=Fruit) as stream:
        assert stream.get_final_response().output_parsed == fruit


def test_a_tool_is_called(client: openai.OpenAI) -> None:
    asked = {**ASK, "max_output_tokens": 60, "tools": [WEATHER], "tool_choice": "required"}
    [call] = client.responses.create(**asked).output
    assert isinstance(call, ResponseFunctionToolCall)
    assert call.name == "get_weather"
    assert call.call_id
    assert isinstance(json.loads(call.arguments), dict)


def test_nothing_is_kept(client: openai.OpenAI) -> None:
    answer = client.responses.create(**ASK)
    assert answer.to_dict().get("store") is not True
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**ASK, previous_response_id=answer.id)
    assert refused.value.param == "previous_response_id"


def test_errors_are_those_of_the_sdk(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.responses.create(**{**ASK, "input": "word " * 4000})
    with pytest.raises(openai.BadRequestError):
        client.responses.create(**{**ASK, "input": "word " * 4000}, stream=True)
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**ASK, tools=[{"type": "web_search"}])
    assert refused.value.code == "unsupported_tool"
