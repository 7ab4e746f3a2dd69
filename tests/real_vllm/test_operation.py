"""What FIRST does around vLLM: where answers come from, what they cost, what happens to them when a client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anthropic
import openai
import pytest

from firstkit.engines.load import Load
from lab import Lab, wait_for

ASK: dict[str, Any] = {"model": "smollm2", "messages": [{"role": "user", "content": "Tell me a long story."}]}
SHORT: dict[str, Any] = {**ASK, "max_tokens": 12}
LoadOf = Callable[[], Load]
UsageLine = Callable[[str], Any]


def test_an_answer_says_where_it_comes_from(lab: Lab, client: openai.OpenAI, usage_line: UsageLine) -> None:
    answer = client.chat.completions.with_raw_response.create(**SHORT)
    [replica] = [row for row in lab.replicas() if row["model"] == "smollm2"]
    told = {name: value for name, value in answer.headers.items() if name.startswith("x-first-")}
    assert told["x-first-cluster"] == "here"
    assert told["x-first-replica"] == replica["id"]
    assert told["x-first-engine"].startswith("vLLM 0.32.")
    assert told["x-first-revision"] == "smollm2-of-the-demonstration"
    line = usage_line(answer.headers["x-request-id"])
    assert (line["engine"], line["revision"]) == (told["x-first-engine"], told["x-first-revision"])


def test_an_answer_says_it_in_its_body_where_it_is_asked(client: openai.OpenAI) -> None:
    asked: Any = {**SHORT, "extra_body": {"x_first": True}}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content
    *_, last = client.chat.completions.create(**asked, stream=True)
    for said in (whole, last):
        origin: Any = (said.model_extra or {})["x_first"]
        assert origin["cluster"] == "here"
        assert origin["engine"].startswith("vLLM 0.32.")
        assert origin["model"] == "smollm2"


def test_the_ledger_has_the_numbers_of_the_engine(client: openai.OpenAI, usage_line: UsageLine) -> None:
    chat = client.chat.completions.with_raw_response.create(**SHORT)
    used = chat.parse().usage
    assert used is not None
    _costs(usage_line, chat.headers, "chat/completions", used.prompt_tokens, used.completion_tokens)
    hidden = client.chat.completions.with_raw_response.create(**SHORT, stream=True)
    assert [chunk for chunk in hidden.parse() if chunk.usage is not None] == []
    _costs(usage_line, hidden.headers, "chat/completions", used.prompt_tokens, 12)
    two = client.chat.completions.with_raw_response.create(**SHORT, n=2)
    used = two.parse().usage
    assert used is not None
    assert used.completion_tokens > 12
    _costs(usage_line, two.headers, "chat/completions", used.prompt_tokens, used.completion_tokens)
    vectors = client.embeddings.with_raw_response.create(model="minilm", input=["a cat", "a dog"])
    _costs(usage_line, vectors.headers, "embeddings", vectors.parse().usage.prompt_tokens, 0)


def test_the_ledger_of_responses(client: openai.OpenAI, usage_line: UsageLine) -> None:
    asked: Any = {"model": "smollm2", "input": "Tell me a long story.", "max_output_tokens": 16}
    whole = client.responses.with_raw_response.create(**asked)
    used = whole.parse().usage
    assert used is not None
    _costs(usage_line, whole.headers, "responses", used.input_tokens, used.output_tokens)
    stream = client.responses.with_raw_response.create(**asked, stream=True)
    *_, last = stream.parse()
    told: Any = last
    _costs(usage_line, stream.headers, "responses", told.response.usage.input_tokens, told.response.usage.output_tokens)


def test_the_ledger_of_messages(claude: anthropic.Anthropic, usage_line: UsageLine) -> None:
    whole = claude.messages.with_raw_response.create(**SHORT)
    used = whole.parse().usage
    _costs(usage_line, whole.headers, "messages", used.input_tokens, used.output_tokens)
    stream = claude.messages.with_raw_response.create(**SHORT, stream=True)
    assert [event.type for event in stream.parse()][-1] == "message_stop"
    _costs(usage_line, stream.headers, "messages", used.input_tokens, 12)
    counted = claude.messages.with_raw_response.count_tokens(model="smollm2", messages=ASK["messages"])
    assert counted.parse().input_tokens == used.input_tokens
    _costs(usage_line, counted.headers, "messages/count_tokens", 0, 0)


def _costs(usage_line: UsageLine, headers: Any, endpoint: str, prompt: int, completion: int) -> None:
    line = usage_line(headers["x-request-id"])
    assert (line["endpoint"], line["outcome"]) == (endpoint, "complete")
    assert (line["prompt_tokens"], line["completion_tokens"], line["estimated"]) == (prompt, completion, False)


@pytest.mark.parametrize("protocol", ["chat", "responses", "messages"])
def test_a_client_that_leaves_frees_the_engine(
    client: openai.OpenAI, claude: anthropic.Anthropic, load: LoadOf, usage_line: UsageLine, protocol: str
) -> None:
    endless: Any = {"stream": True, "extra_body": {"ignore_eos": True}}
    if protocol == "chat":
        request: Any = client.chat.completions.with_raw_response.create(**ASK, max_tokens=1900, **endless)
    elif protocol == "responses":
        said: Any = {"model": "smollm2", "input": "Tell me a long story.", "max_output_tokens": 1900}
        request = client.responses.with_raw_response.create(**said, **endless)
    else:
        request = claude.messages.with_raw_response.create(**ASK, max_tokens=1900, **endless)
    events = iter(stream := request.parse())
    for _ in range(12):
        next(events)
    assert load().running == 1
    stream.close()
    wait_for("the engine is free", lambda: load().requests == 0, 20)
    line = usage_line(request.headers["x-request-id"])
    assert line["outcome"] == "cancelled"
    assert 0 < line["completion_tokens"] < 1900


def test_the_load_that_routing_hears_of(client: openai.OpenAI, load: LoadOf) -> None:
    """One request can be more than one to the engine, and some of it waits: only the engine knows."""
    assert load() == Load(running=0, waiting=0, cache_use=0.0)
    asked: Any = {**ASK, "n": 12, "max_tokens": 400, "stream": True, "extra_body": {"ignore_eos": True}}
    with client.chat.completions.create(**asked) as stream:
        next(iter(stream))
        told = wait_for("4 of 12 wait", lambda: (now := load()).waiting == 4 and now, 20)
        assert told.running == 8
        assert told.cache_use is not None
        assert 0 < told.cache_use < 1
    wait_for("the engine is free", lambda: load().requests == 0, 20)


async def test_many_streams_at_once(lab: Lab) -> None:
    """More than the engine runs at a time: the rest waits, and nobody gets the words of another."""
    async with openai.AsyncOpenAI(base_url=lab.base_url, api_key=lab.key, max_retries=0) as client:

        async def one(number: int) -> str:
            stream = await client.completions.create(
                model="smollm2", prompt=f"{number} {number} {number} {number} {number} {number}", max_tokens=8,
                temperature=0, stream=True,
            )  # fmt: skip
            return "".join([chunk.choices[0].text async for chunk in stream])

        texts = await asyncio.gather(*(one(number) for number in range(20, 32)))
        for number, text in zip(range(20, 32), texts, strict=True):
            assert str(number) in text
