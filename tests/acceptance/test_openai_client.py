"""The official ``openai`` package against a real model in a real engine, through everything."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from acceptance.clients import openai_client
from lab import Lab, wait_for


@pytest.fixture
def client(lab: Lab) -> Iterator[openai.OpenAI]:
    with openai_client(lab) as client:
        yield client


@pytest.fixture
def lenient(lab: Lab) -> Iterator[openai.OpenAI]:
    """What completions and embeddings are when they come is not what the package makes of them."""
    with openai_client(lab, _strict_response_validation=False) as client:
        yield client


ASK: dict[str, Any] = {"model": "smollm2", "messages": [{"role": "user", "content": "Name three fruits."}]}


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASK, max_tokens=12)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 5
    assert 0 < answer.usage.completion_tokens <= 12


def test_stream_without_asking_for_usage(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(**ASK, max_tokens=12, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason
    assert all(chunk.usage is None for chunk in chunks)


def test_stream_that_asks_for_usage(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    chunks = list(client.chat.completions.create(**ASK, max_tokens=12, stream=True, stream_options=options))
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


def test_completion_by_alias(lenient: openai.OpenAI) -> None:
    answer = lenient.completions.create(model="tiny", prompt="One, two, three,", max_tokens=8)
    assert answer.choices[0].text
    pieces = lenient.completions.create(model="tiny", prompt="One, two, three,", max_tokens=8, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces)


class Fruit(BaseModel):
    name: Literal["apple", "pear"]
    is_ripe: bool


def test_structured_output(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(**ASK, response_format=Fruit, max_tokens=200, temperature=0)
    assert isinstance(answer.choices[0].message.parsed, Fruit)


def test_embeddings(lenient: openai.OpenAI) -> None:
    answer = lenient.embeddings.create(model="smollm2", input=["a cat", "a dog"])
    assert [item.index for item in answer.data] == [0, 1]
    assert len(answer.data[0].embedding) > 100
    assert answer.data[0].embedding != answer.data[1].embedding


def test_what_this_model_cannot_read(client: openai.OpenAI) -> None:
    """To these llama.cpp answers with 500. However many come, others are served."""
    image: Any = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    for _ in range(10):
        with pytest.raises(openai.BadRequestError, match="image input is not supported"):
            client.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": [image]}])
    with pytest.raises(openai.BadRequestError, match="too large"):
        client.embeddings.create(model="smollm2", input="word " * 2000)
    assert client.chat.completions.create(**ASK, max_tokens=1).choices


async def test_async_client_ten_streams_at_once(lab: Lab) -> None:
    async with openai.AsyncOpenAI(base_url=lab.base_url, api_key=lab.key, max_retries=0) as client:

        async def one() -> str:
            stream = await client.chat.completions.create(**ASK, max_tokens=6, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        assert all(await asyncio.gather(*(one() for _ in range(10))))


def test_models(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    extension: Any = model.model_dump()["first"]
    assert model.id == "smollm2"
    assert extension["status"] == "live"
    assert extension["clusters"][0]["name"] == "here"
    assert extension["context_length"] == 1024
    assert {"chat", "completions", "embeddings"} <= set(extension["capabilities"])
    assert client.models.retrieve("tiny").id == "smollm2"


def test_typed_exceptions(lab: Lab, client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=lab.base_url, api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(**ASK | {"model": "unknown"})
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(**ASK, max_tokens=-1)
    assert bad.value.param == "max_tokens"
    narrow = lab.make_key("narrow", ("metrics",))
    with pytest.raises(openai.PermissionDeniedError):
        openai.OpenAI(base_url=lab.base_url, api_key=narrow, max_retries=0).models.list()


def test_every_answer_is_in_the_ledger(lab: Lab, client: openai.OpenAI) -> None:
    answer = client.chat.completions.with_raw_response.create(**ASK, max_tokens=5)
    request_id = answer.headers["x-request-id"]
    used = answer.parse().usage
    assert used is not None
    [row] = wait_for("the line is loaded", lambda: [r for r in lab.usage() if r["request_id"] == request_id])
    assert (row["prompt_tokens"], row["completion_tokens"]) == (used.prompt_tokens, used.completion_tokens)
    assert not row["estimated"]
    assert row["outcome"] == "complete"
