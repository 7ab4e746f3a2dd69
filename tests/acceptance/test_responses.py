"""OpenAI Responses through the official package, typed from end to end: a real model, whose engine speaks only chat,
and fake engines that say what they were asked, in this protocol by themselves (``passed``) and through FIRST
(``translated``). What clients see is the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai.types.responses import (
    FunctionToolParam,
    Response,
    ResponseFunctionToolCall,
    ResponseFunctionToolCallOutputItem,
    ResponseInputMessageItem,
    ResponseOutputMessage,
    ResponseReasoningItem,
    ResponseStreamEvent,
)
from pydantic import BaseModel

from acceptance.clients import Fakes, async_openai_client, openai_client, order
from lab import Lab, wait_for

WAYS = pytest.mark.parametrize("model", ["passed", "translated"])
SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "“Zürich”"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: list[FunctionToolParam] = [
    {"type": "function", "name": name, "description": "Look there.", "parameters": SCHEMA, "strict": True}
    for name in ("weather", "time")
]


@pytest.fixture
def real(lab: Lab) -> Iterator[openai.OpenAI]:
    with openai_client(lab) as client:
        yield client


@pytest.fixture
def client(fakes: Fakes) -> Iterator[openai.OpenAI]:
    with openai_client(fakes.lab) as client:
        yield client


def echoed(response: Response) -> dict[str, Any]:
    """What the engine was asked, as it says."""
    return dict(json.loads(response.output_text))


def calls(response: Response) -> list[ResponseFunctionToolCall]:
    return [item for item in response.output if isinstance(item, ResponseFunctionToolCall)]


# -- a real model ------------------------------------------------------------------------------------------------------


class Fruit(BaseModel):
    name: Literal["apple", "pear"]
    is_ripe: bool


def test_a_real_answer(real: openai.OpenAI) -> None:
    answer = real.responses.create(
        model="tiny", instructions="Be brief.", input="Name three fruits.", max_output_tokens=12, temperature=0.0
    )
    assert answer.output_text
    assert answer.model == "smollm2"
    assert (answer.instructions, answer.temperature) == ("Be brief.", 0.0)
    assert answer.usage is not None
    assert answer.usage.input_tokens > 5
    assert 0 < answer.usage.output_tokens <= 12
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    if answer.status == "incomplete":
        assert answer.incomplete_details is not None
        assert answer.incomplete_details.reason == "max_output_tokens"
    else:
        assert answer.status == "completed"


def test_a_real_stream(real: openai.OpenAI) -> None:
    with real.responses.stream(model="smollm2", input="Name three fruits.", max_output_tokens=12) as stream:
        events = list(stream)
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == last.response.output_text != ""


def test_real_structured_output(real: openai.OpenAI) -> None:
    """With tokens enough for all the white space that the engine's grammar allows."""
    most: dict[str, Any] = {"max_output_tokens": 300, "temperature": 0.0}
    ask: dict[str, Any] = {"model": "smollm2", "input": "Which fruit is red?", "text_format": Fruit, **most}
    answer = real.responses.parse(**ask)
    assert isinstance(answer.output_parsed, Fruit)
    with real.responses.stream(**ask) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Fruit)


def test_a_real_conversation(real: openai.OpenAI) -> None:
    first = real.responses.create(model="smollm2", input="My name is Ada.", max_output_tokens=8)
    alone = real.responses.create(model="smollm2", input="What is my name?", max_output_tokens=8, store=False)
    second = real.responses.create(
        model="smollm2", input="What is my name?", previous_response_id=first.id, max_output_tokens=8
    )
    assert second.previous_response_id == first.id
    assert second.usage is not None
    assert alone.usage is not None
    assert second.usage.input_tokens > alone.usage.input_tokens + 10
    found = real.responses.retrieve(second.id)
    assert (found.id, found.output_text, found.usage) == (second.id, second.output_text, second.usage)
    with pytest.raises(openai.NotFoundError):
        real.responses.retrieve(alone.id)


# -- plain answers -----------------------------------------------------------------------------------------------------


@WAYS
def test_an_answer(client: openai.OpenAI, model: str) -> None:
    answer = client.responses.create(model=model, input="hi", instructions="be brief", metadata={"a": "b"})
    assert (answer.status, answer.model, answer.error) == ("completed", model, None)
    assert answer.id.startswith("resp_")
    assert answer.usage is not None
    [message] = answer.output
    assert isinstance(message, ResponseOutputMessage)
    assert (message.role, message.status) == ("assistant", "completed")
    assert (answer.instructions, answer.metadata) == ("be brief", {"a": "b"})
    asked = echoed(answer)
    if model == "passed":
        assert (asked["input"], asked["instructions"], asked["store"]) == ("hi", "be brief", False)
    else:
        assert asked["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]


@WAYS
def test_an_answer_that_is_cut_short(client: openai.OpenAI, model: str) -> None:
    answer = client.responses.create(model=model, input="hi", max_output_tokens=2)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None
    assert answer.usage.output_tokens == 2


@WAYS
def test_reasoning(client: openai.OpenAI, model: str) -> None:
    answer = client.responses.create(model=model, input="hi", reasoning={"effort": "low"})
    thoughts, message = answer.output
    assert isinstance(thoughts, ResponseReasoningItem)
    assert thoughts.content is not None
    assert [part.text for part in thoughts.content] == ["hm, well"]
    assert isinstance(message, ResponseOutputMessage)
    assert answer.reasoning is not None
    assert answer.reasoning.effort == "low"
    assert answer.usage is not None
    assert answer.usage.output_tokens_details.reasoning_tokens == 2


@WAYS
def test_structured_output(client: openai.OpenAI, model: str) -> None:
    """That it is in form is the engine's part; that it hears of it, and the client of that, is ours."""
    form: Any = {"type": "json_schema", "name": "place", "schema": SCHEMA, "strict": True}
    answer = client.responses.create(model=model, input="hi", text={"format": form})
    assert answer.text is not None
    assert answer.text.format is not None
    assert answer.text.format.type == "json_schema"
    assert answer.text.format.schema_ == SCHEMA
    asked = echoed(answer)
    told = asked["text"]["format"] if model == "passed" else asked["response_format"]["json_schema"]
    assert (told["name"], told["schema"], told["strict"]) == ("place", SCHEMA, True)


@WAYS
def test_images(client: openai.OpenAI, model: str) -> None:
    url = "data:image/png;base64,iVBORw0KGgo="
    said: Any = [{"type": "input_text", "text": "what?"}, {"type": "input_image", "image_url": url, "detail": "low"}]
    answer = client.responses.create(model=model, input=[{"role": "user", "content": said}])
    asked = echoed(answer)
    if model == "passed":
        assert asked["input"][0]["content"] == said
    else:
        text, image = asked["messages"][0]["content"]
        assert text == {"type": "text", "text": "what?"}
        assert image == {"type": "image_url", "image_url": {"url": url, "detail": "low"}}


async def test_the_async_client(fakes: Fakes) -> None:
    async with async_openai_client(fakes.lab) as client:
        for model in ("passed", "translated"):
            answer = await client.responses.create(model=model, input="hi")
            found = await client.responses.retrieve(answer.id)
            assert found.output_text == answer.output_text != ""
            async with client.responses.stream(model=model, input="hi", previous_response_id=answer.id) as stream:
                names = [event.type async for event in stream]
                final = await stream.get_final_response()
            assert order(names) == ["response.created", "response.in_progress", *MESSAGE, "response.completed"]
            assert final.previous_response_id == answer.id
            items = [item async for item in client.responses.input_items.list(final.id)]
            assert len(items) == 3
            await client.responses.delete(final.id)
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(final.id)


# -- tools -------------------------------------------------------------------------------------------------------------


@WAYS
def test_tools(client: openai.OpenAI, model: str) -> None:
    first = client.responses.create(model=model, input="hi", tools=TOOLS, tool_choice="required")
    weather, clock = calls(first)
    assert (weather.name, clock.name) == ("weather", "time")
    assert json.loads(weather.arguments) == SCHEMA, "it came there and back unchanged"
    assert weather.call_id != clock.call_id
    assert first.tools[0].type == "function"
    assert first.tool_choice == "required"
    results: Any = [
        {"type": "function_call_output", "call_id": call.call_id, "output": f"{call.name}: fine"}
        for call in (weather, clock)
    ]
    second = client.responses.create(model=model, input=results, previous_response_id=first.id)
    asked = echoed(second)
    if model == "passed":
        kinds = [item["type"] for item in asked["input"]]
        assert kinds == ["message", *["function_call"] * 2, *["function_call_output"] * 2]
        assert asked["input"][3:] == results
    else:
        user, assistant, *told = asked["messages"]
        assert user["content"] == "hi"
        assert [call["id"] for call in assistant["tool_calls"]] == [weather.call_id, clock.call_id]
        assert [(tool["tool_call_id"], tool["content"]) for tool in told] == [
            (weather.call_id, "weather: fine"),
            (clock.call_id, "time: fine"),
        ]


@WAYS
def test_tools_of_the_stream_helper(client: openai.OpenAI, model: str) -> None:
    with client.responses.stream(model=model, input="hi", tools=TOOLS, tool_choice="required") as stream:
        snapshots = [e.snapshot for e in stream if e.type == "response.function_call_arguments.delta"]
        final = stream.get_final_response()
    assert [call.name for call in calls(final)] == ["weather", "time"]
    assert snapshots[-1] == calls(final)[1].arguments
    assert json.loads(snapshots[-1]) == SCHEMA


# -- streams -----------------------------------------------------------------------------------------------------------

MESSAGE = [
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]
THOUGHTS = [name.replace("output_text", "reasoning_text") for name in MESSAGE]
CALL = [
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
]
ORDERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "text": ({}, MESSAGE),
    "thoughts": ({"reasoning": {"effort": "low"}}, THOUGHTS + MESSAGE),
    "call": ({"tools": TOOLS[:1], "tool_choice": "required"}, CALL),
    "all": ({"reasoning": {"effort": "low"}, "tools": TOOLS}, THOUGHTS + MESSAGE + CALL + CALL),
}


@WAYS
@pytest.mark.parametrize("kind", ORDERS)
def test_the_order_of_events(client: openai.OpenAI, model: str, kind: str) -> None:
    asked, items = ORDERS[kind]
    stream = client.responses.create(model=model, input="hi", stream=True, **asked)
    events: list[ResponseStreamEvent] = list(stream)
    names = [event.type for event in events]
    assert order(names) == ["response.created", "response.in_progress", *items, "response.completed"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert names.count("response.output_text.delta") in (0, 8), "each piece as it comes"


@WAYS
def test_the_stream_adds_up(client: openai.OpenAI, model: str) -> None:
    """What is told piece by piece is what is told in the end, and where."""
    asked, _ = ORDERS["all"]
    with client.responses.stream(model=model, input="hi", **asked) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert len(final.output) == 4
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == final.output_text
    for event in events:
        if event.type == "response.output_item.done":
            assert event.item.id == final.output[event.output_index].id
    assert final.usage is not None
    assert final.usage.output_tokens > 0
    assert client.responses.retrieve(final.id).output_text == final.output_text


@WAYS
def test_a_stream_that_is_cut_short(client: openai.OpenAI, model: str) -> None:
    events = list(client.responses.create(model=model, input="hi", max_output_tokens=2, stream=True))
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert last.response.status == "incomplete"
    assert [event.type for event in events].count("response.output_text.delta") == 2


@pytest.mark.parametrize("model", ["slow-passed", "slow-translated"])
def test_a_stream_that_is_closed_early(fakes: Fakes, client: openai.OpenAI, model: str) -> None:
    with fakes.closing(model) as engine:
        stream = client.responses.create(model=model, input="hi", stream=True)
        wait_for("the engine works", lambda: engine.stats.in_flight == 1)
        stream.close()
    assert fakes.outcome(stream.response.headers["x-request-id"]) == "cancelled"


@pytest.mark.parametrize("model", ["slow-passed", "slow-translated"])
async def test_an_async_stream_that_is_closed_early(fakes: Fakes, model: str) -> None:
    async with async_openai_client(fakes.lab) as client:
        with fakes.closing(model):
            async with client.responses.stream(model=model, input="hi") as stream:
                async for event in stream:
                    assert event.type == "response.created"
                    break


# -- answers that are kept ---------------------------------------------------------------------------------------------


@WAYS
def test_a_response_is_found_and_deleted(client: openai.OpenAI, model: str) -> None:
    answer = client.responses.create(model=model, input="hi")
    found = client.responses.retrieve(answer.id)
    assert found.model_dump() == answer.model_dump()
    client.responses.delete(answer.id)
    for look in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError) as gone:
            look(answer.id)
        assert gone.value.code == "response_not_found"


@WAYS
def test_it_is_found_as_soon_as_its_end_is_told(client: openai.OpenAI, model: str) -> None:
    for event in client.responses.create(model=model, input="hi", stream=True):
        if event.type == "response.completed":
            assert client.responses.retrieve(event.response.id).output_text == event.response.output_text
            break
    else:
        pytest.fail("it never ended")


@WAYS
def test_input_items(client: openai.OpenAI, model: str) -> None:
    first = client.responses.create(model=model, input="hi", tools=TOOLS[:1], tool_choice="required")
    [call] = calls(first)
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "fine"}
    second = client.responses.create(model=model, input=[result], previous_response_id=first.id)
    third = client.responses.create(model=model, input="thanks", previous_response_id=second.id)
    items = list(client.responses.input_items.list(third.id, order="asc", limit=2))
    user, called, told, answered, thanks = items
    assert isinstance(user, ResponseInputMessageItem)
    assert user.content[0].type == "input_text"
    assert user.content[0].text == "hi"
    assert called.type == "function_call"
    assert isinstance(told, ResponseFunctionToolCallOutputItem)
    assert (told.call_id, told.output) == (call.call_id, "fine")
    assert isinstance(answered, ResponseOutputMessage)
    assert isinstance(thanks, ResponseInputMessageItem)
    newest = client.responses.input_items.list(third.id, limit=1)
    assert [item.id for item in newest.data] == [thanks.id]
    assert newest.has_more


@WAYS
def test_nothing_goes_on_from_what_is_not_kept(client: openai.OpenAI, model: str) -> None:
    answer = client.responses.create(model=model, input="hi", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)
    with pytest.raises(openai.BadRequestError) as unknown:
        client.responses.create(model=model, input="more", previous_response_id=answer.id)
    assert (unknown.value.param, unknown.value.code) == ("previous_response_id", "previous_response_not_found")


# -- what is refused ---------------------------------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"input": []}, "input"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "mcp", "server_label": "x", "server_url": "https://example.org"}]}, "tools"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        (
            {
                "input": [
                    {"role": "user", "content": [{"type": "input_image", "image_url": "https://example.org/x.png"}]}
                ]
            },
            "input",
        ),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_what_is_refused(
    client: openai.OpenAI, fakes: Fakes, model: str, asked: dict[str, Any], param: str, stream: bool
) -> None:
    before = fakes.engines[model].stats.requests
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**{"model": model, "input": "hi", "stream": stream, **asked})
    assert refused.value.param == param
    assert fakes.engines[model].stats.requests == before
