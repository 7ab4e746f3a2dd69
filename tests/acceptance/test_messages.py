"""Anthropic Messages through the official package, typed from end to end: a real model, and fake engines that say what
they were asked, in this protocol by themselves (``passed``) and through FIRST (``translated``)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, TextBlock, ThinkingBlock, ToolParam, ToolUseBlock

from acceptance.clients import Fakes, anthropic_client, async_anthropic_client, order
from lab import Lab, wait_for

WAYS = pytest.mark.parametrize("model", ["passed", "translated"])
SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "“Zürich”"}},
    "required": ["city"],
}
TOOLS: list[ToolParam] = [
    {"name": name, "description": "Look there.", "input_schema": SCHEMA} for name in ("weather", "time")
]
ASK: dict[str, Any] = {"max_tokens": 2000, "messages": [{"role": "user", "content": "hi"}]}
THINK: dict[str, Any] = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
FORCED: dict[str, Any] = {"tools": TOOLS, "tool_choice": {"type": "any"}}


@pytest.fixture
def real(lab: Lab) -> Iterator[anthropic.Anthropic]:
    with anthropic_client(lab) as client:
        yield client


@pytest.fixture
def client(fakes: Fakes) -> Iterator[anthropic.Anthropic]:
    with anthropic_client(fakes.lab) as client:
        yield client


def text_of(message: Message) -> str:
    return "".join(block.text for block in message.content if isinstance(block, TextBlock))


def echoed(message: Message) -> dict[str, Any]:
    """What the engine was asked, as it says."""
    return dict(json.loads(text_of(message)))


def calls(message: Message) -> list[ToolUseBlock]:
    return [block for block in message.content if isinstance(block, ToolUseBlock)]


# -- a real model ------------------------------------------------------------------------------------------------------

REAL: dict[str, Any] = {"model": "smollm2", "messages": [{"role": "user", "content": "Name three fruits."}]}


def test_a_real_answer(real: anthropic.Anthropic) -> None:
    answer = real.messages.create(**REAL, system="Be brief.", max_tokens=12)
    assert text_of(answer)
    assert (answer.type, answer.role) == ("message", "assistant")
    assert (answer._request_id or "").startswith("req-")
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0) > 5
    assert 0 < answer.usage.output_tokens <= 12


def test_a_real_stream(real: anthropic.Anthropic) -> None:
    with real.messages.stream(**REAL, max_tokens=12) as stream:
        said = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert said == text_of(final) != ""
    assert final.stop_reason in ("end_turn", "max_tokens")
    assert 0 < final.usage.output_tokens <= 12


def test_real_counting(real: anthropic.Anthropic) -> None:
    more: Any = [*REAL["messages"], {"role": "assistant", "content": "One."}, {"role": "user", "content": "And more?"}]
    short = real.messages.count_tokens(**REAL)
    longer = real.messages.count_tokens(model="smollm2", messages=more)
    assert 5 < short.input_tokens < longer.input_tokens
    answer = real.messages.create(**REAL, max_tokens=1)
    assert short.input_tokens == answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)


# -- plain answers -----------------------------------------------------------------------------------------------------


@WAYS
def test_an_answer(client: anthropic.Anthropic, model: str) -> None:
    options = {"temperature": 0.5, "top_p": 0.9, "top_k": 5}
    answer = client.messages.create(
        model=model, **ASK, system="be brief", stop_sequences=["END"], extra_body=options, metadata={"user_id": "ada"}
    )
    assert (answer.type, answer.role, answer.model, answer.stop_reason) == ("message", "assistant", model, "end_turn")
    assert answer.usage.input_tokens > 0
    assert answer.usage.output_tokens > 0
    [block] = answer.content
    assert isinstance(block, TextBlock)
    asked = echoed(answer)
    assert [asked[key] for key in ("max_tokens", "temperature", "top_p", "top_k")] == [2000, 0.5, 0.9, 5]
    if model == "passed":
        assert (asked["system"], asked["messages"]) == ("be brief", ASK["messages"])
        assert asked["stop_sequences"] == ["END"]
    else:
        assert asked["messages"] == [{"role": "system", "content": "be brief"}, *ASK["messages"]]
        assert asked["stop"] == ["END"]


@WAYS
def test_an_answer_that_is_cut_short(client: anthropic.Anthropic, model: str) -> None:
    answer = client.messages.create(**{"model": model, **ASK, "max_tokens": 2})
    assert answer.stop_reason == "max_tokens"
    assert answer.usage.output_tokens == 2


@WAYS
def test_thinking(client: anthropic.Anthropic, model: str) -> None:
    """Whether a chat engine thinks is not for its clients to say, but for their effort."""
    asked = THINK if model == "passed" else {**THINK, "output_config": {"effort": "low"}}
    answer = client.messages.create(model=model, **ASK, **asked)
    thoughts, said = answer.content
    assert isinstance(thoughts, ThinkingBlock)
    assert thoughts.thinking == "hm, well"
    assert isinstance(said, TextBlock)
    back: Any = [*ASK["messages"], {"role": "assistant", "content": answer.content}, {"role": "user", "content": "so?"}]
    again = echoed(client.messages.create(model=model, max_tokens=2000, messages=back))
    if model == "passed":
        assert again["messages"][1]["content"][0]["thinking"] == "hm, well"
    else:
        assert again["messages"][1]["reasoning_content"] == "hm, well"


@WAYS
def test_images(client: anthropic.Anthropic, model: str) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    said: Any = [{"type": "image", "source": source}, {"type": "text", "text": "what?"}]
    answer = client.messages.create(model=model, max_tokens=2000, messages=[{"role": "user", "content": said}])
    content = echoed(answer)["messages"][0]["content"]
    if model == "passed":
        assert content == said
    else:
        url = "data:image/png;base64,iVBORw0KGgo="
        assert content == [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what?"}]


@WAYS
def test_structured_output(client: anthropic.Anthropic, model: str) -> None:
    config: Any = {"format": {"type": "json_schema", "schema": SCHEMA}}
    asked = echoed(client.messages.create(model=model, **ASK, output_config=config))
    told = asked["output_config"]["format"] if model == "passed" else asked["response_format"]["json_schema"]
    assert told["schema"] == SCHEMA


def test_counting(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model="passed", system="be brief", messages=ASK["messages"])
    assert counted.input_tokens == 3


async def test_the_async_client(fakes: Fakes) -> None:
    async with async_anthropic_client(fakes.lab) as client:
        for model in ("passed", "translated"):
            answer = await client.messages.create(model=model, **ASK)
            async with client.messages.stream(model=model, **ASK) as stream:
                said = "".join([piece async for piece in stream.text_stream])
                final = await stream.get_final_message()
            assert json.loads(said) == {**echoed(answer), **echoed(final)}
            assert final.stop_reason == "end_turn"
        counted = await client.messages.count_tokens(model="passed", messages=ASK["messages"])
        assert counted.input_tokens == 1


# -- tools -------------------------------------------------------------------------------------------------------------


@WAYS
def test_tools(client: anthropic.Anthropic, model: str) -> None:
    first = client.messages.create(model=model, **ASK, **FORCED)
    assert first.stop_reason == "tool_use"
    weather, clock = calls(first)
    assert (weather.name, clock.name) == ("weather", "time")
    assert weather.input == SCHEMA, "it came there and back unchanged"
    assert weather.id != clock.id
    results: Any = [
        {"type": "tool_result", "tool_use_id": call.id, "content": f"{call.name}: fine"} for call in (weather, clock)
    ]
    back: Any = [
        *ASK["messages"],
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [*results, {"type": "text", "text": "so?"}]},
    ]
    asked = echoed(client.messages.create(model=model, max_tokens=2000, messages=back))
    if model == "passed":
        assert asked["messages"][2] == back[2]
    else:
        _, assistant, *told, user = asked["messages"]
        assert [call["id"] for call in assistant["tool_calls"]] == [weather.id, clock.id]
        assert json.loads(assistant["tool_calls"][0]["function"]["arguments"]) == SCHEMA
        assert [(tool["tool_call_id"], tool["content"]) for tool in told] == [
            (weather.id, "weather: fine"),
            (clock.id, "time: fine"),
        ]
        assert user == {"role": "user", "content": "so?"}


@WAYS
def test_tools_of_the_stream_helper(client: anthropic.Anthropic, model: str) -> None:
    with client.messages.stream(model=model, **ASK, **FORCED) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert [call.name for call in calls(final)] == ["weather", "time"]
    assert [call.input for call in calls(final)] == [SCHEMA, SCHEMA]
    assert snapshots[-1] == SCHEMA
    assert final.stop_reason == "tool_use"


# -- streams -----------------------------------------------------------------------------------------------------------

BLOCK = ["content_block_start", "content_block_delta", "content_block_stop"]
TEXT = [f"{name} text" for name in BLOCK]
CALL = [f"{name} tool_use" for name in BLOCK]
THOUGHTS = [f"{name} thinking" for name in BLOCK]
ORDERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "text": ({}, TEXT),
    "thoughts": ({**THINK, "output_config": {"effort": "low"}}, THOUGHTS + TEXT),
    "call": ({"tools": TOOLS[:1], "tool_choice": {"type": "any"}}, CALL),
    "all": ({**THINK, "output_config": {"effort": "low"}, "tools": TOOLS}, THOUGHTS + TEXT + CALL + CALL),
}


@WAYS
@pytest.mark.parametrize("kind", ORDERS)
def test_the_order_of_events(client: anthropic.Anthropic, model: str, kind: str) -> None:
    asked, blocks = ORDERS[kind]
    names, kinds, texts = [], {}, 0
    for event in client.messages.create(model=model, **ASK, **asked, stream=True):
        if event.type == "content_block_start":
            assert event.index == len(kinds)
            kinds[event.index] = event.content_block.type
        if event.type in ("content_block_start", "content_block_delta", "content_block_stop"):
            names.append(f"{event.type} {kinds[event.index]}")
        else:
            names.append(event.type)
        texts += event.type == "content_block_delta" and event.delta.type == "text_delta"
    assert order(names) == ["message_start", *blocks, "message_delta", "message_stop"]
    assert names.count("message_stop") == names.count("message_delta") == 1
    assert texts == (8 if "content_block_start text" in names else 0), "each piece as it comes"


@WAYS
def test_the_stream_adds_up(client: anthropic.Anthropic, model: str) -> None:
    asked, _ = ORDERS["all"]
    with client.messages.stream(model=model, **ASK, **asked) as stream:
        events = list(stream)
        final = stream.get_final_message()
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert "".join(event.text for event in events if event.type == "text") == text_of(final)
    assert "".join(event.thinking for event in events if event.type == "thinking") == "hm, well"
    assert final.usage.output_tokens > 0
    assert final.usage.input_tokens > 0


@WAYS
def test_a_stream_that_is_cut_short(client: anthropic.Anthropic, model: str) -> None:
    with client.messages.stream(**{"model": model, **ASK, "max_tokens": 2}) as stream:
        final = stream.get_final_message()
    assert final.stop_reason == "max_tokens"
    assert final.usage.output_tokens == 2


@pytest.mark.parametrize("model", ["slow-passed", "slow-translated"])
def test_a_stream_that_is_closed_early(fakes: Fakes, client: anthropic.Anthropic, model: str) -> None:
    with fakes.closing(model) as engine:
        stream = client.messages.create(model=model, **ASK, stream=True)
        wait_for("the engine works", lambda: engine.stats.in_flight == 1)
        stream.close()
    assert fakes.outcome(stream.response.headers["x-request-id"]) == "cancelled"


@pytest.mark.parametrize("model", ["slow-passed", "slow-translated"])
async def test_an_async_stream_that_is_closed_early(fakes: Fakes, model: str) -> None:
    async with async_anthropic_client(fakes.lab) as client:
        with fakes.closing(model):
            async with client.messages.stream(model=model, **ASK) as stream:
                async for event in stream:
                    assert event.type == "message_start"
                    break


# -- what is refused ---------------------------------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize(
    "asked",
    [
        {"messages": []},
        {"max_tokens": 0},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "https://x/y"}}]}
            ]
        },
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_what_is_refused(
    client: anthropic.Anthropic, fakes: Fakes, model: str, asked: dict[str, Any], stream: bool
) -> None:
    before = fakes.engines[model].stats.requests
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.messages.create(**{"model": model, **ASK, "stream": stream, **asked})
    assert refused.value.type == "invalid_request_error"
    assert fakes.engines[model].stats.requests == before
