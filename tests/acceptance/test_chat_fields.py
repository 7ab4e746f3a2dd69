"""What a chat request may hold reaches the engine, and what the engine makes of it comes back: through the official
package, plain and streamed, with an engine that says what it was asked."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from acceptance.clients import Fakes, async_openai_client, openai_client

SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "“Zürich” \\ \u2028"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "description": "Look.", "parameters": SCHEMA, "strict": True}}
    for name in ("weather", "time")
]
IMAGE = f"data:image/png;base64,{base64.b64encode(bytes(range(256))).decode()}"
LOOK: Any = [
    {"type": "text", "text": "what is it?"},
    {"type": "image_url", "image_url": {"url": IMAGE, "detail": "high"}},
]
MESSAGES: Any = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
FIELDS: dict[str, Any] = {
    "tools": {"tools": TOOLS, "tool_choice": "auto", "parallel_tool_calls": False},
    "a tool": {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "time"}}},
    "structured output": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    },
    "json": {"response_format": {"type": "json_object"}},
    "logprobs": {"logprobs": True, "top_logprobs": 3},
    "choices": {"n": 3},
    "seed": {"seed": 7, "temperature": 0.1234567890123, "top_p": 0.9, "presence_penalty": 0.5, "stop": ["a", "b"]},
    "reasoning": {"reasoning_effort": "low"},
    "images": {"messages": [{"role": "user", "content": LOOK}]},
    "results of tools": {
        "messages": [
            *MESSAGES,
            {
                "role": "assistant",
                "content": None,
                "reasoning": "hm",
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "time", "arguments": '{"a": 1}'}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "noon"}]},
        ]
    },
    "options of engines": {
        "extra_body": {"top_k": 5, "min_p": 0.1, "chat_template_kwargs": {"enable_thinking": False}, "guided": None}
    },
}
EACH = pytest.mark.parametrize("field", FIELDS)


@pytest.fixture
def client(fakes: Fakes) -> Iterator[openai.OpenAI]:
    with openai_client(fakes.lab) as client:
        yield client


def asking(field: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A request as the package takes it, and as it must reach the engine."""
    asked: dict[str, Any] = {"model": "translated", "messages": MESSAGES, **FIELDS[field]}
    if asked.get("tool_choice") not in (None, "auto"):
        return asked, {}
    return asked, {key: value for key, value in asked.items() if key != "extra_body"} | asked.get("extra_body", {})


def plain(client: openai.OpenAI, **asked: Any) -> ChatCompletion:
    answer: ChatCompletion = client.chat.completions.create(**{"model": "translated", "messages": MESSAGES, **asked})
    return answer


def streamed(client: openai.OpenAI, **asked: Any) -> list[ChatCompletionChunk]:
    asked = {"model": "translated", "messages": MESSAGES, **asked}
    return list(client.chat.completions.create(**asked, stream=True))


def said(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


@EACH
def test_it_reaches_the_engine(client: openai.OpenAI, field: str) -> None:
    asked, expected = asking(field)
    answer = client.chat.completions.create(**asked)
    if expected:
        assert json.loads(answer.choices[0].message.content or "") == expected
    else:
        assert answer.choices[0].finish_reason == "tool_calls"


@EACH
def test_it_reaches_the_engine_of_a_stream(client: openai.OpenAI, field: str) -> None:
    """With one thing more: that it shall say what was used, for the ledger."""
    asked, expected = asking(field)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    if expected:
        assert json.loads(said(chunks)) == {**expected, "stream": True, "stream_options": {"include_usage": True}}
    assert all(chunk.usage is None for chunk in chunks)
    own: Any = {"include_usage": True, "continuous_usage_stats": False}
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options=own))
    if expected:
        assert json.loads(said(chunks)) == {**expected, "stream": True, "stream_options": own}
    assert chunks[-1].usage is not None


def test_calls_of_tools(client: openai.OpenAI) -> None:
    answer = plain(client, tools=TOOLS, tool_choice="required").choices[0]
    assert (answer.finish_reason, answer.message.content) == ("tool_calls", None)
    weather, clock = answer.message.tool_calls or ()
    assert weather.type == clock.type == "function"
    assert (weather.function.name, clock.function.name) == ("weather", "time")
    assert weather.function.arguments == json.dumps(SCHEMA), "to the byte"
    assert weather.id != clock.id


def test_calls_of_tools_in_a_stream(client: openai.OpenAI) -> None:
    ids, names, arguments = {}, {}, {0: "", 1: ""}
    for chunk in streamed(client, tools=TOOLS, tool_choice="required"):
        for call in chunk.choices[0].delta.tool_calls or ():
            assert call.function is not None
            ids[call.index] = call.id or ids[call.index]
            names[call.index] = call.function.name or names[call.index]
            arguments[call.index] += call.function.arguments or ""
        finish = chunk.choices[0].finish_reason
    assert names == {0: "weather", 1: "time"}
    assert ids[0] != ids[1]
    assert arguments == {0: json.dumps(SCHEMA), 1: json.dumps(SCHEMA)}
    assert finish == "tool_calls"


def test_calls_of_tools_of_the_stream_helper(client: openai.OpenAI) -> None:
    ask: Any = {"model": "translated", "messages": MESSAGES, "tools": TOOLS, "tool_choice": "required"}
    with client.chat.completions.stream(**ask) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion().choices[0].message
    assert [event.parsed_arguments for event in done] == [SCHEMA, SCHEMA]
    assert [call.function.name for call in final.tool_calls or ()] == ["weather", "time"]


def test_logprobs(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"logprobs": True, "top_logprobs": 3}
    answer = plain(client, **ask).choices[0]
    assert answer.logprobs is not None
    tokens = answer.logprobs.content or []
    assert "".join(token.token for token in tokens) == answer.message.content
    assert [len(token.top_logprobs) for token in tokens] == [3] * 8
    assert [token.logprob for token in tokens] == [-0.25] * 8
    assert bytes(tokens[0].bytes or ()).decode() == tokens[0].token
    for chunk in streamed(client, **ask):
        choice = chunk.choices[0]
        if choice.delta.content:
            assert choice.logprobs is not None
            [token] = choice.logprobs.content or []
            assert token.token == choice.delta.content
            assert len(token.top_logprobs) == 3


def test_several_choices(client: openai.OpenAI) -> None:
    answer = plain(client, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 1
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24
    chunks = streamed(client, n=3)
    assert said(chunks, 0) == said(chunks, 1) == said(chunks, 2) != ""
    finished = [choice.index for chunk in chunks for choice in chunk.choices if choice.finish_reason == "stop"]
    assert sorted(finished) == [0, 1, 2]


def test_seeds(client: openai.OpenAI) -> None:
    assert plain(client, seed=7).system_fingerprint == "seed-7"
    assert {chunk.system_fingerprint for chunk in streamed(client, seed=7)} == {"seed-7"}


def test_reasoning(client: openai.OpenAI) -> None:
    """The package has no type for it, but hands it on."""
    answer = plain(client, reasoning_effort="low")
    assert getattr(answer.choices[0].message, "reasoning") == "hm, well"  # noqa: B009
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 2
    chunks = streamed(client, reasoning_effort="low")
    thoughts = [getattr(chunk.choices[0].delta, "reasoning", None) for chunk in chunks]
    assert [thought for thought in thoughts if thought] == ["hm, ", "well"]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://example.org/x.png"}},
        {"type": "image_url", "image_url": "http://169.254.169.254/latest"},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "video_url", "video_url": {"url": "https://example.org/x.mp4"}},
        {"type": "audio_url", "audio_url": {"url": "https://example.org/x.mp3"}},
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_addresses_are_not_fetched(fakes: Fakes, part: Any, stream: bool) -> None:
    before = fakes.engines["translated"].stats.requests
    async with async_openai_client(fakes.lab) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(
                model="translated", messages=[{"role": "user", "content": [part]}], stream=stream
            )
    assert refused.value.param == "messages"
    assert fakes.engines["translated"].stats.requests == before
