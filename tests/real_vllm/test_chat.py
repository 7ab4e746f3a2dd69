"""Chat and completions of vLLM through FIRST, by the official ``openai`` package and its types."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pytest
from openai.types.chat import ChatCompletionMessageToolCall
from pydantic import BaseModel

ASK: dict[str, Any] = {"model": "smollm2", "messages": [{"role": "user", "content": "Name three fruits."}]}
SURE: dict[str, Any] = {**ASK, "temperature": 0, "max_tokens": 12}
WITH_USAGE: Any = {"include_usage": True}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Chicago", "Lyon"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


class Fruit(BaseModel):
    name: Literal["apple", "pear", "plum"]
    colour: Literal["red", "green"]


def test_models(client: openai.OpenAI) -> None:
    models: dict[str, Any] = {model.id: model.model_dump()["first"] for model in client.models.list()}
    talks, pools = models["smollm2"], models["minilm"]
    assert talks["status"] == pools["status"] == "live"
    assert talks["context_length"] == 2048
    assert pools["context_length"] > 0
    assert talks["capabilities"] == ["chat", "completions", "count_tokens", "messages", "responses"]
    assert pools["capabilities"] == ["embeddings", "rerank", "score"]
    assert client.models.retrieve("tiny").id == "smollm2"


def test_a_plain_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**SURE)
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert answer.model == "smollm2"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 20
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**SURE).choices[0].message.content
    chunks = list(client.chat.completions.create(**SURE, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_with_usage(client: openai.OpenAI) -> None:
    usage = client.chat.completions.create(**SURE).usage
    *_, last = client.chat.completions.create(**SURE, stream=True, stream_options=WITH_USAGE)
    assert last.choices == []
    assert usage is not None
    assert last.usage is not None
    assert last.usage.prompt_tokens == usage.prompt_tokens
    assert last.usage.completion_tokens == usage.completion_tokens


def test_usage_in_every_chunk_where_the_client_asks_vllm_for_it(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(client.chat.completions.create(**SURE, stream=True, stream_options=options))
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
    assert len(counts) == len(chunks)
    assert counts == sorted(counts)
    assert counts[-1] == 12


def test_two_choices(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {**ASK, "n": 2, "temperature": 1.5, "max_tokens": 12}
    answer = client.chat.completions.create(**asked)
    assert [choice.index for choice in answer.choices] == [0, 1]
    texts = [choice.message.content for choice in answer.choices]
    assert texts[0] != texts[1]
    assert answer.usage is not None
    assert 12 < answer.usage.completion_tokens <= 24
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
    assert {choice.index for choice in chunks} == {0, 1}
    assert sorted(choice.index for choice in chunks if choice.finish_reason) == [0, 1]


def test_a_seed_repeats_an_answer(client: openai.OpenAI) -> None:
    def answer(seed: int) -> Any:
        asked = client.chat.completions.create(**ASK, temperature=1.5, max_tokens=16, seed=seed)
        return asked.choices[0].message.content

    assert answer(7) == answer(7)
    assert len({answer(seed) for seed in (1, 2, 3)}) > 1


def test_a_word_that_ends_the_answer(client: openai.OpenAI) -> None:
    counting: Any = {"model": "smollm2", "prompt": "1 2 3 4 5 6", "temperature": 0, "max_tokens": 30}
    choice = client.completions.create(**counting, stop=["9"]).choices[0]
    assert choice.finish_reason == "stop"
    assert "7" in choice.text
    assert "9" not in choice.text


def test_logprobs(client: openai.OpenAI) -> None:
    [choice] = client.chat.completions.create(**SURE, logprobs=True, top_logprobs=3).choices
    assert choice.logprobs is not None
    told = choice.logprobs.content or []
    assert len(told) == 12
    assert "".join(token.token for token in told) == choice.message.content
    for token in told:
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob <= 0
    chunks = client.chat.completions.create(**SURE, logprobs=True, top_logprobs=3, stream=True)
    streamed = [token for chunk in chunks if (logs := chunk.choices[0].logprobs) for token in logs.content or []]
    assert [token.token for token in streamed] == [token.token for token in told]


def test_an_answer_of_the_form_that_was_asked_for(client: openai.OpenAI) -> None:
    asked: Any = {**ASK, "messages": [{"role": "user", "content": "Describe a fruit as JSON."}], "max_tokens": 60}
    fruit = client.chat.completions.parse(**asked, temperature=0, response_format=Fruit).choices[0].message.parsed
    assert isinstance(fruit, Fruit)
    with client.chat.completions.stream(**asked, temperature=0, response_format=Fruit) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == fruit


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_a_tool_is_called(client: openai.OpenAI, choice: Any) -> None:
    asked: Any = {**SURE, "tools": [WEATHER], "tool_choice": choice, "max_tokens": 60}
    finish = "tool_calls" if choice == "required" else "stop"  # as OpenAI's own service says it
    whole = client.chat.completions.create(**asked).choices[0]
    assert whole.finish_reason == finish
    [call] = whole.message.tool_calls or []
    _is_weather(call)
    with client.chat.completions.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.delta" in kinds
    assert streamed.finish_reason == finish
    [again] = streamed.message.tool_calls or []
    _is_weather(again)


def _is_weather(call: Any) -> None:
    """In form: what such a small model writes into it is another matter."""
    assert isinstance(call, ChatCompletionMessageToolCall)
    assert call.id
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)


def test_the_result_of_a_tool_goes_back(client: openai.OpenAI) -> None:
    function = {"name": "get_weather", "arguments": '{"city":"Lyon"}'}
    messages = [
        {"role": "user", "content": "What is the weather in Lyon?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "c1", "content": "Sunny, 31 degrees."},
    ]
    answer = client.chat.completions.create(**{**SURE, "messages": messages}, tools=[WEATHER], tool_choice="none")
    assert answer.choices[0].message.content
    assert not answer.choices[0].message.tool_calls


def test_completions(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "prompt": "One, two, three,", "temperature": 0, "max_tokens": 8}
    answer = client.completions.create(**asked, logprobs=2)
    [choice] = answer.choices
    assert choice.text
    assert choice.logprobs is not None
    assert len(choice.logprobs.tokens or []) == 8
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    chunks = list(client.completions.create(**asked, stream=True, stream_options=WITH_USAGE))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == choice.text
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8


def test_several_prompts_at_once(client: openai.OpenAI) -> None:
    prompts = ["One, two,", "Red, green,", "Monday, Tuesday,"]
    answer = client.completions.create(model="tiny", prompt=prompts, temperature=0, max_tokens=4)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12


def test_errors_are_those_of_the_sdk(client: openai.OpenAI) -> None:
    long: Any = [{"role": "user", "content": "word " * 4000}]
    with pytest.raises(openai.BadRequestError, match="2048"):
        client.chat.completions.create(model="smollm2", messages=long)
    with pytest.raises(openai.BadRequestError, match="2048"):
        client.chat.completions.create(model="smollm2", messages=long, stream=True)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(**ASK, temperature=-3)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**{**ASK, "model": "unknown"})
    with pytest.raises(openai.BadRequestError) as wrong_kind:
        client.chat.completions.create(**{**ASK, "model": "minilm"})
    assert wrong_kind.value.code == "unsupported_endpoint"
